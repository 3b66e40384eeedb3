"""What is fed to the model next: pure text logic."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from fake_engine import render

from pyaircache import UnsupportedError
from pyaircache.chat.conversation import Turn, next_prompt
from pyaircache.chat.messages import Given
from pyaircache.engine.structs import Message


def user(content: str) -> list[Message]:
    return [Message("user", content)]


def turn(render_with, turns: list[Turn], content: str, answer: str) -> Turn:
    rendered, fed = next_prompt(render_with, turns, user(content))
    return Turn([Given("user", content)], rendered, fed, answer=answer)


def test_first_question_is_fed_whole():
    rendered, fed = next_prompt(render, [], user("What?"))
    assert rendered == fed == "<s>user\nWhat?</s>\n<s>assistant\n"


def test_follow_up_begins_with_the_end_of_the_answer():
    turns = [turn(render, [], "<image>One?", "1")]
    rendered, fed = next_prompt(render, turns, user("Two?"))
    assert fed == "</s>\n<s>user\nTwo?</s>\n<s>assistant\n"
    assert rendered == turns[0].rendered + "1" + fed


def test_fed_texts_and_answers_make_up_the_conversation():
    turns: list[Turn] = []
    for number in range(4):
        turns.append(turn(render, turns, f"Q{number}", f"A{number}"))
    assert "".join(one.fed + one.answer for one in turns) == turns[-1].rendered + turns[-1].answer


def trimming(messages: Sequence[Message], generate: bool) -> str:
    return render([Message(m.role, m.content.strip()) for m in messages], generate)


def without_thoughts(messages: Sequence[Message], generate: bool) -> str:
    return render([Message(m.role, m.content.split("</think>")[-1]) for m in messages], generate)


def with_empty_thoughts(messages: Sequence[Message], generate: bool) -> str:
    shown = [Message(m.role, f"<think></think>{m.content}" if m.role == "assistant" else m.content) for m in messages]
    return render(shown, generate)


@pytest.mark.parametrize("template", [trimming, without_thoughts, with_empty_thoughts])
@pytest.mark.parametrize("answer", [" 1\n", "<think>hm</think>1", "1", ""])
def test_templates_that_change_answers(template, answer):
    turns = [turn(template, [], "One?", answer)]
    _, fed = next_prompt(template, turns, user("Two?"))
    assert fed.endswith("</s>\n<s>user\nTwo?</s>\n<s>assistant\n")
    assert "One?" not in fed
    third = [*turns, turn(template, turns, "Two?", answer)]
    assert "Two?" not in next_prompt(template, third, user("Three?"))[1]


def test_template_that_hides_answers_but_keeps_order():
    def blind(messages: Sequence[Message], generate: bool) -> str:
        return render([Message(m.role, "-" if m.role == "assistant" else m.content) for m in messages], generate)

    assert next_prompt(blind, [turn(blind, [], "One?", "1")], user("Two?"))[1] == "<s>user\nTwo?</s>\n<s>assistant\n"


def test_template_without_history_is_refused():
    def last_only(messages: Sequence[Message], generate: bool) -> str:
        return render(messages[-1:], generate)

    with pytest.raises(UnsupportedError, match="second question"):
        next_prompt(last_only, [turn(last_only, [], "One?", "1")], user("Two?"))
