"""Files of several pages, telephones' photographs, and addresses."""

from __future__ import annotations

import builtins
import importlib.util
import io
import ipaddress
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from pyaircache import ArgumentError, ImageError, Pages, Video
from pyaircache.images import limits, load_image, load_images, pdf, tiff, urls

COLOURS = ("red", "lime", "blue")


def saved(kind: str, count: int = 3, **options) -> bytes:
    pages = [Image.new("RGB", (60 + i, 40), COLOURS[i % 3]) for i in range(count)]
    out = io.BytesIO()
    pages[0].save(out, kind, save_all=True, append_images=pages[1:], **options)
    return out.getvalue()


PDF, TIFF = saved("PDF", resolution=72), saved("TIFF")


@pytest.mark.parametrize(("data", "dpi"), [(PDF, 72), (TIFF, 150)])
def test_every_page(data, dpi, tmp_path):
    (tmp_path / "file").write_bytes(data)
    whole = load_images(Pages(tmp_path / "file", dpi=dpi))
    assert [page.shape for page in whole] == [(40, 60, 3), (40, 61, 3), (40, 62, 3)]
    assert [int(page[20, 20].argmax()) for page in whole] == [0, 1, 2]
    chosen = load_images([Pages(io.BytesIO(data), [-1, 0], dpi=dpi), whole[1]])
    assert [page.shape[1] for page in chosen] == [62, 60, 61]
    assert load_image(Pages(data, 1, dpi=dpi)).shape == (40, 61, 3)
    assert len(load_images(str(tmp_path / "file"))) == 3
    with pytest.raises(ImageError, match="has 3 pages; choose one"):
        load_image(data)
    with pytest.raises(ImageError, match="has 3 pages; page 3 is not there"):
        load_images(Pages(data, [0, 3]))


def test_a_pdf_has_150_dpi_and_pages_are_frames():
    assert load_images(PDF)[0].shape == (84, 125, 3) or load_images(PDF)[0].shape == (84, 126, 3)
    assert load_image(Video([Pages(PDF, [0, 0], dpi=72)])).shape == (2, 40, 60, 3)


@pytest.mark.parametrize("kind", ["PDF", "TIFF"])
def test_many_pages(kind, monkeypatch):
    data = saved(kind, 5)
    for module in (pdf, tiff):
        monkeypatch.setattr(module, "MAX_PAGES", 4)
    with pytest.raises(ImageError, match="more than .* pages"):
        load_images(data)
    assert len(load_images(Pages(data, [4]))) == 1


def test_many_pixels(monkeypatch):
    monkeypatch.setattr(pdf, "MAX_PIXELS", 5000)
    with pytest.raises(ImageError, match="more than 2\\^28 pixels together, drawn with 150 dpi"):
        load_images(PDF)
    assert len(load_images(Pages(PDF, [0, 1], dpi=72))) == 2
    monkeypatch.setattr(limits, "MAX_PIXELS", 5000)
    with pytest.raises(ImageError, match="more than 2\\^28 pixels together"):
        load_images(TIFF)


def test_smaller_copies_are_no_pages():
    out, pages = io.BytesIO(), [Image.new("RGB", (8, 8), colour) for colour in COLOURS]
    pages[1].encoderinfo = {"tiffinfo": {254: 1}}
    pages[0].save(out, "TIFF", save_all=True, append_images=pages[1:])
    assert [int(page[0, 0].argmax()) for page in load_images(out)] == [0, 2]


@pytest.mark.parametrize(
    ("pages", "message"),
    [([], "none"), ("12", "page numbers"), ([1.5], "whole number"), (range(10**9), "at most 100"), (True, "numbers")],
)
def test_no_page_numbers(pages, message):
    with pytest.raises(ArgumentError, match=message):
        Pages(PDF, pages)


def test_damaged_and_other_files():
    for data in (PDF[:200], b"%PDF-1.7\n", b"%PDF-1.4 nothing"):
        with pytest.raises(ImageError, match="PDF"):
            load_images(data)
    with pytest.raises(ImageError, match="has no pages"):
        load_images(Pages(saved("GIF")))
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "EPS")
    with pytest.raises(ImageError, match="PostScript, which is not run"):
        load_images(out)


