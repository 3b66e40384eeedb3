"""The reference's strength, skewness, budgets, selection and margins, by hand and by their promises."""

from __future__ import annotations

import math
from typing import get_args

import aircache_ref as ref
import numpy as np
import pytest
from captures import random_capture
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

ALLOCATIONS = get_args(ref.Allocation)


# -- strength and skewness --------------------------------------------------------------------------------------------


def test_strength_and_skewness_of_known_rows() -> None:
    rows = np.array([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.3, 0.3, 0.3], [0.1, 0.2, 0.3]])
    np.testing.assert_allclose(ref.strength(rows), [1, 2, 0.9, 0.6])
    # adjusted skewness of three numbers, two equal: +-sqrt(3); the negative one counts as 0
    np.testing.assert_allclose(ref.skewness(rows), [math.sqrt(3), 0, 0, 0], atol=1e-12)


def test_skewness_is_undefined_below_three() -> None:
    assert ref.skewness(np.array([[0.1, 0.9]])).tolist() == [0]
    assert ref.skewness(np.array([[0.4]])).tolist() == [0]


def test_equal_scores_have_no_skewness_whatever_the_rounding() -> None:
    for value in (0.1, 1 / 3, 1e-30):
        assert ref.skewness(np.full((1, 7), value)).tolist() == [0]


# -- budgets ----------------------------------------------------------------------------------------------------------

score_arrays = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40),
    elements=st.one_of(st.just(0.0), st.floats(1e-6, 1.0)),
)
keeps = st.floats(0.001, 1.0)


@settings(max_examples=300, deadline=None)
@given(score_arrays, keeps, st.sampled_from(ALLOCATIONS), st.integers(1, 5))
def test_budgets_keep_their_promises(scores: np.ndarray, keep: float, allocation: ref.Allocation, low: int) -> None:
    n_layers, n = scores.shape
    cells = ref.budgets(scores, keep, allocation, low)
    assert cells.shape == (n_layers,)
    assert cells.min() >= min(low, n) and cells.max() <= n
    least = n_layers * min(low, n)
    assert cells.sum() == max(math.floor(keep * scores.size + 0.5), least)
    assert (cells == ref.budgets(scores, keep, allocation, low)).all()


@settings(max_examples=100, deadline=None)
@given(score_arrays, st.sampled_from(ALLOCATIONS))
def test_keep_one_keeps_all(scores: np.ndarray, allocation: ref.Allocation) -> None:
    assert (ref.budgets(scores, 1.0, allocation) == scores.shape[1]).all()


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(np.float64, st.integers(1, 12), elements=st.one_of(st.just(0.0), st.floats(0.01, 10))),
    st.floats(0, 1),
    st.integers(1, 3),
    st.integers(4, 50),
)
def test_limits_settle_where_one_factor_explains_all(weights: np.ndarray, share: float, low: int, high: int) -> None:
    """Shares within the limits are in proportion to the weights; those at a limit would be beyond it."""
    n = len(weights)
    total = n * (low + share * (high - low))
    shares = ref.within_limits(weights, total, low, high)
    assert shares.sum() == pytest.approx(total)
    assert shares.min() >= low and shares.max() <= high
    inside = (shares > low + 1e-6) & (shares < high - 1e-6) & (weights > 0)
    if inside.any():
        factors = shares[inside] / weights[inside]
        np.testing.assert_allclose(factors, factors[0], rtol=1e-6)
        assert (factors[0] * weights[shares >= high - 1e-9] >= high * (1 - 1e-6)).all()
        assert (factors[0] * weights[(shares <= low + 1e-9) & (weights > 0)] <= low * (1 + 1e-6)).all()


def test_limits_by_hand() -> None:
    # nothing to limit
    np.testing.assert_allclose(ref.within_limits(np.array([1.0, 2.0, 3.0]), 12, 1, 10), [2, 4, 6])
    # 0.5 is lifted to 1, the other two share 11 in proportion 2 : 3.5
    np.testing.assert_allclose(ref.within_limits(np.array([0.5, 2, 3.5]), 6, 1, 10), [1, 5 * 2 / 5.5, 5 * 3.5 / 5.5])
    # 12 is cut to 10, the rest share what it gave in proportion
    np.testing.assert_allclose(ref.within_limits(np.array([12.0, 2, 1]), 15, 1, 10), [10, 10 / 3, 5 / 3])
    # both bind: the cut of the first lifts the last above its limit, so that it is not fixed there
    np.testing.assert_allclose(ref.within_limits(np.array([100.0, 1, 0.9]), 20, 1, 10), [10, 10 / 1.9, 9 / 1.9])
    # no weight, but the full layer leaves cells over
    np.testing.assert_allclose(ref.within_limits(np.array([1.0, 0, 0]), 18, 1, 10), [10, 4, 4])


