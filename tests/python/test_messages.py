"""chat.messages and chat.complete: what was given is there again, and can be given again."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pyaircache import ArgumentError, Chat, ImageError, Pages, Video
from pyaircache.images.load import readable_again


@pytest.fixture
def png() -> bytes:
    """A picture's file."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(file, "PNG")
    return file.getvalue()


def url(message: dict[str, Any]) -> Any:
    """The picture of a message."""
    return message["content"][0]["image_url"]["url"]


def test_file_objects_are_kept_as_their_bytes(chat: Chat, png: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png)
    with (tmp_path / "a.png").open("rb") as file:
        chat.ask(file, "What?")
    assert url(chat.messages[0]) == png
    again = chat.messages[:-1]
    assert chat.complete(again, reuse=False).report.visual_tokens == 6
    with io.BytesIO(png) as file:
        part = {"type": "image_url", "image_url": {"url": file, "detail": "low"}}
        chat.complete([{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}])
        assert part["image_url"]["url"] is file  # the caller's own stays as it is
    assert chat.messages[0]["content"][0]["image_url"] == {"url": png, "detail": "low"}


def test_file_objects_inside_of_pages_and_videos(png: bytes) -> None:
    with io.BytesIO(png) as file:
        pages, video = Pages(file, [0], dpi=72), Video([file, png])
        again = readable_again(pages)
        assert (again.file, again.pages, again.dpi) == (png, (0,), 72)
        assert readable_again(video).frames == [png, png]
    same = Pages(png)
    assert readable_again(same) is same


def test_a_file_object_that_cannot_be_read(chat: Chat, png: bytes) -> None:
    closed = io.BytesIO(png)
    closed.close()
    with pytest.raises(ImageError, match="closed file"):
        chat.ask(closed, "What?")
    with pytest.raises(ImageError, match="opened as text"):
        chat.ask(io.StringIO("a"), "What?")


@pytest.mark.parametrize("content", ["", "  ", [], [{"type": "text", "text": ""}], "picture"])
def test_a_last_message_without_a_question(chat: Chat, png: bytes, content: Any) -> None:
    if content == "picture":
        content = [{"type": "image_url", "image_url": {"url": png}}]
    with pytest.raises(ArgumentError, match="the last message asks nothing"):
        chat.complete([{"role": "user", "content": content}])
    first = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": png}}]}
    assert chat.complete([first, {"role": "user", "content": "What?"}]) == "hello"
