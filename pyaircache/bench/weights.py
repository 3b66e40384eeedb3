"""Random-weight GGUFs of a text model's real shape, made in seconds, no download.

The numbers in the files mean nothing; their shapes, types and metadata are those of a real model, so speed and memory
are. Quantised weights are written as random blocks (random quants, one sane scale per tensor), never quantised from
floats. The same seed gives the same bytes.

Needs the package ``gguf`` (``pip install 'pyaircache[bench]'``); so this module is imported late.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from .shapes import SHAPES, Shape

TYPES: dict[str, Type] = {"q4_0": Type.Q4_0, "q8_0": Type.Q8_0, "f16": Type.F16}

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
MERGES = ("i n", "e r", "Ġ t", "h e", "Ġt he", "u s", "us er", "a s", "as s")

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Tensor:
    """One tensor to be written: `shape` in NumPy order (rows, row length), `make` gives its bytes on demand."""

    name: str
    shape: tuple[int, ...]
    type: Type
    make: Callable[[np.random.Generator], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size in the file, in bytes."""
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // block * size


def blocks(rng: np.random.Generator, n_blocks: int, kind: Type, std: float) -> np.ndarray:
    """Random blocks as bytes `(n_blocks, block bytes)`, whose dequantised values have mean 0 and deviation `std`.

    Q4_0 is an F16 scale and 16 bytes of nibbles (value = scale * (nibble - 8)), Q8_0 an F16 scale and 32 signed
    bytes. The scale's sign is random, which takes the nibbles' off-centre mean out.
    """
    size = gguf.GGML_QUANT_SIZES[kind][1]
    unit = {Type.Q4_0: math.sqrt(21.5), Type.Q8_0: math.sqrt((256**2 + 2) / 12)}[kind]  # rms of a random quant
    n_words = -(-n_blocks * size // 8)
    data = rng.integers(0, 2**64, n_words, dtype=np.uint64).view(np.uint8)[: n_blocks * size].reshape(n_blocks, size)
    scale = int(np.float16(std / unit).view(np.uint16))  # positive: sign bit clear
    data[:, 0] = scale & 0xFF
    data[:, 1] = (data[:, 1] & 0x80) | (scale >> 8)
    return data


def weight(name: str, rows: int, cols: int, kind: Type, std: float | None = None) -> Tensor:
    """Random matrix; `std` defaults to 1 / sqrt(row length), so that outputs are as large as inputs."""
    std = 1 / math.sqrt(cols) if std is None else std
    if kind == Type.F16:
        return Tensor(name, (rows, cols), kind, lambda rng: floats(rng, (rows, cols), std).astype(np.float16))
    return Tensor(name, (rows, cols), kind, lambda rng: blocks(rng, rows * cols // 32, kind, std))


def floats(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> np.ndarray:
    """Normal deviates, F32."""
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(std)


def vector(name: str, size: int, value: float) -> Tensor:
    """Constant F32 vector: 1 for a norm, 0 for a bias."""
    return Tensor(name, (size,), Type.F32, lambda _: np.full(size, value, np.float32))


def text_tensors(shape: Shape, kind: Type) -> Iterator[Tensor]:
    """Tensors of the text model; the embedding (and output) matrix is Q8_0 when the rest is quantised."""
    width, width_kv = shape.width, shape.heads_kv * shape.head_dim
    head = Type.F16 if kind == Type.F16 else Type.Q8_0
    yield weight("token_embd.weight", shape.vocab, width, head, std=1.0 if not shape.tied else 1 / math.sqrt(width))
    yield vector("output_norm.weight", width, 1)
    if not shape.tied:
        yield weight("output.weight", shape.vocab, width, head)
    for i in range(shape.layers):
        yield vector(f"blk.{i}.attn_norm.weight", width, 1)
        for name, rows in (("q", width), ("k", width_kv), ("v", width_kv)):
            yield weight(f"blk.{i}.attn_{name}.weight", rows, width, kind)
            if shape.biased:
                yield vector(f"blk.{i}.attn_{name}.bias", rows, 0)
        yield weight(f"blk.{i}.attn_output.weight", width, width, kind)
        yield vector(f"blk.{i}.ffn_norm.weight", width, 1)
        yield weight(f"blk.{i}.ffn_gate.weight", shape.ffn, width, kind)
        yield weight(f"blk.{i}.ffn_up.weight", shape.ffn, width, kind)
        yield weight(f"blk.{i}.ffn_down.weight", width, shape.ffn, kind)


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins of the bytes 0..255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def add_vocab(writer: gguf.GGUFWriter, size: int) -> None:
    """Byte-level BPE: 256 bytes, a few merges, Qwen's special tokens, unused tokens up to `size`."""
    words = byte_symbols() + [merge.replace(" ", "") for merge in MERGES]
    first_special = len(words)
    n_unused = size - first_special - len(SPECIALS)
    normal, control, unused = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*words, *SPECIALS, *(f"[PAD{i}]" for i in range(n_unused))])
    writer.add_token_types([int(normal)] * first_special + [int(control)] * len(SPECIALS) + [int(unused)] * n_unused)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(first_special)
    writer.add_pad_token_id(first_special)
    writer.add_eos_token_id(first_special + SPECIALS.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def write(writer: gguf.GGUFWriter, tensors: list[Tensor], seed: int) -> None:
    """Writes a whole file, one tensor in memory at a time."""
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.Generator(np.random.SFC64(seed))
    for tensor in tensors:
        writer.write_tensor_data(tensor.make(rng))
    writer.close()


def make_text(path: Path, shape: Shape, kind: str = "q4_0", seed: int = 0) -> None:
    """Writes the text model; kind: type of its weights, one of `TYPES`."""
    writer = gguf.GGUFWriter(path, shape.arch)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("random weights")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads_kv)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(1e-6)
    if shape.arch == "qwen2vl":
        writer.add_rope_dimension_sections(shape.rope_sections)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])
    add_vocab(writer, shape.vocab)
    write(writer, list(text_tensors(shape, TYPES[kind])), seed)


def cache_folder() -> Path:
    """Where made models are kept: ``pyaircache`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pyaircache" / "bench"


def made(name: str, kind: str = "q4_0", folder: Path | None = None) -> Path:
    """The file of a shape, which is written if it is not there.

    Args:
        name: One of `SHAPES`.
        kind: Type of its weights, one of `TYPES`.
        folder: Where it is looked for and kept; None: `cache_folder`.
    """
    folder = cache_folder() if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{kind}.gguf"
    if not path.exists():
        complete(path, lambda part: make_text(part, SHAPES[name], kind))
    return path


def complete(path: Path, make: Callable[[Path], None]) -> None:
    """Makes a file under another name first: an interrupted run leaves no half file at `path`."""
    part = path.with_suffix(".part")
    make(part)
    part.replace(path)
