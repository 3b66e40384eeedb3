"""Ctrl-C and the standard streams of the command line."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import click

from ..errors import PyAircacheWarning

EXIT_INTERRUPTED = 130
SLOW = "stopping after the picture that is being encoded; press Ctrl-C again to end at once"

_SOON_S = 0.5  # what stops in this time needs no words


def claim_streams() -> None:
    """Opens the null device where a standard stream is closed: else the next file opened would take its place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            os.set_inheritable(descriptor, True)


def give_up(stream: Any) -> None:
    """Points a stream that cannot be written to at the null device, so that Python's end has no trouble with it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def say(message: str) -> None:
    """One line on stderr; nothing when there is none, or nobody reads it."""
    try:
        click.echo(f"pyaircache: {' '.join(message.split())}", err=True)
    except (OSError, ValueError):
        give_up(sys.stderr)


def say_warnings() -> None:
    """Shows this package's warnings as one line each, without the place in its source."""
    shown = warnings.showwarning

    def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, PyAircacheWarning):
            say(f"warning: {message}")
        else:
            shown(message, category, *place, **more)

    warnings.showwarning = show


class Interrupts:
    """Obeys Ctrl-C while the engine computes: Python's own handler has to wait until a call into C returns.

    The first one cancels, and says so when that takes its time; the second one ends the process. A context manager.
    """

    def __init__(self, cancel: Callable[[], object], slow: str = SLOW) -> None:
        self._cancel, self._slow = cancel, slow
        self._over = threading.Event()
        self._previous = -1

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may ask to be told of signals
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._previous = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if not hasattr(self, "_thread"):
            return
        self._over.set()
        signal.set_wakeup_fd(self._previous)
        self._write.close()
        self._thread.join()
        self._read.close()

    def _watch(self) -> None:
        interrupts = 0
        while received := self._read.recv(64):
            for _ in range(received.count(signal.SIGINT)):
                interrupts += 1
                if interrupts > 1:
                    os._exit(EXIT_INTERRUPTED)
                self._cancel()
                threading.Thread(target=self._explain, daemon=True).start()

    def _explain(self) -> None:
        if not self._over.wait(_SOON_S):
            say(self._slow)
