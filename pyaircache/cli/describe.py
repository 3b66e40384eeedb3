"""What `pyaircache info` tells: what is installed, what was loaded, and what pictures of given sizes become."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from .. import __version__
from ..chat.chat import Chat
from ..engine import engine, library
from ..engine.structs import Info, Span
from ..model_files import BUNDLED_MODEL, bundled_dir

# The name people know a family by: of the projector, or of the text model where several share a projector
_BY_ARCHITECTURE = {"qwen35": "Qwen3.5", "qwen35moe": "Qwen3.5 (mixture of experts)"}
_BY_PROJECTOR = {
    "gemma3": "Gemma 3",
    "idefics3": "Idefics 3, SmolVLM",
    "internvl": "InternVL",
    "llava_next": "LLaVA-NeXT",
    "llava_onevision": "LLaVA-OneVision",
    "mlp": "LLaVA",
    "pixtral": "Pixtral",
    "qwen2vl_merger": "Qwen2-VL",
    "qwen2.5vl_merger": "Qwen2.5-VL",
    "qwen3vl_merger": "Qwen3-VL",
}


def family(info: Info) -> str:
    """The family's name; the architecture of the text model where nothing better is known."""
    return _BY_ARCHITECTURE.get(info.architecture) or _BY_PROJECTOR.get(info.projector) or info.architecture


def installation() -> dict[str, Any]:
    """Versions and places of what is installed, the bundled model's among them.

    Raises:
        EngineError: The engine library is missing or cannot be loaded.
        ModelNotFoundError: There is no bundled model.
    """
    path = library.load().path
    return {
        "pyaircache": __version__,
        "engine": engine.version(),
        "library": str(path),
        "backends": ", ".join(_backends(path.parent)),
        "python": sys.version.split()[0],
        "model": str(bundled_dir() / BUNDLED_MODEL),
    }


def _backends(folder: Path) -> list[str]:
    """ggml's backends, by the libraries beside the engine's; none of a build that is all in one library."""
    names = {path.name.split(".")[0].removeprefix("lib") for path in folder.glob("*ggml-*")}
    return sorted(name.removeprefix("ggml-") for name in names if name.startswith("ggml-") and name != "ggml-base")


def describe(chat: Chat, sizes: list[tuple[int, int]]) -> dict[str, Any]:
    """All of it as a JSON-able dictionary.

    Raises:
        ProjectorError: There are sizes, but no projector.
        ImageError: A picture of such a size cannot be used.
    """
    info = chat.info
    fields = {"family": family(info)} | info.to_dict()
    del fields["n_ctx"]  # that of this look, not of the model
    if sizes:
        fields["images"] = [picture(size, chat.spans(size)) for size in sizes]
    return fields


def picture(size: tuple[int, int], spans: list[Span]) -> dict[str, Any]:
    """What a picture of this size (width, height) becomes."""
    return {
        "width": size[0],
        "height": size[1],
        "visual_tokens": sum(span.n_tokens for span in spans),
        "spans": [{"n_tokens": span.n_tokens, "nx": span.nx, "ny": span.ny} for span in spans],
    }


def lines(fields: dict[str, Any]) -> list[str]:
    """The same for people to read."""
    shown = []
    for name, value in fields.items():
        if name == "images":
            shown += [_line(f"image {one['width']}x{one['height']}", _picture_line(one)) for one in value]
        elif name != "why_not" or value:
            # 0 stands for what only a cache that can be compressed tells
            shown.append(_line(name.replace("_", " "), "-" if name == "kv_bytes_per_token" and not value else value))
    return shown


def _picture_line(one: dict[str, Any]) -> str:
    """E.g. "768 visual tokens in 3 spans: 3 of 256"."""
    runs: list[tuple[int, str]] = []  # how many equal spans follow each other, and their shape
    for span in one["spans"]:
        grid = f"{span['n_tokens']}" + (f" ({span['nx']} x {span['ny']})" if span["nx"] else "")
        if runs and runs[-1][1] == grid:
            runs[-1] = (runs[-1][0] + 1, grid)
        else:
            runs.append((1, grid))
    shapes = ", ".join(grid if count == 1 else f"{count} of {grid}" for count, grid in runs)
    spans = "1 span" if len(one["spans"]) == 1 else f"{len(one['spans'])} spans"
    return f"{one['visual_tokens']:,} visual tokens in {spans}: {shapes}"


def _line(name: str, value: bool | int | str) -> str:
    if isinstance(value, bool):
        text = "yes" if value else "no"
    else:
        text = f"{value:,}" if isinstance(value, int) else value or "-"
    return f"{name:<20} {text}"
