"""Processes: a Chat is of no use in a forked child, which may make its own; and multiprocessing."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pyaircache import BusyError, Chat, ForkError, StateError
from pyaircache.engine import library

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")

# Python 3.12 and later warn of every fork of a process with threads
ignore_fork_warning = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

HANGS_S = 120


def in_child(function: Callable[[], Any]) -> Any:
    """What a function returns or raises in a forked child; a child that hangs is killed by its own alarm clock."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(HANGS_S)
        try:
            result = function()
        except BaseException as exc:
            result = exc
        with os.fdopen(write, "wb") as file:
            pickle.dump(result, file)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        data = file.read()
    _, status = os.waitpid(pid, 0)
    assert data, f"the child hung or died: status {status}"
    result = pickle.loads(data)
    if isinstance(result, BaseException):
        raise result
    return result


@pytest.fixture(params=[1, 2], scope="module")
def parent(engine, samples, request):
    """A Chat that has answered a question, with one thread and with two."""
    with Chat(n_threads=request.param) as chat:
        chat.ask(samples[0].picture, samples[0].question)
        yield chat


@ignore_fork_warning
def test_a_parents_chat_is_refused_in_the_child(parent, samples):
    sample = samples[0]
    for call in (
        lambda: parent.ask(sample.picture, sample.question),
        lambda: parent.ask(None, "And?", stream=True),
        lambda: parent.spans((28, 28)),
        parent.reset,
        parent.cancel,
        parent._engine.stats,
    ):
        with pytest.raises(ForkError, match=rf"made in process {os.getpid()}, and process \d+ was forked.*'spawn'"):
            in_child(call)
    assert issubclass(ForkError, StateError)
    assert parent.ask(sample.picture, sample.question, keep=1.0) == sample.answer


@ignore_fork_warning
def test_a_childs_end_leaves_the_parents_chat_alone(parent, samples):
    def close_and_drop() -> str:
        with parent:
            pass
        parent.__del__()
        return repr(parent)

    assert "Chat(" in in_child(close_and_drop)
    assert parent.ask(samples[0].picture, samples[0].question, keep=1.0) == samples[0].answer


@ignore_fork_warning
def test_a_parents_stream_is_refused_in_the_child(parent, samples):
    stream = parent.ask(samples[0].picture, samples[0].question, keep=1.0, stream=True)
    first = next(stream)
    with pytest.raises(ForkError):
        in_child(lambda: next(stream))
    in_child(stream.close)
    assert first + "".join(stream) == samples[0].answer


@ignore_fork_warning
def test_a_child_makes_its_own_chat(parent, samples):
    def ask() -> str:
        with Chat(n_threads=2) as chat:
            return str(chat.ask(samples[1].picture, samples[1].question, keep=1.0))

    assert in_child(ask) == samples[1].answer
    assert in_child(lambda: in_child(ask)) == samples[1].answer
    assert parent.ask(samples[0].picture, samples[0].question, keep=1.0) == samples[0].answer


@ignore_fork_warning
def test_a_fork_while_another_thread_computes(engine, samples):
    """The child must not wait for what the other thread holds: neither in the parent's Chat nor with one of its own."""
    inside, go_on = threading.Event(), threading.Event()

    def policy(scores: Any, total: int) -> Any:
        inside.set()
        assert go_on.wait(HANGS_S)
        layers, visual = scores.shape
        return [range(total // layers + (layer < total % layers)) for layer in range(layers)]

    with Chat(n_threads=2, method=policy, keep=0.5) as chat:
        answers: list[str] = []
        thread = threading.Thread(target=lambda: answers.append(chat.ask(samples[0].picture, "What?", max_tokens=2)))
        thread.start()
        assert inside.wait(HANGS_S)
        with pytest.raises(ForkError, match="made in process"):
            in_child(lambda: chat.ask(None, "And?"))
        with pytest.raises(ForkError, match="while another thread was computing"):
            in_child(lambda: Chat(n_threads=1))
        with pytest.raises(BusyError):
            chat.reset(timeout=0)
        go_on.set()
        thread.join(HANGS_S)
        assert len(answers) == 1


def answer_of_a_new_chat(picture: str, question: str) -> str:
    """What a worker process does; at the module's top, so that it can be pickled."""
    with Chat(n_threads=1, keep=1.0) as chat:
        return str(chat.ask(picture, question))


@ignore_fork_warning
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_multiprocessing(parent, samples, method):
    if method == "fork" and sys.platform == "darwin":
        pytest.skip("macOS' own libraries do not survive a fork")
    with multiprocessing.get_context(method).Pool(2) as pool:
        jobs = [pool.apply_async(answer_of_a_new_chat, (str(s.picture), s.question)) for s in samples[:2]]
        assert [job.get(HANGS_S) for job in jobs] == [s.answer for s in samples[:2]]


@ignore_fork_warning
def test_a_fork_leaves_no_lock_of_the_library_shut(engine):
    """Any thread can load it afterwards, here and in the child."""

    def loads() -> bool:
        thread = threading.Thread(target=library.load, daemon=True)
        thread.start()
        thread.join(HANGS_S / 4)
        return not thread.is_alive()

    assert in_child(loads) and loads()
