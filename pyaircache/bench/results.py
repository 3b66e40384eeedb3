"""From a measured case to a line of JSON; and tables of such lines.

Lines have the names of llama-batched-bench's JSONL output, and more. A number that was not measured is None.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .grid import Cache, short
from .measure import Measured, Settings

Line = dict[str, Any]


def _place(one: Line, *more: str) -> tuple[Any, ...]:
    """What makes lines comparable."""
    return tuple(one[name] for name in ("model", "n_threads", "pp", "pl", *more))


def line(measured: Measured, settings: Settings, bandwidth: float) -> Line:
    """One case as a line.

    Args:
        measured: The case.
        settings: What it has in common with others.
        bandwidth: Bytes per second of a copy, measured in the same run.
    """
    case, times, info, stats = measured.case, measured.times, measured.info, measured.stats
    pl, pp, tg = case.batch, case.prompt, len(times.steps)
    t_pp = sum(times.fill) / 1e3 if settings.computed else None
    t_tg = sum(times.steps) / 1e3
    t = None if t_pp is None else t_pp + t_tg
    compress_ms = (sum(times.score) + sum(times.evict)) / pl
    step_ms = statistics.median(times.steps)
    roofline_ms = (info.step_bytes + stats.kv_bytes) / bandwidth * 1e3
    return {
        # llama-batched-bench's
        "n_kv_max": info.n_ctx,
        "n_batch": info.n_batch,
        "n_ubatch": info.n_batch,
        "flash_attn": settings.flash_attn,
        "is_pp_shared": 0,
        "n_gpu_layers": settings.n_gpu_layers,
        "n_threads": info.n_threads,
        "n_threads_batch": info.n_threads,
        "pp": pp,
        "tg": tg,
        "pl": pl,
        "n_kv": pl * (pp + tg),
        "t_pp": t_pp,
        "speed_pp": None if t_pp is None else pl * pp / t_pp,
        "t_tg": t_tg,
        "speed_tg": pl * tg / t_tg,
        "t": t,
        "speed": None if t is None else pl * (pp + tg) / t,
        # ours
        "model": settings.model,
        "type_k": case.cache.type,
        "type_v": case.cache.type,
        "keep": case.cache.keep,
        "method": None if case.cache.full else settings.method,
        "round": case.round,
        "prefill": "real" if settings.computed else "synthetic",
        "n_visual": info.n_visual,
        "score_ms": sum(times.score) / pl,
        "evict_ms": sum(times.evict) / pl,
        "first_token_ms": None if t_pp is None else 1e3 * t_pp / pl + compress_ms,
        "step_ms": step_ms,
        "step_ms_min": min(times.steps),
        "step_ms_max": max(times.steps),
        "cpu_fill_ms": sum(times.cpu.fill) / pl if settings.computed else None,
        "cpu_compress_ms": sum(times.cpu.compress) / pl,
        "cpu_step_ms": statistics.median(times.cpu.steps),
        "alone": info.n_threads == 1 and info.n_devices == 0,
        "kv_bytes_read": stats.kv_bytes,
        "kv_bytes_reserved": stats.kv_bytes_reserved,
        "kv_bytes_allocated": stats.kv_bytes_allocated,
        "compute_bytes": stats.compute_bytes,
        "model_bytes": info.model_bytes,
        "rss_bytes": measured.rss or None,
        "rss_context_bytes": measured.rss - measured.rss_before if measured.rss else None,
        "memory_bytes": settings.memory_bytes,
        "n_fit": fitting(measured, settings.memory_bytes),
        "copy_bytes_per_second": bandwidth,
        "roofline_ms": roofline_ms,
    }


class Own(NamedTuple):
    """Milliseconds of a line that are shown.

    On one thread of a CPU the process's own time, which is that of an idle machine, however busy this one is; else that
    of the clock on the wall.
    """

    first_token: float | None
    """Of one prompt: prefill, scores and eviction; None where it was not computed."""
    compress: float
    """Of one prompt: scores and eviction."""
    step: float

    @staticmethod
    def of(one: Line) -> Own:
        """Those of a line."""
        if not one["alone"]:
            return Own(one["first_token_ms"], one["score_ms"] + one["evict_ms"], one["step_ms"])
        fill, compress = one["cpu_fill_ms"], one["cpu_compress_ms"]
        return Own(None if fill is None else fill + compress, compress, one["cpu_step_ms"])


def speed(one: Line) -> float:
    """Tokens per second of all conversations together."""
    return one["pl"] / Own.of(one).step * 1e3


def fitting(measured: Measured, memory_bytes: int) -> int:
    """How many such conversations fit: beside weights and graphs, each with the bytes allocated for it.

    The newest one has its whole prompt until it is compressed.
    """
    stats, pl = measured.stats, measured.case.batch
    each = stats.kv_bytes_allocated / pl
    whole = max(each, measured.case.prompt * measured.info.kv_bytes_per_token)
    left = memory_bytes - measured.info.model_bytes - stats.compute_bytes - (whole - each)
    return max(0, int(left // each)) if each else 0


def medians(lines: Iterable[Line]) -> list[Line]:
    """One line for all rounds of a case: medians of its numbers, in the order of the first ones."""
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for one in lines:
        groups.setdefault(_place(one, "type_k", "keep"), []).append(one)
    return [
        {name: _median([one[name] for one in group]) for name in group[0]} | {"rounds": len(group)}
        for group in groups.values()
    ]


def _median(values: Sequence[Any]) -> Any:
    if not isinstance(values[0], (int, float)):
        return values[0]
    middle = statistics.median(values)
    return int(middle) if all(isinstance(value, int) for value in values) else middle


def overheads(lines: Iterable[Line]) -> dict[tuple[Any, ...], float]:
    """What compressing adds to computed prefills, as a share of the same round's plain one: medians.

    By (batch, prompt, cache's type, keep).
    """
    plain: dict[tuple[Any, ...], float | None] = {}
    found: dict[tuple[Any, ...], list[float]] = {}
    lines = [one for one in lines if one["t_pp"] is not None]
    for one in lines:
        if one["keep"] == 1:
            plain[_place(one, "type_k", "round")] = Own.of(one).first_token
    for one in lines:
        base = plain.get(_place(one, "type_k", "round"))
        if one["keep"] != 1 and base:
            key = (one["pl"], one["pp"], one["type_k"], one["keep"])
            found.setdefault(key, []).append((Own.of(one).first_token or 0) / base - 1)
    return {key: statistics.median(values) for key, values in found.items()}


#
# tables
#

HEAD = (
    "B", "prompt", "cache", "first token ms", "overhead", "score + evict ms", "ms a step", "tokens/s", "times",
    "roofline", "KV read MB", "reserved", "allocated", "RSS", "fit",
)  # fmt: skip


def rows(lines: Iterable[Line]) -> list[list[str]]:
    """The table's rows, `HEAD` first: medians over the rounds, each cache beside the first full one of its place."""
    lines = list(lines)
    added = overheads(lines)
    out = [list(HEAD)]
    middle = medians(lines)
    first: dict[tuple[Any, ...], float] = {}
    for one in middle:
        if one["keep"] == 1:
            first.setdefault(_place(one), speed(one))
    for one in middle:
        own, base = Own.of(one), first.get(_place(one))
        overhead = added.get((one["pl"], one["pp"], one["type_k"], one["keep"]))
        cache = Cache(one["type_k"], one["keep"])
        out.append(
            [
                str(one["pl"]),
                short(one["pp"]),
                str(cache),
                _number(own.first_token, ",.0f"),
                "" if overhead is None else f"{overhead:+.1%}",
                "" if cache.full else f"{own.compress:,.1f}",
                f"{own.step:,.1f}",
                f"{speed(one):,.1f}",
                "" if base is None else f"{speed(one) / base:.2f}",
                f"{one['roofline_ms'] / own.step:.0%}",
                *(_number(one[name], ",.0f", 1e6) for name in _BYTES),
                str(one["n_fit"]),
            ]
        )
    return out


_BYTES = ("kv_bytes_read", "kv_bytes_reserved", "kv_bytes_allocated", "rss_bytes")


def _number(value: float | None, form: str, unit: float = 1) -> str:
    return "" if value is None else format(value / unit, form)


def text(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines for a terminal; empty columns are left out."""
    table = _filled(table)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return ["  ".join(map(str.rjust, row, widths)).rstrip() for row in table]


def markdown(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; empty columns are left out."""
    table = _filled(table)
    ruled = [table[0], ["---:"] * len(table[0]), *table[1:]]
    return [f"| {' | '.join(row)} |" for row in ruled]


def _filled(table: Sequence[Sequence[str]]) -> list[list[str]]:
    columns = [i for i in range(len(table[0])) if len(table) == 1 or any(row[i] for row in table[1:])]
    return [[row[i] for i in columns] for row in table]
