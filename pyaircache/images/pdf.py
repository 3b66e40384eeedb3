"""The pages of a PDF; with the extra ``pyaircache[pdf]``.

PDFium draws them in a process of its own (pdf_worker.py): it is not safe in threads, a small file can keep it busy for
ever, and a fault in it must not end ours.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from ..errors import ImageError
from .kinds import Pages
from .limits import MAX_PAGES, MAX_PIXELS, no_such_page, too_many_pages

TIMEOUT_S = 120.0  # for all pages together
_MAGIC = b"%PDF-"
_DPI = 150.0


def is_pdf(head: bytes) -> bool:
    """Whether a file that begins so is one; there may be something before its first line."""
    return _MAGIC in head


def pages(file: BinaryIO, name: str, chosen: Pages | None) -> Iterator[Image.Image]:
    """Its pages, or the chosen ones, on white.

    Raises:
        ImageError: The extra is not installed, the file is damaged or encrypted, or asks for too much.
    """
    if importlib.util.find_spec("pypdfium2") is None:
        raise ImageError(f"{name} is a PDF, for which pypdfium2 is needed: pip install 'pyaircache[pdf]'")
    wanted = {
        "pages": chosen.pages if chosen else None,
        "dpi": chosen.dpi if chosen else _DPI,
        "password": chosen.password if chosen else None,
        "max_pages": MAX_PAGES,
        "max_pixels": MAX_PIXELS,
        "timeout_s": TIMEOUT_S,
    }
    out = _run(json.dumps(wanted).encode() + b"\n" + file.read(), name)
    line, _, pixels = out.partition(b"\n")
    answer = json.loads(line)
    if "error" in answer:
        raise _error(answer, name, wanted["dpi"])
    start, view = 0, memoryview(pixels)
    for width, height in answer["sizes"]:
        end = start + 3 * width * height
        yield Image.frombytes("RGB", (width, height), view[start:end])
        start = end


def _run(given: bytes, name: str) -> bytes:
    """The worker's answer."""
    command = [sys.executable, str(Path(__file__).with_name("pdf_worker.py"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # where pypdfium2 was found
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=TIMEOUT_S, env=environment)
    except subprocess.TimeoutExpired:
        raise ImageError(f"{name} takes more than {TIMEOUT_S:g} seconds to draw; it was given up") from None
    if done.returncode != 0:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ImageError(f"{name} cannot be drawn, the PDF is damaged or asks for too much: {last}")
    return done.stdout


def _error(answer: dict[str, object], name: str, dpi: object) -> ImageError:
    match answer["error"]:
        case "pages":
            return too_many_pages(name)
        case "page":
            return no_such_page(name, int(str(answer["page"])), int(str(answer["count"])))
        case "pixels":
            return ImageError(
                f"the pages of {name} have more than 2^28 pixels together, drawn with {dpi:g} dpi (page "
                f"{answer['page']}: {answer['width']} x {answer['height']}); take fewer or smaller ones, such as "
                "Pages(file, [0, 1], dpi=72)"
            )
        case "password":
            return ImageError(f"{name} is encrypted; open it with Pages(file, password=...)")
        case "empty":
            return ImageError(f"{name} has no pages")
        case _:
            return ImageError(f"{name} cannot be opened as a PDF: {answer['error']}")
