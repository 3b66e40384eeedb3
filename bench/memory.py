"""Memory of one conversation, seen from outside: the process's RSS beside what the engine counts, step by step.

A warm-up question allocates all scratch memory first. Then: a conversation that holds nothing, the full prompt, the
compressed one, and after `--tokens` more. What the compression gives back is compared with what it evicted:

    (RSS of the full prompt - RSS after the compression) / (KV bytes before - after)

    python bench/memory.py --visual 4096
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bench_common
import click
from bench_common import Settings

from pyaircache.engine import Engine, EngineMethod


def rss() -> int:
    """Bytes of this process that are in RAM; Linux."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def state(engine: Engine) -> dict[str, int]:
    """What the process and the engine say now."""
    stats = engine.stats()
    return {
        "RSS": rss(),
        "KV read": stats.kv_bytes,
        "KV allocated": stats.kv_bytes_allocated,
        "KV in RAM": stats.kv_bytes_resident,
    }


def measure(engine: Engine, pictures: list[Any], tokens: int, keep: float) -> dict[str, dict[str, int]]:
    """The states of one conversation."""
    engine.reset()
    states = {"empty": state(engine)}
    engine.prompt(bench_common.user_turn(engine, len(pictures)), pictures, reserve=tokens, observe=True)
    states["full prompt"] = state(engine)
    engine.compress(EngineMethod(keep))
    states["compressed"] = state(engine)
    for _ in range(tokens):
        token, _ = engine.sample()
        engine.decode(token)
    states["at the end"] = state(engine)
    return states


@bench_common.command(visual=4096)
@click.option("--tokens", default=32, help="Tokens decoded after the compression.")
def main(settings: Settings, tokens: int) -> None:
    """Measure what a compression gives back to the system."""
    machine, pictures = bench_common.machine(), bench_common.pictures(settings.visual)
    with settings.engine(tokens) as engine:
        measure(engine, pictures, 1, settings.keep)
        states = measure(engine, pictures, tokens, settings.keep)
    full, kept = states["full prompt"], states["compressed"]
    back = (full["RSS"] - kept["RSS"]) / max(1, full["KV read"] - kept["KV read"])
    names = list(full)
    rows = [["MB", *names], *([name, *(f"{values[n] / 1e6:.1f}" for n in names)] for name, values in states.items())]
    what = f"{settings.visual} visual tokens"
    print(bench_common.head(settings, what, machine), bench_common.table(rows), sep="\n\n")
    print(f"\nRSS gave back {back:.0%} of the bytes that were evicted.")
    data = {"benchmark": "memory", "engine": bench_common.version(), "machine": machine, "settings": settings.to_dict()}
    bench_common.write_json(settings.json_path, data | {"tokens": tokens, "given back": back, "bytes": states})


if __name__ == "__main__":
    main()
