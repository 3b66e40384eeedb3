"""Ctrl-C, and what a signal handler may do, at any point of a Chat's calls. On the engine without a model."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from threading_tools import IMAGE, PATIENCE, Stopped, queued, turns

import pyaircache
from pyaircache import BusyError, Chat, StateError
from pyaircache._gate import Gate, Lease
from pyaircache.answer import AnswerStream

class Interrupter:
    """Raises KeyboardInterrupt before the n-th line of this package's Python."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __enter__(self) -> Interrupter:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if "pyaircache" not in frame.f_code.co_filename or _in_finaliser(frame):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._trace


def _in_finaliser(frame: FrameType | None) -> bool:
    """What a finaliser raises reaches nobody: Python prints it."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def ask(chat: Chat) -> None:
    chat.ask(None, "Two?")


def stream(chat: Chat) -> None:
    list(chat.ask(None, "Two?", stream=True))


def stream_in_a_block(chat: Chat) -> None:
    with chat.ask(None, "Two?", stream=True) as stream:
        next(stream)
        next(stream)


def closed_stream(chat: Chat) -> None:
    stream = chat.ask(None, "Two?", stream=True)
    try:
        next(stream)
    finally:
        stream.close()


@pytest.mark.parametrize("call", [ask, Chat.reset])
def test_an_interrupt_at_any_line_leaves_the_chat_usable(fake, call: Callable[[Chat], None]):
    chat = Chat("fake.gguf")
    for n in range(1, 10_000):
        chat.reset(timeout=0)
        chat.ask(None, "One?")
        try:
            with Interrupter(n):
                call(chat)
        except KeyboardInterrupt as exc:
            # `exc` still holds on to the frames and all that is in them
            turns = [(turn.content, turn.answer) for turn in chat._session.turns]
            if call is ask:  # as it was before, or complete: never a half
                assert turns in ([("One?", "hello")], [("One?", "hello"), ("Two?", "hello")]), exc
            check_usable(chat)
        else:
            break
    assert n > 20


@pytest.mark.parametrize("call", [stream, stream_in_a_block, closed_stream])
def test_an_interrupt_at_any_line_of_a_stream_leaves_the_chat_usable(fake, call: Callable[[Chat], None]):
    chat = Chat("fake.gguf")
    for n in range(1, 10_000):
        chat.reset(timeout=0)
        chat.ask(None, "One?")
        try:
            with Interrupter(n):
                call(chat)
            break
        except KeyboardInterrupt:
            pass
        # The exception is forgotten, and with it a stream whose close() was interrupted in its first line
        check_usable(chat)
    assert n > 100


def check_usable(chat: Chat) -> None:
    """The Chat answers at once, and its engine holds the conversation."""
    chat.ask(None, "Three?", timeout=0)
    assert (chat._session.turns[-1].content, chat._session.turns[-1].answer) == ("Three?", "hello")
    log: list[Any] = chat._engine.log  # type: ignore[attr-defined]
    texts = [entry[1] for entry in log[len(log) - log[::-1].index("reset") :] if isinstance(entry, tuple)]
    assert "".join(texts).count("user") == len(chat._session.turns)


def test_an_interrupt_at_any_line_of_close(fake):
    for n in range(1, 10_000):
        chat = Chat("fake.gguf")
        try:
            with Interrupter(n):
                chat.close()
        except KeyboardInterrupt:
            chat.close(timeout=0)
            assert chat._engine.closed
        else:
            break
    assert n > 10


def test_a_forgotten_lease_opens_the_gate():
    gate = Gate()
    lease = Lease(gate, "something")
    gate.enter(lease, lambda: None)
    with pytest.raises(BusyError, match="something"):
        gate.hold(Lease(gate, "other"), lambda: None, timeout=0)
    del lease
    assert gate.hold(Lease(gate, "other"), lambda: 3, timeout=0) == 3
