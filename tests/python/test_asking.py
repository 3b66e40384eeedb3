"""What may be asked, and what a conversation is. On the engine without a model."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from fake_engine import MARKER
from PIL import Image
from threading_tools import IMAGE, turns

from pyaircache import (
    ArgumentError,
    CancelledError,
    Chat,
    Last,
    Method,
    Model,
    PolicyContext,
    PyAircacheWarning,
    StateError,
    UnsupportedError,
)


def prompts(chat: Chat) -> list[str]:
    return [entry[1] for entry in chat._engine.log if isinstance(entry, tuple) and entry[0] == "prompt"]


def text(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


# -- options -----------------------------------------------------------------------------------------------------------


def test_a_method_per_question(chat):
    assert chat.ask(IMAGE, "What?", method="snapkv").report.method == "snapkv"
    assert chat._engine.method.window == 1
    assert chat.ask(IMAGE, "What?", method=Method(window=Last(3))).report.method.startswith("window=last:3")
    assert chat.ask(IMAGE, "What?", method="full").report.budgets.tolist() == [6, 6]
    assert chat.ask(IMAGE, "What?").report.method == "aircache"


def test_a_method_that_has_no_effect_is_spoken_of(chat):
    chat.ask(IMAGE, "What?")
    with pytest.warns(
        PyAircacheWarning, match=r"keep=0.1 and method=snapkv have no effect: a follow-up reads its image"
    ):
        chat.ask(None, "And?", keep=0.1, method="snapkv")


def test_everything_that_was_asked_for_reaches_the_engine_and_the_report(chat):
    options = {"temperature": 0.5, "top_k": 3, "top_p": 0.75, "min_p": 0.25, "repeat_penalty": 1.5, "seed": 7}
    report = chat.ask(None, "What?", **options, max_tokens=9, stop=["x"], grammar="root ::= [a-z]+", logprobs=2).report
    sampling = vars(chat._engine.sampling)
    assert {name: sampling[name] for name in options} == options
    assert sampling["grammar"] == "root ::= [a-z]+" and sampling["json_schema"] is None
    more = {"max_tokens": 9, "stop": ["x"], "grammar": "root ::= [a-z]+", "logprobs": 2, "json_schema": None}
    head = {"keep": 0.5, "method": "aircache", "system": False}
    assert report.parameters == {**options, **more, **head} and report.seed == 7
    assert json.loads(json.dumps(report.to_dict()))["parameters"] == report.parameters
    again = chat.ask(IMAGE, "What?", **report.parameters).report
    assert (again.parameters, again.alpha) == (report.parameters, 0.9)
    assert chat.ask(IMAGE, "What?", method=Method()).report.parameters["method"] == str(Method())
    assert "parameters" not in report.to_dict(scalars_only=True)


@pytest.mark.parametrize("schema", [{"type": "integer"}, '{"type": "integer"}'])
def test_schemas_are_objects_or_texts(chat, schema):
    chat.ask(None, "What?", json_schema=schema)
    assert json.loads(chat._engine.sampling.json_schema) == {"type": "integer"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": -1}, "top_k must be a whole number from 0"),
        ({"top_p": 0}, "top_p must be greater than 0 and at most 1, got 0"),
        ({"min_p": 1.5}, "min_p must be a number of at least 0 and at most 1, got 1.5"),
        ({"repeat_penalty": 0}, "repeat_penalty must be a number of at least 0.01 and at most 100, got 0"),
        ({"seed": 2**32 - 1}, "seed must be a whole number from 0 to 4294967294"),
        ({"stop": [""]}, "stop must be texts of 1 to 1024 characters, got ''"),
        ({"stop": "\ud800"}, "text is not valid Unicode"),
        ({"timeout": float("inf")}, "must be a finite number of at least 0, or None: for ever; got inf"),
        ({"stop": 3}, "stop must be a list of texts, got 3"),
        ({"stop": ["x"] * 65}, "stop must be at most 64 texts, got 65"),
        ({"json_schema": True}, "json_schema must be a JSON schema: an object"),
        ({"json_schema": "{"}, "json_schema must be a JSON schema"),
        ({"json_schema": "[1]"}, r"json_schema must be a JSON schema.* got '\[1\]'"),
        ({"json_schema": {"a": object()}}, "json_schema must be a JSON schema"),
        ({"grammar": " "}, "grammar must be the text of a GBNF grammar"),
        ({"grammar": "root ::= [a]", "json_schema": {}}, "give one of them"),
        ({"logprobs": -1}, "logprobs must be a whole number from 0 to 1024"),
        ({"on_progress": 3}, r"on_progress must be a function of \(stage, done, total\), got 3"),
        ({"follow_up": 1}, "follow_up must be True or False"),
        ({"method": "magic"}, "unknown method 'magic'"),
    ],
)
def test_wrong_values(chat, options, message):
    with pytest.raises(ArgumentError, match=message):
        chat.ask(None, "What?", **options)
    assert turns(chat) == []


def test_logprobs_of_an_answer(chat):
    answer = chat.ask(None, "What?", logprobs=2)
    assert [one.text for one in answer.logprobs] == list("hello")
    first = answer.logprobs[0]
    assert (first.id, first.logprob, [one.logprob for one in first.top]) == (ord("h") + 1, -0.5, [0.0, -1.0])
    assert chat.ask(None, "What?").logprobs == []


def test_progress_is_told_and_may_end_the_question(chat):
    chat.ask(IMAGE, "One?")
    told = []
    chat.ask(None, "Two?", on_progress=lambda *stage: told.append(stage))
    assert [stage[:2] for stage in told] == [("prefill", 0)]
    before = turns(chat)
    for error in (ZeroDivisionError(), CancelledError("mine")):  # the second must not pass for a late `cancel`

        def stop(stage: str, done: int, total: int, error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)):
            chat.ask(IMAGE, "Three?", on_progress=stop)
        assert turns(chat) == before
    assert chat.ask(None, "Four?") == "hello"
    assert len(turns(chat)) == 3


def test_progress_of_loading(fake):
    told = []
    Chat("fake.gguf", on_progress=lambda *stage: told.append(stage)).close()
    assert told == [("load", 0, 1000), ("load", 1000, 1000)]


# -- conversation ------------------------------------------------------------------------------------------------------


def test_a_system_message_begins_every_conversation(fake):
    with Chat("fake.gguf", system="Be brief.") as chat:
        chat.ask(None, "One?")
        chat.ask(None, "Two?")
        chat.ask(IMAGE, "Three?")
        assert prompts(chat)[0] == "<s>system\nBe brief.</s>\n<s>user\nOne?</s>\n<s>assistant\n"
        assert "system" not in prompts(chat)[1] and prompts(chat)[2].startswith("<s>system")
        chat.complete([text("system", "Be long."), text("user", "Four?")])
        chat.complete([text("user", "Five?")])
        assert prompts(chat)[3].count("system") == prompts(chat)[4].count("system") == 1
    for wrong in ("", 3):
        with pytest.raises(ArgumentError, match="system must be a text"):
            Chat("fake.gguf", system=wrong)


def test_a_new_picture_inside_a_conversation(chat):
    chat.ask(IMAGE, "One?")
    second = chat.ask(IMAGE, "Two?", follow_up=True, keep=0.25)
    assert second.report.keep == 0.25 and second.report.visual_tokens == 6
    assert (second.report.n_encoded, second.report.n_reused) == (0, 1)
    assert prompts(chat)[1] == f"</s>\n<s>user\n{MARKER}Two?</s>\n<s>assistant\n"
    assert chat._engine.log.count("reset") == 1
    assert [entry[1] for entry in chat._engine.log if isinstance(entry, tuple) and entry[0] == "compress"] == [
        0.5,
        0.25,
    ]
    third = chat.ask(None, "Three?")
    assert third.report.keep == 0.25 and len(turns(chat)) == 3
    chat.ask(None, "Alone?", follow_up=False)
    assert turns(chat) == [("Alone?", "hello")]


def test_messages_are_what_complete_takes(chat):
    chat.ask(IMAGE, "One?")
    chat.ask(None, "Two?")
    messages = chat.messages
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
    picture, question = messages[0]["content"]
    assert picture["image_url"]["url"] is IMAGE and question == {"type": "text", "text": "One?"}
    assert messages[2]["content"] == "Two?" and messages[3]["content"] == "hello"
    messages.append(text("user", "Three?"))
    assert len(chat.messages) == 4  # a copy
    chat._engine.log.clear()
    assert chat.complete(messages) == "hello"
    assert prompts(chat) == ["</s>\n<s>user\nThree?</s>\n<s>assistant\n"] and "reset" not in chat._engine.log


def test_undo_is_as_if_it_had_never_been_asked(chat):
    chat.ask(IMAGE, "One?")
    before = chat._engine.log[:]
    chat.ask(None, "Two?")
    chat.undo()
    assert turns(chat) == [(f"{MARKER}One?", "hello")]
    chat._engine.log.clear()
    chat.ask(None, "Three?")
    assert chat._engine.log[: len(before)] == before
    chat.undo()
    chat.undo()
    with pytest.raises(StateError, match="nothing to undo"):
        chat.undo()
    assert chat.messages == []


def test_complete_reuses_what_is_the_same(chat):
    first = [text("system", "Brief."), text("user", [part(IMAGE), {"type": "text", "text": "One?"}])]
    assert chat.complete(first) == "hello"
    assert prompts(chat) == [f"<s>system\nBrief.</s>\n<s>user\n{MARKER}One?</s>\n<s>assistant\n"]
    more = [*first, text("assistant", "hello"), text("user", "Two?")]
    chat.complete(more)
    assert prompts(chat)[1:] == ["</s>\n<s>user\nTwo?</s>\n<s>assistant\n"]
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant", "user", "assistant"]

    def again(messages: list[dict[str, Any]], **options: Any) -> list[str]:
        chat._engine.log.clear()
        chat.complete(messages, **options)
        return prompts(chat)

    # the same beginning, another end: evaluated again as it was, with the same pictures
    assert again([*more[:-1], text("user", "Other?")])[-1] == "</s>\n<s>user\nOther?</s>\n<s>assistant\n"
    # other words of the assistant, another picture, another keep or method, or no wish to: one prompt
    other = [first[0], text("user", [part(IMAGE + 1), {"type": "text", "text": "One?"}]), *more[2:]]
    for messages, options in (
        ([*first, text("assistant", "bye"), text("user", "Two?")], {}),
        (other, {}),
        (other, {"keep": 0.25}),
        (other, {"keep": 0.25, "method": "snapkv"}),
        (other, {"keep": 0.25, "method": "snapkv", "reuse": False}),
    ):
        assert len(again(messages, **options)) == 1, options


def part(image: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": image}}


def test_pictures_in_messages(chat, tmp_path):
    out = io.BytesIO()
    Image.fromarray(IMAGE).save(out, "PNG")
    file = tmp_path / "page.png"
    file.write_bytes(out.getvalue())
    uri = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    for url in (uri, file, out.getvalue(), IMAGE):
        chat.complete([text("user", [{"type": "text", "text": "Before "}, part(url), {"type": "text", "text": "?"}])])
        assert prompts(chat)[-1] == f"<s>user\nBefore {MARKER}?</s>\n<s>assistant\n"
    chat.ask(str(file), "What?")
    assert chat.messages[0]["content"][0]["image_url"]["url"] == file


class Odd(dict[str, Any]):
    """A message of a class of its own."""


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages must be a list of at least one message"),
        ("What?", "messages must be a list"),
        (["What?"], r"messages\[0\] must be a dictionary with role and content, got 'What\?'"),
        ([text("tool", "x")], r"the role of messages\[0\] must be one of system, user, assistant; got 'tool'"),
        ([text("user", None)], r"the content of messages\[0\] must be a text or a list of parts, got None"),
        ([text("user", "x"), text("assistant", "y")], "the last message must be the user's"),
        ([text("user", [{"type": "audio"}])], r"the type of part 0 of messages\[0\] must be one of text, image_url"),
        ([text("user", [part("/etc/passwd")])], r"must be a data URI .* got '/etc/passwd'; for a file give pathlib"),
        ([text("user", [part(None)])], "must be a data URI"),
        ([text("user", [part([__file__])])], "must be a data URI"),
        ([text("user", [part([[__file__]])])], "must be a data URI"),
        ([text("user", [part((IMAGE,))])], "must be a data URI"),
        ([text("user", [{"type": "image_url", "image_url": [__file__]}])], "must be a data URI"),
        ([text("user", [{"type": "text", "text": 3}])], "must be a text, got 3"),
        ([text("system", [part(IMAGE)]), text("user", "x")], "only messages of the user may have"),
        ([{"role": "assistant", "content": "x", "tool_calls": [1]}, text("user", "x")], "calls a tool"),
        ([text("user", "a\0b")], "NUL"),
    ],
)
def test_wrong_messages(chat, messages, message):
    with pytest.raises(ArgumentError, match=message):
        chat.complete(messages)
    assert chat.complete([Odd(text("user", "What?"))]) == "hello" and isinstance(chat.messages[0], Mapping)


# -- one model ---------------------------------------------------------------------------------------------------------


def test_several_chats_on_one_model(fake):
    model = Model("fake.gguf", n_threads=1, image_cache_bytes=0)
    assert model.loaded.options["image_cache_bytes"] == 0 and model.info.architecture == "fake"
    with Chat(model) as one, Chat(model, n_threads=2, keep=0.5) as two:
        assert (one.model, one._engine.options["n_threads"], two._engine.options["n_threads"]) == (model, 1, 2)
        assert one.ask(IMAGE, "What?") == two.ask(None, "And?") == "hello"
        model.close()
        assert one.ask(None, "And?") == "hello"
        with pytest.raises(StateError, match="this Model is closed"):
            Chat(model)
    assert model.closed and "closed" in repr(model)
    with pytest.raises(UnsupportedError, match="pickled"):
        model.__reduce__()


def test_what_is_of_the_model_does_not_go_with_one(fake):
    with Model("fake.gguf") as model:
        for options in ({"mmproj": False}, {"n_gpu_layers": -1}, {"image_cache_bytes": 1}, {"rpc_servers": "a:1"}):
            with pytest.raises(ArgumentError, match=f"{next(iter(options))}: of the Model, which has been loaded"):
                Chat(model, **options)
        with Chat(model):
            pass
        assert not model.closed  # it is not the Chat's own
    with Chat("fake.gguf") as chat:
        pass
    assert chat.model.closed


# -- policies ----------------------------------------------------------------------------------------------------------


def halves(scores: np.ndarray, total: int) -> list[np.ndarray]:
    return [np.arange(total // 2)] * 2


def test_a_policy_names_its_window_keys_and_pooling(engine, fake):
    class Mine:
        window, keys, pool = "last:5", "causal", "avg:3"

        def __call__(self, scores: np.ndarray, total: int, *, context: PolicyContext) -> list[np.ndarray]:
            contexts.append(context)
            return halves(scores, total)

    contexts: list[PolicyContext] = []
    with Chat("fake.gguf", method=Mine(), keep=0.5) as chat:
        report = chat.ask(IMAGE, "What?").report
        method = chat._session.turns[0].method
        assert method is not None and (method.window, method.window_n, method.keys, method.pool) == (1, 5, 1, 1)
        assert report.method == "Mine" and report.alpha is None
    (context,) = contexts
    assert context.keep == 0.5 and context.spans == report.spans
    assert context.tokens.tolist() == [-1] * 6 + [5, 6] and [one.tolist() for one in context.observers] == [[7], [7]]


@pytest.mark.parametrize(("name", "value"), [("window", "first"), ("keys", "all"), ("pool", "max:2")])
def test_a_policy_that_names_nothing_that_is(fake, name, value):
    policy = type("Mine", (), {name: value, "__call__": lambda self, scores, total: []})()
    with pytest.raises(ArgumentError, match=name):
        Chat("fake.gguf", method=policy)
