"""The inputs of fuzz/corpus through the targets, without a fuzzer: what was found once stays found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyaircache.errors import ImageError
from pyaircache.images import load_images
from pyaircache.methods.window import Window

FUZZ = Path(__file__).resolve().parents[2] / "fuzz"
CORPUS = FUZZ / "corpus"
sys.path.insert(0, str(FUZZ))

import run  # noqa: E402
import words  # noqa: E402

Program = Callable[[str], Path]


def inputs(target: str) -> list[Path]:
    """A target's corpus."""
    return sorted((CORPUS / target).iterdir())


def test_the_corpora_are_those_of_the_targets() -> None:
    assert sorted(folder.name for folder in CORPUS.iterdir()) == sorted(run.NATIVE)
    assert sum(file.stat().st_size for target in run.NATIVE for file in inputs(target)) < 300_000


@pytest.mark.parametrize("target", run.NATIVE)
def test_native(program: Program, target: str) -> None:
    done = subprocess.run([program(f"fuzz-{target}"), *inputs(target)], capture_output=True, text=True)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("file", inputs("picture"), ids=lambda file: file.name)
def test_pictures_in_python(file: Path) -> None:
    try:
        images = load_images(file.read_bytes())
    except ImageError as exc:
        assert len(str(exc)) < 1000
        return
    assert images
    for image in images:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3


@pytest.fixture(scope="module")
def server(program: Program) -> Iterator[words.Server]:
    """llama-server's reader of windows."""
    res = words.Server(program("window-words"))
    yield res
    res.close()


@pytest.mark.parametrize(
    "text",
    [
        *("elite", "elite:0.5", "elite:0.9:content:last", "elite:last:content", "elite:1e-3", "elite:1", "elite:.5"),
        *("last", "last:1", "last:65536", "text", "text:weighted", "visual", "visual:8", "all"),
    ],
)
def test_both_readers_of_windows_take(server: words.Server, text: str) -> None:
    assert words.python_window(text) == server.window(text) == str(Window.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "elite:", "last:", "text:", "visual:", "all:", "elite::last", "Elite", " elite", "elite ", "none"),
        *("elite:0", "elite:1.1", "elite:nan", "elite:inf", "elite:-0.5", "elite:0x1p-1", "elite:1_0", "elite: 0.5"),
        *(
            "elite:0.5:0.5",
            "elite:content:content",
            "elite:last:0.5",
            "elite:0.5 ",
            "elite:٠.٥",
            "elite:1e-400",
        ),
        *(
            "last:0",
            "last:-1",
            "last:+1",
            "last:1.0",
            "last:1e1",
            "last: 1",
            "last:1 ",
            "last:1_0",
            "last:٣",
            "last:65537",
        ),
        *(
            "last:99999999999999999999",
            "last:1:2",
            "last:0x10",
            "text:weighted:weighted",
            "text:x",
            "visual:32:",
            "all:1",
        ),
    ],
)
def test_both_readers_of_windows_refuse(server: words.Server, text: str) -> None:
    assert (words.python_window(text), server.window(text)) == (None, None)


PIECES = [
    "elite",
    "last",
    "text",
    "visual",
    "all",
    "content",
    "weighted",
    ":",
    ".",
    "0",
    "5",
    "32",
    "1e-3",
    "-",
    "+",
    " ",
    "_",
]


@given(st.one_of(st.lists(st.sampled_from(PIECES)).map("".join), st.text(max_size=12)))
def test_both_readers_of_windows_agree(server: words.Server, text: str) -> None:
    assert words.python_window(text) == server.window(text)
