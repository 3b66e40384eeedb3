"""Renders "ledger" pages: rows of KEY and NUMBER in a monospaced font, what the model ledger-vl was trained to read.

A page is a grid of rows x width visual tokens. One token covers 28 x 28 px, which is two characters of 14 x 28 px, so
the token that holds a given character is known exactly (`Page.value_tokens`): useful to see what an eviction kept.

    python -m models.pages OUT --n 20 --seed 1
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

TOKEN_PX = 28
CHAR_PX = 14
CHARS_PER_TOKEN = TOKEN_PX // CHAR_PX
BASELINE_PX = 22
FONT_PX = 22
FONTS = {"DejaVuSansMono.ttf": 0.6, "DejaVuSansMono-Bold.ttf": 0.3, "DejaVuSansMono-Oblique.ttf": 0.1}

KEY_CHARS = (3, 6)
VALUE_CHARS = (4, 6)
VALUE_OFFSET = KEY_CHARS[1] + 1  # the value starts at least this far right of the key's first character
PAPER, INK = (200, 255), (0, 90)  # ranges of the two grey levels
NOISE_MAX = 10.0  # highest standard deviation of the pixel noise
SHIFT_PX = 2  # whole page, either way, both directions
MAX_TOKENS = 4096  # more would be scaled down by the model's preprocessor, fewer than MIN_TOKENS scaled up
MIN_TOKENS = 8
MIN_WIDTH = 7
SIZES = ((8, 8), (10, 8), (12, 8), (12, 10), (14, 8), (16, 10))

WORD_LIST = (
    "ACORN AMBER ANVIL ASH BADGE BAMBOO BARLEY BASKET BEACON BERRY BIRCH BISON BUCKET BUTTON CABLE CAMEL CANDLE CANOE "
    "CARROT CEDAR CHALK CHERRY CIDER CIGAR CLAY COBALT COCOA COPPER CORAL COTTON CRANE CROW DAISY DRUM EAGLE "
    "EGG ELM FALCON FERN FIDDLE FLAG FLINT FOX GARLIC GINGER GLOBE GOAT GOOSE GRAVEL GUITAR HARP HAWK HAZEL HELMET "
    "HERON HINGE INDIGO IRIS IRON IVORY IVY JADE JAR KAYAK KETTLE LADDER LARCH LILAC LIME LOOM LUTE MAGPIE MAPLE MELON "
    "MIRROR MOSS MOTH NEEDLE NUTMEG OAK OAR ONYX ORCHID OTTER OWL PADDLE PAPAYA PEARL PEBBLE PEPPER PIANO PINE "
    "PIPE PLUG QUARTZ QUILL RADISH RAKE RAVEN REED RIBBON ROBIN ROSE RUBY SADDLE SAIL SAND SLATE SPADE STONE STRAW "
    "TEAPOT TENT THYME TIGER TILE TIN TULIP TURNIP VASE VELVET VIOLIN WAGON WALNUT WAX WHEAT WHISK WILLOW YARN ZINC"
)
WORDS = WORD_LIST.split()

QUESTIONS = (
    "What is {}?",
    "How much is {}?",
    "Value of {}?",
    "What is the value of {}?",
    "Look up {}.",
    "Tell me {}.",
    "Find {} please.",
    "Read {}.",
    "Give me {}.",
)


class Entry(NamedTuple):
    """One row of a page; columns count characters from the page's left edge."""

    key: str
    value: str
    row: int
    key_column: int
    value_column: int


@dataclass(frozen=True)
class Page:
    """A rendered page and what is written on it."""

    image: Image.Image
    entries: tuple[Entry, ...]
    rows: int
    width: int  # in tokens

    @property
    def n_tokens(self) -> int:
        """Visual tokens the model makes of the page."""
        return self.rows * self.width

    def question(self, rng: np.random.Generator) -> tuple[str, str]:
        """A question about a random row, and its answer."""
        entry = self.entries[rng.integers(len(self.entries))]
        return QUESTIONS[rng.integers(len(QUESTIONS))].format(entry.key), entry.value

    def value_tokens(self, key: str) -> list[int]:
        """Indices of the visual tokens that show the value of `key`, ascending."""
        for entry in self.entries:
            if entry.key == key:
                first = entry.value_column // CHARS_PER_TOKEN
                last = (entry.value_column + len(entry.value) - 1) // CHARS_PER_TOKEN
                return [entry.row * self.width + column for column in range(first, last + 1)]
        raise ValueError(f"no such key on this page: {key!r}; it has {', '.join(e.key for e in self.entries)}")


