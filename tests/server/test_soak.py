"""A short run of bench/server_soak.py: what 10,000 requests look for, in 200."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import server_soak  # noqa: E402


def test_many_kinds_of_requests_at_once(program: Callable[[str], Path], f32_model: Path) -> None:
    result = server_soak.soak(program("llama-server"), f32_model, requests=200, warm_up=0, slots=8, small=1)
    assert result["wrong"] == 0, result["first_wrong"]
    assert result["slots_still_busy"] == 0
    assert result["server_alive"]
    # all kinds were there, and the answers could differ
    assert set(result["kinds"]) == set(server_soak.KINDS)
    assert sum(result[outcome] for outcome in ("right", "cancelled", "killed", "refused")) == 200
    assert result["different_answers"] > 20
