"""Asking again: are later questions about a page right, and how soon does the answer begin?

    python bench/again.py quality      the bundled model, several questions in a row about each of its pages
    python bench/again.py time         a Qwen2-VL-0.5B of random weights, beside the unpatched llama.cpp

`quality`: fresh pages, as bench/quality.py draws them. Each is asked with the full cache, compressed with an archive,
compressed without one, and with an archive as conversations of one question each. `time`: to the first token of a first
and of a second question about one picture, as it passes and as CPU time of the process, which other work on the machine
changes less. Both print Markdown.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import bench_common as common
import click
import numpy as np
import quality
import random_gguf
from PIL import Image

from pyaircache import Chat, Model

ROOT = Path(__file__).resolve().parents[1]
STOCK = ROOT / "build" / "stock"
ASKED = ("What is written in the third row? Answer in one short sentence.", "And who signed it, and when?")


@click.group()
def main() -> None:
    """Asking again: quality and time."""


@main.command("quality")
@click.option("--pages", default=100, show_default=True)
@click.option("--questions", default=3, show_default=True, help="In a row about each page.")
@click.option("--keep", default=0.1, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--only", default="", help="Ways with this in their name.")
def measure_quality(pages: int, questions: int, keep: float, seed: int, threads: int, only: str) -> None:
    """Share of right answers by the number of the question."""
    rng = np.random.default_rng((seed, 0, 0))
    # keep, archive, and whether each question begins a conversation of its own
    ways: dict[str, tuple[float, str, bool]] = {
        "full cache": (1.0, "none", False),
        f"keep {keep:g}, archive": (keep, "ram", False),
        f"keep {keep:g}, without": (keep, "none", False),
        f"keep {keep:g}, archive, each alone": (keep, "ram", True),
    }
    ways = {name: way for name, way in ways.items() if only in name}
    right = {way: [0] * questions for way in ways}
    asked = [0] * questions
    with Model(n_threads=threads) as model:
        chats = {way: Chat(model, keep=kept, archive=archive) for way, (kept, archive, _) in ways.items()}
        for _ in common.progress(range(pages), "pages"):
            page, pixels = quality.draw_page(rng, *quality.draw_size(rng))
            picked = rng.permutation(len(page.questions))[:questions]
            for i, chosen in enumerate(picked):
                one = page.questions[chosen]
                asked[i] += 1
                for way, chat in chats.items():
                    image = Image.fromarray(pixels) if i == 0 or ways[way][2] else None
                    answer = chat.ask(image, one.text, max_tokens=quality.MAX_TOKENS)
                    right[way][i] += str(answer) == one.answer
                    assert (answer.report.n_restored > 0) == (i > 0 and ways[way][1] != "none")
        for chat in chats.values():
            chat.close()
    head = ["", *(f"question {i + 1} ({count})" for i, count in enumerate(asked))]
    rows = [[way, *map(shown, counts, asked)] for way, counts in right.items()]
    click.echo(f"{pages} pages, seed {seed}; exact match and its 95 % interval\n\n{common.markdown([head, *rows])}")


def shown(count: int, of: int) -> str:
    """A share and its interval."""
    share, interval = quality.shown_share(count, of)
    return f"{share} ({interval})"


class Timed:
    """Milliseconds of a call, as they pass and of the process's CPU time."""

    def __enter__(self) -> Timed:
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *exc: object) -> None:
        start, cpu = self._start
        self.ms, self.cpu = 1000 * (time.perf_counter() - start), 1000 * (time.process_time() - cpu)


def first_token(chat: Chat, image: Any, question: str, answer: int) -> tuple[Timed, Any]:
    """Time to the first token, and the report of the finished answer."""
    with Timed() as timed:
        stream = chat.ask(image, question, max_tokens=answer, stream=True)
        next(stream, None)
    stream.read()
    return timed, stream.report


@main.command("time")
@click.option("--preset", default="qwen2-0.5b", show_default=True)
@click.option("--kind", default="q4_0", show_default=True, help="Type of the weights.")
@click.option("--visual", default=4096, show_default=True, help="Visual tokens of the picture.")
@click.option("--answer", default=16, show_default=True, help="Tokens of the first answer.")
@click.option("--keep", default=0.1, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--archive", "archives", multiple=True, default=("ram", "none"), show_default=True)
@click.option("--stock/--no-stock", default=True, help="The unpatched llama.cpp, if it is built (make stock).")
def measure_time(
    preset: str, kind: str, visual: int, answer: int, keep: float, threads: int, archives: tuple[str, ...], stock: bool
) -> None:
    """Time to the first token of a first and a second question."""
    model, mmproj = random_gguf.make_pair(common.CACHE, preset, kind)
    machine = common.machine()
    rows = [["", "first: ms", "CPU ms", "second: ms", "CPU ms", "second / first (CPU)"]]

    def add(name: str, first: tuple[float, float], second: tuple[float, float]) -> None:
        cells = [f"{value:,.0f}" for value in (*first, *second)]
        rows.append([name, *cells, f"{second[1] / first[1]:.1%}"])
        click.echo(rows[-1])

    picture = common.pictures(visual)[0]
    with Model(model, mmproj, n_threads=threads, image_cache_bytes=0) as loaded:
        for archive in archives:
            with Chat(loaded, keep=keep, n_ctx=visual + 1024, archive=archive) as chat:
                one, report = first_token(chat, picture, ASKED[0], answer)
                two, later = first_token(chat, None, ASKED[1], 1)
            add(f"keep {keep:g}, archive {report.archive}", (one.ms, one.cpu), (two.ms, two.cpu))
            steps = ("encode", "prefill", "archive", "restore", "compress")
            for name, done in (("first", report), ("second", later)):
                times = ", ".join(f"{step} {getattr(done, f'ms_{step}'):,.0f}" for step in steps)
                click.echo(f"  {name}: {times} ms; {done.n_restored} of {done.prompt_tokens} tokens restored")
            click.echo(f"  {later.n_encoded} images encoded again; the archive takes {report.archive_bytes:,} bytes")
    if stock and (STOCK / "lib" / "libllama.so").is_file():
        new = later.prompt_tokens - report.prompt_tokens - report.answer_tokens
        lines = prefix_cache(model, report.prompt_tokens, report.answer_tokens, new, threads)
        add("unpatched llama.cpp, prefix cache, without encoding", *lines)
    click.echo(
        f"\n{preset} {kind}, {visual} visual tokens, {threads} threads; {machine['cpu']}, load {machine['load']:.1f}\n"
    )
    click.echo(common.markdown(rows))


def prefix_cache(model: Path, n_prompt: int, n_answer: int, n_question: int, threads: int) -> list[tuple[float, float]]:
    """The same two times of the unpatched library: (ms, CPU ms) each."""
    llama = ROOT / "vendor" / "llama.cpp"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "prefix_cache"
        includes = [f"-I{llama / 'include'}", f"-I{llama / 'ggml' / 'include'}"]
        libraries = [f"-L{STOCK / 'lib'}", f"-Wl,-rpath,{STOCK / 'lib'}", "-lllama", "-lggml", "-lggml-base"]
        source = Path(__file__).with_name("prefix_cache.cpp")
        subprocess.run(["c++", "-O2", "-std=c++17", *includes, source, *libraries, "-o", program], check=True)
        arguments = [str(value) for value in (model, n_prompt, n_answer, n_question, threads)]
        done = subprocess.run([program, *arguments], check=True, capture_output=True, text=True)
    return [(float(ms), float(cpu)) for ms, cpu in (line.split() for line in done.stdout.splitlines())]


if __name__ == "__main__":
    main()
