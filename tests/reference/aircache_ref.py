"""AirCache in PyTorch and NumPy, written from the method's description alone: what the engine is checked against.

Nothing here is fast. The model runs in float32 (Hugging Face's, eager attention); everything that follows from its
queries and keys is computed in float64. Names: one prompt of S tokens, L layers, H query heads, H_kv key
heads, head dimension d; V the N_v visual tokens, T the text tokens after the first visual token. Token indices count
from the start of the prompt, visual indices from the first visual token.

    capture = qwen2vl_forward(model, input_ids, pixel_values, image_grid_thw)
    result = compress(capture, keep=0.1)
    logits = masked_decode(model, input_ids, result.kept, tokens, pixel_values, image_grid_thw)

Where the description leaves a choice, this file makes it and says so: look for "Reading:". The other methods and the
options beyond the paper are in methods_ref.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM, Qwen2VLForConditionalGeneration

Allocation = Literal["strength+skewness", "uniform", "pyramid", "strength", "skewness", "prefix"]

# PyramidKV: a layer's smallest budget is the mean divided by this
PYRAMID_BETA = 20.0
# Remainders that differ by less count as equal, so that rounding noise does not decide who gets a cell
REMAINDER_DIGITS = 9


Later = tuple[int, Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]]
"""(first token, change): from that token on, queries find change(layer, k, v) in the cache instead of k and v, each
[H_kv, S, d] in the cache's type."""


# -- the model --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Capture:
    """What a forward pass leaves behind."""

    q: np.ndarray  # [L, H, S, d] float32, after RoPE
    k: np.ndarray  # [L, H_kv, S, d] float32, after RoPE, as the cache holds it in the end
    logits: np.ndarray  # [S, vocabulary] float32
    visual: np.ndarray  # [N_v] token indices of the visual tokens to compress, ascending
    positions: np.ndarray  # [3, S] rotary positions: time, height, width; [1, S] where there is but one
    v: np.ndarray | None = None  # [L, H_kv, S, d] float32, as k
    visible: np.ndarray | None = None  # [L, S, S] bool: what the queries saw, on top of the causal order; None: all
    images: tuple[tuple[int, int], ...] = ()  # rows and columns of each image's tokens, of the images to compress

    @property
    def n_layers(self) -> int:
        return self.q.shape[0]

    @property
    def n_tokens(self) -> int:
        return self.q.shape[2]

    @property
    def text(self) -> np.ndarray:
        """T: token indices of the text after the first visual token, ascending."""
        if self.visual.size == 0:
            raise ValueError("the prompt has no visual tokens")
        after = np.arange(self.visual[0], self.n_tokens)
        return np.setdiff1d(after, self.visual)


