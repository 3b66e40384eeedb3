"""Picture files made here, byte by byte or by Pillow, and the program that reads them as llama-server does."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import warnings
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pyaircache.errors import ImageError
from pyaircache.images import load_image

Pixels = NDArray[np.uint8]

SIZES = [(1, 1), (3, 5), (8, 8), (17, 9), (40, 33)]


class Dump:
    """picture-dump: one process for all files."""

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def decode(self, file: bytes) -> Pixels | str:
        """The picture's pixels, or why it is refused."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(struct.pack("<I", len(file)) + file)
        self.process.stdin.flush()
        read = self.process.stdout.read
        if read(1) == b"P":
            nx, ny = struct.unpack("<ii", read(8))
            return np.frombuffer(read(nx * ny * 3), np.uint8).reshape(ny, nx, 3)
        (size,) = struct.unpack("<I", read(4))  # fails when the process has ended
        return read(size).decode()


def as_chat(file: bytes) -> Pixels | None:
    """What Chat reads; None: it refuses the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return load_image(file)
        except ImageError:
            return None


def agree(dump: Dump, file: bytes, tolerance: float = 0, name: object = "") -> bool:
    """Checks that the file is refused or read as Chat does. True: it is read. tolerance: of the mean difference."""
    got = dump.decode(file)
    if isinstance(got, str):
        assert 0 < len(got) < 200
        return False
    want = as_chat(file)
    assert want is not None, f"{name}: Chat refuses it"
    assert got.shape == want.shape, name
    difference = np.abs(got.astype(int) - want)
    assert difference.mean() <= tolerance, f"{name}: differs by {difference.mean()} on average"
    assert tolerance or not difference.any(), name
    return True


def picture(nx: int, ny: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Colours that change smoothly, as in a photograph, with some text-like edges."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, [2, 2, 4], dtype=np.uint8)
    image = Image.fromarray(coarse, "RGBA").resize((nx, ny), Image.Resampling.BILINEAR)
    if nx > 8 and ny > 8:
        image.paste((0, 0, 0, 128), (2, 3, nx // 2, 6))
    return image.convert(mode)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def exif(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """EXIF data with nothing but an orientation. order: < or >; kind: 3 for SHORT, 4 for LONG."""
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *((orientation, 0) if kind == 3 else (orientation,)))
    entry = struct.pack(order + "HHI", 0x112, kind, 1) + value
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return b"Exif\0\0" + head + struct.pack(order + "H", 1) + entry + bytes(4)


def xmp(orientation: int, attribute: bool) -> bytes:
    text = f'tiff:Orientation="{orientation}"' if attribute else f"<tiff:Orientation>{orientation}</tiff:Orientation>"
    return f"<x:xmpmeta xmlns:x='adobe:ns:meta/'>{text}</x:xmpmeta>".encode()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


KINDS = (
    [(0, d) for d in (1, 2, 4, 8, 16)] + [(3, d) for d in (1, 2, 4, 8)] + [(c, d) for c in (2, 4, 6) for d in (8, 16)]
)
"""Colour types of PNG files, and bits."""


def png(
    color: int, depth: int, size: tuple[int, int], laced: bool, before: bytes = b"", palette: int = 0, seed: int = 0
) -> bytes:
    """A PNG with random pixels, packed with random filters."""
    rng = random.Random(seed)
    nx, ny = size
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    steps = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    raw = b""
    for x0, y0, dx, dy in steps if laced else [(0, 0, 1, 1)]:
        across, down = -(-(nx - x0) // dx), -(-(ny - y0) // dy)
        for _ in range(down if across > 0 else 0):
            raw += bytes([rng.randrange(5)]) + rng.randbytes((across * channels * depth + 7) // 8)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", nx, ny, depth, color, 0, 0, laced))
    if color == 3:
        file += chunk(b"PLTE", rng.randbytes(3 * (palette or 2**depth)))
    return file + before + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data
