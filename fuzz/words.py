"""The same text through both readers of windows: Python's and llama-server's (window_words.cpp)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pyaircache.errors import ArgumentError
from pyaircache.methods.window import Window


class Server:
    """What llama-server makes of a window's text.

    Args:
        program: window-words, as built.
    """

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def window(self, text: str) -> str | None:
        """The window as it is read back; None: refused."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(text.encode("utf-8", "surrogatepass").hex() + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"window-words ended at {text!r}"
        return None if line == "-\n" else str(Window.parse(line.rstrip("\n")))  # in Python's digits

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


def python_window(text: str) -> str | None:
    """The same by the package."""
    try:
        return str(Window.parse(text))
    except ArgumentError:
        return None
