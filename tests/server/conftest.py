"""llama-server on free local ports, and the bundled pages as OpenAI clients send them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from pyaircache import model_files

START_S = 60.0
CTX = 1024  # of a slot


@dataclass
class Server:
    """A running llama-server and ways to talk to it."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    http: httpx.Client = field(init=False)
    client: openai.OpenAI = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, timeout=60.0)
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60.0)

    def ask(self, messages: list[dict[str, Any]], keep: float | None = None, **options: Any) -> Any:
        """A chat completion at temperature 0; keep: None leaves the server's own."""
        extra = dict(options.pop("extra_body", {}))
        if keep is not None:
            extra["aircache_keep"] = keep
        options = {"max_tokens": 12, "temperature": 0.0, **options}
        return self.client.chat.completions.create(model="any", messages=messages, extra_body=extra, **options)

    def text(self, messages: list[dict[str, Any]], keep: float | None = None, **options: Any) -> str:
        """The answer's text."""
        return self.ask(messages, keep, **options).choices[0].message.content

    def streamed(self, messages: list[dict[str, Any]], keep: float | None = None) -> str:
        """The same, streamed."""
        pieces = [
            chunk.choices[0].delta.content or "" for chunk in self.ask(messages, keep, stream=True) if chunk.choices
        ]
        return "".join(pieces)

    def metric(self, name: str) -> float:
        """A counter of /metrics."""
        lines = self.http.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"llamacpp:{name} "))

    def wait_idle(self) -> None:
        """Until no slot is busy; fails after some seconds."""
        deadline = time.monotonic() + 20
        while any(slot["is_processing"] for slot in self.http.get("/slots").json()):
            assert time.monotonic() < deadline, "a slot stays busy"
            time.sleep(0.02)


Launch = Callable[..., contextlib.AbstractContextManager[Server]]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture(scope="session")
def models(f32_model: Path) -> list[str]:
    """Options that name the bundled model, in F32, and its projector."""
    _, mmproj = model_files.resolve(None, None)
    return ["--model", str(f32_model), "--mmproj", str(mmproj)]


@pytest.fixture(scope="session")
def launch(program: Callable[[str], Path], models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Starts a server of its own: ``with launch("-np", "2", ...) as server``."""
    executable = program("llama-server")
    folder = tmp_path_factory.mktemp("server")

    @contextlib.contextmanager
    def start(*options: str, slots: int = 1, images: bool = True, **env: str) -> Iterator[Server]:
        port = free_port()
        line = [
            str(executable),
            *(models if images else models[:2]),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "-t",
            "1",
            "--metrics",
            "--no-warmup",
        ]
        line += ["-np", str(slots), "-c", str(CTX * slots), "--slots", "--no-webui", *options]
        log = folder / f"{port}.log"
        with (
            log.open("wb") as out,
            subprocess.Popen(line, stdout=out, stderr=out, env={**os.environ, **env}) as process,
        ):
            try:
                server = Server(f"http://127.0.0.1:{port}", process, log)
                _wait(server)
                yield server
                assert process.poll() is None, f"the server ended: {log.read_text(errors='replace')[-3000:]}"
            finally:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()

    return start


def _wait(server: Server) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            pytest.fail(f"the server did not start: {server.log.read_text(errors='replace')[-3000:]}")
        with contextlib.suppress(httpx.TransportError):
            if server.http.get("/health").status_code == 200:
                return
        time.sleep(0.05)
    pytest.fail("the server does not become healthy")


@dataclass(frozen=True)
class Page:
    """A sample page with its question and answer."""

    path: Path
    question: str
    answer: str

    def part(self) -> dict[str, Any]:
        """The image as a part of a message."""
        data = base64.b64encode(self.path.read_bytes()).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}

    def ask(self, question: str | None = None) -> list[dict[str, Any]]:
        """Messages that ask about the page."""
        return [{"role": "user", "content": [self.part(), {"type": "text", "text": question or self.question}]}]


@pytest.fixture(scope="session")
def pages() -> list[Page]:
    """The bundled sample pages."""
    folder = model_files.bundled_dir() / "samples"
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [Page(folder / entry["file"], entry["question"], entry["answer"]) for entry in map(json.loads, lines)]


@pytest.fixture(scope="session")
def fresh(launch: Launch) -> Callable[..., str]:
    """Answers of servers with one slot that have seen nothing else: conversations, turn by turn."""
    known: dict[str, list[str]] = {}

    def answers(*turns: list[dict[str, Any]], keep: float) -> list[str]:
        key = json.dumps([turns, keep])
        if key not in known:
            with launch() as server:
                known[key] = [server.text(messages, keep) for messages in turns]
        return known[key]

    return lambda messages, keep, *later: answers(messages, *later, keep=keep)[-1]
