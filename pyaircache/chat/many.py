"""Many questions at once: conversations of their own on one context, whose tokens are decoded together."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, cast

from ..checks import shown, whole
from ..engine import fork
from ..engine.pool import EnginePool
from ..engine.protocol import EngineLike, PoolLike
from ..errors import ArgumentError, CancelledError, StateError
from ..images import Picture
from ..progress import callback
from ..report.report import Report
from .answer import CLOSED, Answer, AnswerStream
from .asking import Asking, chosen_options
from .gate import Gate, Lease
from .model import Model
from .options import AskOptions, Options, Unpack, refuse_unknown, says_options
from .session import CANCELLED, Session, unless_cancelled

MOST = 256  # llama.cpp's sequences of a context

Item = tuple[Picture | Sequence[Picture] | None, str] | Mapping[str, Any]
"""A question of `Chat.ask_many`: (image, question), or a mapping with ``image``, ``question`` and its own options."""


@dataclass(frozen=True)
class Answered:
    """A question of `Chat.ask_many` that is done.

    Attributes:
        index: Its place among the questions, from 0.
        item: The question as it was given.
        answer: The answer, with its report; None: there is none.
        error: Why not, as `Chat.ask` would have raised it; None: there is an answer.
    """

    index: int
    item: Any
    answer: Answer | None
    error: Exception | None = None

    @property
    def report(self) -> Report | None:
        """The answer's report; None where there is no answer."""
        return self.answer.report if self.answer is not None else None

    def result(self) -> Answer:
        """The answer.

        Raises:
            Exception: `error`, where there is none.
        """
        if self.answer is None:
            assert self.error is not None
            raise self.error
        return self.answer


@dataclass(frozen=True)
class Settings:
    """What conversations of the pool have from their Chat."""

    model: Model
    options: Options
    image_urls: bool
    engine: Mapping[str, int | str | None]
    """Options of the engine."""
    n_ctx: int


class _Place(Asking):
    """One conversation of the pool, and the question that it is busy with."""

    def __init__(self, engine: EngineLike, settings: Settings) -> None:
        self._gate, self._pid = Gate(), os.getpid()
        self._options, self._image_urls = settings.options, settings.image_urls
        self._engine = engine
        self._session = Session(engine, settings.model.path.name)
        self._question = self._lease()
        self.index = -1
        self.item: Any = None
        self.beginning: Future[AnswerStream] | None = None
        self.stream: AnswerStream | None = None

    @property
    def engine(self) -> EngineLike:
        return self._engine

    @property
    def free(self) -> bool:
        return self.beginning is None and self.stream is None

    def take(self, index: int, item: Any, options: AskOptions, thread: ThreadPoolExecutor) -> None:
        """Begins with a question: what comes before its first token is done in a thread."""
        self.index, self.item = index, item
        self._question = self._lease()
        self.beginning = thread.submit(self._begin, self._question, item, options)

    def _begin(self, lease: Lease, item: Any, options: AskOptions) -> AnswerStream:
        image, question, own = _parts(item)
        refuse_unknown("a question", own)
        return cast(AnswerStream, self._ask(lease, image, question, follow_up=False, stream=True, **{**options, **own}))

    def cancel(self) -> None:
        """Stops the question; may be called by any thread."""
        self._question.cancelled = True
        self._engine.cancel()

    def step(self, decode: Callable[[int], object], began: float) -> None:
        """One token of the answer."""
        assert self.stream is not None
        self.stream.advance(decode, began)

    def decode(self, token: int, error: Exception | None) -> None:
        """What a step of the pool came to.

        Raises:
            Exception: ``error``; a cancel that meant this question.
        """
        if isinstance(error, CancelledError):  # else it meant the question before this one
            unless_cancelled(lambda: self._engine.decode(token), lambda: self._question.cancelled)
        elif error is not None:
            raise error

    def done(self, error: Exception | None) -> Answered:
        """The question's answer or error; the place is free for the next one, and its memory."""
        stream, self.stream, self.beginning = self.stream, None, None
        answer = stream.answer if stream is not None and error is None else None
        with suppress(Exception):  # the next question begins with it, too
            self._session.reset()
        return Answered(self.index, self.item, answer, error)

    def _refuse_closed(self) -> None:
        if self._engine.closed:
            raise StateError(CLOSED)


