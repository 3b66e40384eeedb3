"""Small random Qwen2-VL models, and prompts as Hugging Face's model wants them.

The models are seeded and saved so that training.export_gguf can convert them, with a tokenizer of 274 tokens made here
and the bundled model's chat template. Their attention is made steep on purpose: with the usual initialisation it is
nearly flat, every text token is elite, and nothing about the method is tested.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.utils import logging as transformers_logging

from pyaircache.model_files import BUNDLED_MODEL, bundled_dir

transformers_logging.disable_progress_bar()

# What is on the wire of a byte-level tokenizer: a printable character for every byte, as GPT-2 chose them
PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100))
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
FIRST_SPECIAL = 267  # so <|image_pad|> is 272
# How Qwen2's tokenizer splits words
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "min_pixels": 8 * 28**2,
    "max_pixels": 1024 * 28**2,
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
}
PATCH, MERGE, FRAMES = 14, 2, 2
TOKEN_PX = PATCH * MERGE
MIN_TOKENS = 8  # llama.cpp enlarges smaller images


@dataclass(frozen=True)
class Shape:
    """What tells one tiny model from another."""

    layers: int
    heads: int
    heads_kv: int
    head_dim: int
    sections: tuple[int, int, int]  # of head_dim / 2
    steepness: float = 1.4  # about the square root of the standard deviation of the attention logits
    tied: bool = False
    vision_depth: int = 3
    theta: float = 1e4


SHAPES = {
    "gqa": Shape(layers=3, heads=4, heads_kv=2, head_dim=32, sections=(4, 6, 6)),
    "wide": Shape(layers=2, heads=4, heads_kv=2, head_dim=64, sections=(8, 12, 12), steepness=1.2),
    "mha": Shape(layers=5, heads=2, heads_kv=2, head_dim=64, sections=(16, 8, 8), vision_depth=4, theta=30.0),
    "mqa": Shape(layers=1, heads=4, heads_kv=1, head_dim=32, sections=(2, 7, 7), tied=True),
}


def save_tiny(folder: str | Path, shape: str | Shape = "gqa", seed: int = 0) -> Path:
    """Makes a random model and saves it as a Hugging Face folder, ready for training.export_gguf.

    Args:
        folder: created if need be.
        shape: a name of SHAPES, or one of your own.
        seed: of the weights.

    Returns:
        The folder.
    """
    if isinstance(shape, str):
        shape = SHAPES[shape]
    folder = Path(folder)
    model = Qwen2VLForConditionalGeneration(_config(shape))
    randomise(model, shape, torch.Generator().manual_seed(seed))
    model.save_pretrained(folder)
    save_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


def load(folder: str | Path) -> Qwen2VLForConditionalGeneration:
    """The model of a Hugging Face folder in float32, with the attention that aircache_ref wants."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return model.eval()


def _config(shape: Shape) -> Qwen2VLConfig:
    width = shape.heads * shape.head_dim
    tokens = {"bos_token_id": 267, "eos_token_id": 269, "pad_token_id": 267}
    return Qwen2VLConfig(
        text_config={
            "vocab_size": 288,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.heads_kv,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": shape.tied,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": shape.theta,
                "mrope_section": list(shape.sections),
            },
            **tokens,
        },
        vision_config={
            "depth": shape.vision_depth,
            "embed_dim": 64,
            "hidden_size": width,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": FRAMES,
            "in_channels": 3,
        },
        image_token_id=272,
        video_token_id=273,
        vision_start_token_id=270,
        vision_end_token_id=271,
        tie_word_embeddings=shape.tied,
    )


@torch.no_grad()
def randomise(model: torch.nn.Module, shape: Shape, generator: torch.Generator) -> None:
    """Weights for a model whose attention is as steep as the shape says."""
    for name, parameter in model.named_parameters():
        if "norm" in name or "ln_q" in name:
            spread = 0.1 if name.endswith("weight") else 0.02
            parameter.normal_(1.0 if name.endswith("weight") else 0.0, spread, generator=generator)
        elif parameter.ndim == 1:
            parameter.normal_(0, 0.1, generator=generator)
        elif "embed_tokens" in name:
            parameter.normal_(0, 1, generator=generator)
        else:
            # a matrix keeps the scale of what it multiplies, except that q and k make steep attention
            gain = shape.steepness if "q_proj" in name or "k_proj" in name else 1.0
            parameter.normal_(0, gain / math.sqrt(parameter[0].numel()), generator=generator)


