"""Decoding speed with the full and with the compressed visual cache, and the bytes that attention reads.

Each round measures both sides, in alternating order: prompt, (compress,) then `--tokens` greedy steps. A step is
sample + decode, as in a real answer; the clock stops when the last logits are there. Cache bytes:

    sum over layers of (kept visual + text) * (row of K + row of V)

    python bench/decode.py --visual 8192 --tokens 64 --rounds 3
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import bench_common
import click
import numpy as np
from bench_common import Settings
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from random_gguf import PRESETS, Shape

from pyaircache.engine import Engine, EngineMethod


def row_bytes(shape: Shape, cache_type: str) -> int:
    """Bytes of one cell in one layer: a row of K and a row of V."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[cache_type.upper()]]
    return 2 * (shape.heads_kv * shape.head_dim // block * size)


def kv_bytes(kept: Sequence[int], n_text: int, row: int) -> int:
    """Bytes of the cells in use; kept: visual cells of each layer, row: bytes of one cell in one layer."""
    return sum((n + n_text) * row for n in kept)


def measure(
    engine: Engine, pictures: list[np.ndarray], tokens: int, keep: float, shape: Shape, row: int
) -> dict[str, Any]:
    """One prompt and its answer. keep 1: nothing is compressed."""
    engine.reset()
    prompt = engine.prompt(bench_common.user_turn(engine, len(pictures)), pictures, reserve=tokens, observe=keep < 1)
    kept = [prompt.n_visual] * shape.layers
    if keep < 1:
        kept = engine.compress(EngineMethod(keep))[1].budgets.tolist()
    n_text = prompt.n_tokens - prompt.n_visual
    before = engine.stats()
    started, started_cpu = time.perf_counter(), time.process_time()
    for _ in range(tokens):
        token, _ = engine.sample()
        engine.decode(token)
    engine.logits()  # waits for the device
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    after = engine.stats()
    return {
        "tokens/s": tokens / seconds,
        "tokens/CPU s": tokens / cpu_seconds,  # with one thread what an idle machine gives, however busy this one is
        "visual": prompt.n_visual,
        "text": n_text,
        "kv bytes": before.kv_bytes,
        "kv bytes, formula": kv_bytes(kept, n_text, row),
        "kv bytes, allocated": after.kv_bytes_allocated,
        "graphs": after.n_decodes - before.n_decodes,
        "graphs reused": after.n_graphs_reused - before.n_graphs_reused,
        "budgets": kept,
    }


@bench_common.command(visual=8192)
@click.option("--tokens", default=64, help="Tokens decoded in each measurement.")
def main(settings: Settings, tokens: int) -> None:
    """Measure tokens/s with the full and with the compressed cache, and the cache's bytes."""
    machine, shape = bench_common.machine(), PRESETS[settings.preset]
    row = row_bytes(shape, settings.cache_type)
    pictures, warm_up = bench_common.pictures(settings.visual), bench_common.pictures(256)
    sides: dict[float, list[dict[str, Any]]] = {1.0: [], settings.keep: []}
    plan = [side for i in range(settings.rounds) for side in list(sides)[:: 1 if i % 2 == 0 else -1]]
    with settings.engine(tokens) as engine:
        measure(engine, warm_up, 4, settings.keep, shape, row)
        for side in bench_common.progress(plan, "answers"):
            sides[side].append(measure(engine, pictures, tokens, side, shape, row))

    full, kept = sides.values()
    speed = [bench_common.spread([part["tokens/s"] for part in side]) for side in (full, kept)]
    ratio = bench_common.spread([b["tokens/s"] / a["tokens/s"] for a, b in zip(full, kept, strict=True)])
    a, b = full[0], kept[0]
    rows = [["", "full", f"keep {settings.keep}", "ratio"]]
    for name in ("median", "min", "max"):
        rows.append([f"tokens/s, {name}", *(f"{values[name]:.2f}" for values in (*speed, ratio))])
    cpu = [bench_common.spread([part["tokens/CPU s"] for part in side])["median"] for side in (full, kept)]
    rows.append(["tokens per CPU second, median", *(f"{value:.2f}" for value in (*cpu, cpu[1] / cpu[0]))])
    for name in ("kv bytes", "kv bytes, formula", "kv bytes, allocated"):
        share = f"{b[name] / a[name]:.3f}" if a[name] else ""
        rows.append([f"{name} (MB)", f"{a[name] / 1e6:.2f}", f"{b[name] / 1e6:.2f}", share])
    rows.append(["graphs reused / run", *(f"{part['graphs reused']} / {part['graphs']}" for part in (a, b)), ""])
    what = f"{a['visual']} visual + {a['text']} text tokens, {tokens} decoded"
    print(bench_common.head(settings, what, machine), bench_common.table(rows), sep="\n\n")
    print(
        f"\nkv bytes = sum over {shape.layers} layers of (kept visual + {a['text']} text) * {row} B, before decoding."
    )
    for name, part in (("full", a), ("kept", b)):
        if part["kv bytes"] != part["kv bytes, formula"]:
            print(f"WARNING: {name}: the engine counts {part['kv bytes']} B, not {part['kv bytes, formula']} B.")
    data: dict[str, Any] = {
        "benchmark": "decode",
        "engine": bench_common.version(),
        "machine": machine,
        "settings": settings.to_dict(),
    }
    data |= {"tokens": tokens, "row_bytes": row, "tokens/s full": speed[0], "tokens/s kept": speed[1], "ratio": ratio}
    bench_common.write_json(settings.json_path, data | {"full": full, "kept": kept})


if __name__ == "__main__":
    main()