class Many:
    """Questions that are being answered at the same time.

    One thread reads pictures and evaluates prompts, one question after the other; whoever reads the answers decodes
    meanwhile for all that have begun. `close` and `end` may be called by any thread.

    Args:
        settings: Of the Chat.
        items: The questions, taken as places become free.
        n_parallel: Places, 1 to 256.
        options: Of all questions that name none of their own.

    Raises:
        ArgumentError: A value is outside its limits.
        OutOfMemoryError: There is no room for so many conversations.
        StateError: The Model is closed.
    """

    def __init__(self, settings: Settings, items: Iterable[Item], n_parallel: int, options: AskOptions) -> None:
        n_parallel = whole("n_parallel", n_parallel, 1, MOST)
        if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, Iterable):
            raise ArgumentError(f"the questions must be a list of (image, question), got {shown(items)}")
        if isinstance(items, Sized):
            n_parallel = max(1, min(n_parallel, len(items)))
        refuse_unknown("ask_many()", options, "n_parallel", "n_ctx")
        default, self._options = _defaults(settings.options, options)
        settings = replace(settings, options=default)
        self._items = enumerate(items)
        self._pid = os.getpid()
        self._gate = Gate()  # a fork in the middle of a step is seen by it
        self._ended = ""
        self._closing = threading.Lock()
        self._pool: PoolLike = self._gate.hold(
            Lease(self._gate, "loading"),
            lambda: EnginePool(
                settings.model.loaded,  # type: ignore[arg-type]
                n_parallel,
                **{**settings.engine, "n_ctx": settings.n_ctx},
            ),
        )
        self._places = [_Place(self._pool.engine(), settings) for _ in range(n_parallel)]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pyaircache-prompts")

    def answers(self) -> Iterator[Answered]:
        """The answers, as they are ready. When the generator ends or is closed, everything is."""
        try:
            while self._fill():
                yield from self._begun()
                yield from self._stepped()
                self._refuse_ended()
        finally:
            self.close()

    def end(self, why: str) -> None:
        """Ends it from outside: whoever reads the answers gets a StateError, or a CancelledError for `CANCELLED`."""
        self._ended = why
        for place in self._places:
            place.cancel()

    def close(self) -> None:
        """Stops the questions that are not done, and frees the cache. May be called again; not in a forked child."""
        if self._pid != os.getpid():
            return
        with self._closing:
            for place in self._places:
                place.cancel()
            self._thread.shutdown(wait=True, cancel_futures=True)
            for place in self._places:
                if place.beginning is not None and not place.beginning.cancelled():
                    with suppress(Exception):
                        place.stream = place.beginning.result()
                if place.stream is not None:
                    place.stream.end(CANCELLED)
                place.stream = place.beginning = None
                place.engine.close()
            self._pool.close()

    def _refuse_ended(self) -> None:
        fork.check(self._pid)
        if self._ended:
            raise CancelledError(CANCELLED) if self._ended == CANCELLED else StateError(self._ended)

    def _fill(self) -> bool:
        """Gives free places their next questions; False: all is done."""
        self._refuse_ended()
        for place in self._places:
            if place.free:
                following = next(self._items, None)
                if following is None:
                    break
                place.take(*following, self._options, self._thread)
        return not all(place.free for place in self._places)

    def _begun(self) -> Iterator[Answered]:
        """Takes over the questions whose prompts are done; waits for one where nothing else is to be done."""
        beginnings = [place.beginning for place in self._places if place.beginning is not None]
        if beginnings and not any(place.stream for place in self._places):
            wait(beginnings, return_when=FIRST_COMPLETED)
        for place in self._places:
            if place.beginning is None or not place.beginning.done():
                continue
            try:
                place.stream = place.beginning.result()
                place.beginning = None
            except Exception as exc:
                self._refuse_ended()
                yield place.done(exc)

    def _stepped(self) -> Iterator[Answered]:
        """One token for each answer; those that are done."""
        began = time.perf_counter()
        places = [place for place in self._places if place.stream is not None]
        fed = [(p, token) for p in places if p.stream is not None and (token := p.stream.unseen) is not None]
        lease = Lease(self._gate, "generating answers")
        errors = self._gate.hold(lease, lambda: self._pool.decode([(place.engine, token) for place, token in fed]))
        found = {place.index: error for (place, _), error in zip(fed, errors, strict=True)}
        for place in places:
            error: Exception | None = None
            try:
                place.step(lambda token, p=place: p.decode(token, found[p.index]), began)  # type: ignore[misc]
            except Exception as exc:
                error = exc
            if error is not None:
                self._refuse_ended()
            if error is not None or (place.stream is not None and place.stream.done):
                yield place.done(error)


