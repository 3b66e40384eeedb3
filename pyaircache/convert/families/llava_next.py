"""LLaVA-NeXT (LLaVA-1.6) for llama.cpp's converter: the projector type ``llava_next`` of our patches.

Imported where ``conversion`` and ``gguf`` are the pinned ones. The text models, Llama, Mistral and Qwen2, are known to
the converter by what the configuration inside calls them.
"""

from __future__ import annotations

from typing import Any

from conversion.base import ModelBase

from .llava_onevision import LlavaOnevisionVisionModel, require


@ModelBase.register("LlavaNextForConditionalGeneration")
class LlavaNextVisionModel(LlavaOnevisionVisionModel):
    """CLIP up to the block whose output is taken, the projector and the newline; tokens are never reduced."""

    projector = "llava_next"
    use_gelu = False  # but its quick form
    default_layer, default_eps = -2, 1e-5

    def check_model(self, config: dict[str, Any], tower: dict[str, Any], pixels: dict[str, Any]) -> None:
        side = tower["image_size"]
        require("vision_config.model_type", tower.get("model_type"), "clip_vision_model")
        require("vision_config.hidden_act", tower.get("hidden_act", "quick_gelu"), "quick_gelu")
        require("vision_feature_select_strategy", config.get("vision_feature_select_strategy", "default"), "default")
        require("size", pixels.get("size"), {"shortest_edge": side}, {"height": side, "width": side})
        crop = {"height": side, "width": side}
        require("crop_size", pixels.get("crop_size", crop), crop)
        if side // tower["patch_size"] % 2:
            raise ValueError(f"a tile has {side // tower['patch_size']} patches in a row; it must be an even number")

    def most_tiles(self, config: dict[str, Any]) -> int:
        side = self.hparams["image_size"]
        return max(height * width // side**2 for height, width in self.pinpoints)
