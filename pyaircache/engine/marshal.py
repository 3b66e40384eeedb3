"""Conversions between C values and Python ones, and callbacks from C into Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import shown, whole
from ..errors import ArgumentError
from ..spans import Size
from . import log
from .structs import Compression, EngineMethod, Scores

Scalar = TypeVar("Scalar", bound=np.generic)

Progress = Callable[[int, int, int], object]
"""Called with (stage, done, total); an exception it raises cancels the call and comes out of it."""


def free_in(free: Callable[[Any], None], getpid: Callable[[], int], pid: int, ptr: Any) -> None:
    """Frees what C made in process ``pid``: in a forked child it would wait for threads that are not there."""
    if getpid() == pid:
        free(ptr)


def text(ffi: Any, pointer: Any) -> str:
    """A C string as str; NULL is empty, bytes that are not UTF-8 become U+FFFD."""
    return "" if pointer == ffi.NULL else ffi.string(pointer).decode("utf-8", "replace")


def utf8(string: str) -> bytes:
    """A str for C.

    Raises:
        ArgumentError: It holds a NUL character or half a surrogate pair, or is no str.
    """
    if not isinstance(string, str):
        raise ArgumentError(f"a text is needed, got {shown(string)}")
    if "\0" in string:
        raise ArgumentError("text must not contain NUL characters")
    try:
        return string.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise ArgumentError(f"text is not valid Unicode: {exc.reason} at position {exc.start}") from None


def array(ffi: Any, pointer: Any, count: int, dtype: type[Scalar]) -> NDArray[Scalar]:
    """A NumPy copy of ``count`` values at ``pointer``: [count]."""
    if count == 0 or pointer == ffi.NULL:
        return np.empty(0, dtype=dtype)
    return np.frombuffer(ffi.buffer(pointer, count * np.dtype(dtype).itemsize), dtype=dtype).copy()


def split(flat: NDArray[Scalar], sizes: NDArray[np.int32]) -> list[NDArray[Scalar]]:
    """Cuts concatenated runs apart: sizes [L] -> L arrays."""
    return [part.copy() for part in np.split(flat, np.cumsum(sizes)[:-1])] if len(sizes) else []


def struct_fields(ffi: Any, struct: Any, cls: type, **ready: Any) -> dict[str, Any]:
    """Constructor arguments of a dataclass from a C struct with the same field names; ``ready`` ones as given."""
    values = dict(ready)
    for field in fields(cls):
        if field.name not in values:
            value = getattr(struct, field.name)
            values[field.name] = text(ffi, value) if isinstance(value, ffi.CData) else value
    return values


def scores_of(ffi: Any, out: Any) -> Scores:
    """A ``struct pac_scores`` as `Scores`."""
    layers, visual = out.n_layers, out.n_visual
    sizes = array(ffi, out.n_elite, layers, np.int32)
    return Scores(
        scores=array(ffi, out.scores, layers * visual, np.float32).reshape(layers, visual),
        elite=split(array(ffi, out.elite, int(sizes.sum()), np.int32), sizes),
        alive=array(ffi, out.alive, layers, np.float64),
        ms=out.ms,
    )


def compression_of(ffi: Any, out: Any) -> Compression:
    """A ``struct pac_compression`` as `Compression`."""
    layers = out.n_layers
    budgets = array(ffi, out.budgets, layers, np.int32)
    ready = {
        "budgets": budgets,
        "kept": split(array(ffi, out.kept, int(budgets.sum()), np.int32), budgets),
        "strength": array(ffi, out.strength, layers, np.float64),
        "skewness": array(ffi, out.skewness, layers, np.float64),
    }
    return Compression(**struct_fields(ffi, out, Compression, **ready))


def int32(name: str, value: object) -> int:
    """A number for C, which checks whether it means something.

    Raises:
        ArgumentError: It is no whole number, or has more than 32 bits.
    """
    return whole(name, value, -(2**31), 2**31 - 1)


def indices(name: str, values: ArrayLike) -> NDArray[np.int32]:
    """Indices for C: int32 [n].

    Raises:
        ArgumentError: They are no whole numbers of 32 bits in one dimension.
    """
    allowed = f"{name} must be whole numbers in one dimension"
    try:
        array = np.asarray(values)
    except Exception:  # lists of different lengths, or objects that do not like to be an array
        raise ArgumentError(f"{allowed}, got {shown(values)}") from None
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ArgumentError(f"{allowed}, got {shown(array)}")
    for bad in array[(array < -(2**31)) | (array >= 2**31)][:1]:
        raise ArgumentError(f"{allowed}, each of 32 bits, got {bad}")
    return array.astype(np.int32)


def set_field(ffi: Any, struct: Any, name: str, value: Any, given: object = None) -> None:
    """Sets a field of a C struct.

    Args:
        ffi: The library's.
        struct: A pointer to it.
        name: The field's.
        value: What cffi takes for it.
        given: What the caller gave for it, if that is something else.

    Raises:
        ArgumentError: The value is not of the field's type, or does not fit into it.
    """
    try:
        setattr(struct, name, value)
    except (OverflowError, TypeError):
        kind = dict(ffi.typeof(struct).item.fields)[name].type
        allowed = _TYPES.get(kind.cname, "a text" if kind.kind == "pointer" else f"a whole number ({kind.cname})")
        raise ArgumentError(f"{name} must be {allowed}, got {shown(value if given is None else given)}") from None


_TYPES = {"float": "a number", "double": "a number", "_Bool": "True or False"}


def c_method(ffi: Any, lib: Any, method: EngineMethod) -> Any:
    """``struct pac_method *`` with the engine's defaults where ``method`` has None.

    Raises:
        ArgumentError: A value is not of its field's type.
    """
    if not isinstance(method, EngineMethod):
        raise ArgumentError(f"method must be an EngineMethod, got {shown(method)}")
    out = ffi.new("struct pac_method *", lib.pac_method_default())
    for name, value in vars(method).items():
        if value is not None:
            set_field(ffi, out, name, value)
    return out


def c_images(ffi: Any, images: Sequence[NDArray[np.uint8] | Size]) -> tuple[Any, list[Any]]:
    """(C array of pac_image, buffers that must outlive it).

    Raises:
        ArgumentError: One is neither an array that C can read nor a size in pixels.
    """
    items = ffi.new("struct pac_image[]", max(len(images), 1))
    buffers = []
    for i, image in enumerate(images):
        if isinstance(image, tuple) and len(image) == 2:
            items[i].width, items[i].height = int32("width", image[0]), int32("height", image[1])
            continue
        contiguous = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.flags.c_contiguous
        if not contiguous or image.ndim not in (3, 4) or image.shape[-1] != 3 or image.shape[0] == 0:
            raise ArgumentError(
                f"the engine takes C-contiguous uint8 images [H, W, 3] and videos [frames, H, W, 3], got {shown(image)}"
            )
        buffers.append(ffi.from_buffer("uint8_t[]", image))
        items[i].n_frames = image.shape[0] if image.ndim == 4 else 0
        items[i].height, items[i].width, items[i].rgb = *image.shape[-3:-1], buffers[-1]
    return items, buffers


def c_params(
    ffi: Any, kind: str, defaults: Any, values: Mapping[str, Any], options: Sequence[str]
) -> tuple[Any, list[Any]]:
    """A struct of parameters: ``defaults``, and ``values`` where they are not None.

    Args:
        ffi: The library's.
        kind: The struct's name.
        defaults: The struct as the engine gives it.
        values: Field names to values; a str becomes a C string as file names are encoded.
        options: Names that a caller may give, for the message.

    Returns:
        (a pointer to the struct, what must live as long as it is used).

    Raises:
        ArgumentError: There is no such field, or a value is not of its type.
    """
    params = ffi.new(f"{kind} *", defaults)
    known = {name for name, _ in ffi.typeof(kind).fields}
    strings = []
    for name, value in values.items():
        if name not in known:
            raise ArgumentError(f"no option is called {shown(name)}; there are {', '.join(options)}")
        given = value
        if isinstance(value, str):
            value = ffi.new("char[]", os.fsencode(value))
            strings.append(value)
        if value is not None:
            set_field(ffi, params, name, value, given)
    return params, strings


class ProgressCallback:
    """A Python function as ``pac_progress_callback``.

    No exception crosses into C: it is stored, the C call is cancelled, and :meth:`raise_pending` raises it afterwards.
    The object must live as long as the C call that uses its pointer.
    """

    def __init__(self, ffi: Any, function: Progress | None) -> None:
        self._pending: BaseException | None = None
        self.pointer: Any = ffi.NULL
        if function is None:
            return

        def call(stage: int, done: int, total: int, user_data: Any) -> bool:
            function(stage, done, total)
            return self._pending is None and not log.interrupted()

        # `onerror` rather than try/except: it also catches a KeyboardInterrupt between two lines of `call`
        self.pointer = ffi.callback("pac_progress_callback", call, error=False, onerror=self._store)

    def _store(self, kind: Any, value: BaseException, traceback: Any) -> None:
        if self._pending is None:
            self._pending = value

    def raise_pending(self) -> None:
        """Raises what the function raised, if it did."""
        pending, self._pending = self._pending, None
        if pending is not None:
            raise pending
