"""The words for the parts of a method at the C border: what is read, refused, and read back."""

from __future__ import annotations

from typing import Any

import pytest

from pyaircache.engine import library
from pyaircache.engine.selection import named_methods
from pyaircache.methods.method import ALLOCATIONS, KEYS, SCORES
from pyaircache.methods.pool import Pool
from pyaircache.methods.window import Window


class Words:
    """A method, changed and read part by part."""

    def __init__(self) -> None:
        self.ffi, self.lib, _ = library.load()
        self.method = self.ffi.new("struct pac_method *", self.lib.pac_method_default())

    def set(self, part: str, text: str) -> int:
        return self.lib.pac_method_set(self.method, part.encode(), text.encode())

    def get(self, part: str) -> str:
        buffer = self.ffi.new("char[64]")
        n = self.lib.pac_method_get(self.method, part.encode(), buffer, 64)
        assert n == len(self.ffi.string(buffer)), self.error()
        return self.ffi.string(buffer).decode()

    def error(self) -> str:
        return self.ffi.string(self.lib.pac_last_error()).decode()

    def fields(self, *names: str) -> list[Any]:
        return [getattr(self.method, name) for name in names]


@pytest.fixture
def words() -> Words:
    return Words()


def parts(words: Words) -> list[str]:
    res: list[str] = []
    while name := words.lib.pac_method_part(len(res)):
        res.append(words.ffi.string(name).decode())
    return res


WINDOWS = ["elite", "elite:0.5", "elite:1e-3:content", "elite:content:last", "elite:.5:last:content", "last", "last:1"]
WINDOWS += ["last:65536", "text", "text:weighted", "visual", "visual:032", "all"]


@pytest.mark.parametrize("text", WINDOWS)
def test_windows_are_those_of_python(words: Words, text: str) -> None:
    want = Window.parse(text)
    assert words.set("window", text) == 0, words.error()
    fields = want.fields()
    assert words.fields(*fields) == list(fields.values())
    assert Window.parse(words.get("window")) == want


@pytest.mark.parametrize("text", ["none", "max:5", "avg:1", "max:3x3", "avg:65535"])
def test_pools_are_those_of_python(words: Words, text: str) -> None:
    want = Pool.parse(text)
    assert words.set("pool", text) == 0, words.error()
    fields = want.fields() if want else {"pool": 0}
    assert words.fields(*fields) == list(fields.values())
    assert words.get("pool") == text == (str(want) if want else "none")


@pytest.mark.parametrize(("part", "names"), [("allocation", ALLOCATIONS), ("score", SCORES), ("keys", KEYS)])
def test_names_stand_for_their_codes(words: Words, part: str, names: tuple[str, ...]) -> None:
    for code, name in enumerate(names):
        assert words.set(part, name) == 0, words.error()
        assert words.fields(part) == [code] and words.get(part) == name


@pytest.mark.parametrize("part", ["keep", "alpha", "merge", "uniform_share"])
def test_numbers_read_back_to_the_same(words: Words, part: str) -> None:
    for text in ("0.1", "1", "0.123456789", "1e-7", "0.30000000000000004"):
        assert words.set(part, text) == 0, words.error()
        assert words.fields(part) == [float(text)]
        assert float(words.get(part)) == float(text) and len(words.get(part)) <= 24
    assert words.set(part, "0.1") == 0 and words.get(part) == "0.1"


def test_named_methods(words: Words) -> None:
    for name, want in named_methods().items():
        assert words.set("keep", "0.25") == 0 and words.set("method", name) == 0, words.error()
        assert words.fields("keep", "window", "allocation", "pool") == [0.25, want.window, want.allocation, want.pool]
        assert words.get("method") == {"elastic": "h2o", "full": "aircache"}.get(name, name)  # the same parts
    assert words.set("window", "last:7") == 0 and words.get("method") == ""


def test_every_part_is_read_back(words: Words) -> None:
    texts = {"window": "last:9", "pool": "avg:7x7", "allocation": "vl", "score": "attention", "keys": "causal"}
    texts |= {"merge": "0.5", "uniform_share": "0.2", "last_term": "1.5", "value_norm": "on", "diversity": "on"}
    texts |= {"keep": "0.3", "min_keep": "2", "rank": "3", "seed": "4294967295"}
    assert set(parts(words)) == set(texts) | {"alpha", "method"}
    for part, text in texts.items():
        assert words.set(part, text) == 0, words.error()
    assert {part: words.get(part) for part in texts} == texts


WRONG = {
    "window": ["", ":", "elite:", "elite::last", "elite:2", "elite:nan", "elite:last:last", "text:3", "Elite", "é"]
    + ["last:0", "last:1.5", "last: 3", "last:65537", "visual:-1", "all:1"],
    "pool": ["", "max", "max:", "max:4", "max:0", "max:3x5", "max:3x3x3", "sum:3", "max:65537", "none:1"],
    "allocation": ["", "best", "Uniform", "strength+"],
    "keep": ["", "0", "-1", "1.1", "nan", "0x1", " 0.5", "0.5 ", "1e-400", "0,5", "1e999"],
    "seed": ["-1", "4294967296", "1.0", ""],
    "value_norm": ["1", "true", ""],
    "min_keep": ["0", "2147483648"],
    "rank": ["-1"],
    "method": ["best"],
    "merge": ["1.5"],
    "last_term": ["-1", "1e7"],
}


@pytest.mark.parametrize(("part", "text"), [(part, text) for part, texts in WRONG.items() for text in texts])
def test_other_texts_are_refused(words: Words, part: str, text: str) -> None:
    before = bytes(words.ffi.buffer(words.method))
    assert words.set(part, text) == words.lib.PAC_ERR_ARGUMENT
    assert words.error().startswith(part + " must") and len(words.error()) < 250
    assert bytes(words.ffi.buffer(words.method)) == before


def test_parts_that_do_not_fit_together(words: Words) -> None:
    assert words.set("window", "last") == 0
    assert words.set("alpha", "0.5") < 0 and "elite windows" in words.error()
    assert words.set("uniform_share", "0.5") == 0
    assert words.set("allocation", "prefix") < 0 and "uniform_share must be 0" in words.error()
    assert words.get("allocation") == "strength+skewness"


def test_wrong_calls(words: Words) -> None:
    null, lib = words.ffi.NULL, words.lib
    buffer = words.ffi.new("char[8]")
    assert lib.pac_method_set(null, b"window", b"all") < 0 and "null" in words.error()
    assert lib.pac_method_set(words.method, b"colour", b"red") < 0 and "no part 'colour'" in words.error()
    assert lib.pac_method_get(words.method, b"window", null, 8) < 0
    assert lib.pac_method_get(words.method, b"allocation", buffer, 8) < 0 and "17 bytes" in words.error()
    words.method.window = 17
    assert lib.pac_method_get(words.method, b"window", buffer, 8) < 0 and "no code 17" in words.error()
    for call in (lib.pac_method_part, lib.pac_method_part_hint, lib.pac_method_part_help):
        assert call(-1) == null and call(100) == null and call(0) != null
