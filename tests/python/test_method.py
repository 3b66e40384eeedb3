"""Methods and windows as objects: limits, texts, and the way to the engine and back."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from pyaircache import All, ArgumentError, Elite, Last, Method, Pool, Text, Visual, Window
from pyaircache.engine import selection
from pyaircache.methods.method import ALLOCATIONS, KEYS, SCORES, MethodName

WINDOWS = [
    ("elite:0.9", Elite()),
    ("elite:0.05", Elite(0.05)),
    ("elite:0.5:content:last", Elite(0.5, content_only=True, hold_last=True)),
    ("elite:1:last", Elite(1, hold_last=True)),
    ("last:16", Last(16)),
    ("text", Text()),
    ("text:weighted", Text(weighted=True)),
    ("visual:32", Visual()),
    ("all", All()),
]
POOLS = [("max:5", Pool()), ("avg:7", Pool("avg", 7)), ("max:3x3", Pool("max", 3, grid=True)), ("none", None)]


@pytest.mark.parametrize(("text", "window"), WINDOWS)
def test_windows_are_read_and_written(engine, text, window):
    assert Window.parse(text) == window
    assert str(window) == text
    assert Window.of(Method(window=window).engine(0.1)) == window


def test_short_forms_of_windows(engine):
    assert Window.parse("elite") == Elite()
    assert Window.parse("elite:last") == Elite(hold_last=True)
    assert (Window.parse("last"), Window.parse("visual")) == (Last(32), Visual(32))


@pytest.mark.parametrize("text", ["", "lots", "elite:", "elite:x", "elite:0.9:first", "elite:last:last", "last:",
                                  "last:x", "last:1:2", "text:heavy", "all:1", "visual:1.5", "Elite"])  # fmt: skip
def test_windows_that_are_none(engine, text):
    with pytest.raises(ArgumentError, match="window must "):
        Window.parse(text)


@pytest.mark.parametrize(("text", "pool"), POOLS)
def test_pools_are_read_and_written(engine, text, pool):
    assert Pool.parse(text) == pool
    assert pool is None or str(pool) == text
    assert Pool.of(Method(pool=pool).engine(0.1)) == pool


@pytest.mark.parametrize("text", ["", "max", "max:", "max:3x", "max:3x5", "med:3", "max:-3", "avg:1.5"])
def test_pools_that_are_none(engine, text):
    with pytest.raises(ArgumentError, match="pool must be of the form max:N"):
        Pool.parse(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Elite(0), "alpha must be greater than 0 and at most 1, got 0"),
        (lambda: Elite("0.9"), "alpha must be"),
        (lambda: Elite(0.9, content_only=1), "content_only must be True or False, got 1"),
        (lambda: Elite(0.9, hold_last=None), "hold_last must be True or False"),
        (lambda: Text(weighted="yes"), "weighted must be True or False"),
        (lambda: Last(0), "n must be a whole number from 1 to 65536, got 0"),
        (lambda: Visual(2.5), "n must be a whole number"),
        (lambda: Pool("median"), "pool kind must be one of avg, max; got 'median'"),
        (lambda: Pool("max", 4), "pool size must be odd, got 4"),
        (lambda: Pool("max", 0), "pool size must be a whole number from 1"),
        (lambda: Pool(grid=1), "grid must be True or False"),
        (lambda: Method(window="elite"), r"window must be one of Elite, Last, Text, Visual, All, e.g. Elite\(0.9\)"),
        (lambda: Method(window=Elite), "window must be one of"),
        (lambda: Method(window=Window()), "window must be one of"),
        (lambda: Method(pool="max:5"), r"pool must be a Pool, e.g. Pool\('max', 5\), or None; got 'max:5'"),
        (lambda: Method(score="entropy"), "score must be one of attention, random, stride; got 'entropy'"),
        (lambda: Method(keys="all"), "keys must be one of window, causal"),
        (lambda: Method(allocation=1), "allocation must be one of strength[+]skewness, uniform, pyramid"),
        (lambda: Method(allocation=["vl"]), "allocation must be one of"),
        (lambda: Method(merge=1.1), "merge must be a number of at least 0 and at most 1, got 1.1"),
        (lambda: Method(uniform_share=-0.1), "uniform_share must be a number of at least 0 and at most 1"),
        (lambda: Method(uniform_share=0.2, allocation="prefix"), "uniform_share must be 0 with allocation 'prefix'"),
        (lambda: Method(last_term=float("nan")), "last_term must be a number of at least 0"),
        (lambda: Method(last_term=float("inf")), "last_term must be a number of at least 0"),
        (lambda: Method(value_norm=1), "value_norm must be True or False, got 1"),
        (lambda: Method(diversity="on"), "diversity must be True or False"),
        (lambda: Method(min_keep=0), "min_keep must be a whole number from 1"),
        (lambda: Method(rank=-1), "rank must be a whole number from 0"),
        (lambda: Method(rank=True), "rank must be a whole number from 0"),
        (lambda: Method(seed=2**32), "seed must be a whole number from 0 to 4294967295"),
    ],
)
def test_limits_are_named(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_bools_of_numpy_are_pythons():
    yes = np.bool_(True)
    windows = (Elite(content_only=yes, hold_last=yes), Text(weighted=yes))
    assert [str(one) for one in windows] == ["elite:0.9:content:last", "text:weighted"]
    assert str(Pool("max", 3, grid=yes)) == "max:3x3" and Pool("max", 3, grid=yes).grid is True
    assert Method(value_norm=yes).value_norm is True


def test_methods_are_values():
    assert Method() == Method(window=Elite(0.9)) and hash(Method()) == hash(Method(min_keep=1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Method().seed = 1
    changed = dataclasses.replace(Method(), pool=Pool(), merge=1)
    assert str(changed) == "window=elite:0.9 keys=window pool=max:5 allocation=strength+skewness merge=1"
    assert str(Method(score="stride", diversity=True)) == "score=stride allocation=strength+skewness diversity=True"


# -- with the engine ---------------------------------------------------------------------------------------------------


def test_named_methods_are_the_engines(engine):
    known = selection.named_methods()
    assert list(known) == list(get_args(MethodName))
    assert Method.names() == [name for name in known if name != "full"]
    assert {"aircache", "snapkv", "h2o", "elastic", "prefixkv", "pyramidkv", "vlcache", "random", "stride", "last",
            "full"} <= set(known)  # fmt: skip
    assert Method.named("aircache") == Method()
    for name in set(known) - {"full"}:
        there_and_back = dataclasses.asdict(Method.named(name).engine(known[name].keep))
        sent = {field: value for field, value in there_and_back.items() if value is not None}
        assert sent.items() <= dataclasses.asdict(known[name]).items()
    assert Method.named("pyramidkv") == Method(Last(32), keys="causal", pool=Pool("avg", 5), allocation="pyramid")


def test_defaults_are_the_engines(engine):
    default = dataclasses.asdict(selection.named_methods()["aircache"])
    sent = {field: value for field, value in dataclasses.asdict(Method().engine(0.1)).items() if value is not None}
    assert sent.items() <= default.items()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("magic", "unknown method 'magic'; known methods: aircache, snapkv, "),
        ("full", "same as keep=1.0"),
        (None, "unknown method None"),
    ],
)
def test_names_that_are_no_method(engine, name, message):
    with pytest.raises(ArgumentError, match=message):
        Method.named(name)


def test_codes_are_those_of_the_header():
    header = (Path(__file__).parents[2] / "native" / "include" / "aircache-method.h").read_text(encoding="utf-8")
    codes = {name: int(code) for name, code in re.findall(r"LLAMA_AIRCACHE_([A-Z]+_[A-Z]+) *= (\d)", header)}
    ours = {"SCORE": SCORES, "KEYS": KEYS, "ALLOC": ("aircache", *ALLOCATIONS[1:])}
    for kind, names in ours.items():
        assert {f"{kind}_{name.upper()}": code for code, name in enumerate(names)}.items() <= codes.items()
        assert sum(name.startswith(kind) for name in codes) == len(names)
    for window in Window.__subclasses__():
        assert window().fields()["window"] == codes[f"WINDOW_{window.__name__.upper()}"]
    for kind in ("avg", "max"):
        assert Pool(kind).fields()["pool"] == codes[f"POOL_{kind.upper()}"]
