"""The options that every question takes: listed once, shown everywhere, and one that does not exist is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest

from pyaircache import ArgumentError, AskOptions, AsyncChat, Chat
from pyaircache.chat.options import Options

IMAGE = np.zeros((2, 3, 3), np.uint8)
NAMES = list(AskOptions.__annotations__)
CALLS = [Chat.ask, Chat.complete, AsyncChat.ask, AsyncChat.complete]


@pytest.fixture
def chat(fake: object) -> Chat:
    """A Chat on an engine without a model."""
    return Chat("fake.gguf", keep=0.5)


def begun_with(chat: Chat) -> list[str]:
    """The system message that each prompt begins with; "" without one."""
    texts = [entry[1] for entry in chat._engine.log if isinstance(entry, tuple) and entry[0] == "prompt"]  # type: ignore[attr-defined]
    return [text.partition("\n")[2].partition("</s>")[0] if text.startswith("<s>system") else "" for text in texts]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__qualname__)
def test_signatures_and_help_show_every_option(call: Any) -> None:
    shown = inspect.signature(call).parameters
    assert list(shown)[-len(NAMES) :] == NAMES
    assert "options" not in shown and shown["max_tokens"].default == 256 and shown["keep"].default is None
    assert all(f"\n    {name}: " in inspect.getdoc(call) for name in NAMES)


def test_options_and_their_checked_form_have_the_same_names() -> None:
    checked = {one.name for one in dataclasses.fields(Options)}
    assert checked - {"choice", "reported_seed"} == set(NAMES) - {"method", "timeout", "on_progress"}


def test_an_option_that_does_not_exist(chat: Chat) -> None:
    with pytest.raises(TypeError, match=r"ask\(\) has no option 'max_token'; did you mean 'max_tokens'\?"):
        chat.ask(None, "What?", max_token=5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"complete\(\) has no option 'colour'; its options are reuse, stream, keep, "):
        chat.complete([], colour="red")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="'top_q'; did you mean 'top_p' or 'top_k'"):
        asyncio.run(AsyncChat("fake.gguf").ask(None, "What?", top_q=5))  # type: ignore[call-overload]
    assert chat.messages == []


def test_a_system_message_per_question(fake: object) -> None:
    with Chat("fake.gguf", system="Be brief.") as chat:
        chat.ask(None, "One?", system="Be long.")
        chat.ask(None, "Two?")  # follows: nothing new in front of it
        chat.ask(IMAGE, "Three?")
        chat.ask(None, "Four?", follow_up=False, system=False)
        list(chat.ask(IMAGE, "Five?", system="Rhyme.", stream=True))
        assert begun_with(chat) == ["Be long.", "", "Be brief.", "", "Rhyme."]
        assert chat.messages[0] == {"role": "system", "content": "Rhyme."}


def test_messages_with_a_system_message_beside_them(chat: Chat) -> None:
    user = {"role": "user", "content": "One?"}
    assert chat.complete([user], system="Be brief.").report.parameters["system"] == "Be brief."
    chat.complete([user, {"role": "assistant", "content": chat.messages[-1]["content"]}, user], system="Be brief.")
    assert begun_with(chat) == ["Be brief.", ""]  # the same conversation goes on
    with pytest.raises(ArgumentError, match="the messages have a system message already"):
        chat.complete([{"role": "system", "content": "Be long."}, user], system="Be brief.")
    chat.complete([{"role": "system", "content": "Be long."}, user], system=False)
    assert begun_with(chat)[2:] == ["Be long."]


def test_a_follow_up_cannot_change_the_system_message(chat: Chat) -> None:
    chat.ask(None, "One?", system="Be brief.")
    chat.ask(None, "Two?", system="Be brief.")
    with pytest.raises(ArgumentError, match="which began with the system message 'Be brief.'; got 'Be long.'"):
        chat.ask(None, "Three?", system="Be long.")
    with pytest.raises(ArgumentError, match="began with .* got None"):
        chat.ask(IMAGE, "Three?", follow_up=True, system=False)
    chat.reset()
    chat.ask(None, "One?")
    with pytest.raises(ArgumentError, match="which has no system message; got 'Be brief.'"):
        chat.ask(None, "Two?", system="Be brief.")
    assert len(chat.messages) == 2


def test_a_system_message_for_coroutines(fake: object) -> None:
    async def ask() -> list[str]:
        async with AsyncChat("fake.gguf", system="Be brief.") as chat:
            await chat.ask(None, "One?", system="Be long.")
            await chat.complete([{"role": "user", "content": "Two?"}], system=False)
            return begun_with(chat.chat)

    assert asyncio.run(ask()) == ["Be long.", ""]


@pytest.mark.parametrize("wrong", ["", " ", 5, True, ["Be brief."]])
def test_a_system_message_that_is_none(chat: Chat, wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="system must be a text that is not empty"):
        chat.ask(None, "One?", system=wrong)
