"""docs/api.md is what the docstrings say now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pyaircache

DOCS = Path(__file__).resolve().parents[2] / "docs"
spec = importlib.util.spec_from_file_location("make_api", DOCS / "make_api.py")
assert spec is not None and spec.loader is not None
make_api = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_api)


def test_the_page_is_up_to_date() -> None:
    assert (DOCS / "api.md").read_text(encoding="utf-8") == make_api.page(), "run `make docs-api`"


def test_everything_public_is_on_it() -> None:
    page = make_api.page()
    names = [name for name in pyaircache.__all__ if not name.startswith("_")]
    assert not [name for name in names if f"### {name}\n" not in page and f"| `{name}` |" not in page]
