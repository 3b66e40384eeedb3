"""Many conversations at once: tokens a second of 1, 4 and 8 of them, and what each reads of the others' lengths.

Two tables of one run:

1. The same prompt in every conversation, full and compressed. A step decodes one token of each; rounds alternate
   between the numbers, so that whatever else the machine does concerns all of them.
2. One long text prompt beside short ones, with flash attention and without it. Were a batch's reads `n` times the
   longest, the step of `1 long + 7 short` would take as long as that of 8 long ones:

       share = (step(1 long + 7 short) - step(8 short)) / (step(1 long) - step(1 short))

   is about 1 when only the long one's cells are read, and about 8 when all read as many.

    python bench/many.py --visual 1024
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import bench_common
import click
from bench_common import Settings

from pyaircache.engine import Engine, EngineMethod, EngineModel, EnginePool, Message

COUNTS = (1, 4, 8)
STEPS = 4  # of each measurement in a round


def step(pool: EnginePool, engines: Sequence[Engine]) -> float:
    """Milliseconds of one token for each engine: the median of STEPS."""
    found = []
    for _ in range(STEPS):
        tokens = [(engine, 100) for engine in engines]
        began = time.perf_counter()
        errors = pool.decode(tokens)
        found.append((time.perf_counter() - began) * 1e3)
        assert errors == [None] * len(engines), errors
    return statistics.median(found)


def alternate(settings: Settings, what: dict[str, tuple[EnginePool, Sequence[Engine]]]) -> dict[str, float]:
    """Milliseconds a step of each: medians over the rounds, which take one after the other."""
    found: dict[str, list[float]] = {name: [] for name in what}
    for _ in bench_common.progress(range(settings.rounds), "rounds"):
        for name, (pool, engines) in what.items():
            found[name].append(step(pool, engines))
    return {name: statistics.median(values) for name, values in found.items()}


def by_number(settings: Settings, model: EngineModel, options: dict[str, Any]) -> dict[str, float]:
    """Table 1: milliseconds a step, by "full 4" and so on."""
    pictures = bench_common.pictures(settings.visual)
    n_tokens = settings.rounds * STEPS * len(COUNTS)
    cells = bench_common.rounded(settings.visual + bench_common.TEXT_CELLS + n_tokens)
    what = {}
    for name, keep in (("full", 1.0), (f"keep {settings.keep:g}", settings.keep)):
        pool = EnginePool(model, max(COUNTS), n_ctx=cells, **options)
        engines = [pool.engine() for _ in range(max(COUNTS))]
        for engine in bench_common.progress(engines, f"prompts, {name}"):
            engine.prompt(bench_common.user_turn(engine, len(pictures)), pictures, observe=keep < 1)
            if keep < 1:
                engine.compress(EngineMethod(keep))
        what |= {f"{name} {count}": (pool, engines[:count]) for count in COUNTS}
    return alternate(settings, what)


def by_length(settings: Settings, model: EngineModel, options: dict[str, Any], length: int) -> dict[str, float]:
    """Table 2: milliseconds a step, by "1 long" and so on; and the share."""
    n_tokens = settings.rounds * STEPS * 4
    pool = EnginePool(model, max(COUNTS) + 1, n_ctx=bench_common.rounded(length + 64 + n_tokens), **options)
    engines = [pool.engine() for _ in range(max(COUNTS) + 1)]
    short, long = engines[:-1], engines[-1]
    for engine in short:
        engine.prompt(engine.apply_template([Message("user", "a")]))
    once, twice = (len(long.tokenize(" a" * count)) for count in (1, 2))
    long.prompt(long.apply_template([Message("user", " a" * (length // max(1, twice - once)))]))
    what = {
        "1 short": (pool, short[:1]),
        "8 short": (pool, short),
        "1 long": (pool, [long]),
        "1 long + 7 short": (pool, [*short[1:], long]),
    }
    found = alternate(settings, what)
    extra = found["1 long"] - found["1 short"]
    return {**found, "share": (found["1 long + 7 short"] - found["8 short"]) / extra if extra > 0 else float("nan")}


@bench_common.command(visual=1024)
@click.option("--length", default=4096, help="Tokens of the long prompt.")
def main(settings: Settings, length: int) -> None:
    """Measure what conversations cost that are decoded together."""
    machine = bench_common.machine()
    with settings.model() as model:
        options: dict[str, Any] = {
            "n_threads": settings.threads or None,
            "cache_type_k": settings.cache_type,
            "cache_type_v": settings.cache_type,
        }
        steps = by_number(settings, model, options)
        lengths = {
            name: by_length(settings, model, options | {"flash_attn": flag}, length)
            for name, flag in (("on", 1), ("off", 0))
        }
    print(bench_common.head(settings, f"{settings.visual} visual tokens", machine))
    rows = [["conversations", "full, tokens/s", f"keep {settings.keep:g}, tokens/s"]]
    for count in COUNTS:
        rates = [1e3 * count / steps[f"{name} {count}"] for name in ("full", f"keep {settings.keep:g}")]
        rows.append([str(count), *(f"{rate:.1f}" for rate in rates)])
    print(bench_common.table(rows))
    print()
    names = ["1 short", "8 short", "1 long", "1 long + 7 short"]
    rows = [["flash attention", *(f"{name}, ms" for name in names), "share"]]
    for flash, found in lengths.items():
        rows.append([flash, *(f"{found[name]:.1f}" for name in names), f"{found['share']:.2f}"])
    print(bench_common.table(rows))
    data = {"settings": settings.to_dict(), "machine": machine, "ms": steps, "lengths": lengths, "length": length}
    bench_common.write_json(settings.json_path, data)


if __name__ == "__main__":
    main()
