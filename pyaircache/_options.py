"""What one question asks for, checked on construction."""

from __future__ import annotations

import math
import numbers
import operator
from dataclasses import dataclass

from ._structs import Method
from .errors import ArgumentError

METHODS = ("aircache", "full")
"""Known methods: ``"aircache"`` (the paper's), ``"full"`` (no compression)."""


@dataclass(frozen=True)
class Options:
    """Options of one question.

    Attributes:
        keep: Share of the visual cells to keep, in (0, 1]; 1 runs no compression at all.
        method: One of ``METHODS``.
        alpha: Elite threshold of the paper's observation window (method section 1), in (0, 1].
        max_tokens: Longest answer, at least 1.
        temperature: 0 takes the most likely token; higher is more random.
        seed: Of the sampling, 0 to 2**32 - 1.

    Raises:
        ArgumentError: A value is outside its limits.
    """

    keep: float
    method: str = "aircache"
    alpha: float = 0.9
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", share("keep", self.keep))
        object.__setattr__(self, "alpha", share("alpha", self.alpha))
        if self.method not in METHODS:
            raise ArgumentError(f"unknown method {self.method!r}; known methods: {', '.join(METHODS)}")
        object.__setattr__(self, "max_tokens", whole("max_tokens", self.max_tokens, 1, 2**31 - 1))
        object.__setattr__(self, "seed", whole("seed", self.seed, 0, 2**32 - 1))
        temperature = real("temperature", self.temperature, "must be a number of at least 0")
        if not (math.isfinite(temperature) and temperature >= 0.0):
            raise ArgumentError(f"temperature must be a number of at least 0, got {self.temperature!r}")
        object.__setattr__(self, "temperature", temperature)

    @property
    def compression(self) -> Method | None:
        """What the engine is asked to do, or None: nothing."""
        if self.method == "full" or self.keep == 1.0:
            return None
        return Method(keep=self.keep, alpha=self.alpha)


def share(name: str, value: object) -> float:
    """A number in (0, 1].

    Raises:
        ArgumentError: It is not.
    """
    limits = "must be greater than 0 and at most 1"
    number = real(name, value, limits)
    if not 0.0 < number <= 1.0:
        raise ArgumentError(f"{name} {limits}, got {value!r}")
    return number


def real(name: str, value: object, limits: str) -> float:
    """A number, but no bool and no text.

    Raises:
        ArgumentError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ArgumentError(f"{name} {limits}, got {value!r}")
    return float(value)


def whole(name: str, value: object, low: int, high: int) -> int:
    """A whole number in [low, high].

    Raises:
        ArgumentError: It is not.
    """
    limits = f"must be a whole number from {low} to {high}"
    if isinstance(value, bool):
        raise ArgumentError(f"{name} {limits}, got {value!r}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentError(f"{name} {limits}, got {value!r}") from None
    if not low <= number <= high:
        raise ArgumentError(f"{name} {limits}, got {value!r}")
    return number
