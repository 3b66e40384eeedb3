"""``pyaircache demo``: the bundled model reads a page, then fills its context window; full and compressed.

Its first table is about answers: one page, ever fewer visual cells. The second is about what that gains, where it
counts: a long context. The model was trained on one page at a time, so what it answers about twenty is worth nothing,
and is not shown; what a token costs there does not depend on that.
"""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass

import click
import numpy as np
from numpy.typing import NDArray

from ..chat.answer import Answer
from ..chat.chat import Chat
from ..engine.engine import Engine
from ..engine.structs import Message
from ..images import load_images
from ..methods.method import Method
from ..model_files import resolve
from ..samples import Sample, sample

KEEPS = (1.0, 0.5, 0.25, 0.10)
LONG_KEEP = 0.10
LARGEST_SAMPLE = 1
SAMPLES = 5
STEPS = 48  # tokens that are timed
_WARM_UP = 4  # tokens before: the first ones pay for graphs

CAVEAT = """\
This bundled model is tiny, and was trained so that a question looks at the whole of its answer (its card says how).
One page shows little: README.md has a table over 500 fresh pages, docs/quality.md all methods."""


@click.command()
@click.option("--heatmap", metavar="OUT.png", default="heatmap.png", show_default=True, help="Where it is painted.")
def demo(heatmap: str) -> None:
    """Try it: the bundled model, a page, a long context, full and compressed. Writes heatmap.png."""
    page = sample(LARGEST_SAMPLE)
    click.echo(f"One page, {page.path.name}: {page.question} (right answer: {page.answer})\n")
    answer = _one_page(page)
    answer.report.heatmap(page.path).save(heatmap)
    click.echo(f"\nWhat was kept at {KEEPS[-1]:g} is painted in {heatmap}.\n")
    pages = [page.path for page in itertools.islice(itertools.cycle(map(sample, range(SAMPLES))), 20)]
    click.echo(f"A long context, {len(pages)} pages in one question: what each further token costs\n")
    for line in long_context(load_images(pages)):
        click.echo(line)
    click.echo(f"\n{CAVEAT}")


def _one_page(page: Sample) -> Answer:
    """Prints the first table; returns its last answer."""
    click.echo(f"{'keep':>5}   {'answer':<8} {'visual cells':>14} {'KV bytes':>11} {'tokens/s':>9} {'ms':>7}")
    with Chat() as chat:
        chat.ask(page.path, page.question, keep=1.0)  # not shown: a first question pays for allocations
        for keep in KEEPS:
            answer = chat.ask(page.path, page.question, keep=keep)
            click.echo(_row(keep, answer))
    return answer


def _row(keep: float, answer: Answer) -> str:
    report = answer.report
    cells = f"{report.cells_kept} of {report.layers * report.visual_tokens}"
    milliseconds = report.ms_first_token + report.ms_decode
    numbers = f"{report.kv_bytes:>11,} {report.tokens_per_second:>9,.0f} {milliseconds:>7,.0f}"
    return f"{keep:>5.2f}   {answer!s:<8} {cells:>14} {numbers}"


@dataclass(frozen=True)
class Cost:
    """What a token costs: bytes that its attention reads, seconds; and cells that are left for more."""

    kv_bytes: int
    seconds: float
    n_free: int


def long_context(images: list[NDArray[np.uint8]]) -> list[str]:
    """The second table: one prompt about all of these images, measured before and after its compression."""
    engine = Engine(*resolve(None, None))
    try:
        method = Method().engine(LONG_KEEP)
        content = engine.marker() * len(images) + "What is the total?"
        prompt = engine.prompt(engine.apply_template([Message("user", content)]), images, observe=method)
        token, _ = engine.sample()
        full = _cost(engine, token)
        engine.compress(method)
        compressed = _cost(engine, token)
        n_ctx = engine.stats().n_ctx
    finally:
        engine.close()
    head = f"{'keep':>5}   {'KV bytes':>11} {'tokens/s':>9} {f'ms for {STEPS}':>10} {'cells free for more':>22}"
    lines = [head]
    for keep, cost in ((1.0, full), (LONG_KEEP, compressed)):
        numbers = f"{cost.kv_bytes:>11,} {1 / cost.seconds:>9,.0f} {STEPS * cost.seconds * 1e3:>10,.0f}"
        lines.append(f"{keep:>5.2f}   {numbers} {f'{cost.n_free:,} of {n_ctx:,}':>22}")
    times, share = full.seconds / compressed.seconds, compressed.kv_bytes / full.kv_bytes
    lines.append(f"\n{prompt.n_visual:,} visual tokens: {times:.1f} times as fast, with {share:.0%} of the bytes.")
    return lines


def _cost(engine: Engine, token: int) -> Cost:
    """Of the tokens behind this one; which ones these are makes no difference."""
    seconds = []
    for _ in range(_WARM_UP + STEPS):
        started = time.perf_counter()
        engine.decode(token)
        seconds.append(time.perf_counter() - started)
    stats = engine.stats()
    return Cost(stats.kv_bytes, statistics.median(seconds[_WARM_UP:]), stats.n_free)
