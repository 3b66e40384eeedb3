"""Answers: complete ones, and ones that still come in pieces."""

from __future__ import annotations

import codecs
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..engine import fork
from ..errors import CancelledError, ContextError, StateError, UnsupportedError
from ..report.report import Report, StopReason
from .gate import Gate, Lease
from .session import CANCELLED, Question, Session, unless_cancelled
from .stops import Stops

CLOSED = "the Chat was closed before this answer was complete"

_LOST = ("cancelled", "interrupted", "error")  # reasons after which the question is no part of the conversation


@dataclass(frozen=True)
class TokenLogprob:
    """A token and how likely it was, by the model alone: before temperature, penalty, grammar and the like.

    Attributes:
        id: Its number in the vocabulary.
        bytes: Its text, which may end inside a character; control tokens have their name.
        logprob: Natural logarithm of its probability, at most 0.
        top: The most likely tokens in its place, most likely first, as many as were asked for; of each of these: none.
    """

    id: int
    bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()

    @property
    def text(self) -> str:
        """Its text; U+FFFD stands for what is no whole character."""
        return self.bytes.decode("utf-8", "replace")


class Answer(str):
    """An answer: a ``str`` with the report of how it came about.

    Attributes:
        report: What the question cost and what its compression kept.
        logprobs: Of each token of the answer how likely it was; empty where ``logprobs`` was not asked for.
    """

    report: Report
    logprobs: list[TokenLogprob]

    def __new__(cls, text: str, report: Report, logprobs: Sequence[TokenLogprob] = ()) -> Answer:
        """Makes an answer of its text and report."""
        answer = super().__new__(cls, text)
        answer.report, answer.logprobs = report, list(logprobs)
        return answer

    def __getnewargs__(self) -> tuple[str, Report, list[TokenLogprob]]:  # type: ignore[override]
        return str(self), self.report, self.logprobs


