"""The reference of the methods beside AirCache: against Hugging Face's attention, PyTorch's pooling, and loops."""

from __future__ import annotations

import dataclasses
import itertools
import math

import aircache_ref as ref
import methods_ref
import numpy as np
import pytest
import scores_ref
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from methods_ref import Method
from transformers import DynamicCache, Qwen2VLForConditionalGeneration

Case = tuple[Qwen2VLForConditionalGeneration, tiny.Prompt, ref.Capture]
TOKENS = [52, 50, 49, 32]
IMAGES = ((2, 3), (1, 3))  # of random_capture


@pytest.fixture(scope="module", params=["gqa", "mqa"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    model = tiny.load(tiny.save_tiny(tmp_path_factory.mktemp(request.param), request.param, seed=3))
    rng = np.random.default_rng(3)
    content = ["Look: ", tiny.random_image(rng, 4, 5), " and ", tiny.random_image(rng, 3, 4), "What is KIWI?"]
    prompt = tiny.chat_prompt(content)
    return model, prompt, ref.qwen2vl_forward(model, prompt.input_ids, *prompt.vision)


def random_capture(seed: int) -> ref.Capture:
    """Made-up queries, keys and values for text 0-2, image 3-8, text 9-10, image 11-13, text 14-20."""
    rng = np.random.default_rng(seed)
    return ref.Capture(
        q=rng.normal(size=(2, 4, 21, 8)).astype(np.float32) * 1.5,
        k=rng.normal(size=(2, 2, 21, 8)).astype(np.float32) * 1.5,
        v=rng.normal(size=(2, 2, 21, 8)).astype(np.float32),
        logits=np.zeros((21, 4), np.float32),
        visual=np.array([3, 4, 5, 6, 7, 8, 11, 12, 13]),
        positions=np.zeros((3, 21), np.int64),
        images=IMAGES,
    )


# -- scores -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_causal_scores_are_hugging_faces_attention(case: Case) -> None:
    """H2O: column sums of all rows; SnapKV and VL-Cache: means of the last rows and of the text behind the image."""
    model, prompt, capture = case
    attentions = model(
        input_ids=prompt.input_ids[None],
        mm_token_type_ids=(prompt.input_ids == model.config.image_token_id).int()[None],
        pixel_values=prompt.pixel_values,
        image_grid_thw=prompt.image_grid_thw,
        output_attentions=True,
    ).attentions
    rows = torch.stack(attentions)[:, 0].mean(dim=1).numpy()[:, :, capture.visual]  # [L, S, N_v]
    for window, expected in (
        ("all", rows.sum(axis=1)),
        ("last:5", rows[:, -5:].mean(axis=1)),
        ("text", rows[:, capture.text].mean(axis=1)),
        ("visual:3", rows[:, capture.visual[-3:]].mean(axis=1)),
    ):
        got, _ = methods_ref.scores(capture, Method(1.0, window=window, keys="causal"))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_elite_window_is_aircaches() -> None:
    capture = random_capture(0)
    for window in ("elite", "text", "last:3", "visual:2"):
        got, windows = methods_ref.scores(capture, Method(1.0, window=window, alpha=0.6))
        want, same = ref.scores(capture, window, 0.6)
        np.testing.assert_allclose(got, want, rtol=1e-12)
        assert [one.tolist() for one in windows] == [one.tolist() for one in same]


def test_text_weights_written_out() -> None:
    capture = random_capture(1)
    method = Method(1.0, window="text", text_weights=True)
    got, _ = methods_ref.scores(capture, method)
    text, visual = capture.text.tolist(), capture.visual.tolist()
    for layer in range(2):
        rows, tokens = methods_ref.attention_rows(capture, layer, capture.text, "window")
        attention = {(i, j): rows[text.index(i), tokens.tolist().index(j)] for i in text for j in tokens.tolist()}
        expected = dict.fromkeys(visual, 0.0)
        for i in text:
            later = [other for other in text if other >= i]
            weight = sum(attention[other, i] for other in later) / len(later)
            for v in visual:
                expected[v] += weight * attention[i, v]
        np.testing.assert_allclose(got[layer], [expected[v] for v in visual], rtol=1e-12)


def test_content_window() -> None:
    capture = random_capture(0)
    ids = [0] * 21
    ids[9], ids[10], ids[16], ids[19] = 7, 8, 9, 7  # control, end, end, control
    template = methods_ref.template_tokens(ids, capture.text, {7}, {8, 9})
    assert capture.text[template].tolist() == [9, 10, 16, 17, 18, 19, 20]
    method = Method(1.0, alpha=1e-9, elite_content=True)
    assert methods_ref.observers(capture, 0, method, template).tolist() == [14, 15]
    with_last = dataclasses.replace(method, elite_last=True)
    assert methods_ref.observers(capture, 0, with_last, template).tolist() == [14, 15, 20]
    nothing_else = np.ones_like(template)
    assert methods_ref.observers(capture, 0, method, nothing_else).tolist() == capture.text.tolist()


@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_pooling_is_pytorchs(kind: str, size: int) -> None:
    images, rng = [(3, 4), (2, 5), (1, 3)], np.random.default_rng(0)
    row = rng.random(25)
    along = {"avg": torch.nn.functional.avg_pool1d, "max": torch.nn.functional.max_pool1d}[kind]
    on_grid = {"avg": torch.nn.functional.avg_pool2d, "max": torch.nn.functional.max_pool2d}[kind]
    parts = [torch.from_numpy(part) for part in np.split(row, [12, 22])]
    expected = torch.cat([along(part[None], size, 1, size // 2)[0] for part in parts])
    np.testing.assert_allclose(methods_ref.pooled(row, images, kind, size), expected, rtol=1e-12)
    grids = [part.reshape(shape)[None] for part, shape in zip(parts, images, strict=True)]
    expected = torch.cat([on_grid(grid, size, 1, size // 2).flatten() for grid in grids])
    np.testing.assert_allclose(methods_ref.pooled(row, images, kind, size, True), expected, rtol=1e-12)


def test_last_term_needs_neighbours_and_the_layer_before() -> None:
    """Equal peaks: only the one with a neighbour and with a past counts in full."""
    last = np.array([0.0, 0.3, 0.3, 0, 0, 0, 0.0, 0.3, 0.0])
    before = np.array([0.0, 0.3, 0.3, 0, 0, 0, 0.0, 0.3, 0.0])
    term = methods_ref.gated_last(last, before, IMAGES)
    np.testing.assert_allclose(term, [0, 0.3, 0.3, 0, 0, 0, 0, 0.15, 0], atol=1e-12)
    before[1] = 0.1
    np.testing.assert_allclose(methods_ref.gated_last(last, before, IMAGES)[[1, 2]], [0.1, 0.3])
    assert not methods_ref.gated_last(last, np.zeros(9), IMAGES).any()


def test_diversity_written_out() -> None:
    capture = random_capture(2)
    row, keys = np.random.default_rng(0).random(9), capture.k[0][:, capture.visual].astype(np.float64)
    units = [[key / math.sqrt((key**2).sum()) for key in head] for head in keys]
    pairs = [float(a @ b) for head in units for a, b in itertools.permutations(head, 2)]
    r = max(0.0, sum(pairs) / len(pairs))
    cosines = np.zeros(9)
    for head in units:
        mean = sum(head) / 9
        cosines += [unit @ mean / math.sqrt(mean @ mean) / 2 for unit in head]
    share = (cosines.max() - cosines) / (cosines.max() - cosines.min())
    expected = r * share * row.mean() / share.mean() + (1 - r) * row
    np.testing.assert_allclose(methods_ref.with_diversity(row, keys), expected, rtol=1e-9)
    # MixKV's closed form of the mean cosine
    closed = [(9 * np.sum(np.mean(head, axis=0) ** 2) - 1) / 8 for head in units]
    assert scores_ref.redundancy(np.array(units)) == pytest.approx(np.mean(closed))


def test_equal_keys_are_no_more_diverse_than_others() -> None:
    row = np.array([0.1, 0.2, 0.3])
    np.testing.assert_array_equal(methods_ref.with_diversity(row, np.ones((2, 3, 4))), row)


def test_value_norm_is_of_the_whole_row() -> None:
    capture = random_capture(3)
    method = Method(1.0, window="text")
    plain, _ = methods_ref.scores(capture, method)
    scaled, _ = methods_ref.scores(capture, dataclasses.replace(method, value_norm=True))
    rows = capture.v[:, :, capture.visual].transpose(0, 2, 1, 3).reshape(2, 9, -1).astype(np.float64)
    np.testing.assert_allclose(scaled, plain * np.linalg.norm(rows, axis=2), rtol=1e-6)


# -- budgets ----------------------------------------------------------------------------------------------------------


def test_alive_written_out() -> None:
    capture = random_capture(4)
    counts = methods_ref.alive(capture)
    for layer in range(2):
        expected = 0
        for head, i in itertools.product(range(4), capture.text):
            q = capture.q[layer, head, i].astype(np.float64)
            seen = [v for v in capture.visual if v <= i]
            logits = [q @ capture.k[layer, head // 2, v].astype(np.float64) / math.sqrt(8) for v in seen]
            expected += sum(math.exp(one - max(logits)) >= 0.01 for one in logits)
        assert counts[layer] == expected / 4


arrays = hnp.arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 30)), elements=st.floats(0, 1))


@settings(max_examples=100, deadline=None)
@given(arrays, st.floats(0.001, 1), st.integers(1, 4), st.floats(0, 1), st.data())
def test_vl_budgets_keep_their_promises(
    scores: np.ndarray, keep: float, low: int, share: float, data: st.DataObject
) -> None:
    n_layers, n = scores.shape
    living = np.array(data.draw(st.lists(st.integers(0, 99), min_size=n_layers, max_size=n_layers)))
    method = Method(keep, low, allocation="vl", uniform_share=share)
    cells = methods_ref.budgets(scores, method, living)
    assert cells.sum() == ref.total_cells(keep, n_layers, n, low)
    assert min(low, n) <= cells.min() and cells.max() <= n
    order = np.argsort(living, kind="stable")
    assert (np.diff(cells[order]) >= -1).all()  # more living entries never lose a cell but to rounding


# -- merging ----------------------------------------------------------------------------------------------------------


def test_merge_map() -> None:
    kept = np.array([2, 5, 9])
    # distances: 0 is 2 from 2; 1, 3 and 4 are 1 from 2, 2 and 5; 6 is 1 from 5; 7 is 2 from both 5 and 9; 8, 10 are 1
    everything = [(1, 2), (3, 2), (4, 5), (6, 5), (8, 9), (10, 9), (0, 2), (7, 5)]
    assert methods_ref.merge_map(kept, 11, 1.0) == everything
    assert methods_ref.merge_map(kept, 11, 0.5) == everything[:4]
    assert methods_ref.merge_map(kept, 11, 0.0625) == everything[:1]  # half a token counts as one
    assert methods_ref.merge_map(kept, 11, 0.05) == []
    assert methods_ref.merge_map(np.arange(11), 11, 1.0) == []


@torch.no_grad()
def test_merging_is_averaging_rows_of_the_cache(case: Case) -> None:
    """Decoding token by token with the means written to Hugging Face's cache and the dropped rows cut out."""
    model, prompt, capture = case
    n_prompt = prompt.input_ids.numel()
    kept = ref.compress(capture, 0.25).kept
    ids = torch.cat([prompt.input_ids, torch.tensor(TOKENS)])
    is_image = (ids == model.config.image_token_id).int()[None]
    positions, _ = model.model.get_rope_index(ids[None], is_image, image_grid_thw=prompt.image_grid_thw)
    cache = DynamicCache(config=model.config.text_config)
    model(
        input_ids=prompt.input_ids[None],
        mm_token_type_ids=is_image[:, :n_prompt],
        pixel_values=prompt.pixel_values,
        image_grid_thw=prompt.image_grid_thw,
        past_key_values=cache,
        use_cache=True,
    )
    for layer, indices in zip(cache.layers, kept, strict=True):
        pairs = methods_ref.merge_map(indices, capture.visual.size, 0.7)
        for rows in (layer.keys, layer.values):
            before = rows.clone()
            for anchor in indices.tolist():
                members = [anchor, *(dropped for dropped, to in pairs if to == anchor)]
                total = sum(before[:, :, capture.visual[member]] for member in members)
                rows[:, :, capture.visual[anchor]] = total / len(members)
        stay = np.delete(np.arange(n_prompt), np.delete(capture.visual, indices))
        layer.keys, layer.values = layer.keys[:, :, stay], layer.values[:, :, stay]
    expected = []
    for i, token in enumerate(TOKENS):
        hidden = model.model.language_model(
            inputs_embeds=model.model.language_model.embed_tokens(torch.tensor([[token]])),
            position_ids=positions[:, :, n_prompt + i : n_prompt + i + 1],
            attention_mask={"full_attention": None},
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        expected.append(model.lm_head(hidden)[0, -1].numpy())
    visible = ref.visible_after(capture.visual, n_prompt, ids.numel(), kept)
    later = methods_ref.merged(capture.visual, n_prompt, kept, 0.7)
    changed = ref.qwen2vl_forward(model, ids, *prompt.vision, visible=visible, later=later)
    np.testing.assert_allclose(changed.logits[n_prompt:], np.stack(expected), atol=1e-4)
    np.testing.assert_allclose(changed.logits[:n_prompt], capture.logits, atol=1e-5)
    dropped = ref.qwen2vl_forward(model, ids, *prompt.vision, visible=visible)
    assert np.abs(changed.logits - dropped.logits).max() > 0.05
