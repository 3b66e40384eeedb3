"""Texts and values that make a method: taken or refused with ArgumentError, and read back as they were.

A window's text is taken by llama-server when, and as, Python takes it. PYAIRCACHE_BIN: folder of window-words.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import atheris
import source  # noqa: F401

with atheris.instrument_imports(include=["pyaircache.checks", "pyaircache.methods"]):
    import words

    from pyaircache.errors import ArgumentError
    from pyaircache.methods.method import ALLOCATIONS, KEYS, SCORES, Method
    from pyaircache.methods.pool import Pool
    from pyaircache.methods.window import Window

server = words.Server(Path(os.environ["PYAIRCACHE_BIN"]) / "window-words")
WORDS = ["elite", "last", "text", "visual", "all", "content", "weighted", ":", "0.5", "32", "1e-3", "max", "avg", "x"]


def any_text(data: atheris.FuzzedDataProvider) -> str:
    """Words of the grammar and other text."""
    parts = []
    for _ in range(data.ConsumeIntInRange(0, 6)):
        known = data.ConsumeIntInRange(0, len(WORDS))
        parts.append(WORDS[known] if known < len(WORDS) else data.ConsumeUnicode(4))
    return (":" if data.ConsumeBool() else "").join(parts)


def any_value(data: atheris.FuzzedDataProvider) -> object:
    """What a caller may give by mistake."""
    kind = data.ConsumeIntInRange(0, 5)
    if kind == 0:
        return data.ConsumeInt(8)
    if kind == 1:
        return data.ConsumeFloat()
    return [None, True, any_text(data), Window.parse("text")][kind - 2]


def one_input(data: bytes) -> None:
    """A window, a pool and a method."""
    choices = atheris.FuzzedDataProvider(data)
    text = any_text(choices)
    assert words.python_window(text) == server.window(text), text
    try:
        window = Window.parse(text)
        assert Window.parse(str(window)) == window
    except ArgumentError as exc:
        assert len(str(exc)) < 300 + len(repr(text))
    with contextlib.suppress(ArgumentError):
        pool = Pool.parse(any_text(choices))
        assert pool is None or Pool.parse(str(pool)) == pool
    fields = ("window", "score", "keys", "pool", "allocation", "merge", "uniform_share", "last_term", "value_norm")
    values = {field: any_value(choices) for field in fields if choices.ConsumeBool()}
    if choices.ConsumeBool():
        values |= {"score": choices.PickValueInList(list(SCORES)), "keys": choices.PickValueInList(list(KEYS))}
        values |= {"allocation": choices.PickValueInList(list(ALLOCATIONS))}
    with contextlib.suppress(ArgumentError):
        str(Method(**values))  # type: ignore[arg-type]


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
