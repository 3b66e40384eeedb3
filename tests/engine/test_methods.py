"""Every named method and what goes beyond the paper, on tiny models of two families, against the reference.

A method that is named later is tested by being named: the tests ask the engine for its list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import aircache_ref as ref
import methods_ref
import numpy as np
import pytest
import tiny
import torch
from families import (
    MARGIN,
    SEEDS,
    Family,
    check_method,
    check_scores,
    engine_method,
    reference_method,
    with_keep,
)
from harness import IMAGE, TOKENS, TWO_THREADS, Question, decode, image_embeddings, lists, question

from pyaircache.engine import selection
from pyaircache.engine.engine import Engine
from pyaircache.errors import ArgumentError, PyAircacheError, StateError

NAMED = selection.named_methods()
FAMILIES = ("gqa-0", "mha-0", "internvl-0", "gqa-0" + TWO_THREADS)
QWEN2VL = ("gqa-0", "mha-0")

SNAPKV = {"window": "last:8", "keys": "causal", "pool": "avg", "allocation": "uniform"}
TGV = {"window": "text", "text_weights": True}
BEYOND = {
    "visual window": {"window": "visual:8"},
    "visual window, causal": {"window": "visual:8", "keys": "causal"},
    "elite, causal": {"keys": "causal", "alpha": 0.3},
    "content": {"elite_content": True, "alpha": 0.5},
    "content and last": {"elite_content": True, "elite_last": True},
    "elite and last": {"elite_last": True, "alpha": 0.7},
    "snapkv 8": SNAPKV,
    "max pool 7": SNAPKV | {"pool": "max", "pool_size": 7},
    "pool wider than an image": SNAPKV | {"pool_size": 15},
    "pool 1": SNAPKV | {"pool_size": 1},
    "tgv": TGV,
    "tgv, causal": TGV | {"keys": "causal", "allocation": "strength"},
    "last term": {"window": "last:8", "last_term": 1.0},
    "last term, causal, large": {"keys": "causal", "last_term": 20.0, "alpha": 0.3},
    "value norm": {"value_norm": True},
    "diversity": {"diversity": True},
    "mixkv": SNAPKV | {"value_norm": True, "diversity": True},
    "mix 0.8": {"uniform_share": 0.8},
    "vl": {"window": "text", "allocation": "vl"},
    "vl, mixed": {"window": "text", "keys": "causal", "allocation": "vl", "uniform_share": 0.4, "min_keep": 2},
    "all, vl": {"window": "all", "keys": "causal", "allocation": "vl"},
    "stride, vl": {"score": "stride", "allocation": "vl"},
    "random, mixed": {"score": "random", "seed": 7, "uniform_share": 0.5},
    "rank 1": {"rank": 1},
    "rank 5": {"rank": 5},
    "merge": {"merge": 1.0},
    "merge half": {"merge": 0.5, "keep": 0.1},
    "elastic, merged": {"window": "all", "keys": "causal", "allocation": "uniform", "merge": 1.0},
    "all, pooled, skewness": {"window": "all", "keys": "causal", "pool": "max", "allocation": "skewness"},
    "everything": TGV
    | {"pool": "avg", "pool_size": 3, "last_term": 0.5, "value_norm": True, "diversity": True, "merge": 0.3},
}
ON_GRID = {
    "avg 3x3": {"pool": "avg", "pool_size": 3, "pool_2d": True},
    "max 3x3": {"pool": "max", "pool_size": 3, "pool_2d": True},
    "avg 5x5, snapkv": SNAPKV | {"pool_2d": True},
    "wider than an image": {"pool": "max", "pool_size": 11, "pool_2d": True},
}

# (cache type, flash attention) -> error of the logits between survivors moved and others hidden: as in test_modes
MODES = {("f32", False): 1e-4, ("f16", False): 1e-2, ("q8_0", True): 0.3}

images = pytest.mark.parametrize("n_images", [1, 3])
modes = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode[0])
Families = Callable[[str], Family]
Opened = Callable[..., Engine]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Families:
    """Models by name, made when first asked for."""
    done: dict[str, Family] = {}

    def get(name: str) -> Family:
        if name not in done:
            done[name] = Family(name, tmp_path_factory.mktemp(name))
        return done[name]

    return get


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, made: Families) -> Family:
    return made(request.param)


# -- against the reference --------------------------------------------------------------------------------------------


@images
@pytest.mark.parametrize("name", NAMED)
def test_named(family: Family, name: str, n_images: int) -> None:
    check_method(family, with_keep(NAMED[name], 0.25), n_images)


@images
@pytest.mark.parametrize("name", BEYOND)
def test_beyond(family: Family, name: str, n_images: int) -> None:
    check_method(family, engine_method(**{"keep": 0.25} | BEYOND[name]), n_images)


@images
@pytest.mark.parametrize("name", ON_GRID)
@pytest.mark.parametrize("model", QWEN2VL)
def test_pooling_on_the_grid(made: Families, model: str, name: str, n_images: int) -> None:
    check_method(made(model), engine_method(keep=0.25, **ON_GRID[name]), n_images)


@pytest.mark.parametrize("n_batch", [7, 16])
@pytest.mark.parametrize("name", ["h2o", "snapkv", "visual window, causal", "tgv", "vl", "mixkv"])
def test_small_batches(made: Families, opened: Opened, name: str, n_batch: int) -> None:
    """What is recorded does not depend on how the prompt is split."""
    method = replace(NAMED[name], keep=0.25) if name in NAMED else engine_method(keep=0.25, **BEYOND[name])
    for family in (made("gqa-0"), made("internvl-0")):
        engine = opened(family.model.text, family.model.mmproj, n_batch=n_batch, n_ubatch=n_batch)
        case = family.case(0, 3)
        case.ask(engine, observe=method)
        want, _ = methods_ref.scores(case.capture, reference_method(method), case.template)
        check_scores(engine.score(method).scores, want)


@pytest.mark.parametrize("mode", [("f32", True), ("f16", False), ("f16", True)], ids=["f32-fa", "f16", "f16-fa"])
@pytest.mark.parametrize("name", ["snapkv", "h2o", "vlcache", "mixkv", "tgv"])
def test_rounding_modes(family: Family, name: str, mode: tuple[str, bool]) -> None:
    """With flash attention, and with keys and values of 16 bits."""
    method = replace(NAMED[name], keep=0.25) if name in NAMED else engine_method(keep=0.25, **BEYOND[name])
    case, engine = family.case(0, 3, *mode), family.engine(*mode)
    case.ask(engine, observe=method)
    want, _ = methods_ref.scores(case.capture, reference_method(method))
    got = engine.score(method).scores
    np.testing.assert_allclose(got / want.max(), want / want.max(), atol=5e-3, rtol=0)


@pytest.mark.parametrize("name", ["h2o", "mixkv", "vlcache"])
def test_quantised_cache(family: Family, name: str) -> None:
    """Attention, value lengths and key directions are read from a quantised cache, too."""
    method = replace(NAMED[name], keep=0.25) if name in NAMED else engine_method(keep=0.25, **BEYOND[name])
    case, engine = family.case(0, 3), family.engine("q8_0", True)
    case.ask(engine, observe=method)
    want, _ = methods_ref.scores(case.capture, reference_method(method))
    np.testing.assert_allclose(engine.score(method).scores / want.max(), want / want.max(), atol=5e-2, rtol=0)


@pytest.mark.parametrize("name", ["h2o", "snapkv", "vlcache", "mixkv", "tgv", "merge", "elastic, merged"])
def test_second_turn(made: Families, name: str) -> None:
    """Later images are compressed among the survivors of the earlier one, which the causal baselines see as text."""
    found = any(second_turn(made("gqa-0"), name, seed) for seed in SEEDS)
    assert found, "all later questions have decisions that are too close"


def second_turn(family: Family, name: str, seed: int) -> bool:
    """Whether the decisions of this later question are clear; if so, they were compared."""
    method = replace(NAMED[name], keep=0.25) if name in NAMED else engine_method(keep=0.25, **BEYOND[name])
    known, model, engine = reference_method(method), family.model, family.engine()
    first = model.asked(0, 1)
    prompt, n_first = first.question.prompt, first.question.prompt.input_ids.numel()
    family.case(0, 1).ask(engine, observe=method)
    _, kept_first = engine.compress(method)
    decode(engine, TOKENS)

    later = question(seed, 3)
    start = n_first + len(TOKENS)
    text = "<|im_end|>\n" + later.prompt.text
    later = Question(tiny.prompt_from_text(text, later.pictures), later.pictures)
    marked = text.replace(IMAGE, engine.marker())
    engine.prompt(marked, [np.asarray(picture) for picture in later.pictures], observe=method)
    ids = torch.cat([prompt.input_ids, torch.tensor(TOKENS), later.prompt.input_ids])
    vision = [torch.cat(pair) for pair in zip(prompt.vision, later.prompt.vision, strict=True)]
    vision.append(torch.cat([first.embeddings, image_embeddings(engine)]))

    def forward(tokens: torch.Tensor, kept: list[np.ndarray] | None = None) -> ref.Capture:
        size, changes = tokens.numel(), methods_ref.merged(first.capture.visual, n_first, kept_first.kept, known.merge)
        visible = ref.visible_after(first.capture.visual, n_first, size, kept_first.kept)
        if kept is not None:
            visible &= ref.visible_after(capture.visual, ids.numel(), size, kept)
            changes = changes + methods_ref.merged(capture.visual, ids.numel(), kept, known.merge)
        return ref.qwen2vl_forward(model.reference, tokens, *vision, visible=visible, start=start, later=changes)

    capture = forward(ids)
    if methods_ref.margins(capture, known).least < MARGIN:
        return False
    np.testing.assert_allclose(engine.logits(), capture.logits[-1], atol=1e-3, rtol=0)
    scores, result = engine.compress(method)
    want = methods_ref.compress(capture, known)
    check_scores(scores.scores, want.scores)
    assert lists(result.kept) == lists(want.kept)
    logits = forward(torch.cat([ids, torch.tensor(TOKENS)]), result.kept).logits[ids.numel() :]
    np.testing.assert_allclose(decode(engine, TOKENS), logits, atol=1e-3, rtol=0)
    return True


# -- the engine against itself ----------------------------------------------------------------------------------------


@modes
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("model", ["gqa-0", "internvl-0"])
def test_moved_is_masked(made: Families, model: str, name: str, mode: tuple[str, bool]) -> None:
    family, method = made(model), with_keep(NAMED[name], 0.2)
    case, engine = family.case(0, 3), family.engine(*mode)
    kept, logits = [], []
    for mask_only in (False, True):
        case.ask(engine, observe=method)
        kept.append(lists(engine.compress(method, mask_only=mask_only)[1].kept))
        logits.append(decode(engine, TOKENS))
    assert kept[0] == kept[1]
    np.testing.assert_allclose(logits[0], logits[1], atol=MODES[mode], rtol=0)


@images
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_merge_rounds_like_the_cache(family: Family, share: float, n_images: int) -> None:
    """Means are taken of what lies in an F16 cache, and rounded to it."""
    case, engine = family.case(0, n_images, "f16"), family.engine("f16")
    case.ask(engine)
    kept = ref.compress(case.capture, 0.2).kept
    engine.evict(kept, merge=share)
    logits = decode(engine, TOKENS)
    np.testing.assert_allclose(logits, case.decode(kept, TOKENS, share), atol=1e-2, rtol=0)


def test_merge_makes_a_difference(family: Family) -> None:
    case = family.case(0, 3)
    kept = ref.compress(case.capture, 0.2).kept
    dropped, merged = case.decode(kept, TOKENS), case.decode(kept, TOKENS, 1.0)
    assert np.abs(merged - dropped).max() > 0.05


@pytest.mark.parametrize("cache", ["q8_0", "q4_0"])
def test_merge_in_a_quantised_cache(family: Family, cache: str) -> None:
    """Rows are dequantised, averaged and quantised again: as close to the reference as without merging."""
    case, engine = family.case(0, 3), family.engine(cache, True)
    kept = ref.compress(case.capture, 0.2).kept
    errors = []
    for share in (0.0, 1.0):
        case.ask(engine)
        engine.evict(kept, merge=share)
        errors.append(np.abs(decode(engine, TOKENS) - case.decode(kept, TOKENS, share)).mean())
    assert errors[1] < 1.5 * errors[0] + 1e-3


def test_merged_tokens_cannot_be_hidden(made: Families) -> None:
    family = made("gqa-0")
    case, engine = family.case(0, 1), family.engine()
    case.ask(engine)
    kept = ref.compress(case.capture, 0.2).kept
    with pytest.raises(ArgumentError, match="merge"):
        engine.evict(kept, mask_only=True, merge=0.5)
    engine.evict(kept, merge=0.5)


def test_one_observation_serves_smaller_ones(family: Family) -> None:
    """What was observed for all text can be scored by any window of text; sums of all tokens hold no queries."""
    case, engine = family.case(0, 3), family.engine()
    for name in ("aircache", "snapkv"):
        case.ask(engine, observe=NAMED[name])
        alone = engine.score(NAMED[name]).scores
        case.ask(engine, observe=NAMED["vlcache"])
        np.testing.assert_array_equal(engine.score(NAMED[name]).scores, alone)
        case.ask(engine, observe=NAMED["h2o"])
        with pytest.raises(StateError, match="observed"):
            engine.score(NAMED[name])


def test_spans_name_their_picture(family: Family) -> None:
    case = family.case(0, 3)
    spans = case.ask(family.engine()).spans
    want = [0, 1, 1, 1, 2] if len(spans) == 5 else [0, 1, 2]  # InternVL cuts the second picture
    assert [span.image for span in spans] == want


# -- the floors -------------------------------------------------------------------------------------------------------


def test_random_is_uniform_and_seeded(made: Families) -> None:
    family = made("gqa-0")
    engine = family.engine()
    family.case(0, 3).ask(engine)
    rounds = [engine.score(engine_method(keep=0.1, score="random", seed=seed)).scores for seed in range(300)]
    again = engine.score(engine_method(keep=0.1, score="random", seed=17)).scores
    np.testing.assert_array_equal(again, rounds[17])
    assert len({scores.tobytes() for scores in rounds}) == 300
    n_layers, n = rounds[0].shape
    cells = np.full(n_layers, n // 5, dtype=np.int32)
    chosen = np.zeros((n_layers, n))
    for scores in rounds:
        kept = selection.select(scores, cells)
        assert len({tuple(one) for one in lists(kept)}) == n_layers  # every layer another set
        for layer, one in enumerate(kept):
            chosen[layer, one] += 1
    share = (n // 5) / n
    sigma = np.sqrt(300 * share * (1 - share))
    assert np.abs(chosen - 300 * share).max() < 4.5 * sigma


@images
def test_stride_is_spread_evenly(family: Family, n_images: int) -> None:
    """Whatever the budget, no stretch without a kept token is much longer than it must be."""
    case, engine = family.case(0, n_images), family.engine()
    case.ask(engine)
    scores = engine.score(engine_method(keep=0.1, score="stride")).scores
    assert (scores == scores[0]).all()
    n = scores.shape[1]
    assert len(set(scores[0].tolist())) == n
    for budget in range(1, n + 1):
        kept = selection.select(scores[:1], np.array([budget], np.int32))[0]
        gaps = np.diff(np.concatenate([kept, [n]]))
        assert kept[0] == 0 and gaps.max() <= 2 * n // budget + 1


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_weights": True}, "text_weights"),
        ({"pool": "avg", "pool_size": 4}, "odd"),
        ({"pool": "avg", "pool_size": 0}, "pool_size"),
        ({"window": "last:0"}, "window_n"),
        ({"merge": 1.1}, "merge"),
        ({"uniform_share": -0.1}, "uniform_share"),
        ({"last_term": -1.0}, "last_term"),
        ({"rank": -1}, "rank"),
    ],
)
def test_bad_methods(made: Families, fields: dict[str, Any], message: str) -> None:
    family, method = made("gqa-0"), engine_method(keep=0.25, **fields)
    engine, case = family.engine(), family.case(0, 1)
    with pytest.raises(ArgumentError, match=message):
        case.ask(engine, observe=method)
    case.ask(engine)
    with pytest.raises(ArgumentError, match=message):
        engine.compress(method)
    engine.compress(engine_method(keep=0.25))  # and the observation is still there


def test_no_grid_no_pooling_on_it(made: Families) -> None:
    family = made("internvl-0")
    engine, case = family.engine(), family.case(0, 1)
    case.ask(engine)
    with pytest.raises(PyAircacheError, match="grid"):
        engine.compress(engine_method(keep=0.25, **ON_GRID["avg 3x3"]))
    engine.compress(engine_method(keep=0.25))


@pytest.mark.parametrize("observed", ["elite", "visual:4"])
@pytest.mark.parametrize("wanted", ["visual:8", "all"])
def test_what_was_not_observed(family: Family, observed: str, wanted: str) -> None:
    engine, case = family.engine(), family.case(0, 1)
    case.ask(engine, observe=engine_method(keep=0.25, window=observed))
    with pytest.raises(PyAircacheError, match="observed"):
        engine.compress(engine_method(keep=0.25, window=wanted))
    engine.compress(engine_method(keep=0.25, window=observed))


def test_rank_beyond_the_last_token(family: Family) -> None:
    engine, case = family.engine(), family.case(0, 1)
    case.ask(engine)
    n = case.capture.visual.size
    with pytest.raises(ArgumentError, match="rank"):
        engine.compress(engine_method(keep=0.25, rank=n + 1))
    _, result = engine.compress(engine_method(keep=0.25, rank=n))
    assert result.budgets.tolist() == [1] * case.capture.n_layers
