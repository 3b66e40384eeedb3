"""The wheel: built from the project's build folder (so nothing compiles), looked at, installed and run elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ".dylib" if sys.platform == "darwin" else ".so"
BUILT = ROOT / "build" / "CMakeCache.txt"


def run(*command: str | Path, **kwargs: object) -> str:
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True, **kwargs)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert BUILT.is_file(), "nothing is built: make build"
    folder = tmp_path_factory.mktemp("wheel")
    env = os.environ | {"CMAKE_ARGS": os.environ.get("CMAKE_ARGS", "-DGGML_RPC=ON")}
    run(sys.executable, "-m", "pip", "wheel", ROOT, "--no-build-isolation", "--no-deps", "-w", folder, env=env)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", folder, wheel)
    return folder


def test_one_wheel_for_every_python(wheel: Path) -> None:
    assert re.fullmatch(r"pyaircache-[\d.]+-py3-none-(?!any).*\.whl", wheel.name)


def test_contents(wheel: Path) -> None:
    names = {i.filename for i in zipfile.ZipFile(wheel).infolist()}
    for name in ("ggml", "ggml-base", "ggml-cpu", "llama", "mtmd", "llama-common", "pyaircache_engine"):
        assert f"pyaircache/lib/lib{name}{LIBRARY}" in names
    for name in ("llama-server", "llama-bench", "llama-batched-bench", "llama-quantize", "ggml-rpc-server"):
        assert f"pyaircache/bin/{name}" in names
    assert {"pyaircache/lib/pyaircache.h", "pyaircache/lib/pyaircache-bench.h"} <= set(names)
    for name in ("conversion/base.py", "conversion/qwenvl.py", "gguf-py/gguf/constants.py", "LICENSE", "gguf-py/LICENSE"):
        assert f"pyaircache/lib/converter/{name}" in names
    assert "pyaircache/py.typed" in names
    # Every file of the package that git would take is there, and nothing besides.
    files = run("git", "-C", ROOT, "ls-files", "-co", "--exclude-standard", "pyaircache").split()
    assert {n for n in names if re.match(r"pyaircache/(?!lib/|bin/)", n)} == set(files)
    stray = [n for n in names if not re.match(r"pyaircache/|pyaircache-[\d.]+\.dist-info/", n)]
    assert not stray


def test_no_library_is_there_twice(wheel: Path) -> None:
    checksums = [i.CRC for i in zipfile.ZipFile(wheel).infolist() if "/lib/" in i.filename]
    assert len(checksums) == len(set(checksums))


@pytest.mark.skipif(not shutil.which("readelf"), reason="readelf is not there")
def test_libraries_find_each_other_wherever_they_are(installed: Path) -> None:
    files = [path for path in (installed / "pyaircache").glob("[lb]i[bn]/*") if path.is_file() and path.suffix != ".h"]
    assert len(files) >= 12
    for path in files:
        paths = re.findall(r"R(?:UN)?PATH.*\[(.*)\]", run("readelf", "-d", path))
        assert paths in (["$ORIGIN"] if path.parent.name == "lib" else ["$ORIGIN/../lib"],), path


def test_programs_run(installed: Path, tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    server = installed / "pyaircache" / "bin" / "llama-server"
    assert os.access(server, os.X_OK)
    lock = (ROOT / "llama.cpp.lock").read_text()
    commit = re.search(r'^commit\s*=\s*"(.*)"', lock, re.M)
    assert commit and commit[1] in run(server, "--version", cwd=tmp_path, env=env)


def test_package_loads_its_own_engine(installed: Path, tmp_path: Path) -> None:
    """Installed, away from the source tree: the engine loads and has the package's version."""
    code = (
        "import importlib.metadata; from pyaircache.engine import engine, library\n"
        "print(library.find_library()); print(engine.version()); print(importlib.metadata.version('pyaircache'))"
    )
    # -S: the dependencies of this Python without its .pth files, which lead to the source tree (editable install).
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(installed), sysconfig.get_path("purelib")])}
    env.pop("PYAIRCACHE_LIB", None)
    path, engine, version = run(sys.executable, "-S", "-c", code, cwd=tmp_path, env=env).split("\n")[:3]
    assert Path(path).is_relative_to(installed)
    assert version and engine.startswith(version)
