"""What requests may hold: pictures in all forms, fields of all types; an answer, or a 400 that says why."""

from __future__ import annotations

import base64
import io
import random
import sys
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

Fresh = Callable[..., str]
PLAIN = {"max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def server(launch: Launch) -> Iterator[Server]:
    """One for all tests that need nothing special; each test finds it alive and idle."""
    with launch("--aircache-keep", "0.1", slots=3) as running:
        yield running


def chat(server: Server, image: Any, question: str, **more: Any) -> httpx.Response:
    """A chat completion with this ``image_url`` part, whatever it is."""
    content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": question}]
    body = {"messages": [{"role": "user", "content": content}], **PLAIN, **more}
    return server.http.post("/v1/chat/completions", json=body)


def answer(res: httpx.Response) -> str:
    assert res.status_code == 200, res.text
    return res.json()["choices"][0]["message"]["content"]


def refused(res: httpx.Response) -> str:
    """The message of a 400, which is short whatever was sent."""
    assert res.status_code == 400, (res.status_code, res.text[:300])
    message = res.json()["error"]["message"]
    assert 0 < len(message) < 300, message[:500]
    return message


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# --- files ------------------------------------------------------------------------------------------------------------


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


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


# --- our fields -------------------------------------------------------------------------------------------------------

FIELDS = ["aircache_keep", "aircache_method", "aircache_alpha", "aircache_window", "aircache_allocation"]
LONG = "elite" + ":content" * 300_000
WRONG_TYPES: list[Any] = [True, False, [], [0.5], {}, {"keep": 0.5}]
WRONG_NUMBERS: list[Any] = [
    0,
    -0.0,
    -1,
    1e-320,
    1.0000001,
    2,
    1e308,
    -1e308,
    2**63,
    2**64,
    -(2**63),
    "0.5",
    "nan",
    "",
    "x" * 10**6,
]
WRONG_TEXTS: list[Any] = [
    0,
    0.5,
    "",
    " ",
    "nan",
    "ELITE ",
    "\x00",
    "é",
    "last:",
    "last:0",
    "last:-1",
    "last:1e9",
    "last:1.5",
    "last:nan",
]
WRONG_TEXTS += [
    "last:0x10",
    "last: 3",
    "last:3:3",
    "visual:65537",
    "elite:0",
    "elite:inf",
    "elite:2",
    "elite:1e-400",
    "elite::",
]
WRONG_TEXTS += ["last:1e3", "elite:last:last", "text:3", "all:3", ":", "::::", "last:" + "9" * 10**6, LONG, "x" * 10**6]


def test_wrong_values_of_fields(server: Server, fresh: Fresh, pages: list[Page]) -> None:
    for field in FIELDS:
        values = WRONG_NUMBERS if field in ("aircache_keep", "aircache_alpha") else WRONG_TEXTS
        for value in WRONG_TYPES + values:
            body = {"prompt": "Hi", "n_predict": 1, field: value}
            assert field in refused(server.http.post("/completion", json=body)), value
    assert server.text(pages[0].ask()) == fresh(pages[0].ask(), 0.1)


def test_any_values_of_fields(server: Server, fresh: Fresh, pages: list[Page]) -> None:
    """Whatever is put together: an answer, or a 400 that names a field."""
    rng = random.Random(1)
    words = [
        "elite",
        "last",
        "text",
        "visual",
        "all",
        "content",
        "weighted",
        "0.5",
        "1",
        "32",
        "65536",
        "1e-6",
        "x",
        "",
    ]
    names = [
        "aircache",
        "snapkv",
        "h2o",
        "vlcache",
        "random",
        "stride",
        "last",
        "full",
        "uniform",
        "prefix",
        "vl",
        "best",
    ]
    seen = set()
    for _ in range(150):
        body: dict[str, Any] = {}
        for field in rng.sample(FIELDS, rng.randrange(1, 6)):
            number = rng.choice([1, 0.5, 1e-6, 1e-30, 0, rng.random(), rng.uniform(-2, 2)])
            text = rng.choice([rng.choice(names), ":".join(rng.choices(words, k=rng.randrange(1, 4)))])
            body[field] = number if field in ("aircache_keep", "aircache_alpha") else text
        res = chat(server, {"url": f"data:image/png;base64,{b64(pages[0].path.read_bytes())}"}, "KIWI?", **body)
        if res.status_code != 200:
            assert any(field in refused(res) for field in FIELDS), body
        seen.add(res.status_code)
    assert seen == {200, 400}
    assert server.text(pages[0].ask()) == fresh(pages[0].ask(), 0.1)


@pytest.mark.parametrize("allowed", ["none", "keep", "keep,method,window", "all"])
def test_fields_that_requests_may_set(launch: Launch, allowed: str) -> None:
    values = {"keep": 0.5, "method": "snapkv", "alpha": 0.5, "window": "last:8", "allocation": "uniform"}
    with launch("--aircache-keep", "0.1", LLAMA_ARG_AIRCACHE_REQUEST_FIELDS=allowed) as server:
        for name, value in values.items():
            res = server.http.post("/completion", json={"prompt": "Hi", "n_predict": 1, f"aircache_{name}": value})
            if allowed == "all" or name in allowed.split(","):
                assert res.status_code == 200, res.text
            else:
                message = refused(res)
                assert f"aircache_{name}" in message and "--aircache-request-fields" in message
        assert server.http.post("/completion", json={"prompt": "Hi", "n_predict": 1}).status_code == 200


# --- what is counted --------------------------------------------------------------------------------------------------


def test_all_answers_are_counted(server: Server, pages: list[Page]) -> None:
    one = server.ask(pages[0].ask(), seed=1)
    three = server.ask(pages[0].ask(), seed=1, n=3)
    assert len(three.choices) == 3
    assert three.usage.completion_tokens == 3 * one.usage.completion_tokens
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.total_tokens == three.usage.prompt_tokens + three.usage.completion_tokens
    assert three.model_extra["timings"]["predicted_n"] == three.usage.completion_tokens

    streamed = server.ask(pages[0].ask(), seed=1, n=3, stream=True, stream_options={"include_usage": True})
    (usage,) = [chunk.usage for chunk in streamed if chunk.usage]
    assert usage == three.usage


def test_all_answers_to_several_prompts_are_counted(launch: Launch) -> None:
    body = {"max_tokens": 5, "n": 2, "ignore_eos": True}
    prompts = ["A page", "Another page, with more words"]
    with launch(slots=2, images=False) as server:
        usage = server.http.post("/v1/completions", json={**body, "prompt": prompts}).json()["usage"]
        alone = [server.http.post("/v1/completions", json={**body, "prompt": p}).json()["usage"] for p in prompts]
    assert usage["completion_tokens"] == 2 * 2 * 5
    assert usage["prompt_tokens"] == sum(u["prompt_tokens"] for u in alone)


def test_timings_of_responses_and_messages(server: Server, pages: list[Page]) -> None:
    page = pages[0]
    want = server.ask(page.ask(), 0.3).model_extra["timings"]["aircache"]
    data = b64(page.path.read_bytes())
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{data}"}
    content = [image, {"type": "input_text", "text": page.question}]
    bodies = {"/v1/responses": {"input": [{"role": "user", "content": content}], "max_output_tokens": 12}}
    source = {"type": "base64", "media_type": "image/png", "data": data}
    content = [{"type": "image", "source": source}, {"type": "text", "text": page.question}]
    bodies["/v1/messages"] = {"messages": [{"role": "user", "content": content}], "max_tokens": 12}
    for path, body in bodies.items():
        got = server.http.post(path, json={**body, "temperature": 0, "aircache_keep": 0.3}).json()["timings"][
            "aircache"
        ]
        for name in ("visual_tokens", "kept_tokens", "keep", "method"):
            assert got[name] == want[name], (path, name)


# --- failures inside --------------------------------------------------------------------------------------------------


@pytest.fixture
def failing(program: Callable[[str], Path], launch: Launch) -> Callable[..., Any]:
    """A server in which calls of the compression fail: failing("observe", first=1, last=1)."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs LD_PRELOAD")
    library = program("libfail-aircache.so")

    def start(what: str, first: int, last: int, **options: Any) -> Any:
        env = {"PAC_FAIL": what, "PAC_FAIL_FROM": str(first), "PAC_FAIL_TO": str(last), "LD_PRELOAD": str(library)}
        return launch("--aircache-keep", "0.1", **options, **env)

    return start


@pytest.mark.parametrize("what", ["observe", "evict"])
def test_without_memory_the_answer_is_that_of_the_full_cache(
    failing: Callable[..., Any], fresh: Fresh, pages: list[Page], what: str
) -> None:
    page = pages[0]
    with failing(what, 1, 2, slots=2) as server:
        for _ in range(2):
            got = server.ask(page.ask())
            assert got.choices[0].message.content == fresh(page.ask(), 1.0)
            air = got.model_extra["timings"]["aircache"]
            assert "a test" in air["error"] and air["kept_tokens"] == air["visual_tokens"] == 0
        got = server.ask(page.ask())
        assert got.choices[0].message.content == fresh(page.ask(), 0.1)
        assert "error" not in got.model_extra["timings"]["aircache"]


def test_a_later_turn_without_memory(failing: Callable[..., Any], fresh: Fresh, pages: list[Page]) -> None:
    first = pages[0].ask()
    with failing("observe", 2, 2) as server:
        said = server.text(first)
        later = [*first, {"role": "assistant", "content": said}, *pages[1].ask()]
        got = server.ask(later)
        air = got.model_extra["timings"]["aircache"]
        assert "a test" in air["error"] and air["visual_tokens"] > air["kept_tokens"] > 0  # the first image's
        assert server.text(pages[1].ask()) == fresh(pages[1].ask(), 0.1)


def test_a_prompt_that_is_lost_fails_alone(failing: Callable[..., Any], fresh: Fresh, pages: list[Page]) -> None:
    first, second = pages[:2]
    with failing("lost", 2, 3, slots=3) as server:
        endless = {"max_tokens": 400, "extra_body": {"ignore_eos": True}}
        with server.ask(second.ask(), stream=True, **endless) as beside:  # goes on beside the failures
            stream = iter(beside)
            next(stream)
            for more in ({}, {"n": 2}):  # the second is lost with the answer that waits for its prompt
                body = {"messages": first.ask(), **PLAIN, **more}
                res = server.http.post("/v1/chat/completions", json=body)
                assert res.status_code == 500 and "a test" in res.json()["error"]["message"]
            assert list(stream)[-1].choices[0].finish_reason == "length"
        server.wait_idle()
        for _ in range(2):
            assert server.text(first.ask()) == fresh(first.ask(), 0.1)
        assert server.text(second.ask()) == fresh(second.ask(), 0.1)


# --- cells that cannot be cut -----------------------------------------------------------------------------------------


def test_no_way_of_reusing_cells_cuts_a_compressed_prompt(launch: Launch, fresh: Fresh, pages: list[Page]) -> None:
    page = pages[0]
    options = ("--aircache-keep", "0.1", "--context-shift", "--cache-reuse", "4", "-c", "512")
    with launch(*options) as server:
        want = fresh(page.ask(), 0.1)
        assert server.text(page.ask()) == want
        beyond = server.ask(page.ask(), max_tokens=2000, extra_body={"ignore_eos": True, "n_cache_reuse": 1})
        assert beyond.choices[0].finish_reason == "length"
        text = [{"role": "user", "content": "What is the value of KIWI? " * 5}]
        server.ask(text, extra_body={"n_cache_reuse": 1})
        assert server.text(page.ask()) == want
        assert server.http.post("/slots/0?action=erase").status_code in (200, 501)
        assert server.text(page.ask()) == want
        marker = server.http.get("/props").json()["media_marker"]
        first = {"prompt_string": f"{marker} KIWI?", "multimodal_data": [b64(page.path.read_bytes())]}  # image at 0
        body = {"prompt": first, "n_predict": 4, "temperature": 0}
        said = server.http.post("/completion", json=body).json()["content"]
        for cut in ("KIW", "KI", "", " PEAR?"):
            other = {**first, "prompt_string": f"{marker} {cut}"}
            assert server.http.post("/completion", json={**body, "prompt": other}).status_code == 200
            assert server.http.post("/completion", json=body).json()["content"] == said
        assert server.text(page.ask()) == want
