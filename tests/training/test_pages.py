"""The generator: the same seed gives the same page, and what is asked can be read off the page."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from training import draw
from training.batch import CHARS, IGNORE, cell_targets, make_batch, patchify
from training.layouts import LAYOUTS
from training.tokens import Vocabulary, train_tokenizer

SEEDS = st.integers(0, 2**31)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(list(LAYOUTS)), st.sampled_from([*draw.SIZES, *draw.LARGE, (5, 11), (8, 12)]))
def test_every_answer_stands_on_the_page(seed: int, layout: str, size: tuple[int, int]) -> None:
    page, pixels = draw.draw_page(np.random.default_rng(seed), *size, layout)
    assert pixels.shape == (28 * size[0], 28 * size[1], 3) and pixels.dtype == np.uint8
    written = {text.text for text in page.texts}
    assert page.questions
    for question in page.questions:
        assert question.answer in written
        assert 2 <= len(question.answer) <= 16


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from(list(LAYOUTS)))
def test_a_question_has_one_answer(seed: int, layout: str) -> None:
    page, _ = draw.draw_page(np.random.default_rng(seed), 14, 12, layout)
    answers: dict[str, str] = {}
    for question in page.questions:
        assert answers.setdefault(question.text, question.answer) == question.answer


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_comparisons_are_right(seed: int) -> None:
    page, _ = draw.draw_page(np.random.default_rng(seed), 12, 13, "chart")
    value = {t.key: int(t.text) for t in page.texts if t.key and t.text.isdigit()}
    compared = [q for q in page.questions if q.kind == "larger"]
    assert compared
    for question in compared:
        names = [name for name in value if name in question.text]
        assert len(names) == 2
        best = max if "larger" in question.text or "more" in question.text else min
        assert question.answer == best(names, key=value.__getitem__)


def test_totals_are_sums() -> None:
    page, _ = draw.draw_page(np.random.default_rng(1), 14, 12, "receipt")
    prices = [float(t.text) for t in page.texts if "." in t.text and t.key != "Total"]
    (total,) = [float(t.text) for t in page.texts if t.key == "Total" and "." in t.text]
    assert total == pytest.approx(sum(prices))


def test_same_seed_gives_the_same_page() -> None:
    (one, a), (two, b), (_, c) = (draw.draw_page(np.random.default_rng(s), 12, 13) for s in (4, 4, 5))
    assert one.questions == two.questions
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_characters_lie_where_they_are_drawn(vocabulary) -> None:
    """The targets spell the page's text, and where they have characters there is ink."""
    page, _ = draw.draw_page(np.random.default_rng(9), 14, 12, "form")
    target = cell_targets(page, vocabulary)[0].reshape(14, 12, -1)
    for text in page.texts:
        cells = sorted({int((a + b) / 2) // 28 for a, b in zip(text.edges, text.edges[1:], strict=False)})
        spelt = "".join(CHARS[c] for column in cells for c in target[text.row, column] if c)
        assert text.text.replace(" ", "") in spelt
    grey = np.asarray(page.image.convert("L"), dtype=int)
    ink = np.abs(grey - np.median(grey)).reshape(14, 28, 12, 28).max((1, 3)) > 60
    assert ink[target[..., 0] > 0].all()


def test_keys_are_labels_rows_and_columns(vocabulary) -> None:
    page, _ = draw.draw_page(np.random.default_rng(9), 14, 12, "table")
    target = cell_targets(page, vocabulary)[1].reshape(14, 12, -1)
    text = next(t for t in page.texts if t.text.isdigit())
    first, second = text.key.split()
    cell = target[text.row, int((text.edges[0] + text.edges[1]) / 2) // 28]
    assert cell.tolist() == [vocabulary.encode(" " + w)[0] for w in (first, second, text.key2)]


def test_where_an_answer_is(vocabulary) -> None:
    batch = make_batch(np.random.default_rng(3), vocabulary, 3, 12, 13, 6)
    for b in range(3):
        for k in range(6):
            answer = batch.labels[b, k][batch.labels[b, k] != IGNORE][:-1]
            shown = "".join(CHARS[c] for c in batch.chars[b][batch.where[b, k]].flatten() if c)
            text = vocabulary.tokenizer.decode(answer.tolist()).replace(" ", "")
            # a character at the edge of the first or the last cell may have its centre in the next one
            assert text in shown or text[1:-1] in shown


def test_patches_are_those_of_the_processor() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from training.export import PREPROCESSOR

    _, pixels = draw.draw_page(np.random.default_rng(2), 5, 11)
    options = {k: v for k, v in PREPROCESSOR.items() if not k.endswith(("_type", "_class", "_pixels"))}
    made = Qwen2VLImageProcessorPil(size={"shortest_edge": 6272, "longest_edge": 802816}, **options)(
        images=[pixels], return_tensors="np"
    )
    frames = made["pixel_values"].reshape(-1, 3, 2, 196)
    assert made["image_grid_thw"].tolist() == [[1, 10, 22]]
    np.testing.assert_allclose(patchify(pixels[None])[0].reshape(-1, 3, 196), frames[:, :, 0], atol=1e-6)
    assert np.array_equal(frames[:, :, 0], frames[:, :, 1])


def test_words_are_one_or_two_tokens() -> None:
    vocabulary = Vocabulary(train_tokenizer(n_pages=600))
    rng = np.random.default_rng(0)
    for layout in LAYOUTS:
        page, _ = draw.draw_page(rng, 14, 12, layout)
        for question in page.questions:
            n_words = len(question.answer.split())
            n_single = sum(not c.isalpha() for c in question.answer) + sum(c.isupper() for c in question.answer)
            assert len(vocabulary.encode(question.answer)) <= 2 * n_words + n_single
            assert vocabulary.tokenizer.decode(vocabulary.encode(question.text)) == question.text


def test_batch_holds_questions_and_answers(vocabulary) -> None:
    batch = make_batch(np.random.default_rng(0), vocabulary, 2, 8, 11, 3)
    decode = vocabulary.tokenizer.decode
    for b in range(2):
        for k in range(3):
            last = int(batch.last[b, k])
            assert batch.ids[b, k, last - len(vocabulary.tail) + 1 : last + 1].tolist() == vocabulary.tail
            answer = batch.labels[b, k][batch.labels[b, k] != IGNORE].tolist()
            assert answer[-1] == vocabulary.im_end
            assert batch.ids[b, k, last + 1 : last + len(answer)].tolist() == answer[:-1]
            assert batch.lookahead[b, k][batch.lookahead[b, k] != IGNORE].tolist() == answer[:8]
            assert len(decode(answer[:-1])) >= 2


def test_command_writes_pages(tmp_path) -> None:
    done = CliRunner().invoke(draw.main, [str(tmp_path), "--n", "3", "--layout", "signs"])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (tmp_path / "pages.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["000.png", "001.png", "002.png"]
    assert all(q["kind"] == "sign" for line in lines for q in line["questions"])
    assert (tmp_path / "002.png").is_file()
