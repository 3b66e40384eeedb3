"""Writes the first inputs of the targets that need some into fuzz/corpus:   python fuzz/seeds.py

Pictures of every kind that a browser or camera writes, bodies of requests, texts of flags. Fuzzing adds to them.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CORPUS = Path(__file__).resolve().parent / "corpus"
WIDTH, HEIGHT = 9, 7


def write(target: str, name: str, data: bytes) -> None:
    """One input."""
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def picture(mode: str) -> Image.Image:
    """Noise, so that nothing compresses to a corner case by itself."""
    noise = np.random.default_rng(1).integers(256, size=(HEIGHT, WIDTH, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(noise.astype(np.uint16)[..., 0] * 257)
    if mode in ("1", "L", "P", "RGB", "CMYK", "LA", "RGBA"):
        return Image.fromarray(noise).convert(mode)
    raise ValueError(mode)


def pictures() -> None:
    """Formats, modes and what is special to each."""
    kinds: dict[str, tuple[str, str, dict[str, Any]]] = {
        "png-1": ("PNG", "1", {}),
        "png-grey": ("PNG", "L", {}),
        "png-grey-alpha": ("PNG", "LA", {}),
        "png-palette": ("PNG", "P", {}),
        "png-palette-transparent": ("PNG", "P", {"transparency": 3}),
        "png-rgb": ("PNG", "RGB", {}),
        "png-rgb-transparent": ("PNG", "RGB", {"transparency": (1, 2, 3)}),
        "png-rgba": ("PNG", "RGBA", {}),
        "png-16": ("PNG", "I;16", {}),
        "jpeg-grey": ("JPEG", "L", {}),
        "jpeg-rgb": ("JPEG", "RGB", {}),
        "jpeg-progressive": ("JPEG", "RGB", {"progressive": True}),
        "jpeg-cmyk": ("JPEG", "CMYK", {}),
        "gif": ("GIF", "P", {}),
        "gif-frames": ("GIF", "P", {"save_all": True, "append_images": [picture("P").rotate(90)]}),
        "bmp-1": ("BMP", "1", {}),
        "bmp-palette": ("BMP", "P", {}),
        "bmp-rgb": ("BMP", "RGB", {}),
        "bmp-rgba": ("BMP", "RGBA", {}),
        "tga": ("TGA", "RGBA", {}),
        "ppm": ("PPM", "RGB", {}),
        "tiff": ("TIFF", "RGB", {}),
        "webp": ("WEBP", "RGB", {}),
        "webp-lossless": ("WEBP", "RGBA", {"lossless": True}),
    }
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        kinds[f"jpeg-turned-{orientation}"] = ("JPEG", "RGB", {"exif": exif})
        if orientation in (3, 6):
            kinds[f"png-turned-{orientation}"] = ("PNG", "RGB", {"exif": exif})
            kinds[f"webp-turned-{orientation}"] = ("WEBP", "RGB", {"exif": exif})
    for name, (form, mode, options) in kinds.items():
        data = io.BytesIO()
        picture(mode).save(data, form, **options)
        write("picture", name, data.getvalue())
    write("picture", "none", b"no picture")


def requests() -> None:
    """Bodies; the first byte says what the server allows."""
    bodies: list[dict[str, Any]] = [
        {"aircache_keep": 0.1},
        {"aircache_keep": 1, "aircache_method": "snapkv", "aircache_alpha": 0.5},
        {"aircache_keep": 0.25, "aircache_window": "elite:0.9:content:last", "aircache_allocation": "uniform"},
        {"aircache_keep": 0.5, "aircache_window": "visual:32", "aircache_allocation": "pyramid"},
        {"aircache_keep": 0.5, "aircache_window": "all"},
        {"aircache_keep": "0.1", "aircache_method": None, "aircache_alpha": [], "aircache_window": {}, "messages": []},
    ]
    for i, body in enumerate(bodies):
        write("request", f"body-{i}", bytes([i]) + json.dumps(body).encode())


def media() -> None:
    """The first byte says whether it is an URL, a content part, a block's source or a prompt with files."""
    data = "iVBORw0KGgo="
    inputs: list[tuple[int, Any]] = [
        (0, data),
        (0, f"data:image/png;base64,{data}"),
        (0, "data:image/png;base64," + data.replace("=", "%3D").replace("w", "_-\r\n")),
        (0, f"data:image/svg+xml;utf8,{data}"),
        (0, "https://localhost/picture.png"),
        (1, {"image_url": {"url": f"data:image/png;base64,{data}"}}),
        (1, {"image_url": f"data:image/png;base64,{data}"}),
        (2, {"source": {"type": "base64", "media_type": "image/png", "data": data}}),
        (2, {"source": {"type": "url", "url": "https://localhost/picture.png"}}),
        (3, {"prompt_string": "x", "multimodal_data": [data]}),
    ]
    for i, (kind, value) in enumerate(inputs):
        text = value if isinstance(value, str) else json.dumps(value)
        write("media", f"input-{i}", bytes([kind]) + text.encode())


