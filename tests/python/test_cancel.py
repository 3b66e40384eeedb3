"""Cancelling a question, from another thread, at any point. On the engine without a model."""

from __future__ import annotations

import gc
import io
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine
from PIL import Image
from threading_tools import IMAGE, PATIENCE, Stopped, queued, turns

from pyaircache import CancelledError, Chat
from pyaircache.chat.answer import AnswerStream


@pytest.mark.parametrize("call", ["prompt", "decode", "sample"])
@pytest.mark.parametrize("image", [IMAGE, None])
def test_cancel_stops_an_ask(chat, pool, call, image):
    chat.ask(IMAGE, "One?")
    stopped = Stopped(chat, call)
    asking = pool.submit(chat.ask, image, "Two?")
    assert stopped.entered.wait(PATIENCE)
    assert chat.cancel()
    stopped.go_on.set()
    with pytest.raises(CancelledError, match="the conversation is as it was"):
        asking.result(PATIENCE)
    assert [turn.answer for turn in chat._session.turns] == ["hello"]
    assert chat.ask(None, "Three?") == "hello"
    assert len(chat._session.turns) == 2


class SlowFile(io.BytesIO):
    """A picture's file whose reading waits."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.entered, self.go_on = threading.Event(), threading.Event()

    def read(self, *size: Any) -> bytes:
        self.entered.set()
        assert self.go_on.wait(PATIENCE)
        return super().read(*size)


@pytest.mark.parametrize("how", ["ask", "complete"])
def test_cancel_while_the_pictures_are_read(chat, pool, how):
    data = io.BytesIO()
    Image.fromarray(IMAGE).save(data, "PNG")
    slow = SlowFile(data.getvalue())
    assert not chat.cancel()
    if how == "ask":
        asking = pool.submit(chat.ask, [slow, "there/is/no.png"], "One?")
    else:
        parts = [{"type": "image_url", "image_url": one} for one in (slow, IMAGE)]
        asking = pool.submit(chat.complete, [{"role": "user", "content": parts}])
    assert slow.entered.wait(PATIENCE)
    assert chat.cancel()
    slow.go_on.set()
    with pytest.raises(CancelledError, match="the conversation is as it was"):
        asking.result(PATIENCE)
    assert not chat.cancel() and chat.messages == []
    assert chat.ask(IMAGE, "Two?") == "hello"


def test_cancel_between_batches_of_the_prompt(chat, monkeypatch):
    """The engine forgets a cancel that came before its call; the next progress report sees it."""

    def cancel(self: object, stage: int, done: int, total: int) -> None:
        chat.cancel()
        chat._engine.cancelled.clear()

    chat.ask(IMAGE, "One?")
    with monkeypatch.context() as patch:
        patch.setattr("pyaircache.chat.session.ProgressLine.__call__", cancel)
        with pytest.raises(CancelledError):
            chat.ask(None, "Two?")
    assert chat.ask(None, "Three?") == "hello"


def test_cancel_frees_a_stream_that_nobody_reads(chat):
    stream = chat.ask(IMAGE, "What?", stream=True)
    next(stream)
    assert chat.cancel()
    assert chat.ask(None, "And?") == "hello"
    assert [turn.content for turn in chat._session.turns] == ["And?"]
    assert stream.report.stop_reason == "cancelled"
    for _ in range(2):
        with pytest.raises(CancelledError):
            next(stream)


def test_cancel_ends_a_stream_that_is_being_read(chat, pool):
    stream = chat.ask(IMAGE, "What?", stream=True)
    next(stream)
    stopped = Stopped(chat, "decode")
    reading = pool.submit(list, stream)
    assert stopped.entered.wait(PATIENCE)
    assert chat.cancel()
    stopped.go_on.set()
    with pytest.raises(CancelledError):
        reading.result(PATIENCE)
    assert stream.report.stop_reason == "cancelled" and chat._session.turns == []
    assert chat.ask(None, "And?") == "hello"


def test_cancel_means_the_running_question_only(chat, pool):
    assert not chat.cancel()
    stopped = Stopped(chat, "prompt")
    first = pool.submit(chat.ask, None, "One?")
    assert stopped.entered.wait(PATIENCE)
    second = pool.submit(chat.ask, None, "Two?")
    queued(chat, 2)
    chat.cancel()
    stopped.go_on.set()
    with pytest.raises(CancelledError):
        first.result(PATIENCE)
    assert second.result(PATIENCE) == "hello"
    assert not chat.cancel()
    chat.close()
    assert not chat.cancel()


def test_a_cancel_that_comes_too_late_does_not_hit_the_next_question(chat):
    for call in ("prompt", "decode"):
        chat._engine.hooks[call] = chat._engine.cancel  # as if the question before were meant
        assert chat.ask(None, "What?") == "hello"


def select(scores: np.ndarray, total: int) -> list[np.ndarray]:
    """A policy."""
    return [np.arange(total // 2, dtype=np.int32)] * 2


@pytest.mark.parametrize("where", ["compress", "score", "policy", "evict"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_cancel_during_the_compression(fake: type[FakeEngine], where: str, stream: bool):
    """The engine does not stop in it: the question ends behind it, and never was, also when all is forgotten."""

    def policy(scores: np.ndarray, total: int) -> list[np.ndarray]:
        if "policy" in hooks:
            hooks.pop("policy")()
        return select(scores, total)

    chat = Chat("fake.gguf", keep=0.5, method="aircache" if where == "compress" else policy)
    hooks: dict[str, Callable[[], object]] = chat._engine.hooks  # type: ignore[attr-defined]
    chat.ask(IMAGE, "One?")
    before = turns(chat)
    hooks[where] = chat.cancel
    with pytest.raises(CancelledError, match="the conversation is as it was"):
        chat.ask(IMAGE, "Two?", stream=stream)
    assert turns(chat) == before and where not in hooks
    gc.collect()
    assert turns(chat) == before
    assert chat.ask(None, "Three?") == "hello"
    assert [question for question, _ in turns(chat)] == ["<image>One?", "Three?"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_question_does_not_overwrite_a_newer_one(chat: Chat, monkeypatch, stream: bool):
    """What of it an exception keeps alive is forgotten after the next question."""

    def late(*arguments: Any, **options: Any) -> Any:
        patch.undo()
        answer = made(*arguments, **options)
        chat.cancel()  # as another thread, right after the stream was made
        return answer

    made = AnswerStream
    with monkeypatch.context() as patch:
        patch.setattr("pyaircache.chat.asking.AnswerStream", late)
        try:
            chat.ask(IMAGE, "Two?", stream=stream)
        except CancelledError as exc:
            chat.ask(IMAGE, "Three?")
            del exc
    gc.collect()
    assert turns(chat) == [("<image>Three?", "hello")]
