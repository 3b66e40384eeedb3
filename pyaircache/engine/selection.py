"""The engine's layer budgets and selection as pure functions: no model, no conversation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import shown, whole
from ..errors import ArgumentError
from . import library
from .marshal import c_method, split, struct_fields, text
from .status import check
from .structs import EngineMethod


def _array(name: str, values: ArrayLike, dtype: type[np.generic], allowed: str) -> NDArray[Any]:
    """A C-contiguous array of numbers for C, which sees neither its shape nor its type."""
    try:
        given = np.asarray(values)
        if given.dtype.kind in "fiu":
            return np.array(given, dtype=dtype, order="C")
    except Exception:  # lists of different lengths, or objects that do not like to be an array
        pass
    raise ArgumentError(f"{name} must be {allowed}, got {shown(values)}")


def _table(scores: ArrayLike) -> NDArray[np.float32]:
    """Scores as C takes them.

    Raises:
        ArgumentError: They are no numbers [L, N_v] with at least one layer and one visual token.
    """
    allowed = "numbers [layers, visual tokens], at least one of each"
    table = _array("scores", scores, np.float32, allowed)
    if table.ndim != 2 or table.size == 0:
        raise ArgumentError(f"scores must be {allowed}, got the shape {list(table.shape)}")
    return table


def _per_layer(
    name: str, values: ArrayLike, dtype: type[np.generic], layers: int, what: str = "numbers"
) -> NDArray[Any]:
    """One number a layer, as C takes them.

    Raises:
        ArgumentError: They are something else.
    """
    allowed = f"{what} [{layers}], one for each layer of the scores"
    array = _array(name, values, dtype, allowed)
    if array.shape != (layers,):
        raise ArgumentError(f"{name} must be {allowed}, got the shape {list(array.shape)}")
    return array


def allocate(
    method: EngineMethod, scores: NDArray[np.float32], alive: NDArray[np.float64] | None = None
) -> NDArray[np.int32]:
    """Layer budgets [L] of scores [L, N_v] (docs/method.md, section 2); alive [L]: for VL-Cache's allocation alone.

    Raises:
        ArgumentError: An array has another shape or no numbers, or the method is outside its limits.
    """
    ffi, lib, _ = library.load()
    scores = _table(scores)
    layers, visual = scores.shape
    budgets = np.empty(layers, dtype=np.int32)
    out = ffi.from_buffer("int32_t[]", budgets, require_writable=True)
    values = ffi.from_buffer("float[]", scores)
    counts = ffi.NULL
    if alive is not None and np.shape(alive) != (0,):  # empty: `Report.alive` of other allocations
        counts = ffi.from_buffer("double[]", _per_layer("alive", alive, np.float64, layers))
    check(lib.pac_allocate(c_method(ffi, lib, method), values, counts, layers, visual, out, ffi.NULL, ffi.NULL))
    return budgets


def statistics(scores: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Strength and skewness [L] of scores [L, N_v] (docs/method.md, section 2).

    Raises:
        ArgumentError: The scores are no finite numbers [L, N_v].
    """
    ffi, lib, _ = library.load()
    scores = _table(scores)
    layers, visual = scores.shape
    strength, skewness = np.empty(layers), np.empty(layers)
    out = [ffi.from_buffer("double[]", values, require_writable=True) for values in (strength, skewness)]
    budgets, values = ffi.new("int32_t[]", layers), ffi.from_buffer("float[]", scores)
    check(lib.pac_allocate(c_method(ffi, lib, EngineMethod(1.0)), values, ffi.NULL, layers, visual, budgets, *out))
    return strength, skewness


def select(scores: NDArray[np.float32], budgets: NDArray[np.int32], rank: int = 0) -> list[NDArray[np.int32]]:
    """Kept visual indices of each layer for scores [L, N_v] and budgets [L] (docs/method.md, section 3).

    rank: 0, or r: each layer's r-th most important token alone (budgets must be 1).

    Raises:
        ArgumentError: An array has another shape, or a number is outside its limits.
    """
    ffi, lib, _ = library.load()
    scores = _table(scores)
    layers, visual = scores.shape
    budgets = _budgets(budgets, layers, visual)
    rank = whole("rank", rank, -(2**31), 2**31 - 1)  # the engine names its limits
    kept = np.empty(int(budgets.sum()), dtype=np.int32)
    out = ffi.from_buffer("int32_t[]", kept, require_writable=True)
    counts = ffi.from_buffer("int32_t[]", budgets)
    check(lib.pac_select(ffi.from_buffer("float[]", scores), layers, visual, counts, rank, out, len(out)))
    return split(kept, budgets)


def _budgets(budgets: ArrayLike, layers: int, visual: int) -> NDArray[np.int32]:
    """Layer budgets as C takes them: it writes as many kept indices as they say.

    Raises:
        ArgumentError: They are no whole numbers [L] from 0 to N_v.
    """
    what = f"whole numbers from 0 to {visual}"
    given = _per_layer("budgets", budgets, np.float64, layers, what)
    for bad in given[~((given >= 0) & (given <= visual) & (given == np.floor(given)))][:1]:
        raise ArgumentError(f"budgets must be {what}, got {bad:g}")
    return given.astype(np.int32)


def named_methods() -> dict[str, EngineMethod]:
    """The engine's named methods, with their parameters."""
    ffi, lib, _ = library.load()
    out: dict[str, EngineMethod] = {}
    while (name := lib.pac_method_name(len(out))) != ffi.NULL:
        method = ffi.new("struct pac_method *")
        check(lib.pac_method_by_name(name, method))
        out[text(ffi, name)] = EngineMethod(**struct_fields(ffi, method, EngineMethod))
    return out
