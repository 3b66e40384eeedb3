"""Checks of single values: each returns the value in its own type, or says what was given and what is allowed."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Collection

from .errors import ArgumentError


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


def between(name: str, value: object, low: float, high: float) -> float:
    """A number in [low, high]; high may be infinite, the number not.

    Raises:
        ArgumentError: It is not.
    """
    limits = f"must be a number of at least {low:g}" + (f" and at most {high:g}" if math.isfinite(high) else "")
    number = real(name, value, limits)
    if not (low <= number <= high and math.isfinite(number)):
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


def flag(name: str, value: object) -> bool:
    """A bool.

    Raises:
        ArgumentError: It is something else.
    """
    if not isinstance(value, bool):
        raise ArgumentError(f"{name} must be True or False, got {value!r}")
    return value


def one_of(name: str, value: object, allowed: Collection[str]) -> str:
    """One of the allowed texts.

    Raises:
        ArgumentError: It is not.
    """
    if not isinstance(value, str) or value not in allowed:
        raise ArgumentError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
    return value
