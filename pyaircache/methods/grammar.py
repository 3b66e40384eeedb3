"""The words for the parts of a method (docs/methods.md): the engine reads them, for Python as for llama-server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..checks import shown
from ..engine import library
from ..engine.marshal import c_method, struct_fields, utf8
from ..engine.marshal import text as text_of
from ..engine.status import check
from ..engine.structs import EngineMethod
from ..errors import ArgumentError


@dataclass(frozen=True)
class Part:
    """A part of a method.

    Attributes:
        name: As flags, fields of requests and options of the command line have it.
        hint: One word for its values.
        help: What it is and may be, in one line.
    """

    name: str
    hint: str
    help: str


def parts() -> list[Part]:
    """All of them, the method first, in an order in which a set of them can be read.

    Raises:
        EngineError: The engine library is missing.
    """
    ffi, lib, _ = library.load()
    found: list[Part] = []
    while lib.pac_method_part(index := len(found)) != ffi.NULL:
        calls = (lib.pac_method_part, lib.pac_method_part_hint, lib.pac_method_part_help)
        found.append(Part(*(text_of(ffi, call(index)) for call in calls)))
    return found


def read(part: str, text: str) -> EngineMethod:
    """AirCache, but for one part.

    Args:
        part: The name of one of `parts`.
        text: What it becomes, such as ``"elite:0.5:last"``.

    Raises:
        ArgumentError: There is no such part, or it is no such thing; the message begins with the part.
        EngineError: The engine library is missing.
    """
    ffi, lib, _ = library.load()
    return _changed(ffi.new("struct pac_method *", lib.pac_method_default()), {part: text})


def changed(method: EngineMethod, texts: Mapping[str, str]) -> EngineMethod:
    """A method with other parts: their texts by their names.

    Raises:
        ArgumentError: There is no such part, it is no such thing, or they do not fit together.
        EngineError: The engine library is missing.
    """
    ffi, lib, _ = library.load()
    order = [part.name for part in parts()]
    ordered = sorted(texts, key=lambda name: order.index(name) if name in order else -1)
    return _changed(c_method(ffi, lib, method), {name: texts[name] for name in ordered})


def _changed(method: object, texts: Mapping[str, str]) -> EngineMethod:
    ffi, lib, _ = library.load()
    for part, text in texts.items():
        if not isinstance(text, str):
            raise ArgumentError(f"{part} must be given as a text, got {shown(text)}")
        check(lib.pac_method_set(method, utf8(part), utf8(text)))
    return EngineMethod(**struct_fields(ffi, method, EngineMethod))
