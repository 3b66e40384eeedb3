"""Memory of conversations, seen from outside: the process's RSS beside what the engine counts.

One conversation as in Chat, step by step: nothing held, the full prompt, compressed, after `--tokens` more; a warm-up
question takes all scratch memory before. What the compression gives back is compared with what it evicted:

    (RSS of the full prompt - RSS after the compression) / (KV bytes read before - after)

Then `--sequences` conversations of `--prompt` tokens in one context, their prompts made up as in `pyaircache bench`,
one after the other, each compressed before the next one comes. Beside them the unpatched llama.cpp, which takes all of
its cache at once: a process of its own, `memory-dump`, with the unpatched libraries of `make stock`; left out where
they were not built.

    python bench/memory.py --visual 4096 --sequences 16 --prompt 16384
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import bench_common
import click
import random_gguf
from bench_common import Settings
from rich.console import Console
from rich.table import Table

from pyaircache.engine import Engine, EngineMethod
from pyaircache.engine.bench import Bench
from pyaircache.engine.model import EngineModel
from pyaircache.errors import PyAircacheError
from pyaircache.report.process import process_memory

BUILD = Path(__file__).resolve().parent.parent / "build"

State = dict[str, int]


def state(counted: Any) -> State:  # noqa: ANN401
    """What the process says now and what the engine or the benchmark counted."""
    now, peak = process_memory()
    return {
        "KV read": counted.kv_bytes,
        "KV allocated": counted.kv_bytes_allocated,
        "KV reserved": counted.kv_bytes_reserved,
        "RSS": now,
        "RSS, most": peak,
    }


def converse(engine: Engine, pictures: list[Any], tokens: int, keep: float) -> dict[str, State]:
    """The states of one conversation."""
    engine.reset()
    states = {"empty": state(engine.stats())}
    engine.prompt(bench_common.user_turn(engine, len(pictures)), pictures, reserve=tokens, observe=True)
    states["full prompt"] = state(engine.stats())
    engine.compress(EngineMethod(keep))
    states["compressed"] = state(engine.stats())
    for _ in range(tokens):
        token, _ = engine.sample()
        engine.decode(token)
    states["at the end"] = state(engine.stats())
    return states


def many(model: EngineModel, settings: Settings, sequences: int, prompt: int, tokens: int) -> dict[str, State]:
    """The states of many conversations in one context; the last prompt but one is the peak of all."""
    before, _ = process_memory()
    method, states = EngineMethod(settings.keep), {}
    options = {"cache_type_k": settings.cache_type, "cache_type_v": settings.cache_type, "n_threads": settings.threads}
    with Bench(model, n_seqs=sequences, n_prompt=prompt, n_decode=tokens, n_batch=64, **options) as bench:
        states["empty"] = state(bench.stats())
        for seq in bench_common.progress(range(sequences), "conversations"):
            bench.fill(seq, seed=seq, observe=method)
            if seq + 1 in (1, sequences):
                states[f"prompt {seq + 1} full"] = state(bench.stats())
            bench.evict(seq, method, seed=seq)
        states["all compressed"] = state(bench.stats())
        for _ in range(tokens):
            bench.step()
        states["at the end"] = state(bench.stats())
    for one in states.values():
        one["RSS, more than before"] = one["RSS"] - before
    return states


def unpatched(model: Path, sequences: int, cells: int, cache_type: str) -> State | None:
    """What a context of the unpatched llama.cpp takes; None: it was not built."""
    program, stock = BUILD / "bin" / "memory-dump", BUILD / "stock" / "lib"
    if not (program.is_file() and (stock / "libllama.so").exists()):
        return None
    command = [program, model, str(sequences), str(cells), cache_type]
    environment = os.environ | {"LD_LIBRARY_PATH": str(stock)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    told = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    if not Path(told["library"]).resolve().is_relative_to(stock.resolve()):
        raise click.ClickException(f"memory-dump loaded {told['library']}, not the library in {stock}")
    return {"RSS": int(told["end"]), "RSS, more than before": int(told["end"]) - int(told["model"])}


def show(console: Console, title: str, states: dict[str, State]) -> None:
    """A table of states, in MB."""
    names = list(dict.fromkeys(name for one in states.values() for name in one))
    table = Table("MB", *names, title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, one in states.items():
        table.add_row(name, *(f"{one[n] / 1e6:,.1f}" if n in one else "" for n in names))
    console.print(table)


@bench_common.command(visual=4096)
@click.option("--tokens", default=32, help="Tokens decoded after the compression.")
@click.option("--sequences", default=16, type=click.IntRange(min=0), help="Conversations in one context; 0: none.")
@click.option("--prompt", default=16384, type=click.IntRange(min=128), help="Tokens of each one's prompt.")
def main(settings: Settings, tokens: int, sequences: int, prompt: int) -> None:
    """Measure what conversations take, and what a compression gives back to the system."""
    machine, pictures = bench_common.machine(), bench_common.pictures(settings.visual)
    console = Console(highlight=False)
    console.print(bench_common.head(settings, f"{settings.visual} visual tokens", machine) + "\n")
    data: dict[str, Any] = {"benchmark": "memory", "engine": bench_common.version(), "machine": machine}
    data |= {"settings": settings.to_dict(), "tokens": tokens}

    with settings.engine(tokens) as engine:
        converse(engine, pictures, 1, settings.keep)
        states = converse(engine, pictures, tokens, settings.keep)
    full, kept = states["full prompt"], states["compressed"]
    back = (full["RSS"] - kept["RSS"]) / max(1, full["KV read"] - kept["KV read"])
    show(console, "One conversation", states)
    console.print(f"RSS gave back {back:.0%} of the bytes that were evicted.\n")
    data |= {"given back": back, "bytes": states}

    if sequences:
        path, _ = random_gguf.make_pair(bench_common.CACHE, settings.preset, settings.kind, vocab=settings.vocab)
        try:
            states = many(EngineModel(path), settings, sequences, prompt, tokens)
        except PyAircacheError as error:
            raise click.ClickException(str(error)) from None
        reserved = states["empty"]["KV reserved"]
        stock = unpatched(path, sequences, bench_common.rounded(prompt + tokens), settings.cache_type)
        if stock is not None:
            states["unpatched llama.cpp"] = stock
        show(console, f"{sequences} conversations of {prompt} tokens in one context", states)
        share, most = (states[n]["KV allocated"] / reserved for n in ("all compressed", f"prompt {sequences} full"))
        console.print(f"Allocated: {share:.1%} of the unpatched cache; {most:.1%} with the last prompt still full.")
        data |= {"sequences": sequences, "prompt": prompt, "share": share, "most": most, "bytes of all": states}
    bench_common.write_json(settings.json_path, data)


if __name__ == "__main__":
    main()