def make_page(rng: np.random.Generator, rows: int, width: int) -> Page:
    """Makes one page; the same generator state gives the same page.

    Args:
        rng: source of all randomness.
        rows: entries on the page.
        width: columns in visual tokens, at least 7. The model was trained on 6 x 8 to 16 x 10 (rows x width).

    Raises:
        ValueError: a size that cannot hold an entry, or that the model's preprocessor would rescale.
    """
    if rows < 1 or width < MIN_WIDTH:
        raise ValueError(f"a page needs at least 1 row and a width of {MIN_WIDTH} tokens, got {rows} x {width}")
    if not MIN_TOKENS <= rows * width <= MAX_TOKENS:
        raise ValueError(f"rows x width must be between {MIN_TOKENS} and {MAX_TOKENS} tokens, got {rows} x {width}")
    entries = _entries(rng, rows, width)
    return Page(_render(rng, entries, rows, width), entries, rows, width)


def _entries(rng: np.random.Generator, rows: int, width: int) -> tuple[Entry, ...]:
    chars = width * CHARS_PER_TOKEN
    key_column = int(rng.integers(chars - VALUE_OFFSET - VALUE_CHARS[1] + 1))
    value_column = int(rng.integers(key_column + VALUE_OFFSET, chars - VALUE_CHARS[1] + 1))
    flush_right = rng.random() < 0.3
    keys: list[str] = []
    while len(keys) < rows:
        key = _key(rng, keys)
        if key not in keys:
            keys.append(key)
    entries = []
    for row, key in enumerate(keys):
        value = "".join(str(digit) for digit in rng.integers(10, size=rng.integers(VALUE_CHARS[0], VALUE_CHARS[1] + 1)))
        indent = VALUE_CHARS[1] - len(value) if flush_right else 0
        entries.append(Entry(key, value, row, key_column, value_column + indent))
    return tuple(entries)


def _key(rng: np.random.Generator, others: list[str]) -> str:
    """A word, a random string, or now and then one that begins like another key of the page."""
    if rng.random() < 0.3:
        key = WORDS[rng.integers(len(WORDS))]
    else:
        letters = rng.integers(ord("A"), ord("Z") + 1, size=rng.integers(KEY_CHARS[0], KEY_CHARS[1] + 1))
        key = "".join(chr(letter) for letter in letters)
    if others and rng.random() < 0.1:
        key = others[rng.integers(len(others))][:2] + key[2:]
    return key


def _render(rng: np.random.Generator, entries: tuple[Entry, ...], rows: int, width: int) -> Image.Image:
    ink = Image.new("L", (width * TOKEN_PX, rows * TOKEN_PX), 0)
    draw = ImageDraw.Draw(ink)
    font = _font(list(FONTS)[rng.choice(len(FONTS), p=list(FONTS.values()))])
    for entry in entries:
        for text, column in ((entry.key, entry.key_column), (entry.value, entry.value_column)):
            for i, char in enumerate(text):
                x, y = (column + i + 0.5) * CHAR_PX, entry.row * TOKEN_PX + BASELINE_PX
                draw.text((x, y), char, fill=255, font=font, anchor="ms")
    # wrapped, so that a page keeps its size; what comes in on the other side is at most SHIFT_PX of a margin
    shift = rng.integers(-SHIFT_PX, SHIFT_PX + 1, size=2)
    coverage = np.roll(np.asarray(ink, dtype=np.float64) / 255, shift, axis=(0, 1))
    paper, colour = rng.uniform(*PAPER), rng.uniform(*INK)
    grey = paper + (colour - paper) * coverage
    grey += rng.standard_normal(grey.shape) * rng.uniform(0, NOISE_MAX)
    return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).convert("RGB")


@cache
def _font(file: str) -> ImageFont.FreeTypeFont:
    # matplotlib ships the fonts, so that a page looks the same on every machine
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / file, FONT_PX)


@click.command(help=__doc__)
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--n", default=20, show_default=True, type=click.IntRange(min=1), help="Pages to make.")
@click.option("--seed", default=1, show_default=True, type=int)
@click.option("--rows", type=click.IntRange(min=1), help="Rows of every page; default: sizes vary.")
@click.option("--width", type=click.IntRange(min=MIN_WIDTH), help="Width of every page in tokens.")
def main(out: Path, n: int, seed: int, rows: int | None, width: int | None) -> None:
    if (rows is None) != (width is None):
        raise click.UsageError("give both --rows and --width, or neither")
    rng = np.random.default_rng(seed)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "pages.jsonl").open("w", encoding="utf-8") as lines:
        for i in range(n):
            size = (rows, width) if rows is not None and width is not None else SIZES[i % len(SIZES)]
            try:
                page = make_page(rng, *size)
            except ValueError as error:
                raise click.ClickException(str(error)) from error
            question, answer = page.question(rng)
            file = f"{i:03d}.png"
            page.image.save(out / file)
            line = {"file": file, "rows": page.rows, "width": page.width, "question": question, "answer": answer}
            line["entries"] = {entry.key: entry.value for entry in page.entries}
            lines.write(json.dumps(line) + "\n")
    click.echo(f"{n} pages in {out}")


if __name__ == "__main__":
    main()
