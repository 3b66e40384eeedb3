"""The engine, one method per C function: status codes become exceptions, C arrays become NumPy copies.

A thin layer: it holds no conversation, no file logic and no lock (see :mod:`pyaircache.chat`).
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import between, flag, shown
from ..errors import ArgumentError, StateError
from ..spans import Size, Span
from . import fork, library
from . import model as models
from .conversing import Conversing
from .marshal import (
    Progress,
    ProgressCallback,
    array,
    c_images,
    c_method,
    c_params,
    compression_of,
    free_in,
    indices,
    int32,
    scores_of,
    set_field,
    struct_fields,
    text,
    utf8,
)
from .model import EngineModel
from .status import check
from .structs import (
    Compression,
    EngineMethod,
    Info,
    Logprobs,
    Message,
    PromptInfo,
    Sampling,
    Scores,
    Stats,
)

STAGE_LOAD, STAGE_ENCODE, STAGE_PREFILL = 0, 1, 2

OPTIONS = (
    "n_ctx", "n_batch", "n_ubatch", "n_threads", "cache_type_k", "cache_type_v", "flash_attn", "keep_embeddings",
    "archive", "archive_path", "resize_kv",
)  # fmt: skip
"""Fields of ``pac_engine_params``."""

_TOKEN_BYTES = 1024  # room for the text of one token


def version() -> str:
    """Version of the engine and of llama.cpp, e.g. ``"0.1.0 (llama.cpp 0c1e570)"``."""
    ffi, lib, _ = library.load()
    return text(ffi, lib.pac_version())


class Engine(Conversing):
    """One conversation with a model; see ``pyaircache.h`` for what each call does.

    Not thread-safe: one call at a time, :meth:`cancel` excepted. Engines on one model may be used by different threads
    at the same time. Of the process that made it only: in a forked child every call raises ForkError, and what the
    engine holds is left alone.

    Args:
        model: Path of the text model's GGUF, which is loaded for this engine alone; or an `EngineModel`, to share.
        mmproj: Path of the projector's GGUF, or None: text only, or that of the `EngineModel`.
        progress: Called while loading.
        options: ``n_ctx`` (cells; 0: the model's own, at most 32768), ``n_batch`` (tokens a call), ``n_ubatch`` (tokens
            a graph), ``n_threads``, ``cache_type_k`` and ``cache_type_v`` (`CacheType`), ``flash_attn`` (-1 auto, 0
            off, 1 on), ``keep_embeddings``, ``resize_kv`` (on devices: K and V as large as is needed, docs/memory.md),
            ``archive`` (index into `ARCHIVES`), ``archive_path`` (of one in a file);
            with a path those of `EngineModel`, too. None keeps a default.

    Raises:
        ArgumentError: There is no such option, or not together with an `EngineModel`.
        PyAircacheError: Loading failed; see :mod:`pyaircache.errors`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | EngineModel,
        mmproj: str | os.PathLike[str] | None = None,
        *,
        progress: Progress | None = None,
        **options: int | str | None,
    ) -> None:
        if isinstance(model, EngineModel):
            if mmproj is not None:
                raise ArgumentError("mmproj goes with the path of a model; an EngineModel has its projector already")
            shared = model
        else:
            of_model = {name: options[name] for name in models.OPTIONS if name in options}
            options = {name: value for name, value in options.items() if name not in of_model or name in OPTIONS}
            shared = EngineModel(model, mmproj, progress=progress, **of_model)
        fork.check_new()
        ffi, lib, _ = library.load()
        params, _strings = c_params(ffi, "struct pac_engine_params", lib.pac_engine_default_params(), options, OPTIONS)
        try:
            self._make(lambda out: lib.pac_engine_new(shared.pointer, params, out))
        finally:
            if shared is not model:
                shared.close()  # the engine holds it now

    def _make(self, new: Callable[[Any], int]) -> None:
        """Takes what a C function makes, which puts it into a ``pac_engine **`` and returns a status."""
        self._ptr: Any = None
        self._pid = os.getpid()
        self._ending = threading.RLock()  # between `cancel` and `close`; a signal handler may call both inside them
        self._ffi, self._lib, _ = library.load()
        out = self._ffi.new("pac_engine **")
        status = new(out)
        if status == self._lib.PAC_OK:
            free = functools.partial(free_in, self._lib.pac_engine_free, os.getpid, self._pid)
            self._ptr = self._ffi.gc(out[0], free)
        check(status)

    @classmethod
    def made_by(cls, new: Callable[[Any], int]) -> Engine:
        """The engine that a C function makes; for `EnginePool`."""
        engine = cls.__new__(cls)
        engine._make(new)
        return engine

    def close(self) -> None:
        """Frees the engine; further calls raise StateError. May be called again; does nothing in a forked child."""
        if getattr(self, "_ptr", None) is None or self._pid != os.getpid():
            return
        with self._ending:
            ptr, self._ptr = self._ptr, None
        # Frees it; or the `cancel` does that a signal handler has called this from, when it has used its own reference
        del ptr

    def cancel(self) -> None:
        """Makes a running :meth:`prompt` or :meth:`decode` raise CancelledError soon. From any thread."""
        with self._ending:
            if self._ptr is not None:
                self._lib.pac_cancel(self._engine)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` has been called."""
        return self._ptr is None

    @property
    def pointer(self) -> Any:
        """The ``pac_engine *``.

        Raises:
            StateError: It is closed.
            ForkError: It belongs to the process that this one was forked from.
        """
        return self._engine

    @property
    def _engine(self) -> Any:
        if self._ptr is None:
            raise StateError("the engine is closed")
        fork.check(self._pid)
        return self._ptr

    # -- about the model ----------------------------------------------------------------------------------------------

    def info(self) -> Info:
        """What was loaded."""
        out = self._ffi.new("struct pac_info *")
        check(self._lib.pac_engine_info(self._engine, out))
        return Info(**struct_fields(self._ffi, out, Info))

    def marker(self) -> str:
        """What stands for an image in a prompt's text."""
        return text(self._ffi, self._lib.pac_marker(self._engine))

    def apply_template(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Renders messages with the model's own chat template."""
        ffi = self._ffi
        items = ffi.new("struct pac_message[]", max(len(messages), 1))
        keep_alive = []
        for i, message in enumerate(messages):
            if not isinstance(message, Message):
                raise ArgumentError(f"messages must be Message objects, got {shown(message)}")
            role, content = ffi.new("char[]", utf8(message.role)), ffi.new("char[]", utf8(message.content))
            keep_alive += [role, content]
            items[i].role, items[i].content = role, content
        out = ffi.new("char **")
        prompt = flag("add_generation_prompt", add_generation_prompt)
        check(self._lib.pac_apply_template(self._engine, items, len(messages), prompt, out))
        try:
            return text(ffi, out[0])
        finally:
            self._lib.pac_string_free(out[0])

    # -- prompt -------------------------------------------------------------------------------------------------------

    def count_tokens(self, text: str, images: Sequence[NDArray[np.uint8]] = ()) -> int:
        """Cells that a prompt needs; evaluates nothing. images: uint8 [H, W, 3] each."""
        pictures, _buffers = c_images(self._ffi, images)
        out = self._ffi.new("int32_t *")
        check(self._lib.pac_count_tokens(self._engine, utf8(text), pictures, len(images), out))
        return int(out[0])

    def layout(self, text: str, images: Sequence[NDArray[np.uint8] | Size] = ()) -> PromptInfo:
        """What :meth:`prompt` would make of a prompt; evaluates nothing.

        images: uint8 [H, W, 3] each, or a picture's (width, height): its pixels do not matter here.
        """
        pictures, _buffers = c_images(self._ffi, images)
        out = self._ffi.new("struct pac_prompt_info *")
        check(self._lib.pac_layout(self._engine, utf8(text), pictures, len(images), out))
        return self._prompt_info(out)

    def prompt(
        self,
        text: str,
        images: Sequence[NDArray[np.uint8]] = (),
        *,
        reserve: int = 0,
        observe: EngineMethod | bool = False,
        progress: Progress | None = None,
    ) -> PromptInfo:
        """Appends a prompt to the conversation and evaluates it.

        Args:
            text: Rendered prompt; each marker is replaced by the next image.
            images: uint8 [H, W, 3], C-contiguous; [frames, H, W, 3] is a video.
            reserve: Cells that must stay free for the answer.
            observe: The method that :meth:`score` or :meth:`compress` will use (True: the default one), or False.
            progress: Called between batches.

        Raises:
            ContextError: It does not fit. As after every error here, the conversation is as it was.
        """
        pictures, _buffers = c_images(self._ffi, images)
        callback = ProgressCallback(self._ffi, progress)
        reserve = int32("reserve", reserve)
        out = self._ffi.new("struct pac_prompt_info *")
        observed = self._observed(observe)
        status = self._lib.pac_prompt(
            self._engine, utf8(text), pictures, len(images), reserve, observed, callback.pointer, self._ffi.NULL, out
        )
        callback.raise_pending()
        check(status)
        return self._prompt_info(out)

    def _observed(self, observe: EngineMethod | bool) -> Any:
        method = EngineMethod(keep=1.0) if observe is True else observe
        return self._method(method) if method else self._ffi.NULL

    def _prompt_info(self, out: Any) -> PromptInfo:
        spans = [Span(**struct_fields(self._ffi, out.spans[i], Span)) for i in range(out.n_spans)]
        return PromptInfo(**struct_fields(self._ffi, out, PromptInfo, spans=spans))

    def prompt_tokens(self) -> NDArray[np.int32]:
        """Token ids of the last prompt: int32 [n_tokens], -1 for visual ones; `Span.first` and observers count them.

        Raises:
            StateError: There was no prompt.
        """
        ids, count = self._ffi.new("int32_t **"), self._ffi.new("int32_t *")
        check(self._lib.pac_prompt_tokens(self._engine, ids, count))
        return array(self._ffi, ids[0], count[0], np.int32)

    # -- compression --------------------------------------------------------------------------------------------------

    def score(self, method: EngineMethod) -> Scores:
        """Importance of every visual token in every layer (docs/method.md, section 1)."""
        out = self._ffi.new("struct pac_scores *")
        check(self._lib.pac_score(self._engine, self._method(method), out))
        return scores_of(self._ffi, out)

    def evict(self, kept: Sequence[NDArray[np.int32]], mask_only: bool = False, merge: float = 0.0) -> Compression:
        """Evicts all visual tokens but the given ones. kept: per layer, ascending visual indices.

        Raises:
            ArgumentError: They are something else.
        """
        layers = [indices(f"the kept tokens of layer {i}", one) for i, one in enumerate(kept)]
        budgets = np.array([len(one) for one in layers], dtype=np.int32)
        flat = np.concatenate(layers) if layers else np.empty(0, np.int32)
        out = self._ffi.new("struct pac_compression *")
        arrays = (self._ffi.from_buffer("int32_t[]", values) for values in (budgets, flat))
        share, hidden = between("merge", merge, 0.0, 1.0), flag("mask_only", mask_only)
        check(self._lib.pac_evict(self._engine, *arrays, share, hidden, out))
        return compression_of(self._ffi, out)

    def compress(self, method: EngineMethod, mask_only: bool = False) -> tuple[Scores, Compression]:
        """Scores, allocates, selects and evicts (docs/method.md, sections 1 to 3)."""
        scores, out = self._ffi.new("struct pac_scores *"), self._ffi.new("struct pac_compression *")
        hidden = flag("mask_only", mask_only)
        check(self._lib.pac_compress(self._engine, self._method(method), hidden, scores, out))
        return scores_of(self._ffi, scores), compression_of(self._ffi, out)

    def _method(self, method: EngineMethod) -> Any:
        return c_method(self._ffi, self._lib, method)

    # -- answer -------------------------------------------------------------------------------------------------------

    def set_sampling(self, sampling: Sampling | None) -> None:
        """How all answers from now on are drawn; None: greedy. `prompt` and `reset` start its grammar and draws anew.

        Raises:
            ArgumentError: A number is outside its limits, or the grammar or schema cannot be followed. All stays as it
                was.
        """
        ffi, lib = self._ffi, self._lib
        if sampling is None:
            check(lib.pac_sampling_set(self._engine, ffi.NULL))
            return
        params = ffi.new("struct pac_sampling *", lib.pac_sampling_default())
        strings = []
        for name, given in vars(sampling).items():
            value = given
            if isinstance(given, str):
                value = ffi.new("char[]", utf8(given))
                strings.append(value)
            if value is not None:
                set_field(ffi, params, name, value, given)
        check(lib.pac_sampling_set(self._engine, params))

    def sample(self) -> tuple[int, bool]:
        """Next token by the current logits: (token, whether it ends the answer). Another call is another draw.

        Raises:
            EngineError: No token of the vocabulary fits the grammar.
        """
        token, end = self._ffi.new("int32_t *"), self._ffi.new("bool *")
        check(self._lib.pac_sample(self._engine, token, end))
        return int(token[0]), bool(end[0])

    def logprobs(self, n: int = 0, token: int | None = None) -> Logprobs:
        """Log probabilities by the current logits, of the n most likely tokens and of a given one.

        Raises:
            ArgumentError: n or the token is outside of the vocabulary.
        """
        ffi, n = self._ffi, int32("n", n)
        id_ = -1 if token is None else int32("token", token)
        ids, values, value = ffi.new("int32_t[]", max(n, 1)), ffi.new("double[]", max(n, 1)), ffi.new("double *")
        asked = ffi.NULL if token is None else value
        check(self._lib.pac_logprobs(self._engine, n, ids, values, id_, asked))
        return Logprobs(
            array(ffi, ids, n, np.int32), array(ffi, values, n, np.float64), None if token is None else float(value[0])
        )

    def tokenize(self, text: str, special: bool = False) -> NDArray[np.int32]:
        """Token ids of a text: int32 [n]. special: control tokens like ``<|im_end|>`` are recognised."""
        data, special = utf8(text), flag("special", special)
        count = check(self._lib.pac_tokenize(self._engine, data, special, self._ffi.NULL, 0))
        ids = self._ffi.new("int32_t[]", max(count, 1))
        check(self._lib.pac_tokenize(self._engine, data, special, ids, count))
        return array(self._ffi, ids, count, np.int32)

    def token_bytes(self, token: int, special: bool = False) -> bytes:
        """Text of a token; may end inside a UTF-8 sequence. special: control tokens have their name, else none."""
        buffer, id_, special = self._ffi.new("char[]", _TOKEN_BYTES), int32("token", token), flag("special", special)
        count = check(self._lib.pac_token_bytes(self._engine, id_, special, buffer, _TOKEN_BYTES))
        return bytes(self._ffi.buffer(buffer, count))

    def decode(self, token: int) -> None:
        """Appends one token to the conversation.

        Raises:
            ArgumentError: The token does not exist, or does not fit the grammar of `set_sampling`.
            ContextError: The context is full.
        """
        check(self._lib.pac_decode(self._engine, int32("token", token)))

    def logits(self) -> NDArray[np.float32]:
        """Logits of the last evaluated token: [n_vocab]."""
        out, count = self._ffi.new("float **"), self._ffi.new("int32_t *")
        check(self._lib.pac_logits(self._engine, out, count))
        return array(self._ffi, out[0], count[0], np.float32)

    def stats(self) -> Stats:
        """Cells, bytes and graph counts of the moment."""
        out = self._ffi.new("struct pac_stats *")
        check(self._lib.pac_engine_stats(self._engine, out))
        return Stats(**struct_fields(self._ffi, out, Stats))

    def reset(self) -> None:
        """Forgets the conversation."""
        check(self._lib.pac_reset(self._engine))
