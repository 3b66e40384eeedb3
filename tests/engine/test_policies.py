"""Budgets and ranks of all methods, pure: against the reference, and by themselves."""

from __future__ import annotations

import aircache_ref as ref
import methods_ref
import numpy as np
import pytest
from families import (
    ALLOCATIONS,
    engine_method,
    reference_method,
)
from harness import lists
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pyaircache.engine import selection
from pyaircache.errors import ArgumentError

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=30)
VALUES = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1, width=32)
SCORE_ARRAYS = hnp.arrays(np.float32, SHAPES, elements=VALUES)
KEEPS = st.floats(0.002, 1.0) | st.sampled_from([0.005, 0.01, 0.1, 0.25, 0.5, 1.0])
SHARES = st.sampled_from([0.0, 0.2, 0.5, 1.0]) | st.floats(0.01, 1)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@settings(max_examples=80, deadline=None)
@given(SCORE_ARRAYS, KEEPS, st.integers(1, 4), SHARES, st.data())
def test_budgets_are_the_references(
    allocation: str, scores: np.ndarray, keep: float, min_keep: int, share: float, data: st.DataObject
) -> None:
    n_layers, n = scores.shape
    living = data.draw(hnp.arrays(np.float64, n_layers, elements=st.integers(0, 60).map(lambda x: x / 4)))
    share = 0.0 if allocation == "prefix" else share  # refused: it has no weights to blend
    method = engine_method(keep=keep, min_keep=min_keep, allocation=allocation, uniform_share=share)
    known = reference_method(method)
    cells = selection.allocate(method, scores, living)
    assert cells.sum() == ref.total_cells(keep, n_layers, n, min_keep)
    assert cells.min() >= min(min_keep, n) and cells.max() <= n
    if allocation == "vl":
        assert cells.min() >= int(min(0.01, keep) * n)
    # Where two layers tie but for rounding, either may get the cell
    assume((scores == scores[0]).all() or methods_ref.budget_gap(scores, known, living) > 1e-8)
    assert cells.tolist() == methods_ref.budgets(scores, known, living).tolist()
    if share == 1 and allocation != "prefix":
        uniform = engine_method(keep=keep, min_keep=min_keep, allocation="uniform")
        assert cells.tolist() == selection.allocate(uniform, scores).tolist()


def test_vl_floor_at_scale() -> None:
    """A layer in which nothing lives gets 1 % of its tokens, or the mean budget where that is less."""
    scores, living = np.ones((4, 1000), np.float32), np.array([0.0, 50.0, 50.0, 100.0])
    for keep, expected in ((0.1, [10, 98, 97, 195]), (0.01, [10] * 4), (0.004, [4] * 4)):
        assert selection.allocate(engine_method(keep=keep, allocation="vl"), scores, living).tolist() == expected


def test_vl_needs_counts() -> None:
    with pytest.raises(ArgumentError, match="living"):
        selection.allocate(engine_method(keep=0.1, allocation="vl"), np.ones((2, 5), np.float32))


@settings(max_examples=100, deadline=None)
@given(SCORE_ARRAYS, KEEPS, st.sampled_from(ALLOCATIONS))
def test_ranks_order_the_tokens(scores: np.ndarray, keep: float, allocation: str) -> None:
    n_layers, n = scores.shape
    living = np.ones(n_layers)
    orders = []
    for rank in range(1, n + 1):
        cells = selection.allocate(engine_method(keep=keep, allocation=allocation, rank=rank), scores, living)
        assert cells.tolist() == [1] * n_layers
        kept = selection.select(scores, cells, rank)
        assert lists(kept) == lists(methods_ref.select(scores, cells, rank))
        orders.append(np.concatenate(kept))
    for row, order in zip(scores, np.stack(orders, axis=1), strict=True):
        assert sorted(order.tolist()) == list(range(n))
        assert (np.diff(row[order]) <= 0).all()


@pytest.mark.parametrize("rank", [-1, 6])
def test_bad_ranks(rank: int) -> None:
    with pytest.raises(ArgumentError, match="rank"):
        selection.select(np.ones((2, 5), np.float32), np.ones(2, np.int32), rank)
