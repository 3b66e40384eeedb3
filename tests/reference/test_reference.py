"""The reference itself: against Hugging Face's model, against loops written out, and against what must always hold."""

from __future__ import annotations

import math
from typing import get_args

import aircache_ref as ref
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import DynamicCache, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

ALLOCATIONS = get_args(ref.Allocation)
Case = tuple[Qwen2VLForConditionalGeneration, tiny.Prompt, ref.Capture]


@pytest.fixture(scope="module", params=list(tiny.SHAPES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A tiny model, a prompt with two images and text before, between and after them, and what it captured."""
    model = tiny.load(tiny.save_tiny(tmp_path_factory.mktemp(request.param), request.param, seed=3))
    rng = np.random.default_rng(3)
    content = ["Look: ", tiny.random_image(rng, 4, 5), " and ", tiny.random_image(rng, 3, 4), "What is KIWI?"]
    prompt = tiny.chat_prompt(content)
    return model, prompt, ref.qwen2vl_forward(model, prompt.input_ids, *prompt.vision)


@torch.no_grad()
def hf_logits(model: Qwen2VLForConditionalGeneration, prompt: tiny.Prompt, ids: torch.Tensor) -> np.ndarray:
    """Hugging Face's own forward pass over ids that begin with the prompt."""
    is_image = (ids == model.config.image_token_id).int()[None]
    output = model(
        input_ids=ids[None],
        mm_token_type_ids=is_image,
        pixel_values=prompt.pixel_values,
        image_grid_thw=prompt.image_grid_thw,
    )
    return output.logits[0].numpy()


def random_capture(seed: int, n_layers: int = 2, heads: int = 4, heads_kv: int = 2, dim: int = 8) -> ref.Capture:
    """Made-up queries and keys for text 0-2, image 3-8, text 9-10, image 11-13, text 14-20."""
    rng = np.random.default_rng(seed)
    visual = np.array([3, 4, 5, 6, 7, 8, 11, 12, 13])
    return ref.Capture(
        q=rng.normal(size=(n_layers, heads, 21, dim)).astype(np.float32) * 1.5,
        k=rng.normal(size=(n_layers, heads_kv, 21, dim)).astype(np.float32) * 1.5,
        logits=np.zeros((21, 4), np.float32),
        visual=visual,
        positions=np.zeros((3, 21), np.int64),
    )


# -- the model --------------------------------------------------------------------------------------------------------


def test_patches_are_the_image_processors() -> None:
    processor = Qwen2VLImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3, min_pixels=1, max_pixels=10**6)
    image = tiny.random_image(np.random.default_rng(0), 3, 5)
    expected = processor(image, return_tensors="pt")
    patches, grid = tiny.patchify(image)
    assert grid.tolist() == expected["image_grid_thw"][0].tolist()
    torch.testing.assert_close(patches, expected["pixel_values"].float(), atol=1e-6, rtol=0)


def test_forward_is_hugging_faces(case: Case) -> None:
    model, prompt, capture = case
    np.testing.assert_allclose(capture.logits, hf_logits(model, prompt, prompt.input_ids), atol=1e-5)


def test_keys_are_those_of_the_cache(case: Case) -> None:
    model, prompt, capture = case
    cache = DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        model(
            input_ids=prompt.input_ids[None],
            mm_token_type_ids=(prompt.input_ids == model.config.image_token_id).int()[None],
            pixel_values=prompt.pixel_values,
            image_grid_thw=prompt.image_grid_thw,
            past_key_values=cache,
            use_cache=True,
        )
    for layer in range(capture.n_layers):
        np.testing.assert_allclose(capture.k[layer], cache.layers[layer].keys[0].numpy(), atol=1e-5)


def test_prompt_is_laid_out_as_expected(case: Case) -> None:
    _, prompt, capture = case
    images = (prompt.input_ids == 272).numpy()
    assert capture.visual.tolist() == np.flatnonzero(images).tolist()
    assert capture.visual.size == 4 * 5 + 3 * 4
    assert capture.text.size + capture.visual.size + capture.visual[0] == capture.n_tokens
    # an image has one time, and the text goes on behind its longer side
    first, last = capture.visual[0], capture.visual[19]
    assert set(capture.positions[0, first : last + 1]) == {first}
    assert capture.positions[:, last + 1].tolist() == [first + 5] * 3


def test_image_embeddings_can_be_given(case: Case) -> None:
    model, prompt, capture = case
    with torch.no_grad():
        own = torch.cat(model.model.get_image_features(*prompt.vision).pooler_output)
    same = ref.qwen2vl_forward(model, prompt.input_ids, *prompt.vision, image_embeds=own)
    np.testing.assert_array_equal(same.logits, capture.logits)
    other = ref.qwen2vl_forward(model, prompt.input_ids, *prompt.vision, image_embeds=own.flip(0))
    assert np.abs(other.logits - capture.logits).max() > 0.1
    with pytest.raises(ValueError, match="32 image tokens, but 31 image embeddings"):
        ref.qwen2vl_forward(model, prompt.input_ids, *prompt.vision, image_embeds=own[1:])


def test_cache_type_rounds_keys(case: Case) -> None:
    model, prompt, capture = case
    rounded = ref.qwen2vl_forward(model, prompt.input_ids, *prompt.vision, cache_dtype=torch.float16)
    np.testing.assert_array_equal(rounded.k, rounded.k.astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(rounded.k, capture.k, atol=0.05)


def test_earlier_images_are_not_this_turns(case: Case) -> None:
    model, prompt, capture = case
    start = int(capture.visual[20]) - 1  # between the images
    second = ref.qwen2vl_forward(model, prompt.input_ids, *prompt.vision, start=start)
    assert second.visual.tolist() == capture.visual[20:].tolist()
    assert second.text.min() > capture.visual[-1]


# -- eviction ---------------------------------------------------------------------------------------------------------

TOKENS = [52, 50, 49, 32, 75, 73, 87, 73]


def test_keeping_everything_is_the_plain_model(case: Case) -> None:
    model, prompt, capture = case
    kept = [np.arange(capture.visual.size)] * capture.n_layers
    logits = ref.masked_decode(model, prompt.input_ids, kept, TOKENS, *prompt.vision)
    ids = torch.cat([prompt.input_ids, torch.tensor(TOKENS)])
    expected = hf_logits(model, prompt, ids)[-len(TOKENS) :]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@torch.no_grad()
def test_hiding_cells_is_removing_them(case: Case) -> None:
    """Decoding token by token with the evicted rows cut out of Hugging Face's cache, a different length per layer."""
    model, prompt, capture = case
    kept = ref.compress(capture, 0.25).kept
    ids = torch.cat([prompt.input_ids, torch.tensor(TOKENS)])
    is_image = (ids == model.config.image_token_id).int()[None]
    positions, _ = model.model.get_rope_index(ids[None], is_image, image_grid_thw=prompt.image_grid_thw)
    cache = DynamicCache(config=model.config.text_config)
    n_prompt = prompt.input_ids.numel()
    model(
        input_ids=prompt.input_ids[None],
        mm_token_type_ids=is_image[:, :n_prompt],
        pixel_values=prompt.pixel_values,
        image_grid_thw=prompt.image_grid_thw,
        past_key_values=cache,
        use_cache=True,
    )
    for layer, indices in zip(cache.layers, kept, strict=True):
        rows = np.delete(np.arange(n_prompt), np.delete(capture.visual, indices))
        layer.keys, layer.values = layer.keys[:, :, rows], layer.values[:, :, rows]
    expected = []
    for i, token in enumerate(TOKENS):
        hidden = model.model.language_model(
            inputs_embeds=model.model.language_model.embed_tokens(torch.tensor([[token]])),
            position_ids=positions[:, :, n_prompt + i : n_prompt + i + 1],
            attention_mask={"full_attention": None},  # one query, nothing after it: all it has is visible
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        expected.append(model.lm_head(hidden)[0, -1].numpy())
    logits = ref.masked_decode(model, prompt.input_ids, kept, TOKENS, *prompt.vision)
    np.testing.assert_allclose(logits, np.stack(expected), atol=1e-4)
    everything = [np.arange(capture.visual.size)] * capture.n_layers
    full = ref.masked_decode(model, prompt.input_ids, everything, TOKENS, *prompt.vision)
    assert np.abs(logits - full).max() > 0.05  # and it is not the same as keeping all


def test_greedy_feeds_what_it_chose(case: Case) -> None:
    model, prompt, capture = case
    tokens = ref.greedy(model, prompt.input_ids, 4, *prompt.vision)
    assert tokens[0] == capture.logits[-1].argmax()
    ids = torch.cat([prompt.input_ids, torch.tensor(tokens)])
    assert hf_logits(model, prompt, ids)[-5:-1].argmax(-1).tolist() == tokens
    assert ref.greedy(model, prompt.input_ids, 4, *prompt.vision, stop=[tokens[0]]) == []


def test_first_token_is_that_of_the_full_cache(case: Case) -> None:
    model, prompt, capture = case
    kept = [np.array([0])] * capture.n_layers
    assert ref.greedy(model, prompt.input_ids, 1, *prompt.vision, kept=kept) == [capture.logits[-1].argmax()]


# -- importance -------------------------------------------------------------------------------------------------------


def softmax(values: list[float]) -> list[float]:
    exps = [math.exp(value - max(values)) for value in values]
    return [e / sum(exps) for e in exps]


def product(q: np.ndarray, k: np.ndarray) -> float:
    return sum(float(a) * float(b) for a, b in zip(q, k, strict=True)) / math.sqrt(len(q))


@pytest.mark.parametrize("seed", range(5))
def test_scores_written_out_as_loops(seed: int) -> None:
    """Section 1 once more, one number at a time."""
    capture, alpha = random_capture(seed), 0.6
    visual, text = capture.visual.tolist(), [9, 10, 14, 15, 16, 17, 18, 19, 20]
    assert capture.text.tolist() == text
    importances, windows = ref.scores(capture, "elite", alpha)
    for layer in range(2):
        q, k = capture.q[layer], capture.k[layer]
        att = dict.fromkeys(text, 0.0)
        for head in range(4):
            weights = softmax([product(q[head, 20], k[head // 2, j]) for j in text])
            for j, weight in zip(text, weights, strict=True):
                att[j] += weight / 4
        chosen = [j for j in text if att[j] >= alpha * max(att.values())]
        assert windows[layer].tolist() == chosen
        expected = dict.fromkeys(visual, 0.0)
        for e in chosen:
            for head in range(4):
                seen = [j for j in sorted(visual + chosen) if j <= e]
                weights = softmax([product(q[head, e], k[head // 2, j]) for j in seen])
                for j, weight in zip(seen, weights, strict=True):
                    if j in expected:
                        expected[j] += weight / 4 / len(chosen)
        np.testing.assert_allclose(importances[layer], [expected[v] for v in visual], rtol=1e-12)


def test_elite_set_grows_as_alpha_falls() -> None:
    capture = random_capture(0)
    q, k = capture.q[0, :, -1], capture.k[0][:, capture.text]
    att = ref.attention_of_last(q, k)
    assert att.sum() == pytest.approx(1)
    sets = [set(ref.elite(q, k, alpha).tolist()) for alpha in (1.0, 0.9, 0.5, 0.1, 1e-9)]
    assert sets[0] == {int(att.argmax())}
    assert all(small <= large for small, large in zip(sets, sets[1:], strict=False))
    assert sets[-1] == set(range(9))


def test_equal_attention_makes_all_elite() -> None:
    q, k = np.zeros((4, 8), np.float32), np.ones((2, 5, 8), np.float32)
    assert ref.elite(q, k, 1.0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("alpha", [0, -0.5, 1.01])
def test_alpha_has_limits(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        ref.elite(np.zeros((1, 2)), np.zeros((1, 3, 2)), alpha)


def test_windows() -> None:
    capture = random_capture(0)
    assert ref.observers(capture, 0, "text").tolist() == [9, 10, 14, 15, 16, 17, 18, 19, 20]
    assert ref.observers(capture, 0, "last:3").tolist() == [18, 19, 20]
    assert ref.observers(capture, 0, "last:8").tolist() == [10, 14, 15, 16, 17, 18, 19, 20]  # skips the image
    assert ref.observers(capture, 0, "last:99").tolist() == capture.text.tolist()
    assert ref.observers(capture, 0, "visual:4").tolist() == [8, 11, 12, 13]
    assert ref.observers(capture, 0, "elite", 1e-9).tolist() == capture.text.tolist()
    for window in ("last", "last:0", "visual:-1", "first:3", "text:3"):
        with pytest.raises(ValueError, match="window must be"):
            ref.observers(capture, 0, window)


def test_text_between_images_gives_later_images_nothing() -> None:
    capture = random_capture(0)
    between = ref.importance(capture, 0, np.array([9, 10]))
    assert (between[:6] > 0).all() and (between[6:] == 0).all()
    # averaged with an observer that sees all, it still counts
    both = ref.importance(capture, 0, np.array([20]))
    mixed = ref.importance(capture, 0, np.array([9, 20]))
    assert mixed[6:].sum() < both[6:].sum()


def test_visual_observers_see_only_images() -> None:
    """Every row of the softmax is over V alone then, so a layer's importance sums to 1."""
    importances, _ = ref.scores(random_capture(0), "visual:3")
    np.testing.assert_allclose(importances.sum(axis=1), 1)


def test_no_image_no_scores() -> None:
    capture = random_capture(0)
    blind = ref.Capture(capture.q, capture.k, capture.logits, np.array([], dtype=np.int64), capture.positions)
    with pytest.raises(ValueError, match="no visual tokens"):
        ref.scores(blind)


# -- strength and skewness --------------------------------------------------------------------------------------------


def test_strength_and_skewness_of_known_rows() -> None:
    rows = np.array([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.3, 0.3, 0.3], [0.1, 0.2, 0.3]])
    np.testing.assert_allclose(ref.strength(rows), [1, 2, 0.9, 0.6])
    # adjusted skewness of three numbers, two equal: +-sqrt(3); the negative one counts as 0
    np.testing.assert_allclose(ref.skewness(rows), [math.sqrt(3), 0, 0, 0], atol=1e-12)


def test_skewness_is_undefined_below_three() -> None:
    assert ref.skewness(np.array([[0.1, 0.9]])).tolist() == [0]
    assert ref.skewness(np.array([[0.4]])).tolist() == [0]


def test_equal_scores_have_no_skewness_whatever_the_rounding() -> None:
    for value in (0.1, 1 / 3, 1e-30):
        assert ref.skewness(np.full((1, 7), value)).tolist() == [0]


# -- budgets ----------------------------------------------------------------------------------------------------------

score_arrays = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40),
    elements=st.one_of(st.just(0.0), st.floats(1e-6, 1.0)),
)
keeps = st.floats(0.001, 1.0)


@settings(max_examples=300, deadline=None)
@given(score_arrays, keeps, st.sampled_from(ALLOCATIONS), st.integers(1, 5))
def test_budgets_keep_their_promises(scores: np.ndarray, keep: float, allocation: ref.Allocation, low: int) -> None:
    n_layers, n = scores.shape
    cells = ref.budgets(scores, keep, allocation, low)
    assert cells.shape == (n_layers,)
    assert cells.min() >= min(low, n) and cells.max() <= n
    least = n_layers * min(low, n)
    assert cells.sum() == max(math.floor(keep * scores.size + 0.5), least)
    assert (cells == ref.budgets(scores, keep, allocation, low)).all()


@settings(max_examples=100, deadline=None)
@given(score_arrays, st.sampled_from(ALLOCATIONS))
def test_keep_one_keeps_all(scores: np.ndarray, allocation: ref.Allocation) -> None:
    assert (ref.budgets(scores, 1.0, allocation) == scores.shape[1]).all()


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(np.float64, st.integers(1, 12), elements=st.one_of(st.just(0.0), st.floats(0.01, 10))),
    st.floats(0, 1),
    st.integers(1, 3),
    st.integers(4, 50),
)
def test_limits_settle_where_one_factor_explains_all(weights: np.ndarray, share: float, low: int, high: int) -> None:
    """Shares within the limits are in proportion to the weights; those at a limit would be beyond it."""
    n = len(weights)
    total = n * (low + share * (high - low))
    shares = ref.within_limits(weights, total, low, high)
    assert shares.sum() == pytest.approx(total)
    assert shares.min() >= low and shares.max() <= high
    inside = (shares > low + 1e-6) & (shares < high - 1e-6) & (weights > 0)
    if inside.any():
        factors = shares[inside] / weights[inside]
        np.testing.assert_allclose(factors, factors[0], rtol=1e-6)
        assert (factors[0] * weights[shares >= high - 1e-9] >= high * (1 - 1e-6)).all()
        assert (factors[0] * weights[(shares <= low + 1e-9) & (weights > 0)] <= low * (1 + 1e-6)).all()


def test_limits_by_hand() -> None:
    # nothing to limit
    np.testing.assert_allclose(ref.within_limits(np.array([1.0, 2.0, 3.0]), 12, 1, 10), [2, 4, 6])
    # 0.5 is lifted to 1, the other two share 11 in proportion 2 : 3.5
    np.testing.assert_allclose(ref.within_limits(np.array([0.5, 2, 3.5]), 6, 1, 10), [1, 5 * 2 / 5.5, 5 * 3.5 / 5.5])
    # 12 is cut to 10, the rest share what it gave in proportion
    np.testing.assert_allclose(ref.within_limits(np.array([12.0, 2, 1]), 15, 1, 10), [10, 10 / 3, 5 / 3])
    # both bind: the cut of the first lifts the last above its limit, so that it is not fixed there
    np.testing.assert_allclose(ref.within_limits(np.array([100.0, 1, 0.9]), 20, 1, 10), [10, 10 / 1.9, 9 / 1.9])
    # no weight, but the full layer leaves cells over
    np.testing.assert_allclose(ref.within_limits(np.array([1.0, 0, 0]), 18, 1, 10), [10, 4, 4])


def test_largest_remainder_by_hand() -> None:
    assert ref.largest_remainder(np.array([1.2, 2.7, 3.1]), 7).tolist() == [1, 3, 3]
    assert ref.largest_remainder(np.array([2.5, 2.5, 2.5, 2.5]), 10).tolist() == [3, 3, 2, 2]  # ties: lower layer
    assert ref.largest_remainder(np.array([2.5 - 1e-13, 2.5]), 5).tolist() == [3, 2]  # rounding noise is a tie


def test_total_rounds_halves_up() -> None:
    assert ref.total_cells(0.1, 1, 25) == 3
    assert ref.total_cells(0.1, 1, 24) == 2
    assert ref.total_cells(0.5, 1, 1) == 1
    assert ref.total_cells(0.001, 4, 20) == 4  # one each
    assert ref.total_cells(0.001, 4, 20, min_keep=50) == 80


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_one_layer_gets_everything(allocation: ref.Allocation) -> None:
    scores = np.random.default_rng(0).random((1, 50))
    assert ref.budgets(scores, 0.1, allocation).tolist() == [5]


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_visual_tokens(allocation: ref.Allocation, n: int) -> None:
    scores = np.random.default_rng(0).random((4, n))
    assert ref.budgets(scores, 0.5, allocation).sum() == max(4, 2 * n)


def test_no_importance_at_all_is_uniform() -> None:
    for allocation in ("strength+skewness", "strength", "skewness", "uniform"):
        assert ref.budgets(np.zeros((4, 10)), 0.25, allocation).tolist() == [3, 3, 2, 2]
    assert ref.budgets(np.zeros((4, 10)), 0.25, "prefix").tolist() == [3, 3, 2, 2]


def test_budgets_by_hand() -> None:
    """Strength 1 : 3, skewness sqrt(3) : 0, keep 1/3 of 2 x 3 = 2 cells."""
    scores = np.array([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    np.testing.assert_allclose(ref.weights(scores, 1 / 3, "strength"), [0.5, 1.5])
    np.testing.assert_allclose(ref.weights(scores, 1 / 3, "skewness"), [2, 0])
    np.testing.assert_allclose(ref.weights(scores, 1 / 3, "strength+skewness"), [1.25, 0.75])
    assert ref.budgets(scores, 2 / 3).tolist() == [3, 1]  # 2.5 and 1.5: a tie
    assert ref.budgets(scores, 2 / 3, "strength").tolist() == [1, 3]
    assert ref.budgets(scores, 2 / 3, "skewness").tolist() == [3, 1]


def test_pyramid_is_linear_and_decreasing() -> None:
    scores = np.ones((5, 200))
    cells = ref.budgets(scores, 0.1, "pyramid")
    assert cells.tolist() == [39, 30, 20, 10, 1]  # 39, 29.5, 20, 10.5, 1; the tie goes to the lower layer
    assert ref.budgets(scores, 0.9, "pyramid").tolist() == [200, 190, 180, 170, 160]  # the first layer is full


def test_prefix_keeps_the_same_share_in_every_layer() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((6, 80)) ** np.array([[1], [2], [4], [8], [16], [32]])
    cells = ref.budgets(scores, 0.2, "prefix")
    assert cells.sum() == 96
    assert (np.diff(cells) < 0).all()  # flat layers need more
    descending = -np.sort(-scores, axis=1)
    shares = np.cumsum(descending, axis=1) / descending.sum(axis=1, keepdims=True)
    # a threshold p exists with which every layer needs exactly its cells: 1 + #{k : c[k] < p}
    reached = max(shares[layer, count - 2] for layer, count in enumerate(cells) if count > 1)
    missed = min(shares[layer, count - 1] for layer, count in enumerate(cells))
    assert reached < missed
    p = (reached + missed) / 2
    assert [1 + int((row < p).sum()) for row in shares] == cells.tolist()


@pytest.mark.parametrize("scale", [1e-6, 0.5, 1e3])
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_scale_of_scores_does_not_matter(allocation: ref.Allocation, scale: float) -> None:
    scores = np.random.default_rng(1).random((5, 60)) ** 3
    assert (ref.budgets(scores * scale, 0.15, allocation) == ref.budgets(scores, 0.15, allocation)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 0.0}, "keep"),
        ({"keep": 1.1}, "keep"),
        ({"keep": 0.5, "allocation": "best"}, "'best'"),
        ({"keep": 0.5, "min_keep": 0}, "min_keep"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ref.budgets(np.ones((2, 5)), **arguments)


@pytest.mark.parametrize("scores", [np.ones(5), np.ones((0, 5)), np.full((2, 5), np.nan), -np.ones((2, 5))])
def test_bad_scores_are_refused(scores: np.ndarray) -> None:
    with pytest.raises(ValueError, match="scores"):
        ref.budgets(scores, 0.5)


# -- selection --------------------------------------------------------------------------------------------------------


def test_selection_breaks_ties_by_position() -> None:
    scores = np.array([[0.2, 0.5, 0.2, 0.5, 0.2], [0.0, 0.0, 0.0, 0.0, 0.0]])
    kept = ref.select(scores, [3, 2])
    assert [indices.tolist() for indices in kept] == [[0, 1, 3], [0, 1]]


@settings(max_examples=100, deadline=None)
@given(score_arrays, keeps)
def test_selection_keeps_the_best(scores: np.ndarray, keep: float) -> None:
    cells = ref.budgets(scores, keep)
    for row, count, indices in zip(scores, cells, ref.select(scores, cells), strict=True):
        assert indices.size == count and (np.diff(indices) > 0).all()
        dropped = np.delete(row, indices)
        assert dropped.size == 0 or row[indices].min() >= dropped.max()


# -- margins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_decisions_survive_errors_below_the_margins(allocation: ref.Allocation) -> None:
    """What the margins are for: noise well below them changes nothing."""
    checked = 0
    for seed in range(20):
        capture = random_capture(seed, n_layers=3)
        margin = ref.margins(capture, 0.3, allocation=allocation)
        if margin.least < 1e-3:
            continue
        result = ref.compress(capture, 0.3, allocation=allocation)
        rng = np.random.default_rng(seed)
        q, k = (a + rng.normal(size=a.shape) * 1e-6 for a in (capture.q, capture.k))
        noisy = ref.compress(
            ref.Capture(q, k, capture.logits, capture.visual, capture.positions), 0.3, allocation=allocation
        )
        assert [w.tolist() for w in noisy.observers] == [w.tolist() for w in result.observers]
        assert noisy.budgets.tolist() == result.budgets.tolist()
        assert [i.tolist() for i in noisy.kept] == [i.tolist() for i in result.kept]
        checked += 1
    assert checked >= 5


def test_margins_by_hand() -> None:
    assert ref.select_gap(np.array([0.5, 1.0, 0.4, 0.4]), 2) == pytest.approx(0.1)
    assert ref.select_gap(np.array([0.5, 1.0, 0.4, 0.4]), 3) == 0
    assert ref.select_gap(np.array([0.5, 1.0]), 2) == math.inf
    assert ref.budget_gap(np.ones((4, 10)), 0.25, "uniform") == math.inf
    scores = np.array([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    assert ref.budget_gap(scores, 2 / 3, "strength+skewness") == pytest.approx(0)  # 2.5 and 1.5
    capture = random_capture(0)
    att = ref.attention_of_last(capture.q[0, :, -1], capture.k[0][:, capture.text])
    second = np.sort(att)[-2] / att.max()
    assert ref.elite_gap(capture, 0, alpha=1.0) == pytest.approx(1 - second)
    assert ref.margins(capture, 0.3, window="text").elite == math.inf


def test_equal_q_and_k_leave_no_margin() -> None:
    capture = random_capture(0)
    flat = ref.Capture(capture.q * 0, capture.k, capture.logits, capture.visual, capture.positions)
    assert ref.margins(flat, 0.3).least == 0
