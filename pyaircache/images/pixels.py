"""From a Pillow image to upright RGB, 8 bits a channel, transparency on white."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageCms, ImageOps

from .limits import check_size

_TRANSPARENT_MODES = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})


def to_rgb(picture: Image.Image, name: str) -> Image.Image:
    """An upright RGB copy; the original is not touched.

    Raises:
        ImageError: It is empty or has too many pixels.
    """
    check_size(name, picture.width, picture.height)
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
    values = np.asarray(picture, dtype=np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0)
    largest = float(values.max(initial=0.0))
    if picture.mode == "F":
        values = values * 255.0 if 0.0 < largest <= 1.0 else values
    elif picture.mode != "I" or largest > 255.0:  # I;16 and its kin, or a 16-bit file widened to 32 bits
        values = values / 257.0
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
