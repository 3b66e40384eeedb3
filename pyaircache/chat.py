"""Ask a vision-language model about images, with a compressed visual KV cache."""

from __future__ import annotations

import os
import secrets
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Literal, overload

import numpy as np

from . import _files, _log, _rpc
from ._checks import whole
from ._choice import choose
from ._custom import Policy
from ._engine import Engine
from ._options import Options
from ._progress import ProgressLine
from ._session import Session
from ._structs import Info, Span
from .answer import Answer, AnswerStream
from .errors import ArgumentError, StateError
from .images import Picture, load_images
from .method import Method


class _Lease:
    """The right to use a Chat's engine, given back once; keeps the Chat alive until then."""

    def __init__(self, chat: Chat) -> None:
        self._chat: Chat | None = chat

    def release(self) -> None:
        chat, self._chat = self._chat, None
        if chat is not None:
            chat._lock.release()


class Chat:
    """A loaded model and one conversation with it.

    ::

        with Chat("model.gguf", keep=0.1) as chat:
            print(chat.ask("page.png", "What is the total?"))
            print(chat.ask(None, "And the date?"))

    Usable from several threads, one question at a time: a second thread waits.

    Args:
        model: Path of the language model's GGUF file; None: the small bundled model.
        mmproj: Path of its vision projector; None: the ``*mmproj*.gguf`` file in the model's folder, if there is one.
        keep: Share of the visual cells that stay in the KV cache, in (0, 1], over all layers together. 1 is exactly the
            plain model.
        method: How it is decided what stays (docs/methods.md): a name, such as ``"aircache"``, ``"snapkv"`` or
            ``"full"`` (no compression whatever ``keep`` says), `Method.names` lists them; a `Method`; or a function
            ``policy(scores, total)``. It gets AirCache's importance, float32 [L, N_v], and how many cells to keep in
            all layers together, and returns for each layer the visual indices to keep: at least one, ascending. It
            must not use this Chat. What it raises comes out of ``ask``.
        alpha: Text tokens whose attention is at least this share of the largest one observe the image (method
            section 1), in (0, 1]; None: the method's own, 0.9. Not with a `Method`, which says it itself:
            ``Method(window=Elite(0.5))``; nor with methods that have no elite window.
        n_ctx: Context window in tokens; None: the model's own, at most 32768.
        n_gpu_layers: Layers on the GPU; -1: all. Without effect in a CPU build.
        n_threads: CPU threads; None: one per physical core.
        cache_type_k: Type of the cache's keys: f32, f16, bf16, q8_0 or q4_0.
        cache_type_v: Type of its values.
        rpc_servers: ``"host:port"`` of ggml RPC servers to compute on, several separated by commas or as a list.
        verbose: Show llama.cpp's log on stderr.

    Raises:
        ModelNotFoundError: A file does not exist.
        ModelError: A file is not a GGUF, or not a model that can be loaded.
        ProjectorError: The projector does not fit, or several fit equally well.
        ArgumentError: A value is outside its limits.
        OutOfMemoryError: It does not fit into memory.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        mmproj: str | os.PathLike[str] | None = None,
        *,
        keep: float = 0.10,
        method: str | Method | Policy = "aircache",
        alpha: float | None = None,
        n_ctx: int | None = None,
        n_gpu_layers: int = -1,
        n_threads: int | None = None,
        cache_type_k: str = "f16",
        cache_type_v: str = "f16",
        rpc_servers: str | Sequence[str] | None = None,
        verbose: bool = False,
    ) -> None:
        options: dict[str, int | str | None] = {
            "n_ctx": whole("n_ctx", n_ctx, 0, 2**31 - 1) if n_ctx is not None else None,
            "n_gpu_layers": whole("n_gpu_layers", n_gpu_layers, -1, 2**31 - 1),
            "n_threads": whole("n_threads", n_threads, 0, 4096) if n_threads is not None else None,
            "cache_type_k": cache_type_k,
            "cache_type_v": cache_type_v,
            "rpc_servers": _rpc.checked(rpc_servers),
        }
        self._model, mmproj_path = _files.resolve(model, mmproj)
        self._options = Options(keep=keep, choice=choose(method, alpha))
        _log.show(verbose)
        with ProgressLine() as progress:
            self._engine = Engine(self._model, mmproj_path, progress=progress, **options)
        self._session = Session(self._engine, self._model.name)
        self._lock = threading.Lock()  # held while a question is answered, streams included
        self._beginning: int | None = None  # the thread that is evaluating a prompt
        self._stream: weakref.ref[AnswerStream] | None = None

    @property
    def info(self) -> Info:
        """What was loaded."""
        return self._session.info

    def spans(self, size: tuple[int, int]) -> list[Span]:
        """The runs of visual tokens that one picture of this size would become; evaluates nothing.

        Args:
            size: width and height in pixels.

        Raises:
            ArgumentError: The size is not two whole numbers from 1 to 32768, or the model cannot take it.
            ProjectorError: The model has no projector.
            StateError: As for `ask`.
        """
        try:
            width, height = size
        except (TypeError, ValueError):
            raise ArgumentError(f"size must be (width, height) in pixels, got {size!r}") from None
        blank = np.zeros((whole("height", height, 1, 1 << 15), whole("width", width, 1, 1 << 15), 3), np.uint8)
        lease = self._acquire()
        try:
            return self._session.spans(blank)
        finally:
            lease.release()

    # fmt: off
    @overload
    def ask(self, image: Picture | Sequence[Picture] | None, question: str, *, keep: float | None = ...,
            max_tokens: int = ..., temperature: float = ..., seed: int | None = ...,
            stream: Literal[False] = ...) -> Answer: ...
    @overload
    def ask(self, image: Picture | Sequence[Picture] | None, question: str, *, keep: float | None = ...,
            max_tokens: int = ..., temperature: float = ..., seed: int | None = ...,
            stream: Literal[True]) -> AnswerStream: ...
    @overload
    def ask(self, image: Picture | Sequence[Picture] | None, question: str, *, keep: float | None = ...,
            max_tokens: int = ..., temperature: float = ..., seed: int | None = ...,
            stream: bool) -> Answer | AnswerStream: ...
    # fmt: on
    def ask(
        self,
        image: Picture | Sequence[Picture] | None,
        question: str,
        *,
        keep: float | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
        stream: bool = False,
    ) -> Answer | AnswerStream:
        """Asks a question.

        With an image a new conversation begins; without one the question follows the conversation so far, or is a plain
        text question when there is none. A question that fails or is cancelled leaves the conversation as it was.

        Args:
            image: A path, a file's bytes, a Pillow image, a uint8 array [H, W, 3] (or [H, W], [H, W, 4]), a list of
                these, or None; in each place a `Video` of them, too.
            question: The text of the question.
            keep: Share of this question's visual cells to keep instead of the Chat's own ``keep``.
            max_tokens: Longest answer, in tokens.
            temperature: 0: always the most likely token; higher: more random.
            seed: Makes a random answer repeatable; None: another one each time.
            stream: Return an iterator over pieces of the answer as they are generated. The prompt is evaluated before
                this call returns.

        Returns:
            The answer; with ``stream=True`` an ``AnswerStream``.

        Raises:
            ImageError: An image cannot be read.
            ProjectorError: There is an image, but the model has no projector.
            ContextError: The question does not fit the context window.
            UnsupportedError: This model's cache cannot be compressed (``keep=1.0`` works).
            ArgumentError: A value is outside its limits.
            StateError: The Chat is closed, or this thread still has a streamed answer open, or is inside the Chat's own
                policy.
            KeyboardInterrupt: Ctrl-C, after the engine has stopped; the Chat stays usable.
        """
        started = time.perf_counter()
        options = Options(
            keep=self._options.keep if keep is None else keep,
            choice=self._options.choice,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=secrets.randbits(32) if seed is None else seed,
        )
        if not isinstance(question, str) or not question.strip():
            raise ArgumentError(f"the question must be a text that is not empty, got {question!r}")
        images = load_images(image)
        lease = self._acquire()
        try:
            self._beginning = threading.get_ident()
            try:
                turn, report = self._session.begin(images, question, options)
            finally:
                self._beginning = None
            answer = AnswerStream(self._engine, turn, report, options, started, lease.release)
            self._stream = weakref.ref(answer)
            return answer if stream else answer.read()
        except BaseException:
            lease.release()
            raise

    def reset(self) -> None:
        """Forgets the conversation. A streamed answer of this thread is closed."""
        self._close_own_stream()
        lease = self._acquire()
        try:
            self._session.reset()
        finally:
            lease.release()

    def close(self) -> None:
        """Frees the model. A streamed answer of this thread is closed, one of another thread is waited for."""
        self._close_own_stream()
        self._refuse_policies()
        with self._lock:
            self._engine.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)  # missing when __init__ failed
        if engine is not None:
            engine.close()

    def __repr__(self) -> str:
        state = ", closed" if self._engine.closed else ""
        return f"Chat({str(self._model)!r}, keep={self._options.keep:g}, method={self._options.choice.name!r}{state})"

    def _open_stream(self) -> AnswerStream | None:
        """The streamed answer that this thread has not finished, if there is one."""
        stream = self._stream() if self._stream is not None else None
        return stream if stream is not None and not stream.done and stream.owner == threading.get_ident() else None

    def _close_own_stream(self) -> None:
        stream = self._open_stream()
        if stream is not None:
            stream.close()

    def _refuse_policies(self) -> None:
        """Names what would be a deadlock: a policy that waits for the question it is called for."""
        if self._beginning == threading.get_ident():
            raise StateError("a policy must not use the Chat that called it")

    def _acquire(self) -> _Lease:
        """Waits for other threads' questions, and keeps them waiting until the lease is released."""
        self._refuse_policies()
        if self._open_stream() is not None:  # waiting for it would never end
            raise StateError("a streamed answer of this Chat is still open; read it to its end or close() it first")
        self._lock.acquire()
        if self._engine.closed:
            self._lock.release()
            raise StateError("this Chat is closed")
        return _Lease(self)
