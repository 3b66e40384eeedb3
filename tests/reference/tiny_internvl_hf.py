"""Small random InternVL models: pictures cut into tiles, Qwen2, InternLM2 or Phi-3 as text model, in the layout of
Hugging Face's own class and in that of the original code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_vlm import IMAGE_TOKEN, SHAPE, FlatVlm, text_config
from torch import Tensor
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

PATCH, SIDE = 14, 4  # a tile has SIDE x SIDE tokens of 2 x 2 patches
TILE_PX = 2 * PATCH * SIDE
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
VISION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": [TILE_PX, TILE_PX],
    "patch_size": [PATCH, PATCH],
    "attention_bias": True,
    "layer_norm_eps": 1e-6,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": SHAPE.theta,
    "short_factor": [1 + 0.05 * i for i in range(SHAPE.head_dim // 2)],
    "long_factor": [1 + 0.5 * i for i in range(SHAPE.head_dim // 2)],
}


def make(name: str, folder: Path, seed: int = 0) -> InternVl:
    """One of NAMES."""
    text, layout = NAMES[name]
    return InternVl(text(), layout, folder, seed)


class InternVl(FlatVlm):
    """layout: the class whose checkpoints it is saved like, "hf" or "chat"."""

    around = ("<img>", "</img>")

    def __init__(self, text: PretrainedConfig, layout: str, folder: Path, seed: int) -> None:
        self.layout = layout
        config = InternVLConfig(
            vision_config=dict(VISION),
            text_config=text,
            image_token_id=IMAGE_TOKEN,
            image_seq_length=SIDE**2,
            tie_word_embeddings=text.tie_word_embeddings,
        )
        processor = GotOcr2ImageProcessorPil(
            crop_to_patches=True,
            min_patches=1,
            max_patches=12,
            size={"height": TILE_PX, "width": TILE_PX},
            image_mean=MEAN,
            image_std=STD,
        )
        super().__init__(InternVLForConditionalGeneration(config), folder, processor, seed)

    def randomise(self, generator: torch.Generator) -> None:
        super().randomise(generator)
        with torch.no_grad():  # one matrix of all positions, which would come out very small
            self.model.model.vision_tower.embeddings.position_embeddings.normal_(0, 0.3, generator=generator)

    def features(self, pixels: Any) -> Tensor:
        with torch.no_grad():
            return self.model.model.get_image_features(pixels["pixel_values"]).pooler_output.flatten(0, 1)

    def count(self, width: int, height: int) -> int:
        return self.processor.get_number_of_image_patches(height, width) * SIDE**2

    def save(self, folder: Path) -> None:
        super().save(folder)
        if self.layout == "chat":
            (folder / "model.safetensors").unlink()
            save_file(dict(chat_tensors(self.model)), folder / "model.safetensors")
            (folder / "config.json").write_text(json.dumps(chat_config(self.model.config)), encoding="utf-8")


# -- the original layout ----------------------------------------------------------------------------------------------

EMBEDDINGS = {
    "cls_token": "class_embedding",
    "position_embeddings": "position_embedding",
    "patch_embeddings.projection": "patch_embedding",
}
BLOCK = {
    "attention.projection_layer": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_1": "ls1",
    "lambda_2": "ls2",
}
PROJECTOR = {"layer_norm": "0", "linear_1": "1", "linear_2": "3"}
INTERNLM2 = {
    "embed_tokens": "tok_embeddings",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def chat_config(config: InternVLConfig) -> dict[str, Any]:
    """config.json of the original code."""
    text = config.text_config.to_dict()
    text["architectures"] = [ARCHITECTURES[text["model_type"]]]
    if rope := text.pop("rope_parameters", None):
        text["rope_theta"] = rope.pop("rope_theta")
        if rope.pop("rope_type") == "longrope":
            text["rope_scaling"] = {"type": "su"} | {name: rope[name] for name in ("short_factor", "long_factor")}
    vision = VISION | {"architectures": ["InternVisionModel"], "image_size": TILE_PX, "patch_size": PATCH}
    vision |= {"hidden_act": "gelu", "norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True}
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "llm_config": text,
        "vision_config": vision,
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "use_thumbnail": True,
        "select_layer": -1,
        "ps_version": "v2",
    }


def chat_tensors(model: InternVLForConditionalGeneration) -> Iterator[tuple[str, Tensor]]:
    """All weights under the original names."""
    fused: dict[str, dict[str, Tensor]] = {}
    internlm2 = model.config.text_config.model_type == "llama"
    for name, tensor in model.state_dict().items():
        name, tensor = name.removeprefix("model."), tensor.contiguous()
        projection = re.search(r"\b([qkv])_proj\b", name)
        if projection and (name.startswith("vision_tower") or internlm2):
            fused.setdefault(name.replace(projection[0], "*"), {})[projection[1]] = tensor
        elif name.startswith("vision_tower.embeddings."):
            yield f"vision_model.embeddings.{_renamed(name[24:], EMBEDDINGS)}", tensor
        elif name.startswith("vision_tower.encoder.layer."):
            yield f"vision_model.encoder.layers.{_renamed(name[27:], BLOCK)}", tensor
        elif name.startswith("multi_modal_projector."):
            yield f"mlp1.{_renamed(name[22:], PROJECTOR)}", tensor
        elif name == "lm_head.weight":
            yield f"language_model.{'output' if internlm2 else 'lm_head'}.weight", tensor
        else:
            name = name.removeprefix("language_model.")
            yield f"language_model.model.{_renamed(name, INTERNLM2) if internlm2 else name}", tensor
    for name, parts in fused.items():
        if name.startswith("vision_tower"):
            layer, kind = re.findall(r"layer\.(\d+)\..*\.(weight|bias)$", name)[0]
            yield f"vision_model.encoder.layers.{layer}.attn.qkv.{kind}", torch.cat([parts[part] for part in "qkv"])
        else:
            layer = re.findall(r"layers\.(\d+)\.", name)[0]
            yield f"language_model.model.layers.{layer}.attention.wqkv.weight", _wqkv(parts)


def _wqkv(parts: dict[str, Tensor]) -> Tensor:
    """InternLM2 keeps the heads of a group together: its queries, then its key, then its value."""
    heads = {part: tensor.unflatten(0, (SHAPE.heads_kv, -1, SHAPE.head_dim)) for part, tensor in parts.items()}
    return torch.cat([heads[part] for part in "qkv"], dim=1).flatten(0, 2).contiguous()


def _renamed(name: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        name = re.sub(rf"(^|\.){re.escape(old)}(\.|$)", rf"\g<1>{new}\g<2>", name)
    return name


ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "llama": "InternLM2ForCausalLM", "phi3": "Phi3ForCausalLM"}


def _qwen2() -> PretrainedConfig:
    return Qwen2Config(**text_config(), architectures=["Qwen2ForCausalLM"])


def _internlm2() -> PretrainedConfig:
    """Llama computes the same; Hugging Face has no InternLM2 of its own."""
    return LlamaConfig(**text_config())


def _phi3(**rope: Any) -> PretrainedConfig:
    return Phi3Config(**text_config(original_max_position_embeddings=1024, **rope))


NAMES: dict[str, tuple[Callable[[], PretrainedConfig], str]] = {
    "internvl-hf qwen2": (_qwen2, "hf"),
    "internvl-chat qwen2": (_qwen2, "chat"),
    "internvl-chat internlm2": (_internlm2, "chat"),
    "internvl-chat phi3": (_phi3, "chat"),
    "internvl-chat phi3 longrope": (lambda: _phi3(rope_parameters=LONG_ROPE), "chat"),
}
