"""Ask a vision-language model about images, with a compressed visual KV cache."""

from __future__ import annotations

import os
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, overload

from .. import checks, model_files
from ..checks import flag, one_of, shown, whole
from ..engine import fork, log, rpc
from ..engine.engine import Engine
from ..engine.marshal import utf8
from ..engine.protocol import EngineLike
from ..engine.structs import Info, Span
from ..errors import ArgumentError, CancelledError, PyAircacheWarning, StateError, UnsupportedError
from ..images import Picture, load_images
from ..methods.choice import choose
from ..methods.method import Method
from ..methods.policy import Policy
from ..progress import ProgressLine
from .answer import CLOSED, Answer, AnswerStream
from .gate import Gate, Lease
from .options import Options
from .session import CANCELLED, Session

Result = TypeVar("Result")

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
_MAX_THREADS = 512  # ggml's


class Chat:
    """A loaded model and one conversation with it.

    ::

        with Chat("model.gguf", keep=0.1) as chat:
            print(chat.ask("page.png", "What is the total?"))
            print(chat.ask(None, "And the date?"))

    Usable from several threads, one question at a time, in the order of asking: a call waits until the one before it is
    done, for at most its ``timeout`` (docs/threads.md). Not usable in a forked child.

    Args:
        model: Path of the language model's GGUF file; None: the small bundled model.
        mmproj: Path of its vision projector; None: the ``*mmproj*.gguf`` file in the model's folder, if there is one;
            False: none, whatever lies beside the model.
        keep: Share of the visual cells that stay in the KV cache, in (0, 1], over all layers together. 1 is exactly the
            plain model.
        method: How it is decided what stays (docs/methods.md): a name, such as ``"aircache"`` or ``"snapkv"``, which
            `Method.names` lists, or ``"full"`` (no compression whatever ``keep`` says); a `Method`; or a function
            ``policy(scores, total)``. It gets AirCache's importance, float32 [L, N_v], and how many cells to keep in
            all layers together, and returns for each layer the visual indices to keep: at least one, ascending. It
            must not use this Chat. What it raises comes out of ``ask``.
        alpha: Text tokens whose attention is at least this share of the largest one observe the image, in (0, 1]
            (docs/method.md, section 1); None: the method's own, 0.9. Not with a `Method`, which says it itself:
            ``Method(window=Elite(0.5))``; nor with methods that have no elite window.
        n_ctx: Context window in tokens, rounded up to a multiple of 256; None or 0: the model's own, at most 32768.
        n_gpu_layers: Layers on the GPU; -1: all. Without effect in a CPU build.
        n_threads: CPU threads, at most 512; None or 0: one per physical core.
        cache_type_k: Type of the cache's keys: f32, f16, bf16, q8_0 or q4_0.
        cache_type_v: Type of its values.
        rpc_servers: ``"host:port"`` of ggml RPC servers to compute on, several separated by commas or as a list.
        verbose: Show llama.cpp's log on stderr while this Chat is open. It goes to the logger ``pyaircache.llama`` in
            any case.

    Warns:
        PyAircacheWarning: ``n_ctx`` was rounded up, or is larger than what the model was trained with; or there are
            more threads than processors.

    Raises:
        ModelNotFoundError: A file does not exist.
        ModelError: A file is not a GGUF, or not a model that can be loaded.
        ProjectorError: The projector does not fit, or several fit equally well.
        ArgumentError: A value is outside its limits.
        OutOfMemoryError: It does not fit into memory.
        ForkError: This process was forked while another thread was computing.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        mmproj: str | os.PathLike[str] | Literal[False] | None = None,
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
            "n_threads": whole("n_threads", n_threads, 0, _MAX_THREADS) if n_threads is not None else None,
            "cache_type_k": one_of("cache_type_k", cache_type_k, CACHE_TYPES),
            "cache_type_v": one_of("cache_type_v", cache_type_v, CACHE_TYPES),
            "rpc_servers": rpc.checked(rpc_servers),
        }
        self._options = Options(keep=keep, choice=choose(method, alpha))
        self._model, mmproj_path = model_files.resolve(model, mmproj)
        self._pid = os.getpid()
        self._closing = False
        self._log = log.Listener() if flag("verbose", verbose) else None
        self._gate = Gate()
        try:
            with ProgressLine() as progress:
                self._engine: EngineLike = self._gate.hold(
                    Lease(self._gate, "loading"),
                    lambda: Engine(self._model, mmproj_path, progress=progress, **options),
                )
            self._session = Session(self._engine, self._model.name)
        except BaseException:
            self._quieten()
            raise
        self._warn(n_ctx, n_threads)

    @property
    def info(self) -> Info:
        """What was loaded."""
        return self._session.info

    def spans(self, size: tuple[int, int], *, timeout: float | None = None) -> list[Span]:
        """The runs of visual tokens that one picture of this size would become; evaluates nothing.

        Args:
            size: width and height in pixels.
            timeout: Seconds to wait for the Chat, as in `ask`.

        Raises:
            ArgumentError: The size is not two whole numbers from 1 to 32768, or the model cannot take it.
            ProjectorError: The model has no projector.
            BusyError, StateError, ForkError: As for `ask`.
        """
        try:
            width, height = size
        except Exception:
            raise ArgumentError(f"size must be (width, height) in pixels, got {shown(size)}") from None
        checked = whole("width", width, 1, 1 << 15), whole("height", height, 1, 1 << 15)
        seconds = checks.timeout(timeout)
        return self._hold("spans()", lambda: self._session.spans(checked), seconds)

    # fmt: off
    @overload
    def ask(self, image: Picture | Sequence[Picture] | None, question: str, *, keep: float | None = ...,
            max_tokens: int = ..., temperature: float = ..., seed: int | None = ...,
            stream: Literal[False] = ..., timeout: float | None = ...) -> Answer: ...
    @overload
    def ask(self, image: Picture | Sequence[Picture] | None, question: str, *, keep: float | None = ...,
            max_tokens: int = ..., temperature: float = ..., seed: int | None = ...,
            stream: Literal[True], timeout: float | None = ...) -> AnswerStream: ...
    @overload
    def ask(self, image: Picture | Sequence[Picture] | None, question: str, *, keep: float | None = ...,
            max_tokens: int = ..., temperature: float = ..., seed: int | None = ...,
            stream: bool, timeout: float | None = ...) -> Answer | AnswerStream: ...
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
        timeout: float | None = None,
    ) -> Answer | AnswerStream:
        """Asks a question.

        With an image a new conversation begins; without one the question follows the conversation so far, or is a plain
        text question when there is none. A question that fails, is cancelled or is interrupted leaves the conversation
        as it was.

        Args:
            image: A path, a file's bytes, a file opened in binary mode, a data URI, a Pillow image, a uint8 array
                [H, W, 3] (or [H, W], [H, W, 4]), a list of these, or None; in each place a `Video` of them, too.
            question: The text of the question.
            keep: Share of this question's visual cells to keep instead of the Chat's own ``keep``. A follow-up without
                an image cannot change what is left of it: another ``keep`` than the conversation's has no effect there,
                and a warning says so.
            max_tokens: Longest answer, in tokens.
            temperature: 0: always the most likely token; higher: more random; at most 1e6.
            seed: Makes a random answer repeatable; None: another one each time, which the report tells.
            stream: Return an iterator over pieces of the answer as they are generated. The prompt is evaluated before
                this call returns.
            timeout: Seconds to wait while the Chat is in use by another question; None: for ever. Only the waiting is
                limited, not the answering.

        Returns:
            The answer; with ``stream=True`` an ``AnswerStream``, which holds the Chat until it ends.

        Warns:
            PyAircacheWarning: ``keep`` has no effect; or this call has waited long for a stream that nobody reads.

        Raises:
            ImageError: An image cannot be read.
            ProjectorError: There is an image, but the model has no projector.
            ContextError: The question does not fit the context window.
            UnsupportedError: This model's cache cannot be compressed (``keep=1.0`` works).
            ArgumentError: A value is outside its limits.
            BusyError: The Chat did not become free in time; or a streamed answer is open, and this is the only thread
                there is, so that nobody could read it while this call waits.
            CancelledError: `cancel` was called.
            StateError: The Chat is closed, or the call comes from inside the Chat's own policy.
            ForkError: This process was forked from the one that made the Chat.
            KeyboardInterrupt: Ctrl-C, after the engine has stopped, which is soon, but not before a picture that is
                being encoded is done (a large one on a CPU: seconds); `cancel`, from another thread, is faster. The
                Chat stays usable.
        """
        started = time.perf_counter()
        options = Options(
            keep=self._options.keep if keep is None else keep,
            choice=self._options.choice,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )
        if not isinstance(question, str) or not question.strip():
            raise ArgumentError(f"the question must be a text that is not empty, got {shown(question)}")
        utf8(question)
        flag("stream", stream)
        seconds = checks.timeout(timeout)
        fork.check(self._pid)
        images = load_images(image)
        what = f"a streamed answer to {shown(question)}" if stream else f"the question {shown(question)}"
        lease = Lease(self._gate, what, question=True)

        def begin() -> AnswerStream:
            self._refuse_closed()
            asked = self._session.begin(images, question, options, lambda: lease.cancelled)
            if keep is not None and options.keep != asked.report.keep:
                _without_effect(options.keep, asked.report.keep, bool(asked.turns[0].images))
            answer = AnswerStream(self._session, asked, started, lease, self)
            try:
                if stream:
                    lease.stream = weakref.ref(answer)
                if lease.cancelled:  # by a thread that did not see the stream yet
                    raise CancelledError(CANCELLED)
                return answer
            except BaseException as exc:
                answer.abandon(exc)
                raise

        if stream:
            return self._gate.enter(lease, begin, seconds)
        return self._gate.hold(lease, lambda: begin().read(), seconds)

    def cancel(self) -> bool:
        """Stops the question that is being answered; may be called by any thread, at any time.

        During the prompt or the answer, its ``ask`` raises CancelledError. A streamed answer ends, whoever reads it:
        the next ``next()`` raises CancelledError. The conversation is as it was before the question. Questions that
        wait for their turn are not meant. The encoding of a picture stops between two layers of the vision tower, the
        evaluation of a prompt on a CPU between two operations, the compression behind its step.

        Returns:
            Whether there was a question to stop.

        Raises:
            ForkError: This process was forked from the one that made the Chat.
        """
        fork.check(self._pid)
        lease = self._gate.holder
        if lease is None or not lease.question:
            return False
        lease.cancelled = True
        self._engine.cancel()
        stream = lease.stream()
        if stream is not None:
            stream.end(CANCELLED)
        return True

    def reset(self, *, timeout: float | None = None) -> None:
        """Forgets the conversation, when the question that is being answered is done; an open stream stays valid.

        Args:
            timeout: Seconds to wait for the Chat, as in `ask`.

        Raises:
            BusyError, StateError, ForkError: As for `ask`.
        """
        self._hold("reset()", self._session.reset, checks.timeout(timeout))

    def close(self, *, timeout: float | None = None) -> None:
        """Frees the model, when the call that is running is done. May be called again.

        An open stream ends as soon as no thread is inside its ``next()``: the next one raises StateError. Questions
        that wait for their turn get a StateError, too. In a forked child nothing happens.

        Args:
            timeout: Seconds to wait for the call that is running; None: as long as it takes.

        Raises:
            BusyError: It did not end in time; the Chat stays open.
            StateError: The call comes from inside the Chat's own policy.
        """
        seconds = checks.timeout(timeout)
        if self._pid != os.getpid():
            return
        self._closing = True
        try:
            self._gate.hold(Lease(self._gate, "close()"), self._engine.close, seconds, self._end_stream)
        finally:
            self._closing = self._engine.closed
        self._quieten()

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)  # missing when __init__ failed
        if engine is not None:
            engine.close()
        self._quieten()

    def __reduce__(self) -> Any:
        raise UnsupportedError(
            "a Chat cannot be pickled or copied, since its model lives in this process; make one in each process"
        )

    def __repr__(self) -> str:
        state = ", closed" if self._engine.closed else ""
        return f"Chat({str(self._model)!r}, keep={self._options.keep:g}, method={self._options.choice.name!r}{state})"

    def _hold(self, what: str, body: Callable[[], Result], timeout: float | None) -> Result:
        """Calls ``body`` with the Chat to itself."""
        fork.check(self._pid)

        def checked() -> Result:
            self._refuse_closed()
            return body()

        return self._gate.hold(Lease(self._gate, what), checked, timeout)

    def _refuse_closed(self) -> None:
        if self._closing or self._engine.closed:
            raise StateError("this Chat is closed")

    def _end_stream(self) -> None:
        """Ends a stream that is in the way of `close`."""
        holder = self._gate.holder
        stream = holder.stream() if holder is not None else None
        if stream is not None:
            stream.end(CLOSED)

    def _quieten(self) -> None:
        log = getattr(self, "_log", None)
        if log is not None:
            log.close()

    def _warn(self, n_ctx: int | None, n_threads: int | None) -> None:
        """Says what was made of an option, where it is not what was asked for."""
        info = self.info
        if n_ctx and info.n_ctx != n_ctx:
            _warning(f"n_ctx={n_ctx} became {info.n_ctx}: llama.cpp takes multiples of 256")
        if n_ctx and info.n_ctx > info.n_ctx_train > 0:
            _warning(
                f"n_ctx={n_ctx} is more than the {info.n_ctx_train} tokens that the model was trained with: "
                "answers about what lies behind them can be wrong"
            )
        processors = os.cpu_count() or 1
        if n_threads and n_threads > processors:
            _warning(f"n_threads={n_threads} is more than the {processors} processors here, which is slower")


def _without_effect(keep: float, actual: float, images: bool) -> None:
    why = (
        f"a follow-up reads its image as it was kept for the first question (keep={actual:g}); ask with the image again"
        if images
        else "there is no image in this conversation"
    )
    _warning(f"keep={keep:g} has no effect: {why}")


def _warning(message: str) -> None:
    """Warns about the line outside this package."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__package__") == __package__:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, PyAircacheWarning, stacklevel=level)
