"""A small random LLaVA-1.5: CLIP's tower with a class token, two layers of projector, Llama or Mistral."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_vlm import IMAGE_TOKEN, FlatVlm, text_config
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PretrainedConfig,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

PATCH, SIDE = 14, 8
PX = PATCH * SIDE
NAMES: dict[str, Callable[[], PretrainedConfig]] = {
    "llava llama": lambda: LlamaConfig(**text_config(), architectures=["LlamaForCausalLM"]),
    "llava mistral": lambda: MistralConfig(**text_config(), architectures=["MistralForCausalLM"], sliding_window=None),
}


def make(name: str, folder: Path, seed: int = 0) -> Llava:
    """One of NAMES."""
    return Llava(NAMES[name](), folder, seed)


class Llava(FlatVlm):
    """Pictures are padded to squares, as in the original code; Hugging Face's default is to cut them."""

    def __init__(self, text: PretrainedConfig, folder: Path, seed: int) -> None:
        vision = CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=PX,
            patch_size=PATCH,
            projection_dim=64,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=IMAGE_TOKEN,
            image_seq_length=SIDE**2,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            tie_word_embeddings=False,
        )
        processor = LlavaImageProcessorPil(
            do_pad=True, size={"shortest_edge": PX}, crop_size={"height": PX, "width": PX}
        )
        super().__init__(LlavaForConditionalGeneration(config), folder, processor, seed)

    def features(self, pixels: Any) -> Tensor:
        with torch.no_grad():
            return torch.cat(self.model.model.get_image_features(pixels["pixel_values"]).pooler_output)

    def count(self, width: int, height: int) -> int:
        return SIDE**2
