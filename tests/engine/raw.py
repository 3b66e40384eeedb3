"""The engine without the Python layer: every call gives its status. As a program: what pictures cost.

    python raw.py TEXT.gguf MMPROJ.gguf prompt|layout WIDTH HEIGHT

prints the status, the peak of memory in bytes above that of a small picture, and the error.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from pyaircache.engine import library
from pyaircache.model_files import bundled_dir


def bundled() -> tuple[Path, Path]:
    folder = bundled_dir()
    return next(folder.glob("pages-vl-Q8_0.gguf")), next(folder.glob("mmproj-*.gguf"))


class Raw:
    """An engine without the Python layer: every call gives its status. shared: a ``pac_model *`` to use."""

    def __init__(self, shared: Any = None, **fields: Any) -> None:
        self.ffi, self.lib, _ = library.load()
        self.kept = []
        self.ptr = self.ffi.NULL
        out = self.ffi.new("pac_engine **")
        if shared is None:
            self.status = self.lib.pac_engine_open(*self.params(**fields), out)
        else:
            self.status = self.lib.pac_engine_new(shared, self.params(**fields)[1], out)
        self.ptr = out[0]

    def params(self, **fields: Any) -> tuple[Any, Any]:
        """(pac_model_params, pac_engine_params); a field that both have is set in both."""
        model = self.ffi.new("struct pac_model_params *", self.lib.pac_model_default_params())
        engine = self.ffi.new("struct pac_engine_params *", self.lib.pac_engine_default_params())
        text, mmproj = bundled()
        defaults = {
            "model": str(text),
            "mmproj": str(mmproj),
            "n_ctx": 2048,
            "n_threads": 1,
            "n_batch": 64,
            "n_ubatch": 32,
        }
        for name, value in (defaults | fields).items():
            if isinstance(value, str):
                value = self.ffi.new("char[]", value.encode())
                self.kept.append(value)
            owners = [params for params in (model, engine) if hasattr(params, name)]
            assert owners, name
            for params in owners:
                setattr(params, name, value)
        return model, engine

    def close(self) -> None:
        self.lib.pac_engine_free(self.ptr)

    def error(self) -> str:
        return self.ffi.string(self.lib.pac_last_error()).decode()

    @property
    def marker(self) -> str:
        return self.ffi.string(self.lib.pac_marker(self.ptr)).decode()

    def images(self, *sizes: tuple[int, int], pixels: bool = True, frames: int = 0) -> tuple[Any, int]:
        items = self.ffi.new("struct pac_image[]", max(len(sizes), 1))
        for item, (width, height) in zip(items, sizes, strict=False):
            item.width, item.height, item.n_frames = width, height, frames
            if pixels:
                rng = np.random.default_rng([width, height])
                rgb = rng.integers(0, 256, max(frames, 1) * width * height * 3, np.uint8)
                self.kept.append(rgb)
                item.rgb = self.ffi.cast("const uint8_t *", self.ffi.from_buffer(rgb))
        self.kept.append(items)
        return items, len(sizes)

    def prompt(
        self, text: str, *sizes: tuple[int, int], reserve: int = 0, progress: Any = None, observe: bool = False
    ) -> int:
        out = self.ffi.new("struct pac_prompt_info *")
        method = self.ffi.NULL
        if observe:
            method = self.ffi.new("struct pac_method *", self.lib.pac_method_default())
        callback = progress or self.ffi.NULL
        return int(
            self.lib.pac_prompt(
                self.ptr, text.encode(), *self.images(*sizes), reserve, method, callback, self.ffi.NULL, out
            )
        )

    def layout(self, text: str, *sizes: tuple[int, int], **options: Any) -> tuple[int, list[tuple[int, ...]]]:
        out = self.ffi.new("struct pac_prompt_info *")
        status = self.lib.pac_layout(self.ptr, text.encode(), *self.images(*sizes, **options), out)
        spans = [out.spans[i] for i in range(out.n_spans)] if status == 0 else []
        return int(status), [(s.image, s.first, s.n_tokens, s.nx, s.ny, s.pos0, s.pos1) for s in spans]

    def compress(self) -> int:
        method = self.ffi.new("struct pac_method *", self.lib.pac_method_default())
        out = self.ffi.new("struct pac_compression *")
        return int(self.lib.pac_compress(self.ptr, method, False, self.ffi.NULL, out))

    def logits(self) -> np.ndarray:
        pointer, n = self.ffi.new("const float **"), self.ffi.new("int32_t *")
        assert self.lib.pac_logits(self.ptr, pointer, n) == 0, self.error()
        return np.frombuffer(self.ffi.buffer(pointer[0], 4 * n[0]), np.float32).copy()

    def n_past(self) -> int:
        out = self.ffi.new("struct pac_stats *")
        assert self.lib.pac_engine_stats(self.ptr, out) == 0
        return int(out.n_past)

    def embeddings(self) -> tuple[int, int, int]:
        pointer, n, width = self.ffi.new("const float **"), self.ffi.new("int32_t *"), self.ffi.new("int32_t *")
        status = self.lib.pac_image_embeddings(self.ptr, pointer, n, width)
        return int(status), int(n[0]), int(width[0])


def peak() -> int:
    """Bytes of memory that this process has held at most."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def main(text: str, mmproj: str, call: str, width: str, height: str) -> None:
    engine = Raw(model=text, mmproj=mmproj, n_ctx=4096)
    assert engine.status == 0, engine.error()
    assert engine.prompt(engine.marker + "?", (90, 70)) == 0, engine.error()
    assert engine.lib.pac_reset(engine.ptr) == 0
    size = (int(width), int(height))
    before = peak()
    if call == "layout":
        status, _ = engine.layout(engine.marker + "?", size, pixels=False)
    else:
        status = engine.prompt(engine.marker + "?", size)
    print(status, peak() - before, engine.error() if status else "")


if __name__ == "__main__":
    main(*sys.argv[1:])
