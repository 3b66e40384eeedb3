"""Pictures in, uint8 RGB arrays [H, W, 3] out."""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from .checks import named, path, shown
from .errors import ArgumentError, ImageError, ImageNotFoundError, PyAircacheError


class Video:
    """Frames of one video, for ``Chat.ask``: a model that knows videos spends fewer tokens on each than on a picture.

    Others read the frames as that many pictures.

    Args:
        frames: Pictures of one size, in any form that ``Chat.ask`` takes, as a list or another iterable, which is read
            here; an array [frames, H, W, 3] is a list of them.

    Raises:
        ImageError: It is no iterable of pictures, such as the name of a video file, which is not decoded.
    """

    def __init__(self, frames: Iterable[Picture]) -> None:
        if isinstance(frames, (str, bytes, bytearray, memoryview, os.PathLike, set, frozenset, dict)):
            raise ImageError(f"a Video is made of its frames, a list of pictures in order, not of {shown(frames)}")
        try:
            self.frames = list(frames)
        except Exception:  # whatever an iterable of the caller's own raises
            raise ImageError(f"a Video is made of its frames, a list of pictures, not of {shown(frames)}") from None


Picture = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[np.uint8] | Video
"""One picture: a path, a data URI, a file's bytes, a file opened in binary mode, a Pillow image, an array [H, W],
[H, W, 3] or [H, W, 4], a Video."""

_TRANSPARENT_MODES = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
_MOST_PIXELS = 1 << 28  # the engine's limit


def load_images(image: Picture | Sequence[Picture] | None) -> list[NDArray[np.uint8]]:
    """Loads one picture or a list of them.

    Args:
        image: A picture, a list or tuple of pictures, or None.

    Returns:
        C-contiguous uint8 arrays [H, W, 3], of a video [frames, H, W, 3], in order; empty for None.

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

    A file object is read from its beginning, if it can be rewound.

    Returns:
        C-contiguous uint8 array [H, W, 3]; of a video [frames, H, W, 3].

    Raises:
        ImageNotFoundError: The file does not exist.
        ImageError: It is not a picture that can be used.
    """
    if isinstance(image, Video):
        return _frames(image)
    name = "the image"
    try:
        if isinstance(image, np.ndarray):
            name = "the image array"
            picture = _from_array(image)
        elif isinstance(image, Image.Image):
            picture = _to_rgb(image)
        elif isinstance(image, (bytes, bytearray, memoryview)):
            name = "the image's bytes"
            picture = _open(io.BytesIO(bytes(image)), name)
        elif isinstance(image, str) and image[:5].lower() == "data:":
            name = "the image's data URI"
            picture = _open(io.BytesIO(_from_uri(image)), name)
        elif isinstance(image, (str, os.PathLike)):
            name = "the image's path"
            file = path("an image", image)
            name = f"image {named(file)}"
            picture = _open(file, name)
        elif callable(getattr(image, "read", None)):
            name = "the image's file object"
            picture = _open(io.BytesIO(_from_file(image)), name)
        else:
            raise ImageError(
                "an image is a path, a data URI, bytes, a file opened in binary mode, a Pillow image or a uint8 array "
                f"[H, W, 3], or a list of these, not {type(image).__name__}"
            )
        if 0 in picture.size:
            raise ImageError(f"{name} is empty: {picture.width} x {picture.height} pixels")
        return np.ascontiguousarray(picture, dtype=np.uint8)
    except ArgumentError as exc:
        raise ImageError(str(exc)) from None
    except PyAircacheError:
        raise
    except Image.DecompressionBombError as exc:
        raise ImageError(f"{name} is too large to be opened safely: {exc}") from exc
    except MemoryError:
        raise ImageError(f"{name} does not fit into memory") from None
    except OSError as exc:
        raise ImageError(f"{name} cannot be read: {exc.strerror or exc}") from exc
    except Exception as exc:
        # Pillow's plugins raise anything on broken files, and so do classes of the caller's own
        raise ImageError(f"{name} is damaged or cannot be used: {exc or type(exc).__name__}") from exc


def _frames(video: Video) -> NDArray[np.uint8]:
    frames = [load_image(frame) for frame in video.frames]
    sizes = sorted({(frame.shape[-2], frame.shape[-3]) for frame in frames})
    if len(sizes) != 1 or frames[0].ndim != 3:
        found = ", ".join(f"{width} x {height}" for width, height in sizes[:8])
        raise ImageError(f"a video has one frame or more, all pictures of one size, not {found or 'none'}")
    return np.stack(frames)


def _open(source: str | BinaryIO, name: str) -> Image.Image:
    try:
        with Image.open(source) as picture:
            return _to_rgb(picture)
    except FileNotFoundError:
        hint = "; addresses are not fetched, download it first" if "://" in str(source) else ""
        raise ImageNotFoundError(f"{name} does not exist{hint}") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not in a picture format that Pillow knows") from None


def _from_uri(uri: str) -> bytes:
    """The bytes of a data URI; of base64 both alphabets are taken, line breaks and a missing padding too."""
    head, comma, data = uri.partition(",")
    if not comma:
        raise ImageError(f"a data URI is of the form data:image/png;base64,..., got {shown(uri)}")
    raw = unquote_to_bytes(data)
    if not head.lower().rstrip().endswith(";base64"):
        return raw
    digits = b"".join(raw.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except binascii.Error as exc:
        raise ImageError(f"the image's data URI is not valid base64: {exc}") from None


def _from_file(file: Any) -> bytes:
    """What a file object holds, from its beginning if it can be rewound (Pillow does the same)."""
    seekable = getattr(file, "seekable", None)
    if callable(seekable) and seekable():
        file.seek(0)
    data = file.read()
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ImageError(f"the image's file object gives {type(data).__name__}; open the file in binary mode ('rb')")
    return bytes(data)


def _to_rgb(picture: Image.Image) -> Image.Image:
    """An upright RGB copy of a Pillow image; the original is not touched."""
    if picture.width * picture.height > _MOST_PIXELS:
        raise ImageError(f"the image has {picture.width} x {picture.height} pixels; at most 2^28 in all are taken")
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


def _from_array(array: NDArray[Any]) -> Image.Image:
    """A Pillow image of an array [H, W] (grey), [H, W, 1], [H, W, 3] or [H, W, 4] (RGBA)."""
    if array.dtype != np.uint8:
        raise ImageError(f"an image array holds uint8 values from 0 to 255, not {shown(str(array.dtype))}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(f"an image array has the shape [H, W], [H, W, 3] or [H, W, 4], not {list(array.shape)}")
    if 0 in array.shape:
        raise ImageError(f"the image array is empty: shape {list(array.shape)}")
    if array.shape[0] * array.shape[1] > _MOST_PIXELS:
        raise ImageError(f"the image array has the shape {list(array.shape)}; at most 2^28 pixels are taken")
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)))
