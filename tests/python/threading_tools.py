"""What the tests of a Chat and several threads share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from pyaircache import Chat

IMAGE = np.zeros((28, 28, 3), np.uint8)
PATIENCE = 30  # seconds until a test says that something hangs


def until(done: Callable[[], object]) -> None:
    """Returns when something that another thread does is done."""
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, "this hangs"
        threading.Event().wait(0.001)  # only hands the processor on: what is waited for is the other thread


def queued(chat: Chat, count: int) -> None:
    """Returns when so many calls are in the Chat's queue."""
    until(lambda: len(chat._gate._queue) >= count)


def turns(chat: Chat) -> list[tuple[str, str]]:
    """The conversation: questions and answers."""
    return [(turn.content, turn.answer) for turn in chat._session.turns]


class Stopped:
    """The engine's next call of a name stops until it is let go on."""

    def __init__(self, chat: Chat, name: str) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        chat._engine.hooks[name] = self._stop  # type: ignore[attr-defined]

    def _stop(self) -> None:
        self.entered.set()
        assert self.go_on.wait(PATIENCE)