def test_largest_remainder_by_hand() -> None:
    assert ref.largest_remainder(np.array([1.2, 2.7, 3.1]), 7).tolist() == [1, 3, 3]
    assert ref.largest_remainder(np.array([2.5, 2.5, 2.5, 2.5]), 10).tolist() == [3, 3, 2, 2]  # ties: lower layer
    assert ref.largest_remainder(np.array([2.5 - 1e-13, 2.5]), 5).tolist() == [3, 2]  # rounding noise is a tie


def test_total_rounds_halves_up() -> None:
    assert ref.total_cells(0.1, 1, 25) == 3
    assert ref.total_cells(0.1, 1, 24) == 2
    assert ref.total_cells(0.5, 1, 1) == 1
    assert ref.total_cells(0.001, 4, 20) == 4  # one each
    assert ref.total_cells(0.001, 4, 20, min_keep=50) == 80


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_one_layer_gets_everything(allocation: ref.Allocation) -> None:
    scores = np.random.default_rng(0).random((1, 50))
    assert ref.budgets(scores, 0.1, allocation).tolist() == [5]


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_visual_tokens(allocation: ref.Allocation, n: int) -> None:
    scores = np.random.default_rng(0).random((4, n))
    assert ref.budgets(scores, 0.5, allocation).sum() == max(4, 2 * n)


def test_no_importance_at_all_is_uniform() -> None:
    for allocation in ("strength+skewness", "strength", "skewness", "uniform"):
        assert ref.budgets(np.zeros((4, 10)), 0.25, allocation).tolist() == [3, 3, 2, 2]
    assert ref.budgets(np.zeros((4, 10)), 0.25, "prefix").tolist() == [3, 3, 2, 2]


