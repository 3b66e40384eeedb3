"""The server's decoders of pictures (native/server/pictures) against Pillow: the same pixels, or a refusal.

Nothing is read differently from what ``Chat`` reads, and what ``Chat`` refuses is refused. PNG, GIF, BMP and WebP agree
exactly; JPEG decoders round differently.
"""

from __future__ import annotations

import io
import random
import re
import struct
import subprocess
import warnings
import zlib
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

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


@pytest.fixture(scope="module")
def dump(program: Callable[[str], Path]) -> Iterator[Dump]:
    """The program, and that it is there in the end."""
    dump = Dump(program("picture-dump"))
    yield dump
    assert dump.process.stdin and dump.process.stdout
    dump.process.stdin.close()
    assert dump.process.wait(30) == 0
    dump.process.stdout.close()


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


# --- PNG --------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


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


KINDS = (
    [(0, d) for d in (1, 2, 4, 8, 16)] + [(3, d) for d in (1, 2, 4, 8)] + [(c, d) for c in (2, 4, 6) for d in (8, 16)]
)


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


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


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


@pytest.fixture(scope="module")
def webp(dump: Dump) -> None:
    if "not read by this build" in str(dump.decode(saved(picture(4, 4), "WEBP"))):
        pytest.skip("built without libwebp")


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


# --- sizes ------------------------------------------------------------------------------------------------------------


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
