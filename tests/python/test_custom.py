"""A user's own policy: what it gets, what it may return, and what happens when it fails."""

from __future__ import annotations

import numpy as np
import pytest
from fake_engine import MARKER
from hypothesis import given
from hypothesis import strategies as st

from pyaircache import ArgumentError, Chat, StateError
from pyaircache.methods.policy import checked

IMAGE = np.zeros((28, 28, 3), np.uint8)


@given(st.lists(st.sets(st.integers(0, 19), min_size=1), min_size=1, max_size=5))
def test_right_answers_pass(sets):
    given_sets = [sorted(one) for one in sets]
    total = sum(map(len, given_sets))
    for form in (given_sets, tuple(map(tuple, given_sets)), [np.array(one, np.uint8) for one in given_sets]):
        kept = checked(form, len(sets), 20, total, "it")
        assert [one.tolist() for one in kept] == given_sets
        assert all(one.dtype == np.int32 for one in kept)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "it must return 2 index arrays, got NoneType"),
        ([[0, 1]], "it must return 2 index arrays, one per layer; got 1"),
        (np.zeros((3, 2), int), "one per layer; got 3"),
        ([[0, 1], 3], r"it, layer 1: indices must be in one dimension, got shape \[\]"),
        ([[0, 1], [[2], [3, 4]]], "it, layer 1: indices must be in one dimension"),
        ([[0, 1], [[2, 3]]], r"got shape \[1, 2\]"),
        ([[0, 1, 2, 3], []], "it, layer 1: must keep at least 1 token, got none"),
        ([[0.0, 1.0], [2, 3]], "it, layer 0: indices must be whole numbers, got float64"),
        ([[True, False], [2, 3]], "indices must be whole numbers, got bool"),
        ([["a", "b"], [2, 3]], "indices must be whole numbers"),
        ([[0, 6], [2, 3]], "it, layer 0: indices must be from 0 to 5, got 6"),
        ([[0, 1], [-1, 3]], "it, layer 1: indices must be from 0 to 5, got -1"),
        ([[0, 2**40], [2, 3]], "got 1099511627776"),
        ([[0, 1], [3, 2]], "it, layer 1: indices must be ascending, each once; 2 comes after 3"),
        ([[1, 1], [2, 3]], "it, layer 0: indices must be ascending, each once; 1 is there twice"),
        ([[0, 1], [2]], "it must keep 4 tokens in all layers together, got 3"),
        ([[0, 1, 2], [2, 3]], "it must keep 4 tokens in all layers together, got 5"),
    ],
)
def test_wrong_answers_are_named(answer, message):
    with pytest.raises(ArgumentError, match=message):
        checked(answer, 2, 6, 4, "it")


# -- in a Chat; the total comes from the engine ------------------------------------------------------------------------


def first_ones(scores, total):
    layers, _ = scores.shape
    return [np.arange(total // layers + (layer < total % layers)) for layer in range(layers)]


def test_policy_selects(engine, fake):
    seen = []

    def policy(scores, total):
        seen.append((scores.shape, scores.dtype, total))
        scores[:] = 0  # its own copy
        return first_ones(scores, total)

    with Chat("fake.gguf", keep=0.5, method=policy) as chat:
        report = chat.ask(IMAGE, "What?").report
        assert seen == [((2, 6), np.float32, 6)]
        assert report.method == "policy" and report.alpha == 0.9
        assert report.budgets.tolist() == [3, 3] and report.kept[0].tolist() == [0, 1, 2]
        assert (report.scores == 1).all() and report.strength.tolist() == [6, 6] and report.skewness.tolist() == [0, 0]
        assert report.ms_compress >= 3
        assert chat.ask(IMAGE, "What?", keep=0.1).report.budgets.tolist() == [1, 1]  # at least one a layer
        chat.ask(IMAGE, "What?", keep=1.0)
        chat.ask(None, "What?")
    assert [total for *_, total in seen] == [6, 2]


def test_objects_are_policies_too(engine, fake):
    class Mine:
        def __call__(self, scores, total):
            return first_ones(scores, total)

    with Chat("fake.gguf", method=Mine(), alpha=0.5) as chat:
        report = chat.ask(IMAGE, "What?").report
    assert (report.method, report.alpha) == ("Mine", 0.5)


def test_policy_that_fails_leaves_the_conversation_as_it_was(engine, fake):
    answers = [first_ones]

    def policy(scores, total):
        return answers.pop(0)(scores, total)

    with Chat("fake.gguf", keep=0.5, method=policy) as chat:
        chat.ask(IMAGE, "One?", max_tokens=3)
        for wrong, error in ((lambda *_: 1 / 0, ZeroDivisionError), (lambda *_: [[0]], ArgumentError)):
            answers.append(wrong)
            with pytest.raises(error):
                chat.ask(IMAGE, "Two?")
        chat._engine.log.clear()
        assert chat.ask(None, "Three?") == "hello"
        # the first turn once more: the same sets, without scores, without asking the policy (it would have no answer)
        replayed = chat._engine.log
        assert replayed[0] == "reset" and replayed[1][0] == "prompt"
        assert replayed[2] == ("evict", [[0, 1, 2], [0, 1, 2]])
        assert replayed[1][1] == f"<s>user\n{MARKER}One?</s>\n<s>assistant\n"
        answers.append(first_ones)
        assert chat.ask(IMAGE, "Four?") == "hello"


def test_policy_must_not_use_its_chat(engine, fake):
    calls = []
    chat = Chat("fake.gguf", method=lambda scores, total: calls.pop()())
    for call in (lambda: chat.ask(None, "What?"), chat.reset, chat.close):
        calls.append(call)
        with pytest.raises(StateError, match="a policy must not use the Chat that called it"):
            chat.ask(IMAGE, "What?")
    assert chat.ask(None, "What?") == "hello"
    chat.close()
