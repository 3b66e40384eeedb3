"""Status codes of the engine as exceptions."""

from __future__ import annotations

from ..errors import (
    ArgumentError,
    CancelledError,
    ContextError,
    EngineError,
    ModelError,
    ModelNotFoundError,
    OutOfMemoryError,
    ProjectorError,
    PyAircacheError,
    StateError,
    UnsupportedError,
)
from . import library, log
from .marshal import text

_ERRORS: dict[str, type[PyAircacheError]] = {
    "PAC_ERR_ARGUMENT": ArgumentError,
    "PAC_ERR_FILE": ModelNotFoundError,
    "PAC_ERR_MODEL": ModelError,
    "PAC_ERR_PROJECTOR": ProjectorError,
    "PAC_ERR_CONTEXT": ContextError,
    "PAC_ERR_MEMORY": OutOfMemoryError,
    "PAC_ERR_UNSUPPORTED": UnsupportedError,
    "PAC_ERR_STATE": StateError,
    "PAC_ERR_COMPUTE": EngineError,
    "PAC_ERR_CANCELLED": CancelledError,
    "PAC_ERR_INTERNAL": EngineError,
}


def check(status: int) -> int:
    """Passes a count or PAC_OK through; raises the exception that belongs to a negative ``pac_status``.

    Raises:
        PyAircacheError: The subclass for the status, with the engine's message.
        KeyboardInterrupt: Ctrl-C was pressed while the call logged something.
    """
    log.raise_interrupt()
    if status >= 0:
        return status
    ffi, lib, _ = library.load()
    raise error(status, text(ffi, lib.pac_last_error()))


def error(status: int, message: str) -> PyAircacheError:
    """The exception that belongs to a negative ``pac_status``."""
    _, lib, _ = library.load()
    message = message or f"the engine failed with status {status}"
    for name, kind in _ERRORS.items():
        if status == getattr(lib, name):
            return kind(message)
    return EngineError(message)
