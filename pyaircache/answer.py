"""Answers: complete ones, and ones that still come in pieces."""

from __future__ import annotations

import codecs
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ._conversation import Turn
from ._engine import Engine
from ._options import Options
from .errors import ContextError, StateError
from .report import Report


class Answer(str):
    """An answer: a ``str`` with the report of how it came about.

    Attributes:
        report: What the question cost and what its compression kept.
    """

    report: Report

    def __new__(cls, text: str, report: Report) -> Answer:
        """Makes an answer of its text and report."""
        answer = super().__new__(cls, text)
        answer.report = report
        return answer

    def __getnewargs__(self) -> tuple[str, Report]:  # type: ignore[override]
        return str(self), self.report


class AnswerStream(Iterator[str]):
    """An answer that is being generated: iterate over it for pieces of text.

    The conversation is busy until the answer is complete or :meth:`close` is called; dropping the stream closes it
    too. What was generated until then counts as the assistant's answer. Usable in a ``with`` statement.
    """

    def __init__(
        self, engine: Engine, turn: Turn, report: Report, options: Options, started: float, done: Callable[[], None]
    ) -> None:
        self._engine, self._turn, self._options = engine, turn, options
        self._report, self._started, self._on_done = report, started, done
        self._utf8: Any = codecs.getincrementaldecoder("utf-8")("replace")
        self._busy_s = 0.0  # time inside this object since the first token
        self._decodes = 0
        self._done = False
        self._mutex = threading.RLock()
        self.owner = threading.get_ident()  # the thread that used it last

    @property
    def report(self) -> Report:
        """The report, once the answer is complete.

        Raises:
            StateError: It is not complete yet.
        """
        if not self._done:
            raise StateError("the report is available once the answer is complete; finish the stream or close it")
        return self._report

    @property
    def answer(self) -> Answer:
        """The text so far; with its report once the answer is complete."""
        return Answer(self._turn.answer, self._report)

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return self._done

    def __iter__(self) -> AnswerStream:
        return self

    def __next__(self) -> str:
        with self._mutex:
            self.owner = threading.get_ident()
            before = len(self._turn.answer)
            try:
                while not self._done and len(self._turn.answer) == before:
                    self._step()
            except BaseException as exc:
                self._finish("error" if isinstance(exc, Exception) else "interrupted")
                raise
            if len(self._turn.answer) == before:
                raise StopIteration
            return self._turn.answer[before:]

    def read(self) -> Answer:
        """Generates the rest of the answer and returns all of it."""
        try:
            for _ in self:
                pass
        except BaseException:
            self._finish("interrupted")  # Ctrl-C between two steps; otherwise finished already
            raise
        return self.answer

    def close(self) -> None:
        """Stops generating. Does nothing when the answer is complete."""
        with self._mutex:
            self._finish("closed")

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "owner"):  # else __init__ failed
            self.close()

    def _step(self) -> None:
        """Appends one token to the answer, or finishes it."""
        began = time.perf_counter()
        tokens = self._turn.tokens
        if tokens:
            try:
                self._engine.decode(tokens[-1])
            except ContextError:
                return self._finish("context")
            self._decodes += 1
        token, end = self._engine.sample(self._options.temperature, self._options.seed)
        now = time.perf_counter()
        if self._report.ms_first_token == 0.0:
            self._report.ms_first_token = (now - self._started) * 1e3
        else:
            self._busy_s += now - began
        if end:
            return self._finish("end")
        tokens.append(token)
        self._turn.answer += self._utf8.decode(self._engine.token_bytes(token))
        if len(tokens) >= self._options.max_tokens:
            self._finish("max_tokens")

    def _finish(self, reason: str) -> None:
        if self._done:
            return
        self._done = True
        try:
            self._turn.answer += self._utf8.decode(b"", final=True)
            report, count = self._report, len(self._turn.tokens)
            report.stop_reason, report.answer_tokens = reason, count
            report.ms_decode = self._busy_s * 1e3
            report.tokens_per_second = self._decodes / self._busy_s if self._busy_s > 0.0 else 0.0
            stats = self._engine.stats()
            report.n_decodes, report.n_graphs_reused = stats.n_decodes, stats.n_graphs_reused
        finally:
            self._on_done()
