"""The engine, one method per C function: status codes become exceptions, C arrays become NumPy copies.

A thin layer: it holds no conversation, no file logic and no lock (see :mod:`pyaircache.chat`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _ffi
from ._convert import ProgressCallback, array, c_method, split, struct_fields, text, utf8
from ._model import Handle, Model, Progress, fill, model_params
from ._status import check
from ._structs import (
    Compression,
    Info,
    Logprobs,
    Message,
    Method,
    PromptInfo,
    Sampling,
    Scores,
    Size,
    Span,
    Stats,
)
from .errors import ArgumentError

STAGE_LOAD, STAGE_ENCODE, STAGE_PREFILL = 0, 1, 2

_TOKEN_BYTES = 1024  # room for the text of one token


def version() -> str:
    """Version of the engine and of llama.cpp, e.g. ``"0.1.0 (llama.cpp 0c1e570)"``."""
    ffi, lib, _ = _ffi.load()
    return text(ffi, lib.pac_version())


def _members(ffi: Any, struct: str) -> set[str]:
    return {name for name, _ in ffi.typeof(f"struct {struct}").fields}


class Engine(Handle):
    """One conversation on a loaded model; see ``pyaircache.h`` for what each call does.

    Not thread-safe: one call at a time, :meth:`cancel` excepted. Of the process that made it only: in a forked child
    every call raises ForkError, and what the engine holds is left alone.

    Args:
        model: A :class:`Model`, which others may use as well; or the path of a text model's GGUF, to load one.
        mmproj: Path of the projector's GGUF, or None: text only. Not with a :class:`Model`.
        progress: Called while loading.
        options: Further fields of ``pac_engine_params``, and with a path of ``pac_model_params``; None keeps a field's
            default.

    Raises:
        PyAircacheError: Loading failed; see :mod:`pyaircache.errors`.
    """

    _kind = "engine"

    def __init__(
        self,
        model: str | os.PathLike[str] | Model,
        mmproj: str | os.PathLike[str] | None = None,
        *,
        progress: Progress | None = None,
        **options: int | str | None,
    ) -> None:
        super().__init__()
        ffi, lib = self._ffi, self._lib
        self._sampling = Sampling()
        given = {name: value for name, value in options.items() if value is not None}
        of_model: set[str] = set() if isinstance(model, Model) else _members(ffi, "pac_model_params")
        params = ffi.new("struct pac_engine_params *", lib.pac_engine_default_params())
        own = {k: v for k, v in given.items() if k in _members(ffi, "pac_engine_params") or k not in of_model}
        keep_alive = fill(ffi, params, own)
        out = ffi.new("pac_engine **")
        if isinstance(model, Model):
            if mmproj is not None:
                raise ArgumentError("a Model has its projector already: leave mmproj out")
            callback = ProgressCallback(ffi, None)
            status = lib.pac_engine_new(model._open(), params, out)
        else:
            shared = {k: v for k, v in given.items() if k in of_model}
            of_files, alive, callback = model_params(ffi, lib, model, mmproj, progress, shared)
            keep_alive += alive
            status = lib.pac_engine_open(of_files, params, out)
        if status == lib.PAC_OK:
            self._hold(out[0], lib.pac_engine_free)
        callback.raise_pending()
        check(status)

    def cancel(self) -> None:
        """Makes a running :meth:`prompt` or :meth:`decode` raise CancelledError soon. From any thread."""
        with self._ending:
            if self._ptr is not None:
                self._lib.pac_cancel(self._engine)

    @property
    def _engine(self) -> Any:
        return self._open()

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
            role, content = ffi.new("char[]", utf8(message.role)), ffi.new("char[]", utf8(message.content))
            keep_alive += [role, content]
            items[i].role, items[i].content = role, content
        out = ffi.new("char **")
        check(self._lib.pac_apply_template(self._engine, items, len(messages), add_generation_prompt, out))
        try:
            return text(ffi, out[0])
        finally:
            self._lib.pac_string_free(out[0])

    # -- prompt -------------------------------------------------------------------------------------------------------

    def count_tokens(self, text: str, images: Sequence[NDArray[np.uint8]] = ()) -> int:
        """Cells that a prompt needs; evaluates nothing. images: uint8 [H, W, 3] each."""
        pictures, _buffers = self._images(images)
        out = self._ffi.new("int32_t *")
        check(self._lib.pac_count_tokens(self._engine, utf8(text), pictures, len(images), out))
        return int(out[0])

    def layout(self, text: str, images: Sequence[NDArray[np.uint8] | Size] = ()) -> PromptInfo:
        """What :meth:`prompt` would make of a prompt; evaluates nothing.

        images: uint8 [H, W, 3] each, or a picture's (width, height): its pixels do not matter here.
        """
        pictures, _buffers = self._images(images)
        out = self._ffi.new("struct pac_prompt_info *")
        check(self._lib.pac_layout(self._engine, utf8(text), pictures, len(images), out))
        return self._prompt_info(out)

    def prompt(
        self,
        text: str,
        images: Sequence[NDArray[np.uint8]] = (),
        *,
        reserve: int = 0,
        observe: Method | bool = False,
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
        pictures, _buffers = self._images(images)
        callback = ProgressCallback(self._ffi, progress)
        out = self._ffi.new("struct pac_prompt_info *")
        method = Method(keep=1.0) if observe is True else observe
        method = self._method(method) if method else self._ffi.NULL
        status = self._lib.pac_prompt(
            self._engine, utf8(text), pictures, len(images), reserve, method, callback.pointer, self._ffi.NULL, out
        )
        callback.raise_pending()
        check(status)
        return self._prompt_info(out)

    def _prompt_info(self, out: Any) -> PromptInfo:
        spans = [Span(**struct_fields(self._ffi, out.spans[i], Span)) for i in range(out.n_spans)]
        return PromptInfo(**struct_fields(self._ffi, out, PromptInfo, spans=spans))

    def _images(self, images: Sequence[NDArray[np.uint8] | Size]) -> tuple[Any, list[Any]]:
        """(C array of pac_image, buffers that must outlive it)."""
        items = self._ffi.new("struct pac_image[]", max(len(images), 1))
        buffers = []
        for i, image in enumerate(images):
            if isinstance(image, tuple):
                items[i].width, items[i].height = image
                continue
            contiguous = image.dtype == np.uint8 and image.flags.c_contiguous
            if not contiguous or image.ndim not in (3, 4) or image.shape[-1] != 3 or image.shape[0] == 0:
                raise ArgumentError("the engine takes C-contiguous uint8 images [H, W, 3] and videos [frames, H, W, 3]")
            buffers.append(self._ffi.from_buffer("uint8_t[]", image))
            items[i].n_frames = image.shape[0] if image.ndim == 4 else 0
            items[i].height, items[i].width, items[i].rgb = *image.shape[-3:-1], buffers[-1]
        return items, buffers

    # -- compression --------------------------------------------------------------------------------------------------

    def score(self, method: Method) -> Scores:
        """Importance of every visual token in every layer (method section 1)."""
        out = self._ffi.new("struct pac_scores *")
        check(self._lib.pac_score(self._engine, self._method(method), out))
        return self._scores(out)

    def evict(self, kept: Sequence[NDArray[np.int32]], mask_only: bool = False, merge: float = 0.0) -> Compression:
        """Evicts all visual tokens but the given ones. kept: per layer, ascending visual indices."""
        budgets = np.array([len(one) for one in kept], dtype=np.int32)
        flat = np.ascontiguousarray(np.concatenate(list(kept)) if len(kept) else [], dtype=np.int32)
        out = self._ffi.new("struct pac_compression *")
        arrays = (self._ffi.from_buffer("int32_t[]", values) for values in (budgets, flat))
        check(self._lib.pac_evict(self._engine, *arrays, merge, mask_only, out))
        return self._compression(out)

    def compress(self, method: Method, mask_only: bool = False) -> tuple[Scores, Compression]:
        """Scores, allocates, selects and evicts (method sections 1 to 3)."""
        scores, out = self._ffi.new("struct pac_scores *"), self._ffi.new("struct pac_compression *")
        check(self._lib.pac_compress(self._engine, self._method(method), mask_only, scores, out))
        return self._scores(scores), self._compression(out)

    def _method(self, method: Method) -> Any:
        return c_method(self._ffi, self._lib, method)

    def _scores(self, out: Any) -> Scores:
        ffi, layers, visual = self._ffi, out.n_layers, out.n_visual
        sizes = array(ffi, out.n_elite, layers, np.int32)
        return Scores(
            scores=array(ffi, out.scores, layers * visual, np.float32).reshape(layers, visual),
            elite=split(array(ffi, out.elite, int(sizes.sum()), np.int32), sizes),
            alive=array(ffi, out.alive, layers, np.float64),
            ms=out.ms,
        )

    def _compression(self, out: Any) -> Compression:
        ffi, layers = self._ffi, out.n_layers
        budgets = array(ffi, out.budgets, layers, np.int32)
        return Compression(
            **struct_fields(
                ffi,
                out,
                Compression,
                budgets=budgets,
                kept=split(array(ffi, out.kept, int(budgets.sum()), np.int32), budgets),
                strength=array(ffi, out.strength, layers, np.float64),
                skewness=array(ffi, out.skewness, layers, np.float64),
            )
        )

    # -- answer -------------------------------------------------------------------------------------------------------

    def set_sampling(self, sampling: Sampling | None) -> None:
        """How answers are drawn from now on; None: greedily. Begins grammar and random numbers anew.

        Raises:
            ArgumentError: A number outside its limits, or a grammar or schema that cannot be used; all is as it was.
        """
        ffi, lib = self._ffi, self._lib
        wanted = sampling or Sampling()
        params = ffi.new("struct pac_sampling *", lib.pac_sampling_default())
        keep_alive = []
        for name, value in vars(wanted).items():
            if isinstance(value, str):
                value = ffi.new("char[]", utf8(value))
                keep_alive.append(value)
            setattr(params, name, ffi.NULL if value is None else value)
        check(lib.pac_sampling_set(self._engine, params))
        self._sampling = wanted

    def sample(self, temperature: float | None = None, seed: int = 0) -> tuple[int, bool]:
        """Next token from the current logits: (token, whether it ends the answer).

        It is drawn as :meth:`set_sampling` says. temperature, seed: set these first, and nothing else.
        """
        if temperature is not None:
            wanted = Sampling(temperature=temperature, seed=seed)
            if wanted != self._sampling:
                self.set_sampling(wanted)
        token, end = self._ffi.new("int32_t *"), self._ffi.new("bool *")
        check(self._lib.pac_sample(self._engine, token, end))
        return int(token[0]), bool(end[0])

    def logprobs(self, n: int = 0, token: int | None = None) -> Logprobs:
        """Log-probabilities by the current logits: of the ``n`` most likely tokens, and of ``token``."""
        ffi = self._ffi
        ids, values, value = ffi.new("int32_t[]", max(n, 1)), ffi.new("double[]", max(n, 1)), ffi.new("double *")
        one = (0, ffi.NULL) if token is None else (token, value)
        check(self._lib.pac_logprobs(self._engine, n, ids, values, *one))
        tops = array(ffi, ids, n, np.int32), array(ffi, values, n, np.float64)
        return Logprobs(*tops, None if token is None else float(value[0]))

    def prompt_tokens(self) -> NDArray[np.int32]:
        """Token ids of the last prompt: [n_tokens], -1 for visual ones."""
        out, count = self._ffi.new("int32_t **"), self._ffi.new("int32_t *")
        check(self._lib.pac_prompt_tokens(self._engine, out, count))
        return array(self._ffi, out[0], count[0], np.int32)

    def tokenize(self, text: str, special: bool = False) -> NDArray[np.int32]:
        """Token ids of a text. special: control tokens like ``<|im_end|>`` are recognised, else they are plain text."""
        data = utf8(text)
        count = check(self._lib.pac_tokenize(self._engine, data, special, self._ffi.NULL, 0))
        ids = self._ffi.new("int32_t[]", max(count, 1))
        check(self._lib.pac_tokenize(self._engine, data, special, ids, count))
        return array(self._ffi, ids, count, np.int32)

    def token_bytes(self, token: int, special: bool = False) -> bytes:
        """Text of a token; may end inside a UTF-8 sequence. special: control tokens have their name, else no text."""
        buffer = self._ffi.new("char[]", _TOKEN_BYTES)
        count = check(self._lib.pac_token_bytes(self._engine, token, special, buffer, _TOKEN_BYTES))
        return bytes(self._ffi.buffer(buffer, count))

    def decode(self, token: int) -> None:
        """Appends one token to the conversation."""
        check(self._lib.pac_decode(self._engine, token))

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
