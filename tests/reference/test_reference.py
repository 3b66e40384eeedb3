"""The reference itself: against Hugging Face's model, against loops written out, and against what must always hold."""

from __future__ import annotations

import math

import aircache_ref as ref
import numpy as np
import pytest
import tiny
import torch
from captures import random_capture
from transformers import DynamicCache, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

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
