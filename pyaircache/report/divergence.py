"""Jensen-Shannon divergence of layer budgets; see ``Report.divergence``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import shown
from ..errors import ArgumentError


def jensen_shannon(one: NDArray[Any], two: NDArray[Any]) -> float:
    """Jensen-Shannon divergence, base 2, of two lists [n] of shares of any sum: in [0, 1]."""
    p, q = one / one.sum(), two / two.sum()
    m = (p + q) / 2
    return min(1.0, max(0.0, (_kl(p, m) + _kl(q, m)) / 2))


def _kl(p: NDArray[np.float64], m: NDArray[np.float64]) -> float:
    some = p > 0
    return float((p[some] * np.log2(p[some] / m[some])).sum())


def given_budgets(values: ArrayLike, layers: int) -> NDArray[np.float64]:
    """A caller's budgets, or shares: float64 [L].

    Raises:
        ArgumentError: They are not L finite numbers of at least 0 with a sum above 0.
    """
    limits = f"budgets must be {layers} numbers of at least 0 with a sum above 0"
    try:
        budgets = np.asarray(values, dtype=np.float64)
    except Exception:  # whatever the values' own classes raise
        raise ArgumentError(f"{limits}, got {shown(values)}") from None
    if budgets.shape != (layers,) or not (np.isfinite(budgets) & (budgets >= 0)).all() or not budgets.any():
        raise ArgumentError(f"{limits}, got {shown(values)}")
    return budgets
