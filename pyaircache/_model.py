"""A loaded pair of model files, which several engines may share; and what both have in common."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import Any

from . import _ffi, _fork, _log
from ._convert import ProgressCallback, struct_fields
from ._status import check
from ._structs import ModelInfo
from .errors import StateError

Progress = Callable[[int, int, int], object]
"""Called with (stage, done, total); an exception it raises cancels the call and comes out of it."""


def _free(free: Callable[[Any], None], getpid: Callable[[], int], pid: int, ptr: Any) -> None:
    if getpid() == pid:  # in a forked child it would wait for threads that are not there
        free(ptr)


def fill(ffi: Any, struct: Any, values: dict[str, Any]) -> list[Any]:
    """Sets a struct's fields; returns the C strings that must live as long as it is used."""
    keep_alive = []
    for name, value in values.items():
        if isinstance(value, str):
            value = ffi.new("char[]", os.fsencode(value))
            keep_alive.append(value)
        setattr(struct, name, ffi.NULL if value is None else value)
    return keep_alive


class Handle:
    """A pointer of the engine library that is freed once, and only by the process that made it."""

    _kind = ""

    def __init__(self) -> None:
        self._ptr: Any = None
        self._pid = os.getpid()
        self._ending = threading.RLock()  # between `cancel` and `close`; a signal handler may call both inside them
        _fork.check_new()
        self._ffi, self._lib, _ = _ffi.load()
        _log.install()

    def _hold(self, pointer: Any, free: Callable[[Any], None]) -> None:
        self._ptr = self._ffi.gc(pointer, functools.partial(_free, free, os.getpid, self._pid))

    def close(self) -> None:
        """Frees it; further calls raise StateError. May be called again; does nothing in a forked child."""
        if getattr(self, "_ptr", None) is None or self._pid != os.getpid():
            return
        with self._ending:
            ptr, self._ptr = self._ptr, None
        # Frees it; or the `cancel` does that a signal handler has called this from, when it has used its own reference
        del ptr

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` has been called."""
        return self._ptr is None

    def _open(self) -> Any:
        if self._ptr is None:
            raise StateError(f"the {self._kind} is closed")
        _fork.check(self._pid)
        return self._ptr


class Model(Handle):
    """A loaded pair of files, for several :class:`Engine` objects. Any thread may use it.

    Args:
        model: Path of the text model's GGUF.
        mmproj: Path of the projector's GGUF, or None: text only.
        progress: Called while loading.
        options: Further fields of ``pac_model_params``; None keeps a field's default.

    Raises:
        PyAircacheError: Loading failed; see :mod:`pyaircache.errors`.
    """

    _kind = "model"

    def __init__(
        self,
        model: str | os.PathLike[str],
        mmproj: str | os.PathLike[str] | None = None,
        *,
        progress: Progress | None = None,
        **options: int | str | None,
    ) -> None:
        super().__init__()
        params, keep_alive, callback = model_params(self._ffi, self._lib, model, mmproj, progress, options)
        out = self._ffi.new("pac_model **")
        status = self._lib.pac_model_new(params, out)
        del keep_alive
        if status == self._lib.PAC_OK:
            self._hold(out[0], self._lib.pac_model_free)
        callback.raise_pending()
        check(status)

    def info(self) -> ModelInfo:
        """What was loaded, and what is kept of it."""
        out = self._ffi.new("struct pac_model_info *")
        check(self._lib.pac_model_info(self._open(), out))
        return ModelInfo(**struct_fields(self._ffi, out, ModelInfo))

    def forget_images(self) -> None:
        """Frees the kept image embeddings."""
        check(self._lib.pac_model_forget_images(self._open()))


def model_params(
    ffi: Any, lib: Any, model: Any, mmproj: Any, progress: Progress | None, options: dict[str, Any]
) -> tuple[Any, list[Any], ProgressCallback]:
    """(``struct pac_model_params *``, what must live as long as it, its callback)."""
    values = {name: value for name, value in options.items() if value is not None}
    values.update(model=os.fspath(model), mmproj=os.fspath(mmproj) if mmproj is not None else None)
    params = ffi.new("struct pac_model_params *", lib.pac_model_default_params())
    keep_alive = fill(ffi, params, values)
    callback = ProgressCallback(ffi, progress)
    params.progress = callback.pointer
    return params, keep_alive, callback
