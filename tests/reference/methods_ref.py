"""The methods beside AirCache, and what goes beyond it: one grid of windows, keys, scores, layer budgets and merging.

Written from the baselines' and later methods' descriptions; aircache_ref has the parts that the paper itself
describes. All in float64, on a Capture of a forward pass.

    capture = qwen2vl_forward(model, input_ids, pixel_values, image_grid_thw)
    result = compress(capture, Method(keep=0.1, window="last:32", keys="causal", pool="avg", allocation="uniform"))

Everything is for visual tokens alone, with one kept set in a layer for all heads: head scores are averaged. The text
always stays. Scores are made in this order: attention, last-query term, pooling, value norm, diversity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import aircache_ref as ref
import numpy as np
import torch
from scores_ref import gated_last, pooled, value_norms, with_diversity
from torch import Tensor

ALIVE = 0.01  # VL-Cache: an attention entry is alive from this share of its row's maximum on
FLOOR = 0.01  # VL-Cache: a layer's least budget, as a share of N_v


@dataclass(frozen=True)
class Method:
    """One point of the grid; the fields are those of the engine's struct, with words for numbers."""

    keep: float
    min_keep: int = 1
    window: str = "elite"  # "elite", "last:n", "text", "visual:n", "all"
    alpha: float = 0.9
    elite_content: bool = False
    elite_last: bool = False
    keys: str = "window"  # "window" or "causal"
    text_weights: bool = False
    pool: str = "none"  # "none", "avg" or "max"
    pool_size: int = 5
    pool_2d: bool = False
    last_term: float = 0.0
    value_norm: bool = False
    diversity: bool = False
    allocation: str = "strength+skewness"  # as in aircache_ref, or "vl"
    uniform_share: float = 0.0
    rank: int = 0
    merge: float = 0.0


# -- windows ----------------------------------------------------------------------------------------------------------


def template_tokens(ids: Sequence[int], text: np.ndarray, control: set[int], ends: set[int]) -> np.ndarray:
    """[T] bool: which tokens of T belong to the chat template.

    Control tokens do, and in each run of text everything from its first end-of-generation token on: the end of the
    user's turn and the assistant's header.
    """
    result = np.zeros(text.size, dtype=bool)
    tail = False
    for i, token in enumerate(text):
        if i > 0 and token != text[i - 1] + 1:
            tail = False  # an image lies between
        tail = tail or ids[token] in ends
        result[i] = tail or ids[token] in control
    return result


def observers(capture: ref.Capture, layer: int, method: Method, template: np.ndarray | None = None) -> np.ndarray:
    """Token indices, ascending, of the observing queries of one layer; all of this prompt's for "all".

    Args:
        capture: of the prompt.
        layer: 0-based.
        method: window, alpha, elite_content and elite_last count.
        template: [T] bool, for elite_content.

    Reading: elite_content takes the maximum among the tokens that remain, and does nothing when none remains.
    elite_last comes last: it holds the last token even when that belongs to the template.
    """
    text = capture.text
    if method.window == "all":
        return np.arange(capture.visual[0], capture.n_tokens)
    if method.window != "elite":
        return ref.observers(capture, layer, method.window)
    att = ref.attention_of_last(capture.q[layer, :, -1], capture.k[layer][:, text])
    chosen = att >= method.alpha * att[_candidates(text, method, template)].max()
    chosen &= _candidates(text, method, template)
    chosen[-1] |= method.elite_last
    return text[chosen]


def _candidates(text: np.ndarray, method: Method, template: np.ndarray | None) -> np.ndarray:
    if not method.elite_content or template is None or template.all():
        return np.ones(text.size, dtype=bool)
    return ~template


# -- attention --------------------------------------------------------------------------------------------------------


def attention_rows(capture: ref.Capture, layer: int, window: np.ndarray, keys: str) -> tuple[np.ndarray, np.ndarray]:
    """Head mean of the window's attention: ([window, keys] float64, the keys' token indices).

    keys "window": softmax over the visual tokens and the window. "causal": over all tokens the query sees, of earlier
    turns those that were kept.
    """
    tokens = np.union1d(capture.visual, window) if keys == "window" else np.arange(capture.n_tokens)
    seen = tokens[None] <= window[:, None]
    if capture.visible is not None:
        seen = seen & capture.visible[layer][np.ix_(window, tokens)]
    return ref.attention(capture.q[layer][:, window], capture.k[layer][:, tokens], seen).mean(axis=0), tokens


def importance(capture: ref.Capture, layer: int, window: np.ndarray, method: Method) -> np.ndarray:
    """What the window gives to each visual token: [N_v].

    The mean over its queries. The sum for the window "all" (H2O: early tokens are seen by more queries, and gain from
    it), and with text_weights (TGV-KV) the sum weighted by the mean attention that each text token receives from
    itself and the later ones.
    """
    rows, tokens = attention_rows(capture, layer, window, method.keys)
    to_visual = rows[:, np.isin(tokens, capture.visual)]
    if method.window == "all":
        return to_visual.sum(axis=0)
    if method.text_weights:
        received = rows[:, np.isin(tokens, window)]  # [T, T], zero above the diagonal
        return (received.sum(axis=0) / np.arange(window.size, 0, -1)) @ to_visual
    return to_visual.mean(axis=0)


