"""The rooms of native/: which folder includes which. Reads sources, builds nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "native"

# A room may include those named, and itself. Each stands below what includes it: no circle.
ALLOWED: dict[str, set[str]] = {
    "policy": set(),
    "cache": set(),
    "graph": {"policy", "cache"},
    "api": {"policy", "cache", "graph"},
}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)
SOURCES = [p for room in ALLOWED for p in sorted((NATIVE / room).glob("*.*"))]


def includes(path: Path) -> Iterator[tuple[str, str]]:
    """Kind (quoted or angled) and name of what a file includes."""
    yield from INCLUDE.findall(path.read_text(encoding="utf-8"))


def relative(path: Path) -> str:
    return str(path.relative_to(NATIVE))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_rooms_include_only_those_below(path: Path) -> None:
    room = path.parent.name
    for kind, name in includes(path):
        if kind != '"' or "/" not in name:
            continue
        assert name.split("/")[0] in ALLOWED[room] | {room}, f"{relative(path)} includes {name}"
        assert (NATIVE / name).is_file(), f"{relative(path)} includes {name}, which is not there"


@pytest.mark.parametrize("path", sorted((NATIVE / "policy").glob("*")), ids=relative)
def test_policies_are_pure(path: Path) -> None:
    """Nothing of llama.cpp, nothing that is exported."""
    quoted = {name for kind, name in includes(path) if kind == '"'}
    assert quoted <= {"policy/policy.h", "aircache-method.h"}
    text = path.read_text(encoding="utf-8")
    assert "LLAMA_API" not in text and 'extern "C"' not in text


def test_no_file_includes_itself_by_others() -> None:
    """Headers in a circle compile by the luck of their guards."""
    graph = {relative(p): [n for _, n in includes(p) if (NATIVE / n).is_file()] for p in NATIVE.rglob("*.h")}

    def visit(name: str, path: list[str]) -> None:
        assert name not in path, " -> ".join([*path, name])
        for below in graph.get(name, []):
            visit(below, [*path, name])

    for name in graph:
        visit(name, [])


def test_llama_cpp_sees_buffers_zones_and_the_graph_input_alone() -> None:
    patches = [ROOT / "patches" / name for name in ("0001-kv-cache-zones.patch", "0002-graph-masks-and-queries.patch")]
    seen = [set(re.findall(r'^\+#include "(\w+/[\w-]+\.h)"', p.read_text(encoding="utf-8"), re.M)) for p in patches]
    assert seen == [{"cache/mapping.h", "cache/zones.h"}, {"graph/input.h"}]
