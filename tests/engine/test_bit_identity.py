"""With keep = 1 nothing may differ from an unpatched llama.cpp: the same bits, prefill and 64 tokens, on a real page.

`logits-dump` uses llama.cpp's public API alone. It runs twice, with our libraries and with the unpatched ones of
`make stock`; it prints which ones the loader really took.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from harness import bundled_files, decode, engine_method, pages
from PIL import Image

from pyaircache.engine.engine import Engine
from pyaircache.engine.structs import Message

STOCK = Path(os.environ.get("PYAIRCACHE_STOCK") or Path(__file__).resolve().parents[2] / "build" / "stock" / "lib")
SEARCH_PATH = "DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"
N_TOKENS = 64
# Cache type, flash attention, threads
MODES = [("f16", True, 1), ("f32", False, 1), ("q8_0", True, 1), ("f16", True, 2), ("f32", False, 2)]
MARKER = "<__media__>"  # what stands for a picture in logits-dump; an engine's own is random

Mode = tuple[str, bool, int]

Dump = Callable[[Path], np.ndarray]


@pytest.fixture(scope="module")
def stock() -> Path:
    """Folder of the unpatched libraries."""
    if os.environ.get("PYAIRCACHE_NO_STOCK") == "1":
        pytest.skip("PYAIRCACHE_NO_STOCK=1")
    if not list(STOCK.glob("libllama.*")):
        pytest.fail(
            f"no unpatched libllama in {STOCK}: `make stock` builds it; PYAIRCACHE_NO_STOCK=1 skips these tests"
        )
    return STOCK


@pytest.fixture(params=MODES, ids=lambda mode: f"{mode[0]}-{'fa' if mode[1] else 'nofa'}-{mode[2]}-thread")
def mode(request: pytest.FixtureRequest) -> Mode:
    return request.param


@pytest.fixture
def prompt(opened: Callable[..., Engine]) -> str:
    engine = opened(*bundled_files())
    return engine.apply_template([Message("user", MARKER + pages()[0].question)])


@pytest.fixture
def dump(program: Callable[[str], Path], mode: Mode, prompt: str, tmp_path: Path) -> Dump:
    """Runs logits-dump with the libraries of a folder: logits [1 + N_TOKENS, n_vocab]."""
    Image.fromarray(pages()[0].picture).save(tmp_path / "page.ppm")

    def run(folder: Path) -> np.ndarray:
        out = tmp_path / "logits"
        files = [str(file) for file in (*bundled_files(), tmp_path / "page.ppm")]
        cache, flash, threads = mode
        command = [program("logits-dump"), *files, prompt, cache, "fa" if flash else "nofa", str(N_TOKENS), out]
        command.append(str(threads))
        paths = os.pathsep.join(filter(None, [str(folder), os.environ.get(SEARCH_PATH)]))
        done = subprocess.run(command, env=os.environ | {SEARCH_PATH: paths}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        llama, _, ggml = (Path(line).resolve() for line in done.stdout.splitlines())
        assert llama.parent == ggml.parent == folder.resolve(), f"the loader took other libraries:\n{done.stdout}"
        return np.fromfile(out, dtype=np.float32).reshape(1 + N_TOKENS, -1)

    return run


@pytest.fixture
def ours(program: Callable[[str], Path]) -> Path:
    """Folder of the patched libraries that belong to logits-dump."""
    return program("logits-dump").parent


def test_unpatched_is_unpatched(stock: Path, ours: Path) -> None:
    """Else all of this would compare our build with itself."""
    (unpatched,), (patched,) = stock.glob("libllama.[sd]*"), ours.glob("libllama.[sd]*")
    assert b"llama_aircache" in patched.read_bytes()
    assert b"llama_aircache" not in unpatched.read_bytes()


def test_builds_give_the_same_bits(dump: Dump, stock: Path, ours: Path) -> None:
    np.testing.assert_array_equal(bits(dump(ours)), bits(dump(stock)))


@pytest.mark.parametrize("how", ["not observed", "observed", "compressed"])
def test_engine_gives_the_same_bits(
    dump: Dump, stock: Path, opened: Callable[..., Engine], prompt: str, mode: Mode, how: str
) -> None:
    expected = dump(stock)
    *types, threads = mode
    engine = opened(*bundled_files(), *types, n_ctx=1024, n_threads=threads)
    engine.prompt(prompt.replace(MARKER, engine.marker()), [pages()[0].picture], observe=how != "not observed")
    first = engine.logits()
    if how == "compressed":
        _, result = engine.compress(engine_method(1.0))
        assert result.kv_bytes == result.kv_bytes_full
    tokens = expected.argmax(axis=1)[:N_TOKENS]
    np.testing.assert_array_equal(bits(np.stack([first, *decode(engine, tokens.tolist())])), bits(expected))


def bits(logits: np.ndarray) -> np.ndarray:
    return logits.view(np.uint32)
