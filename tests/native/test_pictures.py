"""The server's decoders of pictures (native/server/pictures) against Pillow: the same pixels, or a refusal.

Nothing is read differently from what ``Chat`` reads, and what ``Chat`` refuses is refused. PNG, GIF, BMP and WebP agree
exactly; JPEG decoders round differently.
"""

from __future__ import annotations

import random
import struct
import zlib
from itertools import product

import numpy as np
import pytest
from picture_files import KINDS, SIZES, Dump, agree, chunk, exif, picture, png, saved, segment, xmp
from PIL import Image

# --- PNG --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("color", "depth"), KINDS)
def test_png(dump: Dump, color: int, depth: int) -> None:
    for size, laced in product(SIZES, (False, True)):
        assert agree(dump, png(color, depth, size, laced), name=(size, laced))
        if color == 3:
            alphas = [bytes([0]), bytes([255, 0]), bytes([255, 7, 128, 0]), bytes(range(2**depth))]
            files = [png(color, depth, size, laced, chunk(b"tRNS", a)) for a in alphas]
        else:
            keys = [bytes(6), b"\0\1" * 3, b"\0\3" * 3, b"\0\xff" * 3, b"\xff\xff" * 3]
            files = [png(color, depth, size, laced, chunk(b"tRNS", k[: 6 if color == 2 else 2])) for k in keys]
        for i, file in enumerate(files):
            assert agree(dump, file, name=(size, laced, i))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_png_as_pillow_writes_it(dump: Dump, mode: str) -> None:
    for size in SIZES:
        image = picture(*size).convert("I").convert("I;16") if mode == "I;16" else picture(*size, mode)
        assert agree(dump, saved(image, "PNG"))
        if mode in ("L", "P", "RGB"):
            some = image.getpixel((0, 0))
            assert agree(dump, saved(image, "PNG", transparency=some))


def test_png_that_moves(dump: Dump) -> None:
    frames = [picture(12, 10, seed=i) for i in range(3)]
    assert agree(dump, saved(frames[0], "PNG", save_all=True, append_images=frames[1:]))
    first = saved(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    assert agree(dump, first)


# --- JPEG -------------------------------------------------------------------------------------------------------------

JPEG = 1.5  # mean difference of decoders that round differently


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg(dump: Dump, mode: str, progressive: bool) -> None:
    restarts: list[dict[str, int]] = [{}, {"restart_marker_blocks": 1}, {"restart_marker_rows": 1}]
    for size, subsampling, quality, restart in product(SIZES, (0, 1, 2), (30, 95), restarts):
        options = {"quality": quality, "progressive": progressive, "subsampling": subsampling, **restart}
        tolerance = JPEG * max(1, 16 / size[0])  # stb_image weighs the last column but one differently
        read = agree(dump, saved(picture(*size, mode), "JPEG", **options), tolerance, (size, options))
        assert read or (size == (3, 5) and subsampling), (size, options)


def test_jpeg_kinds(dump: Dump) -> None:
    file = saved(picture(40, 33), "JPEG")
    assert agree(dump, file + b"behind the end", JPEG)
    assert agree(dump, file[:2] + b"\xff" * 5 + file[2:], JPEG)
    assert agree(dump, file[:2] + segment(0xFE, b"a comment") + file[2:], JPEG)
    bare = file[:2] + file[2 + 2 + struct.unpack(">H", file[4:6])[0] :]  # without JFIF
    for transform in (0, 1):
        agree(dump, bare[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform])) + bare[2:], JPEG)
    for marker in (0xC1, 0xC3, 0xC9, 0xCA):  # extended, lossless, arithmetic
        agree(dump, file.replace(b"\xff\xc0", bytes([0xFF, marker])), JPEG)
    twelve = file.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")
    assert "12 bits" in str(dump.decode(twelve))
    assert "cut" in str(dump.decode(file[:-2]))
    cmyk = saved(picture(8, 8, "CMYK"), "JPEG")
    assert not agree(dump, cmyk.replace(b"Adobe", b"adobe"), JPEG)


# --- GIF, BMP, WebP, others -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("laced", [0, 1])
def test_gif(dump: Dump, laced: int) -> None:
    for size, mode in product(SIZES, ["1", "L", "P", "RGB", "RGBA"]):
        image = picture(*size, mode)
        assert agree(dump, saved(image, "GIF", interlace=laced))
        if mode != "RGBA":
            image = image.convert("P")
            assert agree(dump, saved(image, "GIF", interlace=laced, transparency=image.getpixel((0, 0))))
    noise = Image.fromarray(
        np.random.default_rng(1).integers(0, 256, [120, 150], dtype=np.uint8)
    )  # fills the LZW table
    assert agree(dump, saved(noise, "GIF", interlace=laced))
    frames = [picture(12, 10, seed=i) for i in range(3)]
    assert agree(dump, saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))


def test_bmp(dump: Dump) -> None:
    for size, mode in product(SIZES, ["1", "L", "P", "RGB"]):
        file = saved(picture(*size, mode), "BMP")
        assert agree(dump, file)
        upside_down = file[:22] + struct.pack("<i", -size[1]) + file[26:]
        assert agree(dump, upside_down)
    agree(dump, saved(picture(8, 8, "RGBA"), "BMP"))


