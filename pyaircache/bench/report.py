"""What is shown of results: their file, the machine they are of, tables with their heads."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from . import paper, results
from .results import Line

_NOTES = (
    "ms a step: one token of every conversation; tokens/s: of all together; times: by those of the full cache; "
    "roofline: the share of a step in which a copy moves the bytes read; fit: conversations of this size in "
    "{memory:g} GB. Bytes in MB."
)
_PAPER = (
    "The paper's table 10, published, on the authors' hardware; and ours, of the table above. x: times the full cache."
)


def read(path: Path) -> list[Line]:
    """The lines of a file of results; a last one that was cut off is left out.

    Raises:
        ArgumentError: It is not such a file.
    """
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ArgumentError(f"{path} cannot be read: {error.strerror}") from None
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            results.rows([line])
            lines.append(line)
        except (ValueError, KeyError, TypeError):
            if number < len(texts) or not lines:
                raise ArgumentError(f"{path}: line {number} is no result of pyaircache bench") from None
    return lines


def machine() -> dict[str, Any]:
    """What figures belong to: processor, cores, and how busy these were over the last minute."""
    names = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": os.cpu_count(), "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None}


def texts(lines: Sequence[Line], markdown: bool) -> Iterator[str]:
    """For every model its tables, and what they are of.

    Args:
        lines: What was measured.
        markdown: Tables in Markdown, else for a terminal.
    """
    table = results.markdown if markdown else results.text
    for name in dict.fromkeys(line["model"] for line in lines):
        of_model = [line for line in lines if line["model"] == name]
        yield from _head(of_model)
        yield ""
        yield from table(results.rows(of_model))
        yield ""
        yield _NOTES.format(memory=of_model[0]["memory_bytes"] / 1e9)
        theirs = paper.rows(of_model)
        if len(theirs) > 1:
            yield from ("", _PAPER, "", *table(theirs))


def _head(lines: Sequence[Line]) -> Iterator[str]:
    first = lines[0]
    loads = [line["load"] for line in lines if line["load"] is not None]
    busy = f", load {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    yield (
        f"{first['model']}, weights {first['model_bytes'] / 1e6:,.0f} MB, {first['prefill']} prefill, "
        f"{first['tg']} steps timed; {first['date']}, engine {first['engine']}"
    )
    own = ", times of its own" if first["alone"] else ""
    yield (
        f"{first['cpu']}, {first['cores']} cores{busy}, {first['n_threads']} threads{own}; a copy moves "
        f"{first['copy_bytes_per_second'] / 1e9:.1f} GB/s"
    )
