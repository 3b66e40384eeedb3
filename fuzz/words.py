"""The same text through both readers of methods: Python's and llama-server's (window_words.cpp)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pyaircache.errors import ArgumentError
from pyaircache.methods.window import Window


class Server:
    """What llama-server makes of the texts of flags and request fields.

    Args:
        program: window-words, as built.
    """

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def part(self, part: str, text: str) -> str | None:
        """A part as it is read back; None: refused."""
        return (self.parts({part: text}) or {}).get(part)

    def parts(self, texts: dict[str, str]) -> dict[str, str] | None:
        """Several parts, given in this order, as they are read back; None: refused."""
        assert self.process.stdin and self.process.stdout
        words = (f"{part} {text.encode('utf-8', 'surrogatepass').hex() or '-'}" for part, text in texts.items())
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"window-words ended at {texts}"
        return None if line == "-\n" else dict(zip(texts, line.rstrip("\n").split("\t"), strict=True))

    def window(self, text: str) -> str | None:
        """The window as it is read back; None: refused."""
        return self.part("window", text)

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


def python_window(text: str) -> str | None:
    """The same by the package."""
    try:
        return str(Window.parse(text))
    except ArgumentError:
        return None
