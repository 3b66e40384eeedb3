"""Stop texts: wherever the borders of tokens fall, the answer ends before the first that is complete."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyaircache import Chat
from pyaircache.chat.stops import Stops

LETTERS = st.text("ab", max_size=12)


def expected(text: str, stops: list[str]) -> str | None:
    """The text before the stop text that is complete first, the longest of those; None: there is none."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return None


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.lists(LETTERS, max_size=6))
def test_pieces_make_no_difference(texts, pieces):
    stops, through = Stops(texts), ""
    for piece in pieces:
        through += stops.push(piece)
        if stops.hit:
            break
        rest = "".join(pieces)[len(through) :]
        assert "".join(pieces).startswith(through)
        # nothing that a stop text may still take back has been let through
        assert all(not (through[-n:] + rest).startswith(text) for text in texts for n in range(1, len(text)) if through)
    want = expected("".join(pieces), texts)
    assert stops.hit == (want is not None)
    assert through + stops.rest() == ("".join(pieces) if want is None else want)


def test_cut_between_tokens_and_inside_one():
    def cut(texts: list[str], pieces: list[str]) -> tuple[int, int, str]:
        stops = Stops(texts)
        answer = "".join(map(stops.push, pieces))
        assert stops.hit
        return stops.cut(answer)

    assert cut(["lo"], ["hel", "lo"]) == (1, 1, "")
    assert cut(["l"], ["hel"]) == (0, 1, "he")
    assert cut(["x y"], ["a", "b x", " y"]) == (1, 2, "b ")
    assert cut(["a"], ["a"]) == (0, 0, "")


def test_a_token_that_ends_inside_a_character_is_not_kept():
    stops = Stops(["!"])
    assert stops.push("a") + stops.push("", whole=False) + stops.push("€!") == "a€"
    assert stops.cut("a€") == (1, 3, "€")


# -- in a Chat: the script is "hello", a letter a token ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "answer"),
    [("l", "he"), ("lo", "hel"), (["xyz", "ll"], "he"), ("h", ""), ("hello!", "hello"), (("lx", "o"), "hell")],
)
def test_an_answer_ends_before_a_stop_text(fake, stop, answer):
    with Chat("fake.gguf") as chat:
        asked = chat.ask(None, "What?", stop=stop, logprobs=1)
        ended = "end" if answer == "hello" else "stop"
        assert (asked, asked.report.stop_reason) == (answer, ended)
        assert asked.report.answer_tokens == len(asked.logprobs) == len(answer)
        stream = chat.ask(None, "What?", stop=stop, stream=True)
        assert "".join(stream) == answer == stream.answer
        assert chat.messages[-1] == {"role": "assistant", "content": answer}


def test_pieces_of_a_stream_never_hold_the_beginning_of_a_stop_text(fake):
    with Chat("fake.gguf") as chat:
        assert list(chat.ask(None, "What?", stop="lx", stream=True)) == ["h", "e", "l", "lo"]
        assert list(chat.ask(None, "What?", stop="llo", stream=True)) == ["h", "e"]


def test_what_was_held_back_is_a_part_of_an_answer_that_ends_in_another_way(fake):
    with Chat("fake.gguf") as chat:
        assert chat.ask(None, "What?", stop="llx", max_tokens=4) == "hell"
        stream = chat.ask(None, "What?", stop="hex", stream=True)
        assert next(stream) == "hel"
        stream.close()
        assert stream.answer == "hel"


def test_the_conversation_goes_on_without_the_stop_text(fake):
    """The engine has seen the first letter of it, and is put right; a text without a token of its own is fed."""
    with Chat("fake.gguf") as chat:
        log = chat._engine.log
        chat.ask(None, "One?", stop="lo")
        log.clear()
        assert chat.ask(None, "Two?") == "hello"
        hello = [ord(letter) + 1 for letter in "hel"]
        assert log[0] == "reset" and log[2:5] == hello
        assert log[5] == ("prompt", "</s>\n<s>user\nTwo?</s>\n<s>assistant\n", 0)
        chat._session.turns[-1].tail = "!"
        chat.ask(None, "Three?")
        texts = [entry[1] for entry in log if isinstance(entry, tuple)]
        assert texts[-1].startswith("!</s>")
