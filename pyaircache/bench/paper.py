"""The paper's own table of speed (table 10 of its supplement), beside the same cells of ours."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .grid import short
from .results import Line, medians, speed

HEAD = (
    "model", "B", "prompt", "full tokens/s", "keep 0.5", "keep 0.1", "ours: full", "keep 0.5", "keep 0.1",
)  # fmt: skip
_KEEPS = (1.0, 0.5, 0.1)


@cache
def table10() -> dict[str, Any]:
    """The published figures, with their source and units."""
    data: dict[str, Any] = json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
    return data


def rows(lines: Iterable[Line], *, whole: bool = False) -> list[list[str]]:
    """Their tokens/s and, relative to the full cache, ours with an F16 cache; `HEAD` first.

    Args:
        lines: What was measured.
        whole: Also their rows that have no counterpart in what was measured.
    """
    ours = {
        (one["model"].lower(), one["pl"], one["pp"], one["keep"]): speed(one)
        for one in medians(lines)
        if one["type_k"] == "f16"
    }
    out = [list(HEAD)]
    for row in table10()["rows"]:
        place = row["model"].lower(), row["batch"], row["prompt"]
        mine = [ours.get((*place, keep)) for keep in _KEEPS]
        if whole or any(mine[1:]):
            theirs = _speeds(row["tokens_per_second"])
            out.append([row["model"], str(row["batch"]), short(row["prompt"]), *theirs, *_speeds(mine)])
    return out


def _speeds(values: Sequence[float | None]) -> list[str]:
    """Tokens/s of the full cache; of the others also how many times as fast they are."""
    full = values[0]
    out = ["" if full is None else f"{full:,.4g}"]
    for value in values[1:]:
        times = f" ({value / full:.2f} x)" if value and full else ""
        out.append("" if value is None else f"{value:,.4g}{times}")
    return out
