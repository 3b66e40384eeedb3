"""``pyaircache bench``: speed and memory of many conversations, with full and with compressed caches."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import click

from ..bench import grid, plot, report, results
from ..bench.grid import Cache, Case
from ..bench.measure import Settings, Skipped, run
from ..bench.shapes import SHAPES
from ..engine import log
from ..engine.bench import Bench, copy_bandwidth
from ..engine.engine import version
from ..engine.model import EngineModel
from ..errors import ArgumentError, CancelledError
from ..methods.method import Method
from ..model_files import check_gguf
from ..progress import ProgressLine
from . import terminal

_SLOW = "stopping after what is being computed; press Ctrl-C again to end at once"
_FLASH = {"auto": -1, "off": 0, "on": 1}
_WEIGHTS = ["q4_0", "q8_0", "f16"]
_FILE = click.Path(dir_okay=False, path_type=Path)

_MODEL = f"A text model's file, or a shape with random weights: {', '.join(SHAPES)}."
_PREFILL = "Whether prompts are computed, or their keys and values made up in a moment."
_MEMORY = "Memory in 10^9 bytes that conversations are fitted into."
_MADE = "Where the files of shapes are kept; default: in your cache folder."


def _list(name: str, what: str, default: str) -> Any:
    return click.option(name, metavar="LIST", default=default, show_default=True, help=f"{what}, with commas between.")


@click.command()
@click.option("--model", default="llava-ov-0.5b", show_default=True, metavar="SHAPE|GGUF", help=_MODEL)
@click.option("--weights", type=click.Choice(_WEIGHTS), default="q4_0", show_default=True, help="Of a shape.")
@_list("--batch", "Conversations that decode side by side", "1,4,8,16")
@_list("--prompt", "Tokens of each one's prompt", "2k,8k,16k,32k")
@_list("--cache", "Types of the cache, each with the share that is kept", ",".join(map(str, grid.CACHES)))
@click.option("--tokens", type=click.IntRange(1), default=32, show_default=True, help="Steps that are timed.")
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, help="How often; medians are shown.")
@click.option(
    "--prefill", type=click.Choice(["synthetic", "real"]), default="synthetic", show_default=True, help=_PREFILL
)
@click.option("--method", default="aircache", show_default=True, help="Whose scores are timed.")
@click.option("--memory-gb", type=click.FloatRange(0, min_open=True), default=8.0, show_default=True, help=_MEMORY)
@click.option("-t", "--threads", type=click.IntRange(0), default=0, help="Of the CPU; default: one a physical core.")
@click.option("--gpu-layers", "n_gpu_layers", type=click.IntRange(-1), default=-1, help="On the GPU; default: all.")
@click.option("--flash-attn", type=click.Choice(list(_FLASH)), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON a case, named as by llama-batched-bench.")
@click.option("--markdown", is_flag=True, help="Print the tables in Markdown.")
@click.option("-o", "--output", type=_FILE, help="Also write the lines of JSON, each as soon as it is known.")
@click.option("--show", multiple=True, type=_FILE, help="Measure nothing, show what -o wrote; may be repeated.")
@click.option("--plot", "picture", type=_FILE, help="Draw a picture (PNG, SVG or PDF).")
@click.option("--made", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER", help=_MADE)
@click.option("-v", "--verbose", is_flag=True, help="Show llama.cpp's log on stderr.")
def bench(**options: Any) -> None:
    """Measure speed and memory of many conversations, with full and with compressed caches.

    Every cache of a place is measured in the same run, in alternating order. Prompts and weights are made up: nothing
    is said about answers. Ctrl-C shows what is measured so far.
    """
    _run(Options(**options))


@dataclass(frozen=True)
class Options:
    """The command's options."""

    model: str
    weights: str
    batch: str
    prompt: str
    cache: str
    tokens: int
    rounds: int
    prefill: str
    method: str
    memory_gb: float
    threads: int
    n_gpu_layers: int
    flash_attn: str
    as_json: bool
    markdown: bool
    output: Path | None
    show: tuple[Path, ...]
    picture: Path | None
    made: Path | None
    verbose: bool

    def cases(self) -> list[Case]:
        """What is to be measured."""
        batches, prompts, caches = (text.split(",") for text in (self.batch, self.prompt, self.cache))
        places = list(map(grid.conversations, batches)), list(map(grid.tokens, prompts))
        return list(grid.cases(*places, list(map(Cache.of, caches)), self.rounds))

    def settings(self, name: str) -> Settings:
        """What all cases have in common."""
        return Settings(
            model=name,
            n_decode=self.tokens,
            computed=self.prefill == "real",
            n_threads=self.threads,
            n_gpu_layers=self.n_gpu_layers,
            flash_attn=_FLASH[self.flash_attn],
            method=self.method,
            memory_bytes=round(self.memory_gb * 1e9),
        )


