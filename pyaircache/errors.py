"""Exceptions of this package.

Every error a user can meet derives from :class:`PyAircacheError`; no C status code ever reaches a caller, the engine's
own message is in ``args[0]``. Problems with an argument are also ``ValueError``, missing files also
``FileNotFoundError``, so that ordinary ``except`` clauses work.
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "BusyError",
    "CancelledError",
    "ContextError",
    "ConversionError",
    "EngineError",
    "ForkError",
    "ImageError",
    "ImageNotFoundError",
    "ModelError",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "ProjectorError",
    "PyAircacheError",
    "PyAircacheWarning",
    "StateError",
    "UnsupportedError",
]


class PyAircacheError(Exception):
    """Base of all errors of this package. Never raised itself.

    A message is short enough to be read: a longer one, say because a value is quoted in it, loses its middle.
    """

    _longest = 480  # characters

    def __init__(self, message: str = "", *more: object) -> None:
        super().__init__(_shortened(str(message), self._longest), *more)


def _shortened(message: str, longest: int) -> str:
    message = message.encode("utf-8", "backslashreplace").decode("utf-8")  # file names may hold half surrogate pairs
    if len(message) <= longest:
        return message
    half = (longest - 5) // 2
    return f"{message[:half]} ... {message[-half:]}"


class PyAircacheWarning(UserWarning):
    """Something was done in another way than it was asked for; the message says what was made of it."""


class ArgumentError(PyAircacheError, ValueError):
    """An argument is outside its limits; the message names the value and the limits."""


class ImageError(PyAircacheError, ValueError):
    """A picture cannot be read or used."""


class ImageNotFoundError(ImageError, FileNotFoundError):
    """A picture's file does not exist."""


class ModelError(PyAircacheError):
    """The model file is not a GGUF, or not a model that this build can load."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """A model or projector file does not exist."""


class ConversionError(PyAircacheError):
    """A model folder cannot be converted, or the files cannot be written; the message says why."""

    _longest = 4000  # it quotes the last lines of a converter's log


class ProjectorError(PyAircacheError):
    """There is no projector (mmproj) for a question about an image, or it does not fit the model."""


class ContextError(PyAircacheError):
    """The prompt does not fit the context window; the message says how much is needed and what to do."""


class OutOfMemoryError(PyAircacheError, MemoryError):
    """The model, the cache or a graph does not fit into memory."""


class UnsupportedError(PyAircacheError):
    """This model or cache cannot be compressed, or cannot do what was asked; the message names the reason."""


class StateError(PyAircacheError, RuntimeError):
    """Called at the wrong time: the Chat is closed, or the call comes from inside another one of the same Chat."""


class BusyError(StateError):
    """The Chat is in use, and did not become free in time; the message says what uses it."""


class ForkError(StateError):
    """The Chat belongs to the process that this one was forked from; see docs/threads.md."""


class CancelledError(PyAircacheError):
    """The question was stopped by ``Chat.cancel``; the conversation is as it was before it."""


class EngineError(PyAircacheError, RuntimeError):
    """The engine library is missing, or a backend failed."""
