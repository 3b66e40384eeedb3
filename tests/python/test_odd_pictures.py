"""Pictures of every mode and kind, damaged and too large ones."""

from __future__ import annotations

import base64
import io
import pathlib

import numpy as np
import pytest
from odd_things import PICTURE, encoded, tried
from PIL import Image

import pyaircache
from pyaircache import (
    images,
)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr",
                                  "HSV", "LAB", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"])  # fmt: skip
def test_every_mode_is_read(mode):
    picture = Image.new(mode, (6, 4))
    assert images.load_image(picture).shape == (4, 6, 3)


@pytest.mark.parametrize("mode", ["La", "LA", "RGBa", "PA", "L", "HSV", "CMYK", "LAB"])
def test_modes_show_the_same_picture(mode):
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        other = ImageCms.profileToProfile(PICTURE, *profiles, outputMode="LAB")
    else:
        between = {"La": "LA", "RGBa": "RGBA"}.get(mode)
        other = (PICTURE.convert(between) if between else PICTURE).convert(mode)
    difference = images.load_image(other).astype(int) - np.asarray(PICTURE)
    assert np.abs(difference).mean() < (10 if mode == "PA" else 4)  # a palette has 256 colours


def test_file_objects_and_data_uris(tmp_path):
    data = encoded()
    path = tmp_path / "page.png"
    path.write_bytes(data)
    file = io.BytesIO(data)
    file.seek(0, io.SEEK_END)
    coded = base64.b64encode(data)
    urlsafe = base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    broken_lines = base64.encodebytes(data).decode()
    with path.open("rb") as on_disk:
        for source in (
            file, file, on_disk, io.BufferedReader(io.BytesIO(data)), "data:image/png;base64," + coded.decode(),
            "DATA:;BASE64," + urlsafe, "data:image/png;name=a;base64," + broken_lines,
            "data:image/png," + "".join(f"%{byte:02x}" for byte in data), memoryview(data + b"x")[:-1],
            memoryview(bytes(2 * len(data)))[::2].obj and memoryview(np.repeat(np.frombuffer(data, np.uint8), 2))[::2],
        ):  # fmt: skip
            np.testing.assert_array_equal(images.load_image(source), np.asarray(PICTURE))


def test_an_open_text_file_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with (tmp_path / "a.txt").open() as file, pytest.raises(pyaircache.ImageError, match="binary mode"):
        images.load_image(file)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICO", "TGA", "PPM", "JPEG2000"])
def test_damaged_files(kind):
    """Cut anywhere, and with any bytes changed: a picture or an ImageError."""
    try:
        data = encoded(kind)
    except (OSError, KeyError):
        pytest.skip(f"this Pillow writes no {kind}")
    random = np.random.default_rng(0)
    for length in random.integers(0, len(data), 30):
        tried(lambda length=length: images.load_image(data[:length]))
    for _ in range(60):
        changed = bytearray(data)
        for place in random.integers(0, min(len(data), 200), 4):
            changed[place] = random.integers(0, 256)
        tried(lambda changed=changed: images.load_image(bytes(changed)))


def test_a_picture_that_is_too_large_is_not_copied():
    array = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (1 << 20, 1 << 20, 3))
    with pytest.raises(pyaircache.ImageError, match="at most 2\\^28 pixels"):
        images.load_image(array)


def test_no_memory(monkeypatch):
    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(pyaircache.ImageError, match="does not fit into memory"):
        images.load_image(encoded())


def test_long_values_do_not_fill_the_messages(chat):
    for image in ("x" * 100_000, "data:image/png;base64," + "%" * 100_000, pathlib.Path("/" + "a/" * 50_000)):
        with pytest.raises(pyaircache.ImageError) as caught:
            chat.ask(image, "What?")
        assert len(str(caught.value)) < 500
