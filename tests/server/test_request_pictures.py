"""What requests may hold for pictures: an answer, or a 400 that says why."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from PIL import Image

from pyaircache import Chat
from pyaircache.errors import ImageError

from .conftest import CTX, Launch, Page, Server
from .sending import PLAIN, answer, b64, chat, refused, saved

Fresh = Callable[..., str]


@pytest.fixture(scope="module")
def server(launch: Launch) -> Iterator[Server]:
    """One for all tests that need nothing special; each test finds it alive and idle."""
    with launch("--aircache-keep", "0.1", slots=3) as running:
        yield running


# --- files ------------------------------------------------------------------------------------------------------------


def files(page: Page) -> dict[str, bytes]:
    image = Image.open(page.path).convert("RGB")
    grey = image.convert("L")
    clear = Image.new("RGBA", image.size, (0, 0, 0, 0))
    clear.putalpha(grey.point(lambda v: 255 - v))
    exif = Image.Exif()
    exif[0x112] = 6
    turned = image.transpose(Image.Transpose.ROTATE_90)
    jpeg = saved(image, "JPEG", quality=95)
    png = saved(image, "PNG")
    return {
        "JPEG": jpeg,
        "progressive": saved(image, "JPEG", quality=95, progressive=True),
        "CMYK": saved(image.convert("CMYK"), "JPEG", quality=95),
        "turned JPEG": saved(turned, "JPEG", quality=95, exif=exif),
        "turned PNG": saved(turned, "PNG", exif=exif),
        "transparent": saved(clear, "PNG"),
        "transparent palette": saved(grey.convert("P"), "PNG", transparency=255),
        "16 bits": saved(grey.convert("I").point(lambda v: v * 257).convert("I;16"), "PNG"),
        "GIF": saved(image, "GIF"),
        "BMP": saved(image, "BMP"),
        "WebP": saved(image, "WEBP", lossless=True),
        "transparent WebP": saved(clear, "WEBP", lossless=True, exact=True),
        "TIFF": saved(image, "TIFF"),
        "cut JPEG": jpeg[: len(jpeg) // 2],
        "cut JPEG with an end": jpeg[: len(jpeg) // 2] + b"\xff\xd9",
        "cut PNG": png[: len(png) // 2],
        "text": b"not a picture",
    }


@pytest.mark.parametrize("keep", [0.1, 1.0])
def test_pictures_are_read_as_chat_does(server: Server, pages: list[Page], f32_model: Path, keep: float) -> None:
    page = pages[0]
    mmproj = page.path.parents[1] / "mmproj-pages-vl-F16.gguf"
    read = 0
    with Chat(str(f32_model), str(mmproj), keep=keep, n_ctx=CTX, n_threads=1) as model:
        for name, file in files(page).items():
            res = chat(server, {"url": f"data:image/any;base64,{b64(file)}"}, page.question, aircache_keep=keep)
            try:
                want = str(model.ask(file, page.question, max_tokens=12))
            except ImageError:
                want = None
            if want is None or res.status_code != 200:
                assert refused(res), name
            else:
                assert answer(res) == want, name
                read += 1
    assert read >= 10


def test_extreme_shapes(server: Server, fresh: Fresh, pages: list[Page]) -> None:
    for size in [(1, 1), (1, 5000), (5000, 1), (4000, 3000), (9000, 9000), (60000, 3)]:
        res = chat(server, {"url": f"data:image/png;base64,{b64(saved(Image.new('1', size), 'PNG'))}"}, "What?")
        if res.status_code != 200:
            assert refused(res), size
        if max(size) > 1000 * min(size):
            assert "too thin" in refused(res), size
    assert server.text(pages[0].ask()) == fresh(pages[0].ask(), 0.1)


def test_broken_and_given_up_beside_good_ones(launch: Launch, fresh: Fresh, pages: list[Page]) -> None:
    good = [page.ask() for page in pages[:3]]
    want = [fresh(messages, 0.1) for messages in good]
    jpeg = saved(Image.open(pages[0].path).convert("RGB"), "JPEG")

    def one(i: int) -> None:
        if i % 3 == 0:
            cut = jpeg[: len(jpeg) * (i + 1) // 40]
            refused(chat(server, {"url": f"data:image/jpeg;base64,{b64(cut)}"}, "What?"))
        elif i % 3 == 1:
            with server.ask(good[i % 2], stream=True, max_tokens=300, extra_body={"ignore_eos": True}) as stream:
                next(iter(stream))
        else:
            assert server.text(good[i % 5 % 3]) == want[i % 5 % 3]

    with launch("--aircache-keep", "0.1", slots=8) as server, ThreadPoolExecutor(12) as pool:
        list(pool.map(one, range(36)))
        server.wait_idle()


# --- base64 and addresses ---------------------------------------------------------------------------------------------


def test_base64_as_encoders_write_it(server: Server, fresh: Fresh, pages: list[Page]) -> None:
    page = pages[0]
    data = page.path.read_bytes()
    plain, safe = b64(data), base64.urlsafe_b64encode(data).decode()
    head = "data:image/png;base64,"
    urls = {
        "plain": head + plain,
        "for URLs": head + safe,
        "unpadded": head + safe.rstrip("="),
        "lines of 76": head + base64.encodebytes(data).decode(),
        "CRLF": head + base64.encodebytes(data).decode().replace("\n", "\r\n"),
        "percent": head + quote(plain, safe=""),
        "upper case": "DATA:IMAGE/PNG;BASE64," + plain,
        "parameters": "data:image/png;charset=utf-8;name=a.png;base64," + plain,
        "bare": plain,
        "bare, with lines": base64.encodebytes(data).decode(),
    }
    want = fresh(page.ask(), 0.1)
    for name, url in urls.items():
        assert answer(chat(server, {"url": url}, page.question)) == want, name


WRONG_URLS = [
    "data:image/png;base64,",
    "data:image/png;base64,====",
    "data:image/png;base64,iVBORw0KGgo*AAAA",
    "data:image/png;base64,iVBO=Rw0K",
    "data:image/png;base64,iVBOR",
    "data:image/png;base64,iVBORw0=",
    "data:image/png;base64",
    "data:image/png,plain",
    "data:text/plain;base64,aGVsbG8=",
    "data:;base64,aGVsbG8=",
    "data:image/png;base64,aGVsbG8=",
    "",
    "aGVsbG8=",
    "/etc/passwd",
    "C:\\pictures\\a.png",
    "ftp://127.0.0.1/a.png",
    "file:///etc/passwd",
    "file://a.png",
    "http://127.0.0.1:9/a.png",
    "https://127.0.0.1:9/a.png",
    "http://",
    "javascript:alert(1)",
    "\x00\x01",
    "é" * 50,
    "*" * 3_000_000,
    "x:" + "y" * 1_000_000,
    "http://" + "y" * 1_000_000,
]
WRONG_IMAGES = [None, 3, 1.5, True, "data:image/png;base64,AAAA", [], ["a"], {}, {"uri": "a"}]
WRONG_IMAGES += [{"url": value} for value in (None, 3, False, [], {}, ["a"])]


@pytest.mark.parametrize("url", WRONG_URLS, ids=lambda url: repr(url[:40]))
def test_wrong_urls(server: Server, url: str) -> None:
    refused(chat(server, {"url": url}, "What?"))


@pytest.mark.parametrize("image", WRONG_IMAGES, ids=repr)
def test_wrong_image_parts(server: Server, image: Any) -> None:
    assert "url" in refused(chat(server, image, "What?"))


def test_a_part_without_its_image(server: Server) -> None:
    for part in ({"type": "image_url"}, {"type": "image"}, {}, 3, "image", None, []):
        body = {"messages": [{"role": "user", "content": [part]}], **PLAIN}
        refused(server.http.post("/v1/chat/completions", json=body))


def test_wrong_images_of_responses(server: Server) -> None:
    for image in [None, 3, {}, [], "", "ftp://a", {"url": "data:image/png;base64,AAAA"}, "data:image/png;base64,AA*A"]:
        content = [{"type": "input_image", "image_url": image}, {"type": "input_text", "text": "What?"}]
        refused(server.http.post("/v1/responses", json={"input": [{"role": "user", "content": content}]}))
    content = [{"type": "input_image"}]
    refused(server.http.post("/v1/responses", json={"input": [{"role": "user", "content": content}]}))


SOURCES = [None, 3, "a", [], {}, {"type": "base64"}, {"type": "base64", "data": 3}, {"type": "base64", "data": ""}]
SOURCES += [{"type": "url"}, {"type": "url", "url": None}, {"type": "file", "file_id": "a"}, {"data": "AAAA"}]
SOURCES += [{"type": "base64", "media_type": kind, "data": "AAAA"} for kind in (3, "", "text/plain", "image/png;a,b")]
SOURCES += [{"type": "base64", "media_type": "image/png", "data": "AA*A"}, {"type": "url", "url": "ftp://a"}]


@pytest.mark.parametrize("source", SOURCES, ids=repr)
def test_wrong_images_of_messages(server: Server, source: Any) -> None:
    block = {"type": "image", "source": source}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [block]}
    for content in ([block, {"type": "text", "text": "What?"}], [result]):
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
        refused(server.http.post("/v1/messages", json=body))


def test_raw_completion(server: Server, pages: list[Page]) -> None:
    marker = server.http.get("/props").json()["media_marker"]
    data = b64(pages[0].path.read_bytes())

    def post(prompt: Any) -> httpx.Response:
        return server.http.post("/completion", json={"prompt": prompt, "n_predict": 4, "temperature": 0})

    good = {"prompt_string": f"A page: {marker} KIWI?", "multimodal_data": [data]}
    want = post(good).json()["content"]
    lines = "\n".join(data[i : i + 60] for i in range(0, len(data), 60))
    assert post({**good, "multimodal_data": [lines]}).json()["content"] == want
    for wrong in (["*"], [""], [3], [None], [[]], "abc", 3, None, {}, [data, data], [], [data[: len(data) // 2]]):
        refused(post({**good, "multimodal_data": wrong}))
    for text in (3, None, [], f"{marker} {marker}", "no marker"):
        refused(post({**good, "prompt_string": text}))
    assert post(good).json()["content"] == want


@pytest.mark.parametrize("path", ["/tokenize", "/infill", "/embeddings", "/rerank", "/apply-template"])
def test_other_addresses_survive_pictures(server: Server, fresh: Fresh, pages: list[Page], path: str) -> None:
    """They may answer or refuse; the server goes on."""
    picture = {"prompt_string": "<__media__>", "multimodal_data": ["*", 3, b64(b"GIF89a")]}
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA*A"}}
    messages = [{"role": "user", "content": [part]}]
    for value in (picture, [part], messages, [picture, picture], 3, None):
        body = dict.fromkeys(("content", "prompt", "input", "messages", "query", "documents", "input_prefix"), value)
        assert server.http.post(path, json=body).status_code in range(200, 502)
    assert server.text(pages[0].ask()) == fresh(pages[0].ask(), 0.1)
