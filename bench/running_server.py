"""A llama-server with the bundled projector, and requests to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "pyaircache" / "data" / "pages-vl"
CHAT = "/v1/chat/completions"


class Server:
    """A running llama-server."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    @contextlib.contextmanager
    def send(self, body: dict[str, Any]) -> Iterator[http.client.HTTPConnection]:
        """A connection of its own on which a chat request was sent."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
            yield connection
        finally:
            connection.close()

    def answer(self, body: dict[str, Any]) -> tuple[int, str]:
        """HTTP status, and the answer's text or the error's."""
        with self.send(body) as connection:
            response = connection.getresponse()
            data = json.loads(response.read())
        if response.status != 200:
            return response.status, str(data.get("error", data))
        return 200, data["choices"][0]["message"]["content"]

    def streamed(self, body: dict[str, Any], most: int | None = None) -> str:
        """The text of a streamed answer; most: stop reading after so many pieces, and close the connection."""
        text, pieces = "", 0
        with self.send({**body, "stream": True}) as connection:
            for line in connection.getresponse():
                if line.startswith(b"data: {"):
                    for choice in json.loads(line[6:]).get("choices", []):
                        text += choice["delta"].get("content") or ""
                    pieces += 1
                    if pieces == most:
                        break
        return text

    def get(self, path: str) -> Any:
        """What a JSON page of the server says."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            data = response.read()
            return json.loads(data) if response.status == 200 else None

    def busy_slots(self, patience_s: float = 20.0) -> int:
        """Slots that are still at work when nobody waits for an answer, after some patience."""
        deadline = time.monotonic() + patience_s
        while True:
            busy = sum(slot["is_processing"] for slot in self.get("/slots"))
            if not busy or time.monotonic() > deadline:
                return busy
            time.sleep(0.05)

    def rss_mib(self) -> float:
        """Resident memory."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return 0.0


@contextlib.contextmanager
def running(server: Path, model: Path, slots: int, cache_mib: int = 4) -> Iterator[Server]:
    """A server. ``cache_mib``: of the host's cache of prompts: full early, so that it does not look like a leak."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    mmproj = MODELS / "mmproj-pages-vl-F16.gguf"
    line = [str(server), "-m", str(model), "--mmproj", str(mmproj), "--port", str(port), "--metrics", "--slots"]
    line += ["-np", str(slots), "-c", str(1024 * slots), "-t", "1", "--no-webui", "--no-warmup"]
    line += ["--cache-ram", str(cache_mib)]
    # With a heap for every HTTP thread, glibc's default, their holes look like a leak for thousands of requests.
    env = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env) as process:
        try:
            res = Server(process, port)
            for _ in range(2400):
                if process.poll() is not None:
                    raise RuntimeError(f"llama-server ended with code {process.returncode}")
                with contextlib.suppress(OSError, http.client.HTTPException):
                    if res.get("/health"):
                        break
                time.sleep(0.05)
            yield res
        finally:
            process.terminate()
