"""A small random LLaVA-OneVision as a Hugging Face folder and as the two GGUF files that our converter makes of it.

Its tile has 5 x 5 tokens where the real model's has 27 x 27, with the same grids of up to 6 x 6 tiles. Processor,
tower, projector and packing are Hugging Face's.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiny
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

ROOT = Path(__file__).resolve().parents[2]

SHAPE = tiny.Shape(layers=4, heads=4, heads_kv=2, head_dim=32, sections=(4, 6, 6))  # without its sections
PATCH = 14
TILE = 74  # pixels; like the real model's 384, no multiple of a patch
REAL_TILE = 384
MAX_TILES = 9
MEAN, STD = (0.5, 0.45, 0.4), (0.5, 0.25, 0.3)  # the real model has 0.5 throughout, which hides a swapped channel

IMAGE, VIDEO = "<image>", "<video>"
RENAMED = {"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO}
IMAGE_ID, VIDEO_ID = 272, 273

# As on the hub
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\\n' + content['text'] }}"
    "{% endfor %}{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# llama.cpp's converter, with our class for this family. The small vocabulary has no known hash.
CONVERT = """
import importlib.util, pathlib, sys
root, module, source, out = sys.argv[1:]
sys.path[:0] = [root, root + "/gguf-py"]
import gguf, torch
from conversion.base import ModelBase, ModelType, TextModel
spec = importlib.util.spec_from_file_location("llava_onevision", module)
spec.loader.exec_module(importlib.util.module_from_spec(spec))
TextModel.get_vocab_base_pre = lambda *_: "qwen2"
with torch.inference_mode():
    for kind, file in ((ModelType.TEXT, "text.gguf"), (ModelType.MMPROJ, "mmproj.gguf")):
        hparams = ModelBase.load_hparams(pathlib.Path(source), False)
        made = ModelBase.from_model_architecture("LlavaOnevisionForConditionalGeneration", kind)
        made(pathlib.Path(source), gguf.LlamaFileType.ALL_F32, pathlib.Path(out) / file, hparams=hparams).write()
"""


@dataclass(frozen=True)
class Files:
    """What save_tiny made."""

    model: LlavaOnevisionForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast
    processor: LlavaOnevisionImageProcessorPil
    tile: int
    hf: Path
    text: Path
    mmproj: Path

    def pixels(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """What the processor makes of the pictures of one prompt: arguments of the model."""
        return dict(self.processor([list(pictures)], return_tensors="pt"))

    @torch.no_grad()
    def features(self, pixels: dict[str, Tensor]) -> list[Tensor]:
        """[tokens, width] of each picture: tower, projector and packing."""
        return list(self.model.model.get_image_features(**pixels).pooler_output)

    @torch.no_grad()
    def video(self, frames: Sequence[Image.Image]) -> Tensor:
        """[tokens, width] of one video. Its processor would need torchvision; it squeezes frames as it does a base."""
        square = [frame.resize((self.tile, self.tile), Image.Resampling.BICUBIC) for frame in frames]
        values = torch.from_numpy(np.stack([np.asarray(frame, dtype=np.float32) for frame in square]))
        values = (values / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        return self.model.model.get_video_features(values.permute(0, 3, 1, 2)[None]).pooler_output[0]


def grids(tile: int) -> list[list[int]]:
    """The model's pinpoints, (height, width)."""
    return [[tile * y, tile * x] for y in range(1, 7) for x in range(1, 7)]


def save_tiny(folder: Path, seed: int = 0, tile: int = TILE, layer: int = -1) -> Files:
    """Makes a random model, saves it as Hugging Face does, and converts that.

    Args:
        folder: exists.
        seed: of the weights.
        tile: pixels.
        layer: the tower's layer that is projected.
    """
    hf = folder / "hf"
    width = SHAPE.heads * SHAPE.head_dim
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 144,
            "patch_size": PATCH,
            "image_size": tile,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": 288,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": SHAPE.layers,
            "num_attention_heads": SHAPE.heads,
            "num_key_value_heads": SHAPE.heads_kv,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": SHAPE.theta},
            "bos_token_id": 267,
            "eos_token_id": 269,
            "pad_token_id": 267,
        },
        image_token_index=IMAGE_ID,
        video_token_index=VIDEO_ID,
        image_grid_pinpoints=grids(tile),
        vision_feature_layer=layer,
        vision_aspect_ratio=f"anyres_max_{MAX_TILES}",
        attn_implementation="eager",
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    tiny.randomise(model, SHAPE, torch.Generator().manual_seed(seed))
    model.save_pretrained(hf)

    tiny.save_tokenizer(hf, RENAMED)
    (hf / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": tile, "width": tile}, image_grid_pinpoints=grids(tile), image_mean=MEAN, image_std=STD
    )
    processor.save_pretrained(hf)

    llama = ROOT / "vendor" / "llama.cpp"
    module = ROOT / "pyaircache" / "convert" / "families" / "llava_onevision.py"
    command = [sys.executable, "-c", CONVERT, llama, module, hf, folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tokenizer = PreTrainedTokenizerFast.from_pretrained(hf)
    return Files(model, tokenizer, processor, tile, hf, folder / "text.gguf", folder / "mmproj.gguf")


def random_picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Structure of all sizes: a few colours, smooth areas and noise."""
    coarse = rng.integers(256, size=(5, 7, 3)).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    return Image.fromarray(np.clip(pixels + rng.normal(0, 20, pixels.shape), 0, 255).astype(np.uint8))


def prompt_ids(tokenizer: PreTrainedTokenizerFast, text: str, counts: Sequence[int]) -> Tensor:
    """Tokens [S] of a text with IMAGE for every image, each image's place filled with its count of visual tokens."""
    remaining = iter(counts)
    ids = tokenizer.encode(text, add_special_tokens=False)
    return torch.tensor([t for i in ids for t in ([i] * next(remaining) if i == IMAGE_ID else [i])])
