"""The sample pages that come with the bundled model, for a first try."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from .checks import whole
from .model_files import bundled_dir


class Sample(NamedTuple):
    """A page, a question about it and the right answer.

    Attributes:
        path: The page, a PNG file.
        question: A question that the bundled model was trained to answer.
        answer: What is on the page.
    """

    path: Path
    question: str
    answer: str

    @property
    def image(self) -> Image.Image:
        """The page as a Pillow image: RGB, a new one with each access."""
        with Image.open(self.path) as page:
            return page.convert("RGB")


def sample(number: int = 0) -> Sample:
    """A page to try things on: ``chat.ask(page.path, page.question)`` should say ``page.answer``.

    Args:
        number: Which of the bundled pages, from 0: a form, a receipt, a table, a chart, a sign.

    Returns:
        The page's path, question and answer; its picture as ``.image``.

    Raises:
        ArgumentError: There is no page of this number.
        ModelNotFoundError: This installation has no bundled model.
    """
    folder = bundled_dir() / "samples"
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = json.loads(lines[whole("number", number, 0, len(lines) - 1)])
    return Sample(folder / chosen["file"], chosen["question"], chosen["answer"])
