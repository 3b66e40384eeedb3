"""The converter's tests compare with training/export_gguf and tests/reference's models, put on the path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "reference")]

import tiny  # noqa: E402

torch.set_num_threads(1)  # the models are so small that more threads only wait for each other


@pytest.fixture(scope="session")
def made_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen2-VL; tests that change it work on a copy."""
    return tiny.save_tiny(tmp_path_factory.mktemp("tiny") / "tiny-vl", "gqa", seed=3)
