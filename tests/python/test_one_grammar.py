"""One grammar: a text means the same in Python, on the command line, at the C border and in llama-server, or nowhere.

Texts are those of fuzz/corpus/grammar and what hypothesis makes up. llama-server's flags and request fields are read by
the program window-words, which is made of the server's own files.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyaircache import ArgumentError, Elite, Method, Pool, Window
from pyaircache.cli import options
from pyaircache.cli.ask import ask
from pyaircache.engine import library
from pyaircache.methods import grammar
from pyaircache.methods.method import ALLOCATIONS, KEYS, SCORES
from pyaircache.methods.window import number_text

FUZZ = Path(__file__).resolve().parents[2] / "fuzz"
sys.path.insert(0, str(FUZZ))

import words  # noqa: E402

FIELDS = ["keep", "method", "alpha", "window", "allocation"]
"""Those of the corpus, in the order of fuzz/grammar.cpp."""

WORDS = ["method", "score", "window", "keys", "pool", "allocation"]
SHARES = ["keep", "alpha", "uniform_share", "merge"]
SWITCHES = ["value_norm", "diversity"]
COUNTS = ["min_keep", "rank", "seed"]
PARTS = [*WORDS, *SHARES, "last_term", *SWITCHES, *COUNTS]
"""All parts of the grid."""

PIECES = ["elite", "last", "text", "visual", "all", "content", "weighted", "max", "avg", "none", "uniform", "strength"]
PIECES += ["+skewness", "snapkv", ":", ".", "0", "5", "33", "1e-3", "on", "off", "-"]
PIECES += ["+", " ", "_", "x", "\0", "٣", "\udc80"]
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), st.text(max_size=10))


def corpus() -> dict[str, list[str]]:
    """Texts of fuzz/corpus/grammar by field."""
    found: dict[str, list[str]] = {field: [] for field in FIELDS}
    for file in sorted((FUZZ / "corpus" / "grammar").iterdir()):
        for line in file.read_bytes().split(b"\n"):
            if line and line[0] < 128 and line[0] % 6 < len(FIELDS):
                found[FIELDS[line[0] % 6]].append(line[1:].decode("utf-8", "surrogateescape"))
    return {field: sorted(set(texts)) for field, texts in found.items()}


CORPUS = corpus()


@pytest.fixture(scope="module")
def server(engine: library.Binding, program: Callable[[str], Path]) -> Iterator[words.Server]:
    """llama-server's reader."""
    reader = words.Server(program("window-words"))
    yield reader
    reader.close()


def border(part: str, text: str) -> str | None:
    """What pac_method_set reads, as pac_method_get writes it; None: refused."""
    ffi, lib, _ = library.load()
    method, buffer = ffi.new("struct pac_method *", lib.pac_method_default()), ffi.new("char[64]")
    data = text.encode("utf-8", "surrogatepass")
    if b"\0" in data or lib.pac_method_set(method, part.encode(), data) != lib.PAC_OK:  # a C string would end there
        return None
    assert lib.pac_method_get(method, part.encode(), buffer, 64) >= 0
    return str(ffi.string(buffer).decode())


def python(part: str, text: str) -> str | None:
    """What Python's own classes say to it, written by them."""
    try:
        if part == "window":
            return str(Window.parse(text))
        if part == "pool":
            return str(Pool.parse(text) or "none")
        if part == "method":
            Method.named(text)
            return border("method", text)  # a name of the same parts
        value = getattr(Method.of(grammar.read(part, text)), part) if part not in ("keep", "alpha") else None
        if value is None:
            return border(part, repr(getattr(grammar.read(part, text), part)))
        return as_text(value)
    except ArgumentError:
        return "aircache" if (part, text) == ("method", "full") else None  # no point of the grid, but keep=1


