"""Random-weight GGUF pairs of real shape: a Qwen2-VL text model and a vision projector, made in seconds, no download.

The numbers in the files mean nothing; their shapes, types and metadata are those of a real model, so speed and memory
are. Quantised weights are written as random blocks (random quants, one sane scale per tensor), never quantised from
floats. The same seed gives the same bytes.

    python bench/random_gguf.py OUT_DIR --preset qwen2-0.5b --type q4_0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

PATCH = 14  # px per side of a vision patch
MERGE = 2  # patches per side of a visual token: one token covers 28 x 28 px
MIN_VOCAB = 512

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
class Shape:
    """Shape of a text model and of its projector."""

    layers: int
    width: int
    heads: int
    heads_kv: int
    ffn: int
    vocab: int
    tied: bool = True  # output matrix = token embedding
    context: int = 32768  # tokens
    rope_base: float = 1e6
    vision_layers: int = 2
    vision_width: int = 128
    vision_heads: int = 2

    @property
    def head_dim(self) -> int:
        """Elements of one head."""
        return self.width // self.heads

    @property
    def rope_sections(self) -> list[int]:
        """M-RoPE sections (time, height, width, unused) in Qwen2-VL's ratio 2 : 3 : 3 of half a head."""
        half = self.head_dim // 2
        side = half * 3 // 8
        return [half - 2 * side, side, side, 0]

    def __post_init__(self) -> None:
        if self.width % self.heads or self.heads % self.heads_kv:
            raise ValueError(f"width {self.width}, heads {self.heads}, heads_kv {self.heads_kv}: not divisible")
        for name in ("width", "ffn", "vision_width"):
            if getattr(self, name) % 32:
                raise ValueError(f"{name} must be a multiple of 32 (block size), got {getattr(self, name)}")
        if self.vocab < MIN_VOCAB:
            raise ValueError(f"vocab must be at least {MIN_VOCAB}, got {self.vocab}")


# The vision tower is small on purpose: encoding is not what the benchmarks measure.
PRESETS: dict[str, Shape] = {
    "tiny": Shape(2, 128, 2, 1, 256, 512, context=8192, vision_layers=1, vision_width=64, vision_heads=1),
    "qwen2-0.5b": Shape(24, 896, 14, 2, 4864, 151936),
    "qwen2-1.5b": Shape(28, 1536, 12, 2, 8960, 151936),
    "qwen2-7b": Shape(28, 3584, 28, 4, 18944, 152064, tied=False),
}


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
            yield vector(f"blk.{i}.attn_{name}.bias", rows, 0)
        yield weight(f"blk.{i}.attn_output.weight", width, width, kind)
        yield vector(f"blk.{i}.ffn_norm.weight", width, 1)
        yield weight(f"blk.{i}.ffn_gate.weight", shape.ffn, width, kind)
        yield weight(f"blk.{i}.ffn_up.weight", shape.ffn, width, kind)
        yield weight(f"blk.{i}.ffn_down.weight", width, shape.ffn, kind)


def vision_tensors(shape: Shape) -> Iterator[Tensor]:
    """Tensors of the projector file, F16 matrices and F32 vectors."""
    width, ffn, merged = shape.vision_width, 4 * shape.vision_width, MERGE * MERGE * shape.vision_width
    patch, std = (width, 3, PATCH, PATCH), 1 / math.sqrt(3 * PATCH * PATCH)
    for name in ("v.patch_embd.weight", "v.patch_embd.weight.1"):  # one per frame of a pair
        yield Tensor(name, patch, Type.F16, lambda rng: floats(rng, patch, std).astype(np.float16))
    for i in range(shape.vision_layers):
        for norm in ("ln1", "ln2"):
            yield vector(f"v.blk.{i}.{norm}.weight", width, 1)
            yield vector(f"v.blk.{i}.{norm}.bias", width, 0)
        matrices = [(name, width, width) for name in ("attn_q", "attn_k", "attn_v", "attn_out")]
        for name, rows, cols in [*matrices, ("ffn_up", ffn, width), ("ffn_down", width, ffn)]:
            yield weight(f"v.blk.{i}.{name}.weight", rows, cols, Type.F16)
            yield vector(f"v.blk.{i}.{name}.bias", rows, 0)
    yield vector("v.post_ln.weight", width, 1)
    yield vector("v.post_ln.bias", width, 0)
    for name, rows in (("mm.0", merged), ("mm.2", shape.width)):
        yield weight(f"{name}.weight", rows, merged, Type.F16)
        yield vector(f"{name}.bias", rows, 0)


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