# -- the tokenizer ----------------------------------------------------------------------------------------------------


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, with the byte's value; the words "assistant" and "user", joined letter by letter; SPECIAL.

    Small and without training, so that ids can be written down in tests.
    """
    others = [byte for byte in range(256) if byte not in PRINTABLE]
    vocabulary = {chr(b if b in PRINTABLE else 256 + others.index(b)): b for b in range(256)}
    merges = []
    for word in ("assistant", "user"):
        for end in range(2, len(word) + 1):
            merges.append((word[: end - 1], word[end - 1]))
            vocabulary[word[:end]] = len(vocabulary)
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    assert made.token_to_id(SPECIAL[0]) == FIRST_SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=chat_template()
    )


@functools.cache
def chat_template() -> str:
    """The bundled model's, which is Qwen2-VL's without a system prompt."""
    return gguf.GGUFReader(bundled_dir() / BUNDLED_MODEL).fields["tokenizer.chat_template"].contents()


def save_tokenizer(folder: Path, renamed: Mapping[str, str] = MappingProxyType({})) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja, some special tokens renamed."""
    files = {
        "tokenizer.json": tokenizer().backend_tokenizer.to_str(),
        "tokenizer_config.json": json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        ),
        "chat_template.jinja": chat_template(),
    }
    for file, content in files.items():
        for old, new in renamed.items():
            content = content.replace(old, new)
        (folder / file).write_text(content, encoding="utf-8")


# -- prompts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """A prompt as qwen2vl_forward takes it."""

    input_ids: Tensor  # [S]
    pixel_values: Tensor  # [patches, 1176] float32
    image_grid_thw: Tensor  # [images, 3]
    text: str  # as the chat template renders it, one <|image_pad|> for an image

    @property
    def vision(self) -> tuple[Tensor, Tensor]:
        return self.pixel_values, self.image_grid_thw


def chat_prompt(content: Sequence[str | Image.Image], known: PreTrainedTokenizerFast | None = None) -> Prompt:
    """One user turn of texts and images in the given order, through the tokenizer's chat template.

    Args:
        content: texts and images; image sides must be multiples of 28 px, so that nothing is resized.
        known: tokenizer with a chat template; None for that of the tiny models.
    """
    parts = [{"type": "text", "text": c} if isinstance(c, str) else {"type": "image"} for c in content]
    messages = [{"role": "user", "content": parts}]
    text = (known or tokenizer()).apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [c for c in content if not isinstance(c, str)]
    return prompt_from_text(text, images, known)


def prompt_from_text(text: str, images: Sequence[Image.Image], known: PreTrainedTokenizerFast | None = None) -> Prompt:
    """A prompt from text that is rendered already, with one <|image_pad|> for each image."""
    known = known or tokenizer()
    pad = known.convert_tokens_to_ids("<|image_pad|>")
    patches, grids = zip(*(patchify(image) for image in images), strict=True)
    counts = [int(grid.prod()) // MERGE**2 for grid in grids]
    ids = known.encode(text, add_special_tokens=False)
    if ids.count(pad) != len(counts):
        raise ValueError(f"the text has {ids.count(pad)} <|image_pad|> for {len(counts)} images")
    remaining = iter(counts)
    expanded = [token for i in ids for token in ([i] * next(remaining) if i == pad else [i])]
    return Prompt(torch.tensor(expanded), torch.cat(patches), torch.stack(grids), text)


def patchify(image: Image.Image, mean: float = 0.5, std: float = 0.5) -> tuple[Tensor, Tensor]:
    """Qwen2-VL's preprocessing of an image that needs no resizing.

    Args:
        image: RGB, both sides multiples of 28 px, at least 8 tokens.
        mean, std: of PREPROCESSOR and of the bundled model, the same for all channels.

    Returns:
        Patches [patches, 3 * 2 * 14 * 14], the four of a token next to each other, and the grid (1, rows, columns).
    """
    columns, rest_x = divmod(image.width, TOKEN_PX)
    rows, rest_y = divmod(image.height, TOKEN_PX)
    if rest_x or rest_y or rows * columns < MIN_TOKENS:
        raise ValueError(
            f"image sides must be multiples of {TOKEN_PX} px and make {MIN_TOKENS} tokens or more, got {image.size}"
        )
    pixels = (np.asarray(image.convert("RGB"), dtype=np.float32) / 255 - mean) / std
    cells = pixels.reshape(rows, MERGE, PATCH, columns, MERGE, PATCH, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    # [rows, columns, 2, 2, 3, 14, 14]; a still image counts as two equal frames, between channel and height
    cells = np.repeat(cells[:, :, :, :, :, None], FRAMES, axis=5)
    patches = cells.reshape(rows * columns * MERGE**2, -1).astype(np.float32)
    return torch.from_numpy(patches), torch.tensor([1, rows * MERGE, columns * MERGE])


def random_image(rng: np.random.Generator, rows: int, columns: int) -> Image.Image:
    """An image of rows x columns tokens with structure at the size of a token, so that tokens differ."""
    coarse = rng.integers(256, size=(rows * 2, columns * 2, 3))
    pixels = np.kron(coarse, np.ones((PATCH, PATCH, 1))) + rng.normal(0, 20, (rows * TOKEN_PX, columns * TOKEN_PX, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
