"""Files of results: JSON lines that survive a crash at any moment."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import IO, Any

from ..errors import ArgumentError
from .lists import Identity, identity_of

STDOUT = "-"


class Results:
    """A file to which results are appended; each is on the disk before the next one is computed.

    What a crash has left of a last line is cut off. A context manager.

    Args:
        name: The file's name; ``"-"``: standard output, which remembers nothing.

    Raises:
        ArgumentError: The file holds something else than results.
        OSError: It cannot be read or written.
    """

    def __init__(self, name: str) -> None:
        self.answered: set[Identity] = set()
        """Questions that have an answer there already."""
        self._file: IO[bytes] | None = None
        if name == STDOUT:
            return
        path = Path(name)
        if path.exists():
            end = self._read(path)
            self._file = path.open("r+b")
            self._file.truncate(end)
            self._file.seek(0, os.SEEK_END)
            if end and not self._ends_with_newline(path, end):
                self._file.write(b"\n")
        else:
            self._file = path.open("xb")
            _sync_folder(path.resolve().parent)

    def _read(self, path: Path) -> int:
        """Reads what is there; returns where its last whole line ends."""
        end = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    result = json.loads(line)
                except (ValueError, RecursionError):
                    if not line.endswith(b"\n"):
                        return end  # half of a line
                    result = None
                identity = identity_of(result) if isinstance(result, dict) else None
                if identity is None and line.strip():
                    raise ArgumentError(
                        f"line {number} of {path} is no result of this command; name another file for the results"
                    )
                if identity is not None and isinstance(result, dict) and "answer" in result:
                    self.answered.add(identity)
                end += len(line)
        return end

    @staticmethod
    def _ends_with_newline(path: Path, end: int) -> bool:
        with path.open("rb") as file:
            file.seek(end - 1)
            return file.read(1) == b"\n"

    def add(self, result: dict[str, Any]) -> None:
        """Appends a result; it is on the disk when this returns."""
        line = json.dumps(result) + "\n"
        if self._file is None:
            sys.stdout.write(line)
            sys.stdout.flush()
            return
        self._file.write(line.encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _sync_folder(folder: Path) -> None:
    """Puts the name of a new file on the disk, where the system can do that."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
