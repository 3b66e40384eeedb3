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
        return {"archive": ARCHIVES.index(archive)}  # type: ignore[arg-type]
    allowed = 'archive must be "auto", "device", "ram", "none", or the path of a folder or file'
    if not isinstance(archive, (str, os.PathLike)) or isinstance(path := os.fspath(archive), bytes):
        raise ArgumentError(f"{allowed}, got {shown(archive)}")
    file = Path(path)
    if isinstance(archive, str) and not file.is_absolute() and len(file.parts) < 2 and not file.exists():
        raise ArgumentError(f"{allowed}; got {shown(archive)}: give a file in this folder with the folder's name")
    if file.is_dir():
        file /= f"pyaircache-{os.getpid()}-{secrets.token_hex(6)}.archive"
    try:
        if not file.parent.is_dir():
            raise ArgumentError(f"the folder of archive={shown(archive)} does not exist")
        if file.exists():
            with file.open("rb") as there:
                if there.read(len(_MAGIC)) != _MAGIC:
                    raise ArgumentError(f"archive={shown(archive)} is there and is no archive: it is not written over")
    except (OSError, ValueError) as exc:
        raise ArgumentError(f"archive={shown(archive)} cannot be used: {exc}") from None
    return {"archive": ARCHIVES.index("file"), "archive_path": str(file.absolute())}