class AnswerStream(Iterator[str]):
    """An answer that is being generated: iterate over it for pieces of text.

    Any thread may read it, several too: each piece goes to one of them. The Chat is busy until the answer is complete,
    the stream is closed (`close`), cancelled (`Chat.cancel`) or dropped, or its ``with`` block ends. A stream that is
    closed or dropped early leaves what was generated until then as the assistant's answer. One that is cancelled or
    interrupted, that fails, that is dropped before its first token, or whose ``with`` block ends by an exception,
    leaves the conversation as it was before the question.
    """

    def __init__(self, session: Session, question: Question, started: float, lease: Lease, owner: object) -> None:
        self._session, self._question, self._started = session, question, started
        self._lease, self._owner = lease, owner  # the owner, a Chat, must live as long as its engine is used
        self._pid = os.getpid()
        self._steps = Gate()  # one step at a time
        self._utf8: Any = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = Stops(question.options.stop or ())
        self._logprobs: list[TokenLogprob] = []
        self._busy_s = 0.0  # time inside this object since the first token
        self._decodes = 0
        self._done = False
        self._kept = False  # whether the answer is a part of the conversation
        self._ending = ""  # why somebody else wants the stream to end; the last attribute: see __del__

    @property
    def report(self) -> Report:
        """The report, once the answer is complete, or ended in another way.

        Raises:
            StateError: It is not complete yet.
        """
        if not self._done:
            raise StateError("the report is available once the answer is complete; finish the stream or close it")
        return self._question.report

    @property
    def answer(self) -> Answer:
        """The text so far, and how likely its tokens were; with its report once the answer is complete."""
        return Answer(self._question.turn.answer, self._question.report, self._logprobs)

    @property
    def done(self) -> bool:
        """Whether the answer is complete, or ended in another way."""
        return self._done

    def __iter__(self) -> AnswerStream:
        return self

    def __next__(self) -> str:
        """The next piece of text.

        Raises:
            CancelledError: `Chat.cancel` was called.
            StateError: The Chat was closed before the answer was complete.
            ForkError: The stream belongs to the process that this one was forked from.
            KeyboardInterrupt: Ctrl-C.
        """
        fork.check(self._pid)
        try:
            return self._steps.hold(Lease(self._steps, "reading a streamed answer"), self._advance)
        finally:
            self._obey()  # what was asked of the stream while it was in the step

    def read(self) -> Answer:
        """Generates the rest of the answer and returns all of it; raises what `__next__` raises."""
        try:
            for _ in self:
                pass
        except BaseException as exc:
            self._finish(_reason(exc))  # Ctrl-C between two steps; otherwise finished already
            raise
        return self.answer

    def close(self) -> None:
        """Stops generating; what was generated is the answer. Does nothing when the answer is complete."""
        self._close("closed")

    def end(self, why: str) -> None:
        """Ends the stream from outside, at once or after the step that a thread is in: `CANCELLED` or `CLOSED`."""
        self._ending = why
        self._obey()

    @property
    def unseen(self) -> int | None:
        """The answer's last token, which the engine has not seen yet; None where there is none yet, or none follows."""
        tokens = self._question.turn.tokens
        return tokens[-1] if tokens and not self._done else None

    def advance(self, decode: Callable[[int], object], began: float) -> None:
        """Generates one token, for those who decode for several answers at once.

        Args:
            decode: Lets the engine see `unseen`; raises what `Engine.decode` raises.
            began: When the work for this token began, by ``time.perf_counter``.

        Raises:
            CancelledError, StateError, ForkError: As `__next__`.
        """
        fork.check(self._pid)

        def one() -> None:
            self._guarded(lambda: self._step(decode, began))
            self._refuse_ended()

        self._steps.hold(Lease(self._steps, "generating an answer"), one)

    def abandon(self, exc: BaseException) -> None:
        """Ends a stream that does not reach its caller: the question never was."""
        self._finish(_reason(exc))

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        self._close("closed" if kind is None else "interrupted")

    def __del__(self) -> None:
        if hasattr(self, "_ending"):  # else __init__ failed
            # One without a token was lost on its way to the caller, by a Ctrl-C: nobody has dropped an answer
            self._close("closed" if self._question.turn.tokens else "interrupted")

    def __reduce__(self) -> Any:
        raise UnsupportedError("a streamed answer belongs to its process: read() it and pass the answer on")

    def _close(self, reason: StopReason) -> None:
        if self._pid == os.getpid():  # a forked child leaves its parent's stream alone
            self._steps.hold(Lease(self._steps, "closing a streamed answer"), lambda: self._finish(reason))

    def _obey(self) -> None:
        if not self._ending or self._done:
            return
        # A thread in the middle of a step makes this a BusyError, and comes here afterwards
        with suppress(StateError):
            self._steps.hold(Lease(self._steps, "ending a streamed answer"), self._finish_as_asked, timeout=0)

    def _finish_as_asked(self) -> None:
        self._finish("cancelled" if self._ending == CANCELLED else "closed")

    def _advance(self) -> str:
        """One piece of text; the caller holds `_steps`."""
        turn = self._question.turn
        before = len(turn.answer)

        def piece() -> None:
            while not self._done and len(turn.answer) == before:
                self._step()

        self._guarded(piece)
        if len(turn.answer) > before:
            return turn.answer[before:]
        self._refuse_ended()
        raise StopIteration

    def _guarded(self, steps: Callable[[], None]) -> None:
        """Calls what generates, unless the answer has ended; what it raises ends it. The caller holds `_steps`."""
        if not self._done and self._ending:  # readers who queue for their steps must not keep it open
            self._finish_as_asked()
        if not self._done and not self._held:
            self._finish("interrupted")
        if self._done:
            return
        outside, self._lease.thread = self._lease.thread, threading.get_ident()
        try:
            steps()
        except BaseException as exc:
            self._finish(_reason(exc))
            raise
        finally:
            self._lease.thread = outside

    def _refuse_ended(self) -> None:
        """Raises what somebody else ended the stream with, before the answer was complete."""
        if self._done and self._ending and not self._complete:
            raise CancelledError(CANCELLED) if self._ending == CANCELLED else StateError(self._ending)

    @property
    def _complete(self) -> bool:
        return self._question.report.stop_reason in ("end", "stop", "max_tokens", "context")

    def _step(self, decode: Callable[[int], object] | None = None, began: float | None = None) -> None:
        """Appends one token to the answer, or finishes it."""
        began = time.perf_counter() if began is None else began
        engine, turn = self._session.engine, self._question.turn
        options, report, tokens = self._question.options, self._question.report, turn.tokens
        if tokens:
            try:
                (decode or self._decode)(tokens[-1])
            except ContextError:
                return self._finish("context")
            self._decodes += 1
        elif self._lease.cancelled:
            raise CancelledError(CANCELLED)
        token, end = engine.sample()
        now = time.perf_counter()
        if report.ms_first_token == 0.0:
            report.ms_first_token = (now - self._started) * 1e3
        else:
            self._busy_s += now - began
        if end:
            return self._finish("end")
        tokens.append(token)
        if options.logprobs is not None:
            self._logprobs.append(self._likely(token, options.logprobs))
        piece = self._utf8.decode(engine.token_bytes(token))
        turn.answer += self._stops.push(piece, whole=not self._utf8.getstate()[0])
        if self._stops.hit:
            self._finish("stop")
        elif len(tokens) >= options.max_tokens:
            self._finish("max_tokens")

    def _decode(self, token: int) -> None:
        unless_cancelled(lambda: self._session.engine.decode(token), lambda: self._lease.cancelled)

    def _likely(self, token: int, n: int) -> TokenLogprob:
        """How likely a token was that the engine has just drawn, and the n most likely ones."""
        engine = self._session.engine
        found = engine.logprobs(n, token)
        assert found.value is not None
        top = [
            TokenLogprob(one, engine.token_bytes(one, special=True), value)
            for one, value in zip(found.ids.tolist(), found.values.tolist(), strict=True)
        ]
        return TokenLogprob(token, engine.token_bytes(token, special=True), found.value, tuple(top))

    def _finish(self, reason: StopReason) -> None:
        """Ends the answer, the first time; gives the Chat back, every time: an interrupt may have come before that."""
        try:
            try:
                if not self._done:
                    self._done = True
                    self._conclude(reason)
                elif not self._kept and reason in _LOST:
                    self._question.report.stop_reason = reason
            finally:
                self._let_go()
        except BaseException:
            self._let_go()
            raise

    def _let_go(self) -> None:
        self._lease.gate.release(self._lease)
        self._owner = None

    @property
    def _held(self) -> bool:
        """Whether the Chat is still this stream's: else the next question may be at the engine already."""
        return self._lease.gate.holder is self._lease

    def _conclude(self, reason: StopReason) -> None:
        # The place is gone when `ask` failed while an exception's frames keep the stream, or when the garbage collector
        # found the stream in a cycle: it clears the queue's weak reference before it finalises
        held = self._held
        if not held and reason not in _LOST:
            reason = "interrupted"
        turn, report = self._question.turn, self._question.report
        report.answer_tokens = len(turn.tokens)
        if self._stops.hit:
            # The engine may have seen the stop text's tokens: `Session` puts it right where it has
            whole, report.answer_tokens, turn.tail = self._stops.cut(turn.answer)
            del turn.tokens[whole:], self._logprobs[report.answer_tokens :]
        else:
            turn.answer += self._stops.rest() + self._utf8.decode(b"", final=True)
        report.stop_reason = reason
        report.ms_decode = self._busy_s * 1e3
        report.tokens_per_second = self._decodes / self._busy_s if self._busy_s > 0.0 else 0.0
        if held:
            stats = self._session.engine.stats()
            report.n_decodes, report.n_graphs_reused = stats.n_decodes, stats.n_graphs_reused
        if reason not in _LOST:
            self._session.commit(self._question)
            self._kept = True


def _reason(exc: BaseException) -> StopReason:
    if isinstance(exc, CancelledError):
        return "cancelled"
    return "error" if isinstance(exc, Exception) else "interrupted"
