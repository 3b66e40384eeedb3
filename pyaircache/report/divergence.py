"""Jensen-Shannon divergence of layer budgets; see ``Report.divergence``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import shown
from ..engine import selection
from ..errors import ArgumentError, StateError
from ..methods.method import Method

if TYPE_CHECKING:
    from .report import Report


def between(report: Report, other: str | Method | ArrayLike) -> float:
    """Divergence of a report's budgets from those of an allocation, a Method, or given ones [L]."""
    if not report.budgets.size:
        raise StateError("there are no budgets to compare: this question had no image")
    if isinstance(other, str):
        other = Method(allocation=other)  # type: ignore[arg-type]  # it says what it takes
    if isinstance(other, Method):
        if not report.scores.size:
            raise StateError("there are no scores to allocate by: this question was not compressed")
        if other.allocation == "vl" and not report.alive.size:
            raise ArgumentError("allocation 'vl' needs counts that only a question with this allocation has")
        other = selection.allocate(other.engine(report.keep), report.scores, report.alive)
    return jensen_shannon(report.budgets, _budgets(other, report.layers))


def jensen_shannon(one: NDArray[Any], two: NDArray[Any]) -> float:
    """Jensen-Shannon divergence, base 2, of two lists [n] of shares of any sum: in [0, 1]."""
    p, q = one / one.sum(), two / two.sum()
    m = (p + q) / 2
    return min(1.0, max(0.0, (_kl(p, m) + _kl(q, m)) / 2))


def _kl(p: NDArray[np.float64], m: NDArray[np.float64]) -> float:
    some = p > 0
    return float((p[some] * np.log2(p[some] / m[some])).sum())


def _budgets(values: ArrayLike, layers: int) -> NDArray[np.float64]:
    limits = f"budgets must be {layers} numbers of at least 0 with a sum above 0"
    try:
        budgets = np.asarray(values, dtype=np.float64)
    except Exception:  # whatever the values' own classes raise
        raise ArgumentError(f"{limits}, got {shown(values)}") from None
    if budgets.shape != (layers,) or not (np.isfinite(budgets) & (budgets >= 0)).all() or not budgets.any():
        raise ArgumentError(f"{limits}, got {shown(values)}")
    return budgets
