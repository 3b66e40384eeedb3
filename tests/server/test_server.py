"""llama-server with compression, as OpenAI clients see it: every answer is the one of a fresh server with one slot."""

from __future__ import annotations

import contextlib
import random
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from pyaircache import Chat

from .conftest import CTX, Launch, Page, Server, free_port

KEEPS = (0.1, 0.3, 1.0)
Fresh = Callable[..., str]


@pytest.fixture(scope="module")
def server(launch: Launch) -> Iterator[Server]:
    """One for all tests that need nothing special: two slots, keep 0.1."""
    with launch("--aircache-keep", "0.1", slots=2) as running:
        yield running


def timings(answer: Any) -> dict[str, Any]:
    return answer.model_extra["timings"]


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", KEEPS)
def test_answers_as_the_python_engine_does(server: Server, pages: list[Page], f32_model: Path, keep: float) -> None:
    mmproj = pages[0].path.parents[1] / "mmproj-pages-vl-F16.gguf"
    with Chat(str(f32_model), str(mmproj), keep=keep, n_ctx=CTX, n_threads=1) as chat:
        for page in pages[:2]:
            answer = chat.ask(str(page.path), page.question, max_tokens=12)
            assert server.text(page.ask(), keep) == str(answer)
            if keep < 1.0:
                got = timings(server.ask(page.ask(), keep))["aircache"]
                assert got["visual_tokens"] == answer.report.visual_tokens
                assert got["kept_tokens"] == pytest.approx(answer.report.budgets.mean())


def test_streams_the_same_answer(server: Server, pages: list[Page]) -> None:
    for page in pages[:2]:
        assert server.streamed(page.ask()) == server.text(page.ask())


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_several_slots_at_once(launch: Launch, fresh: Fresh, pages: list[Page], slots: int) -> None:
    jobs = [(page, keep) for page in pages[:3] for keep in KEEPS]
    with launch("--aircache-keep", "0.5", slots=slots) as server, ThreadPoolExecutor(slots + 1) as pool:
        got = list(pool.map(lambda job: server.text(job[0].ask(), job[1]), jobs))
        server.wait_idle()
    assert got == [fresh(page.ask(), keep) for page, keep in jobs]


def test_small_batches(launch: Launch, fresh: Fresh, pages: list[Page]) -> None:
    """The question is split over ubatches and decode calls, beside slots that generate."""
    with launch("--aircache-keep", "0.1", "-b", "32", "-ub", "16", slots=2) as server, ThreadPoolExecutor(2) as pool:
        jobs = pages[:4]
        assert list(pool.map(lambda page: server.text(page.ask()), jobs)) == [fresh(page.ask(), 0.1) for page in jobs]


def test_several_images_and_text_before(server: Server, fresh: Fresh, pages: list[Page]) -> None:
    parts = [{"type": "text", "text": "Two pages."}, pages[0].part(), {"type": "text", "text": "and"}, pages[1].part()]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": pages[1].question}]}]
    answer = server.ask(messages)
    assert answer.choices[0].message.content == fresh(messages, 0.1)
    one = [timings(server.ask(page.ask()))["aircache"]["visual_tokens"] for page in pages[:2]]
    assert timings(answer)["aircache"]["visual_tokens"] == sum(one)


METHODS = ("aircache", "snapkv", "h2o", "elastic", "prefixkv", "pyramidkv", "vlcache", "last", "random", "stride")


def test_methods(launch: Launch, pages: list[Page], f32_model: Path) -> None:
    with launch() as server:
        for method in METHODS:
            air = timings(server.ask(pages[0].ask(), 0.2, extra_body={"aircache_method": method}))["aircache"]
            assert "error" not in air
            assert air["method"] == method
            assert air["kept_tokens"] == pytest.approx(0.2 * air["visual_tokens"], rel=0.05)
        full = server.ask(pages[0].ask(), 0.2, extra_body={"aircache_method": "full"})
        assert "aircache" not in timings(full)
        options = {"aircache_window": "text", "aircache_allocation": "uniform"}
        assert "error" not in timings(server.ask(pages[0].ask(), 0.2, extra_body=options))["aircache"]


@pytest.mark.parametrize("draft", ["model", "ngram"])
def test_drafts(launch: Launch, fresh: Fresh, models: list[str], pages: list[Page], draft: str) -> None:
    options = {
        "model": ["--model-draft", models[1], "--spec-draft-n-max", "4"],
        "ngram": ["--spec-type", "ngram-simple"],
    }
    with launch("--aircache-keep", "0.1", *options[draft], slots=2) as server:
        for page in [*pages[:2], pages[0]]:
            assert server.text(page.ask()) == fresh(page.ask(), 0.1)


def test_two_answers_to_one_prompt(server: Server, fresh: Fresh, pages: list[Page]) -> None:
    answer = server.ask(pages[0].ask(), n=2)
    assert [choice.message.content for choice in answer.choices] == [fresh(pages[0].ask(), 0.1)] * 2


