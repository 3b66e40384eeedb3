"""The folder to convert: what must be right before the converter starts, and what is never opened."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import checks
from ..checks import named
from ..errors import ConversionError, ModelNotFoundError

_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LONGEST_HEADER = 100_000_000  # bytes; the safetensors library's own limit


@dataclass(frozen=True)
class Source:
    """A folder whose safetensors are all there."""

    folder: Path
    name: str
    """What to call the model: the folder's name, or the repository's in a Hugging Face cache."""
    types: set[str]
    """Types of the weights (tensors of two and more dimensions), as safetensors call them."""
    from_cache: bool
    """Whether the folder's own name is a hash."""
    has_mtp: bool
    """Whether there are heads that predict several tokens at once."""


def open_source(folder: str | os.PathLike[str]) -> Source:
    """Checks a model folder; reads its configuration and the headers of its weights, nothing else.

    Raises:
        ArgumentError: It is no path.
        ModelNotFoundError: There is no such folder.
        ConversionError: It is no model folder, has no safetensors, or they are damaged or incomplete.
    """
    folder = checks.path("the model folder", folder)
    path = Path(os.path.abspath(folder))
    try:
        found = path.exists()
    except OSError as exc:
        raise ConversionError(f"model folder {named(folder)} cannot be read: {exc.strerror or exc}") from exc
    folder = named(folder)
    if not found:
        hint = "; models are not downloaded, name a folder" if str(folder).count("/") == 1 else ""
        raise ModelNotFoundError(f"model folder {folder} does not exist{hint}")
    if not path.is_dir():
        raise ConversionError(f"{folder} is a file; give the folder that holds config.json and *.safetensors")
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise ConversionError(f"{folder} is an adapter (LoRA): merge it into its base model and save that first")
        raise ConversionError(f"{folder} has no config.json: it is not a Hugging Face model folder")
    _read_json(path / "config.json")
    tensors: dict[str, dict[str, Any]] = {}
    for file in _weight_files(path):
        tensors |= _header(file)
    types = {str(one["dtype"]) for one in tensors.values() if len(one["shape"]) > 1}
    name, from_cache = _name(path)
    return Source(path, name, types, from_cache, any("mtp" in key.split(".") for key in tensors))


def _name(path: Path) -> tuple[str, bool]:
    path = path.resolve()
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rpartition("--")[2], True
    return path.name, False


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors the converter will read: those of the index, else model*.safetensors."""
    if (folder / _INDEX).is_file():
        parts = _read_json(folder / _INDEX).get("weight_map")
        if not isinstance(parts, dict) or not parts:
            raise ConversionError(f"{folder / _INDEX} has no weight_map: it is damaged")
        names = sorted(set(map(str, parts.values())))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ConversionError(
                f"{folder} lacks {len(missing)} of {len(names)} weight files ({', '.join(missing[:3])}"
                f"{', ...' if len(missing) > 3 else ''}): finish the download"
            )
        return [folder / name for name in names]
    found = sorted(folder.glob("model*.safetensors"))
    if found:
        return found
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        raise ConversionError(f"{folder}: the weights must be called model*.safetensors, found {', '.join(others[:3])}")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise ConversionError(
            f"{folder} has its weights as pickle only ({', '.join(pickles[:3])}): opening one can run any code, so "
            "convert does not. Take the model's safetensors version, or save it anew as safetensors where you trust it"
        )
    raise ConversionError(f"{folder} has no *.safetensors: the weights are missing")


def _header(file: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a file by name, from its header: 8 bytes of length, then JSON.

    Raises:
        ConversionError: The header is damaged, or the file shorter than it says.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _LONGEST_HEADER + 1
        if length > min(_LONGEST_HEADER, size - 8):
            raise ConversionError(f"{file} is not a safetensors file, or was cut off")
        try:
            header = {key: one for key, one in json.loads(stream.read(length)).items() if key != "__metadata__"}
            end = 8 + length + max((one["data_offsets"][1] for one in header.values()), default=0)
            damaged = not all(isinstance(one["shape"], list) and "dtype" in one for one in header.values())
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            damaged = True
    if damaged:
        raise ConversionError(f"{file} has a damaged safetensors header")
    if end > size:
        raise ConversionError(f"{file} was cut off: {size:,} of {end:,} bytes are there; download it again")
    return header


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConversionError(f"{path} cannot be read as JSON: {exc}") from None
    if not isinstance(value, dict):
        raise ConversionError(f"{path} holds no JSON object")
    return value