def last_query(capture: ref.Capture, layer: int, keys: str) -> np.ndarray:
    """Importance by the prompt's last token alone: [N_v]."""
    rows, tokens = attention_rows(capture, layer, np.array([capture.n_tokens - 1]), keys)
    return rows[0, np.isin(tokens, capture.visual)]


# -- scores -----------------------------------------------------------------------------------------------------------


def scores(
    capture: ref.Capture, method: Method, template: np.ndarray | None = None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """[L, N_v] float64, and each layer's observing queries as token indices."""
    layers = range(capture.n_layers)
    windows = [observers(capture, layer, method, template) for layer in layers]
    rows = [importance(capture, layer, windows[layer], method) for layer in layers]
    if method.last_term:
        last = [last_query(capture, layer, method.keys) for layer in layers]
        for layer in layers:
            term = gated_last(last[layer], last[max(layer - 1, 0)], capture.images)
            rows[layer] = rows[layer] + method.last_term * term
    if method.pool != "none":
        rows = [pooled(row, capture.images, method.pool, method.pool_size, method.pool_2d) for row in rows]
    if method.value_norm:
        rows = [row * value_norms(capture, layer) for layer, row in enumerate(rows)]
    if method.diversity:
        rows = [with_diversity(row, capture.k[layer][:, capture.visual]) for layer, row in enumerate(rows)]
    return np.stack(rows), windows


# -- layer budgets and selection --------------------------------------------------------------------------------------


def alive_ratios(capture: ref.Capture, layer: int) -> np.ndarray:
    """[H, T, N_v]: attention entries of the text to the visual tokens, relative to their row's maximum over these.

    The other keys do not matter: they scale a whole row. Entries that a query cannot see are 0.
    """
    text, visual = capture.text, capture.visual
    rows = ref.attention(capture.q[layer][:, text], capture.k[layer][:, visual], visual[None] <= text[:, None])
    return rows / rows.max(axis=2, keepdims=True)


def alive(capture: ref.Capture) -> np.ndarray:
    """VL-Cache's count of living attention entries, mean over heads: [L]."""
    counts = [(alive_ratios(capture, layer) >= ALIVE).sum() for layer in range(capture.n_layers)]
    return np.array(counts) / capture.q.shape[1]


def weights(scores: np.ndarray, method: Method, living: np.ndarray | None = None) -> np.ndarray:
    """What each layer's budget is proportional to, before limits and rounding: [L], mean 1."""
    if method.allocation == "vl":
        result = living.astype(np.float64)
    else:
        result = ref.weights(scores, method.keep, method.allocation)
    result = result / result.mean() if result.any() else np.ones_like(result)
    return (1 - method.uniform_share) * result + method.uniform_share


def budgets(scores: np.ndarray, method: Method, living: np.ndarray | None = None) -> np.ndarray:
    """Visual cells that each layer keeps: [L] int.

    Args:
        scores: [L, N_v].
        method: keep, min_keep, allocation, uniform_share and rank count.
        living: [L], of alive(), for the allocation "vl".

    Reading: VL-Cache's floor of 1 % of N_v (of the mean budget, where that is less) is one more lower limit, before
    rounding. "prefix" shares out by importance alone, and uniform_share does not change it.
    """
    n_layers, n = scores.shape
    if method.rank:
        return np.ones(n_layers, dtype=np.int64)
    if method.allocation == "prefix":
        return ref.budgets(scores, method.keep, "prefix", method.min_keep)
    total = ref.total_cells(method.keep, n_layers, n, method.min_keep)
    return ref.largest_remainder(_shares(scores, method, living), total)


def _shares(scores: np.ndarray, method: Method, living: np.ndarray | None) -> np.ndarray:
    """Budgets before rounding: [L]."""
    n_layers, n = scores.shape
    low = min(method.min_keep, n)
    exact = max(method.keep * n_layers * n, n_layers * low)
    floor = max(low, min(FLOOR, method.keep) * n) if method.allocation == "vl" else low
    return ref.within_limits(weights(scores, method, living), exact, floor, n)


def select(scores: np.ndarray, budgets: Sequence[int] | np.ndarray, rank: int = 0) -> list[np.ndarray]:
    """Each layer's kept visual indices, ascending; with a rank r its r-th most important token alone."""
    if rank:
        return [np.argsort(-row, kind="stable")[rank - 1 : rank] for row in scores]
    return ref.select(scores, budgets)


# -- merging ----------------------------------------------------------------------------------------------------------


def merge_map(kept: np.ndarray, n_visual: int, share: float) -> list[tuple[int, int]]:
    """Which dropped tokens are averaged into which kept ones: (dropped, kept) visual indices, nearest pairs first.

    Every dropped token belongs to the kept one that is nearest by index, ties: the lower one. Of the dropped, the
    share that is nearest is merged, ties: the lower one; half a token counts as one.
    """
    nearest = {
        u: min((abs(u - anchor), anchor) for anchor in kept.tolist()) for u in range(n_visual) if u not in set(kept)
    }
    order = sorted(nearest, key=lambda u: (nearest[u][0], u))
    return [(u, nearest[u][1]) for u in order[: math.floor(share * len(order) + 0.5)]]


def merged(visual: np.ndarray, n_prompt: int, kept: Sequence[np.ndarray], share: float) -> list[ref.Later]:
    """What later tokens find in the cache after merging: a `later` for the forward passes of aircache_ref.

    A kept row becomes the mean of itself and all rows merged into it, keys as they are after the rotation; the mean is
    taken in float32 and then rounded to the cache's type.

    Args:
        visual: [N_v] token indices.
        n_prompt: tokens of the prompt.
        kept: kept visual indices of each layer.
        share: share of the dropped tokens that is merged.
    """

    def change(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        groups: dict[int, list[int]] = {}
        for dropped, anchor in merge_map(kept[layer], visual.size, share):
            groups.setdefault(anchor, [anchor]).append(dropped)
        k, v = k.clone(), v.clone()
        for rows in (k, v):
            for anchor, members in groups.items():
                tokens = torch.from_numpy(visual[members])
                rows[:, visual[anchor]] = rows[:, tokens].float().mean(dim=1).to(rows.dtype)
        return k, v

    return [(n_prompt, change)] if share else []


# -- all of it, and how close the calls were --------------------------------------------------------------------------


@dataclass(frozen=True)
class Compression(ref.Compression):
    """As aircache_ref.Compression; the window "all" has no observers to list."""

    alive: np.ndarray  # [L], empty unless the allocation is "vl"


def compress(capture: ref.Capture, method: Method, template: np.ndarray | None = None) -> Compression:
    """The method applied to one prompt. template: [T] bool, for elite_content."""
    values, windows = scores(capture, method, template)
    living = alive(capture) if method.allocation == "vl" else np.empty(0)
    cells = budgets(values, method, living)
    return Compression(
        scores=values,
        observers=windows,
        strength=ref.strength(values),
        skewness=ref.skewness(values),
        budgets=cells,
        kept=select(values, cells, method.rank),
        alive=living,
    )


@dataclass(frozen=True)
class Margins(ref.Margins):
    """As aircache_ref.Margins."""

    alive: float  # least |A / (0.01 * row maximum) - 1| over layers and entries

    @property
    def least(self) -> float:
        return min(super().least, self.alive)


def margins(capture: ref.Capture, method: Method, template: np.ndarray | None = None) -> Margins:
    """Margins of compress() with the same arguments."""
    result = compress(capture, method, template)
    exact = method.keep * result.scores.size
    elite, living = math.inf, math.inf
    if method.window == "elite":
        elite = min(_elite_gap(capture, layer, method, template) for layer in range(capture.n_layers))
    if method.allocation == "vl":
        ratios = [alive_ratios(capture, layer) for layer in range(capture.n_layers)]
        living = min(float(np.abs(ratio / ALIVE - 1).min()) for ratio in ratios)
    if method.rank:
        cuts = [(row, n) for row in result.scores for n in (method.rank - 1, method.rank) if n > 0]
    else:
        cuts = list(zip(result.scores, result.budgets.tolist(), strict=True))
    return Margins(
        elite=elite,
        total=math.inf if method.rank else abs(exact - math.floor(exact) - 0.5),
        budget=math.inf if method.rank else budget_gap(result.scores, method, result.alive),
        select=min(_select_gap(row, n, method) for row, n in cuts),
        alive=living,
    )


def _elite_gap(capture: ref.Capture, layer: int, method: Method, template: np.ndarray | None) -> float:
    """As aircache_ref.elite_gap, among the candidates."""
    text = capture.text
    att = ref.attention_of_last(capture.q[layer, :, -1], capture.k[layer][:, text])
    att = att[_candidates(text, method, template)]
    relative = np.delete(att / att.max(), att.argmax())
    return float(np.abs(relative - method.alpha).min(initial=math.inf))


def _select_gap(scores: np.ndarray, count: int, method: Method) -> float:
    """As aircache_ref.select_gap; infinity for a tie that is meant.

    Tokens that no observer sees have exactly 0, and the maximum gives neighbours exactly the same score.
    """
    gap = ref.select_gap(scores, count)
    return math.inf if np.sort(scores)[-count] == 0 or (gap == 0 and method.pool == "max") else gap


def budget_gap(scores: np.ndarray, method: Method, living: np.ndarray | None = None) -> float:
    """As aircache_ref.budget_gap; infinity where all layers weigh the same, which is a tie that is meant."""
    n_layers, n = scores.shape
    if method.allocation == "prefix":
        return ref.budget_gap(scores, method.keep, "prefix", method.min_keep)
    if np.ptp(weights(scores, method, living)) == 0:
        return math.inf
    shares = _shares(scores, method, living)
    cut = ref.total_cells(method.keep, n_layers, n, method.min_keep) - int(np.floor(shares).sum())
    fractions = np.sort(shares - np.floor(shares))[::-1]
    return math.inf if cut in (0, n_layers) else float(fractions[cut - 1] - fractions[cut])
