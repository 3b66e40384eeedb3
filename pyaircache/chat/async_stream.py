"""A streamed answer for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from ..report.report import Report
from .answer import Answer, AnswerStream
from .turns import Turns

Result = TypeVar("Result")
Run = Callable[[Callable[[], Any], Callable[[], object]], Awaitable[Any]]
"""``run(call, cancel)``: calls something in the Chat's thread; a task that is cancelled meanwhile cancels it."""


class AsyncAnswerStream(AsyncIterator[str]):
    """An answer that is being generated: ``async for`` over it for pieces of text; see `AnswerStream`.

    The AsyncChat is busy until it ends: read to its end, closed, cancelled, dropped, or its ``async with`` block over.
    A task that is cancelled while it waits for a piece cancels the question.
    """

    def __init__(
        self, run: Run, turns: Turns, cancel: Callable[[], object], stream: AnswerStream, release: Callable[[], None]
    ) -> None:
        self._run, self._turns, self._cancel, self._stream = run, turns, cancel, stream
        self._loop = asyncio.get_running_loop()
        self._release: Callable[[], None] | None = release

    @property
    def report(self) -> Report:
        """See `AnswerStream.report`."""
        return self._stream.report

    @property
    def answer(self) -> Answer:
        """See `AnswerStream.answer`."""
        return self._stream.answer

    @property
    def done(self) -> bool:
        """See `AnswerStream.done`."""
        return self._stream.done

    def __aiter__(self) -> AsyncAnswerStream:
        return self

    async def __anext__(self) -> str:
        """The next piece of text; raises what `AnswerStream.__next__` raises."""
        piece = await self._call(lambda: next(self._stream, None))
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def read(self) -> Answer:
        """Generates the rest of the answer and returns all of it."""
        return await self._call(self._stream.read)

    async def close(self) -> None:
        """Stops generating; what was generated is the answer. Does nothing when the answer is complete."""
        await self._call(self._stream.close)

    async def __aenter__(self) -> AsyncAnswerStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._call(lambda: self._stream.__exit__(*exc))

    def __del__(self) -> None:
        if getattr(self, "_release", None) is None:
            return
        self._stream.close()
        with suppress(RuntimeError):  # the loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(self._let_go())

    async def _call(self, call: Callable[[], Result]) -> Result:
        try:
            if self._stream.done or self._turns.closed:  # needs no thread, and there may be none any more
                return call()
            return await self._run(call, self._cancel)
        finally:
            self._let_go_if_done()

    def _let_go_if_done(self) -> None:
        if self._stream.done and self._release is not None:
            self._let_go()()

    def _let_go(self) -> Callable[[], None]:
        release, self._release = self._release, None
        assert release is not None
        return release
