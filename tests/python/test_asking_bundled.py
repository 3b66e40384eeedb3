"""What may be asked, with the bundled model and the real engine."""

from __future__ import annotations

import concurrent.futures
import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from pyaircache import ArgumentError, Chat, Model, PolicyContext

DOCS = Path(__file__).parents[2] / "docs"


def test_greedy_is_what_it_was_whatever_the_other_numbers_say(real_chat, samples):
    sample = samples[0]
    for options in ({}, {"top_k": 1}, {"top_k": 5, "top_p": 0.5, "min_p": 0.3, "seed": 3}):
        assert real_chat.ask(sample.picture, sample.question, keep=1.0, **options) == sample.answer


def test_one_likely_token_leaves_no_choice(real_chat, samples):
    sample = samples[0]
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert real_chat.ask(sample.picture, sample.question, keep=1.0, temperature=5.0, **options) == sample.answer


def test_log_probabilities(real_chat, samples):
    sample = samples[0]
    answer = real_chat.ask(sample.picture, sample.question, keep=1.0, logprobs=300)
    n_vocab = real_chat.info.n_vocab
    assert "".join(one.text for one in answer.logprobs) == answer == sample.answer
    for one in answer.logprobs:
        assert (one.top[0].id, one.top[0].logprob) == (one.id, one.logprob)  # greedy
        values = np.array([other.logprob for other in one.top])
        assert len(values) == 300 <= n_vocab and (np.diff(values) <= 0).all()
    whole = real_chat._engine.logprobs(n_vocab)
    assert np.exp(whole.values).sum() == pytest.approx(1.0) and sorted(whole.ids) == list(range(n_vocab))


def test_a_grammar_and_a_schema_are_followed(real_chat, samples):
    sample = samples[0]
    yes_or_no = 'root ::= "yes" | "no"'
    assert real_chat.ask(sample.picture, sample.question, grammar=yes_or_no) in ("yes", "no")
    # the conversation's tokens do not fit another question's grammar, and are fed all the same
    assert real_chat.ask(None, "And?", grammar='root ::= "1" | "2"') in ("1", "2")
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}
    answer = real_chat.ask(sample.picture, sample.question, json_schema=schema, temperature=2.0, seed=1)
    assert answer.report.stop_reason == "end" and type(json.loads(answer)["n"]) is int
    before = real_chat.messages
    for wrong in ({"grammar": "root ::= ("}, {"json_schema": {"type": "nothing"}}):
        with pytest.raises(ArgumentError):
            real_chat.ask(None, "And?", **wrong)
    assert real_chat.messages == before
    assert real_chat.ask(sample.picture, sample.question, keep=1.0) == sample.answer


def test_stop_texts(real_chat, samples):
    sample = samples[0]
    for i in range(1, len(sample.answer)):
        answer = real_chat.ask(sample.picture, sample.question, keep=1.0, stop=sample.answer[i : i + 2])
        assert answer == sample.answer[: sample.answer.find(sample.answer[i : i + 2])]
        assert answer.report.stop_reason == "stop"
    real_chat.ask(None, "And the next one?", max_tokens=1)
    first, second = real_chat._session.turns
    assert second.rendered.startswith(first.rendered + first.answer)
    assert first.tail + second.rendered[len(first.rendered + first.answer) :] == second.fed


@pytest.mark.parametrize("keep", [1.0, 0.25])
def test_undo_is_exact(real_chat, samples, keep):
    """Afterwards the next question sees the bits that it would have seen without the one that was undone."""
    sample = samples[0]
    real_chat.ask(sample.picture, sample.question, keep=keep)
    real_chat.ask(None, "And the next one?", max_tokens=1)
    expected = real_chat._engine.logits()
    real_chat.undo()
    real_chat.ask(samples[1].picture, "Another picture?", follow_up=True, max_tokens=3)
    real_chat.undo()
    real_chat.ask(None, "And the next one?", max_tokens=1)
    np.testing.assert_array_equal(real_chat._engine.logits(), expected)


def test_a_new_picture_in_a_conversation_leaves_the_first_as_it_was(real_chat, samples):
    one = real_chat.ask(samples[0].picture, samples[0].question, keep=0.5)
    two = real_chat.ask(samples[1].picture, samples[1].question, keep=0.25, follow_up=True)
    visual = two.report.visual_tokens
    assert two.report.budgets.sum() == round(0.25 * two.report.layers * visual)
    row = real_chat.info.kv_bytes_per_token // two.report.layers
    evicted = sum(
        answer.report.layers * answer.report.visual_tokens - answer.report.cells_kept for answer in (one, two)
    )
    assert two.report.kv_bytes == two.report.kv_bytes_full - evicted * row


