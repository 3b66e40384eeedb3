"""The rooms of the package: who may import whom; types that can be looked up; reports that need nothing else."""

from __future__ import annotations

import ast
import inspect
import os
import pickle
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyaircache
from pyaircache import Answer, Method, Report, Span, TokenLogprob
from pyaircache.engine import CacheType, library, log
from pyaircache.methods import MethodName
from pyaircache.methods.method import ALLOCATIONS

PACKAGE = Path(pyaircache.__file__).parent

# Each may import those before it
ORDER = ["errors", "checks", "spans", "images", "engine", "progress", "model_files", "samples"]
ORDER += ["methods", "report", "chat", "batch", "bench"]
ABOVE = {"convert", "cli", "__main__"}


def imports() -> Iterator[tuple[str, str]]:
    """(module, what it imports) as names behind the package's own, imports inside functions left out."""
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in ("lib", "bin"):
            continue
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.level:
                base = parts[: len(parts) - node.level]
                for alias in node.names:
                    yield ".".join(parts), ".".join([*base, *([node.module] if node.module else []), alias.name])
            elif isinstance(node, ast.ImportFrom):
                yield ".".join(parts), f"/{node.module}"
            elif isinstance(node, ast.Import):
                yield from ((".".join(parts), f"/{alias.name}") for alias in node.names)


def test_rooms_import_only_what_lies_below_them():
    for module, imported in imports():
        here, there = module.split(".")[0], imported.split(".")[0]
        if imported.startswith("/") or here == "__init__" or here in ABOVE or here == there:
            continue
        assert there in ORDER and ORDER.index(there) < ORDER.index(here), f"{module} imports {imported}"
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == {*ORDER, *ABOVE}


def test_reports_need_numpy_and_pillow_only():
    for module, imported in imports():
        if module.startswith("report.") and imported.startswith("/"):
            root = imported[1:].partition(".")[0]
            assert root in {"numpy", "PIL"} or root in sys.stdlib_module_names, f"{module} imports {imported}"
        elif module.startswith("report."):
            assert imported.split(".")[0] in {"report", "checks", "errors", "images", "spans"}, f"{module}: {imported}"


def make_report() -> Report:
    values = np.arange(12, dtype=np.float32).reshape(2, 6)
    return Report(
        keep=0.5,
        method="aircache",
        alpha=0.9,
        layers=2,
        visual_tokens=6,
        budgets=np.array([3, 3], np.int32),
        kept=[np.array([0, 2, 4], np.int32)] * 2,
        scores=values,
        spans=[Span(0, 3, 6, 3, 2)],
    )


def test_a_pickled_answer_needs_no_library(tmp_path):
    answer = Answer("42", make_report(), [TokenLogprob(1, b"42", -0.5)])
    (tmp_path / "answer.pickle").write_bytes(pickle.dumps(answer))
    script = """
import pickle, sys
from pathlib import Path
answer = pickle.loads(Path(sys.argv[1]).read_bytes())
report = answer.report
assert answer == "42" and answer.logprobs[0].text == "42" and "6 of 12" in repr(report)
assert report.ranked(1).tolist() == [5, 5] and report.divergence([1, 1]) == 0
assert report.kept_per_token.tolist() == [1, 0, 1, 0, 1, 0] and report.to_dict()["keep"] == 0.5
print("read")
"""
    environment = {**os.environ, "PYAIRCACHE_LIB": str(tmp_path / "nowhere")}
    run = [sys.executable, "-c", script, str(tmp_path / "answer.pickle")]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "read\n", done.stderr


def public() -> Iterator[Any]:
    """Everything public that has hints: classes, and the functions and methods of these."""
    for module in (pyaircache, pyaircache.engine, pyaircache.methods, pyaircache.chat):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing):
                yield thing
                yield from (one for key, one in vars(thing).items() if inspect.isfunction(one) and key[:2] != "__")
                yield from (one.fget for one in vars(thing).values() if isinstance(one, property))
                if inspect.isfunction(thing.__init__):
                    yield thing.__init__
            elif inspect.isfunction(thing):
                yield thing


def test_type_hints_can_be_looked_up():
    for thing in public():
        if getattr(thing, "__module__", "").startswith("pyaircache"):
            typing.get_type_hints(thing)
    assert typing.get_type_hints(pyaircache.Chat.__init__)["cache_type_k"] == CacheType


def test_closed_sets_are_the_engines(engine: library.Binding):
    assert [*Method.names(), "full"] == list(typing.get_args(MethodName))
    assert all(Method.named(name).allocation in ALLOCATIONS for name in Method.names())
    assert log.logger.name == "pyaircache"


def test_budgets_of_a_method(engine: library.Binding):
    report = make_report()
    assert Method(allocation="uniform").budgets(report.scores, 0.5).tolist() == [3, 3]
    assert Method(allocation="strength").budgets(report.scores, 0.5).sum() == 6
    with pytest.raises(pyaircache.ArgumentError, match="keep"):
        Method().budgets(report.scores, 0)
