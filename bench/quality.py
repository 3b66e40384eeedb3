"""Answers with a compressed cache, against the full one: exact match and more on fresh pages.

Every method and keep answers the same questions, one a page. What is counted, for each:

exact match     share of the answers that are exactly what is on the page
same as full    share of the answers that are those of the full cache, right or wrong
cells kept      visual cells of all layers, mean over the pages
KL              of the next-token distribution from the full cache's, at the second token of the answer, in nats, mean
                over the pages. The first token never differs, so both sides have read the same when they predict it.

95 % intervals: Wilson's for shares, 1.96 standard errors for KL.

    python bench/quality.py --update docs/quality.md
    python bench/quality.py --method aircache --method last --update README.md
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from bench_common import machine, markdown, progress, write_json
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # for training/, which is not installed

from pyaircache import Chat, Last, Method, Pool, PyAircacheError  # noqa: E402
from pyaircache.engine import version  # noqa: E402
from training.draw import draw_page, draw_size  # noqa: E402

# Points of the grid that have no name of their own: a named method, and what is different.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "aircache+max5": ("aircache", {"pool": Pool("max", 5)}),
    "last+max5": ("last", {"pool": Pool("max", 5)}),
    "last16": ("last", {"window": Last(16)}),
    "last16+max5": ("last", {"window": Last(16), "pool": Pool("max", 5)}),
}
NAMED = ("aircache", "snapkv", "h2o", "prefixkv", "pyramidkv", "vlcache", "last", "random", "stride")
PAGES, SEED, KEEPS, METHODS = 500, 1, (0.25, 0.1, 0.05, 0.02), (*NAMED, *PRESETS)
MAX_TOKENS = 16  # answers have up to eight tokens
BEGIN, END = "<!-- {}:begin -->", "<!-- {}:end -->"
MARK = "quality"
HEAD = ("method", "keep", "exact match", "95 %", "same as full", "95 %", "cells kept", "KL (nats)")


@dataclass(frozen=True)
class Case:
    """A page, a question about it and the right answer."""

    image: Image.Image
    question: str
    expected: str
    number: int = 0


@dataclass(frozen=True)
class Outcome:
    """What one method answered; logits: those of the second token [n_vocab], None where they are not known."""

    answer: str
    cells: int
    logits: NDArray[np.float32] | None


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    method: str
    keep: float
    pages: int
    right: int
    same: int
    cells: float
    kl: float
    kl_half: float  # half the length of the 95 % interval

    def shown(self) -> tuple[str, ...]:
        """The cells of the table, as text."""
        kl = f"{self.kl:.2f} ± {self.kl_half:.2f}"
        shares = [text for count in (self.right, self.same) for text in shown_share(count, self.pages)]
        return self.method, f"{self.keep:g}", *shares, f"{self.cells:.1f}", kl


def shown_share(count: int, of: int) -> tuple[str, str]:
    """A share and its interval in percent, as text."""
    low, high = wilson(count, of)
    return f"{count / of:.1%}", f"{100 * low:.1f} to {100 * high:.1f}"


def method_of(name: str) -> str | Method:
    """A name of PRESETS, or one that Chat knows, for Chat."""
    base, changes = PRESETS.get(name, (name, {}))
    return dataclasses.replace(Method.named(base), **changes) if changes else base


def make_cases(count: int, seed: int) -> list[Case]:
    """Fresh pages, of which `python -m training.draw` draws more, and one of each page's questions."""
    rng = np.random.default_rng((seed, 0, 0))  # training draws from (seed, step)
    cases = []
    for i in range(count):
        page, pixels = draw_page(rng, *draw_size(rng))
        question = page.questions[rng.integers(len(page.questions))]
        cases.append(Case(Image.fromarray(pixels), question.text, question.answer, i))
    return cases


def ask(chat: Chat, case: Case, keep: float, method: str | Method) -> Outcome:
    """Asks, looking at the logits that each token of the answer, and its end, is chosen from.

    Random scores are drawn anew for every page: one seed gives all pages of a size the same set.
    """
    if method == "random":
        method = dataclasses.replace(Method.named("random"), seed=case.number)
    logits = []
    with chat.ask(case.image, case.question, keep=keep, method=method, max_tokens=MAX_TOKENS, stream=True) as stream:
        for _ in stream:
            logits.append(chat.engine.logits())
    logits.append(chat.engine.logits())
    one_by_one = 1 <= stream.report.answer_tokens == len(logits) - 1  # several tokens may make up one piece of text
    return Outcome(str(stream.answer), stream.report.cells_kept, logits[1] if one_by_one else None)


