"""The rooms of the package: who may import whom, and no module that imports itself in the end."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
from pathlib import Path

import pytest

import pyaircache

PACKAGE = Path(pyaircache.__file__).parent

# From the ground up: a room imports only from those before it, and from its own.
ORDER = ["errors", "checks", "images", "engine", "progress", "model_files"]
ORDER += ["methods", "report", "chat", "convert", "cli"]


def modules() -> dict[str, Path]:
    """All modules of the package but those of llama.cpp's converter, which the build puts there."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in ("lib", "bin", "data"):
            found[".".join(["pyaircache", *(part for part in parts if part != "__init__")])] = path
    return found


MODULES = modules()


def imports(name: str) -> set[str]:
    """Modules of the package that a module's code imports, when it is imported or when it runs; types aside."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(_without_types(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES else base)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {one for one in found if one in MODULES} - {name}


def _without_types(tree: ast.Module) -> ast.Module:
    class Drop(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)

    return Drop().visit(tree)


def room(name: str) -> str:
    return (name.split(".") + [""])[1]


def test_modules_import_in_a_circle_nowhere() -> None:
    graphlib.TopologicalSorter({name: imports(name) for name in MODULES}).prepare()


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) in ORDER])
def test_a_room_imports_from_those_before_it(name: str) -> None:
    allowed = {*ORDER[: ORDER.index(room(name)) + 1]}
    for other in imports(name):
        assert room(other) in allowed or (room(name), other) == ("cli", "pyaircache"), f"{name} imports {other}"


def test_every_module_has_a_room() -> None:
    assert {room(name) for name in MODULES} - {"", "__main__"} == {*ORDER}
