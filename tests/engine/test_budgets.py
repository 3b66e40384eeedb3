"""The engine's layer budgets and selection against the reference's, and against what must always hold."""

from __future__ import annotations

import aircache_ref as ref
import numpy as np
import pytest
from harness import ALLOCATIONS, engine_method, lists
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pyaircache.engine import selection
from pyaircache.errors import ArgumentError

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)
# Few different values: many ties, layers without any importance, and equal layers
COARSE = hnp.arrays(np.float32, SHAPES, elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
FINE = hnp.arrays(np.float32, SHAPES, elements=st.floats(0, 1, width=32))
SCORES = COARSE | FINE
KEEPS = st.floats(0.01, 1.0) | st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.9, 1.0])

allocations = pytest.mark.parametrize("allocation", ALLOCATIONS)


def budgets(scores: np.ndarray, keep: float, allocation: str, min_keep: int = 1) -> np.ndarray:
    return selection.allocate(engine_method(keep, allocation=allocation, min_keep=min_keep), scores)


@allocations
@settings(max_examples=150, deadline=None)
@given(SCORES, KEEPS, st.integers(1, 5))
def test_budgets_are_the_references(allocation: str, scores: np.ndarray, keep: float, min_keep: int) -> None:
    cells = budgets(scores, keep, allocation, min_keep)
    n_layers, n = scores.shape
    assert cells.sum() == ref.total_cells(keep, n_layers, n, min_keep)
    assert cells.min() >= min(min_keep, n) and cells.max() <= n
    # Where two layers tie but for rounding, either may get the cell
    gap = ref.budget_gap(scores, keep, allocation, min_keep)
    equal_layers = (scores == scores[0]).all()
    assume(equal_layers or gap > 1e-8)
    assert cells.tolist() == ref.budgets(scores, keep, allocation, min_keep).tolist()


@allocations
@settings(max_examples=50, deadline=None)
@given(KEEPS, st.integers(2, 12), st.integers(1, 30), st.data())
def test_equal_layers_differ_by_one_and_the_lower_one_is_first(
    allocation: str, keep: float, n_layers: int, n_visual: int, data: st.DataObject
) -> None:
    row = data.draw(hnp.arrays(np.float32, n_visual, elements=st.floats(0, 1, width=32)))
    cells = budgets(np.tile(row, (n_layers, 1)), keep, allocation)
    assert (np.diff(cells) <= 0).all()
    if allocation not in ("pyramid", "prefix"):  # prefix: all steps of a row whose shares are equal go to one layer
        assert cells[0] - cells[-1] <= 1


@allocations
@pytest.mark.parametrize("shape", [(1, 30), (6, 1), (6, 2), (1, 1)])
def test_smallest_shapes(allocation: str, shape: tuple[int, int]) -> None:
    scores = np.random.default_rng(0).random(shape, dtype=np.float32)
    for keep in (0.01, 0.1, 0.5, 0.6, 1.0):
        assert budgets(scores, keep, allocation).tolist() == ref.budgets(scores, keep, allocation).tolist()


@allocations
def test_no_importance_at_all(allocation: str) -> None:
    cells = budgets(np.zeros((3, 10), np.float32), 0.25, allocation)
    assert cells.sum() == 8
    assert cells.tolist() == ([5, 2, 1] if allocation == "pyramid" else [3, 3, 2])


@settings(max_examples=200, deadline=None)
@given(SCORES, st.data())
def test_selection_is_the_references(scores: np.ndarray, data: st.DataObject) -> None:
    n_layers, n = scores.shape
    cells = data.draw(hnp.arrays(np.int32, n_layers, elements=st.integers(1, n)))
    assert lists(selection.select(scores, cells)) == lists(ref.select(scores, cells))


@pytest.mark.parametrize("bad", [{"keep": 0.0}, {"keep": 1.01}, {"keep": float("nan")}, {"keep": 0.5, "min_keep": 0}])
def test_bad_arguments(bad: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match="keep"):
        selection.allocate(engine_method(**bad), np.ones((2, 5), np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_bad_scores(value: float) -> None:
    scores = np.ones((2, 5), np.float32)
    scores[1, 3] = value
    with pytest.raises(ArgumentError, match="score"):
        selection.allocate(engine_method(0.5), scores)
