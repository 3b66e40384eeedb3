"""Scores besides attention: the last query's term, pooling, value norms, diversity. Pure, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import aircache_ref as ref
import numpy as np


def gated_last(last: np.ndarray, before: np.ndarray, images: Sequence[tuple[int, int]]) -> np.ndarray:
    """The last query's attention where it is coherent: last * local mean / max * min(last, before) / max.

    The idea is BACON's, the formula ours: of the last query's peaks most are noise, and evidence is told by its
    neighbours (mean of three along the image) and by the layer before (the first layer: itself).

    Args:
        last: [N_v] of this layer.
        before: [N_v] of the layer before.
        images: rows and columns of each image.
    """
    local, both = pooled(last, images, "avg", 3), np.minimum(last, before)
    if local.max() == 0 or both.max() == 0:
        return np.zeros_like(last)
    return last * (local / local.max()) * (both / both.max())


def pooled(
    row: np.ndarray, images: Sequence[tuple[int, int]], kind: str, size: int, on_grid: bool = False
) -> np.ndarray:
    """SnapKV's pooling of [N_v] inside each image: a window of `size` around every token.

    Args:
        row: scores of one layer.
        images: rows and columns of each image.
        kind: "avg", where zeros beyond the border count as in PyTorch, or "max".
        size: odd.
        on_grid: a square of size x size tokens on the image's grid, instead of a run of neighbours.
    """
    result = []
    for part, shape in zip(np.split(row, np.cumsum([a * b for a, b in images])[:-1]), images, strict=True):
        grid = part.reshape(shape if on_grid else (1, -1))
        window = (size if on_grid else 1, size)
        margins = [(n // 2, n // 2) for n in window]
        padded = np.pad(grid, margins, constant_values=0 if kind == "avg" else -np.inf)
        views = np.lib.stride_tricks.sliding_window_view(padded, window)
        result.append((views.mean(axis=(2, 3)) if kind == "avg" else views.max(axis=(2, 3))).ravel())
    return np.concatenate(result)


def value_norms(capture: ref.Capture, layer: int) -> np.ndarray:
    """|V| [N_v]: length of each visual token's values of all heads together."""
    values = capture.v[layer][:, capture.visual].astype(np.float64)
    return np.sqrt((values**2).sum(axis=(0, 2)))


def with_diversity(row: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """MixKV: r * diversity + (1 - r) * importance, r being how redundant the layer's visual keys are.

    Args:
        row: importance [N_v].
        keys: [H_kv, N_v, d].

    Diversity is minus the cosine between a key and the mean of the normalised keys, min-max scaled, then scaled to the
    importance's mean. r is the mean cosine of all pairs of different keys, within [0, 1]. Reading: one set for all
    heads, so both cosines are averaged over heads; keys that are all equally diverse leave the importance as it is.
    """
    unit = keys.astype(np.float64) / np.linalg.norm(keys.astype(np.float64), axis=2, keepdims=True)
    centre = unit.mean(axis=1, keepdims=True)
    cosine = ((unit * centre).sum(axis=2) / np.linalg.norm(centre, axis=2)).mean(axis=0)
    diversity = -cosine
    if diversity.max() == diversity.min():
        return row
    diversity = (diversity - diversity.min()) / (diversity.max() - diversity.min())
    diversity = diversity * row.mean() / diversity.mean()
    r = min(max(redundancy(unit), 0.0), 1.0)
    return r * diversity + (1 - r) * row


def redundancy(unit: np.ndarray) -> float:
    """Mean cosine over all pairs of different keys and all heads: unit [H_kv, N_v, d], normalised."""
    n = unit.shape[1]
    if n < 2:
        return 0.0
    cosines = unit @ unit.transpose(0, 2, 1)
    return float(np.mean(cosines[:, ~np.eye(n, dtype=bool)]))
