"""The CMake files: the one clear message for each thing that can be missing, and what the built tree looks like."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # make puts cmake and ninja there


def configure(build: Path, *args: str, **env: str) -> str:
    """Expects a failure and returns its text, unwrapped."""
    cmake = shutil.which("cmake", path=PATH)
    assert cmake, "cmake is needed: make build installs it"
    command = [cmake, "-S", str(ROOT), "-B", str(build), f"-DPython3_EXECUTABLE={sys.executable}", *args]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.count("CMake Error") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return re.sub(r"\s+", " ", done.stderr)


def test_no_compiler(tmp_path: Path) -> None:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for name in ("cmake", "make", "ninja"):
        if found := shutil.which(name, path=PATH):
            (bin_dir / name).symlink_to(found)
    message = configure(tmp_path / "build", PATH=str(bin_dir), CC="", CXX="")
    assert "No working C compiler was found. Install gcc and g++" in message


def test_source_that_does_not_exist(tmp_path: Path) -> None:
    message = configure(tmp_path / "build", PYAIRCACHE_LLAMA_SRC="/nowhere/llama.tar.gz")
    assert "PYAIRCACHE_LLAMA_SRC=/nowhere/llama.tar.gz does not exist" in message


def test_version_has_one_place() -> None:
    version = re.search(r'^version = "(.*?)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    for path in [ROOT / "CMakeLists.txt", *(ROOT / "cmake").glob("*.cmake"), *(ROOT / "pyaircache").rglob("*.py")]:
        assert f'= "{version[1]}"' not in path.read_text(), f"{path} repeats the version"
