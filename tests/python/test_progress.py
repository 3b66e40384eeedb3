"""The progress line: on a terminal only, and only for what takes long."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from pyaircache import progress


class Terminal(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        count = super().write(text)
        if "encoding images" in text:
            self.written.set()
        return count


def test_nothing_in_a_pipe(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "_DELAY_S", 0.0)
    with progress.ProgressLine() as line:
        line(2, 1, 2)
        line(2, 2, 2)
    assert stream.getvalue() == ""


def test_nothing_without_stderr(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with progress.ProgressLine() as line:
        line(0, 1, 1000)


@pytest.mark.parametrize(("delay", "shown"), [(0.0, True), (60.0, False)])
def test_stages_on_a_terminal(monkeypatch, delay, shown):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "_DELAY_S", delay)
    with progress.ProgressLine() as line:
        for stage in (0, 1, 2, 9):
            line(stage, 0, 4)
            line(stage, 4, 4)
    text = stream.getvalue()
    assert bool(text) is shown
    for label in ("loading model", "encoding images", "reading prompt", "working"):
        assert (label in text) is shown
    assert not text.strip(" \r\n").endswith("working")  # nothing is left on the line


def test_line_appears_during_one_long_step(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "_DELAY_S", 0.05)
    with progress.ProgressLine() as line:
        line(1, 0, 1)
        assert stream.written.wait(30)
    assert stream.getvalue().rstrip(" ").endswith("\r")
