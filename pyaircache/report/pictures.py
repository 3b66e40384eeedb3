"""The pictures of a question, as its report remembers them: enough to know them again, and where their tokens lie."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..engine.protocol import EngineLike

LLAVA_NEXT, ONEVISION = "llava_next", "llava_onevision"


@dataclass(frozen=True)
class PictureInfo:
    """One picture of a question.

    Attributes:
        width: In pixels, upright.
        height: In pixels.
        frames: Of a video; 0: it is a picture.
        digest: Of the pixels: BLAKE2b of 64 bits, in hexadecimal digits.
    """

    width: int
    height: int
    frames: int
    digest: str

    @staticmethod
    def of(pixels: NDArray[np.uint8]) -> PictureInfo:
        """Of an array [H, W, 3]; of a video [frames, H, W, 3]."""
        frames = pixels.shape[0] if pixels.ndim == 4 else 0
        digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=8).hexdigest()
        return PictureInfo(pixels.shape[-2], pixels.shape[-3], frames, digest)


def tile_side(engine: EngineLike, projector: str) -> int:
    """Tokens along a side of a tile, where a picture's spans alone do not say it; else 0.

    LLaVA-OneVision and LLaVA-NeXT make one span of a picture's tiles. Of two pictures in one prompt, each is one tile
    and a newline with the first. With the second nothing of a very wide picture's tiles is left, only the overview.
    """
    if projector not in (ONEVISION, LLAVA_NEXT):
        return 0
    if projector == LLAVA_NEXT:
        return math.isqrt(engine.layout(engine.marker(), [(1000, 1)]).spans[0].n_tokens)
    spans = engine.layout(engine.marker() * 2, [(1, 1)] * 2).spans
    return math.isqrt(spans[0].n_tokens - 1)


def infos(images: Sequence[NDArray[np.uint8]]) -> list[PictureInfo]:
    """Of the pictures of a question, in order."""
    return [PictureInfo.of(image) for image in images]
