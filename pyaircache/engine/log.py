"""llama.cpp's own log: records of the logger ``pyaircache.llama``; on stderr too while a verbose Chat is open."""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import weakref
from typing import Any

from . import library

logger = logging.getLogger("pyaircache")
logger.addHandler(logging.NullHandler())  # quiet unless the application has handlers of its own
_llama = logger.getChild("llama")

_INFO, _CONTINUED = 2, 5  # ggml's levels; the last one continues the line before
_LEVELS = {0: logging.DEBUG, 1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_LONGEST = 1 << 16  # bytes of a line that does not end


class Listener:
    """Shows the log on stderr for as long as it lives and is open."""

    def __init__(self) -> None:
        _listeners.add(self)

    def close(self) -> None:
        """Stops showing it; may be called again."""
        _listeners.discard(self)


class _Line(threading.local):
    """The line that a thread is writing: ggml logs pieces, several threads at once."""

    level = 0
    text = b""


_listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
_line = _Line()
_interrupt: BaseException | None = None  # a Ctrl-C that fell into the callback
_callbacks: list[Any] = []  # what C knows, or has known: kept for ever, since a thread may be inside
_installed: Any = None  # the one that C knows


def install() -> Any:
    """Sends llama.cpp's log here, once for the whole process.

    The callback is never taken back or replaced, since a thread may be inside it: only at Python's end C forgets it.
    """
    global _installed
    with library.once:
        if _installed is None:
            _installed = _install()
        return _installed


def _install() -> Any:
    ffi, lib, _ = library.load()

    def write(level: int, text: Any, user_data: Any) -> None:
        if level != _CONTINUED:
            _line.level = level
        if _wanted(_line.level):
            _write(_line.level, ffi.string(text))

    callback = ffi.callback("pac_log_callback", write, onerror=_keep_interrupt)
    _callbacks.append(callback)
    atexit.register(lib.pac_log_set, ffi.NULL, ffi.NULL)
    lib.pac_log_set(callback, ffi.NULL)
    return callback


def raise_interrupt() -> None:
    """Raises the KeyboardInterrupt that fell into the callback, where it could not be raised."""
    global _interrupt
    if interrupted():
        interrupt, _interrupt = _interrupt, None
        assert interrupt is not None
        raise interrupt


def interrupted() -> bool:
    """Whether there is such an interrupt, and this is the main thread, which alone is to get it."""
    return _interrupt is not None and threading.current_thread() is threading.main_thread()


def _wanted(level: int) -> bool:
    return (bool(_listeners) and level >= _INFO) or _llama.isEnabledFor(_LEVELS.get(level, logging.DEBUG))


def _write(level: int, piece: bytes) -> None:
    text = _line.text + piece
    *lines, rest = text.split(b"\n")
    if len(rest) > _LONGEST:
        lines, rest = [*lines, rest], b""
    _line.text = rest
    for line in lines:
        shown = line.decode("utf-8", "replace")
        if _listeners and level >= _INFO and sys.stderr is not None:
            sys.stderr.write(shown + "\n")
            sys.stderr.flush()
        if shown.strip():
            _llama.log(_LEVELS.get(level, logging.DEBUG), "%s", shown)


def _keep_interrupt(kind: Any, value: BaseException, traceback: Any) -> None:
    global _interrupt
    if not isinstance(value, Exception):  # a handler or a stderr that fails loses a line, no more
        _interrupt = value
