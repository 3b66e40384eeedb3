"""A model that is loaded once, for any number of engines."""

from __future__ import annotations

import functools
import os
from typing import Any

from ..errors import StateError
from . import fork, library, log
from .marshal import Progress, ProgressCallback, c_params, free_in, struct_fields
from .status import check
from .structs import ModelInfo

OPTIONS = ("n_gpu_layers", "n_threads", "flash_attn", "rpc_servers", "image_cache_bytes")
"""Fields of ``pac_model_params`` that are options."""


class EngineModel:
    """What is read from the files: weights, vocabulary, projector, chat template.

    Several `Engine` objects may share it, and several threads may call it. Of the process that made it only.

    Args:
        model: Path of the text model's GGUF.
        mmproj: Path of the projector's GGUF, or None: text only.
        progress: Called while loading, with (`STAGE_LOAD`, done, total).
        options: ``n_gpu_layers`` (-1: all), ``n_threads`` and ``flash_attn`` (-1 auto, 0 off, 1 on) of the vision
            tower, ``rpc_servers`` (``"host:port,host:port"``), ``image_cache_bytes``: memory for the embeddings of
            images that were encoded (0: none are kept). None keeps a default.

    Raises:
        PyAircacheError: Loading failed; see :mod:`pyaircache.errors`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        mmproj: str | os.PathLike[str] | None = None,
        *,
        progress: Progress | None = None,
        **options: int | str | None,
    ) -> None:
        self._ptr: Any = None
        self._pid = os.getpid()
        fork.check_new()
        self._ffi, self._lib, _ = library.load()
        log.install()
        ffi, lib = self._ffi, self._lib
        values = {**options, "model": os.fspath(model), "mmproj": os.fspath(mmproj) if mmproj is not None else None}
        params, _strings = c_params(ffi, "struct pac_model_params", lib.pac_model_default_params(), values, OPTIONS)
        callback = ProgressCallback(ffi, progress)
        params.progress = callback.pointer
        out = ffi.new("pac_model **")
        status = lib.pac_model_new(params, out)
        if status == lib.PAC_OK:
            self._ptr = ffi.gc(out[0], functools.partial(free_in, lib.pac_model_free, os.getpid, self._pid))
        callback.raise_pending()
        check(status)

    def info(self) -> ModelInfo:
        """What was loaded, and who uses it at the moment."""
        out = self._ffi.new("struct pac_model_info *")
        check(self._lib.pac_model_info(self.pointer, out))
        return ModelInfo(**struct_fields(self._ffi, out, ModelInfo))

    def forget_images(self) -> None:
        """Forgets the kept image embeddings."""
        check(self._lib.pac_model_forget_images(self.pointer))

    def close(self) -> None:
        """Gives up this hold: the model is gone when the last engine on it is closed. May be called again."""
        if getattr(self, "_ptr", None) is not None and self._pid == os.getpid():
            self._ptr = None

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` has been called."""
        return self._ptr is None

    @property
    def pointer(self) -> Any:
        """The ``pac_model *``.

        Raises:
            StateError: It is closed.
            ForkError: It belongs to the process that this one was forked from.
        """
        pointer = self._ptr  # taken once: another thread may close it
        if pointer is None:
            raise StateError("the model is closed")
        fork.check(self._pid)
        return pointer
