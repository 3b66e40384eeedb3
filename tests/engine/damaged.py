"""GGUF files with one thing changed, and the child process that loads them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Kind

NUMBERS = (0, 1, 2, 3, 5, 7, 63, 64, 65, 1000, 65535, 1_000_000, 2**31 - 1, 2**31, 2**32 - 1)
FLOATS = (0.0, -1.0, 1e30, float("inf"), float("nan"))
PROJECTORS = (
    "mlp",
    "qwen2vl_merger",
    "qwen2.5vl_merger",
    "qwen3vl_merger",
    "internvl",
    "idefics3",
    "llava_next",
    "llava_onevision",
    "gemma3",
    "?",
    "",
)
ARRAYS: tuple[list[Any], ...] = ([0, 0, 0], [-1, -1, -1, -1], [1], [2**31 - 1] * 4, [1, 2] * 5000)

Value = tuple[Any, Kind, Kind | None]  # value, type, type of an array's elements


@dataclass
class Contents:
    """What a GGUF file holds."""

    arch: str
    keys: dict[str, Value]
    tensors: dict[str, tuple[np.ndarray, Type]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Contents:
        reader = gguf.GGUFReader(path)
        fields = {k: v for k, v in reader.fields.items() if not k.startswith("GGUF.")}
        arch = fields.pop("general.architecture").contents()
        keys = {k: (v.contents(), v.types[0], v.types[1] if len(v.types) > 1 else None) for k, v in fields.items()}
        return cls(arch, keys, {t.name: (np.array(t.data), t.tensor_type) for t in reader.tensors})

    def write(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(path, self.arch)
        for key, (value, kind, element) in self.keys.items():
            writer.add_key_value(key, value, kind, element)
        for name, (data, kind) in self.tensors.items():
            writer.add_tensor(name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def having(self, key: str, value: Value | None) -> Contents:
        keys = {k: v for k, v in (self.keys | {key: value}).items() if v is not None}
        return Contents(self.arch, keys, self.tensors)  # type: ignore[arg-type]

    def holding(self, name: str, tensor: tuple[np.ndarray, Type] | None) -> Contents:
        tensors = {k: v for k, v in (self.tensors | {name: tensor}).items() if v is not None}
        return Contents(self.arch, self.keys, tensors)  # type: ignore[arg-type]


def other_values(file: Contents, prefix: str) -> Iterator[tuple[str, Contents]]:
    """One value of the metadata is another one, of another type, or missing."""
    for key, (value, kind, element) in file.keys.items():
        if not key.startswith(prefix):
            continue
        values: list[Value] = [(7.0, Kind.FLOAT64, None), ("text", Kind.STRING, None), (7, Kind.UINT8, None)]
        if kind is Kind.ARRAY and element is not None:
            if element in (Kind.INT32, Kind.UINT32, Kind.FLOAT32):
                values += [
                    (array, kind, element)
                    for array in ARRAYS
                    if element is not Kind.UINT32 or min(array, default=0) >= 0
                ]
            values += [(list(value)[:-1] or [0], kind, element), (list(value) * 2, kind, element)]
        elif kind is Kind.FLOAT32:
            values += [(number, kind, None) for number in FLOATS]
        elif kind is Kind.BOOL:
            values += [(not value, kind, None)]
        elif kind is Kind.STRING:
            values += [(name, kind, None) for name in PROJECTORS]
        elif kind in (Kind.UINT32, Kind.INT32):
            numbers = {*NUMBERS, value + 1, max(value - 1, 0), 2 * value} - {value}
            values += [(n, kind, None) for n in sorted(numbers) if kind is Kind.UINT32 or n < 2**31]
        yield f"{key} missing", file.having(key, None)
        for new in values:
            yield f"{key} = {str(new[0])[:30]} ({new[1].name})", file.having(key, new)


def other_tensors(file: Contents) -> Iterator[tuple[str, Contents]]:
    """One tensor is missing, of another shape or of another type."""
    for name, (data, kind) in file.tensors.items():
        yield f"{name} missing", file.holding(name, None)
        if kind not in (Type.F32, Type.F16):
            continue
        for axis in range(data.ndim):
            for new in (np.concatenate([data, data.take([0], axis)], axis), data.take([0], axis)):
                if new.shape != data.shape:
                    yield f"{name} {data.shape} as {new.shape}", file.holding(name, (new, kind))
        if data.ndim > 1 and data.shape != data.T.shape:
            yield f"{name} transposed", file.holding(name, (np.ascontiguousarray(data.T), kind))
        yield f"{name} flat", file.holding(name, (data.reshape(-1), kind))
        yield f"{name} in another dimension", file.holding(name, (data[None, None] if data.ndim < 3 else data[0], kind))
        for dtype, other in (
            (np.float32, Type.F32),
            (np.float16, Type.F16),
            (np.float64, Type.F64),
            (np.int32, Type.I32),
        ):
            if other != kind:
                yield f"{name} as {other.name}", file.holding(name, (data.astype(dtype), other))
        for other in (Type.Q8_0, Type.BF16, Type.Q8_K):
            block, size = gguf.GGML_QUANT_SIZES[other]
            if data.shape[-1] % block == 0:
                raw = np.zeros((*data.shape[:-1], data.shape[-1] // block * size), np.uint8)
                yield f"{name} as {other.name}", file.holding(name, (raw, other))


def more_tensors(file: Contents, width: int) -> Iterator[tuple[str, Contents]]:
    """A tensor that llama.cpp knows and this file does not have."""
    names = ["v.class_embd", "v.patch_embd.bias", "v.patch_embd.weight.1", "v.position_embd.weight", "v.image_newline"]
    names += [f"v.{part}.{end}" for part in ("pre_ln", "post_ln", "norm_embd") for end in ("weight", "bias")]
    parts = [
        "attn_qkv",
        "attn_q_norm",
        "attn_k_norm",
        "attn_q",
        "ls1",
        "ls2",
        "out_scale",
        "attn_post_norm",
        "ffn_post_norm",
    ]
    parts += ["ffn_gate", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "exp_probs_b", "ln1"]
    names += [f"v.blk.0.{part}.{end}" for part in parts for end in ("weight", "bias")] + ["v.blk.0.attn_sinks"]
    names += [f"v.deepstack.0.{part}.{end}" for part in ("norm", "fc1", "fc2") for end in ("weight", "bias")]
    names += [f"mm.{i}.{end}" for i in range(5) for end in ("weight", "bias")]
    for name in names:
        for shape in ((3,), (width,), (width, width)):
            if name not in file.tensors:
                yield f"{name} {shape} added", file.holding(name, (np.zeros(shape, np.float32), Type.F32))


def cut(path: Path, out: Path) -> Iterator[tuple[str, Path]]:
    """The file ends early."""
    whole = path.read_bytes()
    for share in (0.0, 0.001, 0.01, 0.5, 0.999):
        out.write_bytes(whole[: int(len(whole) * share)])
        yield f"{share:.1%} of the file", out


class Loader:
    """The child process; a new one after each crash."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def load(self, text: Path, mmproj: Path | None, sizes: Sequence[tuple[int, int]] = ()) -> dict[str, Any]:
        """What became of it; {"signal": NAME} when it ended the process."""
        if self.process is None:
            child = [sys.executable, str(Path(__file__).with_name("load_files.py"))]
            self.process = subprocess.Popen(
                child, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        assert self.process.stdin and self.process.stdout
        request = {"text": str(text), "mmproj": str(mmproj) if mmproj else None, "sizes": sizes}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("answer "):
                return dict(json.loads(line.removeprefix("answer ")))
        code = self.process.wait()
        self.process = None
        return {"signal": signal.Signals(-code).name if code < 0 else f"exit status {code}"}

    def close(self) -> None:
        if self.process is not None and self.process.stdin:
            self.process.stdin.close()
            self.process.wait()
            self.process = None
