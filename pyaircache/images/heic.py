"""HEIC, the format of telephones' photographs; with the extra ``pyaircache[heic]``."""

from __future__ import annotations

from typing import BinaryIO

from PIL import Image

from ..errors import ImageError
from .limits import check_size

_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"}


def is_heic(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    return head[4:8] == b"ftyp" and head[8:12] in _BRANDS


def open_file(file: BinaryIO, name: str) -> Image.Image:
    """Its main picture, upright.

    Raises:
        ImageError: The extra is not installed, or the picture is too large.
    """
    try:
        import pillow_heif
    except ImportError:
        raise ImageError(f"{name} is HEIC, for which pillow-heif is needed: pip install 'pyaircache[heic]'") from None
    heif = pillow_heif.open_heif(file, convert_hdr_to_8bit=True)
    check_size(name, *heif.size)
    return heif.to_pillow()