def test_without_the_extras(monkeypatch):
    real, found = builtins.__import__, importlib.util.find_spec
    missing = ("pillow_heif", "httpx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "pypdfium2" else found(name, *a))

    def importing(name, *rest):
        if name in missing:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", importing)
    for source, extra in ((PDF, "pdf"), (heic(1), "heic"), ("https://example.com/a.png", "urls")):
        with pytest.raises(ImageError, match=rf"pip install 'pyaircache\[{extra}\]'"):
            load_images(source, urls=True)


def heic(orientation: int) -> bytes:
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    pillow_heif.from_pillow(Image.new("RGB", (64, 32), "red")).save(out, exif=exif.tobytes())
    return out.getvalue()


def test_heic():
    assert load_image(heic(1)).shape == (32, 64, 3)
    turned = load_image(heic(6))
    assert turned.shape == (64, 32, 3) and turned[0, 0, 0] > 240


def test_tensors_and_floats_are_refused_with_the_conversion():
    torch = pytest.importorskip("torch")
    want = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    share = want / 255
    for image in (
        torch.from_numpy(want), torch.from_numpy(share), torch.from_numpy(share.transpose(2, 0, 1).copy()),
        share, share.astype(np.float32).transpose(2, 0, 1), want.astype(np.float64), want.astype(np.int64),
        want.astype(np.uint16) * 257,
    ):  # fmt: skip
        with pytest.raises(ImageError) as caught:
            load_images(image)
        line = str(caught.value).rpartition("convert it with ")[2]
        np.testing.assert_array_equal(eval(line, {"np": np, "image": image}), want)
    with pytest.raises(ImageError, match=r"\[one\.detach.* for one in images\]"):
        load_images(torch.zeros(2, 3, 6, 8))


# -- addresses --------------------------------------------------------------------------------------------------------


class Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        place = {"/inner": "http://10.0.0.1/", "/loop": "/loop", "/once": "/page"}.get(self.path)
        self.send_response(302 if place else 404 if self.path == "/none" else 200)
        if place:
            self.send_header("Location", place)
        self.end_headers()
        if not place:
            self.wfile.write(TIFF)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch) -> Iterator[str]:
    """A server on this machine, which counts as public here."""
    server = HTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    real = urls.is_public
    monkeypatch.setattr(urls, "is_public", lambda a: a == ipaddress.ip_address("127.0.0.1") or real(a))
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_fetched_where_allowed(site, monkeypatch):
    assert len(load_images(f"{site}/once", urls=True)) == 3
    assert load_image(Pages(f"{site}/page", 0), urls=True).shape == (40, 60, 3)
    with pytest.raises(ImageError, match=r"allow them with Chat\(image_urls=True\)"):
        load_images(f"{site}/page")
    with pytest.raises(ImageError, match=r"10\.0\.0\.1, which is not a public one"):
        load_images(f"{site}/inner", urls=True)
    with pytest.raises(ImageError, match="redirected more than 5 times"):
        load_images(f"{site}/loop", urls=True)
    with pytest.raises(ImageError, match="answers 404"):
        load_images(f"{site}/none", urls=True)
    monkeypatch.setattr(urls, "MAX_BYTES", 100)
    with pytest.raises(ImageError, match="has more than"):
        load_images(f"{site}/page", urls=True)


def test_a_slow_name_does_not_take_longer(monkeypatch):
    over = threading.Event()

    def slow(*_: object, **__: object) -> None:
        over.wait(30)
        raise OSError("no such name")

    monkeypatch.setattr("socket.getaddrinfo", slow)
    monkeypatch.setattr(urls, "TIMEOUT_S", 0.01)
    monkeypatch.setattr(urls, "_GRACE_S", 0.0)
    with pytest.raises(ImageError, match=r"was not there within 0\.01 seconds"):
        load_images("http://example.com/a.png", urls=True)
    assert not over.is_set()
    over.set()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0.0.0.0", "169.254.169.254"])
def test_never_from_within(host):
    with pytest.raises(ImageError, match="not a public one"):
        load_images(f"http://{host}:9/a.png", urls=True)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("::ffff:8.8.8.8", True), ("10.1.2.3", False),
        ("192.168.0.1", False), ("172.16.0.1", False), ("100.64.0.1", False), ("224.0.0.1", False), ("fe80::1", False),
        ("fd00::1", False), ("::ffff:127.0.0.1", False), ("64:ff9b::a00:1", False), ("2002:7f00:1::", False),
        ("fec0::1", False), ("168.63.129.16", False), ("::ffff:168.63.129.16", False), ("192.88.99.1", False),
    ],
)  # fmt: skip
def test_public_addresses(address, public):
    assert urls.is_public(ipaddress.ip_address(address)) is public
