"""Small random vision models of the families besides the first, as Hugging Face folders and as GGUF of the pinned
converter, with Hugging Face's own processors.

They take the tokenizer and the weights' distribution of tiny. A model here answers what the tests ask of
Hugging Face: features of pictures, how many tokens they are, and a forward pass over a prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aircache_ref as ref
import numpy as np
import pinned
import tiny
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

TOKENS = {"bos_token_id": 267, "eos_token_id": 269, "pad_token_id": 267}
IMAGE_TOKEN = 272  # <|image_pad|>, whatever the family calls it
VOCABULARY = 288
SHAPE = tiny.Shape(layers=4, heads=4, heads_kv=2, head_dim=32, sections=(4, 6, 6))

Spans = Sequence[tuple[int, int]]
"""First token and number of tokens of each run of visual tokens."""


def text_config(shape: tiny.Shape = SHAPE, **more: Any) -> dict[str, Any]:
    """Of a text model as all families here have it."""
    width = shape.heads * shape.head_dim
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads_kv,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": shape.tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.theta},
    } | TOKENS | more  # fmt: skip


class TinyVlm(ABC):
    """A model of Hugging Face's in float32 and its two GGUF files.

    Args:
        model: without weights worth keeping.
        folder: exists; all files go there.
        processor: of images.
        seed: of the weights.
    """

    around = ("", "")  # what the family puts around an image
    names = ("pixel_values",)  # of what the processor says about pictures
    rounds = True  # whether ggml's graph rounds as `vlm.ggml_rounding` does

    def __init__(self, model: PreTrainedModel, folder: Path, processor: Any, seed: int = 0) -> None:
        model.set_attn_implementation("eager")
        self.model = model.eval()
        self.randomise(torch.Generator().manual_seed(seed))
        self.processor = processor
        self.save(folder)
        self.text, self.mmproj = pinned.convert(folder)
        self.tokenizer = self.load_tokenizer(folder)

    def randomise(self, generator: torch.Generator) -> None:
        """Makes the weights."""
        tiny.randomise(self.model, SHAPE, generator)

    def save(self, folder: Path) -> None:
        """Writes the folder that is converted."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        self.save_tokenizer(folder)

    def save_tokenizer(self, folder: Path) -> None:
        """tiny's, with this family's names for what stands around an image."""
        around = zip(("<|vision_start|>", "<|vision_end|>"), self.around, strict=True)
        tiny.save_tokenizer(folder, {old: new for old, new in around if new})

    def load_tokenizer(self, folder: Path) -> Any:
        """What `ids` needs."""
        return PreTrainedTokenizerFast.from_pretrained(folder)

    @property
    def image(self) -> str:
        """What stands for an image in a prompt."""
        return "<|image_pad|>".join(self.around)

    def ids(self, text: str, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Tokens [S] of a text with `image` for every picture, filled with what pictures of these sizes become."""
        remaining = iter([self.count(*size) for size in sizes])
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return torch.tensor([t for i in ids for t in ([i] * next(remaining) if i == IMAGE_TOKEN else [i])])

    def pixels(self, picture: Image.Image) -> Any:
        """What the image processor makes of one picture, resizing as Pillow did until 12."""
        with across_then_down():
            return self.processor(images=[picture], return_tensors="pt")

    @abstractmethod
    def features(self, pixels: Any) -> Tensor:
        """What the vision tower and the projector make of it: [N_v, width]."""

    @abstractmethod
    def count(self, width: int, height: int) -> int:
        """Visual tokens of a picture, without looking at pixels."""

    def logits(self, ids: Tensor, pictures: Sequence[Image.Image]) -> Tensor:
        """Hugging Face's own forward pass, pictures included: [S, vocabulary]."""
        pixels = self.joined(pictures)
        with torch.no_grad():
            return self.model(input_ids=ids[None], **pixels, **self.inputs(ids)).logits[0]

    def joined(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """What the model takes of all pictures of a prompt."""
        found = [self.pixels(picture) for picture in pictures]
        return {name: torch.cat([one[name] for one in found]) for name in self.names}

    def inputs(self, ids: Tensor) -> dict[str, Tensor]:
        """What else it takes."""
        return {}

    @abstractmethod
    def forward(
        self, ids: Tensor, pictures: Sequence[Image.Image], spans: Spans, embeddings: Tensor, *rest: Any, **more: Any
    ) -> ref.Capture:
        """aircache_ref's forward pass with these embeddings; visible, cache_dtype and later as there."""


class FlatVlm(TinyVlm):
    """A model that counts every visual token as one position."""

    def forward(
        self, ids: Tensor, pictures: Sequence[Image.Image], spans: Spans, embeddings: Tensor, *rest: Any, **more: Any
    ) -> ref.Capture:
        text = SimpleNamespace(model=self.model.model.language_model, lm_head=self.model.lm_head)
        return ref.qwen2_forward(text, ids, spans, embeddings, *rest, **more)


class GridVlm(TinyVlm):
    """A model of Qwen's: pictures keep their shape, positions are those of a grid."""

    around = ("<|vision_start|>", "<|vision_end|>")
    names = ("pixel_values", "image_grid_thw")

    def features(self, pixels: Any) -> Tensor:
        return ref.image_features(self.model, pixels["pixel_values"], pixels["image_grid_thw"])

    def count(self, width: int, height: int) -> int:
        return self.processor.get_number_of_image_patches(height, width) // self.processor.merge_size**2

    def forward(
        self, ids: Tensor, pictures: Sequence[Image.Image], spans: Spans, embeddings: Tensor, *rest: Any, **more: Any
    ) -> ref.Capture:
        return ref.qwen2vl_forward(self.model, ids, *self.joined(pictures).values(), embeddings, *rest, **more)

    def inputs(self, ids: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": (ids[None] == IMAGE_TOKEN).int()}


@contextmanager
def across_then_down() -> Iterator[None]:
    """Lets Pillow resize along the rows first, round, and then along the columns, as llama.cpp's copy of it does.

    Until version 12 it always did; 13 begins with the columns where that is faster (its pull request 9549).
    """
    resize = Image.Image.resize

    def in_two(image: Image.Image, size: tuple[int, int], *rest: Any, **more: Any) -> Image.Image:
        return resize(resize(image, (size[0], image.height), *rest, **more), size, *rest, **more)

    Image.Image.resize = in_two  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Image.Image.resize = resize  # type: ignore[method-assign]


def random_picture(rng: np.random.Generator, width: int, height: int, cell: int = 14) -> Image.Image:
    """A picture with structure at the size of a patch, so that tokens differ, and noise."""
    coarse = rng.integers(256, size=(-(-height // cell), -(-width // cell), 3))
    pixels = np.kron(coarse, np.ones((cell, cell, 1)))[:height, :width] + rng.normal(0, 20, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
