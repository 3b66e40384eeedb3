"""llama.cpp's own log: silent, or on stderr when asked for."""

from __future__ import annotations

import sys
from typing import Any

from . import _ffi

_INFO, _CONTINUED = 2, 5  # ggml's levels; the last one continues the line before

_callback: Any = None  # what is installed now: C holds a pointer to it


def show(enabled: bool) -> None:
    """Sends llama.cpp's log to stderr from now on, or nowhere. One setting for the whole process."""
    global _callback
    ffi, lib, _ = _ffi.load()
    if not enabled:
        lib.pac_log_set(ffi.NULL, ffi.NULL)
        _callback = None
    elif _callback is None:
        callback = ffi.callback("pac_log_callback", _writer(ffi), onerror=lambda *exc: None)
        lib.pac_log_set(callback, ffi.NULL)
        _callback = callback


def _writer(ffi: Any) -> Any:
    shown = False

    def write(level: int, text: Any, user_data: Any) -> None:
        nonlocal shown
        if level != _CONTINUED:
            shown = level >= _INFO
        if shown and sys.stderr is not None:
            sys.stderr.write(ffi.string(text).decode("utf-8", "replace"))
            sys.stderr.flush()

    return write
