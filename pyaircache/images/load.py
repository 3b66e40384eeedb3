"""From whatever stands for a picture to its pixels."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..checks import flag, named, path, shown
from ..errors import ArgumentError, ImageError, ImageNotFoundError, PyAircacheError
from . import arrays, heic, pdf, tiff, urls
from .kinds import File, Pages, Picture, Video
from .limits import RequestBudget, check_size
from .pixels import to_rgb

_HEAD = 1024  # bytes at a file's beginning that tell its format
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def load_images(image: Picture | Sequence[Picture] | None, *, urls: bool = False) -> list[NDArray[np.uint8]]:
    """Loads one picture or a list of them: upright (EXIF), 8 bits a channel, transparency on white.

    A PDF and a TIFF are one picture a page; of an animation (GIF, WebP, PNG) the first frame is taken. A file object
    is read from its beginning, if it can be rewound. A Pillow image is the frame that it shows.

    Args:
        image: A picture, a list or tuple of pictures, or None.
        urls: Whether a text that begins with http:// or https:// is fetched, from public addresses only.

    Returns:
        C-contiguous uint8 arrays [H, W, 3], of a video [frames, H, W, 3], in order; empty for None.

    Raises:
        ImageNotFoundError: A file does not exist.
        ImageError: Something is not a picture that can be used, is too large, or the list is empty.
    """
    return Loader(flag("urls", urls))(image)


class Loader:
    """Loads the pictures of one request, as `load_images` does: all its calls together may give 2^28 pixels.

    Args:
        urls: Whether addresses are fetched.
        check: Called before and after each picture; what it raises ends the loading.
    """

    def __init__(self, urls: bool = False, check: Callable[[], object] = lambda: None) -> None:
        self.urls, self._check, self._budget = urls, check, RequestBudget()

    def __call__(self, image: Picture | Sequence[Picture] | None) -> list[NDArray[np.uint8]]:
        """The pictures; see `load_images`."""
        if image is None:
            return []
        if not isinstance(image, (list, tuple)):
            return self.one(image)  # type: ignore[arg-type]
        if not image:
            raise ImageError("the list of images is empty; pass None to ask without an image")
        return [array for one in image for array in self.one(one)]

    def one(self, image: Picture) -> list[NDArray[np.uint8]]:
        """The pictures that one thing stands for."""
        self._check()
        found = _load(image, self)
        self._check()
        return found

    def rgb(self, picture: Image.Image, name: str) -> Image.Image:
        """An upright RGB copy of a picture, if there is room for it."""
        check_size(name, picture.width, picture.height)
        self._budget.take(name, picture.width, picture.height)
        return to_rgb(picture)


def readable_again(image: Any) -> Any:
    """The same picture without file objects, which may be closed or at their end later: their bytes instead.

    One that cannot be read stays as it is: the loading says why.
    """
    try:
        if isinstance(image, Pages):
            held = readable_again(image.file)
            return image if held is image.file else Pages(held, image.pages, dpi=image.dpi, password=image.password)
        if isinstance(image, Video):
            return Video([readable_again(frame) for frame in image.frames])
        known = isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray, Image.Image))
        return image if known or not _can_be_read(image) else _from_object(image)
    except Exception:  # whatever a file object of the caller's own raises
        return image


def load_image(image: Picture, *, urls: bool = False) -> NDArray[np.uint8]:
    """Loads one picture, as `load_images` does.

    Returns:
        C-contiguous uint8 array [H, W, 3]; of a video [frames, H, W, 3].

    Raises:
        ImageNotFoundError: The file does not exist.
        ImageError: It is not a picture that can be used, or it is several.
    """
    found = Loader(flag("urls", urls)).one(image)
    if len(found) > 1:
        raise ImageError(f"one picture is needed, but this file has {len(found)} pages; choose one: Pages(file, 0)")
    return found[0]


def _load(image: Picture, loader: Loader) -> list[NDArray[np.uint8]]:
    """The pictures that one thing stands for."""
    if isinstance(image, Video):
        return [_frames(image, loader)]
    name = _name(image.file if isinstance(image, Pages) else image)
    try:
        return [np.ascontiguousarray(picture, dtype=np.uint8) for picture in _pictures(image, name, loader)]
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


def _name(image: object) -> str:
    """What messages call it."""
    if isinstance(image, np.ndarray):
        return "the image array"
    if isinstance(image, (bytes, bytearray, memoryview)):
        return "the image's bytes"
    if isinstance(image, str) and image[:5].lower() == "data:":
        return "the image's data URI"
    if isinstance(image, (str, os.PathLike)):
        try:
            return f"image {named(path('an image', image))}"
        except ArgumentError:  # which says it, when the file is to be opened
            return "the image"
    return "the image's file object" if _can_be_read(image) else "the image"


def _can_be_read(image: object) -> bool:
    """Whether it is a file object."""
    try:
        return callable(getattr(image, "read", None))
    except Exception:  # of a class of the caller's own
        return False


def _pictures(image: Any, name: str, loader: Loader) -> Iterator[Image.Image]:
    """RGB pictures."""
    if isinstance(image, np.ndarray):
        yield loader.rgb(arrays.from_array(image), name)
    elif isinstance(image, Image.Image):
        yield loader.rgb(image, name)
    elif isinstance(image, Pages):
        yield from _from_file(image.file, name, image, loader)
    elif not _can_be_read(image) and arrays.is_tensor(image):
        raise arrays.refused_tensor(image)
    else:
        yield from _from_file(image, name, None, loader)


def _from_file(file: File, name: str, pages: Pages | None, loader: Loader) -> Iterator[Image.Image]:
    if isinstance(file, (bytes, bytearray, memoryview)):
        yield from _decoded(io.BytesIO(bytes(file)), name, pages, loader)
    elif isinstance(file, str) and file[:5].lower() == "data:":
        yield from _decoded(io.BytesIO(_from_uri(file)), name, pages, loader)
    elif isinstance(file, str) and urls.is_url(file):
        yield from _decoded(io.BytesIO(urls.fetch(file, loader.urls)), name, pages, loader)
    elif isinstance(file, (str, os.PathLike)):
        with _opened(path("an image", file)) as opened:
            yield from _decoded(opened, name, pages, loader)
    elif _can_be_read(file):
        yield from _decoded(io.BytesIO(_from_object(file)), name, pages, loader)
    else:
        raise ImageError(
            "an image is a path, a data URI, bytes, a file opened in binary mode, a Pillow image, a uint8 array "
            f"[H, W, 3], Pages or a Video, or a list of these, not {type(file).__name__}"
        )


def _opened(file_path: str) -> BinaryIO:
    try:
        return open(file_path, "rb")
    except FileNotFoundError:
        hint = "; of addresses only http:// and https:// are known" if _SCHEME.match(file_path) else ""
        raise ImageNotFoundError(f"image {named(file_path)} does not exist{hint}") from None


def _decoded(file: BinaryIO, name: str, pages: Pages | None, loader: Loader) -> Iterator[Image.Image]:
    """The pictures in an open file."""
    try:
        picture = Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        head = file.read(_HEAD)
        file.seek(0)
        if pdf.is_pdf(head):
            yield from (loader.rgb(page, name) for page in pdf.pages(file, name, pages))
        elif heic.is_heic(head):
            _refuse_pages(pages, name)
            yield loader.rgb(heic.open_file(file, name), name)
        else:
            raise ImageError(f"{name} is not in a picture format that Pillow knows, and is no PDF") from None
        return
    with picture:
        if picture.format == "EPS":  # a program: Pillow would start Ghostscript for it
            raise ImageError(f"{name} is PostScript, which is not run; make a PDF or a PNG of it")
        if picture.format == "TIFF":
            yield from (loader.rgb(page, name) for page in tiff.pages(picture, name, pages))
        else:
            _refuse_pages(pages, name)
            yield loader.rgb(picture, name)


def _refuse_pages(pages: Pages | None, name: str) -> None:
    if pages is not None:
        raise ImageError(f"{name} has no pages; Pages are of a PDF or a TIFF")


def _frames(video: Video, loader: Loader) -> NDArray[np.uint8]:
    frames = [array for frame in video.frames for array in loader.one(frame)]
    sizes = sorted({(frame.shape[-2], frame.shape[-3]) for frame in frames})
    if len(sizes) != 1 or frames[0].ndim != 3:
        found = ", ".join(f"{width} x {height}" for width, height in sizes[:8])
        raise ImageError(f"a video has one frame or more, all pictures of one size, not {found or 'none'}")
    return np.stack(frames)


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


def _from_object(file: Any) -> bytes:
    """What a file object holds, from its beginning if it can be rewound (Pillow does the same)."""
    if isinstance(file, io.TextIOBase):  # whose read() would stumble over bytes that are no text
        raise ImageError("the image's file object is opened as text; open the file in binary mode ('rb')")
    seekable = getattr(file, "seekable", None)
    if callable(seekable) and seekable():
        file.seek(0)
    data = file.read()
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ImageError(f"the image's file object gives {type(data).__name__}; open the file in binary mode ('rb')")
    return bytes(data)