def wilson(right: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share: (low, high)."""
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    centre, scale = right / count + z * z / (2 * count), 1 + z * z / count
    half = z * math.sqrt(right * (count - right) / count**3 + z * z / (4 * count**2))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def kl_divergence(full: NDArray[Any], other: NDArray[Any]) -> float:
    """KL(full || other) of two softmax distributions given as logits [n_vocab], in nats."""
    log_p, log_q = (x - np.logaddexp.reduce(x) for x in (full.astype(np.float64), other.astype(np.float64)))
    return max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum()))


def compare(method: str, keep: float, cases: Sequence[Case], full: Sequence[Outcome], got: Sequence[Outcome]) -> Row:
    """Sums up what a method answered."""
    pairs = [(a.logits, b.logits) for a, b in zip(full, got, strict=True)]
    kls = [kl_divergence(a, b) for a, b in pairs if a is not None and b is not None]
    return Row(
        method=method,
        keep=keep,
        pages=len(cases),
        right=sum(outcome.answer.strip() == case.expected for outcome, case in zip(got, cases, strict=True)),
        same=sum(a.answer == b.answer for a, b in zip(full, got, strict=True)),
        cells=statistics.mean(outcome.cells for outcome in got),
        kl=statistics.mean(kls) if kls else math.nan,
        kl_half=1.96 * statistics.stdev(kls) / math.sqrt(len(kls)) if len(kls) > 1 else math.nan,
    )


def measure(cases: Sequence[Case], methods: Sequence[str], keeps: Iterable[float], **options: Any) -> Iterator[Row]:
    """Yields the row of the full cache, then those of the methods; options: of Chat."""
    with Chat(**options) as chat:
        full = [ask(chat, case, 1.0, "full") for case in progress(cases, "full")]
        yield compare("full", 1.0, cases, full, full)
        for method in methods:
            for keep in (keep for keep in keeps if keep < 1):  # 1 is the full cache
                got = [ask(chat, case, keep, method_of(method)) for case in progress(cases, f"{method} {keep:g}")]
                yield compare(method, keep, cases, full, got)


def replaced(path: Path, block: str, mark: str = MARK) -> str:
    """The text of a file with `block` between its two markers."""
    first, last = BEGIN.format(mark), END.format(mark)
    before, begin, rest = path.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise click.UsageError(f"{path} must hold the line {first} and, below it, {last}")
    return f"{before}{first}\n{block}\n{last}{after}"


def command(pages: int, seed: int, keeps: Sequence[float], methods: Sequence[str]) -> str:
    """The command that gives these figures, but for a model of one's own."""
    words = ["python bench/quality.py"]
    words += [f"--pages {pages}"] * (pages != PAGES) + [f"--seed {seed}"] * (seed != SEED)
    words += [f"--keep {keep:g}" for keep in keeps if tuple(keeps) != KEEPS]
    words += [f"--method {method}" for method in methods if tuple(methods) != METHODS]
    return " ".join(words)


def _check_keeps(_context: click.Context, _param: click.Parameter, values: tuple[float, ...]) -> tuple[float, ...]:
    for value in values:
        if not 0 < value <= 1:
            raise click.BadParameter(f"must be greater than 0 and at most 1, got {value:g}")
    return values


@click.command(context_settings={"show_default": True})
@click.option("--pages", "count", default=PAGES, type=click.IntRange(min=1), help="Fresh pages, one question each.")
@click.option("--seed", default=SEED, type=click.IntRange(min=0), help="Of pages and questions.")
@click.option("--keep", "keeps", multiple=True, default=KEEPS, callback=_check_keeps, help="Repeatable.")
@click.option("--method", "methods", multiple=True, default=METHODS, help="Names; repeatable.")
@click.option("--model", metavar="GGUF", help="Language model; default: the bundled one.")
@click.option("--mmproj", metavar="GGUF", help="Its vision projector; default: the one in the model's folder.")
@click.option("--threads", default=1, type=click.IntRange(min=1), help="The bundled model is too small for more.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write JSON.")
@click.option(
    "--update",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"Put the table between the lines {BEGIN.format(MARK)} and {END.format(MARK)} of this file.",
)
def main(
    count: int,
    seed: int,
    keeps: tuple[float, ...],
    methods: tuple[str, ...],
    model: str | None,
    mmproj: str | None,
    threads: int,
    json_path: Path | None,
    update: Path | None,
) -> None:
    """Exact match and more on fresh pages, with a compressed cache against the full one."""
    if update is not None:
        replaced(update, "")  # finds a wrong file before the work
    try:
        cases = make_cases(count, seed)
        rows = list(measure(cases, methods, keeps, model=model, mmproj=mmproj, n_threads=threads))
    except PyAircacheError as error:
        raise click.ClickException(str(error)) from None
    name = Path(model).name if model else "the bundled model"
    made_by = command(count, seed, keeps, methods)
    table = markdown([HEAD, *(row.shown() for row in rows)])
    block = f"{table}\n\n`{made_by}`: {name}, {count} pages, engine {version()}."
    click.echo(block)
    write_json(
        json_path,
        {
            "command": made_by,
            "model": name,
            "pages": count,
            "seed": seed,
            "engine": version(),
            "machine": machine(),
            "rows": [asdict(row) | {"interval": wilson(row.right, row.pages)} for row in rows],
        },
    )
    if update is not None:
        update.write_text(replaced(update, block), encoding="utf-8")


if __name__ == "__main__":
    main()
