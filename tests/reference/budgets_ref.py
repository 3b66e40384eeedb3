"""Layer budgets of the reference: strength, skewness, allocations, limits and rounding. Pure, in float64."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np

Allocation = Literal["strength+skewness", "uniform", "pyramid", "strength", "skewness", "prefix"]

# PyramidKV: a layer's smallest budget is the mean divided by this
PYRAMID_BETA = 20.0
# Remainders that differ by less count as equal, so that rounding noise does not decide who gets a cell
REMAINDER_DIGITS = 9


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
