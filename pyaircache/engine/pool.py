"""Several conversations on one context, whose tokens are decoded together."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

from ..errors import PyAircacheError, StateError
from . import fork, library
from .engine import OPTIONS, Engine
from .marshal import c_params, free_in, int32, text
from .model import EngineModel
from .status import check, error


class EnginePool:
    """A context with room for several conversations, each an `Engine` with cells of its own.

    `Engine.prompt` of one of them gives way to the others after every ``n_ubatch`` tokens, and while an image is
    encoded. Different threads may use the engines, each one call at a time; what they compute waits for one another.

    Args:
        model: What the engines are made on.
        n_engines: How many, 1 to 256.
        options: Those of `Engine` with an `EngineModel`; ``n_ctx`` is the number of cells of each.

    Raises:
        ArgumentError: A value is outside its limits.
        PyAircacheError: Making it failed; see :mod:`pyaircache.errors`.
    """

    def __init__(self, model: EngineModel, n_engines: int, **options: int | str | None) -> None:
        self._ptr: Any = None
        self._pid = os.getpid()
        fork.check_new()
        self._ffi, self._lib, _ = library.load()
        ffi, lib = self._ffi, self._lib
        params, _strings = c_params(ffi, "struct pac_engine_params", lib.pac_engine_default_params(), options, OPTIONS)
        out = ffi.new("pac_pool **")
        status = lib.pac_pool_new(model.pointer, params, int32("n_engines", n_engines), out)
        if status == lib.PAC_OK:
            self._ptr = ffi.gc(out[0], functools.partial(free_in, lib.pac_pool_free, os.getpid, self._pid))
        check(status)

    def engine(self) -> Engine:
        """A new conversation. When it is closed there is room for another one.

        Raises:
            StateError: There are ``n_engines`` already.
        """
        return Engine.made_by(functools.partial(self._lib.pac_pool_engine, self._pool))

    def decode(self, steps: Sequence[tuple[Engine, int]]) -> list[PyAircacheError | None]:
        """Appends one token to each of several conversations, in one evaluation.

        Args:
            steps: Engines of this pool, each at most once, and the token of each.

        Returns:
            For each what `Engine.decode` would raise, or None. What fails for one does not concern the others.

        Raises:
            ArgumentError: An engine is of another pool, or there twice. Nothing has changed.
        """
        items = self._ffi.new("struct pac_step[]", max(len(steps), 1))
        for item, (engine, token) in zip(items, steps, strict=False):
            item.engine, item.token = engine.pointer, int32("token", token)
        check(self._lib.pac_pool_decode(self._pool, items, len(steps)))
        return [
            error(items[i].status, text(self._ffi, items[i].message)) if items[i].status < 0 else None
            for i in range(len(steps))
        ]

    def close(self) -> None:
        """Gives up this hold: the context is gone when the last of its engines is closed. May be called again."""
        if getattr(self, "_ptr", None) is not None and self._pid == os.getpid():
            self._ptr = None

    @property
    def _pool(self) -> Any:
        pointer = self._ptr
        if pointer is None:
            raise StateError("the pool is closed")
        fork.check(self._pid)
        return pointer
