"""A Chat and several threads: queues, streams, close. On the engine without a model."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from threading_tools import IMAGE, PATIENCE, Stopped, queued, until

from pyaircache import (
    ArgumentError,
    BusyError,
    CancelledError,
    Chat,
    ContextError,
    PyAircacheError,
    PyAircacheWarning,
    StateError,
    UnsupportedError,
)
from pyaircache.chat import gate

# -- queue -------------------------------------------------------------------------------------------------------------


def test_a_stream_read_by_a_pools_threads_is_in_nobodys_way(chat, pool):
    stream = pool.submit(lambda: chat.ask(IMAGE, "What?", stream=True)).result()
    others = [pool.submit(chat.ask, IMAGE, f"And {i}?") for i in range(3)]
    pieces = []
    while (piece := pool.submit(next, stream, None).result(PATIENCE)) is not None:
        pieces.append(piece)
    assert pieces == ["h", "e", "l", "l", "o"]
    assert [other.result(PATIENCE) for other in others] == ["hello"] * 3


def test_calls_are_served_in_the_order_of_coming(chat, pool):
    stopped = Stopped(chat, "prompt")
    calls = [pool.submit(chat.ask, None, "0")]
    assert stopped.entered.wait(PATIENCE)
    for i in range(1, 6):
        calls.append(pool.submit(chat.ask, None, str(i)))
        queued(chat, i + 1)
    stopped.go_on.set()
    assert [call.result(PATIENCE) for call in calls] == ["hello"] * 6
    assert [turn.content for turn in chat._session.turns] == ["0", "1", "2", "3", "4", "5"]


def test_an_open_stream_is_waited_for(chat, pool):
    stream = chat.ask(IMAGE, "What?", stream=True)
    next(stream)
    other = pool.submit(chat.ask, None, "And?")
    queued(chat, 2)
    assert not other.done()
    assert stream.read() == "hello"
    assert other.result(PATIENCE) == "hello"
    assert [turn.answer for turn in chat._session.turns] == ["hello", "hello"]


@pytest.mark.parametrize(
    "call", [lambda chat: chat.ask(None, "And?", timeout=0), lambda chat: chat.reset(timeout=0.01),
             lambda chat: chat.spans((28, 28), timeout=0)])  # fmt: skip
def test_a_timeout_says_what_holds_the_chat(chat, pool, call):
    stream = chat.ask(IMAGE, "What?", stream=True)
    next(stream)
    with pytest.raises(BusyError, match=r"busy .*streamed answer to 'What\?', which is still open; .*cancel\(\)"):
        pool.submit(call, chat).result(PATIENCE)
    assert stream.read() == "hello"
    stopped = Stopped(chat, "prompt")
    asking = pool.submit(chat.ask, None, "Long?")
    assert stopped.entered.wait(PATIENCE)
    with pytest.raises(BusyError, match=r"busy after .* with the question 'Long\?'"):
        call(chat)
    stopped.go_on.set()
    assert asking.result(PATIENCE) == "hello"
    call(chat)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", float("inf")])
def test_wrong_timeouts(chat, timeout):
    for call in (chat.reset, chat.close, lambda timeout: chat.ask(None, "What?", timeout=timeout)):
        with pytest.raises(ArgumentError, match="timeout"):
            call(timeout=timeout)
    assert chat.ask(None, "What?") == "hello"


def test_the_only_thread_is_not_left_waiting_for_itself(chat, monkeypatch):
    monkeypatch.setattr(sys, "_current_frames", lambda: {1: None})  # pytest's plugins may have threads
    stream = chat.ask(IMAGE, "What?", stream=True)
    next(stream)
    for call in (lambda: chat.ask(None, "And?"), chat.reset, lambda: chat.spans((28, 28))):
        with pytest.raises(BusyError, match="still open"):
            call()
    assert stream.read() == "hello"
    assert chat.ask(None, "And?") == "hello"


def test_a_long_wait_for_a_stream_that_nobody_reads_is_spoken_of(chat, pool, monkeypatch):
    monkeypatch.setattr(gate, "_IDLE_S", 0.0)
    stream = chat.ask(IMAGE, "What?", stream=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        other = pool.submit(chat.ask, None, "And?")
        queued(chat, 2)
        stream.read()
        other.result(PATIENCE)
    assert [one.category for one in caught] == [PyAircacheWarning]
    assert "which nobody is reading" in str(caught[0].message)


def test_several_threads_read_one_stream(chat, pool):
    stream = chat.ask(IMAGE, "What?", stream=True)
    start = threading.Barrier(4)

    def read() -> list[str]:
        start.wait(PATIENCE)
        return list(stream)

    pieces = [one for part in [pool.submit(read) for _ in range(4)] for one in part.result(PATIENCE)]
    assert sorted(pieces) == sorted("hello")
    assert stream.answer == "hello" and chat._session.turns[0].answer == "hello"


def test_the_stream_of_a_dead_thread_blocks_nobody(chat, pool):
    def begin() -> None:
        next(chat.ask(IMAGE, "What?", stream=True))  # and forgets it

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join(PATIENCE)
    gc.collect()
    assert pool.submit(chat.ask, None, "And?").result(PATIENCE) == "hello"


def test_reset_waits_and_leaves_the_stream_valid(chat, pool):
    stream = chat.ask(IMAGE, "What?", stream=True)
    next(stream)
    resetting = pool.submit(chat.reset)
    queued(chat, 2)
    assert stream.read() == "hello" and stream.report.stop_reason == "end"
    resetting.result(PATIENCE)
    assert chat._session.turns == []


def test_threads_that_do_everything_at_once(fake, monkeypatch):
    """Each answer is right or cancelled, no two threads are inside the engine, and nobody waits for ever."""
    inside = threading.Lock()

    def alone(call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*arguments: Any, **options: Any) -> Any:
            assert inside.acquire(blocking=False), "two threads are inside the engine"
            try:
                return call(*arguments, **options)
            finally:
                inside.release()

        return checked

    for name in ("prompt", "decode", "sample", "layout", "stats", "compress"):
        monkeypatch.setattr(fake, name, alone(getattr(fake, name)))
    chat = Chat("fake.gguf", keep=0.5)
    start = threading.Barrier(6)
    done: list[str] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        start.wait(PATIENCE)
        for step in range(60):
            kind = random.integers(7)
            try:
                if kind == 0:
                    stream = chat.ask(IMAGE, "What?", stream=True)
                    assert "".join(stream) == "hello"
                elif kind == 1:
                    next(chat.ask(None, "What?", stream=True))  # and dropped
                elif kind == 2:
                    with chat.ask(None, "What?", stream=True) as stream:
                        next(stream)
                elif kind == 3:
                    chat.reset()
                elif kind == 4:
                    chat.spans((28, 28))
                elif kind == 5 and step % 5 == 0:
                    chat.cancel()
                else:
                    assert chat.ask(IMAGE if step % 2 else None, "What?") == "hello"
            except (CancelledError, BusyError, ContextError):
                pass
        done.append("done")

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(done) == 6
    chat.reset(timeout=0)
    assert chat.ask(IMAGE, "What?", timeout=0) == "hello"
    chat.close(timeout=0)


# -- close -------------------------------------------------------------------------------------------------------------


def test_close_ends_a_stream_that_nobody_reads(fake):
    with Chat("fake.gguf") as chat:
        stream = chat.ask(IMAGE, "What?", stream=True)
        next(stream)
    assert stream.done and stream.report.stop_reason == "closed" and stream.answer == "h"
    with pytest.raises(StateError, match="the Chat was closed before this answer was complete"):
        next(stream)
    complete = Chat("fake.gguf")
    stream = complete.ask(IMAGE, "What?", stream=True)
    stream.read()
    complete.close()
    assert list(stream) == []


def test_close_waits_for_the_call_that_is_running(fake, pool):
    chat = Chat("fake.gguf")
    stopped = Stopped(chat, "decode")
    asking = pool.submit(chat.ask, IMAGE, "What?")
    assert stopped.entered.wait(PATIENCE)
    with pytest.raises(BusyError, match=r"the question 'What\?'"):
        chat.close(timeout=0)
    closing = pool.submit(chat.close)
    queued(chat, 2)
    waiting = pool.submit(chat.ask, None, "And?")
    queued(chat, 3)
    stopped.go_on.set()
    assert asking.result(PATIENCE) == "hello"
    closing.result(PATIENCE)
    with pytest.raises(StateError, match="closed"):
        waiting.result(PATIENCE)


def test_close_ends_a_stream_after_the_step_that_is_running(fake, pool):
    chat = Chat("fake.gguf")
    stream = chat.ask(IMAGE, "What?", stream=True)
    next(stream)
    stopped = Stopped(chat, "decode")
    step = pool.submit(next, stream)
    assert stopped.entered.wait(PATIENCE)
    closing = pool.submit(chat.close)
    queued(chat, 2)
    stopped.go_on.set()
    assert step.result(PATIENCE) == "e"
    closing.result(PATIENCE)
    with pytest.raises(StateError, match="was closed"):
        next(stream)


def test_close_is_not_kept_waiting_by_readers_who_queue_for_a_stream(chat, pool):
    stream = chat.ask(IMAGE, "What?", stream=True)
    next(stream)
    stopped = Stopped(chat, "decode")
    first = pool.submit(next, stream)
    assert stopped.entered.wait(PATIENCE)
    second = pool.submit(next, stream)
    until(lambda: len(stream._steps._queue) == 2)
    closing = pool.submit(chat.close)
    until(lambda: stream._ending)
    stopped.go_on.set()
    assert first.result(PATIENCE) == "e"
    with pytest.raises(StateError, match="was closed"):
        second.result(PATIENCE)
    closing.result(PATIENCE)


def test_a_close_that_came_too_early_leaves_the_chat_open(chat, pool):
    stopped = Stopped(chat, "prompt")
    asking = pool.submit(chat.ask, IMAGE, "What?")
    assert stopped.entered.wait(PATIENCE)
    with pytest.raises(BusyError):
        chat.close(timeout=0)
    stopped.go_on.set()
    assert asking.result(PATIENCE) == "hello"
    assert chat.ask(None, "And?") == "hello"


# -- copies ------------------------------------------------------------------------------------------------------------


def test_a_chat_is_not_pickled_or_copied(chat):
    stream = chat.ask(IMAGE, "What?", stream=True)
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        for what in (chat, stream):
            with pytest.raises(UnsupportedError) as caught:
                call(what)
            assert isinstance(caught.value, PyAircacheError)
    assert stream.read() == "hello"
