"""Many image requests over several slots of llama-server: answers, memory, slots, requests per second.

    python bench/server_soak.py --server build/bin/llama-server [--requests 500] [--slots 4]

Every request asks about one of several pages with one of several keeps, some streamed, some cancelled. Right is what a
server with one slot, which has seen nothing but that conversation, answers; the text model is run in F32, so that
batching cannot change an answer. Linux: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "pyaircache" / "models" / "pages-vl"
KEEPS = (0.05, 0.1, 0.3, 1.0)
CANCELLED = "cancelled"


@contextlib.contextmanager
def running(server: Path, model: Path, slots: int) -> Iterator[tuple[httpx.Client, int]]:
    """A server and its process id."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = [
        server,
        "-m",
        model,
        "--mmproj",
        MODELS / "mmproj-pages-vl-F16.gguf",
        "--port",
        str(port),
        "--metrics",
        "--slots",
    ]
    line += ["-np", str(slots), "-c", str(1024 * slots), "-t", "1", "--aircache-keep", "0.1", "--no-webui"]
    line += ["--cache-ram", "4"]  # MiB: full early, so that it does not look like a leak later
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            # a kept connection occupies one of the server's few HTTP threads
            limits = httpx.Limits(max_keepalive_connections=0)
            client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, limits=limits)
            for _ in range(1200):
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/health").status_code == 200:
                        break
                time.sleep(0.05)
            yield client, process.pid
        finally:
            process.terminate()


def conversations() -> list[list[dict[str, Any]]]:
    """Messages: every page with every page's question, and one without an image."""
    lines = (MODELS / "samples" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    res: list[list[dict[str, Any]]] = [[{"role": "user", "content": "Hello"}]]
    for sample in samples:
        data = base64.b64encode((MODELS / "samples" / sample["file"]).read_bytes()).decode()
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        for other in samples:
            res.append([{"role": "user", "content": [image, {"type": "text", "text": other["question"]}]}])
    return res


def ask(
    client: httpx.Client, messages: list[dict[str, Any]], keep: float, stream: bool = False, cancel: bool = False
) -> str:
    """The answer; a cancelled stream is closed after its first chunk."""
    body = {"messages": messages, "temperature": 0, "max_tokens": 12, "aircache_keep": keep, "stream": stream}
    if not stream:
        return (
            client.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"][0]["message"]["content"]
        )
    text = ""
    with client.stream("POST", "/v1/chat/completions", json=body) as res:
        for line in res.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:]).get("choices", []):
                    text += choice["delta"].get("content") or ""
                if cancel:
                    return CANCELLED
    return text


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> int:
    """Prints a JSON object; 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", type=Path, default=ROOT / "pyaircache" / "bin" / "llama-server")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument(
        "--warm-up", type=int, default=1000, help="requests before; HTTP threads' heaps grow for a while"
    )
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    talks = conversations()
    dice = random.Random(args.seed)
    jobs = [(dice.randrange(len(talks)), dice.choice(KEEPS), dice.random()) for _ in range(args.requests)]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "f32.gguf"
        quantize = [
            args.server.parent / "llama-quantize",
            "--allow-requantize",
            MODELS / "pages-vl-Q8_0.gguf",
            model,
            "F32",
        ]
        subprocess.run(quantize, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        expected = {}
        for keep in KEEPS:
            with running(args.server, model, 1) as (client, _):
                for i, messages in enumerate(talks):
                    # a text-only request between makes the slot forget the image
                    ask(client, [{"role": "user", "content": "Forget it."}], 1.0)
                    expected[i, keep] = ask(client, messages, keep)

        with running(args.server, model, args.slots) as (client, pid), ThreadPoolExecutor(args.slots + 2) as pool:
            memory = []

            def work(job: tuple[int, float, float]) -> str:
                i, keep, kind = job
                got = ask(client, talks[i], keep, stream=kind < 0.5, cancel=kind < 0.1)
                memory.append(rss_mib(pid))
                return "cancelled" if got == CANCELLED else "right" if got == expected[i, keep] else "wrong"

            for _ in pool.map(work, (dice.choice(jobs) for _ in range(args.warm_up))):
                pass
            memory.clear()
            started = time.monotonic()
            outcomes = Counter(pool.map(work, jobs))
            seconds = time.monotonic() - started
            time.sleep(1)
            busy = sum(slot["is_processing"] for slot in client.get("/slots").json())

    tenth = max(1, len(memory) // 10)
    early, late = max(memory[:tenth]), max(memory[-tenth:])
    flat = late < early * 1.03 + 1
    result = {
        "requests": args.requests,
        "slots": args.slots,
        **outcomes,
        "slots_still_busy": busy,
        "rss_mib_at_the_start": round(early, 1),
        "rss_mib_at_the_end": round(late, 1),
        "requests_per_second": round(args.requests / seconds, 2),
    }
    print(json.dumps(result))
    return 1 if outcomes["wrong"] or busy or not flat else 0


if __name__ == "__main__":
    sys.exit(main())
