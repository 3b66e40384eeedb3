"""Ask a vision-language model about images, with a compressed visual KV cache."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar, get_args

from .. import checks
from ..checks import flag, one_of, shown, whole
from ..engine import fork, log
from ..engine.engine import Engine
from ..engine.protocol import EngineLike
from ..engine.structs import CacheType, Info
from ..errors import ArgumentError, StateError, UnsupportedError
from ..methods.choice import choose
from ..methods.method import Method, MethodName
from ..methods.policy import Policy
from ..progress import OnProgress
from ..spans import Span
from .answer import CLOSED
from .archives import Archive, engine_options
from .asking import Asking, warning
from .gate import Gate, Lease
from .many import AskingMany, Item, Many, Settings
from .model import Model, threads
from .options import AskOptions, Options
from .session import CANCELLED, Session

Result = TypeVar("Result")

CACHE_TYPES: tuple[str, ...] = get_args(CacheType)


class Chat(Asking, AskingMany):
    """One conversation with a model.

    ::

        with Chat("model.gguf", keep=0.1) as chat:
            print(chat.ask("page.png", "What is the total?"))
            print(chat.ask(None, "And the date?"))

    Usable from several threads, one question at a time, in the order of asking: a call waits until the one before it is
    done, for at most its ``timeout`` (docs/threads.md). Not usable in a forked child.

    Args:
        model: Path of the language model's GGUF file, which is loaded for this Chat alone; None: the small bundled
            model; or a `Model`, which several Chats may share.
        mmproj: Path of its vision projector; None: the ``*mmproj*.gguf`` file in the model's folder, if there is one;
            False: none, whatever lies beside the model.
        system: A system message, with which every conversation begins.
        keep: Share of the visual cells that stay in the KV cache, in (0, 1], over all layers together. 1 is exactly the
            plain model.
        method: How it is decided what stays (docs/methods.md): a name, such as ``"aircache"`` or ``"snapkv"``, which
            `Method.names` lists, or ``"full"`` (no compression whatever ``keep`` says); a `Method`; or a function
            ``policy(scores, total)``. It gets importance, float32 [L, N_v], and how many cells to keep in all layers
            together, and returns for each layer the visual indices to keep: at least one, ascending. It must not use
            this Chat. What it raises comes out of ``ask``.
        alpha: Text tokens whose attention is at least this share of the largest one observe the image (docs/method.md,
            section 1), in (0, 1]; None: the method's own, 0.9. Not with a `Method`, which says it itself:
            ``Method(window=Elite(0.5))``; nor with methods that have no elite window.
        n_ctx: Context window in tokens, rounded up to a multiple of 256; None or 0: the model's own, at most 32768.
        n_gpu_layers: As for `Model`, and not together with one: so are ``mmproj``, ``rpc_servers``,
            ``image_cache_bytes`` and ``on_progress``.
        n_threads: CPU threads, at most 512; None: the Model's number; 0: one per physical core.
        cache_type_k: Type of the cache's keys: f32, f16, bf16, q8_0 or q4_0.
        cache_type_v: Type of its values.
        archive: Where the full cells of a prompt stay, up to its last picture, so that a follow-up sees all of it again
            (docs/asking-again.md). ``"device"``: beside the cache; ``"ram"``: in host memory; a path: a file, or one in
            that folder, which is removed with the Chat; ``"none"``: nowhere, and a follow-up sees what the questions
            before it left; ``"auto"``: on the device or in RAM where at least twice as much is free, else nowhere. The
            report says which it is. ``keep=1`` needs none and makes none.
        rpc_servers: ``"host:port"`` of ggml RPC servers to compute on, several separated by commas or as a list.
        image_urls: Whether pictures may be ``http(s)://`` addresses, which are then fetched (docs/pictures.md).
        image_cache_bytes: Memory for the embeddings of pictures that were encoded; None: 256 MiB; 0: none are kept.
        on_progress: Called while loading, with ("load", done, total).
        verbose: Show llama.cpp's log on stderr while this Chat is open. It goes to the logger ``pyaircache.llama`` in
            any case.

    Warns:
        PyAircacheWarning: ``n_ctx`` was rounded up, or is larger than what the model was trained with; or there are
            more threads than processors.

    Raises:
        ModelNotFoundError: A file does not exist.
        ModelError: A file is not a GGUF, or not a model that can be loaded.
        ProjectorError: The projector does not fit, or several fit equally well.
        ArgumentError: A value is outside its limits, or goes with a path only.
        OutOfMemoryError: It does not fit into memory.
        StateError: The `Model` is closed.
        ForkError: This process was forked while another thread was computing.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Model | None = None,
        mmproj: str | os.PathLike[str] | Literal[False] | None = None,
        *,
        system: str | None = None,
        keep: float = 0.10,
        method: MethodName | Method | Policy = "aircache",
        alpha: float | None = None,
        n_ctx: int | None = None,
        n_gpu_layers: int | None = None,
        n_threads: int | None = None,
        cache_type_k: CacheType = "f16",
        cache_type_v: CacheType = "f16",
        archive: Archive = "auto",
        rpc_servers: str | Sequence[str] | None = None,
        image_cache_bytes: int | None = None,
        image_urls: bool = False,
        on_progress: OnProgress | None = None,
        verbose: bool = False,
    ) -> None:
        options: dict[str, int | str | None] = {
            "n_ctx": whole("n_ctx", n_ctx, 0, 2**31 - 1) if n_ctx is not None else None,
            "n_threads": threads(n_threads),
            "cache_type_k": one_of("cache_type_k", cache_type_k, CACHE_TYPES),
            "cache_type_v": one_of("cache_type_v", cache_type_v, CACHE_TYPES),
            **engine_options(archive),
        }
        of_model: dict[str, Any] = {
            "mmproj": mmproj,
            "n_gpu_layers": n_gpu_layers,
            "rpc_servers": rpc_servers,
            "image_cache_bytes": image_cache_bytes,
            "on_progress": on_progress,
        }
        of_model = {name: value for name, value in of_model.items() if value is not None}
        self._options = Options(keep=keep, choice=choose(method, alpha), system=system)
        self._image_urls = flag("image_urls", image_urls)
        self._pid = os.getpid()
        self._closing = False
        self._gate = Gate()
        self._runs: weakref.WeakSet[Many] = weakref.WeakSet()
        self._log = log.Listener() if flag("verbose", verbose) else None
        try:
            if isinstance(model, Model):
                if of_model:
                    raise ArgumentError(f"{', '.join(of_model)}: of the Model, which has been loaded already")
                self.model, self._own = model, False
            else:
                self.model, self._own = Model(model, n_threads=n_threads, **of_model), True
            if n_threads is None:
                options["n_threads"] = self.model.n_threads
            self._engine_options = options
            self._engine: EngineLike = self._gate.hold(
                Lease(self._gate, "loading"),
                lambda: Engine(self.model.loaded, **options),  # type: ignore[arg-type]
            )
            self._session = Session(self._engine, self.model.path.name, archives=bool(options["archive"]))
        except BaseException:
            self._quieten()
            raise
        self._warn(n_ctx, n_threads)

    model: Model
    """The model; its other Chats do not matter to this one."""

    @property
    def info(self) -> Info:
        """What was loaded."""
        return self._session.info

    @property
    def engine(self) -> EngineLike:
        """The engine that holds this conversation (docs/engine.md), to look at between two tokens or questions.

        Read from it: its logits, its counters. A call that changes its conversation makes this Chat's answers wrong.
        """
        return self._engine

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation as OpenAI-style messages, a copy: what `complete` takes.

        An image is ``{"type": "image_url", "image_url": {"url": image}}`` with the object that was given; the name of a
        file as a ``pathlib.Path``, a file object as its bytes. A question that is being answered is not among them yet.
        """
        return self._session.messages()

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

    def cancel(self) -> bool:
        """Stops the question that is being answered; may be called by any thread, at any time.

        During the prompt or the answer, its ``ask`` raises CancelledError. A streamed answer ends, whoever reads it:
        the next ``next()`` raises CancelledError. The conversation is as it was before the question. Questions that
        wait for their turn are not meant. Where none is answered, one that is still reading its pictures is meant: it
        ends behind the picture that it is reading. The encoding of a picture stops between two layers of the vision
        tower, the evaluation of a prompt on a CPU between two operations, the compression behind its step.

        Returns:
            Whether there was a question to stop.

        Raises:
            ForkError: This process was forked from the one that made the Chat.
        """
        fork.check(self._pid)
        lease = self._gate.question
        if lease is None:
            return False
        self._cancel(lease)
        return True

    def _cancel(self, lease: Lease) -> None:
        """Stops a question, also one that waits for its turn."""
        lease.cancelled = True
        if self._gate.holder is lease:
            self._engine.cancel()
        stream = lease.stream()
        if stream is not None:
            stream.end(CANCELLED)

    def undo(self, *, timeout: float | None = None) -> None:
        """Drops the last `ask`, or all that the last `complete` added, as if it had never been asked.

        A conversation that a new one has replaced does not come back. The next question brings the engine to that
        point again, exactly: the same tokens, the same cells.

        Args:
            timeout: Seconds to wait for the Chat, as in `ask`.

        Raises:
            StateError: There is none.
            BusyError, ForkError: As for `ask`.
        """
        self._hold("undo()", self._session.undo, checks.timeout(timeout))

    def reset(self, *, timeout: float | None = None) -> None:
        """Forgets the conversation, when the question that is being answered is done; an open stream stays valid.

        Args:
            timeout: Seconds to wait for the Chat, as in `ask`.

        Raises:
            BusyError, StateError, ForkError: As for `ask`.
        """
        self._hold("reset()", self._session.reset, checks.timeout(timeout))

    def close(self, *, timeout: float | None = None) -> None:
        """Frees the cache, when the call that is running is done; and the model, if it is this Chat's alone, or closed
        and without other Chats. May be called again.

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
        for run in list(self._runs):
            run.end(CLOSED)
        try:
            self._gate.hold(Lease(self._gate, "close()"), self._engine.close, seconds, self._end_stream)
        finally:
            self._closing = self._engine.closed
        self._free_model()
        self._quieten()

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)  # missing when __init__ failed
        if engine is not None:
            engine.close()
            self._free_model()
        self._quieten()

    def __reduce__(self) -> Any:
        raise UnsupportedError(
            "a Chat cannot be pickled or copied, since its model lives in this process; make one in each process"
        )

    def __repr__(self) -> str:
        keep, method = self._options.keep, self._options.choice.name
        state = ", closed" if self._engine.closed else ""
        return f"Chat({str(self.model.path)!r}, keep={keep:g}, method={method!r}{state})"

    def _hold(self, what: str, body: Callable[[], Result], timeout: float | None) -> Result:
        """Calls ``body`` with the Chat to itself."""
        fork.check(self._pid)

        def checked() -> Result:
            self._refuse_closed()
            return body()

        return self._gate.hold(Lease(self._gate, what), checked, timeout)

    def _many(self, items: Iterable[Item], n_parallel: int, n_ctx: int | None, options: AskOptions) -> Many:
        fork.check(self._pid)
        self._refuse_closed()
        cells = self.info.n_ctx if n_ctx is None else whole("n_ctx", n_ctx, 0, 2**31 - 1)
        engine = self._engine_options | engine_options("none") | {"archive_path": None}  # nobody asks again
        settings = Settings(self.model, self._options, self._image_urls, engine, cells)
        run = Many(settings, items, n_parallel, options)
        self._runs.add(run)
        return run

    def _refuse_closed(self) -> None:
        if self._closing or self._engine.closed:
            raise StateError("this Chat is closed")

    def _end_stream(self) -> None:
        """Ends a stream that is in the way of `close`."""
        holder = self._gate.holder
        stream = holder.stream() if holder is not None else None
        if stream is not None:
            stream.end(CLOSED)

    def _free_model(self) -> None:
        if self._own:
            self.model.close()

    def _quieten(self) -> None:
        log = getattr(self, "_log", None)
        if log is not None:
            log.close()

    def _warn(self, n_ctx: int | None, n_threads: int | None) -> None:
        """Says what was made of an option, where it is not what was asked for."""
        info = self.info
        if n_ctx and info.n_ctx != n_ctx:
            warning(f"n_ctx={n_ctx} became {info.n_ctx}: llama.cpp takes multiples of 256")
        if n_ctx and info.n_ctx > info.n_ctx_train > 0:
            warning(
                f"n_ctx={n_ctx} is more than the {info.n_ctx_train} tokens that the model was trained with: "
                "answers about what lies behind them can be wrong"
            )
        processors = os.cpu_count() or 1
        if n_threads and n_threads > processors:
            warning(f"n_threads={n_threads} is more than the {processors} processors here, which is slower")
