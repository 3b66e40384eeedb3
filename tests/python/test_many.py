"""Many questions at once, on engines without a model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine, FakePool

from pyaircache import (
    AsyncChat,
    CancelledError,
    Chat,
    EngineError,
    ImageNotFoundError,
    OutOfMemoryError,
    PyAircacheError,
    StateError,
)
from pyaircache.chat import many as many_module

PICTURE = np.zeros((4, 4, 3), np.uint8)


@pytest.fixture
def pools(fake: type[FakeEngine], monkeypatch: pytest.MonkeyPatch) -> list[FakePool]:
    """Pools that were made."""
    made: list[FakePool] = []

    class Remembered(FakePool):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(many_module, "EnginePool", Remembered)
    return made


def questions(count: int) -> list[tuple[np.ndarray, str]]:
    return [(PICTURE, f"question {i}") for i in range(count)]


def test_every_question_is_answered(chat: Chat, pools: list[FakePool]) -> None:
    found = list(chat.ask_many(questions(5), n_parallel=2))
    assert sorted(one.index for one in found) == [0, 1, 2, 3, 4]
    for one in found:
        assert one.item[1] == f"question {one.index}" and one.error is None
        assert one.answer == one.result() == "hello"
        assert one.report is not None and one.report.keep == 0.5 and one.report.stop_reason == "end"
        assert one.report.n_decodes == len("hello") and one.report.tokens_per_second > 0
    (pool,) = pools
    assert pool.n_engines == 2 and max(pool.steps) <= 2 and pool.closed  # tests/engine/test_pool.py: they meet
    assert all(engine.closed for engine in pool.engines)


def test_each_begins_a_conversation_and_leaves_that_of_the_chat(chat: Chat, pools: list[FakePool]) -> None:
    chat.ask(PICTURE, "mine")
    list(chat.ask_many(questions(2), n_parallel=1, system="Be short."))
    prompts = [one[1] for one in pools[0].engines[0].log if isinstance(one, tuple) and one[0] == "prompt"]
    assert len(prompts) == 2 and all(text.startswith("<s>system\nBe short.</s>\n<s>user") for text in prompts)
    assert len(chat.messages) == 2 and chat.ask(None, "and?") == "hello"


def test_options_of_one_and_of_all(chat: Chat, pools: list[FakePool]) -> None:
    items: list[Any] = [
        (PICTURE, "as all"),
        {"image": PICTURE, "question": "own", "keep": 1.0, "max_tokens": 2},
        {"question": "no picture"},
    ]
    found = {one.index: one for one in chat.ask_many(items, keep=0.25, max_tokens=3)}
    assert [found[i].answer for i in range(3)] == ["hel", "he", "hel"]
    assert [found[i].report.keep for i in range(2)] == [0.25, 1.0]  # type: ignore[union-attr]
    assert pools[0].n_engines == 3  # no more than questions


def test_an_error_is_that_of_one(chat: Chat, pools: list[FakePool]) -> None:
    items: list[Any] = [
        (PICTURE, "good"),
        ("nowhere.png", "?"),
        "no question",
        {"question": "?", "kep": 1},
        (PICTURE, ""),
    ]
    found = {one.index: one for one in chat.ask_many([*items, (PICTURE, "good, too")], n_parallel=2)}
    assert found[0].answer == found[5].answer == "hello"
    assert isinstance(found[1].error, ImageNotFoundError) and found[1].report is None
    for index, words in (
        (2, "must be (image, question)"),
        (3, "a question has no option 'kep'"),
        (4, "must be a text"),
    ):
        assert found[index].answer is None and words in str(found[index].error)
    with pytest.raises(ImageNotFoundError):
        found[1].result()


def test_a_step_that_fails_for_one(chat: Chat, pools: list[FakePool]) -> None:
    answers = chat.ask_many(questions(3), n_parallel=2)
    pools[0].engines[0].fail["decode"] = EngineError("broken")
    pools[0].engines[1].fail["decode"] = CancelledError("meant another one")  # is tried again
    found = {one.index: one for one in answers}
    assert isinstance(found[0].error, EngineError)
    assert found[1].answer == found[2].answer == "hello"


def test_a_full_context_ends_an_answer(chat: Chat, pools: list[FakePool]) -> None:
    def items() -> Iterator[Any]:
        yield PICTURE, "short"
        pools[0].engines[0].n_ctx = pools[0].engines[0].n_past + 2

    (one,) = chat.ask_many(items(), n_parallel=1, n_ctx=64)
    assert pools[0].options["n_ctx"] == 64
    assert one.answer is not None and one.report is not None


def test_questions_are_taken_as_places_become_free(chat: Chat, pools: list[FakePool]) -> None:
    taken = []

    def items() -> Iterator[Any]:
        for i, item in enumerate(questions(6)):
            taken.append(i)
            yield item

    answers = chat.ask_many(items(), n_parallel=2)
    assert not taken
    next(answers)
    assert len(taken) <= 3
    answers.close()  # type: ignore[attr-defined]
    assert pools[0].closed and all(engine.closed for engine in pools[0].engines)
    assert chat.ask(PICTURE, "still there?") == "hello"


def test_what_the_list_raises_comes_out(chat: Chat, pools: list[FakePool]) -> None:
    def items() -> Iterator[Any]:
        yield PICTURE, "?"
        raise OSError("the list is gone")

    with pytest.raises(OSError, match="the list is gone"):
        list(chat.ask_many(items()))
    assert pools[0].closed


def test_wrong_options_of_all(chat: Chat, pools: list[FakePool]) -> None:
    for options, words in (
        ({"n_parallel": 0}, "n_parallel"),
        ({"n_parallel": 257}, "n_parallel"),
        ({"n_ctx": -1}, "n_ctx"),
        ({"keep": 2}, "keep"),
        ({"on_progress": 1}, "on_progress"),
    ):
        with pytest.raises(PyAircacheError, match=words):
            chat.ask_many(questions(1), **options)
    with pytest.raises(TypeError, match="ask_many"):
        chat.ask_many(questions(1), follow_up=True)  # type: ignore[call-arg]
    for items in ("text", {"question": "?"}, 1):
        with pytest.raises(PyAircacheError, match="must be a list"):
            chat.ask_many(items)  # type: ignore[arg-type]
    assert not pools


def test_no_room(chat: Chat, pools: list[FakePool], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> Any:
        raise OutOfMemoryError("no room")

    monkeypatch.setattr(many_module, "EnginePool", full)
    with pytest.raises(OutOfMemoryError):
        chat.ask_many(questions(1))


def test_an_empty_list(chat: Chat, pools: list[FakePool]) -> None:
    assert list(chat.ask_many([])) == []


def test_closing_the_chat_ends_it(fake: type[FakeEngine], pools: list[FakePool]) -> None:
    chat = Chat("fake.gguf")
    answers = chat.ask_many(questions(4), n_parallel=1)
    next(answers)
    chat.close()
    with pytest.raises(StateError, match="closed"):
        list(answers)
    assert pools[0].closed
    with pytest.raises(StateError, match="closed"):
        chat.ask_many(questions(1))


def test_the_chat_answers_meanwhile(chat: Chat, pools: list[FakePool]) -> None:
    answers = chat.ask_many(questions(3), n_parallel=1)
    next(answers)
    assert chat.ask(PICTURE, "between") == "hello"
    assert len(list(answers)) == 2


def test_progress_is_told_in_a_thread_of_its_own(chat: Chat, pools: list[FakePool]) -> None:
    threads = set()
    list(chat.ask_many(questions(2), on_progress=lambda *_: threads.add(threading.get_ident())))
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_async(fake: type[FakeEngine], pools: list[FakePool]) -> None:
    async def run() -> None:
        async with AsyncChat("fake.gguf") as chat:
            found = [one async for one in chat.ask_many(questions(3), n_parallel=2)]
            assert sorted(one.index for one in found) == [0, 1, 2]
            async for _ in (answers := chat.ask_many(questions(3), n_parallel=1)):
                assert await chat.ask(PICTURE, "between") == "hello"
                break
            await answers.aclose()  # type: ignore[attr-defined]
        assert all(pool.closed for pool in pools)

    asyncio.run(run())


def test_a_cancelled_task_stops_all(fake: type[FakeEngine], pools: list[FakePool]) -> None:
    async def run() -> None:
        async with AsyncChat("fake.gguf") as chat:
            inside, go = threading.Event(), threading.Event()

            def hold(*_: Any) -> None:
                inside.set()
                go.wait(60)

            async def ask() -> None:
                async for _ in chat.ask_many(questions(2), n_parallel=1, on_progress=hold):
                    pass

            task = asyncio.create_task(ask())
            await asyncio.to_thread(inside.wait, 60)
            task.cancel()
            go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert pools[0].closed
            assert await chat.ask(PICTURE, "still there?") == "hello"

    asyncio.run(run())