def make_text(path: Path, shape: Shape, kind: str = "q4_0", arch: str = "qwen2vl", seed: int = 0) -> None:
    """Writes the text model. `arch`: "qwen2vl" (M-RoPE) or "qwen2" (text only)."""
    writer = gguf.GGUFWriter(path, arch)
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
    if arch == "qwen2vl":
        writer.add_rope_dimension_sections(shape.rope_sections)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])
    add_vocab(writer, shape.vocab)
    write(writer, list(text_tensors(shape, TYPES[kind])), seed)


def make_mmproj(path: Path, shape: Shape, seed: int = 0) -> None:
    """Writes the projector (F16) that fits the text model of `shape`."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_name("random weights")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("qwen2vl_merger")
    writer.add_vision_projection_dim(shape.width)
    writer.add_vision_image_size(560)
    writer.add_vision_patch_size(PATCH)
    writer.add_vision_embedding_length(shape.vision_width)
    writer.add_vision_feed_forward_length(4 * shape.vision_width)
    writer.add_vision_block_count(shape.vision_layers)
    writer.add_vision_head_count(shape.vision_heads)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean([0.5, 0.5, 0.5])
    writer.add_vision_image_std([0.5, 0.5, 0.5])
    write(writer, list(vision_tensors(shape)), seed)


def make_pair(
    folder: Path, preset: str = "qwen2-0.5b", kind: str = "q4_0", arch: str = "qwen2vl", vocab: int = 0, seed: int = 0
) -> tuple[Path, Path | None]:
    """Makes (or finds) the files of a preset in `folder`: paths of the model and of its projector (None for "qwen2").

    Args:
        vocab: tokens of the vocabulary; 0 for the preset's own.
    """
    for name, value, allowed in (("preset", preset, PRESETS), ("type", kind, TYPES), ("arch", arch, ARCHS)):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    shape = replace(PRESETS[preset], vocab=vocab or PRESETS[preset].vocab)
    folder.mkdir(parents=True, exist_ok=True)
    size, run = f"-v{vocab}" if vocab else "", f"-s{seed}" if seed else ""
    model = folder / f"{preset}-{arch}-{kind}{size}{run}.gguf"
    mmproj = folder / f"{preset}-mmproj-f16{run}.gguf" if arch == "qwen2vl" else None
    if not model.exists():
        complete(model, lambda path: make_text(path, shape, kind, arch, seed))
    if mmproj is not None and not mmproj.exists():
        complete(mmproj, lambda path: make_mmproj(path, shape, seed))
    return model, mmproj


def complete(path: Path, make: Callable[[Path], None]) -> None:
    """Makes a file under another name first: an interrupted run leaves no half file at `path`."""
    part = path.with_suffix(".part")
    make(part)
    part.replace(path)


ARCHS = ("qwen2vl", "qwen2")


@click.command(context_settings={"show_default": True})
@click.argument("out_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option("--preset", type=click.Choice(list(PRESETS)), default="qwen2-0.5b", help="Shape of the model.")
@click.option("--type", "kind", type=click.Choice(list(TYPES)), default="q4_0", help="Type of the weights.")
@click.option("--arch", type=click.Choice(ARCHS), default="qwen2vl", help="qwen2 is text only: no projector.")
@click.option("--vocab", default=0, help="Tokens of the vocabulary; 0: the preset's own.")
@click.option("--seed", default=0)
def main(out_dir: Path, preset: str, kind: str, arch: str, vocab: int, seed: int) -> None:
    """Write a random text model and its vision projector into OUT_DIR; prints their paths."""
    try:
        paths = make_pair(out_dir, preset, kind, arch, vocab, seed)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    for path in filter(None, paths):
        click.echo(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
