"""Memory from outside: what the system says of the process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pyaircache.report.process import process_memory


def test_status_is_read(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nThreads:\t1\n")
    assert process_memory(status) == (1024 * 1024, 2048 * 1024)


def test_other_systems_say_nothing(tmp_path: Path) -> None:
    assert process_memory(tmp_path / "none") == (0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the file is Linux's")
def test_this_process() -> None:
    now, peak = process_memory()
    assert 0 < now <= peak
