"""Checks of single values: each returns the value in its own type, or says what was given and what is allowed."""

from __future__ import annotations

import math
import numbers
import operator
import os
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from .errors import ArgumentError

_SHOWN = 100  # characters of a value in a message


def shown(value: object) -> str:
    """A value as messages quote it: its ``repr``, but short whatever the value is, and on one line."""
    if isinstance(value, np.ndarray):
        return f"an array {list(value.shape)} of {value.dtype}"
    if isinstance(value, (str, bytes, bytearray)) and len(value) > _SHOWN:
        kind = "characters" if isinstance(value, str) else "bytes"
        return f"{value[: _SHOWN // 2]!r}... ({len(value)} {kind})"
    if isinstance(value, (list, tuple, set, frozenset, dict)) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value)}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a repr of the user's own; also a number with more digits than Python prints
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def named(path: str) -> str:
    """A path as messages name it: as it is, unless it is too long or cannot be printed."""
    return path if path.isprintable() and 0 < len(path) <= 2 * _SHOWN else shown(path)


def share(name: str, value: object) -> float:
    """A number in (0, 1].

    Raises:
        ArgumentError: It is not.
    """
    limits = "must be greater than 0 and at most 1"
    number = real(name, value, limits)
    if not 0.0 < number <= 1.0:
        raise ArgumentError(f"{name} {limits}, got {shown(value)}")
    return number


def between(name: str, value: object, low: float, high: float) -> float:
    """A number in [low, high]; high may be infinite, the number not.

    Raises:
        ArgumentError: It is not.
    """
    limits = f"must be a number of at least {low:g}" + (f" and at most {high:g}" if math.isfinite(high) else "")
    number = real(name, value, limits)
    if not (low <= number <= high and math.isfinite(number)):
        raise ArgumentError(f"{name} {limits}, got {shown(value)}")
    return number


def real(name: str, value: object, limits: str) -> float:
    """A number, but no bool and no text.

    Raises:
        ArgumentError: It is something else, or beyond what a float holds.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ArgumentError(f"{name} {limits}, got {shown(value)}")
    try:
        return float(value)
    except (OverflowError, ValueError):
        raise ArgumentError(f"{name} {limits}, got {shown(value)}") from None


def whole(name: str, value: object, low: int, high: int) -> int:
    """A whole number in [low, high].

    Raises:
        ArgumentError: It is not.
    """
    limits = f"must be a whole number from {low} to {high}"
    if isinstance(value, bool):
        raise ArgumentError(f"{name} {limits}, got {shown(value)}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentError(f"{name} {limits}, got {shown(value)}") from None
    if not low <= number <= high:
        raise ArgumentError(f"{name} {limits}, got {shown(value)}")
    return number


def flag(name: str, value: object) -> bool:
    """A bool, NumPy's too.

    Raises:
        ArgumentError: It is something else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ArgumentError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def one_of(name: str, value: object, allowed: Collection[str]) -> str:
    """One of the allowed texts.

    Raises:
        ArgumentError: It is not.
    """
    if not isinstance(value, str) or value not in allowed:
        raise ArgumentError(f"{name} must be one of {', '.join(allowed)}; got {shown(value)}")
    return value


def path(name: str, value: object) -> str:
    """A path: a str, or an object such as ``pathlib.Path``.

    Raises:
        ArgumentError: It is something else, empty, or holds what no file name can.
    """
    try:
        text: Any = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise ArgumentError(f"{name} must be a path (str or pathlib.Path), got {shown(value)}")
    if not text or "\0" in text:
        raise ArgumentError(f"{name} must be the path of a file, got {shown(value)}")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ArgumentError(f"{name} must be a path that can be encoded, got {shown(value)}") from None
    return text


def texts(name: str, value: object) -> Sequence[str]:
    """A list or tuple of str, none of them with a NUL character.

    Raises:
        ArgumentError: It is something else.
    """
    if not isinstance(value, (list, tuple)):
        raise ArgumentError(f"{name} must be a list of texts, got {shown(value)}")
    for one in value:
        if not isinstance(one, str) or "\0" in one:
            raise ArgumentError(f"{name} must be a list of texts without NUL characters, got {shown(one)} in it")
    return value


def timeout(value: object) -> float | None:
    """Seconds to wait, or None: for ever.

    Raises:
        ArgumentError: It is neither.
    """
    if value is None:
        return None
    limits = "must be a finite number of at least 0, or None: for ever"
    number = real("timeout (seconds)", value, limits)
    if not 0.0 <= number < math.inf:
        raise ArgumentError(f"timeout (seconds) {limits}; got {shown(value)}")
    return number
