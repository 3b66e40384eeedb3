"""Small random SmolVLM and Idefics 3 models: every picture is enlarged and cut into tiles, each behind a marker of its
row and column, with the whole picture last. A llama as text model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aircache_ref as ref
import numpy as np
import tiny
import torch
from PIL import Image
from tiny_vlm import IMAGE_TOKEN, FlatVlm, Spans, text_config
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import (
    Idefics3ImageProcessorPil,
    get_resize_output_image_size,
)
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

AROUND, GLOBAL = "<fake_token_around_image>", "<global-img>"

# As on the hub
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass(frozen=True)
class Kind:
    """What tells the models apart."""

    config: Any
    model: Any
    processor: Any
    text: str  # what the text model's own configuration calls it
    tile: int  # pixels
    scale: int  # patches beside each other that become one token
    tiles: int  # beside each other; the real models have 4 or 5
    patch: int = 14


NAMES = {
    "smolvlm": Kind(
        SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil, "VLlama3ForCausalLM", 112, 4, 3
    ),
    # like the real one's, its tile is no multiple of a patch; an odd size is resized in a way of its own
    "idefics3": Kind(
        Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil, "LlamaForCausalLM", 59, 2, 3
    ),
}


def make(name: str, folder: Path, seed: int = 0) -> Idefics3:
    """One of NAMES."""
    return Idefics3(NAMES[name], folder, seed)


class Idefics3(FlatVlm):
    """kind: one of NAMES."""

    names = ("pixel_values", "pixel_attention_mask")

    def __init__(self, kind: Kind, folder: Path, seed: int) -> None:
        self.kind = kind
        self.tile_tokens = (kind.tile // kind.patch // kind.scale) ** 2
        config = kind.config(
            vision_config={
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "image_size": kind.tile,
                "patch_size": kind.patch,
            },
            text_config=text_config(model_type="llama", architectures=[kind.text]),
            image_token_id=IMAGE_TOKEN,
            scale_factor=kind.scale,
            tie_word_embeddings=False,
        )
        processor = kind.processor(
            size={"longest_edge": kind.tiles * kind.tile},
            max_image_size={"longest_edge": kind.tile},
            image_mean=[0.5, 0.45, 0.4],  # the real ones have 0.5 throughout, which hides a swapped channel
            image_std=[0.5, 0.25, 0.3],
        )
        super().__init__(kind.model(config), folder, processor, seed)

    def save_tokenizer(self, folder: Path) -> None:
        """Markers of nine tiles are tokens; others are spelled out, as for any tokenizer that lacks them."""
        tiny.save_tokenizer(folder, {"<|vision_start|>": AROUND, "<|vision_end|>": GLOBAL})
        path = str(folder / "tokenizer.json")
        tokenizer = Tokenizer.from_file(path)
        markers = [f"<row_{y}_col_{x}>" for y in (1, 2, 3) for x in (1, 2, 3)]
        tokenizer.add_special_tokens([AddedToken(marker, normalized=False, special=True) for marker in markers])
        tokenizer.save(path)
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")

    @property
    def image(self) -> str:
        return "<|image_pad|>"

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of tiles; (0, 0): the picture is one tile.

        By the code that resizes: where both sides come out odd, get_number_of_image_patches says something else.
        """
        tile = self.kind.tile
        sizes = SimpleNamespace(resize=lambda image, size, resample: (size.height, size.width))
        blank = np.broadcast_to(0, (3, height, width))
        blank = np.broadcast_to(0, (3, *get_resize_output_image_size(blank, self.processor.size["longest_edge"])))
        height, width = type(self.processor).resize_for_vision_encoder(sizes, blank, tile)
        return (height // tile, width // tile) if max(height, width) > tile else (0, 0)

    def count(self, width: int, height: int) -> int:
        rows, columns = self.grid(width, height)
        return (rows * columns + 1) * self.tile_tokens

    def ids(self, text: str, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """With Hugging Face's own text in the place of each picture."""
        words = SimpleNamespace(
            fake_image_token=AROUND, global_image_tag=GLOBAL, image_token=self.image, image_seq_len=self.tile_tokens
        )
        first, *rest = text.split(self.image)
        assert len(rest) == len(sizes)
        for size, part in zip(sizes, rest, strict=True):
            rows, columns = self.grid(*size)
            grids = {"rows": [[rows]], "cols": [[columns]]}
            first += Idefics3Processor.replace_image_token(words, grids, 0) + part
        return torch.tensor(self.tokenizer.encode(first, add_special_tokens=False))

    def features(self, pixels: Any) -> Tensor:
        with torch.no_grad():
            return torch.cat(self.model.model.get_image_features(**self.known(pixels)).pooler_output)

    def known(self, pixels: Any) -> dict[str, Tensor]:
        return {name: pixels[name] for name in self.names}

    def joined(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """All tiles of a prompt beside each other."""
        found = [self.pixels(picture) for picture in pictures]
        return {name: torch.cat([one[name] for one in found], dim=1) for name in self.names}

    def forward(
        self, ids: Tensor, pictures: Sequence[Image.Image], spans: Spans, embeddings: Tensor, *rest: Any, **more: Any
    ) -> ref.Capture:
        text = SimpleNamespace(model=self.model.model.text_model, lm_head=self.model.lm_head)
        return ref.qwen2_forward(text, ids, spans, embeddings, *rest, **more)
