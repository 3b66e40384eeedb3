"""Messages as OpenAI's clients write them, and as the engine takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..checks import one_of, shown
from ..engine.marshal import utf8
from ..engine.structs import Message
from ..errors import ArgumentError
from ..images import Picture, load_images
from ..images.load import readable_again

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)

Load = Callable[[Any], list[NDArray[np.uint8]]]
"""How pictures are read: `load_images`, or with more or less than it takes by itself."""

_ADDRESSES = ("data:", "http://", "https://")


@dataclass(frozen=True, eq=False)
class Given:
    """One message, ready for the engine."""

    role: str
    content: str
    """Its text; the engine's marker stands for an image."""
    images: list[NDArray[np.uint8]] = field(default_factory=list)
    """uint8 [H, W, 3] each; [frames, H, W, 3] is a video."""
    shown: str | list[dict[str, Any]] = ""
    """The content as it was given."""

    @property
    def message(self) -> Message:
        """The engine's form."""
        return Message(self.role, self.content)

    def same(self, other: Given) -> bool:
        """Whether both say the same with the same pictures."""
        return (
            self.message == other.message
            and len(self.images) == len(other.images)
            and all(np.array_equal(one, two) for one, two in zip(self.images, other.images, strict=True))
        )

    def to_dict(self) -> dict[str, Any]:
        """An OpenAI-style message: a copy, but for the pictures' objects."""
        return {"role": self.role, "content": self.shown if isinstance(self.shown, str) else _copied(self.shown)}


def _copied(parts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: dict(value) if isinstance(value, Mapping) else value for name, value in p.items()} for p in parts]


def system(text: object) -> Given:
    """The message of ``Chat(system=...)``.

    Raises:
        ArgumentError: It is no text.
    """
    if not isinstance(text, str) or not text.strip():
        raise ArgumentError(f"system must be a text that is not empty, got {shown(text)}")
    utf8(text)
    return Given("system", text, [], text)


def question(image: Picture | Sequence[Picture] | None, text: object, marker: str, load: Load = load_images) -> Given:
    """The message of a question: its images come before its text.

    Raises:
        ArgumentError: It is no text.
        ImageError: An image cannot be read.
    """
    if not isinstance(text, str) or not text.strip():
        raise ArgumentError(f"the question must be a text that is not empty, got {shown(text)}")
    utf8(text)
    if image is None:
        return Given("user", text, [], text)
    given = [readable_again(one) for one in (image if isinstance(image, (list, tuple)) else [image])]
    images = load(given)
    parts = [{"type": "image_url", "image_url": {"url": _as_part(one)}} for one in given]
    return Given("user", marker * len(images) + text, images, [*parts, {"type": "text", "text": text}])


def _as_part(image: Any) -> Any:
    """A picture as `parse` takes it: there a text is an address, never a file's name."""
    return Path(image) if isinstance(image, str) and not _is_address(image) else image


def _is_address(text: str) -> bool:
    return text[:8].lower().startswith(_ADDRESSES)


def parse(messages: object, marker: str, load: Load = load_images) -> list[Given]:
    """Reads OpenAI-style messages.

    Args:
        messages: Dictionaries with ``role`` and ``content``: a text, or parts ``{"type": "text", "text": ...}`` and
            ``{"type": "image_url", "image_url": {"url": ...}}``.
        marker: Stands for an image in the contents that are returned.
        load: Reads a picture.

    Raises:
        ArgumentError: They are something else; or the last one is not the user's.
        ImageError: A picture cannot be read.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ArgumentError(f"messages must be a list of at least one message, got {shown(messages)}")
    given = [_parse(one, f"messages[{i}]", marker, load) for i, one in enumerate(messages)]
    if given[-1].role != "user":
        raise ArgumentError(f"the last message must be the user's, got one of the role {shown(given[-1].role)}")
    if not given[-1].content.replace(marker, "").strip():
        raise ArgumentError(f"the last message asks nothing: it must have a text, got {shown(given[-1].shown)}")
    return given


def _parse(message: object, where: str, marker: str, load: Load) -> Given:
    if not isinstance(message, Mapping):
        raise ArgumentError(f"{where} must be a dictionary with role and content, got {shown(message)}")
    role = one_of(f"the role of {where}", message.get("role"), ROLES)
    if message.get("tool_calls") or message.get("function_call"):
        raise ArgumentError(f"{where} calls a tool, which is not supported")
    content = message.get("content")
    if isinstance(content, str):
        utf8(content)
        return Given(role, content, [], content)
    if not isinstance(content, (list, tuple)):
        raise ArgumentError(f"the content of {where} must be a text or a list of parts, got {shown(content)}")
    text, images, parts = "", [], []
    for i, part in enumerate(content):
        piece, pictures, said = _part(part, f"part {i} of {where}", role, load)
        text += piece + marker * len(pictures)
        images += pictures
        parts.append(said)
    return Given(role, text, images, _copied(parts))


def _part(part: object, where: str, role: str, load: Load) -> tuple[str, list[NDArray[np.uint8]], Mapping[str, Any]]:
    """(text, pictures, the part as it can be read again): one of the first two is empty."""
    if not isinstance(part, Mapping):
        raise ArgumentError(f"{where} must be a dictionary with a type, got {shown(part)}")
    kind = one_of(f"the type of {where}", part.get("type"), ("text", "image_url"))
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise ArgumentError(f"the text of {where} must be a text, got {shown(text)}")
        utf8(text)
        return text, [], part
    if role != "user":
        raise ArgumentError(f"{where} is an image, which only messages of the user may have")
    inner = part.get("image_url")
    url = inner.get("url") if isinstance(inner, Mapping) else inner
    if url is None or isinstance(url, (list, tuple)) or (isinstance(url, str) and not _is_address(url)):
        # Messages may come from anybody: a text in them, or in a list in them, must not name a file of this machine
        raise ArgumentError(
            f"the address of {where} must be a data URI (data:image/png;base64,...), got {shown(url)}; "
            "for a file give pathlib.Path(name)"
        )
    url = readable_again(url)
    return "", load(url), {**part, "image_url": {**(inner if isinstance(inner, Mapping) else {}), "url": url}}
