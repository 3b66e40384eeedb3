"""Model files: the bundled model, the GGUF check, and the projector beside a model."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Literal

from .checks import named, path
from .engine import library
from .errors import EngineError, ModelError, ModelNotFoundError, ProjectorError

BUNDLED_NAME = "pages-vl"
BUNDLED_MODEL = f"{BUNDLED_NAME}-Q8_0.gguf"
BUNDLED_MMPROJ = f"mmproj-{BUNDLED_NAME}-F16.gguf"
_MAGIC = b"GGUF"


def bundled_dir() -> Path:
    """Folder of the bundled model.

    Raises:
        ModelNotFoundError: This installation has none.
    """
    for folder in library.package_dirs():
        bundled = folder / "data" / BUNDLED_NAME
        if (bundled / BUNDLED_MODEL).is_file():
            return bundled
    raise ModelNotFoundError(f"this installation holds no bundled model ({BUNDLED_MODEL}); pass model=PATH.gguf")


def find_program(name: str) -> Path:
    """Path of a program of llama.cpp: in the folder ``PYAIRCACHE_BIN``, else in the package's ``bin`` folder.

    Raises:
        EngineError: It is in none of these places.
    """
    override = os.environ.get("PYAIRCACHE_BIN")
    folders = [Path(override)] if override else [folder / "bin" for folder in library.package_dirs()]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    places = ", ".join(map(str, folders))
    raise EngineError(f"{name} was not found in {places}; reinstall pyaircache, or set PYAIRCACHE_BIN to its folder")


def check_gguf(file_path: Path, what: str = "model") -> None:
    """Refuses what is not a readable GGUF file, before any of it is loaded.

    Raises:
        ModelNotFoundError: No such file.
        ModelError: A folder, unreadable, or not a GGUF file.
    """
    name = named(str(file_path))
    try:
        if file_path.is_dir():
            raise ModelError(f"{what} {name} is a folder; give the path of its .gguf file")
        with file_path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except FileNotFoundError:
        raise ModelNotFoundError(f"{what} file {name} does not exist") from None
    except OSError as exc:
        raise ModelError(f"{what} file {name} cannot be read: {exc.strerror or exc}") from exc
    if magic == _MAGIC[::-1]:
        raise ModelError(f"{what} file {name} is a big-endian GGUF file, which this build cannot load")
    if magic != _MAGIC:
        raise ModelError(f"{what} file {name} is not a GGUF file (it begins with {magic!r} instead of {_MAGIC!r})")


def find_mmproj(model: Path) -> Path | None:
    """The projector in the model's folder, or None: any GGUF file with "mmproj" in its name.

    Of several, the one whose name has the longest piece in common with the model's name.

    Raises:
        ProjectorError: Several are equally good.
    """
    try:
        names = sorted(os.listdir(model.parent))
    except OSError:
        return None
    found = [n for n in names if "mmproj" in n.lower() and n.lower().endswith(".gguf") and n != model.name]
    if not found:
        return None
    shared = {name: _longest_shared_piece(model.name, name) for name in found}
    best = [name for name in found if shared[name] == max(shared.values())]
    if len(best) > 1:
        raise ProjectorError(
            f"several projectors beside {named(str(model))}: {', '.join(best)}; pass mmproj= to choose one, "
            "or mmproj=False for none"
        )
    return model.parent / best[0]


def _longest_shared_piece(model: str, mmproj: str) -> int:
    """Length of the longest string that two file names share, the ending and letter case aside."""
    a = model.lower().removesuffix(".gguf")
    b = mmproj.lower().removesuffix(".gguf").replace("mmproj", "\0")
    return difflib.SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size


def resolve(
    model: str | os.PathLike[str] | None, mmproj: str | os.PathLike[str] | Literal[False] | None
) -> tuple[Path, Path | None]:
    """Turns the two path arguments of ``Chat`` into checked files: (model, projector or None).

    Raises:
        ArgumentError: An argument is no path.
        ModelNotFoundError: A file does not exist.
        ModelError: A file is not a GGUF.
        ProjectorError: Several projectors fit equally well.
    """
    if model is None:
        folder = bundled_dir()
        model_path, found = folder / BUNDLED_MODEL, folder / BUNDLED_MMPROJ
    else:
        model_path, found = Path(path("model", model)), None
    check_gguf(model_path)
    if mmproj is False:
        mmproj_path: Path | None = None
    elif mmproj is not None:
        mmproj_path = Path(path("mmproj", mmproj))
    else:
        mmproj_path = found if found is not None else find_mmproj(model_path)
    if mmproj_path is not None:
        check_gguf(mmproj_path, "projector")
    return model_path, mmproj_path
