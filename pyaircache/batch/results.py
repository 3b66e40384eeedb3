"""Files of results: JSON lines that survive a crash at any moment."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import IO, Any

from ..errors import ArgumentError
from .lists import Identity, identity_of

if sys.platform != "win32":
    import fcntl

STDOUT = "-"
_BEGINNINGS = b'{"id": ', b'{"key": '  # of what `add` writes


class Results:
    """A file to which results are appended; each is on the disk before the next one is computed.

    What a crash has left of a last line is cut off. One run at a time writes to a file. A context manager.

    Args:
        name: The file's name; ``"-"``: standard output. This and what is no regular file remember nothing.

    Raises:
        ArgumentError: The file holds something else than results, or another run writes to it.
        OSError: It cannot be read or written.
    """

    def __init__(self, name: str) -> None:
        self.answered: set[Identity] = set()
        """Questions that have an answer there already."""
        path = Path(name)
        there = path.exists()
        self.remembers = name != STDOUT and (path.is_file() or not there)
        """Whether results can be read again later."""
        self._file: IO[bytes] | None = None
        if not self.remembers:
            self._file = None if name == STDOUT else path.open("wb")
            return
        self._file = path.open("a+b")
        try:
            self._begin(self._file, path)
            if not there:
                _sync_folder(path.resolve().parent)
        except BaseException:
            self._file.close()
            raise

    def _begin(self, file: IO[bytes], path: Path) -> None:
        """Keeps others away, reads what is there and cuts off half a line."""
        _lock(file, path)
        file.seek(0)
        end, last = 0, b""
        for number, line in enumerate(file, 1):
            if not self._read(line):
                if not line.endswith(b"\n") and _half(line):
                    break
                raise ArgumentError(
                    f"line {number} of {path} is no result of this command; name another file for the results"
                )
            end, last = end + len(line), line
        file.truncate(end)
        if last and not last.endswith(b"\n"):
            file.write(b"\n")

    def _read(self, line: bytes) -> bool:
        """Reads a line; False: it is no result."""
        if not line.strip():
            return True
        try:
            result = json.loads(line)
        except (ValueError, RecursionError):
            return False
        identity = identity_of(result) if isinstance(result, dict) else None
        if identity is None or not ("answer" in result or "error" in result):
            return False
        if "answer" in result:
            self.answered.add(identity)
        return True

    def add(self, result: dict[str, Any]) -> None:
        """Appends a result; it is on the disk when this returns."""
        line = json.dumps(result) + "\n"
        if self._file is None:
            sys.stdout.write(line)
            sys.stdout.flush()
        else:
            self._file.write(line.encode())
            self._file.flush()
            if self.remembers:
                os.fsync(self._file.fileno())
        identity = identity_of(result)
        if identity is not None and "answer" in result:
            self.answered.add(identity)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _half(rest: bytes) -> bool:
    """Whether this is the beginning of a result, and not something whole."""
    try:
        json.loads(rest)
    except (ValueError, RecursionError):
        return any(rest.startswith(one) or one.startswith(rest) for one in _BEGINNINGS)
    return False


def _lock(file: IO[bytes], path: Path) -> None:
    """Keeps other runs away until the file is closed, where the system can do that.

    Raises:
        ArgumentError: Another run has it.
    """
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ArgumentError(f"another run writes to {path}; name another file for the results") from None
    except OSError:  # a file system without locks
        pass


def _sync_folder(folder: Path) -> None:
    """Puts the name of a new file on the disk, where the system can do that."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
