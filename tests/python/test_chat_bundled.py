"""Chat with the bundled model and the real engine."""

from __future__ import annotations

import concurrent.futures
import json
import pathlib
import re
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pyaircache import ArgumentError, CancelledError, Chat, ContextError, ImageError, PyAircacheError

KEEPS = (1.0, 0.75, 0.5, 0.25, 0.1, 0.01)


def test_bundled_samples_are_read(real_chat, samples):
    assert len(samples) >= 3
    assert [real_chat.ask(s.picture, s.question, keep=1.0) for s in samples] == [s.answer for s in samples]


@pytest.mark.parametrize("keep", KEEPS)
def test_budget_and_report(real_chat, samples, keep):
    sample = samples[0]
    report = real_chat.ask(sample.picture, sample.question, keep=keep).report
    layers, visual = report.layers, report.visual_tokens
    width, height = Image.open(sample.picture).size
    assert visual == (width // 28) * (height // 28) == sum(span.n_tokens for span in report.spans)
    assert report.budgets.sum() == max(int(keep * layers * visual + 0.5), layers)  # halves up
    assert len(report.kept) == layers
    for kept, budget in zip(report.kept, report.budgets, strict=True):
        assert len(kept) == budget and (np.diff(kept) > 0).all()
        assert kept.min() >= 0 and kept.max() < visual
    assert report.prompt_tokens > visual
    per_token = real_chat.info.kv_bytes_per_token
    assert report.kv_bytes_full == per_token * report.prompt_tokens
    row = per_token // layers  # all layers of this model have rows of one size
    assert report.kv_bytes == row * (int(report.budgets.sum()) + layers * (report.prompt_tokens - visual))
    if keep < 1:
        assert report.scores.shape == (layers, visual) and (report.scores >= 0).all()
        assert len(report.observers) == layers
        last_visual = report.spans[-1].first + report.spans[-1].n_tokens
        for elite in report.observers:
            assert len(elite) >= 1 and last_visual <= elite.min() and elite.max() < report.prompt_tokens
        np.testing.assert_allclose(report.strength, report.scores.sum(axis=1), rtol=1e-4)
    else:
        assert report.scores.size == 0 and report.observers == []
    assert 0 < report.ms_encode + report.ms_prefill < report.ms_first_token
    json.dumps(report.to_dict(), allow_nan=False)
    assert "Report(" in repr(report)


def test_first_token_is_the_same_for_every_keep(real_chat, samples):
    for sample in samples:
        first = {real_chat.ask(sample.picture, sample.question, keep=keep, max_tokens=1) for keep in KEEPS}
        assert len(first) == 1


def test_method_full_is_keep_1(engine, samples):
    with Chat(method="full", n_threads=1) as chat:
        report = chat.ask(samples[0].picture, samples[0].question).report
    assert report.kv_bytes == report.kv_bytes_full and report.scores.size == 0
    assert report.method == "full"


def test_all_kinds_of_image_give_the_same(real_chat, samples):
    sample = samples[0]
    picture = Image.open(sample.picture).convert("RGB")
    for image in (str(sample.picture), sample.picture.read_bytes(), picture, np.asarray(picture), [picture]):
        assert real_chat.ask(image, sample.question, keep=1.0) == sample.answer


def test_stream_is_the_same_as_the_answer(real_chat, samples):
    sample = samples[0]
    whole = real_chat.ask(sample.picture, sample.question, keep=0.5)
    stream = real_chat.ask(sample.picture, sample.question, keep=0.5, stream=True)
    assert "".join(stream) == whole == stream.answer
    np.testing.assert_array_equal(stream.report.scores, whole.report.scores)


def test_answers_repeat(real_chat, samples):
    sample = samples[0]
    ask: Callable[..., str] = lambda **options: real_chat.ask(sample.picture, sample.question, **options)  # noqa: E731
    assert ask(keep=0.1) == ask(keep=0.1)
    assert ask(temperature=2.0, seed=7, max_tokens=12) == ask(temperature=2.0, seed=7, max_tokens=12)
    assert len({ask(temperature=3.0, max_tokens=12) for _ in range(5)}) > 1


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_follow_up(real_chat, samples, keep):
    sample = samples[0]
    first = real_chat.ask(sample.picture, sample.question, keep=keep)
    second = real_chat.ask(None, sample.question)
    assert second.report.visual_tokens == 0
    assert second.report.prompt_tokens < first.report.prompt_tokens
    assert second.report.kv_bytes_full > first.report.kv_bytes_full
    ratio = second.report.kv_bytes / second.report.kv_bytes_full
    assert ratio == 1.0 if keep == 1.0 else ratio < 1.0


def test_follow_up_is_the_whole_conversation_at_once(real_chat, samples):
    """Feeding only what is new gives the logits of the whole conversation in one prompt."""
    sample = samples[0]
    real_chat.ask(sample.picture, sample.question, keep=1.0)
    real_chat.ask(None, "And the next one?", max_tokens=1)
    piecewise = real_chat._engine.logits()
    turns, engine = real_chat._session.turns, real_chat._engine
    real_chat.reset()
    engine.prompt(turns[1].rendered, turns[0].images)
    np.testing.assert_allclose(piecewise, engine.logits(), atol=0.05)


@pytest.mark.parametrize("way", ["max_tokens", "closed"])
def test_cut_answers_go_on_correctly(real_chat, samples, way):
    sample = samples[0]
    if way == "max_tokens":
        cut = real_chat.ask(sample.picture, sample.question, keep=0.5, max_tokens=2)
    else:
        stream = real_chat.ask(sample.picture, sample.question, keep=0.5, stream=True)
        pieces = [next(stream), next(stream)]
        stream.close()
        cut = stream.answer
        assert cut == "".join(pieces)
    assert cut.report.stop_reason == way and cut.report.answer_tokens == 2
    real_chat.ask(None, "And the next one?", max_tokens=1)
    first, second = real_chat._session.turns
    assert second.rendered == first.rendered + cut + second.fed
    assert real_chat._engine.stats().n_past == second.n_past
    assert second.n_past == first.n_past + 2 + second.n_prompt


def test_replay_gives_the_same_state(real_chat, samples):
    """After an interruption the conversation is brought back exactly."""
    sample = samples[0]
    real_chat.ask(sample.picture, sample.question, keep=0.25)
    expected = real_chat.ask(None, "And the next one?", max_tokens=8)
    for damage in (lambda engine: engine.reset(), lambda engine: engine.prompt("something else")):
        real_chat.ask(sample.picture, sample.question, keep=0.25)
        damage(real_chat._engine)
        assert real_chat.ask(None, "And the next one?", max_tokens=8) == expected


def test_question_without_image_and_conversation(real_chat):
    report = real_chat.ask(None, "What is the total?", max_tokens=4).report
    assert report.visual_tokens == 0 and report.spans == []


def test_several_images(real_chat, samples):
    report = real_chat.ask([samples[0].picture, samples[1].picture], samples[0].question, keep=0.25).report
    assert [span.image for span in report.spans] == [0, 1]
    assert report.visual_tokens == sum(span.n_tokens for span in report.spans)
    for index in (0, 1):
        size = Image.open(samples[index].picture).size
        assert report.heatmap([samples[0].picture, samples[1].picture], index=index).size == size


def test_heatmap(real_chat, samples):
    picture = Image.open(samples[0].picture).convert("RGB")
    report = real_chat.ask(picture, samples[0].question, keep=0.1).report
    painted = np.asarray(report.heatmap(picture)).astype(int)
    assert painted.shape == np.asarray(picture).shape
    span = report.spans[0]
    assert (span.nx, span.ny) == (picture.width // 28, picture.height // 28)
    cells = painted.reshape(span.ny, 28, span.nx, 28, 3).mean(axis=(1, 3, 4)).ravel()
    shares = report.kept_per_token
    assert cells[shares == shares.max()].mean() > cells[shares == 0].mean()


def test_errors_leave_the_chat_usable(real_chat, samples):
    sample = samples[0]
    real_chat.ask(sample.picture, sample.question, keep=1.0)
    wrong: list[tuple[type[PyAircacheError], Callable[[], object]]] = [
        (ImageError, lambda: real_chat.ask("none.png", "What?")),
        (ImageError, lambda: real_chat.ask(b"no picture", "What?")),
        (ArgumentError, lambda: real_chat.ask(sample.picture, sample.question, keep=0)),
        (ArgumentError, lambda: real_chat.ask(sample.picture, "a\0b")),
        (ContextError, lambda: real_chat.ask(sample.picture, "word " * 20_000)),
        (ContextError, lambda: real_chat.ask(None, "word " * 20_000)),
    ]
    for error, call in wrong:
        with pytest.raises(error):
            call()
    assert len(real_chat._session.turns) == 1
    assert real_chat.ask(None, "And the next one?", max_tokens=2).report.visual_tokens == 0
    assert real_chat.ask(sample.picture, sample.question, keep=1.0) == sample.answer


def test_context_too_small(engine, samples):
    with Chat(n_ctx=256, n_threads=1) as chat:
        too_large = np.full((28 * 20, 28 * 20, 3), 255, np.uint8)
        with pytest.raises(ContextError, match=r"(?s)400.*n_ctx"):
            chat.ask(too_large, "What is the total?")
        assert chat.ask(samples[0].picture, samples[0].question, keep=1.0) == samples[0].answer
        answer = chat.ask(None, "What is the total?", max_tokens=10_000, temperature=50.0, seed=1)
        assert answer.report.stop_reason in ("context", "end")


def test_ctrl_c_during_prefill(real_chat, samples, monkeypatch):
    sample = samples[0]
    real_chat.ask(sample.picture, sample.question, keep=0.5)
    expected = real_chat.ask(None, "And the next one?", max_tokens=8)
    real_chat.ask(sample.picture, sample.question, keep=0.5)

    def interrupt(self: object, stage: int, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pyaircache.chat.session.ProgressLine.__call__", interrupt)
        for image in (samples[1].picture, None):
            with pytest.raises(KeyboardInterrupt):
                real_chat.ask(image, "What?")
    assert real_chat.ask(None, "And the next one?", max_tokens=8) == expected


def test_threads_take_turns(real_chat, samples):
    answers: dict[int, str] = {}

    def work(number: int) -> None:
        sample = samples[number % len(samples)]
        answers[number] = real_chat.ask(sample.picture, sample.question, keep=1.0)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {number: samples[number % len(samples)].answer for number in range(6)}


@pytest.mark.parametrize("n_threads", [1, 2])
def test_cancel_from_another_thread(engine, samples, n_threads):
    """During the prompt and during the answer; what the engine holds is right for the next question."""
    sample = samples[0]
    with Chat(n_threads=n_threads) as chat, concurrent.futures.ThreadPoolExecutor(1) as pool:
        chat.ask(sample.picture, sample.question, keep=0.5)
        expected = chat.ask(None, "And the next one?", max_tokens=8)
        chat.ask(sample.picture, sample.question, keep=0.5)
        begun = threading.Event()
        engine_calls = {"conversation": chat._engine.conversation, "decode": chat._engine.decode}
        for name, call in engine_calls.items():
            for image in (samples[1].picture, None):
                begun.clear()

                def told(*arguments: object, call: Callable[..., object] = call, **options: object) -> object:
                    begun.set()
                    return call(*arguments, **options)

                setattr(chat._engine, name, told)
                chat._engine.sample = lambda: (5, False)  # an answer without an end
                asking = pool.submit(chat.ask, image, "What?", max_tokens=100_000)
                assert begun.wait(60)
                assert chat.cancel()
                with pytest.raises(CancelledError):
                    asking.result(60)
                del chat._engine.sample
                delattr(chat._engine, name)
        assert len(chat._session.turns) == 1
        assert chat.ask(None, "And the next one?", max_tokens=8) == expected


def test_cancelled_stream(real_chat, samples):
    stream = real_chat.ask(samples[0].picture, samples[0].question, stream=True)
    next(stream)
    assert real_chat.cancel()
    with pytest.raises(CancelledError):
        next(stream)
    assert real_chat.ask(samples[0].picture, samples[0].question, keep=1.0) == samples[0].answer


def test_ctrl_c_while_decoding(real_chat, samples, monkeypatch):
    """As one that comes between two tokens: the conversation is as it was, without half an answer."""
    sample = samples[0]
    real_chat.ask(sample.picture, sample.question, keep=0.5)
    expected = real_chat.ask(None, "And the next one?", max_tokens=8)
    for image in (None, sample.picture):
        real_chat.ask(sample.picture, sample.question, keep=0.5)
        decode, calls = real_chat._engine.decode, []

        def interrupt(token: int, decode: Callable[[int], None] = decode, calls: list[int] = calls) -> None:
            decode(token)
            calls.append(token)
            if len(calls) == 3:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(real_chat._engine, "decode", interrupt)
            with pytest.raises(KeyboardInterrupt):
                real_chat.ask(image, sample.question, temperature=50.0, max_tokens=1000, seed=3)
        assert [turn.answer for turn in real_chat._session.turns] == [sample.answer]
        assert real_chat.ask(None, "And the next one?", max_tokens=8) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_spans_need_no_pixels(real_chat):
    def peak() -> int:
        status = pathlib.Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]

    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the highest value so far
    before = peak()
    assert sum(span.n_tokens for span in real_chat.spans((12_000, 12_000))) > 0
    assert peak() - before < 50_000


def test_other_threads_run_during_a_question(real_chat, samples):
    """The engine's calls let go of Python's global lock."""
    ticks = 0
    stop = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not stop.wait(0.0005):
            ticks += 1

    thread = threading.Thread(target=tick)
    thread.start()
    real_chat.ask(samples[0].picture, samples[0].question)
    stop.set()
    thread.join()
    assert ticks > 0
