"""What the arguments of ``pyaircache ask`` are: pictures, and one question."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from PIL import Image

from ..checks import shown
from ..images.urls import is_url

STDIN = "-"
_MORE_PICTURES = {".heic", ".heif", ".pdf"}  # read with an extra


def pictures_and_question(arguments: tuple[str, ...], question: str | None) -> tuple[list[str], str]:
    """The names of the pictures, and the question: the last argument, or that of --question.

    Raises:
        click.UsageError: There is no question, what stands in its place is a picture, or a word of it stands in the
            place of a picture.
    """
    names = list(arguments)
    if question is None:
        if not names:
            raise click.UsageError("Missing argument 'QUESTION'")
        question = names.pop()
        _refuse_picture(question)
    for name in names:
        _refuse_word(name)
    if names.count(STDIN) > 1:
        raise click.UsageError('"-" is given more than once: standard input holds one image')
    return names, question


def _refuse_picture(question: str) -> None:
    """A picture in the place of the question: the question was forgotten, or stands before it."""
    spaced = len(question.split()) > 1  # "Which is larger, in a.png or in b.png" is a question
    if question == STDIN or _is_file(question) or (is_picture_name(question) and not spaced):
        raise click.UsageError(
            f"Missing argument 'QUESTION': what is the question about {question}? It is the last argument, "
            'or --question "..."'
        )


def _refuse_word(name: str) -> None:
    """A word in the place of a picture: the question is not in quotation marks, or not the last argument."""
    known = name == STDIN or name.startswith(("data:", "http://", "https://")) or Path(name).suffix or os.sep in name
    if not known and not os.path.exists(name):
        raise click.UsageError(
            f"there is no image {name!r}: put the question in quotation marks, behind the images, or use --question"
        )


def refuse_addresses(names: list[str]) -> None:
    """For a command that was not told to fetch pictures.

    Raises:
        click.UsageError: One of them is an address.
    """
    for name in filter(is_url, names):
        raise click.UsageError(f"the image {shown(name)} was not fetched: --image-urls allows addresses")


def _is_file(name: str) -> bool:
    try:
        return os.path.isfile(name)
    except ValueError:  # a NUL character
        return False


def is_picture_name(name: str) -> bool:
    """Whether a file's name ends as those of pictures do."""
    suffix = Path(name).suffix.lower()
    return suffix in Image.registered_extensions() or suffix in _MORE_PICTURES


def stdin() -> bytes:
    """The image on standard input.

    Raises:
        click.UsageError: It is closed.
    """
    if sys.stdin is None:
        raise click.UsageError('"-" reads an image from standard input, which is closed')
    return sys.stdin.buffer.read()


def text_of(option: str, value: str | None, begins: str | None = None) -> str | None:
    """A file's text; or the value itself where it begins as such a text does.

    Raises:
        click.UsageError: The file cannot be read, or is not text.
    """
    if value is None or (begins is not None and value.lstrip().startswith(begins)):
        return value
    try:
        return Path(value).read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or "it is not text in UTF-8"
        raise click.UsageError(f"{option} {value} cannot be read: {why}") from exc
