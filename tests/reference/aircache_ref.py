"""AirCache in PyTorch and NumPy, written from the method's description alone: what the engine is checked against.

Nothing here is fast. The model runs in float32 (Hugging Face's, eager attention); everything that follows from its
queries and keys is computed in float64. Names: one prompt of S tokens, L layers, H query heads, H_kv key
heads, head dimension d; V the N_v visual tokens, T the text tokens after the first visual token. Token indices count
from the start of the prompt, visual indices from the first visual token.

    capture = qwen2vl_forward(model, input_ids, pixel_values, image_grid_thw)
    result = compress(capture, keep=0.1)
    logits = masked_decode(model, input_ids, result.kept, tokens, pixel_values, image_grid_thw)

Where the description leaves a choice, this file makes it and says so: look for "Reading:". The model is in qwen_ref,
the layer budgets are in budgets_ref; the other methods and the options beyond the paper in methods_ref.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from budgets_ref import Allocation as Allocation
from budgets_ref import _check as _check
from budgets_ref import _cumulative as _cumulative
from budgets_ref import _mean_one as _mean_one
from budgets_ref import budgets as budgets
from budgets_ref import largest_remainder as largest_remainder
from budgets_ref import prefix_budgets as prefix_budgets
from budgets_ref import skewness as skewness
from budgets_ref import strength as strength
from budgets_ref import total_cells as total_cells
from budgets_ref import weights as weights
from budgets_ref import within_limits as within_limits
from qwen_ref import Capture as Capture
from qwen_ref import Later as Later
from qwen_ref import image_features as image_features
from qwen_ref import qwen2_forward as qwen2_forward
from qwen_ref import qwen2vl_forward as qwen2vl_forward
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

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
