"""Ctrl-C, and what a signal handler may do, at any point of a Chat's calls. On the engine without a model."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from threading_tools import IMAGE, PATIENCE, Stopped, queued, turns

import pyaircache
from pyaircache import BusyError, Chat, StateError
from pyaircache.chat.gate import Gate, Lease

ONE = ("One?", "hello")
PACKAGE = str(Path(pyaircache.__file__).parent)


class Interrupter:
    """Raises KeyboardInterrupt before the n-th line of this package's Python, or the n-th step of some functions."""

    def __init__(self, n: int, steps_of: tuple[str, ...] = ()) -> None:
        self.left = n
        self.steps_of = steps_of

    def __enter__(self) -> Interrupter:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        inside = frame.f_code.co_filename.startswith(PACKAGE) or frame.f_code.co_name in self.steps_of
        if not inside or _in_finaliser(frame):
            return None
        if self.steps_of:
            frame.f_trace_opcodes = frame.f_code.co_name in self.steps_of
        if event == ("opcode" if self.steps_of else "line"):
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


def begin_stream(chat: Chat) -> None:
    stream = chat.ask(None, "Two?", stream=True)
    del stream


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
            found = turns(chat)
            if call is ask:  # as it was before, or complete: never a half
                assert found in ([ONE], [ONE, ("Two?", "hello")]), exc
        else:
            break
        assert turns(chat) == found  # nothing comes behind, when the frames are gone
        check_usable(chat)
    assert n > 20


# Answers that an interrupted question may have. A stream that is dropped between two steps keeps what it has, which is
# never nothing; so does one that was closed as it should, then also with nothing.
PARTS = {
    stream: ["h", "he", "hel", "hell", "hello"],
    stream_in_a_block: ["h", "he"],
    closed_stream: ["", "h"],
}


@pytest.mark.parametrize("call", PARTS)
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
        assert turns(chat) == [ONE] or turns(chat) in [[ONE, ("Two?", part)] for part in PARTS[call]]
        check_usable(chat)
    assert n > 100


@pytest.mark.parametrize("call", [ask, begin_stream])
def test_an_interrupt_at_any_step_of_what_hands_a_stream_over(fake, call: Callable[[Chat], None]):
    """Between two bytecodes the stream is in no variable: it is lost on its way, and the question never was."""
    chat = Chat("fake.gguf")
    for n in range(1, 10_000):
        chat.reset(timeout=0)
        chat.ask(None, "One?")
        try:
            with Interrupter(n, ("begin_stream", "ask", "begin", "enter", "hold", "<lambda>")):
                call(chat)
            break
        except KeyboardInterrupt:
            pass
        assert turns(chat) in ([ONE], [ONE, ("Two?", "hello")] if call is ask else [ONE]), n
        chat.ask(None, "Three?", timeout=0)
    assert n > 100


def test_an_interrupted_question_does_not_overwrite_a_newer_one(fake):
    """What the exception of the first keeps alive is forgotten after the second."""
    chat = Chat("fake.gguf")
    for n in range(1, 10_000):
        chat.reset(timeout=0)
        try:
            with Interrupter(n, ("begin",)):
                chat.ask(None, "Two?", stream=True).close()
            break
        except KeyboardInterrupt as exc:
            chat.ask(None, "Newer?")
            del exc
        assert turns(chat) == [("Newer?", "hello")]
        chat.reset(timeout=0)
    assert n > 20


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


# -- calls from the middle of a call of the same thread ----------------------------------------------------------------


def test_a_call_from_the_middle_of_a_wait_is_refused():
    """It would wait for the call that it came into the middle of."""
    gate = Gate()
    open_lease = Lease(gate, "something")
    gate.enter(open_lease, lambda: None)
    caught: list[BaseException] = []

    def nested() -> None:
        with pytest.raises(StateError) as error:
            gate.hold(Lease(gate, "a nested call"), lambda: None, timeout=PATIENCE)
        caught.append(error.value)
        gate.release(open_lease)

    gate.hold(Lease(gate, "the outer call"), lambda: None, waiting=nested)
    assert [type(one) for one in caught] == [StateError] and "in the middle of the outer call" in str(caught[0])


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals between threads here")
def test_a_signal_handler_that_asks_while_its_thread_waits(chat: Chat, pool):
    caught: list[BaseException] = []

    def handler(*arguments: object) -> None:
        try:
            chat.spans((28, 28), timeout=PATIENCE)
        except StateError as exc:
            caught.append(exc)
        stopped.go_on.set()

    stopped = Stopped(chat, "prompt")
    asking = pool.submit(chat.ask, IMAGE, "What?")
    assert stopped.entered.wait(PATIENCE)

    def interrupt() -> None:
        queued(chat, 2)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        interrupting = pool.submit(interrupt)
        chat.reset()
    finally:
        signal.signal(signal.SIGUSR1, before)
    interrupting.result(PATIENCE)
    assert asking.result(PATIENCE) == "hello" and turns(chat) == []
    assert [type(one) for one in caught] == [StateError] and "in the middle of reset()" in str(caught[0])


def test_a_thread_may_wait_for_its_own_stream_which_another_one_reads(chat: Chat, pool):
    stream = chat.ask(IMAGE, "What?", stream=True)

    def read() -> str:
        queued(chat, 2)
        return stream.read()

    reading = pool.submit(read)
    assert chat.ask(None, "And?") == "hello" and reading.result(PATIENCE) == "hello"


# -- streams that are lost ---------------------------------------------------------------------------------------------


def test_a_stream_in_a_cycle_leaves_the_next_question_alone(chat: Chat, pool, monkeypatch):
    """The collector opens the gate before it finalises the stream, which must then keep its hands off the engine."""
    stream = chat.ask(IMAGE, "What?", stream=True)
    next(stream)
    stopped = Stopped(chat, "prompt")
    threads = []
    stats = chat._engine.stats
    monkeypatch.setattr(chat._engine, "stats", lambda: (threads.append(threading.get_ident()), stats())[1])
    lease = stream._lease
    lease.gate.release(lease)  # as the collector clears the queue's reference first
    del lease
    asking = pool.submit(chat.ask, IMAGE, "Next?")
    assert stopped.entered.wait(PATIENCE)
    stream.me = stream
    del stream
    gc.collect()
    assert threading.get_ident() not in threads and turns(chat) == []
    stopped.go_on.set()
    assert asking.result(PATIENCE) == "hello" and turns(chat) == [("<image>Next?", "hello")]