@dataclass
class Output:
    """Where lines go as they come."""

    options: Options
    lines: list[dict[str, Any]] = field(default_factory=list)
    file: IO[str] | None = None

    def add(self, line: dict[str, Any]) -> None:
        """Keeps a line; it is on the disk when this returns."""
        self.lines.append(line)
        text = json.dumps(line)
        if self.options.as_json:
            click.echo(text)
            sys.stdout.flush()
        if self.file is not None:
            self.file.write(text + "\n")
            self.file.flush()
            os.fsync(self.file.fileno())

    def show(self) -> None:
        """The tables, and the picture."""
        if self.lines and not self.options.as_json:
            for text in report.texts(self.lines, self.options.markdown):
                click.echo(text)
        if self.lines and self.options.picture is not None:
            plot.draw(self.lines, self.options.picture)


def _run(options: Options) -> None:
    if options.picture is not None:
        plot.check(options.picture)
    if options.show:
        output = Output(options)
        output.lines += [line for path in options.show for line in report.read(path)]
        output.show()
        return
    cases = options.cases()
    if options.method not in Method.names():
        raise ArgumentError(f"--method must be one of {', '.join(Method.names())}, got {options.method}")
    with contextlib.ExitStack() as stack:
        output = Output(options)
        if options.output is not None:
            output.file = stack.enter_context(_new(options.output))
        if options.verbose:
            stack.callback(log.Listener().close)
        path, name = _file(options)
        with ProgressLine() as progress:
            model = EngineModel(path, n_gpu_layers=options.n_gpu_layers, progress=progress)
        stack.callback(model.close)
        try:
            _measure(model, cases, options.settings(name), output)
        except (KeyboardInterrupt, CancelledError):
            terminal.say(f"interrupted: {len(output.lines)} of {len(cases)} cases are measured")
            output.show()
            raise click.Abort from None
        output.show()


def _measure(model: EngineModel, cases: list[Case], settings: Settings, output: Output) -> None:
    running: list[Bench | None] = [None]

    def cancel() -> None:
        if running[0] is not None:
            running[0].cancel()

    with terminal.Interrupts(cancel, _SLOW), _bar(len(cases)) as bar:
        about = {"engine": version(), "date": datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds")}
        bandwidth = copy_bandwidth(model, n_threads=settings.n_threads)

        def on_progress(case: Case, what: str, done: int, total: int) -> None:
            bar.set_description_str(f"{case.batch} x {grid.short(case.prompt)} {case.cache}", refresh=False)
            bar.set_postfix_str(f"{what} {done}/{total}")

        for one in run(model, cases, settings, on_progress, lambda bench: running.__setitem__(0, bench)):
            if isinstance(one, Skipped):
                terminal.say(
                    f"{one.case.batch} x {grid.short(one.case.prompt)} {one.case.cache} is left out: {one.why}"
                )
            else:
                output.add(results.line(one, settings, bandwidth) | report.machine() | about)
            bar.update()


def _bar(total: int) -> Any:
    from tqdm import tqdm  # imported late, as in progress.py

    return tqdm(total=total, disable=None, leave=False, dynamic_ncols=True, file=sys.stderr)


def _file(options: Options) -> tuple[Path, str]:
    """The model's file, and its name in the results."""
    if options.model not in SHAPES:
        path = Path(options.model)
        if path.suffix != ".gguf":
            raise ArgumentError(f"--model must be a .gguf file or one of {', '.join(SHAPES)}, got {options.model}")
        check_gguf(path)
        return path, path.stem
    try:
        from ..bench import weights
    except ImportError:
        raise ArgumentError(f"a model with random weights needs the package gguf: {plot.INSTALL}") from None
    return weights.made(options.model, options.weights, options.made), options.model


@contextlib.contextmanager
def _new(path: Path) -> Iterator[IO[str]]:
    """A file for results, which must be new or empty: figures of different runs cannot be compared.

    Raises:
        ArgumentError: It holds something.
    """
    with path.open("a", encoding="utf-8") as file:
        if os.fstat(file.fileno()).st_size:
            raise ArgumentError(f"{path} is there already: give another name, or remove it")
        yield file
