"""The engine against the reference in PyTorch, on random models and the bundled one, in F32.

Without flash attention the two differ by rounding alone. llama.cpp's flash attention on the CPU rounds an F32 cache to
F16 and sums in F16, so with it, and with caches of 16 bits, only the tolerances are wide: what was decided must still
follow from the scores.
"""

from __future__ import annotations

from typing import Any

import aircache_ref as ref
import numpy as np
import pytest
import tiny
import torch
from harness import (
    TOKENS,
    TWO_THREADS,
    Model,
    Models,
    Question,
    decode,
    engine_method,
    image_embeddings,
    lists,
    question,
)

NAMES = ("gqa-0", "gqa-1", "wide-0", "mha-0", "mqa-0", "pages-vl")
NAMES += tuple(name + TWO_THREADS for name in ("gqa-0", "pages-vl"))
SEEDS = range(12)  # of questions to choose from
MARGIN = 3e-5  # a decision closer than this may go either way
CUT_MARGIN = 1e-3  # likewise, as a share of the score that was just good enough

METHODS = {
    "keep 0.05": {"keep": 0.05},
    "keep 0.1": {"keep": 0.1},
    "keep 0.4": {"keep": 0.4},
    "keep 0.9": {"keep": 0.9},
    "alpha 0.5": {"keep": 0.3, "alpha": 0.5},
    "alpha 1": {"keep": 0.3, "alpha": 1.0},
    "last 4": {"keep": 0.3, "window": "last:4"},
    "last 500": {"keep": 0.3, "window": "last:500"},
    "text": {"keep": 0.3, "window": "text"},
    "uniform": {"keep": 0.3, "allocation": "uniform"},
    "pyramid": {"keep": 0.3, "allocation": "pyramid"},
    "strength": {"keep": 0.3, "allocation": "strength"},
    "skewness": {"keep": 0.3, "allocation": "skewness"},
    "prefix": {"keep": 0.3, "allocation": "prefix"},
    "min_keep 3": {"keep": 0.15, "min_keep": 3},
}

# (cache type, flash attention, error of I, error of the logits)
ROUNDING = {
    "f32, flash": ("f32", True, 2e-3, 5e-2),
    "f16": ("f16", False, 2e-3, 5e-2),
    "f16, flash": ("f16", True, 2e-3, 5e-2),
    "bf16": ("bf16", False, 1e-2, 5e-1),
}
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest, models: Models) -> Model:
    return models(request.param)


def check_scores(got: np.ndarray, want: np.ndarray, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)
    assert (got >= 0).all() and (got.sum(axis=1) <= 1 + 1e-5).all()


def is_clear(capture: ref.Capture, **arguments: Any) -> bool:
    """Whether no decision is so close that rounding may turn it."""
    margins, result = ref.margins(capture, **arguments), ref.compress(capture, **arguments)
    chosen = all(is_clear_cut(row, kept) for row, kept in zip(result.scores, result.kept, strict=True))
    return chosen and min(margins.elite, margins.total, margins.budget) > MARGIN


def is_clear_cut(row: np.ndarray, kept: np.ndarray) -> bool:
    """Of one layer's scores. Rounding is relative to a score: in a trained model most are a millionth of the highest.

    A tie at 0 is clear: a token has exactly 0 when no observer comes after it.
    """
    lowest, highest = row[kept].min(), np.delete(row, kept).max(initial=0)
    return lowest == 0 or lowest - highest > min(MARGIN * row.max(), CUT_MARGIN * lowest)


