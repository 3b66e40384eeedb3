"""A program: draws pages of a PDF. It imports nothing of the package, so that it starts fast.

In: a line of JSON (what to draw, and the limits), then the file. Out: a line of JSON (the pages' sizes, or an error),
then the pixels of all pages, RGB.
"""

from __future__ import annotations

import json
import math
import sys
from contextlib import suppress
from typing import Any, NoReturn

import pypdfium2 as pdfium

MEMORY = 4 << 30  # bytes
POINTS = 72  # to an inch


def answer(**fields: Any) -> None:
    sys.stdout.buffer.write(json.dumps(fields).encode() + b"\n")


def refuse(**fields: Any) -> NoReturn:
    answer(**fields)
    sys.exit(0)


def limit(seconds: float) -> None:
    """Ends this process when it takes too much, also after the one that started it has ended."""
    with suppress(ImportError, ValueError, OSError):  # Windows has no such limits
        import resource

        for what, most in ((resource.RLIMIT_CPU, math.ceil(seconds)), (resource.RLIMIT_AS, MEMORY)):
            resource.setrlimit(what, (most, most))


def opened(data: bytes, password: str | None) -> pdfium.PdfDocument:
    try:
        return pdfium.PdfDocument(data, password=password)
    except pdfium.PdfiumError as exc:
        refuse(error="password" if "password" in str(exc).lower() else str(exc))


def chosen(count: int, wanted: list[int] | None, most: int) -> list[int]:
    """Indices of the pages to draw."""
    if count == 0:
        refuse(error="empty")
    if wanted is None:
        if count > most:
            refuse(error="pages")
        return list(range(count))
    for index in wanted:
        if not -count <= index < count:
            refuse(error="page", page=index, count=count)
    return [index % count for index in wanted]


def main() -> None:
    task = json.loads(sys.stdin.buffer.readline())
    data = sys.stdin.buffer.read()
    limit(task["timeout_s"])
    document = opened(data, task["password"])
    with suppress(pdfium.PdfiumError):  # the values in forms' fields; damaged ones are left out
        document.init_forms()
    indices = chosen(len(document), task["pages"], task["max_pages"])
    scale = task["dpi"] / POINTS

    sizes, left = [], task["max_pixels"]
    for index in indices:  # before anything is drawn
        width, height = (max(1, math.ceil(side * scale)) for side in document.get_page_size(index))
        left -= width * height
        if left < 0:
            refuse(error="pixels", page=index, width=width, height=height)
        sizes.append((width, height))

    out = sys.stdout.buffer
    answer(sizes=sizes)
    for index, size in zip(indices, sizes, strict=True):
        page = document[index]
        bitmap = page.render(scale=scale, rev_byteorder=True, fill_color=(255, 255, 255, 255))
        picture = bitmap.to_pil().convert("RGB")
        if picture.size != size:
            raise SystemExit(f"page {index} is {picture.size}, not {size}")
        out.write(picture.tobytes())
        page.close()


if __name__ == "__main__":
    main()
