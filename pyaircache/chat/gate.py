"""Who may use an engine: one at a time, in the order of coming, whatever interrupts them."""

from __future__ import annotations

import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from ..engine import fork
from ..errors import BusyError, PyAircacheWarning, StateError

Result = TypeVar("Result")

_LOOK_S = 1.0  # how often a waiter looks by itself: a wake-up may be lost when an interrupt hits who should send it
_IDLE_S = 15.0  # after this long behind a stream that nobody reads, a waiter says so


class Lease:
    """A place in a gate's queue: whose place is the first one may go through.

    It is in the queue, or it is not: there is no moment between taking the place and knowing of it in which an
    interrupt could leave the gate shut. The queue holds leases weakly, so that a forgotten one opens it as well.
    """

    __slots__ = ("__weakref__", "caller", "cancelled", "gate", "question", "ref", "stream", "thread", "turn", "what")

    def __init__(self, gate: Gate, what: str, *, question: bool = False) -> None:
        self.gate = gate
        self.question = question
        """Whether this is a question, which can be cancelled."""
        self.what = what
        """For messages: what the holder does."""
        self.thread: int | None = None
        """The thread that is inside, at this moment; None: waiting, or held by an object that nobody is calling."""
        self.caller: int | None = None
        """The thread whose call this is, waiting or inside; None: held by an object, which any thread may use."""
        self.stream: Callable[[], Any] = lambda: None
        """A weak reference to the streamed answer that holds the lease, if one does."""
        self.cancelled = False
        self.turn = threading.Lock()
        self.turn.acquire()
        self.ref = weakref.ref(self)

    def __del__(self) -> None:
        gate = getattr(self, "gate", None)
        if gate is not None:
            gate.wake()


class Gate:
    """A queue of leases. Only single steps of C (append, remove, a slice) touch it."""

    def __init__(self) -> None:
        self._queue: list[weakref.ref[Lease]] = []
        self._preparing: list[weakref.ref[Lease]] = []
        fork.watch(self)

    @property
    def holder(self) -> Lease | None:
        """Whose turn it is, if anybody's."""
        while first := self._queue[:1]:
            lease = first[0]()
            if lease is not None:
                return lease
            with suppress(ValueError):  # another thread was faster
                self._queue.remove(first[0])
        return None

    @contextmanager
    def preparing(self, lease: Lease) -> Iterator[None]:
        """While its block runs, `question` finds the lease before it has a place in the queue, too."""
        self._preparing.append(lease.ref)
        try:
            yield
        finally:
            with suppress(ValueError):
                self._preparing.remove(lease.ref)

    @property
    def question(self) -> Lease | None:
        """The question that is inside; else the first that is being prepared and does not wait for its turn yet."""
        for _ in range(2):  # one may come in between the two looks
            first = self.holder
            if first is not None and first.question:
                return first
            for ref in self._preparing[:]:
                lease = ref()
                if lease is not None and ref not in self._queue:
                    return lease
        return None

    def hold(
        self,
        lease: Lease,
        body: Callable[[], Result],
        timeout: float | None = None,
        waiting: Callable[[], object] = lambda: None,
    ) -> Result:
        """Calls ``body`` when it is the lease's turn, and lets the next one in afterwards.

        Args:
            lease: A new one.
            body: What is to be done.
            timeout: Seconds to wait for the turn; None: for ever.
            waiting: Called before each wait.

        Raises:
            BusyError: The time is over, or the wait could never end.
            StateError: The thread is inside already, or waits in the queue already.
        """
        try:
            try:
                self._wait(lease, timeout, waiting)
                return body()
            finally:
                self.release(lease)
        except BaseException:
            self.release(lease)  # once more: an interrupt may have come in the middle of the release above
            raise

    def enter(self, lease: Lease, body: Callable[[], Result], timeout: float | None = None) -> Result:
        """As `hold`, but the lease stays with what ``body`` returned; released only when something is raised."""
        try:
            try:
                self._wait(lease, timeout)
                result = body()
                lease.thread = lease.caller = None
                return result
            except BaseException:
                self.release(lease)
                raise
        except BaseException:
            self.release(lease)
            raise

    def release(self, lease: Lease) -> None:
        """Gives a place back; may be called again, by any thread."""
        with suppress(ValueError):
            self._queue.remove(lease.ref)
        lease.thread = None
        self.wake()

    def wake(self) -> None:
        """Lets the first of the queue look whether it is the first."""
        first = self.holder
        if first is not None:
            with suppress(RuntimeError):  # it has been told already
                first.turn.release()

    def _wait(self, lease: Lease, timeout: float | None, waiting: Callable[[], object] = lambda: None) -> None:
        began = time.monotonic()
        warned = False
        lease.caller = threading.get_ident()
        self._queue.append(lease.ref)
        self._refuse_nested(lease)
        while True:
            waiting()
            first = self.holder
            if first is lease:
                lease.thread = lease.caller
                return
            waited = time.monotonic() - began
            if first is not None:
                warned = self._look(first, waited, timeout, warned)
            # The loop must not hold on to a lease of somebody else: a forgotten one is to vanish
            first = None
            lease.turn.acquire(timeout=_LOOK_S if timeout is None else max(0.0, min(_LOOK_S, timeout - waited)))

    def _refuse_nested(self, lease: Lease) -> None:
        """Refuses a call from the middle of another one of the same thread, which would wait for itself."""
        for ref in self._queue[:]:
            earlier = ref()
            if earlier is lease:
                return
            if earlier is not None and lease.caller in (earlier.thread, earlier.caller):
                raise StateError(
                    "a policy must not use the Chat that called it, nor may a signal handler or a callback: "
                    f"this thread is in the middle of {earlier.what}"
                )

    @staticmethod
    def _look(first: Lease, waited: float, timeout: float | None, warned: bool) -> bool:
        """Refuses a wait that is over or cannot end; returns whether a slow one has been spoken of."""
        idle = first.thread is None and first.stream() is not None
        # Nobody is left who could read the stream: a wait would be one for ever
        alone = idle and len(sys._current_frames()) == 1
        if alone or (timeout is not None and waited >= timeout):
            how = "" if alone else f" after {waited:.3g} s"
            what = f"{first.what}, which is still open" if idle else first.what
            advice = "read the stream to its end, close() it, or call cancel()" if idle else "wait longer, or cancel()"
            raise BusyError(f"this Chat is busy{how} with {what}; {advice}")
        if idle and not warned and waited >= _IDLE_S:
            warnings.warn(
                f"waiting for {first.what} of this Chat, which nobody is reading at the moment: "
                "it holds the Chat until it is read to its end, closed or cancelled",
                PyAircacheWarning,
                stacklevel=2,
            )
            return True
        return warned

    def used_elsewhere(self, thread: int) -> bool:
        """Whether another thread than this one is inside."""
        first = self.holder
        return first is not None and first.thread not in (None, thread)
