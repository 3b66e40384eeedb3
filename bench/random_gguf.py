"""Random-weight GGUF pairs of real shape: a Qwen2-VL text model and a vision projector, made in seconds, no download.

The text model is `pyaircache.bench.weights`'; here are its projector, and the command.

    python bench/random_gguf.py OUT_DIR --preset qwen2-0.5b --type q4_0
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import gguf
import numpy as np

from pyaircache.bench.shapes import SHAPES, Shape
from pyaircache.bench.weights import (
    SPECIALS,
    TYPES,
    Tensor,
    Type,
    complete,
    floats,
    make_text,
    text_tensors,
    vector,
    weight,
    write,
)

__all__ = [
    "ARCHS",
    "MERGE",
    "PATCH",
    "PRESETS",
    "SPECIALS",
    "TYPES",
    "Shape",
    "make_mmproj",
    "make_pair",
    "text_tensors",
]

PATCH = 14  # px per side of a vision patch
MERGE = 2  # patches per side of a visual token: one token covers 28 x 28 px

PRESETS: dict[str, Shape] = {
    "tiny": SHAPES["tiny"],
    "qwen2-0.5b": replace(SHAPES["llava-ov-0.5b"], arch="qwen2vl"),
    "qwen2-1.5b": SHAPES["qwen2-vl-2b"],
    "qwen2-7b": SHAPES["qwen2-vl-7b"],
}


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
    shape = replace(PRESETS[preset], vocab=vocab or PRESETS[preset].vocab, arch=arch)
    folder.mkdir(parents=True, exist_ok=True)
    size, run = f"-v{vocab}" if vocab else "", f"-s{seed}" if seed else ""
    model = folder / f"{preset}-{arch}-{kind}{size}{run}.gguf"
    mmproj = folder / f"{preset}-mmproj-f16{run}.gguf" if arch == "qwen2vl" else None
    if not model.exists():
        complete(model, lambda path: make_text(path, shape, kind, seed))
    if mmproj is not None and not mmproj.exists():
        complete(mmproj, lambda path: make_mmproj(path, shape, seed))
    return model, mmproj


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