@pytest.mark.parametrize("n_images", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_method(model: Model, method: str, n_images: int) -> None:
    arguments = METHODS[method]
    clear = 0
    for seed in SEEDS:
        asked = model.asked(seed, n_images)
        if not is_clear(asked.capture, **arguments):
            continue
        clear += 1
        engine = model.engine()
        asked.question.ask(engine)
        np.testing.assert_allclose(engine.logits(), asked.capture.logits[-1], atol=1e-3, rtol=0)
        scores, result = engine.compress(engine_method(**arguments))

        want = ref.compress(asked.capture, **arguments)
        check_scores(scores.scores, want.scores)
        assert lists(scores.elite) == lists(want.observers)
        np.testing.assert_allclose(result.strength, want.strength, rtol=1e-4)
        np.testing.assert_allclose(result.skewness, want.skewness, rtol=1e-3, atol=1e-4)
        assert result.budgets.tolist() == want.budgets.tolist()
        assert lists(result.kept) == lists(want.kept)

        ids = asked.question.prompt.input_ids
        logits = ref.masked_decode(model.reference, ids, want.kept, TOKENS, *asked.vision)
        np.testing.assert_allclose(decode(engine, TOKENS), logits, atol=1e-3, rtol=0)
        if clear == 2:
            return
    assert clear, f"all {len(SEEDS)} questions have decisions that are too close: take other seeds"


@pytest.mark.parametrize("n_images", [1, 3])
@pytest.mark.parametrize("mode", ROUNDING)
def test_rounding_modes(model: Model, mode: str, n_images: int) -> None:
    cache, flash, score_error, logit_error = ROUNDING[mode]
    asked = model.asked(0, n_images, cache, flash)
    engine = model.engine(cache, flash)
    asked.question.ask(engine)
    np.testing.assert_allclose(engine.logits(), asked.capture.logits[-1], atol=logit_error, rtol=0)
    scores, result = engine.compress(engine_method(0.3))
    # With the windows that were chosen, even where the choice was close
    windows = enumerate(scores.elite)
    want = np.stack([ref.importance(asked.capture, layer, window) for layer, window in windows])
    check_scores(scores.scores, want, rtol=0, atol=score_error)
    assert result.budgets.tolist() == ref.budgets(scores.scores, 0.3).tolist()
    assert lists(result.kept) == lists(ref.select(scores.scores, result.budgets))

    ids, dtype = asked.question.prompt.input_ids, DTYPES[cache]
    logits = ref.masked_decode(model.reference, ids, result.kept, TOKENS, *asked.vision, cache_dtype=dtype)
    np.testing.assert_allclose(decode(engine, TOKENS), logits, atol=logit_error, rtol=0)


def test_second_turn(model: Model) -> None:
    """A later turn's image is compressed among the earlier image's survivors, which stay as they are."""
    assert any(second_turn(model, seed) for seed in SEEDS), "all later questions have decisions that are too close"


def second_turn(model: Model, seed: int) -> bool:
    """Whether the decisions of this later question are clear; if so, they were compared."""
    first, engine = model.asked(0, 1), model.engine()
    first.question.ask(engine)
    _, kept_first = engine.compress(engine_method(0.2))
    decode(engine, TOKENS)

    prompt, later = first.question.prompt, question(seed, 3, model.tokenizer)
    ids = torch.cat([prompt.input_ids, torch.tensor(TOKENS)])
    start = ids.numel()
    text = "<|im_end|>\n" + later.prompt.text
    later = Question(tiny.prompt_from_text(text, later.pictures, model.tokenizer), later.pictures)
    later.ask(engine)
    ids = torch.cat([ids, later.prompt.input_ids])
    vision = [torch.cat(pair) for pair in zip(prompt.vision, later.prompt.vision, strict=True)]
    vision.append(torch.cat([first.embeddings, image_embeddings(engine)]))

    def forward(tokens: torch.Tensor, kept: list[np.ndarray] | None = None) -> ref.Capture:
        visual, size = first.capture.visual, tokens.numel()
        visible = ref.visible_after(visual, prompt.input_ids.numel(), size, kept_first.kept)
        if kept is not None:
            visible &= ref.visible_after(capture.visual, ids.numel(), size, kept)
        return ref.qwen2vl_forward(model.reference, tokens, *vision, visible=visible, start=start)

    capture = forward(ids)
    if not is_clear(capture, keep=0.3):
        return False
    np.testing.assert_allclose(engine.logits(), capture.logits[-1], atol=1e-3, rtol=0)
    scores, result = engine.compress(engine_method(0.3))
    windows = [start + elite for elite in scores.elite]
    want = ref.compress(capture, 0.3)
    check_scores(scores.scores, want.scores)
    assert lists(windows) == lists(want.observers)
    assert lists(result.kept) == lists(want.kept)
    logits = forward(torch.cat([ids, torch.tensor(TOKENS)]), result.kept).logits[ids.numel() :]
    np.testing.assert_allclose(decode(engine, TOKENS), logits, atol=1e-3, rtol=0)
    return True


def test_vision_tower(model: Model) -> None:
    """What the other tests take as given. llama.cpp's GELU is a table of F16 values."""
    asked = model.asked(0, 3)
    with torch.no_grad():
        want = torch.cat(model.reference.model.get_image_features(*asked.question.prompt.vision).pooler_output).numpy()
    np.testing.assert_allclose(asked.embeddings.numpy(), want, atol=2e-3 * np.abs(want).max(), rtol=0)
