"""What can stand for a picture."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..checks import between, shown, whole
from ..errors import ArgumentError, ImageError
from .limits import MAX_PAGE_NUMBER, MAX_PAGES

File = str | os.PathLike[str] | bytes | BinaryIO
"""A picture's file: a path, a data URI, where allowed an address, the bytes, a file opened in binary mode."""


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


class Pages:
    """Chosen pages of a PDF or of a TIFF, each of them one picture, for ``Chat.ask``.

    ::

        chat.ask(Pages("report.pdf", [0, 2]), "What changed?")

    Args:
        file: The PDF or TIFF: a path, its bytes, a file opened in binary mode or a data URI.
        pages: Which ones, in the order that the model is to see them: 0 is the first, -1 the last one; a single number
            or several; None: all of them. At most 100 at once, with 2^28 pixels together.
        dpi: Pixels per inch that a PDF's pages are drawn with, from 10 to 1200. A TIFF has its own pixels.
        password: Of an encrypted PDF.

    Raises:
        ArgumentError: A value is outside its limits.
    """

    def __init__(
        self, file: File, pages: int | Iterable[int] | None = None, *, dpi: float = 150.0, password: str | None = None
    ) -> None:
        self.file = file
        self.pages = None if pages is None else _chosen(pages)
        self.dpi = between("dpi", dpi, 10.0, 1200.0)
        if password is not None and not isinstance(password, str):
            raise ArgumentError("password must be a text")
        self.password = password

    def __repr__(self) -> str:
        return f"Pages({shown(self.file)}, {self.pages}, dpi={self.dpi:g})"


def _chosen(pages: int | Iterable[int]) -> tuple[int, ...]:
    """Page numbers, checked."""
    listed: list[object]
    if isinstance(pages, (str, bytes, bool)):
        raise ArgumentError(f"pages must be page numbers such as [0, 2], got {shown(pages)}")
    if isinstance(pages, Iterable):
        listed = []
        for page in pages:  # which may not end
            listed.append(page)
            if len(listed) > MAX_PAGES:
                raise ArgumentError(f"pages must be at most {MAX_PAGES} page numbers, got more")
    else:
        listed = [pages]
    if not listed:
        raise ArgumentError("pages must be one page number or more, or None for all of them; got none")
    return tuple(whole("a page number", page, -MAX_PAGE_NUMBER, MAX_PAGE_NUMBER - 1) for page in listed)


Picture = File | Image.Image | NDArray[np.uint8] | Pages | Video
"""One picture: a path, a data URI, an address where allowed, a file's bytes, a file opened in binary mode, a Pillow
image, an array [H, W], [H, W, 3] or [H, W, 4], a Video. Pages, and a PDF or TIFF file, are one picture a page."""
