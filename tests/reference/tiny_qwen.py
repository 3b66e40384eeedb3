"""Small random models of Qwen's line: Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_vlm import IMAGE_TOKEN, SHAPE, GridVlm, text_config
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

WIDTH = SHAPE.heads * SHAPE.head_dim
MROPE = {"rope_type": "default", "rope_theta": SHAPE.theta, "mrope_section": list(SHAPE.sections)}
CONTROL = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": 273,
    "vision_start_token_id": 270,
    "vision_end_token_id": 271,
    "tie_word_embeddings": False,
}
VISION: dict[str, Any] = {"num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}
NAMES = ("qwen2vl", "qwen2.5vl", "qwen3vl")


def make(name: str, folder: Path, seed: int = 0) -> GridVlm:
    """One of NAMES.

    The limits of a picture's pixels are llama.cpp's, 8 to 4096 tokens, not those of the published models: a GGUF file
    has no place for them.
    """
    model, patch = {"qwen2vl": _qwen2vl, "qwen2.5vl": _qwen2_5_vl, "qwen3vl": _qwen3vl}[name]()
    token = (2 * patch) ** 2
    mean = [0.5] * 3 if name == "qwen3vl" else [0.48145466, 0.4578275, 0.40821073]
    std = [0.5] * 3 if name == "qwen3vl" else [0.26862954, 0.26130258, 0.27577711]
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch, min_pixels=8 * token, max_pixels=4096 * token, image_mean=mean, image_std=std
    )
    return GridVlm(model, folder, processor, seed)


def _qwen2vl() -> tuple[PreTrainedModel, int]:
    vision = VISION | {"depth": 3, "embed_dim": 64, "hidden_size": WIDTH, "mlp_ratio": 2, "patch_size": 14}
    config = Qwen2VLConfig(text_config=text_config(rope_parameters=MROPE), vision_config=vision, **CONTROL)
    return Qwen2VLForConditionalGeneration(config), 14


def _qwen2_5_vl() -> tuple[PreTrainedModel, int]:
    """Windows of 4 x 4 tokens in the layers 0 and 2 of the tower."""
    vision = VISION | {
        "depth": 4,
        "hidden_size": 64,
        "intermediate_size": 96,
        "out_hidden_size": WIDTH,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [1, 3],
    }
    config = Qwen2_5_VLConfig(text_config=text_config(rope_parameters=MROPE), vision_config=vision, **CONTROL)
    return Qwen2_5_VLForConditionalGeneration(config), 14


def _qwen3vl() -> tuple[PreTrainedModel, int]:
    """What the layers 0 and 2 of the tower see is added behind the first two text layers; the position embeddings of
    8 x 8 patches are stretched to the picture."""
    vision = VISION | {
        "depth": 4,
        "hidden_size": 64,
        "intermediate_size": 96,
        "out_hidden_size": WIDTH,
        "patch_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 2],
    }
    rope = MROPE | {"mrope_section": [6, 5, 5], "mrope_interleaved": True}
    text = text_config(rope_parameters=rope, head_dim=SHAPE.head_dim)
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **CONTROL)
    return Qwen3VLForConditionalGeneration(config), 16
