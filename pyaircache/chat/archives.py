"""Where a Chat keeps a prompt's full cells for the next question."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Literal

from ..checks import shown
from ..engine.structs import ARCHIVES
from ..errors import ArgumentError

Archive = Literal["auto", "device", "ram", "none"] | os.PathLike[str] | str
"""Or the path of a file or folder."""

_WORDS = ("auto", "device", "ram", "none")
_MAGIC = b"PACARCH\n"


def engine_options(archive: object) -> dict[str, int | str | None]:
    """The engine's options for a Chat's ``archive``.

    Args:
        archive: One of the words; or a folder, in which a file with a name of its own is made, or a file.

    Raises:
        ArgumentError: It is something else; or the file cannot be there, or is there and is no archive.
    """
    if isinstance(archive, str) and archive in _WORDS:
        return {"archive": ARCHIVES.index(archive)}
    allowed = 'archive must be "auto", "device", "ram", "none", or the path of a folder or file'
    path = os.fspath(archive) if isinstance(archive, (str, os.PathLike)) else None
    if not isinstance(path, str):
        raise ArgumentError(f"{allowed}, got {shown(archive)}")
    try:
        file = _file(path, isinstance(archive, str))
        return {"archive": ARCHIVES.index("file"), "archive_path": str(file.absolute())}
    except FileExistsError:
        raise ArgumentError(f"archive={shown(archive)} is there and is no archive: it is not written over") from None
    except (OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or str(exc)
        raise ArgumentError(f"{allowed}; {shown(archive)} cannot be one: {why}") from None


def _file(path: str, text: bool) -> Path:
    """The archive's file; raises OSError or ValueError where none can be there."""
    if not path:
        raise ValueError("it is empty")
    file = Path(path)
    if file.is_dir():
        return file / f"pyaircache-{os.getpid()}-{secrets.token_hex(6)}.archive"
    if file.exists():
        with file.open("rb") as there:
            if there.read(len(_MAGIC)) != _MAGIC:
                raise FileExistsError
    elif text and not any(separator in path for separator in "/\\"):  # more likely a word that is spelt wrongly
        raise ValueError("name a file in this folder as ./FILE")
    if not file.parent.is_dir():
        raise ValueError("its folder does not exist")
    if not os.access(file.parent, os.W_OK):
        raise ValueError("its folder cannot be written to")
    return file
