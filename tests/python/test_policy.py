"""The engine's pure functions, against docs/method.md, section 2 and 3 in a few lines of NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyaircache import ArgumentError
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
