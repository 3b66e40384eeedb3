"""The aircache_* fields of requests, of all types and values: an answer, or a 400 that names the field."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .conftest import Launch, Page, Server
from .sending import b64, chat, refused

Fresh = Callable[..., str]


@pytest.fixture(scope="module")
def server(launch: Launch) -> Iterator[Server]:
    """One for all tests that need nothing special; each test finds it alive and idle."""
    with launch("--aircache-keep", "0.1", slots=3) as running:
        yield running


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
