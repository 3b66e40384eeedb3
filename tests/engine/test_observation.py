"""What is observed does not depend on how it is computed; models whose attention scores would not tell are refused."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import kinds
import pytest
from harness import pages
from PIL import Image

from pyaircache import Chat, Method
from pyaircache.methods.window import Visual, Window


def test_a_bias_by_distance_is_refused(program: Callable[[str], Path], tmp_path: Path) -> None:
    # without flash attention, which knows no bias
    command = [program("test-aircache"), kinds.save("t5", tmp_path / "t5.gguf"), "relative_bias", "f16", "nofa"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


# More of them than a ubatch holds, and fewer
@pytest.mark.parametrize("window", [Visual(32), Visual(600)], ids=str)
def test_kept_sets_do_not_depend_on_threads(window: Window) -> None:
    page = pages()[0]
    picture = Image.fromarray(page.picture.repeat(2, 0).repeat(2, 1))
    method = Method(window=window, allocation="uniform")

    def kept(n_threads: int) -> list[list[int]]:
        with Chat(keep=0.1, method=method, n_threads=n_threads) as chat:
            return [layer.tolist() for layer in chat.ask(picture, page.question, max_tokens=1).report.kept]

    one = kept(1)
    assert kept(2) == one
    assert kept(2) == one
