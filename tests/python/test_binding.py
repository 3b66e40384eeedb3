"""Library lookup, C declarations, error mapping and callbacks: without the library where that is possible."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from cffi import FFI

import pyaircache
from pyaircache import errors
from pyaircache.engine import Engine, bench, engine, library, marshal, status, structs

HEADERS = [Path(__file__).parents[2] / "native" / "include" / name for name in library.HEADERS]


@pytest.fixture(scope="module")
def ffi() -> FFI:
    ffi = FFI()
    for header in HEADERS:
        ffi.cdef(library.declarations(header.read_text(encoding="utf-8")))
    return ffi


@pytest.mark.parametrize(
    ("struct", "cls", "extra"),
    [
        ("pac_info", structs.Info, set()),
        ("pac_model_info", structs.ModelInfo, set()),
        ("pac_sampling", structs.Sampling, {"size"}),
        ("pac_span", structs.Span, set()),
        ("pac_prompt_info", structs.PromptInfo, {"n_spans"}),
        ("pac_method", structs.EngineMethod, set()),
        ("pac_stats", structs.Stats, set()),
        ("pac_bench_info", bench.BenchInfo, set()),
        ("pac_bench_stats", bench.BenchStats, set()),
        ("pac_message", structs.Message, set()),
        ("pac_compression", structs.Compression, {"n_layers", "n_visual"}),
        ("pac_scores", structs.Scores, {"n_layers", "n_visual", "n_elite"}),
    ],
)
def test_python_fields_are_the_header_s(ffi, struct, cls, extra):
    declared = {name for name, _ in ffi.typeof(f"struct {struct}").fields}
    assert declared == {field.name for field in dataclasses.fields(cls)} | extra


def test_every_status_has_an_error(ffi):
    declared = set(ffi.typeof("enum pac_status").relements) - {"PAC_OK"}
    assert declared == set(status._ERRORS)


def test_declarations_need_their_markers():
    with pytest.raises(errors.EngineError, match="cffi-begin"):
        library.declarations("int x;")


def test_missing_library(monkeypatch, tmp_path):
    monkeypatch.setenv("PYAIRCACHE_LIB", str(tmp_path))
    with pytest.raises(errors.EngineError, match=r"was not found in .*PYAIRCACHE_LIB"):
        library.find_library()
    file = tmp_path / library.library_name()
    file.write_bytes(b"no library")
    assert library.find_library() == file.resolve()
    monkeypatch.setenv("PYAIRCACHE_LIB", str(file))
    assert library.find_library() == file.resolve()
    with pytest.raises(errors.EngineError, match="cannot be loaded"):
        library._load.__wrapped__()


def test_errors_form_one_family():
    for name in errors.__all__:
        error = getattr(errors, name)
        assert issubclass(error, errors.PyAircacheError) or error is errors.PyAircacheWarning
        assert getattr(pyaircache, name) is error
        assert str(error("what happened")) == "what happened"
    for error, builtin in [
        (errors.ArgumentError, ValueError),
        (errors.ImageError, ValueError),
        (errors.ImageNotFoundError, FileNotFoundError),
        (errors.ModelNotFoundError, FileNotFoundError),
        (errors.OutOfMemoryError, MemoryError),
    ]:
        assert issubclass(error, builtin)


def test_everything_public_exists():
    for name in pyaircache.__all__:
        assert getattr(pyaircache, name)


def test_text_for_c():
    assert marshal.utf8("größe") == "größe".encode()
    for bad in ("a\0b", "\ud800"):
        with pytest.raises(errors.ArgumentError):
            marshal.utf8(bad)


@pytest.mark.parametrize(
    ("struct", "name", "value", "message"),
    [
        ("pac_engine_params", "n_ctx", 2**40, r"n_ctx must be a whole number \(\w+\), got 1099511627776"),
        ("pac_engine_params", "n_ctx", "many", r"n_ctx must be a whole number \(\w+\), got 'many'"),
        ("pac_method", "keep", "a", "keep must be a number, got 'a'"),
        ("pac_method", "pool_2d", "a", "pool_2d must be True or False, got 'a'"),
        ("pac_sampling", "top_k", 2**40, r"top_k must be a whole number \(int32_t\), got 1099511627776"),
        ("pac_sampling", "grammar", 3, "grammar must be a text, got 3"),
    ],
)
def test_values_that_no_field_holds(ffi, struct, name, value, message):
    with pytest.raises(errors.ArgumentError, match=message):
        if struct == "pac_engine_params":
            marshal.c_params(ffi, f"struct {struct}", {}, {name: value}, [name])
        else:
            marshal.set_field(ffi, ffi.new(f"struct {struct} *"), name, value)


@pytest.mark.parametrize("bad", [[1.7], np.array([1.0]), [[1]], ["a"], [[1], [1, 2]], [2**40], 3, [True]])
def test_indices_that_are_none(bad):
    with pytest.raises(errors.ArgumentError, match="kept must be whole numbers in one dimension"):
        marshal.indices("kept", bad)
    assert marshal.indices("kept", (1, 2)).dtype == np.int32 and marshal.indices("kept", []).size == 0


def test_numbers_that_the_engine_cannot_take(real_chat):
    engine = real_chat.engine
    for call in (
        lambda: Engine(real_chat.model.loaded, n_ctx=2**40),
        lambda: Engine(real_chat.model.loaded, n_ctx="many"),
        lambda: engine.decode(2**40),
        lambda: engine.set_sampling(structs.Sampling(top_k=2**40)),
        lambda: engine.score(structs.EngineMethod(keep="a")),
        lambda: engine.evict([np.array([1.7])]),
        lambda: engine.evict([], merge="a"),
        lambda: engine.evict([], merge=2),
        lambda: engine.evict([], mask_only="a"),
        lambda: engine.compress(structs.EngineMethod(keep=0.5), mask_only=2),
        lambda: engine.score("snapkv"),
        lambda: engine.tokenize("a", special="a"),
        lambda: engine.token_bytes(1, special=[]),
        lambda: engine.apply_template([{"role": "user", "content": "a"}]),
        lambda: engine.apply_template([], add_generation_prompt="a"),
        lambda: engine.layout("a", [(1.5, 2)]),
    ):
        with pytest.raises(errors.ArgumentError, match="must be"):
            call()
    for call in (lambda: engine.tokenize(5), lambda: engine.prompt(b"a")):
        with pytest.raises(errors.ArgumentError, match="a text is needed"):
            call()
    for picture in ("page.png", [[1]], (1, 2, 3), np.zeros((2, 2, 3))):
        with pytest.raises(errors.ArgumentError, match="the engine takes C-contiguous uint8 images"):
            engine.layout("a", [picture])


def test_split():
    parts = marshal.split(np.arange(5, dtype=np.int32), np.array([2, 0, 3], np.int32))
    assert [part.tolist() for part in parts] == [[0, 1], [], [2, 3, 4]]
    assert marshal.split(np.empty(0, np.int32), np.empty(0, np.int32)) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x")])
def test_no_exception_crosses_into_c(ffi, error, capfd):
    calls = []

    def progress(stage: int, done: int, total: int) -> None:
        calls.append((stage, done, total))
        if len(calls) == 2:
            raise error

    callback = marshal.ProgressCallback(ffi, progress)
    assert [callback.pointer(2, i, 9, ffi.NULL) for i in range(3)] == [True, False, False]
    with pytest.raises(type(error)):
        callback.raise_pending()
    callback.raise_pending()  # only once
    assert capfd.readouterr().err == ""


def test_no_progress_function_is_null(ffi):
    assert marshal.ProgressCallback(ffi, None).pointer == ffi.NULL


def test_stages_are_the_header_s():
    assert (engine.STAGE_LOAD, engine.STAGE_ENCODE, engine.STAGE_PREFILL) == (0, 1, 2)
