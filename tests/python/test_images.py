"""Everything that can be a picture becomes uint8 [H, W, 3]."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pyaircache import ImageError, ImageNotFoundError
from pyaircache.images import Video, limits, load_image, load_images, pixels


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def test_all_kinds_of_source_agree(rgb, tmp_path):
    path = tmp_path / "page.png"
    path.write_bytes(encoded(Image.fromarray(rgb)))
    data = path.read_bytes()
    for source in (path, str(path), data, bytearray(data), memoryview(data), Image.open(path), rgb):
        picture = load_image(source)
        np.testing.assert_array_equal(picture, rgb)
        assert picture.dtype == np.uint8 and picture.flags.c_contiguous


def test_lists(rgb):
    assert load_images(None) == []
    assert len(load_images(rgb)) == 1
    assert [one.shape for one in load_images([rgb, Image.fromarray(rgb), encoded(Image.fromarray(rgb))])] == [
        (4, 6, 3)
    ] * 3
    assert len(load_images((rgb, rgb))) == 2
    with pytest.raises(ImageError, match="empty"):
        load_images([])


def test_array_shapes(rgb):
    grey = rgb[:, :, 0]
    np.testing.assert_array_equal(load_image(grey), np.repeat(grey[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(load_image(grey[:, :, None]), load_image(grey))
    np.testing.assert_array_equal(load_image(rgb[::-1, ::2]), rgb[::-1, ::2])  # not contiguous
    alpha = np.dstack([rgb, np.zeros((4, 6), np.uint8)])
    assert (load_image(alpha) == 255).all()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 2), np.uint8), r"\[4, 4, 2\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"\[2, 4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (3, "not int"),
        (None, "not NoneType"),
        (b"", "format"),
        (b"no picture", "format"),
        (encoded(Image.new("RGB", (64, 64)))[:-30], "cannot be read|damaged"),
    ],
)
def test_what_is_no_picture(source, message):
    with pytest.raises(ImageError, match=message):
        load_image(source)


def test_video(rgb):
    frames = load_image(Video([rgb, Image.fromarray(rgb), rgb[:, ::-1]]))
    np.testing.assert_array_equal(frames, np.stack([rgb, rgb, rgb[:, ::-1]]))
    np.testing.assert_array_equal(load_image(Video(frames)), frames)
    assert [array.ndim for array in load_images([rgb, Video([rgb])])] == [3, 4]


@pytest.mark.parametrize("shapes", [[], [(4, 6, 3), (6, 4, 3)], [(4, 6, 2)]])
def test_what_is_no_video(shapes):
    with pytest.raises(ImageError):
        load_image(Video([np.zeros(shape, np.uint8) for shape in shapes]))


def test_video_in_a_video(rgb):
    with pytest.raises(ImageError, match="one size"):
        load_image(Video([Video([rgb])]))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_image(tmp_path / "none.png")
    assert isinstance(caught.value, ImageNotFoundError)
    assert "none.png does not exist" in str(caught.value)
    with pytest.raises(ImageNotFoundError, match="only http:// and https:// are known"):
        load_image("s3://bucket/page.png")


def test_folder_and_text_file(tmp_path):
    with pytest.raises(ImageError, match=r"cannot be read"):
        load_image(tmp_path)
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ImageError, match=r"a\.txt is not in a picture format"):
        load_image(tmp_path / "a.txt")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(rgb, orientation, tmp_path):
    """The same picture whatever way the camera was held: stored as each orientation says, shown upright."""
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](rgb)))
    data = encoded(stored, exif=exif)
    np.testing.assert_array_equal(load_image(data), rgb)
    np.testing.assert_array_equal(load_image(Image.open(io.BytesIO(data))), rgb)


def test_damaged_exif_is_ignored(rgb):
    data = encoded(Image.fromarray(rgb), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    np.testing.assert_array_equal(load_image(data), rgb)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_white(mode):
    picture = Image.new("RGBA", (3, 2), (0, 0, 0, 0))
    picture.putpixel((1, 1), (0, 0, 0, 255))
    array = load_image(picture.convert(mode))
    assert array[0, 0].tolist() == [255, 255, 255]
    assert array[1, 1].tolist() == [0, 0, 0]


def test_half_transparency_is_mixed():
    assert load_image(Image.new("RGBA", (1, 1), (255, 0, 0, 128)))[0, 0].tolist() == [255, 127, 127]


def test_palette_and_colour_key_transparency():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(load_image(encoded(palette)), [[[10, 20, 30], [40, 50, 60]]])
    data = encoded(palette, transparency=0)
    np.testing.assert_array_equal(load_image(data), [[[255, 255, 255], [40, 50, 60]]])
    keyed = Image.new("RGB", (2, 1), (1, 2, 3))
    keyed.putpixel((1, 0), (9, 9, 9))
    np.testing.assert_array_equal(load_image(encoded(keyed, transparency=(1, 2, 3)))[0, :, 0], [255, 9])


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "HSV", "LAB"])
def test_other_colour_models(mode):
    white = load_image(Image.new("RGB", (2, 2), "white").convert("RGB" if mode == "LAB" else mode))
    assert (white >= 254).all()


def test_cmyk_jpeg():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixel = load_image(encoded(red, "JPEG", quality=95))[4, 4].astype(int)
    assert pixel[0] > 240 and pixel[1] < 15 and pixel[2] < 15


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    expected = [0, 1, 128, 255]
    assert load_image(encoded(Image.fromarray(values)))[0, :, 0].tolist() == expected
    assert load_image(Image.fromarray(values.astype(np.int32)))[0, :, 2].tolist() == expected
    data = encoded(Image.fromarray(values), "TIFF")
    assert load_image(data)[0, :, 1].tolist() == expected


def test_wide_integers_and_floats():
    assert load_image(Image.fromarray(np.array([[0, 7, 255]], np.int32)))[0, :, 0].tolist() == [0, 7, 255]
    assert load_image(Image.fromarray(np.array([[0, 0.5, 1.0]], np.float32)))[0, :, 0].tolist() == [0, 128, 255]
    values = np.array([[-5, 100, 300, np.nan]], np.float32)
    assert load_image(Image.fromarray(values))[0, :, 0].tolist() == [0, 100, 255, 0]


def test_many_grey_levels_do_not_take_many_bytes(monkeypatch):
    """The same in pieces as at once: a last piece that is not full, a largest value in another piece."""
    values = np.arange(35, dtype=np.uint16).reshape(5, 7) * 1000
    floats = values.astype(np.float32) / 34000
    monkeypatch.setattr(pixels, "_AT_ONCE", 8)
    assert (load_image(Image.fromarray(values))[..., 0] == np.rint(values / 257)).all()
    assert (load_image(Image.fromarray(floats))[..., 0] == np.rint(floats.astype(float) * 255)).all()
    assert (load_image(Image.fromarray(values.astype(np.int32) // 200))[..., 0] == values // 200).all()


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_formats(kind):
    picture = load_image(encoded(Image.new("RGB", (16, 8), (200, 100, 50)), kind))
    assert picture.shape == (8, 16, 3)
    assert np.abs(picture[4, 8].astype(int) - [200, 100, 50]).max() < 8


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data)[0, 0].tolist() == [255, 0, 0]


def test_decompression_bomb(monkeypatch):
    data = encoded(Image.new("L", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="too large to be opened safely"):
        load_image(data)


def test_source_is_not_changed(rgb):
    picture = Image.fromarray(rgb)
    load_image(picture)
    np.testing.assert_array_equal(np.asarray(picture), rgb)


def test_pictures_of_one_request_share_a_budget(rgb, monkeypatch):
    height, width, _ = rgb.shape
    monkeypatch.setattr(limits, "MAX_PIXELS", 2 * height * width)
    assert len(load_images([rgb, Video([rgb])])) == 2
    message = f"{3 * height * width} pixels together .* at most {2 * height * width} are taken"
    for three in ([rgb] * 3, [rgb, Video([rgb] * 2)], Video([rgb] * 3)):
        with pytest.raises(ImageError, match=message):
            load_images(three)


def test_a_file_opened_as_text(rgb, tmp_path):
    path = tmp_path / "page.png"
    Image.fromarray(rgb).save(path)
    with open(path) as file, pytest.raises(ImageError, match=r"open the file in binary mode \('rb'\)"):
        load_image(file)