def test_a_picture_is_encoded_once(real_chat, samples):
    picture, other = samples[0].picture, samples[1].picture
    real_chat.model.forget_images()
    counts = []
    for images in (picture, picture, [picture, other]):
        report = real_chat.ask(images, "What?", max_tokens=1).report
        counts.append((report.n_encoded, report.n_reused))
    assert counts == [(1, 0), (0, 1), (1, 1)]
    assert real_chat.model.info.n_kept_images == 2 and real_chat.model.info.image_cache_bytes > 0
    with Chat(n_threads=1, image_cache_bytes=0, archive="none") as chat:
        reports = [chat.ask(picture, "What?", max_tokens=1).report for _ in range(2)]
    assert [report.n_encoded for report in reports] == [1, 1]


def test_complete_is_the_same_as_asking(real_chat, samples):
    sample = samples[0]
    real_chat.ask(sample.picture, sample.question, keep=1.0)
    asked = real_chat.ask(None, "And the next one?", max_tokens=8)
    logits = real_chat._engine.logits()
    messages = real_chat.messages[:-1]
    real_chat.reset()
    assert real_chat.complete(messages[:1], keep=1.0) == sample.answer
    assert real_chat.complete(messages, keep=1.0, max_tokens=8) == asked
    np.testing.assert_array_equal(real_chat._engine.logits(), logits)


def test_two_chats_on_one_model_in_two_threads(engine, samples):
    together = threading.Barrier(2)

    def work(chat: Chat, number: int) -> list[str]:
        together.wait(60)
        return [str(chat.ask(samples[i].picture, samples[i].question)) for i in (number, 1 - number, number)]

    model = Model(n_threads=1)
    with concurrent.futures.ThreadPoolExecutor(2) as pool, Chat(model, keep=1.0) as one, Chat(model, keep=1.0) as two:
        assert model.info.n_engines == 2
        model.close()  # which its Chats do not notice
        jobs = [pool.submit(work, chat, number) for number, chat in enumerate((one, two))]
        first, second = (job.result(300) for job in jobs)
    assert first == [samples[i].answer for i in (0, 1, 0)] and second == [samples[i].answer for i in (1, 0, 1)]


def test_a_policy_sees_spans_and_tokens(real_chat, samples):
    seen: list[PolicyContext] = []

    def policy(scores: np.ndarray, total: int, context: PolicyContext) -> list[np.ndarray]:
        seen.append(context)
        layers = len(scores)
        return [np.arange(total // layers + (layer < total % layers)) for layer in range(layers)]

    report = real_chat.ask(samples[0].picture, samples[0].question, method=policy).report
    (context,) = seen
    assert len(context.tokens) == report.prompt_tokens and (context.tokens < 0).sum() == report.visual_tokens
    span = context.spans[0]
    assert (context.tokens[span.first : span.first + span.n_tokens] == -1).all()
    assert all((context.tokens[one] >= 0).all() for one in context.observers)


def test_the_example_of_the_low_level_runs(engine, samples, capsys):
    """docs/engine.md, as it stands there."""
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "engine.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, "docs/engine.md", "exec"), {})
    assert samples[0].answer in capsys.readouterr().out


@pytest.mark.parametrize("number", [0, 1])
def test_the_examples_of_asking_run(engine, number):
    """docs/asking.md, as it stands there."""
    code = re.findall(r"```python\n(.*?)```", (DOCS / "asking.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(code) == 2
    exec(compile(code[number], "docs/asking.md", "exec"), {})


def test_the_policy_of_the_docs_runs(real_chat, samples):
    code = re.findall(r"```python\n(.*?)```", (DOCS / "methods.md").read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [one for one in code if "class EveryPictureItsShare" in one]
    names = {"np": np, "Chat": lambda **options: options["method"]}
    exec(compile(example, "docs/methods.md", "exec"), names)
    pictures = [samples[0].picture, samples[1].picture]
    policy = names["EveryPictureItsShare"]()
    report = real_chat.ask(pictures, samples[0].question, keep=0.25, method=policy, max_tokens=2).report
    sizes = np.array([span.n_tokens for span in report.spans])
    for kept in report.kept:
        of_first = (kept < sizes[0]).sum()
        assert abs(of_first - len(kept) * sizes[0] / sizes.sum()) <= 1