# --- what is reused ---------------------------------------------------------------------------------------------------


def test_another_question_gets_cells_of_its_own(launch: Launch, fresh: Fresh, pages: list[Page]) -> None:
    page = pages[0]
    with launch("--aircache-keep", "0.1") as server:
        for question in [page.question, "What is the Order No?", page.question, "What is it?"]:
            answer = server.ask(page.ask(question))
            assert answer.choices[0].message.content == fresh(page.ask(question), 0.1)
            assert timings(answer)["cache_n"] == 0
        assert server.metric("aircache_images_reused_total") == 3  # encoded once


def test_the_same_prompt_again(server: Server, fresh: Fresh, pages: list[Page]) -> None:
    for _ in range(3):
        assert server.text(pages[2].ask()) == fresh(pages[2].ask(), 0.1)


def test_another_keep_for_the_same_prompt(launch: Launch, fresh: Fresh, pages: list[Page]) -> None:
    with launch() as server:
        for keep in (1.0, 0.1, 1.0, 0.3, 0.1):
            assert server.text(pages[0].ask(), keep) == fresh(pages[0].ask(), keep)


def test_follow_ups_interleaved(launch: Launch, fresh: Fresh, pages: list[Page]) -> None:
    talks = [page.ask() for page in pages[:2]]
    asked: list[list[list[dict[str, Any]]]] = [[], []]
    with launch("--aircache-keep", "0.1", slots=2) as server:
        for turn, question in enumerate(("And the next row?", "What is the Order No?", "")):
            for i in range(2):
                asked[i].append(talks[i])
                answer = server.ask(talks[i])
                text = answer.choices[0].message.content
                assert text == fresh(asked[i][0], 0.1, *asked[i][1:])
                if turn > 0:
                    assert timings(answer)["cache_n"] > 80  # the compressed image is among them
                    assert timings(answer)["aircache"]["ms"] == 0
                talks[i] = [*talks[i], {"role": "assistant", "content": text}, {"role": "user", "content": question}]


def test_a_new_image_in_a_later_turn(launch: Launch, fresh: Fresh, pages: list[Page]) -> None:
    with launch("--aircache-keep", "0.1", slots=2) as server:
        first = server.text(pages[0].ask())
        second = [*pages[0].ask(), {"role": "assistant", "content": first}, *pages[1].ask()]
        answer = server.ask(second)
        assert timings(answer)["cache_n"] > 80
        assert timings(answer)["aircache"]["ms"] > 0
        assert answer.choices[0].message.content == fresh(pages[0].ask(), 0.1, second)


def test_anything_in_any_order(launch: Launch, fresh: Fresh, pages: list[Page]) -> None:
    """Few slots, many images and keeps: prompts come and go through the host's prompt cache."""
    dice = random.Random(3)
    text = [{"role": "user", "content": "Hello"}]
    with launch(slots=2) as server, ThreadPoolExecutor(3) as pool:
        jobs = [(dice.choice([*(page.ask() for page in pages[:3]), text]), dice.choice(KEEPS)) for _ in range(60)]
        got = list(pool.map(lambda job: server.text(*job), jobs))
    assert got == [fresh(*job) for job in jobs]


def test_cancelled_streams(launch: Launch, fresh: Fresh, pages: list[Page]) -> None:
    endless = {"max_tokens": 700, "extra_body": {"ignore_eos": True}}
    several = [{"role": "user", "content": [page.part() for page in pages] + [{"type": "text", "text": "What? " * 40}]}]
    with launch("--aircache-keep", "0.1", "-b", "16", "-ub", "16", slots=2) as server:
        for i, page in enumerate(pages[:3]):
            with server.ask(page.ask(), stream=True, **endless) as stream:
                next(iter(stream))
            # given up somewhere before, while or after the prompt is decoded
            with contextlib.suppress(openai.APITimeoutError):
                server.ask(several, timeout=0.01 * (i + 1), **endless)
        server.wait_idle()
        for page in pages[:3]:
            assert server.text(page.ask()) == fresh(page.ask(), 0.1)


def test_an_uncompressed_slot_in_a_file(launch: Launch, pages: list[Page], tmp_path: Path) -> None:
    with launch("--slot-save-path", str(tmp_path)) as server:
        full = server.text(pages[0].ask(), 1.0)
        assert server.http.post("/slots/0?action=save", json={"filename": "a.bin"}).status_code == 200
        server.ask(pages[0].ask(), 0.1)
        assert server.http.post("/slots/0?action=restore", json={"filename": "a.bin"}).status_code == 200
        assert server.text(pages[0].ask(), 1.0) == full


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_broken_image(server: Server, fresh: Fresh, pages: list[Page]) -> None:
    broken = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]
    with pytest.raises(openai.BadRequestError):
        server.ask([{"role": "user", "content": [*broken, {"type": "text", "text": "What?"}]}])
    assert server.text(pages[0].ask()) == fresh(pages[0].ask(), 0.1)


