"""A small random InternVL with a Qwen2 text model, written as GGUF files: visual tokens with plain positions.

What tells it from tiny's Qwen2-VL: every visual token has a position of its own, there is no token grid, and a large
picture becomes several tiles next to each other. Its vision tower has no counterpart here: take what it made of a
picture from the engine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import tiny
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from training import export_gguf, export_tokenizer

SHAPE = tiny.Shape(layers=4, heads=4, heads_kv=2, head_dim=32, sections=(4, 6, 6))  # without its sections
VOCABULARY = 288
PATCH, MERGE, SIDE = 14, 2, 4  # a tile has SIDE x SIDE tokens
TILE_PX = PATCH * MERGE * SIDE
MAX_TILES = 2  # besides the picture as a whole
WIDTH, DEPTH = 32, 1  # of the vision tower

# The names that llama.cpp puts around an image of this family
RENAMED = {"<|vision_start|>": "<img>", "<|vision_end|>": "</img>"}
IMAGE = "<img><|image_pad|></img>"


@dataclass(frozen=True)
class Files:
    """What save_tiny made."""

    model: Qwen2ForCausalLM
    tokenizer: PreTrainedTokenizerFast
    text: Path
    mmproj: Path


def save_tiny(folder: Path, seed: int = 0) -> Files:
    """Makes a random model and writes its two GGUF files in F32.

    Args:
        folder: exists.
        seed: of the weights.
    """
    tiny.save_tokenizer(folder, RENAMED)
    width = SHAPE.heads * SHAPE.head_dim
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=SHAPE.layers,
        num_attention_heads=SHAPE.heads,
        num_key_value_heads=SHAPE.heads_kv,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": SHAPE.theta},
        bos_token_id=267,
        eos_token_id=269,
        pad_token_id=267,
    )
    config._attn_implementation = "eager"
    model = Qwen2ForCausalLM(config).eval()
    tiny.randomise(model, SHAPE, torch.Generator().manual_seed(seed))
    return Files(
        model,
        PreTrainedTokenizerFast.from_pretrained(folder),
        _export_text(folder, config, model),
        _export_vision(folder, width, np.random.default_rng(seed)),
    )


def prompt_ids(tokenizer: PreTrainedTokenizerFast, text: str, counts: list[int]) -> Tensor:
    """Tokens [S] of a text with IMAGE for every image, each image's place filled with its count of visual tokens."""
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    remaining = iter(counts)
    ids = tokenizer.encode(text, add_special_tokens=False)
    return torch.tensor([token for i in ids for token in ([i] * next(remaining) if i == pad else [i])])


def chat_text(content: list[str | Image.Image]) -> str:
    """One user turn as the chat template renders it."""
    parts = "".join(part if isinstance(part, str) else IMAGE for part in content)
    return f"<|im_start|>user\n{parts}<|im_end|>\n<|im_start|>assistant\n"


def _export_text(folder: Path, config: Qwen2Config, model: Qwen2ForCausalLM) -> Path:
    out = folder / "text.gguf"
    writer = gguf.GGUFWriter(out, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(SHAPE.theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    export_tokenizer.add_tokenizer(writer, folder, {}, json.loads(config.to_json_string()), config.vocab_size)
    tensors = []
    for name, values in model.state_dict().items():
        parts = name.removeprefix("model.").split(".")
        if parts[0] == "layers":
            module = export_gguf.TEXT_LAYER_NAMES[".".join(parts[2:-1])]
            target = f"blk.{parts[1]}.{module}.{parts[-1]}"
        else:
            target = (export_gguf.TEXT_NAMES | {"lm_head.weight": "output.weight"})[".".join(parts)]
        tensors.append((target, values.numpy()))
    return export_gguf._write(writer, tensors, gguf.GGMLQuantizationType.F32, out)


def _export_vision(folder: Path, width: int, rng: np.random.Generator) -> Path:
    out = folder / "mmproj.gguf"
    writer = gguf.GGUFWriter(out, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("internvl")
    writer.add_vision_projection_dim(width)
    writer.add_vision_image_size(TILE_PX)
    writer.add_vision_patch_size(PATCH)
    writer.add_vision_embedding_length(WIDTH)
    writer.add_vision_feed_forward_length(2 * WIDTH)
    writer.add_vision_block_count(DEPTH)
    writer.add_vision_head_count(2)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_use_gelu(True)
    writer.add_vision_projector_scale_factor(MERGE)
    writer.add_vision_preproc_min_tiles(1)
    writer.add_vision_preproc_max_tiles(MAX_TILES)

    wide = WIDTH * MERGE**2
    shapes = {
        "v.class_embd": (WIDTH,),
        "v.patch_embd.weight": (WIDTH, 3, PATCH, PATCH),
        "v.patch_embd.bias": (WIDTH,),
        "v.position_embd.weight": ((SIDE * MERGE) ** 2 + 1, WIDTH),
        "mm.model.mlp.0": (wide,),
        "mm.model.mlp.1": (width, wide),
        "mm.model.mlp.3": (width, width),
    }
    for i in range(DEPTH):
        shapes |= {f"v.blk.{i}.{name}": (WIDTH, WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_out")}
        shapes |= {f"v.blk.{i}.ln1": (WIDTH,), f"v.blk.{i}.ln2": (WIDTH,)}
        shapes |= {f"v.blk.{i}.ffn_up": (2 * WIDTH, WIDTH), f"v.blk.{i}.ffn_down": (WIDTH, 2 * WIDTH)}
    tensors = []
    for name, shape in shapes.items():
        values = rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        if name.startswith("v.blk") or name.startswith("mm."):  # a matrix or a norm, and its bias
            tensors.append((f"{name}.weight", 1 + 0.1 * values if len(shape) == 1 else values))
            tensors.append((f"{name}.bias", 0.1 * rng.normal(size=shape[:1]).astype(np.float32)))
        else:
            tensors.append((name, values))
    return export_gguf._write(writer, tensors, gguf.GGMLQuantizationType.F32, out)
