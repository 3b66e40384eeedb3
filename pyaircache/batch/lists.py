"""Lists of questions: JSON lines, one question each."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checks import shown
from ..errors import ArgumentError

Identity = tuple[str, str]
"""What a question is known by: ("id", its id as JSON) or ("key", a hash of its line)."""

_ELSEWHERE = ("data:", "http://", "https://")


@dataclass(frozen=True)
class Question:
    """One line of a list.

    Attributes:
        line: Its number, from 1.
        identity: What it is known by.
        fields: What it says; empty where that cannot be read.
        error: Why it cannot, or None.
    """

    line: int
    identity: Identity
    fields: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def result(self, **values: Any) -> dict[str, Any]:
        """A line of results: what the question is known by, the question, and the given values."""
        kind, text = self.identity
        head = {"id": self.fields["id"]} if kind == "id" else {"key": text, "line": self.line}
        asked: dict[str, Any] = {name: self.fields[name] for name in ("image", "question") if name in self.fields}
        return {**head, **asked, **values}


def identity_of(result: dict[str, Any]) -> Identity | None:
    """What the question of a line of results is known by; None: it is no such line."""
    if "id" in result:
        return "id", json.dumps(result["id"])
    return ("key", result["key"]) if isinstance(result.get("key"), str) else None


def read(lines: Iterable[str]) -> list[Question]:
    """Reads a list. Lines that are empty are left out; what is wrong with a line is said by its question.

    Raises:
        ArgumentError: Two questions have the same id.
    """
    found: list[Question] = []
    seen: dict[Identity, int] = {}
    same: Counter[str] = Counter()
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        fields, error = _parse(text)
        if error is None and "id" in fields:
            identity: Identity = ("id", json.dumps(fields["id"]))
            if identity in seen:
                raise ArgumentError(f"the lines {seen[identity]} and {number} of the list have the id {identity[1]}")
            seen[identity] = number
        else:
            content = json.dumps(fields, sort_keys=True) if error is None else text.strip()
            key = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
            same[key] += 1  # a line that is there twice is asked twice
            identity = ("key", key if same[key] == 1 else f"{key}-{same[key]}")
        found.append(Question(number, identity, fields, error))
    return found


def _parse(text: str) -> tuple[dict[str, Any], str | None]:
    """(fields, None), or ({}, what is wrong)."""
    try:
        fields = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as exc:
        return {}, f"the line is not JSON: {exc}"
    if not isinstance(fields, dict):
        return {}, f"the line must be an object with image and question, got {shown(fields)}"
    if not isinstance(fields.get("id", ""), (str, int)) or isinstance(fields.get("id"), bool):
        return {}, f"id must be a text or a whole number, got {shown(fields['id'])}"
    if "question" not in fields:
        return {}, "the line has no question"
    return fields, None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number there")


def placed(image: Any, folder: Path) -> Any:
    """The pictures of a line, the names of files as paths: relative ones are counted from the list's folder.

    Raises:
        ArgumentError: They are neither a text, a list of texts nor nothing.
    """
    if image is None:
        return None
    if isinstance(image, list):
        return [placed(one, folder) for one in image]
    if not isinstance(image, str):
        raise ArgumentError(f"image must be the name of a file, a list of these, or null, got {shown(image)}")
    return image if image[:8].lower().startswith(_ELSEWHERE) else str(folder / image)
