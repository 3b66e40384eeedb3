"""The eviction table of the model card of ledger-vl, once more with the engine.

The card (shared/models/ledger-vl/README.md) measured in PyTorch: 12 x 10 pages, 120 visual tokens, 80 questions, scores
averaged over heads, one kept set a layer, the same budget in every layer unless said. Here the engine does the same on
other pages: those of models/pages.py, with its questions. For each figure both 95 % Wilson intervals are shown, and
that of the difference (Newcombe's method 10); `agrees` is whether the latter holds 0. One row in twenty would not by
chance.

    python bench/like_card.py --update docs/quality.md
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import click
from bench_common import machine, progress, write_json
from quality import ask, make_cases, markdown, method_of, replaced, shown_share, wilson

from pyaircache import Chat, Elite, Method, Pool, PyAircacheError
from pyaircache._engine import version

SIZE = (12, 10)  # rows, width in tokens
KEEPS = (0.5, 0.25, 0.1, 0.05)
CARD_PAGES = 80
MARK = "card"
HEAD = ("score", "keep", "here", "95 %", "card", "95 %", "difference, 95 %", "agrees")

# rows of the card: right answers in percent at each of KEEPS
CARD = {
    "random": (43, 10, 3, 1),
    "last": (93, 83, 44, 19),
    "last16": (61, 34, 15, 4),
    "last16+max5": (94, 94, 84, 73),
    "last+max5": (100, 100, 89, 84),
    "aircache, uniform": (46, 29, 11, 5),
    "aircache": (49, 30, 11, 6),
    "aircache+max5, uniform": (64, 45, 18, 15),
    "aircache 0.05+max5, uniform": (86, 70, 48, 34),
}


@dataclass(frozen=True)
class Figure:
    """One figure of the table; right and pages: here, card_right: of CARD_PAGES."""

    score: str
    keep: float
    pages: int
    right: int
    card_right: int

    @property
    def difference(self) -> tuple[float, float]:
        """95 % interval of the share here minus the card's."""
        return difference(self.right, self.pages, self.card_right, CARD_PAGES)

    @property
    def agrees(self) -> bool:
        """Whether the two shares may be the same."""
        low, high = self.difference
        return low <= 0 <= high

    def shown(self) -> tuple[str, ...]:
        """The cells of the table, as text."""
        low, high = (100 * bound for bound in self.difference)
        shares = (*shown_share(self.right, self.pages), *shown_share(self.card_right, CARD_PAGES))
        return self.score, f"{self.keep:g}", *shares, f"{low:+.1f} to {high:+.1f}", "yes" if self.agrees else "no"


def difference(right: int, count: int, other_right: int, other_count: int) -> tuple[float, float]:
    """95 % interval of the difference of two shares: Newcombe 1998, Statistics in Medicine 17, p. 873, method 10."""
    p, q = right / count, other_right / other_count
    (p_low, p_high), (q_low, q_high) = wilson(right, count), wilson(other_right, other_count)
    return p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low)


def card_method(row: str) -> str | Method:
    """The method of a row of CARD, for Chat."""
    name, _, uniform = row.partition(", ")
    if not uniform:
        return method_of(name)
    changes = {"allocation": "uniform", "pool": Pool("max", 5) if "+max5" in name else None}
    alpha = 0.05 if "0.05" in name else 0.9
    return dataclasses.replace(Method(window=Elite(alpha)), **changes)


@click.command(context_settings={"show_default": True})
@click.option("--pages", "count", default=400, type=click.IntRange(min=1), help="Fresh pages, one question each.")
@click.option("--seed", default=1, type=click.IntRange(min=0), help="Of pages and questions.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write JSON.")
@click.option("--update", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Put the table there.")
def main(count: int, seed: int, json_path: Path | None, update: Path | None) -> None:
    """The model card's eviction table, here and there."""
    if update is not None:
        replaced(update, "", MARK)  # finds a wrong file before the work
    cases = make_cases(count, seed, [SIZE])
    figures = []
    try:
        for row, percents in CARD.items():
            with Chat(method=card_method(row), n_threads=1) as chat:
                for keep, percent in zip(KEEPS, percents, strict=True):
                    outcomes = [ask(chat, case, keep) for case in progress(cases, f"{row} {keep:g}")]
                    right = sum(one.answer.strip() == case.expected for one, case in zip(outcomes, cases, strict=True))
                    figures.append(Figure(row, keep, count, right, round(percent * CARD_PAGES / 100)))
    except PyAircacheError as error:
        raise click.ClickException(str(error)) from None
    made_by = f"python bench/like_card.py --pages {count} --seed {seed}"
    agreeing = sum(figure.agrees for figure in figures)
    block = (
        f"{markdown([HEAD, *(figure.shown() for figure in figures)])}\n\n"
        f"`{made_by}`: {agreeing} of {len(figures)} figures agree; engine {version()}."
    )
    click.echo(block)
    rows = [dataclasses.asdict(figure) | {"agrees": figure.agrees} for figure in figures]
    write_json(json_path, {"command": made_by, "engine": version(), "machine": machine(), "rows": rows})
    if update is not None:
        update.write_text(replaced(update, block, MARK), encoding="utf-8")


if __name__ == "__main__":
    main()
