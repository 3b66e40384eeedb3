"""Saved states and changes of sequences, with models of other kinds than the bundled one: cases of tests/native."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import kinds
import pytest

Program = Callable[[str], Path]

CASES = (
    "state_beside_a_compressed_one",
    "state_of_a_shared_region",
    "damaged_states",
    "damaged_files",
    "random_states",
    "ranges_are_removed_whole",
    "ranges_are_copied_whole",
    "shifts_keep_the_order",
)


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("kind", ["deepseek2", "gemma3", "lfm2", "lfm2-swa", "mamba"])
def test_where_nothing_can_be_compressed_a_state_that_is_is_refused(
    program: Program, tmp_path: Path, kind: str
) -> None:
    run(program("test-aircache"), kinds.save(kind, tmp_path / f"{kind}.gguf"), "uncompressible_memory")


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without M-RoPE: its cells hold fewer numbers, and its positions can be shifted."""
    return kinds.save("qwen3", tmp_path_factory.mktemp("qwen3") / "qwen3.gguf")


@pytest.mark.parametrize("case", CASES)
def test_without_m_rope(program: Program, plain_model: Path, case: str) -> None:
    run(program("test-aircache"), plain_model, case)
