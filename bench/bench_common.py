"""What both benchmarks share: the engine, pictures of a wanted token count, medians, tables, the options."""

from __future__ import annotations

import functools
import json
import math
import platform
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import random_gguf
from tqdm import tqdm

from pyaircache.bench import report
from pyaircache.engine import Engine, EngineModel, Message, version
from pyaircache.errors import PyAircacheError

CACHE = Path(__file__).resolve().parent / ".cache"  # made GGUFs; git-ignored
TOKEN_PX = random_gguf.PATCH * random_gguf.MERGE  # px per side of a visual token
MAX_IMAGE_TOKENS = 4096  # llama.cpp scales a Qwen2-VL picture above this down
MIN_VISUAL = 16
TEXT_CELLS = 256  # room for the prompt's text
QUESTION = "What is written in the third row of the picture, and who signed it? Answer in one short sentence."

T = TypeVar("T")


def user_turn(engine: Engine, n_images: int) -> str:
    """The prompt of all measurements: `n_images` pictures and the question, in the model's chat template."""
    return engine.apply_template([Message("user", engine.marker() * n_images + QUESTION)])


def grids(n_visual: int, per_image: int = MAX_IMAGE_TOKENS) -> list[tuple[int, int]]:
    """Token grids (columns, rows) of as few pictures as needed for about `n_visual` tokens, near-square each."""
    if n_visual < MIN_VISUAL:
        raise ValueError(f"visual tokens must be at least {MIN_VISUAL}, got {n_visual}")
    n_images = -(-n_visual // per_image)
    out = []
    for i in range(n_images):
        wanted = n_visual // n_images + (i < n_visual % n_images)
        side = math.isqrt(wanted)
        columns = min(range(max(4, side * 3 // 4), side + 1), key=lambda nx: (wanted % nx, side - nx))
        out.append((columns, wanted // columns))
    return out


def pictures(n_visual: int, seed: int = 0) -> list[np.ndarray]:
    """Noise pictures `(height, width, 3)` in bytes that give about `n_visual` visual tokens together."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, 256, (rows * TOKEN_PX, columns * TOKEN_PX, 3), dtype=np.uint8)
        for columns, rows in grids(n_visual)
    ]


def rounded(cells: int, step: int = 256) -> int:
    """`cells` rounded up to a multiple of `step`."""
    return -(-cells // step) * step


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of a list."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def progress(items: Iterable[T], label: str) -> Iterable[T]:
    """A progress bar on a terminal, nothing in a pipe."""
    return tqdm(items, desc=label, disable=None, leave=False)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Text table: the first row is the head, the first column is left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; its head is the first line."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in table]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def machine() -> dict[str, Any]:
    """The machine that a figure belongs to: processor, cores, load average over a minute at the start, system."""
    return report.machine() | {"system": platform.system()}


def head(settings: Settings, what: str, machine: dict[str, Any]) -> str:
    """Lines above a table: what was measured, and where."""
    load, cores = machine["load"] or 0.0, machine["cores"] or 1
    lines = [
        f"{settings.preset} {settings.kind}, cache {settings.cache_type}, {what}, {settings.rounds} rounds",
        f"engine {version()}; {machine['cpu']}, {cores} cores, load {load:.2f}",
    ]
    if load > cores:
        lines.append("WARNING: the machine was busy at the start; repeat on a quiet one before quoting these figures.")
    return "\n".join(lines)


def write_json(path: Path | None, data: dict[str, Any]) -> None:
    """Writes `data`, when a path is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Settings:
    """The options that both benchmarks have."""

    preset: str
    kind: str  # type of the weights
    vocab: int
    visual: int  # tokens
    keep: float
    rounds: int
    cache_type: str
    threads: int
    gpu_layers: int
    json_path: Path | None

    def to_dict(self) -> dict[str, Any]:
        """What belongs in a result file."""
        return {name: value for name, value in asdict(self).items() if name != "json_path"}

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise click.UsageError(f"--keep must be between 0 and 1, got {self.keep}")
        if self.visual < MIN_VISUAL:
            raise click.UsageError(f"--visual must be at least {MIN_VISUAL}, got {self.visual}")
        if self.rounds < 1:
            raise click.UsageError(f"--rounds must be at least 1, got {self.rounds}")

    @contextmanager
    def model(self) -> Iterator[EngineModel]:
        """The same for several engines on one model."""
        model, mmproj = random_gguf.make_pair(CACHE, self.preset, self.kind, vocab=self.vocab)
        try:
            with closing(EngineModel(model, mmproj, n_threads=self.threads, n_gpu_layers=self.gpu_layers)) as loaded:
                yield loaded
        except PyAircacheError as error:
            raise click.ClickException(str(error)) from None

    @contextmanager
    def engine(self, reserve: int) -> Iterator[Engine]:
        """Makes the model when it is missing, loads it; errors of the engine end the program with their message."""
        model, mmproj = random_gguf.make_pair(CACHE, self.preset, self.kind, vocab=self.vocab)
        assert mmproj is not None
        n_ctx = rounded(self.visual + reserve + TEXT_CELLS)
        try:
            loaded = Engine(
                model,
                mmproj,
                n_ctx=n_ctx,
                n_threads=self.threads,
                n_gpu_layers=self.gpu_layers,
                cache_type_k=self.cache_type,
                cache_type_v=self.cache_type,
            )
            with closing(loaded) as engine:
                yield engine
        except PyAircacheError as error:
            raise click.ClickException(str(error)) from None


def command(visual: int) -> Callable[[Callable[..., None]], click.Command]:
    """Makes a click command of `function(settings, **other options)`; visual: default count of visual tokens."""
    presets, types = list(random_gguf.PRESETS), list(random_gguf.TYPES)
    given = [
        click.option("--preset", type=click.Choice(presets), default="qwen2-0.5b", help="Shape of the model."),
        click.option("--type", "kind", type=click.Choice(types), default="q4_0", help="Type of the weights."),
        click.option("--vocab", default=0, help="Tokens of the vocabulary; 0: the preset's own."),
        click.option("--visual", default=visual, help="Visual tokens (28 x 28 px each), in pictures of at most 4096."),
        click.option("--keep", default=0.1, help="Kept share of the visual tokens."),
        click.option("--rounds", default=3, help="Rounds; each measures both sides, in alternating order."),
        click.option("--cache-type", default="f16", help="Type of the cached K and V."),
        click.option("--threads", default=0, help="0: the engine's default."),
        click.option("--gpu-layers", default=-1, help="-1: all."),
        click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write JSON."),
    ]
    names = [field.name for field in fields(Settings)]

    def make(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(**options: Any) -> None:  # noqa: ANN401
            function(Settings(**{name: options.pop(name) for name in names}), **options)

        for option in reversed(given):
            run = option(run)
        return click.command(context_settings={"show_default": True})(run)

    return make
