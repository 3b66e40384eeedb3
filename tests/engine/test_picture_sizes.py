"""What pictures of all shapes cost, and that no padded square is needed for the pixels of one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_onevision as tov
from PIL import Image
from tiny_vlm import across_then_down
from vlm import make_vlm

Files = tuple[Path, Path]

ARGUMENT, CONTEXT = -1, -5
FAMILIES = ("llava llama", "onevision", "qwen2vl", "internvl-chat qwen2", "smolvlm")
MOST = {"qwen2vl": 200}  # how many times as long as the other a side may be; of the others 1000

# A picture in C is there three times: the caller's, mtmd's and the preprocessor's. The rest: what the tower takes for
# its tiles, a few of them, and the resizing of one row after the other. Qwen's tower takes the whole picture at once.
FACTOR, ROOM = 3, 64 << 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Files]:
    done: dict[str, Files] = {}

    def get(name: str) -> Files:
        if name not in done:
            folder = tmp_path_factory.mktemp("vlm")
            vlm = tov.save_tiny(folder) if name == "onevision" else make_vlm(name, folder)
            done[name] = (vlm.text, vlm.mmproj)
        return done[name]

    return get


def cost(files: Files, call: str, size: tuple[int, int]) -> tuple[int, int, str]:
    """Status, bytes and error of one call in a process of its own."""
    program = Path(__file__).with_name("raw.py")
    command = [sys.executable, str(program), *map(str, (*files, call, *size))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    status, peak, error = done.stdout.strip("\n").split(" ", 2)
    return int(status), int(peak), error


@pytest.mark.parametrize(
    "size", [(1, 20000), (20000, 1), (3, 10000), (7, 6900), (20, 20000), (30000, 31), (3000, 2500)]
)
@pytest.mark.parametrize("name", FAMILIES)
def test_memory(made: Callable[[str], Files], name: str, size: tuple[int, int]) -> None:
    status, peak, error = cost(made(name), "prompt", size)
    most = MOST.get(name, 1000)
    if max(size) > most * min(size):
        assert status == ARGUMENT
        assert f"{size[0]} x {size[1]}" in error and f"at most {most} times" in error
    else:
        assert status == 0 or (status == CONTEXT and "the prompt needs" in error), error
    assert peak < FACTOR * size[0] * size[1] * 3 + ROOM


@pytest.mark.parametrize("size", [(12000, 12000), (16384, 16384), (20, 20000)])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_layout_takes_no_pixels(made: Callable[[str], Files], name: str, size: tuple[int, int]) -> None:
    status, peak, error = cost(made(name), "layout", size)
    assert status == 0 or max(size) > MOST.get(name, 1000) * min(size), error
    assert peak < 8 << 20


@pytest.mark.parametrize(
    "size", [(1, 1000), (1000, 1), (3, 2500), (2500, 7), (56, 57), (112, 80), (500, 499), (30, 30), (112, 112)]
)
def test_padded_pixels(
    made: Callable[[str], Files], program: Callable[[str], Path], tmp_path: Path, size: tuple[int, int]
) -> None:
    """LLaVA's square of its mean colour, resized by Pillow: equal to the last bit of a colour."""
    _, mmproj = made("llava llama")
    picture = tov.random_picture(np.random.default_rng(size), *size)
    side = max(size)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(picture, ((side - size[0]) // 2, (side - size[1]) // 2))

    command = [program("onevision-probe"), mmproj, "fixed", *map(str, size)]
    done = subprocess.run(command, input=np.asarray(picture).tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    got = np.frombuffer(done.stdout, np.uint8)
    tile = round((got.size / 3) ** 0.5)
    with across_then_down():
        want = square.resize((tile, tile), Image.Resampling.BICUBIC)
    assert np.array_equal(got.reshape(tile, tile, 3), np.asarray(want))
