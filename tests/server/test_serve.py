"""``pyaircache serve``."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from pyaircache import EngineError
from pyaircache.cli.serve import command

from .conftest import START_S, free_port


@pytest.fixture
def folder(program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where llama-server is."""
    path = program("llama-server").parent
    monkeypatch.setenv("PYAIRCACHE_BIN", str(path))
    return path


def test_command(folder: Path) -> None:
    line = command(["--port", "1"])
    assert line[0] == str(folder / "llama-server")
    assert [Path(line[i]).name for i in (4, 6)] == ["pages-vl-Q8_0.gguf", "mmproj-pages-vl-F16.gguf"]
    model = line[4]
    assert command(["-m", model])[3] == "--mmproj"  # found in the model's folder
    assert command(["-m", model, "--no-mmproj"])[1:] == ["-m", model, "--no-mmproj"]
    assert command(["-hf", "someone/something"])[1:] == ["-hf", "someone/something"]
    assert command(["--version"])[1:] == ["--version"]


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYAIRCACHE_BIN", str(tmp_path))
    with pytest.raises(EngineError, match="llama-server was not found"):
        command([])


def test_serves_and_ends(folder: Path) -> None:
    port = free_port()
    line = [sys.executable, "-m", "pyaircache", "serve", "--port", str(port), "--aircache-keep", "0.1", "-c", "1024"]
    env = {**os.environ, "PYAIRCACHE_BIN": str(folder)}
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env) as process:
        try:
            deadline = time.monotonic() + START_S
            while time.monotonic() < deadline and process.poll() is None:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                        break
                time.sleep(0.05)
            props = httpx.get(f"http://127.0.0.1:{port}/props").json()
            assert props["default_generation_settings"]["params"]["aircache_keep"] == pytest.approx(0.1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/health")
