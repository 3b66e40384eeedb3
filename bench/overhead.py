"""What AirCache costs during the prefill: observing, scoring and evicting, as a share of the plain prefill.

    overhead = (observing - plain + score + evict) / plain

`plain` is the prefill without observation, `observing` the same prompt with it. Both are measured in one run, in
alternating order, after one warm-up round; the overhead is taken per round, so that a slow drift of the machine
cancels.

    python bench/overhead.py --visual 4096 --rounds 5
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import bench_common
import click
import numpy as np
from bench_common import Settings

from pyaircache.engine import Engine, EngineMethod, named_methods

RESERVE = 16  # cells kept free behind the prompt

Parts = dict[str, float]  # milliseconds of one prompt; counts of its tokens


def measure(engine: Engine, text: str, pictures: list[np.ndarray], method: EngineMethod | None) -> Parts:
    """One prompt: milliseconds of its parts. Observes and compresses with the method; None: neither."""
    engine.reset()
    prompt = engine.prompt(text, pictures, reserve=RESERVE, observe=method or False)
    parts = {"prefill": prompt.ms_prefill, "encode": prompt.ms_encode}
    parts |= {"tokens": prompt.n_tokens, "visual": prompt.n_visual}
    if method is not None:
        started = time.perf_counter()
        _, done = engine.compress(method)
        wall = 1e3 * (time.perf_counter() - started)
        parts |= {"score": done.ms_score, "evict": done.ms_evict, "compress": wall}
    return parts


def overhead(plain: float, observing: float, score: float, evict: float) -> float:
    """Share of the plain prefill, e.g. 0.01 for 1 %. All arguments in the same unit."""
    return (observing - plain + score + evict) / plain


def summary(rounds: Sequence[tuple[Parts, Parts]]) -> dict[str, dict[str, float]]:
    """Median, least and greatest of every figure over the rounds; rounds: (plain, observing) pairs."""
    figures = {
        "prefill, plain (ms)": [a["prefill"] for a, _ in rounds],
        "prefill, observing (ms)": [b["prefill"] for _, b in rounds],
        "observing - plain (ms)": [b["prefill"] - a["prefill"] for a, b in rounds],
        "score (ms)": [b["score"] for _, b in rounds],
        "evict (ms)": [b["evict"] for _, b in rounds],
        "compress call, wall (ms)": [b["compress"] for _, b in rounds],
        "overhead (% of plain)": [
            100 * overhead(a["prefill"], b["prefill"], b["score"], b["evict"]) for a, b in rounds
        ],
        "score + evict (% of plain)": [100 * (b["score"] + b["evict"]) / a["prefill"] for a, b in rounds],
        "encode, not counted (ms)": [b["encode"] for _, b in rounds],
    }
    return {name: bench_common.spread(values) for name, values in figures.items()}


def noise(plain: Sequence[float]) -> float:
    """Median deviation of the plain prefills from their median, as a share of it."""
    middle = statistics.median(plain)
    return statistics.median(abs(value - middle) for value in plain) / middle


@bench_common.command(visual=4096)
@click.option("--method", "name", default="aircache", help="A named method of the engine.")
def main(settings: Settings, name: str) -> None:
    """Measure the overhead of observe + score + evict as a share of the prefill."""
    method = EngineMethod(settings.keep)
    if name != "aircache":
        known = named_methods()
        if name not in known:
            raise click.UsageError(f"--method must be one of {', '.join(known)}, got {name}")
        method = replace(known[name], keep=settings.keep)
    machine = bench_common.machine()
    pictures = bench_common.pictures(settings.visual)
    rounds: list[tuple[Parts, Parts]] = []
    with settings.engine(RESERVE) as engine:
        text = bench_common.user_turn(engine, len(pictures))
        for i in bench_common.progress(range(settings.rounds + 1), "rounds"):
            order = (i % 2 == 0, i % 2 != 0)
            sides = {on: measure(engine, text, pictures, method if on else None) for on in order}
            rounds.append((sides[False], sides[True]))
    rounds.pop(0)  # warm-up

    figures = summary(rounds)
    first = rounds[0][1]
    what = f"{first['visual']} visual of {first['tokens']} tokens, {name}, keep {settings.keep}"
    rows = [["", "median", "min", "max"]]
    rows += [[name, *(f"{values[k]:.2f}" for k in ("median", "min", "max"))] for name, values in figures.items()]
    print(bench_common.head(settings, what, machine), bench_common.table(rows), sep="\n\n")
    print(f"\nNoise: plain prefills deviate {100 * noise([a['prefill'] for a, _ in rounds]):.2f} % from their median.")
    data: dict[str, Any] = {
        "benchmark": "overhead",
        "engine": bench_common.version(),
        "machine": machine,
        "settings": settings.to_dict(),
    }
    data |= {"method": name, "figures": figures, "rounds": rounds}
    bench_common.write_json(settings.json_path, data)


if __name__ == "__main__":
    main()
