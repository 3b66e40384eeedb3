"""What tests of several folders need: built programs, the bundled model in F32, a server for the RPC backend."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pyaircache import _ffi, _files

ROOT = Path(__file__).resolve().parent.parent
START_S = 20.0  # a server that has not answered by then will not

Program = Callable[[str], Path]


@pytest.fixture(scope="session")
def program() -> Program:
    """Finds a built program: in the folder PYAIRCACHE_BIN, the package's bin folder, or build/bin."""
    folders = [folder / "bin" for folder in _ffi.package_dirs()] + [ROOT / "build" / "bin"]
    if os.environ.get("PYAIRCACHE_BIN"):
        folders.insert(0, Path(os.environ["PYAIRCACHE_BIN"]))

    def find(name: str) -> Path:
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
        places = ", ".join(map(str, folders))
        pytest.fail(f"{name} was not found in {places}: build with CMAKE_ARGS='-DPYAIRCACHE_TESTS=ON -DGGML_RPC=ON'")

    return find


@pytest.fixture(scope="session")
def f32_model(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled text model with its weights in F32: Q8_0 ones round activations, which makes small errors large."""
    path = tmp_path_factory.mktemp("f32") / "bundled-F32.gguf"
    model, _ = _files.resolve(None, None)
    command = [program("llama-quantize"), "--allow-requantize", model, path, "F32"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def rpc_server(program: Program) -> Iterator[str]:
    """Address of a ggml RPC server of this module's own: it serves one client at a time."""
    executable = program("ggml-rpc-server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [executable, "-H", "127.0.0.1", "-p", str(port), "-t", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_until_it_answers(server, port)
            yield f"127.0.0.1:{port}"
        finally:
            server.kill()


def _wait_until_it_answers(server: subprocess.Popen[bytes], port: int) -> None:
    interval = 0.05
    for _ in range(int(START_S / interval)):
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        with suppress(subprocess.TimeoutExpired):
            pytest.fail(f"ggml-rpc-server ended with code {server.wait(interval)}")
    pytest.fail(f"ggml-rpc-server does not answer at port {port}")
