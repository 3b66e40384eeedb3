"""The five kinds of page. Each function fills an empty Page and puts down every question that can be asked about it."""

from __future__ import annotations

import numpy as np

from training import words
from training.page import CELL, Page

ASK_VALUE = (
    "What is the {}?",
    "What does {} say?",
    "Tell me the {}.",
    "{}?",
    "Read the {} for me.",
    "Find the {}.",
    "What is written for {}?",
    "Which {} is given?",
)
ASK_PRICE = (
    "What does {} cost?",
    "How much is the {}?",
    "Price of {}?",
    "What is the price of {}?",
    "What did they pay for {}?",
    "Find the price of {}.",
)
ASK_CELL = (
    "What is {1} for {0}?",
    "How much is {0} in {1}?",
    "{0}, {1}?",
    "Find {1} of {0}.",
    "What does the table say for {0} in {1}?",
    "Read {0} under {1}.",
)
ASK_BAR = (
    "What is the value of {}?",
    "How high is {}?",
    "How many for {}?",
    "Which value does {} have?",
    "Read the bar of {}.",
    "{}?",
)
ASK_LARGER = ("Which is larger, {} or {}?", "Which has more, {} or {}?", "Is {} or {} larger?")
ASK_SMALLER = ("Which is smaller, {} or {}?", "Which has less, {} or {}?", "Is {} or {} smaller?")
ASK_FAR = ("How far is {}?", "What is the distance to {}?", "How far is it to {}?", "Distance to {}?")
ASK_SIGN = (
    "What does the {} sign say?",
    "Which place is on the {} sign?",
    "Read the {} sign.",
    "Where does the {} sign point?",
)
ASK_SIGN_FAR = (
    "Which distance is on the {} sign?",
    "How far is it on the {} sign?",
    "What distance does the {} sign give?",
)


def pick(rng: np.random.Generator, options):
    return options[rng.integers(len(options))]


def sample(rng: np.random.Generator, options, n: int) -> list:
    return [options[i] for i in rng.permutation(len(options))[:n]]


