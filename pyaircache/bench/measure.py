"""Measures cases one after the other, and counts the process's memory beside it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..engine.bench import Bench, BenchInfo, BenchStats
from ..engine.model import EngineModel
from ..engine.selection import named_methods
from ..errors import OutOfMemoryError
from ..report.process import process_memory
from .grid import Case

WARM_UP = 2  # steps that are not timed: the first ones build graphs
_MARGIN = 256 * 2**20  # bytes that stay free for others

Progress = Callable[[Case, str, int, int], object]
"""Called with the case, "fill" or "decode", how many conversations or steps are done, and of how many."""


@dataclass(frozen=True)
class Settings:
    """What all cases have in common.

    Attributes:
        model: Its name.
        n_decode: Steps that are timed.
        computed: Whether the prefill is computed, or its K and V made up.
        n_threads: CPU threads; 0: one per physical core.
        n_gpu_layers: Layers on the GPU; -1: all.
        flash_attn: -1 auto, 0 off, 1 on.
        method: Name of the method that scores.
        memory_bytes: What conversations are fitted into.
        n_batch: Tokens a call of a computed prefill.
    """

    model: str
    n_decode: int = 32
    computed: bool = False
    n_threads: int = 0
    n_gpu_layers: int = -1
    flash_attn: int = -1
    method: str = "aircache"
    memory_bytes: int = 8 * 10**9
    n_batch: int = 512


@dataclass(frozen=True)
class CpuTimes:
    """Milliseconds of one case in which the process ran.

    Attributes:
        fill: Of each conversation's prompt.
        compress: Of each one's scores and eviction.
        steps: Of each step.
    """

    fill: list[float]
    compress: list[float]
    steps: list[float]


@dataclass(frozen=True)
class Times:
    """Milliseconds of one case.

    Attributes:
        fill: Of each conversation's prompt.
        score: Of each one's scores, budgets and kept sets; empty for a full cache.
        evict: Of each one's eviction; likewise.
        steps: Of each step.
        cpu: The process's own, on all its threads.
    """

    fill: list[float]
    score: list[float]
    evict: list[float]
    steps: list[float]
    cpu: CpuTimes


@dataclass(frozen=True)
class Measured:
    """One case as it was measured; `pyaircache.bench.results` makes a line of it.

    Attributes:
        case: Which one.
        times: Milliseconds.
        info: What was timed.
        stats: Bytes with all prompts there, before the timed steps.
        rss: Bytes of the process in RAM at the same time; 0 where the system does not tell.
        rss_before: Before the context was made.
    """

    case: Case
    times: Times
    info: BenchInfo
    stats: BenchStats
    rss: int
    rss_before: int


@dataclass(frozen=True)
class Skipped:
    """A case that was not measured, and why."""

    case: Case
    why: str


def run(
    model: EngineModel,
    cases: Iterable[Case],
    settings: Settings,
    on_progress: Progress | None = None,
    running: Callable[[Bench | None], object] | None = None,
) -> Iterator[Measured | Skipped]:
    """Measures the cases in their order.

    Args:
        model: The model, loaded.
        cases: What to measure.
        settings: Of all of them.
        on_progress: Told what is done.
        running: Told what a Ctrl-C has to cancel; None between two cases.

    Yields:
        What was measured; a case that does not fit into memory is skipped.
    """
    row: dict[str, int] = {}  # bytes of a cell by the cache's type
    for case in cases:
        try:
            _check_room(model, case, settings, row)
            yield _measure(model, case, settings, on_progress or (lambda *_: None), running or (lambda _: None))
        except OutOfMemoryError as error:
            yield Skipped(case, str(error))


def _measure(
    model: EngineModel,
    case: Case,
    settings: Settings,
    on_progress: Progress,
    running: Callable[[Bench | None], object],
) -> Measured:
    before, _ = process_memory()
    method = None if case.cache.full else replace(named_methods()[settings.method], keep=case.cache.keep)
    options: dict[str, Any] = {
        "n_seqs": case.batch,
        "n_prompt": case.prompt,
        "n_decode": settings.n_decode + WARM_UP,
        "n_batch": settings.n_batch,
        "n_threads": settings.n_threads,
        "cache_type_k": case.cache.type,
        "cache_type_v": case.cache.type,
        "flash_attn": settings.flash_attn,
    }
    times = Times([], [], [], [], CpuTimes([], [], []))
    with Bench(model, **options) as bench:
        running(bench)
        try:
            for seq in range(case.batch):
                on_progress(case, "fill", seq, case.batch)
                seed = 1000 * case.round + seq
                with _cpu(times.cpu.fill):
                    times.fill.append(bench.fill(seq, computed=settings.computed, observe=method, seed=seed))
                if method is not None:
                    with _cpu(times.cpu.compress):
                        score, evict = bench.evict(seq, method, seed=seed)
                    times.score.append(score)
                    times.evict.append(evict)
            for _ in range(WARM_UP):
                bench.step()
            stats, (after, _) = bench.stats(), process_memory()
            for i in range(settings.n_decode):
                on_progress(case, "decode", i, settings.n_decode)
                with _cpu(times.cpu.steps):
                    times.steps.append(bench.step())
            return Measured(case, times, bench.info(), stats, after, before)
        finally:
            running(None)


@contextlib.contextmanager
def _cpu(out: list[float]) -> Iterator[None]:
    started = time.process_time()
    yield
    out.append(1e3 * (time.process_time() - started))


def _check_room(model: EngineModel, case: Case, settings: Settings, row: dict[str, int]) -> None:
    """llama.cpp fills a new cache with zeros: too large a one would have the system end the process."""
    kind = case.cache.type
    if kind not in row:
        with Bench(model, n_prompt=256, n_decode=1, cache_type_k=kind, cache_type_v=kind) as small:
            row[kind] = small.info().kv_bytes_per_token
    free, needed = available(), case.batch * (case.prompt + settings.n_decode + 256) * row[kind]
    if free and needed + _MARGIN > free:
        raise OutOfMemoryError(f"the cache needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


def available() -> int:
    """Bytes of RAM that are free for a new allocation (MemAvailable); 0 where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)
