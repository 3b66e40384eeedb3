"""The pages of a TIFF."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image

from ..errors import ImageError
from .kinds import Pages
from .limits import MAX_PAGE_NUMBER, MAX_PAGES, PixelBudget, no_such_page, too_many_pages

_SUBFILE_TYPE = 254  # the tag of that name
_REDUCED, _MASK = 1, 4  # its bits: a smaller copy of another page, a page's transparency


def pages(picture: Image.Image, name: str, chosen: Pages | None) -> Iterator[Image.Image]:
    """The file at each of its pages in turn: use one before the next is asked for.

    Smaller copies of pages and masks are not pages. Pillow's count of frames walks through the whole chain, at a cost
    that grows with the square of its length: here no frame behind the last one needed is looked at.

    Raises:
        ImageError: Too many pages, or a chosen one is not there.
    """
    budget = PixelBudget(name)
    for frame in _frames_of(picture, name, chosen.pages if chosen else None):
        picture.seek(frame)
        budget.take(picture.width, picture.height)
        yield picture


def _frames_of(picture: Image.Image, name: str, wanted: tuple[int, ...] | None) -> list[int]:
    """Pillow's frame of each page."""
    if wanted is None:
        found = _walk(picture, MAX_PAGES + 1)
        if len(found) > MAX_PAGES:
            raise too_many_pages(name)
        return found
    from_the_end = min(wanted) < 0
    found = _walk(picture, MAX_PAGE_NUMBER + 1 if from_the_end else max(wanted) + 1)
    if from_the_end and len(found) > MAX_PAGE_NUMBER:
        raise ImageError(f"{name} has more than {MAX_PAGE_NUMBER} pages; count them from the beginning")
    for index in wanted:
        if not -len(found) <= index < len(found):
            raise no_such_page(name, index, len(found))
    return [found[index] for index in wanted]


def _walk(picture: Any, most: int) -> list[int]:
    """Frames that are pages, at most so many."""
    found: list[int] = []
    # smaller copies count, too: a chain of nothing else must end
    for frame in range(2 * most):
        try:
            picture.seek(frame)
        except EOFError:
            break
        kind = picture.tag_v2.get(_SUBFILE_TYPE, 0)
        if not (isinstance(kind, int) and kind & (_REDUCED | _MASK)):
            found.append(frame)
            if len(found) == most:
                break
    return found or [0]
