"""Runs test-aircache, the tests of llama-aircache.h in test_*.cpp: a process for every case and mode."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

# The sources tell the cases, so that collecting tests needs no build.
SOURCES = sorted(Path(__file__).parent.glob("test_*.cpp"))
CASES = [case for source in SOURCES for case in re.findall(r'\{ "(\w+)", \1 \}', source.read_text(encoding="utf-8"))]
# What they check has little to do with the cache's type.
ANY_TYPE = {
    "archives_outlive_their_context",
    "budget_rules",
    "cells_are_freed",
    "compress_at_once",
    "compressed_images_are_not_observed",
    "copies_of_what_is_removed",
    "copies_take_what_they_hold",
    "damaged_archives",
    "damaged_files",
    "evicted_cells_are_not_seen",
    "every_fault_once",
    "full_stream",
    "graphs_are_reused",
    "long_answers_before_a_trigger",
    "many_sequences",
    "masked_states",
    "masks_fail_whole",
    "methods",
    "missing_operations",
    "needs",
    "one_sums_up",
    "pooling",
    "query_rows",
    "random_states",
    "ranges_are_copied_whole",
    "ranges_are_removed_whole",
    "ranges_of_all_sequences",
    "refusals",
    "refused_archives",
    "resizing_fails_whole",
    "sequences_are_kept_whole",
    "sinks_and_biases",
    "sizes_of_structs",
    "states_take_what_they_hold",
    "tails_are_given_back",
    "synthetic_cells",
    "synthetic_refusals",
    "tiles",
    "windows_beyond_ram",
}
# They try hundreds of inputs, mode or not.
LONG = {"every_fault_once", "random_states"}
# ggml's RPC client does not survive failing allocations of its own.
NOT_ON_RPC = {"every_fault_once", "masks_fail_whole"}
# Of models without M-RoPE, or whose memory cannot be compressed: tests/engine/test_saved_states.py, test_observation.py
OTHER_MODELS = {"relative_bias", "shifts_keep_the_order", "uncompressible_memory"}
CASES = [case for case in CASES if case not in OTHER_MODELS]

FULL = ["f16 fa", "f32 nofa", "f16 fa threads=2"]
OTHERS = ["f32 fa", "bf16 fa", "q8_0 fa", "q4_0 fa", "f16 nofa", "bf16 nofa"]
RPC = ["q8_0 fa", "f32 nofa"]


def _runs(case: str, mode: str, full: list[str]) -> bool:
    if case in LONG:
        return mode == full[0]
    return mode in full or case not in ANY_TYPE


ON_CPU = [(case, mode) for case in CASES for mode in FULL + OTHERS if _runs(case, mode, FULL)]
ON_RPC = [(case, mode) for case in CASES for mode in RPC if case not in NOT_ON_RPC and _runs(case, mode, RPC)]

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
    assert set(listed.stdout.split()) == {*CASES, *OTHER_MODELS}
    assert set(CASES) >= ANY_TYPE


@pytest.mark.parametrize(("case", "mode"), ON_CPU)
def test_cpu(run: Run, case: str, mode: str) -> None:
    run(case, mode)


@pytest.mark.parametrize(("case", "mode"), ON_RPC)
def test_rpc(run: Run, rpc_server: str, case: str, mode: str) -> None:
    """All layers on a device without host memory."""
    run(case, mode, f"rpc={rpc_server}")
