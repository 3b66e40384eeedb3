"""Finds and loads the engine library; the one place that knows about cffi.

The C declarations come from the engine's own headers (ABI mode), so they cannot drift apart from the library.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

from cffi import FFI

from ..errors import EngineError

HEADERS = ("pyaircache.h", "pyaircache-bench.h")

once = threading.RLock()
"""Held while something is set up that a process has once: functools.cache alone lets two threads do it twice."""
_BEGIN, _END = "// cffi-begin", "// cffi-end"


class Binding(NamedTuple):
    """A loaded engine: its ``FFI`` object, the library, and the file it came from."""

    ffi: Any
    lib: Any
    path: Path


def package_dirs() -> list[Path]:
    """Folders of this package: one when installed; source and build folder in an editable install."""
    package = sys.modules[__package__.partition(".")[0]]
    here = Path(__file__).resolve().parents[1]
    return list(dict.fromkeys([here, *(Path(entry) for entry in package.__path__)]))


def library_name() -> str:
    """File name of the engine library on this platform."""
    if sys.platform == "win32":
        return "pyaircache_engine.dll"
    return f"libpyaircache_engine.{'dylib' if sys.platform == 'darwin' else 'so'}"


def find_library() -> Path:
    """Path of the engine library: ``PYAIRCACHE_LIB`` (a folder or a file) first, then the package's ``lib`` folder.

    Raises:
        EngineError: It is in none of these places.
    """
    override = os.environ.get("PYAIRCACHE_LIB")
    if override:
        path = Path(override)
        candidates = [path if path.is_file() else path / library_name()]
    else:
        candidates = [folder / "lib" / library_name() for folder in package_dirs()]
    for path in candidates:
        if path.is_file():
            return path.resolve()
    places = ", ".join(str(path.parent) for path in candidates)
    raise EngineError(
        f"the engine library {library_name()} was not found in {places}; "
        "reinstall pyaircache, or set PYAIRCACHE_LIB to the folder that holds it"
    )


def find_headers(library: Path) -> list[Path]:
    """The headers that belong to ``library``: beside it, in the package's ``lib`` folder, or in the source tree.

    Raises:
        EngineError: There are none.
    """
    folders = [library.parent, *(folder / "lib" for folder in package_dirs())]
    folders += [folder.parent / "native" / "include" for folder in package_dirs()]
    for folder in folders:
        headers = [folder / name for name in HEADERS]
        if all(header.is_file() for header in headers):
            return headers
    names = " and ".join(HEADERS)
    raise EngineError(f"{names} were not found beside the engine library in {library.parent}; reinstall pyaircache")


def declarations(header: str) -> str:
    """The part of a header between the cffi markers, without export macros.

    Raises:
        EngineError: The markers are missing.
    """
    begin, end = header.find(_BEGIN), header.find(_END)
    if begin < 0 or end < begin:
        raise EngineError(f"a header has no {_BEGIN[3:]} ... {_END[3:]} section; it does not belong to this version")
    return header[begin + len(_BEGIN) : end].replace("PAC_API ", "")


def load() -> Binding:
    """Loads the engine library once per process.

    Raises:
        EngineError: It is missing, or the system's loader refuses it.
    """
    with once:  # the types of one FFI object are unknown to another
        return _load()


@functools.cache
def _load() -> Binding:
    path = find_library()
    ffi = FFI()
    for header in find_headers(path):
        ffi.cdef(declarations(header.read_text(encoding="utf-8")))
    try:
        lib = ffi.dlopen(str(path))
    except OSError as exc:
        raise EngineError(f"the engine library {path} cannot be loaded: {exc}") from exc
    return Binding(ffi, lib, path)
