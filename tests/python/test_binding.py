"""Library lookup, C declarations, error mapping and callbacks: without the library where that is possible."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from cffi import FFI

import pyaircache
from pyaircache import _convert, _engine, _ffi, _status, _structs, errors

HEADER = Path(__file__).parents[2] / "native" / "include" / "pyaircache.h"


@pytest.fixture(scope="module")
def ffi() -> FFI:
    ffi = FFI()
    ffi.cdef(_ffi.declarations(HEADER.read_text(encoding="utf-8")))
    return ffi


@pytest.mark.parametrize(
    ("struct", "cls", "extra"),
    [
        ("pac_info", _structs.Info, set()),
        ("pac_model_info", _structs.ModelInfo, set()),
        ("pac_sampling", _structs.Sampling, {"size"}),
        ("pac_span", _structs.Span, set()),
        ("pac_prompt_info", _structs.PromptInfo, {"n_spans"}),
        ("pac_method", _structs.Method, set()),
        ("pac_stats", _structs.Stats, set()),
        ("pac_message", _structs.Message, set()),
        ("pac_compression", _structs.Compression, {"n_layers", "n_visual"}),
        ("pac_scores", _structs.Scores, {"n_layers", "n_visual", "n_elite"}),
    ],
)
def test_python_fields_are_the_header_s(ffi, struct, cls, extra):
    declared = {name for name, _ in ffi.typeof(f"struct {struct}").fields}
    assert declared == {field.name for field in dataclasses.fields(cls)} | extra


def test_every_status_has_an_error(ffi):
    declared = set(ffi.typeof("enum pac_status").relements) - {"PAC_OK"}
    assert declared == set(_status._ERRORS)


def test_declarations_need_their_markers():
    with pytest.raises(errors.EngineError, match="cffi-begin"):
        _ffi.declarations("int x;")


def test_missing_library(monkeypatch, tmp_path):
    monkeypatch.setenv("PYAIRCACHE_LIB", str(tmp_path))
    with pytest.raises(errors.EngineError, match=r"was not found in .*PYAIRCACHE_LIB"):
        _ffi.find_library()
    library = tmp_path / _ffi.library_name()
    library.write_bytes(b"no library")
    assert _ffi.find_library() == library.resolve()
    monkeypatch.setenv("PYAIRCACHE_LIB", str(library))
    assert _ffi.find_library() == library.resolve()
    with pytest.raises(errors.EngineError, match="cannot be loaded"):
        _ffi._load.__wrapped__()


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
    assert _convert.utf8("größe") == "größe".encode()
    for bad in ("a\0b", "\ud800"):
        with pytest.raises(errors.ArgumentError):
            _convert.utf8(bad)


def test_split():
    parts = _convert.split(np.arange(5, dtype=np.int32), np.array([2, 0, 3], np.int32))
    assert [part.tolist() for part in parts] == [[0, 1], [], [2, 3, 4]]
    assert _convert.split(np.empty(0, np.int32), np.empty(0, np.int32)) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x")])
def test_no_exception_crosses_into_c(ffi, error, capfd):
    calls = []

    def progress(stage: int, done: int, total: int) -> None:
        calls.append((stage, done, total))
        if len(calls) == 2:
            raise error

    callback = _convert.ProgressCallback(ffi, progress)
    assert [callback.pointer(2, i, 9, ffi.NULL) for i in range(3)] == [True, False, False]
    with pytest.raises(type(error)):
        callback.raise_pending()
    callback.raise_pending()  # only once
    assert capfd.readouterr().err == ""


def test_no_progress_function_is_null(ffi):
    assert _convert.ProgressCallback(ffi, None).pointer == ffi.NULL


def test_stages_are_the_header_s():
    assert (_engine.STAGE_LOAD, _engine.STAGE_ENCODE, _engine.STAGE_PREFILL) == (0, 1, 2)