@pytest.mark.usefixtures("webp")
def test_webp(dump: Dump) -> None:
    for size, mode, lossless in product(SIZES, ["L", "RGB", "RGBA"], [False, True]):
        assert agree(dump, saved(picture(*size, mode), "WEBP", lossless=lossless), name=(size, mode, lossless))
    frames = [picture(12, 10, "RGBA", seed=i) for i in range(3)]
    assert agree(dump, saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "TGA", "ICO", "JPEG2000", "PCX", "AVIF", "SGI", "DDS"])
def test_other_formats_are_refused(dump: Dump, kind: str) -> None:
    got = dump.decode(saved(picture(16, 16), kind))
    assert isinstance(got, str) and "send PNG or JPEG" in got


@pytest.mark.parametrize("file", [b"", b"\x89PNG", b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP", b"hello"])
def test_next_to_nothing(dump: Dump, file: bytes) -> None:
    assert isinstance(dump.decode(file), str)


# --- orientation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(10))
def test_orientation(dump: Dump, orientation: int) -> None:
    image = picture(23, 14)
    for order, kind in product("<>", (3, 4)):
        data = exif(orientation, order, kind)
        assert agree(dump, saved(image, "JPEG", exif=data), JPEG)
        assert agree(dump, saved(image, "PNG", exif=data))
        agree(dump, saved(image, "WEBP", lossless=True, exif=data))
    for attribute in (True, False):
        data = xmp(orientation, attribute)
        assert agree(dump, saved(image, "JPEG", xmp=data), JPEG)
        assert agree(dump, saved(image, "JPEG", xmp=data, exif=exif(3)), JPEG)
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + data
        packed = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(data)
        for one in (text, packed):
            assert agree(dump, png(2, 8, (9, 5), False, chunk(b"iTXt", one)))
        agree(dump, saved(image, "WEBP", lossless=True, xmp=data))
    raw = exif(orientation)
    magick = f"\nexif\n{len(raw):8}\n{raw.hex()}\n".encode()
    for name, body in ((b"tEXt", magick), (b"zTXt", b"\0" + zlib.compress(magick))):
        assert agree(dump, png(2, 8, (9, 5), False, chunk(name, b"Raw profile type exif\0" + body)))


def test_damaged_exif_counts_as_none(dump: Dump) -> None:
    image = picture(23, 14)
    good = exif(6)
    rng = random.Random(0)
    for i in range(len(good)):
        assert agree(dump, saved(image, "JPEG", exif=good[: max(i, 6)]), JPEG, i)
        damaged = bytearray(good)
        damaged[max(i, 6)] = rng.randrange(256)
        assert agree(dump, saved(image, "JPEG", exif=bytes(damaged)), JPEG, bytes(damaged))
        assert agree(dump, png(2, 8, (9, 5), False, chunk(b"eXIf", bytes(damaged[6:]))))


# --- cut and damaged files --------------------------------------------------------------------------------------------


def small_files() -> dict[str, bytes]:
    image = picture(19, 13)
    files = {f"PNG {c} {d}": png(c, d, (11, 7), c == 2) for c, d in ((0, 1), (2, 8), (3, 2), (6, 16))}
    files |= {f"JPEG {mode}": saved(image.convert(mode), "JPEG") for mode in ("L", "RGB", "CMYK")}
    files["JPEG progressive"] = saved(image, "JPEG", progressive=True)
    files["JPEG restart"] = saved(image, "JPEG", restart_marker_blocks=1)
    files["GIF"] = saved(image, "GIF")
    files["BMP"] = saved(image.convert("P"), "BMP")
    files["WebP"] = saved(image, "WEBP", lossless=True)
    return files


@pytest.mark.parametrize("name", small_files())
def test_cut_files(dump: Dump, name: str) -> None:
    """Cut anywhere, also where an end was put behind the cut."""
    file = small_files()[name]
    tolerance = JPEG if "JPEG" in name else 0
    read = 0
    for n in range(len(file)):
        read += agree(dump, file[:n], tolerance, n)
        agree(dump, file[:n] + b"\xff\xd9", tolerance, n)
    assert read == 0 or name == "GIF"  # whose last byte says only that no other frame follows


def without_tables(file: bytes) -> list[int]:
    """Offsets of a JPEG file outside of its tables: values that no encoder writes overflow differently."""
    offsets, at = [0, 1], 2
    while file[at : at + 2] != b"\xff\xda":
        size = 2 + struct.unpack(">H", file[at + 2 : at + 4])[0]
        offsets += range(at, at + (4 if file[at + 1] in (0xDB, 0xC4) else size))
        at += size
    return offsets + list(range(at, len(file)))


@pytest.mark.parametrize("name", small_files())
def test_damaged_files(dump: Dump, name: str) -> None:
    file = small_files()[name]
    rng = random.Random(name)
    offsets = without_tables(file) if "JPEG" in name else range(len(file))
    for _ in range(400):
        damaged = bytearray(file)
        for _ in range(rng.choice([1, 1, 2, 5])):
            damaged[rng.choice(offsets)] = rng.choice([0, 255, 0xD9, rng.randrange(256)])
        agree(dump, bytes(damaged), 6.0 if "JPEG" in name else 0, bytes(damaged))