def test_budgets_by_hand() -> None:
    """Strength 1 : 3, skewness sqrt(3) : 0, keep 1/3 of 2 x 3 = 2 cells."""
    scores = np.array([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    np.testing.assert_allclose(ref.weights(scores, 1 / 3, "strength"), [0.5, 1.5])
    np.testing.assert_allclose(ref.weights(scores, 1 / 3, "skewness"), [2, 0])
    np.testing.assert_allclose(ref.weights(scores, 1 / 3, "strength+skewness"), [1.25, 0.75])
    assert ref.budgets(scores, 2 / 3).tolist() == [3, 1]  # 2.5 and 1.5: a tie
    assert ref.budgets(scores, 2 / 3, "strength").tolist() == [1, 3]
    assert ref.budgets(scores, 2 / 3, "skewness").tolist() == [3, 1]


def test_pyramid_is_linear_and_decreasing() -> None:
    scores = np.ones((5, 200))
    cells = ref.budgets(scores, 0.1, "pyramid")
    assert cells.tolist() == [39, 30, 20, 10, 1]  # 39, 29.5, 20, 10.5, 1; the tie goes to the lower layer
    assert ref.budgets(scores, 0.9, "pyramid").tolist() == [200, 190, 180, 170, 160]  # the first layer is full


def test_prefix_keeps_the_same_share_in_every_layer() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((6, 80)) ** np.array([[1], [2], [4], [8], [16], [32]])
    cells = ref.budgets(scores, 0.2, "prefix")
    assert cells.sum() == 96
    assert (np.diff(cells) < 0).all()  # flat layers need more
    descending = -np.sort(-scores, axis=1)
    shares = np.cumsum(descending, axis=1) / descending.sum(axis=1, keepdims=True)
    # a threshold p exists with which every layer needs exactly its cells: 1 + #{k : c[k] < p}
    reached = max(shares[layer, count - 2] for layer, count in enumerate(cells) if count > 1)
    missed = min(shares[layer, count - 1] for layer, count in enumerate(cells))
    assert reached < missed
    p = (reached + missed) / 2
    assert [1 + int((row < p).sum()) for row in shares] == cells.tolist()


@pytest.mark.parametrize("scale", [1e-6, 0.5, 1e3])
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_scale_of_scores_does_not_matter(allocation: ref.Allocation, scale: float) -> None:
    scores = np.random.default_rng(1).random((5, 60)) ** 3
    assert (ref.budgets(scores * scale, 0.15, allocation) == ref.budgets(scores, 0.15, allocation)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 0.0}, "keep"),
        ({"keep": 1.1}, "keep"),
        ({"keep": 0.5, "allocation": "best"}, "'best'"),
        ({"keep": 0.5, "min_keep": 0}, "min_keep"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ref.budgets(np.ones((2, 5)), **arguments)


@pytest.mark.parametrize("scores", [np.ones(5), np.ones((0, 5)), np.full((2, 5), np.nan), -np.ones((2, 5))])
def test_bad_scores_are_refused(scores: np.ndarray) -> None:
    with pytest.raises(ValueError, match="scores"):
        ref.budgets(scores, 0.5)


# -- selection --------------------------------------------------------------------------------------------------------


def test_selection_breaks_ties_by_position() -> None:
    scores = np.array([[0.2, 0.5, 0.2, 0.5, 0.2], [0.0, 0.0, 0.0, 0.0, 0.0]])
    kept = ref.select(scores, [3, 2])
    assert [indices.tolist() for indices in kept] == [[0, 1, 3], [0, 1]]


@settings(max_examples=100, deadline=None)
@given(score_arrays, keeps)
def test_selection_keeps_the_best(scores: np.ndarray, keep: float) -> None:
    cells = ref.budgets(scores, keep)
    for row, count, indices in zip(scores, cells, ref.select(scores, cells), strict=True):
        assert indices.size == count and (np.diff(indices) > 0).all()
        dropped = np.delete(row, indices)
        assert dropped.size == 0 or row[indices].min() >= dropped.max()


# -- margins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_decisions_survive_errors_below_the_margins(allocation: ref.Allocation) -> None:
    """What the margins are for: noise well below them changes nothing."""
    checked = 0
    for seed in range(20):
        capture = random_capture(seed, n_layers=3)
        margin = ref.margins(capture, 0.3, allocation=allocation)
        if margin.least < 1e-3:
            continue
        result = ref.compress(capture, 0.3, allocation=allocation)
        rng = np.random.default_rng(seed)
        q, k = (a + rng.normal(size=a.shape) * 1e-6 for a in (capture.q, capture.k))
        noisy = ref.compress(
            ref.Capture(q, k, capture.logits, capture.visual, capture.positions), 0.3, allocation=allocation
        )
        assert [w.tolist() for w in noisy.observers] == [w.tolist() for w in result.observers]
        assert noisy.budgets.tolist() == result.budgets.tolist()
        assert [i.tolist() for i in noisy.kept] == [i.tolist() for i in result.kept]
        checked += 1
    assert checked >= 5


def test_margins_by_hand() -> None:
    assert ref.select_gap(np.array([0.5, 1.0, 0.4, 0.4]), 2) == pytest.approx(0.1)
    assert ref.select_gap(np.array([0.5, 1.0, 0.4, 0.4]), 3) == 0
    assert ref.select_gap(np.array([0.5, 1.0]), 2) == math.inf
    assert ref.budget_gap(np.ones((4, 10)), 0.25, "uniform") == math.inf
    scores = np.array([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    assert ref.budget_gap(scores, 2 / 3, "strength+skewness") == pytest.approx(0)  # 2.5 and 1.5
    capture = random_capture(0)
    att = ref.attention_of_last(capture.q[0, :, -1], capture.k[0][:, capture.text])
    second = np.sort(att)[-2] / att.max()
    assert ref.elite_gap(capture, 0, alpha=1.0) == pytest.approx(1 - second)
    assert ref.margins(capture, 0.3, window="text").elite == math.inf


def test_equal_q_and_k_leave_no_margin() -> None:
    capture = random_capture(0)
    flat = ref.Capture(capture.q * 0, capture.k, capture.logits, capture.visual, capture.positions)
    assert ref.margins(flat, 0.3).least == 0
