"""What a fork leaves of an engine: memory, but none of the threads that computed in it.

A Chat belongs to the process that made it (docs/threads.md). The child of a fork may make its own, with two things to
be taken care of. GNU's OpenMP keeps the worker threads of a thread that has computed, and in the child waits for ever
for those that are gone: so the forking thread gives its workers back before the fork. And a mutex of llama.cpp that
another thread held at that moment stays locked in the child: so the child refuses where one was computing.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from contextlib import suppress
from typing import Any, Protocol

from cffi import FFI

from ..errors import EngineError, ForkError
from . import library

_HARD = 2  # omp_pause_hard


class Watched(Protocol):
    """What keeps threads out of each other's way: a `pyaircache.chat.gate.Gate`."""

    def used_elsewhere(self, thread: int) -> bool:
        """Whether another thread than this one is inside."""


_gates: weakref.WeakSet[Watched] = weakref.WeakSet()
_unsafe = False  # whether this process was forked while another thread was inside the engine


def watch(gate: Watched) -> None:
    """Remembers a gate, to see at a fork whether somebody is inside."""
    _gates.add(gate)


def check(pid: int) -> None:
    """For everything that would use an engine made in process ``pid``.

    Raises:
        ForkError: That is another process than this one.
    """
    if pid != os.getpid():
        raise ForkError(
            f"this Chat was made in process {pid}, and process {os.getpid()} was forked from it: its threads do not "
            "survive a fork. Make a new Chat in the child, or use multiprocessing's start method 'spawn'"
        )


def check_new() -> None:
    """For everything that would make an engine.

    Raises:
        ForkError: This process was forked while another thread was inside the engine library.
    """
    if _unsafe:
        raise ForkError(
            f"process {os.getpid()} was forked while another thread was computing with a Chat, whose locks stay shut "
            "here: fork before the first question, or use multiprocessing's start method 'spawn'"
        )


@functools.cache
def _openmp() -> Any:
    """The OpenMP library that the engine uses, or None."""
    ffi = FFI()
    ffi.cdef("int omp_pause_resource_all(int kind);")
    try:
        lib = ffi.dlopen(str(library.find_library()))  # finds symbols of what it is linked with, too
        return lib if lib.omp_pause_resource_all else None
    except (EngineError, OSError, AttributeError):
        return None


def _before() -> None:
    library.once.acquire()  # if another thread had it, the child would wait for ever
    if library._load.cache_info().currsize and (openmp := _openmp()) is not None:
        openmp.omp_pause_resource_all(_HARD)


def _after() -> None:
    with suppress(RuntimeError):  # an interrupt came before the lock was taken
        library.once.release()


def _after_in_child() -> None:
    global _unsafe
    _after()
    _unsafe = _unsafe or any(gate.used_elsewhere(threading.get_ident()) for gate in _gates)
    _gates.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_in_child)
