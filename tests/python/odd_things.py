"""What tests of odd arguments share: a picture, its file, and a call that may fail in one way only."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image

from pyaircache import PyAircacheError

PICTURE = Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 20).convert("RGB")


def encoded(kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    PICTURE.save(out, kind)
    return out.getvalue()


def tried(call: Callable[[], object]) -> None:
    """An answer, or an error of ours of 15 to 500 characters that can be printed."""
    try:
        call()
    except PyAircacheError as exc:
        assert 15 <= len(str(exc)) <= 500, str(exc)[:1000]
        str(exc).encode("utf-8")
