"""Pictures in, uint8 RGB arrays [H, W, 3] out."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ImageError, ImageNotFoundError


class Video:
    """Frames of one video, for ``Chat.ask``: a model that knows videos spends fewer tokens on each than on a picture.

    Others read the frames as that many pictures.

    Args:
        frames: Pictures of one size, in any form that ``Chat.ask`` takes; an array [frames, H, W, 3] is a list of them.
    """

    def __init__(self, frames: Sequence[Picture]) -> None:
        self.frames = frames


Picture = Union[str, "os.PathLike[str]", bytes, Image.Image, "NDArray[np.uint8]", Video]
"""One picture: a path, a file's bytes, a Pillow image, an array [H, W], [H, W, 3] or [H, W, 4], a Video."""

_TRANSPARENT_MODES = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})


def load_images(image: Picture | Sequence[Picture] | None) -> list[NDArray[np.uint8]]:
    """Loads one picture or a list of them.

    Args:
        image: A picture, a list or tuple of pictures, or None.

    Returns:
        C-contiguous uint8 arrays [H, W, 3], in order; empty for None.

    Raises:
        ImageNotFoundError: A file does not exist.
        ImageError: Something is not a picture that can be used, or the list is empty.
    """
    if image is None:
        return []
    if isinstance(image, (list, tuple)):
        if not image:
            raise ImageError("the list of images is empty; pass None to ask without an image")
        return [load_image(one) for one in image]
    return [load_image(image)]  # type: ignore[arg-type]


def load_image(image: Picture) -> NDArray[np.uint8]:
    """Loads one picture: upright (EXIF), 8 bits per channel, transparency on white.

    Returns:
        C-contiguous uint8 array [H, W, 3]; of a video [frames, H, W, 3].

    Raises:
        ImageNotFoundError: The file does not exist.
        ImageError: It is not a picture that can be used.
    """
    if isinstance(image, Video):
        return _frames(image)
    if isinstance(image, np.ndarray):
        picture = _from_array(image)
    elif isinstance(image, Image.Image):
        picture = _to_rgb(image, "the image")
    elif isinstance(image, (bytes, bytearray, memoryview)):
        picture = _open(io.BytesIO(image), "the image's bytes")
    elif isinstance(image, (str, os.PathLike)):
        picture = _open(os.fspath(image), f"image {os.fspath(image)!s}")
    else:
        raise ImageError(
            f"an image is a path, bytes, a Pillow image or a uint8 array [H, W, 3], not {type(image).__name__}"
        )
    if 0 in picture.size:
        raise ImageError(f"the image is empty: {picture.width} x {picture.height} pixels")
    return np.ascontiguousarray(picture, dtype=np.uint8)


def _frames(video: Video) -> NDArray[np.uint8]:
    frames = [load_image(frame) for frame in video.frames]
    sizes = sorted({(frame.shape[-2], frame.shape[-3]) for frame in frames})
    if len(sizes) != 1 or frames[0].ndim != 3:
        found = ", ".join(f"{width} x {height}" for width, height in sizes)
        raise ImageError(f"a video has one frame or more, all pictures of one size, not {found or 'none'}")
    return np.stack(frames)


def _open(source: Any, name: str) -> Image.Image:
    try:
        with Image.open(source) as picture:
            return _to_rgb(picture, name)
    except FileNotFoundError:
        hint = "; addresses are not fetched, download it first" if "://" in str(source) else ""
        raise ImageNotFoundError(f"{name} does not exist{hint}") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not in a picture format that Pillow knows") from None
    except Image.DecompressionBombError as exc:
        raise ImageError(f"{name} is too large to be opened safely: {exc}") from exc
    except OSError as exc:
        raise ImageError(f"{name} cannot be read: {exc.strerror or exc}") from exc
    except (ValueError, SyntaxError, EOFError, IndexError, TypeError) as exc:  # Pillow's plugins on broken files
        if isinstance(exc, ImageError):
            raise
        raise ImageError(f"{name} is damaged: {exc}") from exc


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    """An upright RGB copy of a Pillow image; the original is not touched."""
    try:
        picture.load()
    except OSError as exc:
        raise ImageError(f"{name} cannot be read: {exc.strerror or exc}") from exc
    picture = _upright(picture)
    if picture.mode.startswith(("I", "F")):
        return _eight_bits(picture).convert("RGB")
    if picture.mode in _TRANSPARENT_MODES or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def _upright(picture: Image.Image) -> Image.Image:
    """Applies the EXIF orientation; damaged EXIF data counts as none, since the pixels are still good."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:
        return picture


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


def _from_array(array: NDArray[Any]) -> Image.Image:
    """A Pillow image of an array [H, W] (grey), [H, W, 1], [H, W, 3] or [H, W, 4] (RGBA)."""
    if array.dtype != np.uint8:
        raise ImageError(f"an image array holds uint8 values from 0 to 255, not {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(f"an image array has the shape [H, W], [H, W, 3] or [H, W, 4], not {list(array.shape)}")
    if 0 in array.shape:
        raise ImageError(f"the image array is empty: shape {list(array.shape)}")
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)), "the image array")
