"""A page under construction: what is written where, and what can be asked about it.

Everything is placed on a grid of cells of 28 x 28 px, one visual token each; lines of text are centred in a row of
cells up to a few pixels, and start at any pixel. `Text.key` is what a piece of text belongs to (the label of a value,
row and column of a number): only a training signal, never shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 28
FONTS = {
    "DejaVuSans.ttf": 15,
    "DejaVuSans-Bold.ttf": 14,
    "DejaVuSansMono.ttf": 15,
    "DejaVuSerif.ttf": 15,
    "STIXGeneral.ttf": 18,
}  # and the size in px at which a line of it is about as wide as one of the others
SIZES = (0, 1, 2, 3)  # px added to it
JITTER = 3  # px up or down, of the whole page and of one line together


class Text(NamedTuple):
    """One piece of text: x of every character's left edge and of the end, and the row of cells it lies in."""

    text: str
    edges: tuple[float, ...]
    row: int
    key: str
    key2: str


class Question(NamedTuple):
    kind: str
    text: str
    answer: str
    row: int
    columns: tuple[int, int]  # cells that show the answer: from, up to


@dataclass
class Page:
    rows: int
    columns: int
    font: ImageFont.FreeTypeFont
    image: Image.Image
    draw: ImageDraw.ImageDraw
    ink: tuple[int, int, int]
    dy: int
    rng: np.random.Generator
    texts: list[Text] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)

    @property
    def width(self) -> int:
        return self.columns * CELL

    def length(self, text: str) -> float:
        return sum(_advance(self.font, char) for char in text)

    def write(
        self, text: str, x: float, row: int, *, key: str = "", key2: str = "", right: bool = False, ink=None
    ) -> float:
        """Writes `text` in a row of cells, from x or up to it; returns the x of its other end."""
        edges = [0.0, *accumulate(_advance(self.font, char) for char in text)]
        x = float(int(x - edges[-1] if right else x))
        y = row * CELL + CELL // 2 + self.dy + int(self.rng.integers(-1, 2))
        self.draw.text((x, y), text, fill=ink or self.ink, font=self.font, anchor="lm")
        self.texts.append(Text(text, tuple(x + e for e in edges), row, key, key2))
        return x if right else x + edges[-1]

    def ask(self, kind: str, text: str, answer: str) -> None:
        """Puts down a question about what was written last with these words."""
        shown = next(t for t in reversed(self.texts) if t.text == answer)
        columns = (int(shown.edges[0]) // CELL, min(int(shown.edges[-1]) // CELL + 1, self.columns))
        self.questions.append(Question(kind, text, answer, shown.row, columns))

    def finish(self) -> np.ndarray:
        """The picture with its noise, uint8 [height, width, 3]."""
        grey = np.asarray(self.image, dtype=np.int16)
        sigma = self.rng.uniform(0, 8)
        if sigma > 1:
            noise = _noise()
            start = int(self.rng.integers(noise.size - grey.size // 3))
            grain = noise[start : start + grey.size // 3].reshape(*grey.shape[:2], 1)
            grey = grey + (grain * sigma).astype(np.int16)
        return np.clip(grey, 0, 255).astype(np.uint8)


def new_page(rng: np.random.Generator, rows: int, columns: int, *, size: int | None = None) -> Page:
    file = list(FONTS)[rng.integers(len(FONTS))]
    font = _font(file, FONTS[file] + int(rng.choice(SIZES) if size is None else size))
    paper = tuple(int(v) for v in rng.integers(214, 256) - rng.integers(0, 14, 3))
    ink = tuple(int(v) for v in rng.integers(0, 70, 3))
    image = Image.new("RGB", (columns * CELL, rows * CELL), paper)
    dy = int(rng.integers(-JITTER + 1, JITTER))
    return Page(rows, columns, font, image, ImageDraw.Draw(image), ink, dy, rng)


@cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    # matplotlib ships the fonts, so that a page looks the same on every machine
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / file, size)


@cache
def _advance(font: ImageFont.FreeTypeFont, char: str) -> float:
    """Width of a character; what kerning would take off is less than a pixel."""
    return font.getlength(char)


@cache
def _noise() -> np.ndarray:
    """Grain that pages cut their pieces from: drawing fresh noise would take longer than drawing the page."""
    return np.random.default_rng(7).standard_normal(2_000_000, dtype=np.float32)
