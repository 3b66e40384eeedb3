"""The aircache_* fields of requests, of all types and values: an answer, or a 400 that names the field."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyaircache import Method
from pyaircache.methods import grammar

from .conftest import Launch, Page, Server
from .sending import b64, chat, refused

Fresh = Callable[..., str]


@pytest.fixture(scope="module")
def server(launch: Launch) -> Iterator[Server]:
    """One for all tests that need nothing special; each test finds it alive and idle."""
    with launch("--aircache-keep", "0.1", slots=3) as running:
        yield running


GRID: dict[str, Any] = {
    "method": "snapkv", "keep": 0.5, "score": "attention", "window": "last:7", "keys": "causal", "pool": "avg:3x3",
    "last_term": 2.5, "value_norm": True, "diversity": True, "allocation": "vl", "uniform_share": 0.25, "min_keep": 3,
    "rank": 2, "merge": 0.125, "seed": 77,
}  # fmt: skip
"""A value for every part of a method but alpha, which this window has not."""
FIELDS = [f"aircache_{part}" for part in [*GRID, "alpha"]]
NUMBERS = [f"aircache_{part}" for part in ("keep", "alpha", "uniform_share", "merge", "last_term")]
WHOLE = [f"aircache_{part}" for part in ("min_keep", "rank", "seed")]
SWITCHES = ["aircache_value_norm", "aircache_diversity"]
LONG = "elite" + ":content" * 300_000
WRONG_TYPES: list[Any] = [True, False, [], [0.5], {}, {"keep": 0.5}]
WRONG_NUMBERS: list[Any] = [
    -1,
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


def wrong(field: str) -> list[Any]:
    """Values that it does not take."""
    switches = [True, False]
    if field in SWITCHES:
        return [value for value in WRONG_TYPES if value not in switches] + WRONG_TEXTS + ["on", "off"]
    if field in WHOLE:
        return WRONG_TYPES + [-1, 0.5, 2**32 + 0.5, 2**64, -(2**63), "1", "", "x" * 10**6]
    if field in NUMBERS:
        large = [] if field == "aircache_last_term" else [1.0000001, 2]
        zero = [0, -0.0, 1e-320] if field in ("aircache_keep", "aircache_alpha") else []
        return WRONG_TYPES + zero + large + WRONG_NUMBERS
    return WRONG_TYPES + WRONG_TEXTS


def test_wrong_values_of_fields(server: Server, fresh: Fresh, pages: list[Page]) -> None:
    for field in FIELDS:
        for value in wrong(field):
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
            number = rng.randrange(4) if field in WHOLE else rng.random() < 0.5 if field in SWITCHES else number
            body[field] = number if field in NUMBERS + WHOLE + SWITCHES else text
        res = chat(server, {"url": f"data:image/png;base64,{b64(pages[0].path.read_bytes())}"}, "KIWI?", **body)
        if res.status_code != 200:
            assert any(field in refused(res) for field in FIELDS), body
        seen.add(res.status_code)
    assert seen == {200, 400}
    assert server.text(pages[0].ask()) == fresh(pages[0].ask(), 0.1)


def test_every_part_is_read_and_shown(server: Server) -> None:
    """As it was sent, and by itself as well: what is not sent is the method's."""
    fields = {f"aircache_{part}": value for part, value in GRID.items()}
    shown = server.http.post("/completion", json={"prompt": "Hi", "n_predict": 1, **fields}).json()
    assert {field: shown["generation_settings"][field] for field in fields} == fields
    plain = server.http.post("/completion", json={"prompt": "Hi", "n_predict": 1}).json()["generation_settings"]
    one = server.http.post("/completion", json={"prompt": "Hi", "n_predict": 1, "aircache_diversity": True}).json()
    assert one["generation_settings"]["aircache_diversity"] is True and plain["aircache_diversity"] is False
    differ = [field for field in FIELDS if one["generation_settings"][field] != plain[field]]
    assert differ == ["aircache_diversity"]


def test_fields_mean_what_a_method_means(server: Server) -> None:
    words = {field: value for field, value in GRID.items() if field not in ("method", "keep")}
    texts = {part: {True: "on", False: "off"}.get(value, str(value)) for part, value in words.items()}
    method = Method.of(grammar.changed(Method.named("snapkv").engine(0.5), texts))
    for part, value in words.items():
        assert getattr(method, part) == value or str(getattr(method, part)) == value


@pytest.mark.parametrize("allowed", ["none", "keep,method,uniform_share", "all"])
def test_fields_that_requests_may_set(launch: Launch, allowed: str) -> None:
    flags = ["--aircache-keep", "0.1", "--aircache-min-keep", "2", "--aircache-value-norm", "on"]
    with launch(*flags, LLAMA_ARG_AIRCACHE_REQUEST_FIELDS=allowed) as server:
        settings = server.http.get("/props").json()["default_generation_settings"]["params"]
        assert settings["aircache_min_keep"] == 2 and settings["aircache_value_norm"] is True
        for part, value in (GRID | {"alpha": 0.5}).items():
            res = server.http.post("/completion", json={"prompt": "Hi", "n_predict": 1, f"aircache_{part}": value})
            if allowed == "all" or part in allowed.split(","):
                assert res.status_code == 200, res.text
            else:
                message = refused(res)
                assert f"aircache_{part}" in message and "--aircache-request-fields" in message
        assert server.http.post("/completion", json={"prompt": "Hi", "n_predict": 1}).status_code == 200
