"""From a Pillow image to upright RGB, 8 bits a channel, transparency on white."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

_TRANSPARENT_MODES = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
_AT_ONCE = 1 << 20  # pixels that are converted at once: the numbers in between take 8 bytes each


def to_rgb(picture: Image.Image) -> Image.Image:
    """An upright RGB copy; the original is not touched."""
    picture.load()
    picture = _upright(picture)
    if picture.mode.startswith(("I", "F")):
        return _eight_bits(picture).convert("RGB")
    if picture.mode == "LAB":
        return _from_lab(picture)
    if picture.mode in _TRANSPARENT_MODES or "transparency" in picture.info:
        layer = picture.convert("LA") if picture.mode == "La" else picture  # Pillow knows no direct way from La
        layer = layer.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def _upright(picture: Image.Image) -> Image.Image:
    """Applies the EXIF orientation; damaged EXIF data counts as none, since the pixels are still good."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:
        return picture


def _from_lab(picture: Image.Image) -> Image.Image:
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(picture, lab, rgb, outputMode="RGB")
    assert converted is not None  # None is for conversions in place
    return converted


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A grey 8-bit image of a 16-bit, 32-bit or float one.

    Integers above 255 are taken as 16-bit values (what PNG and TIFF files hold); floats within [0, 1] as shares of
    white, other floats as grey levels.
    """
    values = np.asarray(picture).reshape(-1)  # of its own type
    pieces = [slice(start, start + _AT_ONCE) for start in range(0, values.size, _AT_ONCE)]
    largest = max((float(_finite(values[piece]).max()) for piece in pieces), default=0.0)
    scale, share = 1.0, 1.0
    if picture.mode == "F":
        scale = 255.0 if 0.0 < largest <= 1.0 else 1.0
    elif picture.mode != "I" or largest > 255.0:  # I;16 and its kin, or a 16-bit file widened to 32 bits
        share = 257.0
    grey = np.empty(values.shape, np.uint8)
    for piece in pieces:
        grey[piece] = np.clip(np.rint(_finite(values[piece]) * scale / share), 0, 255)
    return Image.fromarray(grey.reshape(picture.height, picture.width))


def _finite(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=255.0, neginf=0.0)
