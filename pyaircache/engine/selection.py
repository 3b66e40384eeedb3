"""The engine's layer budgets and selection as pure functions: no model, no conversation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import library
from .marshal import c_method, split, struct_fields, text
from .status import check
from .structs import EngineMethod


def allocate(
    method: EngineMethod, scores: NDArray[np.float32], alive: NDArray[np.float64] | None = None
) -> NDArray[np.int32]:
    """Layer budgets [L] of scores [L, N_v] (docs/method.md, section 2); alive [L]: for VL-Cache's allocation alone."""
    ffi, lib, _ = library.load()
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    layers, visual = scores.shape
    budgets = np.empty(layers, dtype=np.int32)
    out = ffi.from_buffer("int32_t[]", budgets, require_writable=True)
    values = ffi.from_buffer("float[]", scores)
    counts = ffi.NULL
    if alive is not None and len(alive):
        counts = ffi.from_buffer("double[]", np.ascontiguousarray(alive, dtype=np.float64))
    check(lib.pac_allocate(c_method(ffi, lib, method), values, counts, layers, visual, out, ffi.NULL, ffi.NULL))
    return budgets


def statistics(scores: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Strength and skewness [L] of scores [L, N_v] (docs/method.md, section 2)."""
    ffi, lib, _ = library.load()
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    layers, visual = scores.shape
    strength, skewness = np.empty(layers), np.empty(layers)
    out = [ffi.from_buffer("double[]", values, require_writable=True) for values in (strength, skewness)]
    budgets, values = ffi.new("int32_t[]", layers), ffi.from_buffer("float[]", scores)
    check(lib.pac_allocate(c_method(ffi, lib, EngineMethod(1.0)), values, ffi.NULL, layers, visual, budgets, *out))
    return strength, skewness


def select(scores: NDArray[np.float32], budgets: NDArray[np.int32], rank: int = 0) -> list[NDArray[np.int32]]:
    """Kept visual indices of each layer for scores [L, N_v] and budgets [L] (docs/method.md, section 3).

    rank: 0, or r: each layer's r-th most important token alone (budgets must be 1).
    """
    ffi, lib, _ = library.load()
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    budgets = np.ascontiguousarray(budgets, dtype=np.int32)
    layers, visual = scores.shape
    kept = np.empty(int(budgets.sum()), dtype=np.int32)
    out = ffi.from_buffer("int32_t[]", kept, require_writable=True)
    counts = ffi.from_buffer("int32_t[]", budgets)
    check(lib.pac_select(ffi.from_buffer("float[]", scores), layers, visual, counts, rank, out))
    return split(kept, budgets)


def named_methods() -> dict[str, EngineMethod]:
    """The engine's named methods, with their parameters."""
    ffi, lib, _ = library.load()
    out: dict[str, EngineMethod] = {}
    while (name := lib.pac_method_name(len(out))) != ffi.NULL:
        method = ffi.new("struct pac_method *")
        check(lib.pac_method_by_name(name, method))
        out[text(ffi, name)] = EngineMethod(**struct_fields(ffi, method, EngineMethod))
    return out