class AskingMany:
    """The part of `Chat` that asks many questions at once."""

    @says_options
    def ask_many(
        self,
        items: Iterable[Item],
        *,
        n_parallel: int = 8,
        n_ctx: int | None = None,
        **options: Unpack[AskOptions],
    ) -> Iterator[Answered]:
        """Asks independent questions, several at a time; yields their answers as they are ready (docs/many.md).

        Each question is a conversation of its own, beside that of this Chat, which stays as it is: so is what `ask`
        does meanwhile. Answers are those that `ask` would give one by one, up to ties. Their tokens are decoded
        together; prompts are evaluated one after the other, between steps of the others. A picture that several
        questions ask about is encoded once.

        The answers are computed while they are waited for. Ending the loop, or closing the generator, stops the rest.

        Args:
            items: Each is (image, question), as for `ask`, or a mapping with ``image``, ``question`` and any of the
                options below for this one alone. They are taken one by one, as others are done.
            n_parallel: Questions at the same time, 1 to 256. The KV cache takes so many times the context window.
            n_ctx: Context window of each in tokens; None: the Chat's own; 0: the model's own, at most 32768.
            options: Those of `AskOptions`, for all of them. Nobody waits here: ``timeout`` has no effect.

        Yields:
            An `Answered` for each: its index, and an answer or the error that `ask` would have raised.

        Raises:
            ArgumentError: An option of all questions is outside its limits.
            OutOfMemoryError: There is no room for so many conversations.
            StateError: The Chat is closed; also while the answers are read.
            ForkError: This process was forked from the one that made the Chat.
        """
        return self._many(items, n_parallel, n_ctx, options).answers()

    def _many(self, items: Iterable[Item], n_parallel: int, n_ctx: int | None, options: AskOptions) -> Many:
        raise NotImplementedError


def _parts(item: Any) -> tuple[Any, Any, dict[str, Any]]:
    """(image, question, options) of a question.

    Raises:
        ArgumentError: It is something else.
    """
    if isinstance(item, Mapping):
        options = {str(name): value for name, value in item.items()}
        return options.pop("image", None), options.pop("question", None), options
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1], {}
    raise ArgumentError(f"each question must be (image, question), or a mapping with these, got {shown(item)}")


def _defaults(default: Options, options: AskOptions) -> tuple[Options, AskOptions]:
    """What the options of all questions make of a Chat's own: (keep, method and system; the other options).

    Raises:
        ArgumentError: One is outside its limits.
    """
    given: dict[str, Any] = {"keep": None, "method": None, "system": None} | dict(options)
    given.pop("timeout", None)
    callback(given.pop("on_progress", None))
    chosen = chosen_options(default, **given)
    rest = {name: value for name, value in options.items() if name not in ("keep", "method", "system", "timeout")}
    return Options(keep=chosen.keep, choice=chosen.choice, system=chosen.system), cast(AskOptions, rest)
