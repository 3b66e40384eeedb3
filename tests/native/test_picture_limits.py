"""Pictures that are large, or say so: refused before they are unpacked, in memory that follows the file."""

from __future__ import annotations

import re
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from picture_files import KINDS, Dump, agree, chunk, picture, png, saved
from PIL import Image, features


def test_bombs_are_refused_before_they_are_unpacked(dump: Dump) -> None:
    head = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 6, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    files = [b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body]
    files += [b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + b"\x2c" + bytes(9)]
    files += [b"BM" + struct.pack("<IIIIiiHHIIIIII", 0, 0, 54, 40, 2**31 - 1, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0)]
    jpeg = saved(picture(8, 8, "L"), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    files += [jpeg[:at] + b"\xff\xff\xff\xff" + jpeg[at + 4 :]]
    for file in files:
        assert "pixels" in str(dump.decode(file)) or "size" in str(dump.decode(file))


def large_in_name_only() -> dict[str, bytes]:
    """Files of some dozens or hundreds of bytes whose headers speak of 8192 x 8192 pixels, which are not there."""
    n = 8192
    res = {}
    for color, depth in KINDS:
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", n, n, depth, color, 0, 0, 0))
        head += chunk(b"PLTE", bytes(3)) if color == 3 else b""
        for packed in (b"", zlib.compress(bytes(4096))):
            name = f"PNG {color} {depth} {len(packed)}"
            res[name] = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    for options in ({}, {"progressive": True}):
        for mode in ("L", "RGB", "CMYK"):
            file = saved(picture(8, 8, mode), "JPEG", **options)
            at = re.search(rb"\xff[\xc0\xc2]\0[\x0b\x11\x14]\x08", file).end()
            res[f"JPEG {mode} {options}"] = file[:at] + struct.pack(">HH", n, n) + file[at + 4 :]
    gif = saved(picture(8, 8, "L"), "GIF")
    at = gif.index(b"\x2c" + bytes(4)) + 5
    res["GIF"] = gif[:6] + struct.pack("<HH", n, n) + gif[10:at] + struct.pack("<HH", n, n) + gif[at + 4 :]
    for depth in (1, 4, 8, 24, 32):
        head = struct.pack("<IIIIiiHHIIIIII", 0, 0, 54 + 1024, 40, n, -n, 1, depth, 0, 0, 0, 0, 0, 0)
        res[f"BMP {depth}"] = b"BM" + head + bytes(2048)
    if features.check("webp"):
        webp = saved(picture(8, 8), "WEBP", lossless=True)
        bits = struct.pack("<I", (n - 1) << 14 | (n - 1))  # the size, of 14 bits each, behind the signature 0x2f
        at = webp.index(b"VP8L") + 9
        res["WebP lossless"] = webp[:at] + bits + webp[at + 4 :]
        webp = saved(picture(8, 8), "WEBP")
        at = webp.index(b"\x9d\x01\x2a") + 3
        res["WebP lossy"] = webp[:at] + struct.pack("<HH", n, n) + webp[at + 4 :]
    return res


def peak_kb(process: subprocess.Popen[bytes]) -> int:
    """The most memory that a process has had."""
    (line,) = [x for x in Path(f"/proc/{process.pid}/status").read_text().splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_follows_the_file_not_its_header(program: Callable[[str], Path]) -> None:
    own = Dump(program("picture-dump"))  # its peak would show what other tests needed
    assert isinstance(own.decode(png(2, 8, (5, 5), False)), np.ndarray)
    before = peak_kb(own.process)
    for name, file in large_in_name_only().items():
        assert len(file) < 4096
        assert isinstance(own.decode(file), str), name
        assert peak_kb(own.process) - before < 30 * 1024, name
    own.process.communicate()
    assert own.process.returncode == 0


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("GIF", {}), ("JPEG", {}), ("JPEG", {"progressive": True})])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_large_plain_picture_is_still_read(dump: Dump, kind: str, options: dict[str, bool], mode: str) -> None:
    """The shortest files that there are of their size."""
    image = Image.new(mode, (1024, 1024), 77 if mode == "L" else (77, 3, 99))
    for quality in (1, 100):
        more = {"quality": quality, **options} if kind == "JPEG" else {}
        assert agree(dump, saved(image, kind, **more), tolerance=2 if kind == "JPEG" else 0)


@pytest.mark.usefixtures("webp")
@pytest.mark.parametrize("lossless", [False, True])
def test_a_large_plain_webp(dump: Dump, lossless: bool) -> None:
    assert agree(dump, saved(Image.new("RGB", (1920, 1080), (77, 3, 99)), "WEBP", lossless=lossless))


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_no_pixels(dump: Dump, size: tuple[int, int]) -> None:
    assert isinstance(dump.decode(png(2, 8, size, False)), str)
