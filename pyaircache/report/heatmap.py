"""Paints per-token values onto a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..checks import flag, whole
from ..errors import ArgumentError, UnsupportedError
from ..images import Picture, load_images
from ..spans import Size, Span
from .geometry import Tile, tiles
from .pictures import PictureInfo

# Nine evenly spaced colours of matplotlib's viridis map, linear in between: RGB in [0, 1].
_VIRIDIS = np.array(
    [
        [0.267, 0.005, 0.329],
        [0.279, 0.175, 0.483],
        [0.230, 0.322, 0.546],
        [0.173, 0.449, 0.558],
        [0.128, 0.567, 0.551],
        [0.158, 0.684, 0.502],
        [0.369, 0.789, 0.383],
        [0.678, 0.864, 0.190],
        [0.993, 0.906, 0.144],
    ]
)
_TINT = 0.4  # weight of the colour against the picture
_BAND = 256  # rows painted at once: the numbers in between take many times as much as the pixels
_DARKEST = 0.3  # brightness of the picture where no layer kept the token


def viridis(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Colours of values in [0, 1]: [...] -> RGB [..., 3] in [0, 1]."""
    places = np.linspace(0.0, 1.0, len(_VIRIDIS))
    colours = np.empty((*values.shape, 3))
    for i, channel in enumerate(_VIRIDIS.T):
        colours[..., i] = np.interp(values, places, channel)
    return colours


def picture_shares(
    values: NDArray[np.float64], grids: Sequence[Tile], asked: Size, target: Size
) -> NDArray[np.float32]:
    """The value at every pixel: float32 [H, W].

    Where several tokens look at a pixel, those of a tile and of the overview, the largest value counts, so that nothing
    that was kept is hidden; where none does, 0.

    Args:
        values: Of the picture's tokens.
        grids: Where they look, in pixels of the picture as it was asked about.
        asked: Its size then.
        target: The size to paint.
    """
    width, height = target
    shares = np.zeros((height, width), np.float32)
    columns, rows = _centres(width, asked[0]), _centres(height, asked[1])
    for tile in grids:
        x, across = _cells(columns, tile.left, tile.right, tile.nx)
        y, down = _cells(rows, tile.top, tile.bottom, tile.ny)
        index = tile.first + down[:, None] * tile.stride + across[None, :]
        part = shares[y, x]
        np.maximum(part, values[index], out=part)
    return shares


def _centres(n: int, asked: int) -> NDArray[np.float64]:
    """The middles of n pixels, as coordinates in the picture that was asked about."""
    places: NDArray[np.float64] = np.linspace(0.0, asked, n, endpoint=False, dtype=np.float64)
    places += asked / (2 * n)
    return places


def _cells(places: NDArray[np.float64], start: float, end: float, n: int) -> tuple[slice, NDArray[np.int64]]:
    """Which of the pixels lie in [start, end), and the cell, of n, of each."""
    first, last = np.searchsorted(places, (start, end))
    cells = np.floor((places[first:last] - start) * (n / (end - start))).astype(np.int64)
    return slice(first, last), np.clip(cells, 0, n - 1)


def paint(
    image: Picture | Sequence[Picture],
    index: int,
    values: NDArray[np.float64],
    spans: Sequence[Span],
    pictures: Sequence[PictureInfo] = (),
    projector: str = "",
    side: int = 0,
    *,
    check: bool = True,
    urls: bool = False,
) -> Image.Image:
    """Overlays values [N_v] in [0, 1] on the picture ``index``; see ``Report.heatmap``."""
    index = whole("index", index, -(2**31), 2**31 - 1)
    flag("check", check)
    count = len(pictures) or len({span.image for span in spans})
    mine = [i for i, span in enumerate(spans) if span.image == index]
    if not mine:
        raise ArgumentError(f"index {index}: this report is about {count} picture{'' if count == 1 else 's'}")
    pixels = _one(image, index, count, urls)
    known = pictures[index] if pictures else None
    if pixels.ndim == 4 or (known is not None and known.frames):
        raise UnsupportedError("heatmaps are made of pictures, not of videos")
    height, width, _ = pixels.shape
    if check and known is not None:
        _check(pixels, index, known)
    asked = (known.width, known.height) if known is not None else (width, height)

    offsets = np.cumsum([0, *(span.n_tokens for span in spans)])
    own = np.concatenate([values[offsets[i] : offsets[i + 1]] for i in mine])
    grids = tiles(projector, side, asked, [spans[i] for i in mine], count == 1)
    shares = picture_shares(own, grids, asked, (width, height))
    painted = np.empty_like(pixels)
    for top in range(0, height, _BAND):
        band = slice(top, top + _BAND)
        brightness = _DARKEST + (1.0 - _DARKEST) * shares[band, :, None]
        blended = (1.0 - _TINT) * (pixels[band] / 255.0) * brightness + _TINT * viridis(shares[band])
        painted[band] = np.rint(blended * 255.0)
    return Image.fromarray(painted)


def _one(image: Picture | Sequence[Picture], index: int, count: int, urls: bool) -> NDArray[np.uint8]:
    """The picture of this index: the only one given, or the one at its place among all pictures of the question."""
    found = load_images(image, urls=urls)
    if len(found) == count and found:
        return found[index]
    if len(found) == 1 and not isinstance(image, (list, tuple)):
        return found[0]
    raise ArgumentError(
        f"the question was about {count} picture{'' if count == 1 else 's'}, but a list of {len(found)} images was "
        "given; give all of them in order, or the one to be painted"
    )


def _check(pixels: NDArray[np.uint8], index: int, known: PictureInfo) -> None:
    """Refuses another picture than the one that was asked about."""
    height, width, _ = pixels.shape
    but = "pass check=False to paint on it all the same"
    if (width, height) != (known.width, known.height):
        raise ArgumentError(
            f"this is not picture {index} of the question: it has {width} x {height} pixels, that one had "
            f"{known.width} x {known.height}; {but}"
        )
    if PictureInfo.of(pixels).digest != known.digest:
        raise ArgumentError(
            f"this is not picture {index} of the question: it has the same size, {width} x {height}, but other "
            f"pixels; {but}"
        )
