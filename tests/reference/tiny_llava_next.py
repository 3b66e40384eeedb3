"""A small random LLaVA-NeXT: CLIP's tower on a stretched picture and on tiles, rows across the tiles with a newline
each and without their padding, and Mistral as text model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from tiny_vlm import IMAGE_TOKEN, FlatVlm, text_config
from torch import Tensor
from transformers import CLIPVisionConfig, LlavaNextConfig, LlavaNextForConditionalGeneration, MistralConfig
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

PATCH, SIDE = 14, 4
PX = PATCH * SIDE
GRIDS = [[PX, 2 * PX], [2 * PX, PX], [2 * PX, 2 * PX], [3 * PX, PX], [PX, 3 * PX]]  # as the real model's
NAMES = ("llava-next",)


def make(name: str, folder: Path, seed: int = 0) -> LlavaNext:
    """One of NAMES."""
    return LlavaNext(folder, seed)


class LlavaNext(FlatVlm):
    """Every picture has its tiles, also one of several."""

    rounds = False
    names = ("pixel_values", "image_sizes")

    def __init__(self, folder: Path, seed: int) -> None:
        vision = CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=PX,
            patch_size=PATCH,
            projection_dim=64,
        )
        text = MistralConfig(**text_config(), architectures=["MistralForCausalLM"], sliding_window=None)
        config = LlavaNextConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=IMAGE_TOKEN,
            image_seq_length=SIDE**2,
            image_grid_pinpoints=GRIDS,
            tie_word_embeddings=False,
        )
        processor = LlavaNextImageProcessorPil(
            size={"shortest_edge": PX}, crop_size={"height": PX, "width": PX}, image_grid_pinpoints=GRIDS
        )
        super().__init__(LlavaNextForConditionalGeneration(config), folder, processor, seed)

    def pixels(self, picture: Image.Image) -> Any:
        """As the Pillow that is installed resizes."""
        return self.processor(images=[picture], return_tensors="pt")

    def features(self, pixels: Any) -> Tensor:
        with torch.no_grad():
            return torch.cat(list(self.model.model.get_image_features(**pixels).pooler_output))

    def count(self, width: int, height: int) -> int:
        words = SimpleNamespace(image_processor=self.processor, patch_size=PATCH, num_additional_image_tokens=0)
        words._get_unpadded_features = lambda *sizes: LlavaNextProcessor._get_unpadded_features(words, *sizes)
        return LlavaNextProcessor._get_number_of_features(words, height, width, PX, PX)

    def ids(self, text: str, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """With the newline that Hugging Face's templates have behind a picture, where text touches it."""
        return super().ids(re.sub(r"(<\|image_pad\|>)(?=[^\s<])", "\\1\n", text), sizes)

    def joined(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Pictures of fewer tiles are filled up by the processor."""
        return dict(self.processor(images=list(pictures), return_tensors="pt"))
