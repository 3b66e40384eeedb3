"""``pyaircache batch``: a list of questions, answered into a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import click

from ..batch.cluster import over_ray
from ..batch.lists import Question, read
from ..batch.results import STDOUT, Results
from ..batch.run import Job, answers
from ..errors import CancelledError
from . import options, terminal

_SOME_FAILED = 1


@click.command(cls=options.MethodCommand)
@click.argument("name", metavar="LIST.jsonl")
@click.option("-o", "--output", required=True, metavar="OUT.jsonl", help='Where results are appended; "-": stdout.')
@click.option("-np", "--n-parallel", type=int, default=8, show_default=True, help="Questions at the same time.")
@click.option("--ray", is_flag=True, help="Answer over Ray: one engine a GPU, or a node where there are none.")
@click.option("--ray-workers", type=int, metavar="N", help="Engines, with --ray.")
@click.option("--system", metavar="TEXT", help="What the model is told before each question.")
@click.option("-m", "--model", metavar="GGUF", help="Language model; default: the small bundled one.")
@options.mmproj()
@options.no_mmproj
@click.option("--image-urls", is_flag=True, help="An image may be an http(s) address.")
@click.option("-c", "--ctx", type=int, help="Context window of each question; default: the model's, at most 32768.")
@options.answering
@options.computing
@click.option("-v", "--verbose", is_flag=True, help="Show llama.cpp's log on stderr.")
def batch(
    name: str,
    output: str,
    n_parallel: int,
    ray: bool,
    ray_workers: int | None,
    system: str | None,
    model: str | None,
    mmproj: str | None,
    no_mmproj: bool,
    ctx: int | None,
    threads: int | None,
    seed: int | None,
    **more: Any,
) -> int:
    """Answer the questions of LIST.jsonl ("-": of stdin), several at a time, into OUT.jsonl.

    A line of the list: {"image": "page.png", "question": "What is the total?"}, and if you like "id", "keep", "method"
    and other options of this question alone (docs/many.md). Names of images are counted from the list's folder.

    Each result is on the disk before the next one is computed. Started again, it asks only what has no answer in
    OUT.jsonl yet. The exit code is 1 when a question could not be answered: its result has an "error".
    """
    if ray_workers is not None and not ray:
        raise click.UsageError("--ray-workers goes with --ray")
    asking = {"seed": seed} | options.asking(**options.take(more, options.ANSWERING))
    computing = options.take(
        more, ("n_gpu_layers", "cache_type_k", "cache_type_v", "rpc_servers", "image_urls", "verbose")
    )
    parts = {part: text for part, text in more.items() if text is not None}
    projector = options.projector(mmproj, no_mmproj)
    chat = options.given(
        model=_absolute(model) if ray else model,
        mmproj=projector,
        system=system,
        n_threads=threads,
        **computing,
        **options.chosen(parts, seed),
    )
    if name != STDOUT and Path(output).is_file() and Path(name).exists() and os.path.samefile(name, output):
        raise click.UsageError(f"{output} is the list itself; name another file for the results")
    questions, folder = _read(name)
    job = Job(str(folder), chat, asking, parts, seed, n_parallel, ctx or 0)
    with Results(output) as results:
        left = [question for question in questions if question.identity not in results.answered]
        try:
            n_failed = _answer(job, left, len(questions), results, ray, ray_workers)
        except (KeyboardInterrupt, CancelledError):
            n_done = sum(question.identity in results.answered for question in questions)
            again = f"in {output}; start again to go on" if results.remembers else "answered"
            terminal.say(f"interrupted: {n_done} of {len(questions)} are {again}")
            raise click.Abort from None
    if n_failed:
        where = "" if not results.remembers else f" of {output}; they are asked again when this is started again"
        terminal.say(f'{n_failed} of {len(left)} questions could not be answered: see "error" in the results{where}')
    return _SOME_FAILED if n_failed else 0


def _answer(job: Job, left: Sequence[Question], n_all: int, results: Results, ray: bool, workers: int | None) -> int:
    """Answers and writes; returns how many could not be answered."""
    from tqdm import tqdm  # imported late, as elsewhere

    n_failed = 0
    if not left:
        return 0
    with (
        tqdm(
            total=n_all, initial=n_all - len(left), unit="question", file=sys.stderr, disable=None, dynamic_ncols=True
        ) as bar,
        closing(cast(Any, over_ray(job, left, workers) if ray else _local(job, left))) as found,
    ):
        for result in found:
            results.add(result)
            n_failed += "error" in result
            bar.update()
    return n_failed


def _local(job: Job, left: Sequence[Question]) -> Iterator[dict[str, Any]]:
    with job.open() as chat, closing(cast(Any, answers(chat, job, left))) as found:
        yield from found


def _read(name: str) -> tuple[list[Question], Path]:
    """The questions of a list, and the folder that names of pictures are counted from.

    Raises:
        click.UsageError: It cannot be read.
    """
    try:
        if name == "-":
            if sys.stdin is None:
                raise click.UsageError('"-" reads the list from standard input, which is closed')
            text, folder = sys.stdin.buffer.read().decode("utf-8-sig"), Path.cwd()
        else:
            text, folder = Path(name).read_text(encoding="utf-8-sig"), Path(name).resolve().parent
    except (OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or "it is not text in UTF-8"
        raise click.UsageError(f"{name} cannot be read: {why}") from exc
    return read(text.split("\n")), folder


def _absolute(model: str | None) -> str | None:
    return str(Path(model).resolve()) if model is not None else None
