"""Runs test_aircache.cpp, the tests of llama-aircache.h: a process for every case and mode."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

# The source tells the cases, so that collecting tests needs no build.
SOURCE = Path(__file__).with_name("test_aircache.cpp").read_text(encoding="utf-8")
CASES = re.findall(r'\{ "(\w+)", \1 \}', SOURCE)
# What they check has little to do with the cache's type.
ANY_TYPE = {"budget_rules", "cells_are_freed", "evicted_cells_are_not_seen", "graphs_are_reused", "methods", "refusals"}

FULL = ["f16 fa", "f32 nofa"]
OTHERS = ["f32 fa", "bf16 fa", "q8_0 fa", "q4_0 fa", "f16 nofa", "bf16 nofa"]
RPC = ["q8_0 fa", "f32 nofa"]

ON_CPU = [(case, mode) for case in CASES for mode in FULL + OTHERS if mode in FULL or case not in ANY_TYPE]

Run = Callable[..., None]


@pytest.fixture
def run(program: Callable[[str], Path], f32_model: Path) -> Run:
    """Runs one case; fails with what it wrote."""

    def run_case(case: str, mode: str, *server: str) -> None:
        command = [program("test-aircache"), f32_model, case, *mode.split(), *server]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{case}, {mode}: exit code {done.returncode}\n{done.stderr[-4000:]}"

    return run_case


def test_all_cases_are_known(program: Callable[[str], Path]) -> None:
    listed = subprocess.run([program("test-aircache"), "--list"], capture_output=True, text=True, check=True)
    assert sorted(listed.stdout.split()) == sorted(CASES)
    assert set(CASES) >= ANY_TYPE


@pytest.mark.parametrize(("case", "mode"), ON_CPU)
def test_cpu(run: Run, case: str, mode: str) -> None:
    run(case, mode)


@pytest.mark.parametrize("mode", RPC)
@pytest.mark.parametrize("case", CASES)
def test_rpc(run: Run, rpc_server: str, case: str, mode: str) -> None:
    """All layers on a device without host memory."""
    run(case, mode, rpc_server)
