"""Chat on an engine without a model: conversations, streams, locks, interruptions."""

from __future__ import annotations

import gc
import pickle
import socket

import numpy as np
import pytest
from fake_engine import MARKER

from pyaircache import (
    ArgumentError,
    Chat,
    ContextError,
    Elite,
    EngineError,
    Last,
    Method,
    ProjectorError,
    StateError,
    UnsupportedError,
)

IMAGE = np.zeros((28, 28, 3), np.uint8)
HELLO = [ord(c) + 1 for c in "hello"]


@pytest.fixture
def chat(fake):
    with Chat("fake.gguf", keep=0.5) as chat:
        yield chat


def fed(chat: Chat) -> list:
    return chat._engine.log


def last_text(chat: Chat) -> str:
    return [entry for entry in fed(chat) if isinstance(entry, tuple) and entry[0] == "prompt"][-1][1]


def test_question_with_image(chat):
    answer = chat.ask(IMAGE, "What?")
    assert answer == "hello"
    assert isinstance(answer, str)
    prompt = ("prompt", f"<s>user\n{MARKER}What?</s>\n<s>assistant\n", 1)
    assert fed(chat) == ["reset", prompt, ("compress", 0.5), *HELLO]
    report = answer.report
    assert report.budgets.tolist() == [2, 3]
    assert (report.kv_bytes_full, report.kv_bytes) == (1000, 400)
    assert (report.stop_reason, report.answer_tokens, report.visual_tokens) == ("end", 5, 6)
    assert report.ms_first_token > 0


def test_several_images_come_before_the_question(chat):
    chat.ask([IMAGE, IMAGE], "Which?")
    assert f"<s>user\n{MARKER}{MARKER}Which?</s>" in last_text(chat)


@pytest.mark.parametrize("options", [{"keep": 1.0}, {"keep": 1}])
def test_keep_1_runs_no_compression(chat, options):
    report = chat.ask(IMAGE, "What?", **options).report
    assert not any(entry[0] == "compress" for entry in fed(chat) if isinstance(entry, tuple))
    assert report.budgets.tolist() == [6, 6]
    assert report.scores.size == 0 and report.observers == []
    assert report.kv_bytes == report.kv_bytes_full


def test_method_full_runs_no_compression(fake):
    with Chat("fake.gguf", method="full", keep=0.1) as chat:
        chat.ask(IMAGE, "What?")
        assert not any(entry[0] == "compress" for entry in fed(chat) if isinstance(entry, tuple))


@pytest.mark.parametrize(
    ("options", "method", "alpha", "window"),
    [
        ({}, "aircache", 0.9, 0),
        ({"alpha": 0.5}, "aircache", 0.5, 0),
        ({"method": "snapkv"}, "snapkv", None, 1),
        ({"method": "random"}, "random", None, 0),
        ({"method": Method(window=Last(3))}, "window=last:3 keys=window allocation=strength+skewness", None, 1),
        ({"method": Method(window=Elite(0.3))}, "window=elite:0.3 keys=window allocation=strength+skewness", 0.3, 0),
    ],
)
def test_methods_reach_the_engine_and_the_report(fake, options, method, alpha, window):
    with Chat("fake.gguf", **options) as chat:
        report = chat.ask(IMAGE, "What?").report
        assert (report.method, report.alpha) == (method, alpha)
        assert chat._engine.method.window == window
        if alpha is not None:
            assert chat._engine.method.alpha == alpha
        assert f"method={method!r}" in repr(chat) and f"method={method!r}" in repr(report)


def test_follow_up_feeds_only_what_is_new(chat):
    chat.ask(IMAGE, "One?")
    report = chat.ask(None, "Two?").report
    assert last_text(chat) == "</s>\n<s>user\nTwo?</s>\n<s>assistant\n"
    assert report.visual_tokens == 0 and report.budgets.size == 0 and report.kept == []
    assert report.keep == 0.5
    assert fed(chat).count("reset") == 1


def test_last_token_is_fed_after_max_tokens(chat):
    answer = chat.ask(IMAGE, "One?", max_tokens=2)
    assert (answer, answer.report.stop_reason) == ("he", "max_tokens")
    assert fed(chat)[-1:] == HELLO[:1]
    chat.ask(None, "Two?")
    assert fed(chat)[3:6] == [*HELLO[:2], ("prompt", "</s>\n<s>user\nTwo?</s>\n<s>assistant\n", 0)]


def test_image_starts_a_new_conversation_and_reset_forgets(chat):
    chat.ask(IMAGE, "One?")
    chat.ask(IMAGE, "Two?")
    assert "One?" not in last_text(chat)
    chat.reset()
    chat.ask(None, "Three?")
    assert last_text(chat) == "<s>user\nThree?</s>\n<s>assistant\n"


