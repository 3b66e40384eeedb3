"""A tiny random LLaVA-OneVision behind the server: how a picture is read depends on how many the prompt has."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from pyaircache import Chat

from .conftest import CTX, Launch, Page

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "reference")]

import tiny_onevision as tov  # noqa: E402

KEEP, QUESTION = 0.25, "What is the value of KIWI?"
SIZES = {"large": (300, 200), "small": (20, 30)}


def readable(text: str) -> str:
    """What does not depend on how bytes that are no UTF-8, as random weights write them, are shown."""
    return "".join(c for c in text if c.isascii() and c.isprintable())


def test_pictures_alone_and_together(launch: Launch, tmp_path: Path) -> None:
    files = tov.save_tiny(tmp_path)
    pages = {}
    for name, size in SIZES.items():
        pages[name] = Page(tmp_path / f"{name}.png", QUESTION, "")
        tov.random_picture(np.random.default_rng(1), *size).save(pages[name].path)
    both = [{"role": "user", "content": [*(p.part() for p in pages.values()), {"type": "text", "text": QUESTION}]}]
    questions = {"large": pages["large"].ask(), "small": pages["small"].ask(), "both": both}
    images = {name: str(page.path) for name, page in pages.items()} | {"both": [str(p.path) for p in pages.values()]}

    with Chat(str(files.text), str(files.mmproj), keep=KEEP, n_ctx=CTX, n_threads=1) as chat:
        want = {name: chat.ask(images[name], QUESTION, max_tokens=12) for name in questions}
    counts = {name: answer.report.visual_tokens for name, answer in want.items()}
    assert counts["small"] < counts["large"]
    assert counts["both"] == 2 * (5 * 5 + 1)

    options = ("--model", str(files.text), "--mmproj", str(files.mmproj), "--aircache-keep", str(KEEP))
    with launch(*options) as server:
        for name in ("large", "both", "small", "both", "large"):  # each after another, in one slot
            got = server.ask(questions[name])
            air = got.model_extra["timings"]["aircache"]
            assert air["visual_tokens"] == counts[name]
            assert air["kept_tokens"] == np.mean(want[name].report.budgets)
            assert readable(got.choices[0].message.content) == readable(str(want[name]))
            assert readable(str(want[name]))
