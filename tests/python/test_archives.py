"""A Chat with an archive: follow-ups see the whole picture again. First without a model, then with the bundled one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_engine import MARKER, FakeEngine

from pyaircache import ArgumentError, CancelledError, Chat, Model

IMAGE = np.zeros((28, 28, 3), np.uint8)


@pytest.fixture
def archiving(fake: type[FakeEngine], monkeypatch: pytest.MonkeyPatch) -> Chat:
    """A Chat without a model whose engine has room for archives."""
    monkeypatch.setattr(fake, "kind", "ram")
    return Chat("fake.gguf", keep=0.5)


def prompts(chat: Chat) -> list[tuple[str, int]]:
    """Text and number of images of what was evaluated."""
    return [(text, images) for text, images in (entry[1:] for entry in logged(chat, "prompt"))]


def logged(chat: Chat, what: str) -> list[tuple]:
    """What the engine noted of such calls."""
    return [entry for entry in chat._engine.log if isinstance(entry, tuple) and entry[0] == what]


def test_a_follow_up_is_the_whole_conversation(archiving: Chat) -> None:
    archiving.ask(IMAGE, "What?")
    report = archiving.ask(None, "And?", keep=0.25).report
    first = f"<s>user\n{MARKER}What?</s>\n<s>assistant\n"
    assert prompts(archiving) == [(first, 1), (first + "hello</s>\n<s>user\nAnd?</s>\n<s>assistant\n", 1)]
    assert [keep for _, keep in logged(archiving, "compress")] == [0.5, 0.25]
    assert (report.keep, report.visual_tokens, len(report.pictures)) == (0.25, 6, 1)
    assert (report.archive, report.archive_bytes, report.n_restored, report.ms_restore) == ("ram", 1000, 3, 2.0)


def test_pictures_of_all_turns(archiving: Chat) -> None:
    archiving.ask(IMAGE, "What?")
    report = archiving.ask(IMAGE, "And this?", follow_up=True).report
    assert prompts(archiving)[-1][1] == len(report.pictures) == 2 and report.visual_tokens == 12


def test_a_picture_behind_text(archiving: Chat) -> None:
    """Its conversation is archived like one that begins with a picture."""
    archiving.ask(None, "Hello?")
    archiving.ask(IMAGE, "What?", follow_up=True)
    report = archiving.ask(None, "And?").report
    assert (report.archive, report.visual_tokens) == ("ram", 6) and "Hello" in prompts(archiving)[-1][0]


@pytest.mark.parametrize("options", [{"keep": 1.0}, {}], ids=["full", "again"])
def test_a_question_that_fails_leaves_the_archive(archiving: Chat, options: dict[str, float]) -> None:
    def stop(*_: object) -> None:
        raise LookupError

    archiving.ask(IMAGE, "What?")
    with pytest.raises(LookupError):
        archiving.ask(IMAGE, "Else?", on_progress=stop, **options)
    with pytest.raises(LookupError):
        archiving.ask(None, "Text?", follow_up=False, on_progress=stop)
    report = archiving.ask(None, "And?").report
    assert (report.archive, report.visual_tokens) == ("ram", 6)


def test_undo_and_other_messages(archiving: Chat) -> None:
    """The engine need not be brought to an earlier point first."""
    archiving.ask(IMAGE, "What?")
    archiving.ask(None, "One?")
    archiving.undo()
    archiving.ask(None, "Two?")
    assert len(prompts(archiving)) == 3 and "One" not in prompts(archiving)[-1][0]
    messages = archiving.messages[:2]
    archiving.complete([*messages, {"role": "user", "content": "Three?"}], keep=0.1)
    assert len(prompts(archiving)) == 4 and prompts(archiving)[-1][0].count("hello") == 1


@pytest.mark.parametrize("where", ["prompt", "compress", "sample"])
def test_a_failed_question_loses_nothing(archiving: Chat, where: str) -> None:
    archiving.ask(IMAGE, "What?")
    before = archiving.messages
    archiving._engine.fail[where] = CancelledError("no") if where == "prompt" else RuntimeError("no")
    archiving._engine.hooks[where] = archiving.cancel if where == "prompt" else lambda: None
    with pytest.raises((CancelledError, RuntimeError)):
        archiving.ask(None, "Fails?")
    assert archiving.messages == before
    archiving._engine.fail.clear()
    archiving.ask(None, "And?")
    assert "Fails" not in prompts(archiving)[-1][0] and prompts(archiving)[-1][1] == 1


def test_text_alone_and_full_caches_go_on_as_ever(archiving: Chat) -> None:
    archiving.ask(None, "Hi?")
    archiving.ask(None, "And?")
    assert len(prompts(archiving)[-1][0]) < 60
    archiving.ask(IMAGE, "What?", keep=1.0)
    report = archiving.ask(None, "And?", keep=1.0).report
    assert prompts(archiving)[-1][1] == 0 and report.archive == "none"


def test_a_policy_sees_the_whole_conversation(archiving: Chat) -> None:
    shapes = []

    def policy(scores: np.ndarray, total: int) -> list[list[int]]:
        shapes.append(scores.shape)
        return [list(range(total // len(scores)))] * len(scores)

    archiving.ask(IMAGE, "What?", method=policy)
    assert archiving.ask(None, "And?", method=policy).report.visual_tokens == 6
    assert len(shapes) == 2


@pytest.mark.parametrize("value", ["rem", "", 3, b"x", "no/such/folder/x", "\0", None])
def test_wrong_places(fake: type[FakeEngine], value: object) -> None:
    with pytest.raises(ArgumentError, match="archive"):
        Chat("fake.gguf", archive=value)  # type: ignore[arg-type]


def test_a_file_of_somebody_else_is_left_alone(fake: type[FakeEngine], tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    with pytest.raises(ArgumentError, match="no archive"):
        Chat("fake.gguf", archive=other)
    assert other.read_text() == "mine"
    for good in (tmp_path, tmp_path / "new", str(tmp_path / "new")):
        Chat("fake.gguf", archive=good).close()


# -- the bundled model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("archive", ["auto", "ram", "device", "file"])
def test_ten_questions(engine, samples, tmp_path: Path, archive: str) -> None:
    """Each as if all of the conversation were asked at once."""
    where = tmp_path if archive == "file" else archive
    with Model(n_threads=1) as model, Chat(model, archive=where) as chat, Chat(model, archive="none") as fresh:
        for i in range(10):
            sample = samples[i % len(samples)]
            answer = chat.ask(sample.picture if i in (0, 4) else None, sample.question, follow_up=i > 0, max_tokens=6)
            expected = fresh.complete(chat.messages[:-1], reuse=False, max_tokens=6)
            report, other = answer.report, expected.report
            if report.prompt_tokens == other.prompt_tokens:  # an answer that is cut off may be read as other tokens
                assert answer == expected
                assert [kept.tolist() for kept in report.kept] == [kept.tolist() for kept in other.kept]
                np.testing.assert_allclose(chat.engine.logits(), fresh.engine.logits(), atol=1e-3)
            assert report.n_encoded == (i in (0, 4))
            assert (report.n_restored > 0) == (i > 0) and report.archive_note == ""
        assert len(list(tmp_path.iterdir())) == (archive == "file")
    assert not list(tmp_path.iterdir())


def test_the_second_answer_is_right(engine, samples) -> None:
    """Of a question whose answer the first one's eviction has dropped."""
    with Chat(n_threads=1) as chat, Chat(n_threads=1, archive="none") as without:
        for one in (chat, without):
            one.ask(samples[0].picture, samples[0].question)
        full = Chat(n_threads=1, keep=1.0)
        full.ask(samples[0].picture, samples[0].question)
        question = samples[1].question
        assert chat.ask(None, question) == full.ask(None, question)
        assert without.ask(None, question).report.visual_tokens == 0
        full.close()


def test_a_new_conversation_on_the_same_page(engine, samples) -> None:
    with Chat(n_threads=1) as chat:
        assert chat.ask(samples[0].picture, samples[0].question) == samples[0].answer
        again = chat.ask(samples[0].picture, samples[0].question)
        assert again == samples[0].answer and again.report.n_restored > 0
        chat.reset()
        assert chat.ask(samples[0].picture, samples[0].question).report.n_restored == 0
