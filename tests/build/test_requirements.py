"""What pyproject.toml asks for: lower bounds everywhere, and what cmake/requires.py makes of it for pip."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def requires(*names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "cmake" / "requires.py", *names]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def packages(*names: str) -> list[str]:
    return [re.split("[<>=]", line)[0] for line in requires(*names).stdout.split()]


@pytest.mark.parametrize("name", ["convert", "test", "training", "lint", "nox"])
def test_every_requirement_has_a_lower_bound(name: str) -> None:
    lines = requires(name).stdout.split()
    assert len(lines) > 5
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+(>=|==)\d+(\.\d+)+", line)] == []


def test_groups_are_resolved_once() -> None:
    needed = packages("test", "quick", "convert")
    assert {"numpy", "pytest", "torch", "gguf", "protobuf"} <= set(needed)
    assert packages("quick", "quick") == packages("quick")


def test_users_get_no_tools() -> None:
    assert not {"pytest", "mypy", "torch"} & set(packages())


def test_a_group_that_is_none() -> None:
    done = requires("nope")
    assert done.returncode == 1 and "no extra or dependency group 'nope'; there are bench, convert, " in done.stderr