def test_stream_is_the_same_as_the_answer(chat):
    stream = chat.ask(IMAGE, "What?", stream=True)
    with pytest.raises(StateError, match="complete"):
        _ = stream.report
    assert list(stream) == ["h", "e", "l", "l", "o"]
    assert stream.report.stop_reason == "end"
    assert stream.answer == "hello" and stream.answer.report is stream.report
    assert list(stream) == []


def test_closed_stream_counts_as_answer_and_frees_the_chat(chat):
    stream = chat.ask(IMAGE, "What?", stream=True)
    assert [next(stream), next(stream)] == ["h", "e"]
    stream.close()
    assert stream.report.stop_reason == "closed"
    chat.ask(None, "And?")
    assert fed(chat)[3:5] == HELLO[:2]
    assert chat._session.turns[0].answer == "he"


def test_dropped_stream_frees_the_chat(chat):
    for _ in chat.ask(IMAGE, "What?", stream=True):
        break
    gc.collect()
    assert chat.ask(None, "And?") == "hello"


def test_utf8_is_not_cut(fake, monkeypatch):
    monkeypatch.setattr(fake, "script", "3 €!".encode())
    with Chat("fake.gguf") as chat:
        assert list(chat.ask(None, "What?", stream=True)) == ["3", " ", "€", "!"]
        assert chat.ask(None, "What?", max_tokens=3) == "3 \ufffd"


def test_full_context_ends_the_answer(chat):
    chat._engine.n_ctx = 40
    answer = chat.ask(None, "What?")  # 33 characters
    assert answer.report.stop_reason in ("context", "end")
    with pytest.raises(ContextError):
        chat.ask(None, "And this is a longer one?")
    assert chat.ask(IMAGE, "x") is not None


@pytest.mark.parametrize("call", ["prompt", "compress", "reset"])
@pytest.mark.parametrize("when", ["fail", "fail_after"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), EngineError("no"), ContextError("too long")])
def test_failed_question_leaves_the_conversation_as_it_was(chat, call, when, error):
    chat.ask(IMAGE, "One?", max_tokens=3)
    before = fed(chat)[1:]
    getattr(chat._engine, when)[call] = error
    with pytest.raises(type(error)):
        chat.ask(IMAGE, "Two?")
    fed(chat).clear()
    assert chat.ask(None, "Three?") == "hello"
    # the first turn again, with its last token, which nobody had needed before
    assert fed(chat)[: len(before) + 2] == ["reset", *before, HELLO[2]]
    assert last_text(chat).startswith("</s>\n<s>user\nThree?")


def test_interrupted_follow_up_leaves_the_conversation_as_it_was(chat):
    chat.ask(IMAGE, "One?")
    for when in ("fail", "fail_after"):
        getattr(chat._engine, when)["prompt"] = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            chat.ask(None, "Two?")
        assert len(chat._session.turns) == 1
    assert chat.ask(None, "Three?") == "hello"
    texts = [entry[1] for entry in fed(chat) if isinstance(entry, tuple) and entry[0] == "prompt"]
    assert "Two?" not in texts[-1] and "Two?" not in texts[-2]


@pytest.mark.parametrize("when", ["fail", "fail_after"])
@pytest.mark.parametrize("call", ["decode", "sample"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), EngineError("no")])
def test_interrupted_stream_leaves_the_conversation_as_it_was(chat, when, call, error):
    chat.ask(None, "One?")
    stream = chat.ask(None, "Two?", stream=True)
    assert [next(stream), next(stream)] == ["h", "e"]
    getattr(chat._engine, when)[call] = error
    with pytest.raises(type(error)):
        next(stream)
    assert stream.report.stop_reason == ("interrupted" if isinstance(error, KeyboardInterrupt) else "error")
    assert list(stream) == []
    assert chat.ask(None, "Three?") == "hello"
    assert [turn.content for turn in chat._session.turns] == ["One?", "Three?"]
    assert last_text(chat) == "</s>\n<s>user\nThree?</s>\n<s>assistant\n"


@pytest.mark.parametrize("when", ["fail", "fail_after"])
@pytest.mark.parametrize("call", ["decode", "sample"])
def test_interrupted_ask_leaves_the_conversation_as_it_was(chat, when, call):
    chat.ask(IMAGE, "One?")
    for image in (None, IMAGE):
        getattr(chat._engine, when)[call] = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            chat.ask(image, "Two?")
        assert [(turn.content, turn.answer) for turn in chat._session.turns] == [(f"{MARKER}One?", "hello")]
    fed(chat).clear()
    assert chat.ask(None, "Three?") == "hello"
    prompts = [entry[1] for entry in fed(chat) if isinstance(entry, tuple) and entry[0] == "prompt"]
    assert prompts == [f"<s>user\n{MARKER}One?</s>\n<s>assistant\n", "</s>\n<s>user\nThree?</s>\n<s>assistant\n"]


