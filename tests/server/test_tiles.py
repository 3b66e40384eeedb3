"""A picture cut into tiles, each a span of its own, with plain positions: a tiny random InternVL."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from pyaircache import Chat

from .conftest import CTX, Launch, Page

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "reference")]

import tiny  # noqa: E402
import tiny_internvl  # noqa: E402

KEEP, QUESTION = 0.25, "What is the value of KIWI?"
TOKENS = 48  # two tiles and the picture as a whole, 16 tokens each


def readable(text: str) -> str:
    """What does not depend on how bytes that are no UTF-8, as random weights write them, are shown."""
    return "".join(c for c in text if c.isascii() and c.isprintable())


def test_tiled_images(launch: Launch, tmp_path: Path) -> None:
    files = tiny_internvl.save_tiny(tmp_path)
    page = Page(tmp_path / "wide.png", QUESTION, "")
    tiny.random_image(np.random.default_rng(1), 4, 8).save(page.path)
    with Chat(str(files.text), str(files.mmproj), keep=KEEP, n_ctx=CTX, n_threads=1) as chat:
        want = chat.ask(str(page.path), QUESTION, max_tokens=12)
    assert len(want.report.spans) == 3
    options = ("--model", str(files.text), "--mmproj", str(files.mmproj), "--aircache-keep", str(KEEP))
    with launch(*options) as server:
        got = server.ask(page.ask())
    air = got.model_extra["timings"]["aircache"]
    assert air["visual_tokens"] == want.report.visual_tokens == TOKENS
    assert air["kept_tokens"] == np.mean(want.report.budgets)
    assert readable(got.choices[0].message.content) == readable(str(want))
    assert readable(str(want))
