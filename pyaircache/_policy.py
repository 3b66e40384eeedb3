"""The engine's layer budgets and selection as pure functions: no model, no conversation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import _ffi
from ._convert import c_method, split
from ._status import check
from ._structs import Method


def allocate(method: Method, scores: NDArray[np.float32]) -> NDArray[np.int32]:
    """Layer budgets [L] of scores [L, N_v] (method section 2)."""
    ffi, lib, _ = _ffi.load()
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    layers, visual = scores.shape
    budgets = np.empty(layers, dtype=np.int32)
    out = ffi.from_buffer("int32_t[]", budgets, require_writable=True)
    values = ffi.from_buffer("float[]", scores)
    check(lib.pac_allocate(c_method(ffi, lib, method), values, layers, visual, out, ffi.NULL, ffi.NULL))
    return budgets


def select(scores: NDArray[np.float32], budgets: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    """Kept visual indices of each layer for scores [L, N_v] and budgets [L] (method section 3)."""
    ffi, lib, _ = _ffi.load()
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    budgets = np.ascontiguousarray(budgets, dtype=np.int32)
    layers, visual = scores.shape
    kept = np.empty(int(budgets.sum()), dtype=np.int32)
    out = ffi.from_buffer("int32_t[]", kept, require_writable=True)
    counts = ffi.from_buffer("int32_t[]", budgets)
    check(lib.pac_select(ffi.from_buffer("float[]", scores), layers, visual, counts, out))
    return split(kept, budgets)
