"""What answers say of the compression, and answers when it fails or its cells cannot be cut."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Launch, Page, Server
from .sending import PLAIN, b64

Fresh = Callable[..., str]


@pytest.fixture(scope="module")
def server(launch: Launch) -> Iterator[Server]:
    """One for all tests that need nothing special; each test finds it alive and idle."""
    with launch("--aircache-keep", "0.1", slots=3) as running:
        yield running


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
