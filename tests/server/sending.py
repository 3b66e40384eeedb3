"""How the tests of requests send them and read the answers."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
from PIL import Image

from .conftest import Server

PLAIN = {"max_tokens": 12, "temperature": 0}


def chat(server: Server, image: Any, question: str, **more: Any) -> httpx.Response:
    """A chat completion with this ``image_url`` part, whatever it is."""
    content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": question}]
    body = {"messages": [{"role": "user", "content": content}], **PLAIN, **more}
    return server.http.post("/v1/chat/completions", json=body)


def answer(res: httpx.Response) -> str:
    assert res.status_code == 200, res.text
    return res.json()["choices"][0]["message"]["content"]


def refused(res: httpx.Response) -> str:
    """The message of a 400, which is short whatever was sent."""
    assert res.status_code == 400, (res.status_code, res.text[:300])
    message = res.json()["error"]["message"]
    assert 0 < len(message) < 300, message[:500]
    return message


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
