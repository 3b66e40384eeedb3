"""A user's own policy: called with the scores, and its answer checked before anything is evicted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import named, shown
from ..engine import selection
from ..engine.structs import EngineMethod
from ..errors import ArgumentError

Policy = Callable[[NDArray[np.float32], int], Sequence[Any]]
"""``policy(scores, total)``: importance [L, N_v] and the number of cells to keep in all layers -> for each layer the
visual indices it keeps, ascending."""


def kept_sets(
    policy: Policy, method: EngineMethod, scores: NDArray[np.float32], alive: NDArray[np.float64]
) -> tuple[list[NDArray[np.int32]], float]:
    """Calls a policy on scores [L, N_v].

    Returns:
        (each layer's kept visual indices, milliseconds that the policy took).

    Raises:
        ArgumentError: It did not return what it must; besides, whatever the policy raises.
    """
    total = int(selection.allocate(method, scores, alive).sum())
    started = time.perf_counter()
    answer = policy(scores.copy(), total)
    milliseconds = (time.perf_counter() - started) * 1e3
    layers, visual = scores.shape
    return checked(answer, layers, visual, total, f"method {name_of(policy)}"), milliseconds


def checked(answer: object, layers: int, visual: int, total: int, who: str) -> list[NDArray[np.int32]]:
    """L arrays of indices that the engine takes.

    Raises:
        ArgumentError: Not L of them, or in one not whole numbers, in one dimension, at least one, in range, ascending,
            each once; or not ``total`` indices together.
    """
    try:
        items = list(answer)  # type: ignore[call-overload]
    except Exception:
        raise ArgumentError(f"{who} must return {layers} index arrays, got {type(answer).__name__}") from None
    if len(items) != layers:
        raise ArgumentError(f"{who} must return {layers} index arrays, one per layer; got {len(items)}")
    kept = [_checked_layer(item, visual, f"{who}, layer {layer}") for layer, item in enumerate(items)]
    count = sum(len(one) for one in kept)
    if count != total:
        raise ArgumentError(f"{who} must keep {total} tokens in all layers together, got {count}")
    return kept


def _checked_layer(item: object, visual: int, where: str) -> NDArray[np.int32]:
    try:
        indices = np.asarray(item)
    except Exception:  # lists of different lengths, or objects that do not like to be an array
        raise ArgumentError(f"{where}: indices must be in one dimension, got {shown(item)}") from None
    if indices.ndim != 1:
        raise ArgumentError(f"{where}: indices must be in one dimension, got shape {list(indices.shape)}")
    if not len(indices):
        raise ArgumentError(f"{where}: must keep at least 1 token, got none")
    if not np.issubdtype(indices.dtype, np.integer):
        raise ArgumentError(f"{where}: indices must be whole numbers, got {indices.dtype}")
    for bad in indices[(indices < 0) | (indices >= visual)][:1]:
        raise ArgumentError(f"{where}: indices must be from 0 to {visual - 1}, got {bad}")
    for i in np.flatnonzero(indices[1:] <= indices[:-1])[:1]:
        one, two = indices[i], indices[i + 1]
        what = f"{one} is there twice" if one == two else f"{two} comes after {one}"
        raise ArgumentError(f"{where}: indices must be ascending, each once; {what}")
    return indices.astype(np.int32)


def name_of(policy: Policy) -> str:
    """A policy's name for reports and messages."""
    name = getattr(policy, "__name__", None)
    return named(name if isinstance(name, str) else type(policy).__name__)
