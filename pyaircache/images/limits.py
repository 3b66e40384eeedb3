"""What one file may hold and cost."""

from __future__ import annotations

from ..errors import ImageError

MAX_PIXELS = 1 << 28  # of a picture (the engine's limit), of all pages of one file, of all pictures of one request
MAX_PAGES = 100  # of one file at once
MAX_PAGE_NUMBER = 10_000  # a TIFF is a chain of pages: the last one is found through all the others


def check_size(name: str, width: int, height: int) -> None:
    """Refuses an empty or a giant picture, before its pixels are decoded.

    Raises:
        ImageError: It is one.
    """
    if width < 1 or height < 1:
        raise ImageError(f"{name} is empty: {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} has {width} x {height} pixels; at most 2^28 in all are taken")


class PixelBudget:
    """Counts the pixels of a file's pages, which may have 2^28 together."""

    def __init__(self, name: str) -> None:
        self._name, self._left = name, MAX_PIXELS

    def take(self, width: int, height: int) -> None:
        """One more page.

        Raises:
            ImageError: They are too many.
        """
        self._left -= width * height
        if self._left < 0:
            raise ImageError(
                f"the pages of {self._name} have more than 2^28 pixels together; "
                "take fewer at once, such as Pages(file, [0, 1])"
            )


class RequestBudget:
    """Counts the pixels of the pictures of one request, which may have 2^28 together: 768 MiB."""

    def __init__(self) -> None:
        self._taken = 0

    def take(self, name: str, width: int, height: int) -> None:
        """One more picture.

        Raises:
            ImageError: They are too many.
        """
        self._taken += width * height
        if self._taken > MAX_PIXELS:
            raise ImageError(
                f"the pictures of one request have {self._taken} pixels together with {name} ({width} x {height}); "
                f"at most {MAX_PIXELS} are taken: give fewer, or smaller ones"
            )


def too_many_pages(name: str) -> ImageError:
    """For a file that is asked for as a whole."""
    return ImageError(
        f"{name} has more than {MAX_PAGES} pages; at most {MAX_PAGES} are taken at once: "
        "choose some with Pages(file, [0, 1])"
    )


def no_such_page(name: str, index: int, count: int) -> ImageError:
    """For a chosen page that is not there."""
    return ImageError(f"{name} has {count} page{'' if count == 1 else 's'}; page {index} is not there (the first is 0)")
