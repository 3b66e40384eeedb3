"""Paints per-token values onto a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..checks import whole
from ..errors import ArgumentError, UnsupportedError
from ..images import Picture, load_image
from ..spans import Span

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
_DARKEST = 0.3  # brightness of the picture where no layer kept the token


def viridis(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours of values in [0, 1]: [...] -> RGB [..., 3] in [0, 1]."""
    places = np.linspace(0.0, 1.0, len(_VIRIDIS))
    return np.stack([np.interp(values, places, channel) for channel in _VIRIDIS.T], axis=-1)


def span_of_picture(spans: Sequence[Span], index: int) -> tuple[Span, int]:
    """The one span that covers a picture, and the index of its first visual token among all visual tokens.

    Raises:
        ArgumentError: No picture of that index.
        UnsupportedError: Its tokens are several tiles, or no grid.
    """
    offsets = np.cumsum([0, *(span.n_tokens for span in spans)])
    found = [(span, int(offset)) for span, offset in zip(spans, offsets, strict=False) if span.image == index]
    if not found:
        pictures = len({span.image for span in spans})
        raise ArgumentError(f"index {index}: this report is about {pictures} picture{'' if pictures == 1 else 's'}")
    if len(found) > 1:
        raise UnsupportedError(
            f"picture {index} was read as {len(found)} tiles; a heatmap is only made for models that read it as one"
        )
    span, offset = found[0]
    if span.nx <= 0 or span.ny <= 0 or span.nx * span.ny != span.n_tokens:
        raise UnsupportedError(
            f"the {span.n_tokens} visual tokens of picture {index} do not form a grid, so there is no place for them "
            "on the picture"
        )
    return span, offset


def paint(
    image: Picture | Sequence[Picture], index: int, values: NDArray[np.float64], spans: Sequence[Span]
) -> Image.Image:
    """Overlays values [N_v] in [0, 1] on the picture ``index``; see ``Report.heatmap``."""
    index = whole("index", index, -(2**31), 2**31 - 1)
    span, offset = span_of_picture(spans, index)
    if isinstance(image, (list, tuple)):
        if not 0 <= index < len(image):
            raise ArgumentError(f"index {index} is outside the list of {len(image)} images")
        image = image[index]
    pixels = load_image(image)  # type: ignore[arg-type]
    if pixels.ndim == 4:
        raise UnsupportedError("heatmaps are made of pictures, not of videos")
    picture = pixels.astype(np.float64) / 255.0  # [H, W, 3]
    height, width, _ = picture.shape
    grid = values[offset : offset + span.n_tokens].reshape(span.ny, span.nx)
    rows = np.arange(height) * span.ny // height
    columns = np.arange(width) * span.nx // width
    shares = grid[rows[:, None], columns[None, :]]  # [H, W]
    brightness = _DARKEST + (1.0 - _DARKEST) * shares
    blended = (1.0 - _TINT) * picture * brightness[..., None] + _TINT * viridis(shares)
    return Image.fromarray(np.rint(blended * 255.0).astype(np.uint8))