def pairs(rng: np.random.Generator, first, second, n: int) -> list[str]:
    """n different phrases of two words that share their words with each other."""
    firsts = sample(rng, first, max(3, -(-n // 2)))
    seconds = sample(rng, second, max(3, -(-n * 2 // 3)))
    return sample(rng, [f"{a} {b}" for a in firsts for b in seconds], n)


def number(rng: np.random.Generator, low: int = 3, high: int = 5) -> str:
    digits = rng.integers(0, 10, rng.integers(low, high + 1))
    return "".join(map(str, (max(1, digits[0]), *digits[1:])))


def amount(rng: np.random.Generator, high: int = 3) -> str:
    return f"{number(rng, 1, high)}.{rng.integers(100):02d}"


def value(rng: np.random.Generator, kind: str) -> str:
    if kind == "number":
        return number(rng, 4, 6)
    if kind == "code":
        # one letter: pairs are one token or two, and were read wrong for as long as there were any
        return chr(65 + rng.integers(0, 26)) + number(rng, 3, 4)
    if kind == "amount":
        return amount(rng)
    if kind == "name":
        return f"{pick(rng, words.FIRST_NAMES)} {pick(rng, words.LAST_NAMES)}"
    if kind == "date":
        return f"{rng.integers(1, 29)} {pick(rng, words.MONTHS)} {rng.integers(1990, 2030)}"
    return f"{pick(rng, words.PLACE_FIRST)} {pick(rng, words.PLACE_SECOND)}"


def form(page: Page) -> None:
    """Fields with their values, in one or two columns."""
    rng = page.rng
    columns = 2 if page.columns >= 18 else 1
    n_rows = page.rows - int(rng.integers(0, 3))
    top = int(rng.integers(0, page.rows - n_rows + 1))
    fields = [(a, kind, b) for a in words.FIELDS for kind, names in words.FIELD_KINDS.items() for b in names]
    fields = sample(rng, fields, n_rows * columns)
    colon, boxed = rng.random() < 0.6, rng.random() < 0.4
    for c in range(columns):
        span = page.width / columns
        left = c * span + rng.integers(2, 12)
        widest = max(page.length(f"{a} {b}:") for a, _, b in fields[c * n_rows : (c + 1) * n_rows])
        x = left + widest + rng.integers(6, 20)
        for r in range(n_rows):
            a, kind, b = fields[c * n_rows + r]
            label, text = f"{a} {b}", value(rng, kind)
            while page.length(text) > (c + 1) * span - x and kind != "number":
                kind = "number"
                text = value(rng, kind)
            page.write(label + (":" if colon else ""), left, top + r, key=label)
            page.write(text, x, top + r, key=label)
            page.ask("form", pick(rng, ASK_VALUE).format(label), text)
            if boxed:
                y = (top + r) * CELL + page.dy
                page.draw.rectangle((x - 4, y + 2, (c + 1) * span - 3, y + CELL - 3), outline=(150, 150, 150))


def receipt(page: Page) -> None:
    """Items and prices under a shop's name, and a total."""
    rng = page.rng
    n = page.rows - 2 - int(rng.integers(0, 3))
    items = pairs(rng, words.ITEM_FIRST, words.ITEM_SECOND, n)
    prices = []
    while len(prices) < n:
        price = amount(rng, 2)
        if price not in prices:
            prices.append(price)
    shop = f"{pick(rng, words.LAST_NAMES)} {pick(rng, words.SHOPS)}"
    page.write(shop, max(2.0, (page.width - page.length(shop)) / 2), 0, key="shop")
    page.ask("receipt", pick(rng, ("Which shop is it?", "What is the shop called?", "Name of the shop?")), shop)
    left, right = rng.integers(2, 16), page.width - rng.integers(2, 16)
    if rng.random() < 0.4:
        right = min(right, left + page.length("Large Coffee") + page.length("00000000"))
    for r, (item, price) in enumerate(zip(items, prices, strict=True), start=1):
        page.write(item, left, r, key=item)
        page.write(price, right, r, key=item, right=True)
        page.ask("receipt", pick(rng, ASK_PRICE).format(item), price)
    total = f"{sum(round(100 * float(p)) for p in prices) / 100:.2f}"
    y = (n + 1) * CELL
    page.draw.line((left, y, right, y), fill=(120, 120, 120))
    page.write("Total", left, n + 1, key="Total")
    page.write(total, right, n + 1, key="Total", right=True)
    page.ask("receipt", pick(rng, ("What is the total?", "How much is the total?", "Total?")), total)


def table(page: Page) -> None:
    """Numbers under named columns, one row a place."""
    rng = page.rng
    n_columns = min(3, int((page.width - page.length("Garden Square") - 20) // page.length("00000  ")))
    n_rows = page.rows - 1 - int(rng.integers(0, 3))
    names = pairs(rng, words.PLACE_FIRST, words.PLACE_SECOND, n_rows)
    heads = sample(rng, words.COLUMNS, n_columns)
    left = rng.integers(2, 8)
    first = left + max(map(page.length, names)) + 8
    step = (page.width - 4 - first) / n_columns
    ruled = rng.random() < 0.5
    for c, head in enumerate(heads):
        page.write(head, first + (c + 1) * step, 0, key=head, key2=head, right=True)
    for r, name in enumerate(names, start=1):
        page.write(name, left, r, key=name)
        if ruled:
            page.draw.line((left, r * CELL + page.dy, page.width - 4, r * CELL + page.dy), fill=(170, 170, 170))
        for c, head in enumerate(heads):
            text = number(rng, 3, 4)
            page.write(text, first + (c + 1) * step, r, key=name, key2=head, right=True)
            page.ask("table", pick(rng, ASK_CELL).format(name, head), text)


def chart(page: Page) -> None:
    """Horizontal bars with labels, their values, and ticks."""
    rng = page.rng
    n = page.rows - 2
    names = pairs(rng, words.PLACE_FIRST, words.PLACE_SECOND, n)
    page.write(f"{pick(rng, words.CHART_TITLES)} in {rng.integers(1990, 2030)}", rng.integers(4, 60), 0)
    left = rng.integers(2, 8)
    axis = int(left + max(map(page.length, names)) + 6)
    span = page.width - axis - page.length("00000")
    high = 1000
    colour = tuple(int(v) for v in rng.integers(60, 200, 3))
    values: list[int] = []
    while len(values) < n:
        v = int(rng.integers(100, high))
        if all(abs(v - o) > 8 for o in values):
            values.append(v)
    for r, (name, v) in enumerate(zip(names, values, strict=True), start=1):
        page.write(name, axis - 6, r, key=name, right=True)
        end = axis + span * v / high
        y = r * CELL + CELL // 2 + page.dy
        page.draw.rectangle((axis, y - 7, end, y + 7), fill=colour)
        page.write(str(v), end + 5, r, key=name)
        page.ask("chart", pick(rng, ASK_BAR).format(name), str(v))
    page.draw.line((axis, CELL, axis, (n + 1) * CELL), fill=page.ink)
    page.draw.line((axis, (n + 1) * CELL, axis + span, (n + 1) * CELL), fill=page.ink)
    for tick in (0, 500, 1000):
        x = axis + span * tick / high
        page.draw.line((x, (n + 1) * CELL, x, (n + 1) * CELL + 4), fill=page.ink)
        page.write(str(tick), max(0, x - page.length(str(tick)) / 2), n + 1)
    a, b = sample(rng, range(n), 2)
    larger = rng.random() < 0.5
    winner = a if (values[a] > values[b]) == larger else b
    page.ask("larger", pick(rng, ASK_LARGER if larger else ASK_SMALLER).format(names[a], names[b]), names[winner])


def signs(page: Page) -> None:
    """Boards of different colours in front of a background: a place on each and how far it is."""
    rng = page.rng
    sky, ground = (tuple(int(v) for v in rng.integers(lo, hi, 3)) for lo, hi in ((170, 235), (120, 190)))
    horizon = int(rng.integers(page.rows // 3, page.rows)) * CELL
    page.draw.rectangle((0, 0, page.width, horizon), fill=sky)
    page.draw.rectangle((0, horizon, page.width, page.rows * CELL), fill=ground)
    across = 2 if page.columns >= 13 else 1
    slots = sample(rng, [(r, c) for r in range(page.rows // 3) for c in range(across)], len(words.COLOURS))
    names = pairs(rng, words.PLACE_FIRST, words.PLACE_SECOND, len(slots))
    white = (250, 250, 250)
    for (r, c), colour, name in zip(slots, sample(rng, list(words.COLOURS), len(slots)), names, strict=True):
        far = f"{number(rng, 2, 3)}{rng.integers(1, 10)} m"
        slot = page.width / across
        wide = max(page.length(name), page.length(far)) + 16
        x = c * slot + rng.uniform(2, max(3.0, slot - wide - 2))
        y = r * 3 * CELL
        page.draw.rectangle((x + wide / 2 - 3, y + CELL, x + wide / 2 + 3, y + 3 * CELL), fill=(90, 90, 90))
        box = (x, y + page.dy - 1, x + wide, y + 2 * CELL + page.dy + 1)
        page.draw.rectangle(box, fill=words.COLOURS[colour], outline=white)
        page.write(name, x + (wide - page.length(name)) / 2, 3 * r, key=name, key2=colour, ink=white)
        page.write(far, x + (wide - page.length(far)) / 2, 3 * r + 1, key=name, key2=colour, ink=white)
        page.ask("sign", pick(rng, ASK_FAR).format(name), far)
        page.ask("sign", pick(rng, ASK_SIGN).format(colour), name)
        page.ask("sign", pick(rng, ASK_SIGN_FAR).format(colour), far)


LAYOUTS = {"form": form, "receipt": receipt, "table": table, "chart": chart, "signs": signs}
