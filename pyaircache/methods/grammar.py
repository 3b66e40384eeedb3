"""The words for the parts of a method (docs/methods.md): the engine reads them, for Python as for llama-server."""

from __future__ import annotations

from ..checks import shown
from ..engine import library
from ..engine.marshal import struct_fields, utf8
from ..engine.status import check
from ..engine.structs import EngineMethod
from ..errors import ArgumentError


def read(part: str, text: str) -> EngineMethod:
    """AirCache, but for one part.

    Args:
        part: ``"window"``, ``"pool"``, ``"keep"``, ``"alpha"``, ``"allocation"``, ``"merge"`` and so on.
        text: What it becomes, such as ``"elite:0.5:last"``.

    Raises:
        ArgumentError: There is no such part, or it is no such thing; the message begins with the part.
        EngineError: The engine library is missing.
    """
    if not isinstance(text, str):
        raise ArgumentError(f"{part} must be given as a text, got {shown(text)}")
    ffi, lib, _ = library.load()
    method = ffi.new("struct pac_method *", lib.pac_method_default())
    check(lib.pac_method_set(method, utf8(part), utf8(text)))
    return EngineMethod(**struct_fields(ffi, method, EngineMethod))
