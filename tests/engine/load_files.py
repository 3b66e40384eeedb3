"""A child process that loads files which may be damaged, and looks at pictures with those that load.

Each line on stdin is JSON: {"text": PATH, "mmproj": PATH or null, "sizes": [[WIDTH, HEIGHT], ...]}. Each answer is a
line on stdout: "answer " and JSON: {"error": null or [CLASS, MESSAGE], "tokens": [...], "peak": BYTES}. What else is
printed comes from whoever ends the process.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from pyaircache import errors
from pyaircache.engine.engine import Engine
from pyaircache.engine.structs import Message


def peak() -> int:
    """Bytes of memory that this process has held at most."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def load(text: str, mmproj: str | None, sizes: list[list[int]]) -> dict[str, Any]:
    tokens = []
    try:
        engine = Engine(text, mmproj, n_threads=1, n_ctx=512)
        try:
            for width, height in sizes:
                engine.reset()
                rng = np.random.default_rng(0)
                picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
                rendered = engine.apply_template([Message("user", engine.marker() + "Hi")])
                engine.layout(rendered, [picture])
                tokens.append(engine.prompt(rendered, [picture]).n_visual)
            if not sizes:
                engine.prompt(engine.apply_template([Message("user", "Hi")]))
                engine.sample()
        finally:
            engine.close()
    except errors.PyAircacheError as exc:
        return {"error": [type(exc).__name__, str(exc)], "tokens": tokens, "peak": peak()}
    return {"error": None, "tokens": tokens, "peak": peak()}


if __name__ == "__main__":
    for line in sys.stdin:
        print("answer", json.dumps(load(**json.loads(line))), flush=True)