def as_text(value: Any) -> str:
    """A field of a Method in the grammar's words."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return number_text(value) if isinstance(value, float) else str(value)


def command_line(part: str, text: str) -> str | None:
    """What the options of `pyaircache ask` make of it."""
    try:
        said = options.chosen({part: text}, None)
    except ArgumentError:
        return None
    if part in ("keep", "alpha"):
        return border(part, repr(said[part]))
    if part == "method":
        return border(part, said["method"])
    return as_text(getattr(said["method"], part) if getattr(said["method"], part) is not None else "none")


def agree(server: words.Server, part: str, text: str) -> None:
    here = python(part, text)
    assert here == border(part, text)
    held = server.part(part, text)
    assert here == (held if part != "method" or held is None else border(part, held))
    if part not in ("method", "seed"):  # --seed is a number, of the answer as well
        assert here == command_line(part, text)


def test_the_grid_is_the_same_everywhere(engine: library.Binding) -> None:
    assert sorted(part.name for part in grammar.parts()) == sorted(PARTS)
    fields = {one.name for one in dataclasses.fields(Method)}
    assert fields == set(PARTS) - {"keep", "method", "alpha"}  # Chat's keep and method; alpha is of the window
    command = {one.name for one in ask.get_params(click.Context(ask))}
    assert set(PARTS) <= command


def test_the_servers_flags_are_the_grid(engine: library.Binding, program: Callable[[str], Path]) -> None:
    shown = subprocess.run([program("llama-server"), "--help"], capture_output=True, text=True, check=True).stdout
    flags = set(re.findall(r"--aircache-([a-z-]+)", shown))
    assert {*PARTS, "request_fields"} <= {name.replace("-", "_") for name in flags}
    for part in grammar.parts():
        flag = part.name.replace("_", "-")
        assert f"--aircache-{flag} {part.hint}" in shown and f"LLAMA_ARG_AIRCACHE_{part.name.upper()}" in shown


GRID = {"score": "stride", "window": "last:7", "keys": "causal", "pool": "avg:3x3", "allocation": "vl"}
GRID |= {"last_term": "2.5", "value_norm": "on", "diversity": "on", "uniform_share": "0.25", "min_keep": "3"}
GRID |= {"rank": "2", "merge": "0.125", "seed": "77"}


def test_all_parts_together(server: words.Server) -> None:
    method = options.chosen({part: text for part, text in GRID.items() if part != "seed"}, None)["method"]
    assert {part: as_text(getattr(method, part)) for part in GRID} == GRID | {"seed": "0"}
    assert Method.of(grammar.changed(Method().engine(1.0), GRID)) == dataclasses.replace(method, seed=77)
    assert server.parts(GRID) == GRID


def test_the_order_of_options_does_not_matter(server: words.Server) -> None:
    texts = {"alpha": "0.5", "score": "attention", "window": "elite:0.9:last", "method": "random"}
    for one in (texts, dict(reversed(texts.items()))):
        assert server.parts(one)["window"] == "elite:0.5:last"
        assert options.chosen(one, None)["method"].window == Elite(0.5, hold_last=True)


@pytest.mark.parametrize("part", FIELDS)
def test_the_corpus(server: words.Server, part: str) -> None:
    assert len(CORPUS[part]) > 10
    for text in CORPUS[part]:
        agree(server, part, text)


@pytest.mark.parametrize(
    ("part", "text"), [("method", "random\0"), ("window", "all\0"), ("allocation", "vl\0"), ("keep", "0.5\0")]
)
def test_nothing_is_cut_at_a_nul(server: words.Server, part: str, text: str) -> None:
    assert (python(part, text), server.part(part, text)) == (None, None)


@pytest.mark.parametrize("part", PARTS)
@settings(max_examples=24)
@given(text=TEXTS)
def test_made_up_texts(server: words.Server, part: str, text: str) -> None:
    agree(server, part, text)


@given(st.floats(0.0, 1.0, exclude_min=True, width=32).filter(lambda value: value > 1e-30))
def test_numbers_mean_themselves(server: words.Server, value: float) -> None:
    for part in ("keep", "alpha"):
        assert getattr(grammar.read(part, repr(value)), part) == value
        agree(server, part, repr(value))
    window = Window.parse(f"elite:{value!r}")
    assert Window.parse(str(window)) == window and str(window) == border("window", f"elite:{value!r}")


@pytest.mark.parametrize(("part", "names"), [("allocation", ALLOCATIONS), ("score", SCORES), ("keys", KEYS)])
def test_the_engines_words_are_those_of_the_types(engine: library.Binding, part: str, names: tuple[str, ...]) -> None:
    for code, name in enumerate(names):
        assert getattr(grammar.read(part, name), part) == code
    with pytest.raises(ArgumentError, match=f"{part} must be one of {', '.join(names)}, got".replace("+", "[+]")):
        grammar.read(part, "magic")


def test_what_is_no_text(engine: library.Binding) -> None:
    for text in (None, 5, b"elite", ["elite"]):
        with pytest.raises(ArgumentError, match="window must be given as a text"):
            grammar.read("window", text)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="no part 'colour'"):
        grammar.read("colour", "red")
