"""Conversations to be timed, one method per C function; ``pyaircache bench`` is made of them."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any

from ..checks import whole
from ..errors import StateError
from . import fork, library
from .marshal import Progress, ProgressCallback, c_method, c_params, free_in, int32, struct_fields
from .model import EngineModel
from .status import check
from .structs import EngineMethod

OPTIONS = ("n_seqs", "n_prompt", "n_decode", "n_batch", "n_threads", "cache_type_k", "cache_type_v", "flash_attn")
"""Fields of ``pac_bench_params``."""


@dataclass(frozen=True)
class BenchInfo:
    """What is timed.

    Attributes:
        n_layers: L.
        n_ctx: Cells of all conversations together.
        n_visual: N_v, visual tokens of each prompt.
        n_text: Its text tokens.
        n_batch: Tokens a call of a computed prefill.
        n_threads: CPU threads.
        n_devices: That the weights lie on; 0: the CPU.
        model_bytes: Of the weights.
        step_bytes: Of those that one step reads.
        kv_bytes_per_token: All layers, K and V.
    """

    n_layers: int
    n_ctx: int
    n_visual: int
    n_text: int
    n_batch: int
    n_threads: int
    n_devices: int
    model_bytes: int
    step_bytes: int
    kv_bytes_per_token: int


@dataclass(frozen=True)
class BenchStats:
    """Bytes of all conversations together.

    Attributes:
        kv_bytes: That attention reads in a step.
        kv_bytes_reserved: Of all cells, in use or not: what stock llama.cpp allocates.
        kv_bytes_allocated: Memory taken for them: on Linux and the CPU pages that hold something, elsewhere buffers.
        compute_bytes: That the graphs' buffers take.
        n_graphs_reused: Graphs that were not built anew.
    """

    kv_bytes: int
    kv_bytes_reserved: int
    kv_bytes_allocated: int
    compute_bytes: int
    n_graphs_reused: int


class Bench:
    """Conversations that decode side by side, their prompts made up; see ``pyaircache-bench.h``.

    Not thread-safe: one call at a time, :meth:`cancel` excepted.

    Args:
        model: The model, loaded.
        options: ``n_seqs`` (conversations), ``n_prompt`` (tokens of each one's prompt), ``n_decode`` (room for tokens
            behind it), ``n_batch`` (tokens a call of a computed prefill), ``n_threads``, ``cache_type_k`` and
            ``cache_type_v`` (`CacheType`), ``flash_attn`` (-1 auto, 0 off, 1 on). None keeps a default.

    Raises:
        ArgumentError: A value is outside its limits.
        OutOfMemoryError: The context does not fit.
        UnsupportedError: The model's cache cannot be compressed.
    """

    def __init__(self, model: EngineModel, **options: int | str | None) -> None:
        self._ptr: Any = None
        self._pid = os.getpid()
        fork.check_new()
        self._ffi, self._lib, _ = library.load()
        ffi, lib = self._ffi, self._lib
        params, _strings = c_params(ffi, "struct pac_bench_params", lib.pac_bench_default_params(), options, OPTIONS)
        out = ffi.new("pac_bench **")
        status = lib.pac_bench_new(model.pointer, params, out)
        if status == lib.PAC_OK:
            self._ptr = ffi.gc(out[0], functools.partial(free_in, lib.pac_bench_free, os.getpid, self._pid))
        check(status)

    def close(self) -> None:
        """Frees it. May be called again."""
        if self._ptr is not None and self._pid == os.getpid():
            ptr, self._ptr = self._ptr, None
            self._ffi.release(ptr)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def _bench(self) -> Any:
        if self._ptr is None:
            raise StateError("the benchmark is closed")
        fork.check(self._pid)
        return self._ptr

    def info(self) -> BenchInfo:
        """What is timed."""
        out = self._ffi.new("struct pac_bench_info *")
        check(self._lib.pac_bench_info(self._bench, out))
        return BenchInfo(**struct_fields(self._ffi, out, BenchInfo))

    def stats(self) -> BenchStats:
        """The bytes of now."""
        out = self._ffi.new("struct pac_bench_stats *")
        check(self._lib.pac_bench_stats(self._bench, out))
        return BenchStats(**struct_fields(self._ffi, out, BenchStats))

    def fill(
        self,
        seq: int,
        *,
        computed: bool = False,
        observe: EngineMethod | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> float:
        """Gives an empty conversation its prompt; milliseconds that it took.

        Args:
            seq: Which one, from 0.
            computed: By the model, from random tokens and embeddings; else K and V themselves are made up.
            observe: What `evict` will score with; None: the prompt is not scored.
            seed: Of all that is made up.
            progress: Called with (`STAGE_PREFILL`, tokens done, tokens); not when K and V are made up.

        Raises:
            StateError: The conversation has a prompt already.
            CancelledError: See :meth:`cancel`; the conversation is empty again.
        """
        ffi = self._ffi
        callback = ProgressCallback(ffi, progress)
        method = ffi.NULL if observe is None else c_method(ffi, self._lib, observe)
        ms = ffi.new("double *")
        numbers = int32("seq", seq), computed, method, _seed(seed)
        status = self._lib.pac_bench_fill(self._bench, *numbers, callback.pointer, ffi.NULL, ms)
        callback.raise_pending()
        check(status)
        return ms[0]

    def evict(self, seq: int, method: EngineMethod, *, seed: int = 0) -> tuple[float, float]:
        """Scores and chooses by the method, for the time that it takes; then evicts all but random visual tokens.

        Their layers' budgets differ as those of real scores do, with the method's ``keep`` as the mean.

        Returns:
            Milliseconds of scores, budgets and kept sets; milliseconds of the eviction.

        Raises:
            StateError: The prompt was not observed for this method.
        """
        score, evict = self._ffi.new("double *"), self._ffi.new("double *")
        c = c_method(self._ffi, self._lib, method)
        check(self._lib.pac_bench_evict(self._bench, int32("seq", seq), c, _seed(seed), score, evict))
        return score[0], evict[0]

    def step(self) -> float:
        """Decodes one token of every conversation, in one batch; milliseconds until the next ones are chosen.

        Raises:
            StateError: A conversation has no prompt.
            ContextError: There is no room for more tokens.
        """
        ms = self._ffi.new("double *")
        check(self._lib.pac_bench_step(self._bench, ms))
        return ms[0]

    def clear(self) -> None:
        """Forgets all conversations."""
        check(self._lib.pac_bench_clear(self._bench))

    def cancel(self) -> None:
        """Makes the `fill` that runs raise CancelledError soon, from any thread."""
        if self._ptr is not None:
            self._lib.pac_bench_cancel(self._ptr)


def _seed(seed: int) -> int:
    return whole("seed", seed, 0, 2**31 - 1)


def copy_bandwidth(model: EngineModel, n_bytes: int = 256 * 2**20, n_threads: int = 0) -> float:
    """Bytes per second that a copy moves, read and written, where the model's weights lie; the best of five.

    Args:
        model: Its last device is measured.
        n_bytes: Bytes of what is copied: many more than the caches hold.
        n_threads: On a CPU; 0: one per physical core.

    Raises:
        OutOfMemoryError: Two buffers of this size do not fit.
    """
    ffi, lib, _ = library.load()
    out = ffi.new("double *")
    check(lib.pac_bench_copy(model.pointer, n_bytes, int32("n_threads", n_threads), out))
    return out[0]