def test_a_with_block_that_ends_by_an_exception_takes_the_question_back(chat):
    with pytest.raises(KeyboardInterrupt), chat.ask(IMAGE, "One?", stream=True) as stream:
        next(stream)
        raise KeyboardInterrupt
    assert stream.report.stop_reason == "interrupted" and chat._session.turns == []
    with chat.ask(IMAGE, "One?", stream=True) as stream:
        next(stream)
    assert stream.report.stop_reason == "closed" and chat._session.turns[0].answer == "h"


def test_text_model_asked_about_an_image(fake, monkeypatch):
    monkeypatch.setattr(fake, "vision", False)
    with Chat("fake.gguf") as chat:
        with pytest.raises(ProjectorError, match="mmproj"):
            chat.ask(IMAGE, "What?")
        assert chat.ask(None, "What?") == "hello"


def test_model_that_cannot_be_compressed(fake, monkeypatch):
    monkeypatch.setattr(fake, "can_compress", False)
    with Chat("fake.gguf") as chat:
        with pytest.raises(UnsupportedError, match=r"sliding windows.*keep=1\.0"):
            chat.ask(IMAGE, "What?")
        assert chat.ask(IMAGE, "What?", keep=1.0) == "hello"
        assert chat.ask(None, "What?") == "hello"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, r"keep must be greater than 0 and at most 1, got 0"),
        ({"keep": 10}, r"got 10"),
        ({"keep": float("nan")}, r"got nan"),
        ({"keep": "0.1"}, r"got '0.1'"),
        ({"max_tokens": 0}, r"max_tokens must be a whole number from 1"),
        ({"max_tokens": 2.5}, r"got 2.5"),
        ({"temperature": -1}, r"temperature must be a number of at least 0 and at most 1e\+06, got -1"),
        ({"temperature": float("inf")}, r"got inf"),
        ({"seed": -1}, r"seed must be a whole number"),
    ],
)
def test_wrong_values_of_ask(chat, options, message):
    with pytest.raises(ArgumentError, match=message):
        chat.ask(IMAGE, "What?", **options)
    assert chat.ask(IMAGE, "What?") == "hello"


@pytest.mark.parametrize("question", ["", "  ", None, 3, b"what?", "a\0b", "\ud800", ["what?"]])
def test_wrong_questions(chat, question):
    with pytest.raises(ArgumentError):
        chat.ask(IMAGE, question)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 1.5}, "keep must be"),
        ({"alpha": 0.0}, "alpha must be greater than 0 and at most 1"),
        ({"alpha": "0.5"}, "alpha must be greater than 0 and at most 1, got '0.5'"),
        ({"alpha": 2, "method": "full"}, "alpha must be greater than 0 and at most 1"),
        ({"method": "magic"}, "unknown method 'magic'; known methods: aircache, snapkv, random, full"),
        ({"method": None}, "method must be one of aircache, snapkv, random, full, a Method or a function, got None"),
        ({"method": Method}, "method must be one of"),
        ({"method": "snapkv", "alpha": 0.5}, "alpha is the threshold of elite windows, and method 'snapkv' has none"),
        ({"method": "random", "alpha": 0.5}, "method 'random' has none; got 0.5"),
        ({"method": Method(), "alpha": 0.9}, r"part of the window: Elite\(alpha\)"),
        ({"n_ctx": -1}, "n_ctx must be"),
        ({"n_gpu_layers": -2}, "n_gpu_layers must be"),
        ({"n_threads": 1.5}, "n_threads must be"),
    ],
)
def test_wrong_values_of_chat(fake, options, message):
    with pytest.raises(ArgumentError, match=message):
        Chat("fake.gguf", **options)


def test_closed_chat(fake):
    chat = Chat("fake.gguf")
    chat.close()
    chat.close()
    with pytest.raises(StateError, match="closed"):
        chat.ask(None, "What?")
    with pytest.raises(StateError, match="closed"):
        chat.reset()
    assert "closed" in repr(chat)


def test_answer_survives_pickling(chat):
    answer = pickle.loads(pickle.dumps(chat.ask(IMAGE, "What?")))
    assert answer == "hello" and answer.report.visual_tokens == 6


def test_rpc_servers(fake):
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in (one, two)]
        for given in (addresses, ", ".join(addresses)):
            with Chat("fake.gguf", rpc_servers=given) as chat:
                assert chat.model.loaded.options["rpc_servers"] == ",".join(addresses)
    with pytest.raises(EngineError, match=f"no RPC server answers at {addresses[0]}"):
        Chat("fake.gguf", rpc_servers=addresses)
    for wrong in ("localhost", "localhost:", ":50052", "localhost:x", "localhost:99999", ""):
        with pytest.raises(ArgumentError, match="host:port"):
            Chat("fake.gguf", rpc_servers=wrong)
