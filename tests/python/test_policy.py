"""The engine's pure functions, against docs/method.md, section 2 and 3 in a few lines of NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyaircache import ArgumentError, Method
from pyaircache.engine import selection
from pyaircache.engine.structs import EngineMethod


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(1, 80), st.floats(0.001, 1.0), st.integers(0, 2**32 - 1))
def test_budgets_and_sets(engine, layers, visual, keep, seed):
    scores = np.random.default_rng(seed).random((layers, visual), dtype=np.float32) ** 4
    budgets = selection.allocate(EngineMethod(keep), scores)
    assert budgets.sum() == max(int(np.floor(keep * layers * visual + 0.5)), layers)
    assert (budgets >= 1).all() and (budgets <= visual).all()
    for layer, kept in enumerate(selection.select(scores, budgets)):
        best = np.argsort(-scores[layer], kind="stable")[: budgets[layer]]
        np.testing.assert_array_equal(kept, np.sort(best))


@pytest.mark.parametrize("keep", [0.0, 1.1, float("nan")])
def test_limits(engine, keep):
    with pytest.raises(ArgumentError):
        selection.allocate(EngineMethod(keep), np.ones((2, 4), np.float32))


ONES = np.ones((2, 4), np.float32)


@pytest.mark.parametrize(
    "scores", [np.ones(4), np.ones((0, 4)), np.ones((2, 0)), np.ones((1, 2, 4)), [[1], [1, 2]], "x"]
)
def test_scores_of_another_shape(engine, scores):
    for call in (
        lambda: selection.allocate(EngineMethod(0.5), scores),
        lambda: selection.statistics(scores),
        lambda: selection.select(scores, np.ones(2, np.int32)),
        lambda: Method().budgets(scores, 0.5),
    ):
        with pytest.raises(ArgumentError, match=r"scores must be numbers \[layers, visual tokens\]"):
            call()


@pytest.mark.parametrize("budgets", [[1], [1, 1, 1], [[1, 1]], [-1, 1], [5, 1], [1.5, 1], [float("nan"), 1], "ab", 3])
def test_budgets_that_are_none(engine, budgets):
    with pytest.raises(ArgumentError, match="budgets must be whole numbers from 0 to 4"):
        selection.select(ONES, budgets)


def test_living_shares_are_one_a_layer(engine):
    vl = Method(allocation="vl")
    with pytest.raises(
        ArgumentError, match=r"alive must be numbers \[2\], one for each layer of the scores, got the shape"
    ):
        vl.budgets(ONES, 0.5, alive=np.ones(1))
    assert vl.budgets(ONES, 0.5, alive=np.ones(2)).sum() == 4
