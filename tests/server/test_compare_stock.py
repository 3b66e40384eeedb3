"""compare_stock.py says what it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import compare_stock


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_stock, "NEEDS", ["pytest", "surely_not_there"])
    with pytest.raises(SystemExit, match="need surely_not_there. Install with: .* -m pip install surely_not_there"):
        compare_stock.check()


def test_missing_servers_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compare_stock, "NEEDS", ["pytest"])
    monkeypatch.setattr(compare_stock, "TESTS", tmp_path)
    with pytest.raises(SystemExit, match="no-server does not exist"):
        compare_stock.check(tmp_path / "no-server")
    monkeypatch.setattr(compare_stock, "TESTS", tmp_path / "none")
    with pytest.raises(SystemExit, match="make build"):
        compare_stock.check()
