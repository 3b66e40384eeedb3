"""Both benchmarks from option to table and JSON, on an engine of paper: no library needed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_common
import memory
import numpy as np
import overhead
import pytest
from click.testing import CliRunner
from random_gguf import PRESETS

ROW = 2 * 64 * 2  # bytes of K and V in F16: one KV head of 64 values
LAYERS, TEXT = PRESETS["tiny"].layers, 30


class PaperEngine:
    """Answers the calls that the benchmarks make; counts cells, takes no time."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.cells = 0
        self.decodes = 0

    def close(self) -> None: ...

    def reset(self) -> None: ...

    def marker(self) -> str:
        return "<image>"

    def apply_template(self, messages: list[Any]) -> str:
        return messages[0].content

    def prompt(self, text: str, images: list[np.ndarray], reserve: int, observe: bool) -> SimpleNamespace:
        assert text.count("<image>") == len(images)
        self.visual = sum(image.shape[0] * image.shape[1] for image in images) // 28**2
        self.cells = LAYERS * (self.visual + TEXT)
        self.observed = observe
        prefill = 1004.0 if observe else 1000.0
        return SimpleNamespace(n_tokens=self.visual + TEXT, n_visual=self.visual, ms_prefill=prefill, ms_encode=9.0)

    def compress(self, method: Any) -> tuple[None, SimpleNamespace]:
        assert self.observed
        budgets = np.full(LAYERS, int(method.keep * self.visual), np.int32)
        self.cells = int(budgets.sum()) + LAYERS * TEXT
        return None, SimpleNamespace(budgets=budgets, ms_score=3.0, ms_evict=2.0)

    def sample(self) -> tuple[int, bool]:
        return 0, False

    def decode(self, token: int) -> None:
        self.decodes += 1

    def logits(self) -> np.ndarray:
        return np.zeros(1, np.float32)

    def stats(self) -> SimpleNamespace:
        bytes_in_use = self.cells * ROW
        return SimpleNamespace(
            kv_bytes=bytes_in_use,
            kv_bytes_reserved=bytes_in_use,
            kv_bytes_allocated=bytes_in_use,
            n_decodes=self.decodes,
            n_graphs_reused=max(self.decodes - 1, 0),
        )


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Any, *options: str) -> tuple[str, dict]:
    monkeypatch.setattr(bench_common, "CACHE", tmp_path)
    monkeypatch.setattr(bench_common, "Engine", PaperEngine)
    monkeypatch.setattr(bench_common, "version", lambda: "paper")
    path = tmp_path / "out.json"
    result = CliRunner().invoke(script.main, ["--preset", "tiny", "--visual", "200", "--json", str(path), *options])
    assert result.exit_code == 0, result.output
    assert str(tmp_path) not in path.read_text()
    return result.output, json.loads(path.read_text())


def test_overhead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output, data = run(monkeypatch, tmp_path, overhead, "--rounds", "3")
    assert data["figures"]["overhead (% of plain)"]["median"] == pytest.approx(0.9)
    assert len(data["rounds"]) == 3
    assert "overhead (% of plain)" in output


@pytest.mark.parametrize("options", [("--keep", "1"), ("--rounds", "0"), ("--visual", "3")])
def test_limits_are_named(options: tuple[str, str]) -> None:
    result = CliRunner().invoke(overhead.main, list(options))
    assert result.exit_code == 2
    assert f"got {options[1]}" in result.output


@pytest.mark.parametrize(("load", "warned"), [(0.5, False), (4.0, True)])
def test_a_busy_machine_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load: float, warned: bool) -> None:
    monkeypatch.setattr(bench_common, "machine", lambda: {"cpu": "paper", "cores": 2, "load": load, "system": "none"})
    output, _ = run(monkeypatch, tmp_path, overhead)
    assert ("the machine was busy" in output) == warned


def test_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(memory, "process_memory", lambda: (next(sizes), 10**9))
    output, data = run(monkeypatch, tmp_path, memory, "--tokens", "2", "--sequences", "0")
    assert list(data["bytes"]) == ["empty", "full prompt", "compressed", "at the end"]
    evicted = data["bytes"]["full prompt"]["KV read"] - data["bytes"]["compressed"]["KV read"]
    assert data["given back"] == pytest.approx(10**6 / evicted)
    assert "RSS gave back" in output