def test_a_prompt_that_is_too_long(server: Server, fresh: Fresh, pages: list[Page]) -> None:
    with pytest.raises(openai.BadRequestError, match="context size"):
        server.ask(pages[0].ask("What is it? " * CTX))
    assert server.text(pages[0].ask()) == fresh(pages[0].ask(), 0.1)


BAD = [
    ("aircache_keep", 0),
    ("aircache_keep", 1.5),
    ("aircache_keep", "0.1"),
    ("aircache_method", "best"),
    ("aircache_method", "h2o"),  # observes all tokens: not with two slots
    ("aircache_alpha", -0.1),
    ("aircache_window", "last:0"),
    ("aircache_window", "some"),
    ("aircache_allocation", "fair"),
    ("aircache_allocation", 3),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_limits_of_fields(server: Server, name: str, value: object) -> None:
    text = [{"role": "user", "content": "Hi"}]
    bodies = {
        "/completion": {"prompt": "Hi"},
        "/v1/chat/completions": {"messages": text},
        "/v1/responses": {"input": "Hi"},
        "/v1/messages": {"messages": text, "max_tokens": 4},
    }
    for path, body in bodies.items():
        res = server.http.post(path, json={**body, name: value})
        assert res.status_code == 400, (path, res.text)
        assert name in res.json()["error"]["message"]


REFUSED = [
    (["-np", "2", "--kv-unified", "--aircache-keep", "0.1"], "--kv-unified"),
    (["-np", "2", "--aircache-keep", "0.1", "--aircache-method", "h2o"], "-np 1"),
    (
        ["-np", "1", "--aircache-keep", "0.1", "--aircache-method", "snapkv", "--aircache-alpha", "0.5"],
        "aircache_alpha",
    ),
    (["--aircache-keep", "0"], "aircache_keep"),
    (["--aircache-method", "best"], "aircache_method"),
]


@pytest.mark.parametrize(("options", "named"), REFUSED)
def test_refused_at_start(program: Callable[[str], Path], models: list[str], options: list[str], named: str) -> None:
    line = [program("llama-server"), *models, "--port", str(free_port()), "-c", "512", "--no-warmup", *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert named in done.stdout + done.stderr


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_shown(launch: Launch, pages: list[Page]) -> None:
    with launch("--aircache-window", "last:16", LLAMA_ARG_AIRCACHE_KEEP="0.2") as server:
        settings = server.http.get("/props").json()["default_generation_settings"]["params"]
        expected = {
            "aircache_method": "aircache",
            "aircache_window": "last:16",
            "aircache_allocation": "strength+skewness",
        }
        assert {name: settings[name] for name in expected} == expected
        assert settings["aircache_keep"] == pytest.approx(0.2)

        got = timings(server.ask(pages[0].ask(), 0.1))
        air = got["aircache"]
        assert got["prompt_n"] > air["visual_tokens"] > 0 and got["cache_n"] == 0
        assert air["keep"] == pytest.approx(0.1) and air["method"] == "aircache" and air["ms"] > 0
        assert air["kept_tokens"] == pytest.approx(0.1 * air["visual_tokens"], abs=1)
        assert 0 < air["kv_bytes"] < air["kv_bytes_full"]

        slot = server.http.get("/slots").json()[0]
        assert slot["params"]["aircache_keep"] == pytest.approx(0.1)
        assert slot["aircache"]["kept_tokens"] == air["kept_tokens"]
        assert slot["aircache"]["kv_bytes"] > air["kv_bytes"]  # of the answer, too
        assert server.metric("aircache_visual_tokens_total") == air["visual_tokens"]
        assert server.metric("aircache_kept_tokens_total") == pytest.approx(air["kept_tokens"], rel=1e-5)  # six digits
        assert server.metric("aircache_milliseconds_total") > 0

        text = server.ask([{"role": "user", "content": "Hi"}])
        assert "aircache" not in timings(text)


def test_responses_and_messages(server: Server, fresh: Fresh, pages: list[Page]) -> None:
    page = pages[0]
    url = page.part()["image_url"]["url"]
    text = {"type": "input_text", "text": page.question}
    content = [{"role": "user", "content": [{"type": "input_image", "image_url": url}, text]}]
    body = {"input": content, "max_output_tokens": 12, "temperature": 0, "aircache_keep": 0.3}
    res = server.http.post("/v1/responses", json=body).json()
    assert res["output"][0]["content"][0]["text"] == fresh(page.ask(), 0.3)

    source = {"type": "base64", "media_type": "image/png", "data": url.split(",")[1]}
    content = [
        {"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": page.question}]}
    ]
    body = {"messages": content, "max_tokens": 12, "temperature": 0, "aircache_keep": 0.3}
    res = server.http.post("/v1/messages", json=body).json()
    assert res["content"][0]["text"] == fresh(page.ask(), 0.3)