def texts() -> None:
    """Lines of a byte that says which field, and a value."""
    lines = [b"\x000.1", b"\x01snapkv", b"\x020.5", b"\x03elite:0.9:content:last", b"\x04strength+skewness", b"\x05x"]
    windows = [b"\x03" + w for w in (b"elite", b"last:16", b"text:weighted", b"visual:32", b"all", b"elite:1e-3")]
    for i, line in enumerate(lines + windows):
        write("grammar", f"line-{i}", line)
    write("grammar", "lines", b"\n".join(lines))
    values = b"snapkv 0.5 attention last:7 0.9 causal avg:3x3 2.5 on off vl 0.25 3 2 0.125 77".split()
    write("grammar", "parts", b"\n".join(bytes([128 + i]) + value for i, value in enumerate(values)))  # all, in order


def grammars() -> None:
    """Which of the tokens that fit come next, and a grammar or a schema."""
    texts = ['root ::= "yes" | "no"', "root ::= [0-9]+", 'root ::= a{2,5} # again\na ::= ("x" | [^a-z] .)? "\\u00e9"']
    texts += ['root ::= "1" x | "1" y | "1"\nx ::= root "b"\ny ::= root "c"', 'root ::= "1" r\nr ::= b r\nb ::= ""']
    schemas: list[dict[str, Any]] = [
        {"type": "string", "pattern": "^[a-f]{2}(x|y)*$"},
        {"type": "integer", "minimum": -3, "maximum": 120},
        {"type": ["array", "null"], "items": {"enum": ["a", 1, None]}, "minItems": 1, "maxItems": 3},
        {"properties": {"a": {"$ref": "#/$defs/n"}, "b": {"type": "boolean"}}, "required": ["a"], "$defs": {"n": {}}},
        {"allOf": [{"$ref": "#/d"}, {"properties": {"z": {"type": "number"}}}], "d": {"properties": {"y": {}}}},
        {"type": "string", "format": "date-time"},
    ]
    choices = bytes(range(0, 160, 10))
    for i, text in enumerate(texts):
        write("gbnf", f"grammar-{i}", b"\0" + choices + text.encode())
    for i, schema in enumerate(schemas):
        write("gbnf", f"schema-{i}", b"\1" + choices + json.dumps(schema).encode())


def mmproj() -> None:
    """A valid file and a picture, and each key with another number or gone."""
    end = bytes([127, 0, 30, 20])
    write("mmproj", "valid", bytes([0]) + end)
    for key in range(16):
        write("mmproj", f"number-{key}", bytes([1, key, 0, 1, 7]) + end)
        write("mmproj", f"gone-{key}", bytes([1, key, 4]) + end)


if __name__ == "__main__":
    pictures()
    requests()
    texts()
    media()
    grammars()
    mmproj()
    for kind in range(32):
        write("states", f"valid-{kind}", bytes([kind]))
