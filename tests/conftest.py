"""What tests of several folders need: built programs, the bundled model in F32, a server for the RPC backend."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

# Before a library with OpenMP is loaded: two threads that wait for each other must not spin. With tiny models and other
# work on the machine, that costs many times what they compute.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from pyaircache import model_files  # noqa: E402
from pyaircache.engine import library  # noqa: E402

# A shell starts what runs in the background with Ctrl-C ignored, and that is inherited by all that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
START_S = 20.0  # a server that has not answered by then will not

Program = Callable[[str], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first: with several processes, none is left with them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def program() -> Program:
    """Finds a built program: in the folder PYAIRCACHE_BIN, the package's bin folder, or build/bin."""
    folders = [folder / "bin" for folder in library.package_dirs()] + [ROOT / "build" / "bin"]
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
    model, _ = model_files.resolve(None, None)
    command = [program("llama-quantize"), "--allow-requantize", model, path, "F32"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


class RpcServer:
    """A ggml RPC server, started when first asked for and again when it has ended."""

    def __init__(self, executable: Path, log: Path) -> None:
        self.executable, self.log, self.process, self.address = executable, log, None, ""

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """On a free port; another one where that was taken in the meantime."""
        for _ in range(3):
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            command = [self.executable, "-H", "127.0.0.1", "-p", str(port), "-t", "1"]
            with self.log.open("wb") as out:
                self.process = subprocess.Popen(command, stdout=out, stderr=out)
            if self._answers(port):
                self.address = f"127.0.0.1:{port}"
                return
            self.stop()
        pytest.fail(f"ggml-rpc-server does not start; its last words:\n{self.last_words()}")

    def _answers(self, port: int) -> bool:
        """Waits until it does; False if it ended instead, or after START_S."""
        interval = 0.05
        for _ in range(int(START_S / interval)):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(interval)
                return False
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return self.running()
        return False

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def _rpc(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RpcServer]:
    """A server of this module's own: it serves one client at a time."""
    server = RpcServer(program("ggml-rpc-server"), tmp_path_factory.mktemp("rpc") / "server.log")
    yield server
    server.stop()


@pytest.fixture
def rpc_server(_rpc: RpcServer) -> Iterator[str]:
    """Its address. A test during which it ends fails for that, and the next one gets a new one."""
    if not _rpc.running():
        _rpc.start()
    yield _rpc.address
    if not _rpc.running():
        pytest.fail(f"ggml-rpc-server ended during the test; its last words:\n{_rpc.last_words()}")
