"""A user's own policy: what it may ask for, called with the scores, and its answer checked before an eviction."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import named, shown
from ..engine import selection
from ..engine.structs import EngineMethod
from ..errors import ArgumentError
from ..spans import Span
from .method import Method
from .pool import Pool
from .window import Window

Policy = Callable[..., Sequence[Any]]
"""``policy(scores, total)``: importance, float32 [L, N_v], and the number of cells to keep in all layers -> for each
layer the visual indices it keeps, ascending. With a parameter named ``context`` it gets a `PolicyContext` as well. Its
attributes ``window``, ``keys`` and ``pool``, if it has them, say how the scores are made, as the fields of `Method`."""


@dataclass(frozen=True)
class PolicyContext:
    """What a policy may look at besides the scores. Indices of tokens count the prompt's tokens from 0.

    Attributes:
        spans: The runs of visual tokens, in the order of the scores' columns: which picture, which grid.
        tokens: Ids of the prompt's tokens, -1 for visual ones: int32 [n_tokens].
        observers: Each layer's observing text tokens: L int32 arrays of token indices.
        keep: The share of the visual cells that is to stay.
    """

    spans: list[Span]
    tokens: NDArray[np.int32]
    observers: list[NDArray[np.int32]]
    keep: float


def method_of(policy: Policy) -> Method:
    """How the scores for a policy are made: AirCache, but for what its attributes name.

    Raises:
        ArgumentError: An attribute is not what the field of `Method` is.
    """
    changes: dict[str, Any] = {}
    for name, parse in (("window", Window.parse), ("keys", None), ("pool", Pool.parse)):
        value = getattr(policy, name, None)
        if value is not None:
            changes[name] = parse(value) if parse is not None and isinstance(value, str) else value
    try:
        return dataclasses.replace(Method(), **changes)
    except ArgumentError as exc:
        raise ArgumentError(f"method {name_of(policy)}: {exc}") from None


def takes_context(policy: Policy) -> bool:
    """Whether a policy has a parameter named ``context``."""
    try:
        return "context" in inspect.signature(policy).parameters
    except (TypeError, ValueError):  # some that are written in C have no signature
        return False


def kept_sets(
    policy: Policy,
    method: EngineMethod,
    scores: NDArray[np.float32],
    alive: NDArray[np.float64],
    context: Callable[[], PolicyContext],
) -> tuple[list[NDArray[np.int32]], float]:
    """Calls a policy on scores [L, N_v]; ``context`` is called where the policy takes one.

    Returns:
        (each layer's kept visual indices, milliseconds that the policy took).

    Raises:
        ArgumentError: It did not return what it must; besides, whatever the policy raises.
    """
    total = int(selection.allocate(method, scores, alive).sum())
    more = {"context": context()} if takes_context(policy) else {}
    started = time.perf_counter()
    answer = policy(scores.copy(), total, **more)
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
