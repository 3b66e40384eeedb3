"""README.md's pictures and tables are drawn from what was measured."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMG = ROOT / "docs" / "img"
README, QUALITY = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/quality.md"))
spec = importlib.util.spec_from_file_location("plots", IMG / "plots.py")
assert spec is not None and spec.loader is not None
plots = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plots)


@pytest.fixture
def decode() -> dict[str, Any]:
    return json.loads((IMG / "decode.json").read_text(encoding="utf-8"))


def test_pictures(decode: dict[str, Any], tmp_path: Path) -> None:
    plots.draw_gain(decode, tmp_path / "gain.png")
    plots.draw_cost(*plots.quality(QUALITY), tmp_path / "cost.png")
    for name in ("gain.png", "cost.png"):
        assert (tmp_path / name).stat().st_size > 5000 and (IMG / name).is_file()


def test_table_of_speed(decode: dict[str, Any]) -> None:
    assert f"{plots.BEGIN}\n{plots.table(decode)}\n{plots.END}" in README


def test_table_of_quality() -> None:
    pages, rows = plots.quality(QUALITY)
    assert pages >= 100 and (rows[0].method, rows[0].keep) == ("full", 1)
    assert {row.method for row in rows} >= set(plots.COLOURS)
    assert all(row.low <= row.exact <= row.high for row in rows)
    with pytest.raises(ValueError, match="no table"):
        plots.quality("")


def test_results_of_the_benchmark_are_gathered() -> None:
    line = {"model": "tiny", "pp": 1024, "pl": 1, "type_k": "f16", "n_threads": 1, "kv_bytes_read": 5_000_000}
    line |= {"engine": "1", "cpu": "a processor", "cpu_step_ms": 100.0}
    data = plots.gathered([line | {"keep": 1.0}, line | {"keep": 0.1}])
    assert data["points"][0]["context"] == 1024
    assert "| 1024 | 10.0 | 10.0 | 1.00 times | 5.0 MB | 5.0 MB |" in plots.table(data)