@torch.no_grad()
def qwen2vl_forward(
    model: Qwen2VLForConditionalGeneration,
    input_ids: Tensor,
    pixel_values: Tensor,
    image_grid_thw: Tensor,
    image_embeds: Tensor | None = None,
    visible: np.ndarray | None = None,
    cache_dtype: torch.dtype = torch.float32,
    start: int = 0,
    later: Sequence[Later] = (),
) -> Capture:
    """Runs the model over a whole sequence and keeps every layer's queries, keys and values.

    Args:
        model: loaded with attn_implementation="eager", in float32; Qwen2.5-VL and Qwen3-VL have the same interface.
        input_ids: [S], with one image token for every visual token.
        pixel_values: [patches, 1176], all images.
        image_grid_thw: [images, 3], each image's grid of patches.
        image_embeds: [N_v, hidden] replaces the output of the vision tower; wider: see image_features.
        visible: [L, S, S] bool: the keys that each layer's queries see, on top of the causal order.
        cache_dtype: keys and values are rounded to it before anything uses them, as a cache of that type does.
        start: first token of this turn; images before it belong to earlier turns and are not compressed again.
        later: changes of the cache, in the order of their tokens.
    """
    ids = input_ids.reshape(1, -1)
    is_visual = ids == model.config.image_token_id
    if image_embeds is None:
        image_embeds = image_features(model, pixel_values, image_grid_thw)
    if image_embeds.shape[0] != int(is_visual.sum()):
        raise ValueError(f"{int(is_visual.sum())} image tokens, but {image_embeds.shape[0]} image embeddings")
    embeds = model.model.language_model.embed_tokens(ids)
    first, *deepstack = image_embeds.to(embeds.dtype).split(embeds.shape[-1], dim=1)
    embeds[is_visual] = first
    positions, _ = model.model.get_rope_index(ids, is_visual.int(), image_grid_thw=image_grid_thw)  # [3, 1, S]

    visual = is_visual[0].nonzero()[:, 0].numpy()
    merge = model.config.vision_config.spatial_merge_size
    grids = [(rows // merge, columns // merge) for _, rows, columns in image_grid_thw.tolist()]
    firsts = visual[np.cumsum([0] + [rows * columns for rows, columns in grids[:-1]])]
    return _forward(
        model.model.language_model,
        model.lm_head,
        embeds,
        positions,
        visible,
        cache_dtype,
        later,
        {"visual_pos_masks": is_visual, "deepstack_visual_embeds": deepstack} if deepstack else {},
        visual=visual[visual >= start],
        images=tuple(grid for grid, first in zip(grids, firsts, strict=True) if first >= start),
    )


def image_features(model: Qwen2VLForConditionalGeneration, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
    """What the text model takes in for each visual token: [N_v, hidden], in Qwen3-VL [N_v, (1 + n) * hidden]: the
    embedding, then what is added behind each of the first n layers."""
    with torch.no_grad():
        output = model.model.get_image_features(pixel_values, image_grid_thw)
    features = [torch.cat(output.pooler_output)]
    features += [torch.cat(images) for images in getattr(output, "deepstack_features", None) or ()]
    return torch.cat(features, dim=1)


@torch.no_grad()
def qwen2_forward(
    model: Qwen2ForCausalLM,
    input_ids: Tensor,
    images: Sequence[tuple[int, int]],
    image_embeds: Tensor,
    visible: np.ndarray | None = None,
    cache_dtype: torch.dtype = torch.float32,
    later: Sequence[Later] = (),
) -> Capture:
    """As qwen2vl_forward, for a text model that counts every visual token as one position.

    Args:
        model: loaded with attn_implementation="eager", in float32; Llama, Phi-3 and others have the same interface.
        input_ids: [S]; what stands at visual tokens does not matter.
        images: first token and number of tokens of each run of visual tokens.
        image_embeds: [N_v, hidden].
        visible, cache_dtype, later: as for qwen2vl_forward.
    """
    visual = np.concatenate([np.arange(first, first + count) for first, count in images])
    embeds = model.model.embed_tokens(input_ids.reshape(1, -1))
    embeds[0, visual] = image_embeds
    return _forward(
        model.model,
        model.lm_head,
        embeds,
        torch.arange(input_ids.numel())[None],
        visible,
        cache_dtype,
        later,
        {},
        visual=visual,
        images=tuple((1, count) for _, count in images),
    )


def _forward(
    model: torch.nn.Module,
    lm_head: torch.nn.Module,
    embeds: Tensor,
    positions: Tensor,
    visible: np.ndarray | None,
    cache_dtype: torch.dtype,
    later: Sequence[Later],
    inputs: dict[str, Any],
    **of_capture: Any,
) -> Capture:
    """model: a language model of Hugging Face's; inputs: what else it takes."""
    if model.config._attn_implementation != "eager":
        raise ValueError('load the model with attn_implementation="eager"')
    n_layers, n_tokens = model.config.num_hidden_layers, embeds.shape[1]
    mask = np.broadcast_to(np.tri(n_tokens, dtype=bool), (n_layers, n_tokens, n_tokens))
    if visible is not None:
        mask = mask & visible
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    values: list[Tensor] = []

    def one_way(layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        """q [1, H, S, d], k and v [H_kv, S, d] -> [1, H, S, d]"""
        group = q.shape[1] // k.shape[0]
        k, v = k.to(q.dtype).repeat_interleave(group, dim=0), v.to(q.dtype).repeat_interleave(group, dim=0)
        logits = (q @ k.transpose(1, 2)) * scaling
        logits = logits.masked_fill(~torch.tensor(mask[layer]), -torch.inf)
        return logits.softmax(-1) @ v

    def attend(layer: Any, q: Tensor, k: Tensor, v: Tensor, _: Any, scaling: float, **__: Any) -> tuple[Tensor, None]:
        """q [1, H, S, d], k and v [1, H_kv, S, d] -> [1, S, H, d]"""
        index, k, v = layer.layer_idx, k[0].to(cache_dtype), v[0].to(cache_dtype)
        result = one_way(index, q, k, v, scaling)
        for first, change in later:
            k, v = change(index, k, v)
            result[:, :, first:] = one_way(index, q, k, v, scaling)[:, :, first:]
        queries.append(q[0])
        keys.append(k.to(q.dtype))
        values.append(v.to(q.dtype))
        return result.transpose(1, 2), None

    with _text_attention(type(model.layers[0].self_attn), attend):
        hidden = model(inputs_embeds=embeds, position_ids=positions, use_cache=False, **inputs)
    return Capture(
        q=torch.stack(queries).numpy(),
        k=torch.stack(keys).numpy(),
        logits=lm_head(hidden.last_hidden_state)[0].numpy(),
        positions=positions.reshape(-1, n_tokens).numpy(),
        v=torch.stack(values).numpy(),
        visible=visible,
        **of_capture,
    )


@contextmanager
def _text_attention(attention_class: type, attend: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    """Lets `attend` do the attention of the language model's layers; its q and k are rotated already."""
    code: Any = sys.modules[attention_class.__module__]
    eager = code.eager_attention_forward

    def dispatch(module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        is_text = isinstance(module, attention_class)
        return (attend if is_text else eager)(module, *args, **kwargs)

    code.eager_attention_forward = dispatch
    try:
        yield
    finally:
        code.eager_attention_forward = eager


# -- 1. observation window and importance -----------------------------------------------------------------------------


def attention_of_last(q_last: np.ndarray, k_text: np.ndarray) -> np.ndarray:
    """Att: head mean of the last token's softmax over T.

    Args:
        q_last: [H, d], the query of the prompt's last token.
        k_text: [H_kv, T, d], the keys of T.

    Returns:
        [T] float64.
    """
    return attention(q_last[:, None], k_text).mean(axis=0)[0]


def elite(q_last: np.ndarray, k_text: np.ndarray, alpha: float = 0.9) -> np.ndarray:
    """Elite observation window: indices into T, ascending, of { j : Att[j] >= alpha * max Att }. Never empty.

    Args:
        q_last: [H, d].
        k_text: [H_kv, T, d].
        alpha: in (0, 1].
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be in (0, 1], got {alpha}")
    att = attention_of_last(q_last, k_text)
    return np.flatnonzero(att >= alpha * att.max())


def observers(capture: Capture, layer: int, window: str = "elite", alpha: float = 0.9) -> np.ndarray:
    """Token indices, ascending, of the observing queries of one layer.

    Args:
        capture: of the prompt.
        layer: 0-based.
        window: "elite"; "text": all of T; "last:n": the last n of T (all of T when it has fewer);
            "visual:n": the last n of V.
        alpha: threshold of "elite".
    """
    text = capture.text
    if window == "elite":
        return text[elite(capture.q[layer, :, -1], capture.k[layer][:, text], alpha)]
    if window == "text":
        return text
    kind, _, count = window.partition(":")
    if kind not in ("last", "visual") or not count.isdigit() or int(count) < 1:
        raise ValueError(f'window must be "elite", "text", "last:n" or "visual:n", got {window!r}')
    return (text if kind == "last" else capture.visual)[-int(count) :]


def importance(capture: Capture, layer: int, window: np.ndarray) -> np.ndarray:
    """I of one layer: mean over heads and observers of softmax over V and the observers, nothing else.

    A query sees no later token, so with several images a text token between them gives the later images nothing (it
    still counts in the mean).

    Args:
        capture: of the prompt.
        layer: 0-based.
        window: token indices of the observing queries.

    Returns:
        [N_v] float64.
    """
    keys = np.union1d(capture.visual, window)
    seen = keys[None] <= window[:, None]  # [observers, keys]
    weights = attention(capture.q[layer][:, window], capture.k[layer][:, keys], seen)
    return weights[:, :, np.isin(keys, capture.visual)].mean(axis=(0, 1))


def scores(capture: Capture, window: str = "elite", alpha: float = 0.9) -> tuple[np.ndarray, list[np.ndarray]]:
    """I [L, N_v] float64, and each layer's observing tokens as token indices."""
    windows = [observers(capture, layer, window, alpha) for layer in range(capture.n_layers)]
    rows = [importance(capture, layer, tokens) for layer, tokens in enumerate(windows)]
    return np.stack(rows), windows


def attention(q: np.ndarray, k: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
    """softmax(q k' / sqrt(d)) in float64: q [H, Q, d], k [H_kv, K, d], seen [Q, K] -> [H, Q, K]."""
    q, k = q.astype(np.float64), k.astype(np.float64)
    k = np.repeat(k, q.shape[0] // k.shape[0], axis=0)  # query head h uses key head h // (H / H_kv)
    logits = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
    if seen is not None:
        logits = np.where(seen, logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


# -- 2. layer budgets -------------------------------------------------------------------------------------------------


def strength(scores: np.ndarray) -> np.ndarray:
    """s_t [L] of scores [L, N_v]: what the observers give to the visual tokens in all."""
    return scores.astype(np.float64).sum(axis=1)


def skewness(scores: np.ndarray) -> np.ndarray:
    """s_k [L] of scores [L, N_v]: adjusted Fisher-Pearson skewness; 0 when negative or undefined.

    Reading: sigma is 0 when all scores of the layer are equal, whatever rounding makes of their mean.
    """
    n_layers, n = scores.shape
    result = np.zeros(n_layers)
    for layer, row in enumerate(scores.astype(np.float64)):
        if n < 3 or row.min() == row.max():
            continue
        z = (row - row.mean()) / row.std(ddof=1)
        result[layer] = max(0.0, n / ((n - 1) * (n - 2)) * float((z**3).sum()))
    return result


def total_cells(keep: float, n_layers: int, n_visual: int, min_keep: int = 1) -> int:
    """Cells that all layers keep together: round(keep * L * N_v).

    Reading: halves round up, floor(x + 0.5). When min_keep in every layer needs more than that, it is what min_keep
    needs.
    """
    rounded = math.floor(keep * n_layers * n_visual + 0.5)
    return min(max(rounded, n_layers * min(min_keep, n_visual)), n_layers * n_visual)


def budgets(
    scores: np.ndarray, keep: float, allocation: Allocation = "strength+skewness", min_keep: int = 1
) -> np.ndarray:
    """Visual cells that each layer keeps: [L] int, in [min_keep, N_v], sum total_cells(...).

    Args:
        scores: I [L, N_v].
        keep: share kept, in (0, 1].
        allocation: how the layers share.
        min_keep: least per layer; more than N_v means N_v.
    """
    _check(scores, keep, allocation, min_keep)
    n_layers, n = scores.shape
    low = min(min_keep, n)
    total = total_cells(keep, n_layers, n, low)
    if allocation == "prefix":
        return prefix_budgets(scores, total, low)
    real = within_limits(weights(scores, keep, allocation), max(keep * n_layers * n, n_layers * low), low, n)
    return largest_remainder(real, total)


def weights(scores: np.ndarray, keep: float, allocation: Allocation) -> np.ndarray:
    """What each layer's budget is proportional to, before limits and rounding: [L] >= 0, mean 1 (or keep, pyramid)."""
    n_layers, n = scores.shape
    if allocation == "uniform":
        return np.ones(n_layers)
    if allocation == "pyramid":
        # linear from `high` in the first layer to `low` in the last, with mean keep * N_v
        low = keep * n / PYRAMID_BETA
        high = min(2 * keep * n - low, n)
        low = 2 * keep * n - high
        return np.linspace(high, low, n_layers) if n_layers > 1 else np.array([keep * n])
    if allocation == "strength":
        return _mean_one(strength(scores))
    if allocation == "skewness":
        return _mean_one(skewness(scores))
    return (_mean_one(strength(scores)) + _mean_one(skewness(scores))) / 2


def _mean_one(values: np.ndarray) -> np.ndarray:
    """Normalised across layers to mean 1; all zero: all 1."""
    return values / values.mean() if values.any() else np.ones_like(values)


def within_limits(weights: np.ndarray, total: float, low: float, high: float) -> np.ndarray:
    """Shares `total` in proportion to weights [L], each share within [low, high].

    Reading: what the limits take or give is spread over the others in proportion "until it settles", and the one
    settled state is b_l = min(high, max(low, c * w_l)) with the c that makes the sum right. While both limits bind,
    the side that moves more cells is fixed first: the other side may come free again. Layers of weight 0 that must
    take what is left when all others are full take equal parts.
    """
    shares = np.zeros(len(weights))
    free = np.ones(len(weights), dtype=bool)
    while free.any():
        rest = total - shares[~free].sum()
        base = weights[free] if weights[free].any() else np.ones(free.sum())
        shares[free] = base * (rest / base.sum())
        under, over = free & (shares < low), free & (shares > high)
        lacking, excess = (low - shares[under]).sum(), (shares[over] - high).sum()
        if not under.any() and not over.any():
            break
        if lacking >= excess:
            shares[under] = low
            free &= ~under
        if excess >= lacking:
            shares[over] = high
            free &= ~over
    return np.clip(shares, low, high)


def largest_remainder(shares: np.ndarray, total: int) -> np.ndarray:
    """Rounds shares [L] to integers with the given sum; the largest fractions round up, ties: the lower layer."""
    floors = np.floor(shares)
    remainders = np.round(shares - floors, REMAINDER_DIGITS)
    order = np.argsort(-remainders, kind="stable")
    result = floors.astype(np.int64)
    result[order[: total - result.sum()]] += 1
    return result


def prefix_budgets(scores: np.ndarray, total: int, low: int) -> np.ndarray:
    """PrefixKV: every layer keeps the same share p of its importance, with the p that makes the sum `total`.

    A layer needs 1 + #{k : c[k] < p} cells, c being its cumulative importance, highest first. Raising p from 0 adds a
    cell whenever it passes a c of some layer, so the answer is the first `total - L * low` of all these c.
    Reading: equal c go to the lower layer; a layer without any importance counts as flat.
    """
    n_layers, n = scores.shape
    steps = _cumulative(scores)[:, low - 1 : n - 1]  # passing c[k] makes it k + 2 cells, so c[low - 1] makes low + 1
    layers = np.repeat(np.arange(n_layers), steps.shape[1])
    order = np.argsort(steps.ravel(), kind="stable")
    return low + np.bincount(layers[order[: total - n_layers * low]], minlength=n_layers)


def _cumulative(scores: np.ndarray) -> np.ndarray:
    """c [L, N_v]: share of the layer's importance that its highest 1, 2, ... N_v tokens hold."""
    descending = -np.sort(-scores.astype(np.float64), axis=1)
    descending[descending.sum(axis=1) == 0] = 1
    return np.cumsum(descending / descending.sum(axis=1, keepdims=True), axis=1)


def _check(scores: np.ndarray, keep: float, allocation: str, min_keep: int) -> None:
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores must be [layers, visual tokens], got shape {scores.shape}")
    if not np.isfinite(scores).all() or (scores < 0).any():
        raise ValueError("scores must be finite and not negative")
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], got {keep}")
    if allocation not in get_args(Allocation):
        raise ValueError(f"allocation must be one of {', '.join(get_args(Allocation))}, got {allocation!r}")
    if min_keep < 1:
        raise ValueError(f"min_keep must be at least 1, got {min_keep}")


# -- 3. eviction ------------------------------------------------------------------------------------------------------


def select(scores: np.ndarray, budgets: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """Each layer's kept visual indices, ascending: the budget's highest I, ties: the lower position."""
    return [np.sort(np.argsort(-row, kind="stable")[:count]) for row, count in zip(scores, budgets, strict=True)]


def visible_after(capture_visual: np.ndarray, n_prompt: int, n_tokens: int, kept: Sequence[np.ndarray]) -> np.ndarray:
    """[L, n_tokens, n_tokens] bool: tokens after the prompt do not see evicted visual tokens; the prompt sees all.

    Args:
        capture_visual: [N_v] token indices of the visual tokens.
        n_prompt: tokens of the prompt.
        n_tokens: tokens in all.
        kept: kept visual indices of each layer.
    """
    visible = np.ones((len(kept), n_tokens, n_tokens), dtype=bool)
    for layer, indices in enumerate(kept):
        visible[layer, n_prompt:, np.delete(capture_visual, indices)] = False
    return visible


def masked_decode(
    model: Qwen2VLForConditionalGeneration,
    input_ids: Tensor,
    kept: Sequence[np.ndarray],
    tokens: Sequence[int],
    pixel_values: Tensor,
    image_grid_thw: Tensor,
    image_embeds: Tensor | None = None,
    cache_dtype: torch.dtype = torch.float32,
) -> np.ndarray:
    """Logits [len(tokens), vocabulary] after each of `tokens`, fed one after the other behind the prompt.

    Evicting a cell and hiding it from everything later is the same computation; here it is hidden, and all tokens go
    through the model at once. The logits before the first token are those of the uncompressed prompt.

    Args:
        model, pixel_values, image_grid_thw, image_embeds, cache_dtype: as for qwen2vl_forward.
        input_ids: [S], the prompt.
        kept: kept visual indices of each layer.
        tokens: what is fed; its text must hold no image.
    """
    n_prompt = input_ids.numel()
    ids = torch.cat([input_ids.reshape(-1), torch.tensor(list(tokens), dtype=input_ids.dtype)])
    visual = (input_ids.reshape(-1) == model.config.image_token_id).nonzero()[:, 0].numpy()
    visible = visible_after(visual, n_prompt, ids.numel(), kept)
    capture = qwen2vl_forward(model, ids, pixel_values, image_grid_thw, image_embeds, visible, cache_dtype)
    return capture.logits[n_prompt:]


@torch.no_grad()
def greedy(
    model: Qwen2VLForConditionalGeneration,
    input_ids: Tensor,
    n_max: int,
    pixel_values: Tensor,
    image_grid_thw: Tensor,
    kept: Sequence[np.ndarray] | None = None,
    stop: Sequence[int] = (),
) -> list[int]:
    """The most likely tokens, at most n_max and without the stop token; kept None: the full cache."""
    image_embeds = image_features(model, pixel_values, image_grid_thw)
    inputs = (pixel_values, image_grid_thw, image_embeds)
    capture = qwen2vl_forward(model, input_ids, *inputs)
    if kept is None:
        kept = [np.arange(capture.visual.size)] * capture.n_layers
    tokens = [int(capture.logits[-1].argmax())]
    while tokens[-1] not in stop and len(tokens) < n_max:
        tokens.append(int(masked_decode(model, input_ids, kept, tokens, *inputs)[-1].argmax()))
    return tokens[:-1] if tokens[-1] in stop else tokens


# -- all of it, and how close the calls were --------------------------------------------------------------------------


@dataclass(frozen=True)
class Compression:
    """The method applied to one prompt."""

    scores: np.ndarray  # [L, N_v] float64
    observers: list[np.ndarray]  # [L] token indices
    strength: np.ndarray  # [L]
    skewness: np.ndarray  # [L]
    budgets: np.ndarray  # [L]
    kept: list[np.ndarray]  # [L] visual indices


def compress(
    capture: Capture,
    keep: float,
    alpha: float = 0.9,
    window: str = "elite",
    allocation: Allocation = "strength+skewness",
    min_keep: int = 1,
) -> Compression:
    """Sections 1 to 3 for one prompt."""
    importances, windows = scores(capture, window, alpha)
    cells = budgets(importances, keep, allocation, min_keep)
    return Compression(
        scores=importances,
        observers=windows,
        strength=strength(importances),
        skewness=skewness(importances),
        budgets=cells,
        kept=select(importances, cells),
    )


@dataclass(frozen=True)
class Margins:
    """How far each decision was from going the other way; infinity where there was nothing to decide.

    An implementation in lower precision can only be expected to agree where these exceed its error.
    """

    elite: float  # least |Att[j] - alpha * max Att| / max Att over layers and tokens
    total: float  # distance of keep * L * N_v to the next half
    budget: float  # least gap between the fractions (prefix: shares) that got the last cell and those that did not
    select: float  # least (lowest kept I - highest dropped I) / highest I over layers

    @property
    def least(self) -> float:
        return min(self.elite, self.total, self.budget, self.select)


def margins(
    capture: Capture,
    keep: float,
    alpha: float = 0.9,
    window: str = "elite",
    allocation: Allocation = "strength+skewness",
    min_keep: int = 1,
) -> Margins:
    """Margins of compress() with the same arguments."""
    result = compress(capture, keep, alpha, window, allocation, min_keep)
    elite_margin = math.inf
    if window == "elite":
        elite_margin = min(elite_gap(capture, layer, alpha) for layer in range(capture.n_layers))
    exact = keep * result.scores.size
    return Margins(
        elite=elite_margin,
        total=abs(exact - math.floor(exact) - 0.5),
        budget=budget_gap(result.scores, keep, allocation, min_keep),
        select=min(select_gap(row, int(count)) for row, count in zip(result.scores, result.budgets, strict=True)),
    )


def elite_gap(capture: Capture, layer: int, alpha: float = 0.9) -> float:
    """Distance of the closest Att of one layer to the threshold, as a share of max Att (itself not counted)."""
    att = attention_of_last(capture.q[layer, :, -1], capture.k[layer][:, capture.text])
    relative = np.delete(att / att.max(), att.argmax())
    return float(np.abs(relative - alpha).min(initial=math.inf))


def select_gap(scores: np.ndarray, count: int) -> float:
    """Gap between the lowest kept and the highest dropped of scores [N_v], as a share of the highest."""
    if count >= scores.size:
        return math.inf
    descending = -np.sort(-scores)
    return float((descending[count - 1] - descending[count]) / max(descending[0], np.finfo(np.float64).tiny))


def budget_gap(scores: np.ndarray, keep: float, allocation: Allocation, min_keep: int = 1) -> float:
    """Gap at the cut between who got the last cell and who did not. 0 for a tie, which the lower layer wins."""
    n_layers, n = scores.shape
    low = min(min_keep, n)
    total = total_cells(keep, n_layers, n, low)
    if allocation == "prefix":
        cells = prefix_budgets(scores, total, low)
        cumulative = _cumulative(scores)
        reached = [cumulative[layer, count - 2] for layer, count in enumerate(cells) if count > low]
        missed = [cumulative[layer, count - 1] for layer, count in enumerate(cells) if count < n]
        return float(min(missed) - max(reached)) if reached and missed else math.inf
    if allocation == "uniform" or n_layers == 1:
        return math.inf  # equal shares by construction: a tie that is meant
    shares = within_limits(weights(scores, keep, allocation), max(keep * n_layers * n, n_layers * low), low, n)
    # a share just below an integer and one just above it lead to the same budgets, so fractions wrap around
    cut = total - np.floor(shares).sum()
    fractions = np.sort(shares - np.floor(shares))[::-1]
    if cut in (0, n_layers):
        return math.inf
    return float(fractions[int(cut) - 1] - fractions[int(cut)])
