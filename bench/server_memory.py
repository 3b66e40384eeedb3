"""Memory of llama-server seen from outside: many conversations about pictures at once, and the unpatched one beside it.

    python bench/server_memory.py --stock .../llama-server                     # 4 slots, 4 conversations of 2k tokens
    python bench/server_memory.py --conversations 16 --visual 3844 --kv-cells 16384

Each conversation asks about a picture of its own; then a second question is asked in each. VmRSS and VmHWM of /proc are
read after the start, after the first answers and after the second ones. The KV cache's figures are the server's.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bench_common
import click
import random_gguf
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
TEXT_CELLS = 512  # of a conversation, at most


def url_of(n_visual: int, seed: int) -> str:
    """A picture of noise as a data URI."""
    data = io.BytesIO()
    Image.fromarray(bench_common.pictures(n_visual, seed)[0]).save(data, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def post(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=7200) as response:
        return json.loads(response.read())


def get(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as response:
        return json.loads(response.read())


def memory(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """MB in RAM, now and at most."""
    lines = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
    found = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS", "VmHWM")))
    return {name: int(value.split()[0]) * 1024 // 10**6 for name, value in found.items()}


@contextlib.contextmanager
def running(line: list[str], log: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A server on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with log.open("wb") as out, subprocess.Popen([*line, "--port", str(port)], stdout=out, stderr=out) as process:
        try:
            while True:
                if process.poll() is not None:
                    raise click.ClickException(f"the server ended: {log.read_text(errors='replace')[-2000:]}")
                with contextlib.suppress(OSError, urllib.error.URLError):
                    get(port, "/health")
                    break
                time.sleep(0.2)
            yield port, process
        finally:
            process.terminate()


def measure(line: list[str], urls: list[str], tokens: int, log: Path) -> dict[str, Any]:
    """One server's figures."""

    def ask(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        answer = post(port, "/v1/chat/completions", {"messages": messages, "max_tokens": tokens, "temperature": 0,
                                                     "ignore_eos": True})  # fmt: skip
        again = {"role": "assistant", "content": answer["choices"][0]["message"]["content"] or "."}
        return [*messages, again, {"role": "user", "content": "And the next row?"}], answer["timings"]

    talks = []
    for url in urls:
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": bench_common.QUESTION}]
        talks.append([{"role": "user", "content": content}])
    with running(line, log) as (port, process), ThreadPoolExecutor(len(urls)) as pool:
        res: dict[str, Any] = {"start": memory(process)}
        for turn in ("first answers", "second answers"):
            began = time.monotonic()
            answers = list(pool.map(ask, talks))
            talks = [messages for messages, _ in answers]
            timings = [t for _, t in answers]
            res[turn] = memory(process) | {"seconds": round(time.monotonic() - began, 1)}
            res[turn]["prompt tokens"] = [t["prompt_n"] for t in timings]
            res[turn]["reused tokens"] = [t["cache_n"] for t in timings]
            allocated = [t.get("aircache", {}).get("kv_bytes_allocated", 0) for t in timings]
            res[turn]["KV allocated, MB"] = [value // 10**6 for value in allocated]
        slots = get(port, "/slots")
        res["slots with a conversation"] = sum("aircache" in slot for slot in slots)
        res["slots' KV read, MB"] = sum(slot.get("aircache", {}).get("kv_bytes", 0) for slot in slots) // 10**6
        return res


@click.command(context_settings={"show_default": True})
@click.option("--server", type=click.Path(exists=True, path_type=Path), default=ROOT / "build/bin/llama-server")
@click.option("--stock", type=click.Path(exists=True, path_type=Path), help="The unpatched llama-server, measured too.")
@click.option("--preset", default="qwen2-0.5b", help="Shape of the model.")
@click.option("--conversations", default=4, help="At once, and slots.")
@click.option("--visual", default=2116, help="Visual tokens of each picture.")
@click.option("--keep", default=0.1)
@click.option("--kv-cells", default=0, help="--aircache-kv-memory, in cells; 0: none.")
@click.option("--tokens", default=16, help="Of each answer.")
@click.option("--threads", default=2)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path))
def main(server: Path, stock: Path | None, preset: str, conversations: int, visual: int, keep: float, kv_cells: int,
         tokens: int, threads: int, json_path: Path | None) -> None:  # fmt: skip
    """Measure what llama-server takes."""
    model, mmproj = random_gguf.make_pair(bench_common.CACHE, preset, "q4_0")
    n_ctx = bench_common.rounded(visual + TEXT_CELLS)
    urls = [url_of(visual, seed) for seed in range(conversations)]
    common = ["-m", str(model), "--mmproj", str(mmproj), "-np", str(conversations), "-c", str(n_ctx * conversations),
              "--no-kv-unified", "-t", str(threads), "--no-webui", "--slots", "--no-warmup"]  # fmt: skip
    ours = [str(server), *common, "--aircache-keep", str(keep)]
    sides = {"ours": ours + (["--aircache-kv-memory", f"{kv_cells}cells"] if kv_cells else [])}
    if stock:
        sides["unpatched"] = [str(stock), *common]
    results = {"machine": bench_common.machine(), "conversations": conversations, "visual": visual, "keep": keep,
               "kv cells": kv_cells, "n_ctx of a slot": n_ctx}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for name, line in sides.items():
            results[name] = measure(line, urls, tokens, Path(folder) / "log")
            print(json.dumps({name: results[name]}, indent=1), flush=True)
    bench_common.write_json(json_path, results)


if __name__ == "__main__":
    sys.exit(main())
