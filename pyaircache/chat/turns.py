"""Whose turn it is among tasks of asyncio: one at a time, in the order of coming."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ..errors import BusyError, StateError

_CLOSED = "this AsyncChat is closed"


class Turns:
    """A queue of tasks. Threads that waited in the Chat's own queue instead would be in the way of its answer."""

    def __init__(self) -> None:
        self.closed = False
        """Nobody gets a turn any more."""
        self.lock = asyncio.Lock()
        self.holder = ""
        """For messages: what is being done."""


class Turn:
    """A turn, which the ``async with`` block has, or what `keep` was called for.

    Raises:
        BusyError: It did not come in time.
        StateError: The AsyncChat is closed.
    """

    def __init__(self, turns: Turns, what: str, timeout: float | None) -> None:
        self._turns, self._what, self._timeout = turns, what, timeout
        self._kept = False

    async def __aenter__(self) -> Turn:
        turns, began = self._turns, time.monotonic()
        if self._timeout is None or not turns.lock.locked():
            await turns.lock.acquire()
        else:
            try:
                await asyncio.wait_for(turns.lock.acquire(), self._timeout)
            except asyncio.TimeoutError:
                raise BusyError(
                    f"this AsyncChat is busy after {time.monotonic() - began:.3g} s with {turns.holder}; "
                    "wait longer, close the stream, or cancel()"
                ) from None
        if turns.closed:
            turns.lock.release()
            raise StateError(_CLOSED)
        turns.holder = self._what
        return self

    async def __aexit__(self, *exc: object) -> None:
        if not self._kept:
            self._turns.lock.release()

    def keep(self) -> Callable[[], None]:
        """The turn outlives the block; returns what gives it back."""
        self._kept = True
        return self._turns.lock.release
