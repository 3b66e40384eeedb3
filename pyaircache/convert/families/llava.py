"""LLaVA-1.5 for the pinned converter, which knows the text model but not this projector.

Importing this registers the class; `conversion` must be importable and its own classes loaded, since a later
registration wins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conversion.base import MmprojModel, ModelBase, gguf
from conversion.llava import LlavaVisionModel as PixtralModel

if TYPE_CHECKING:
    from torch import Tensor

# llama.cpp numbers the projector's layers as the original's nn.Sequential does: 1 is the GELU
PROJECTOR = {"linear_1": 0, "linear_2": 2}


@ModelBase.register("LlavaForConditionalGeneration")
class LlavaClipModel(MmprojModel):
    """CLIP's vision transformer and LLaVA's MLP. Pixtral shares the name and stays with its own class."""

    def __new__(cls, dir_model: Path, *args: Any, **kwargs: Any) -> Any:
        vision = ModelBase.load_hparams(dir_model, False).get("vision_config") or {}
        if vision.get("model_type") == "pixtral":
            return PixtralModel(dir_model, *args, **kwargs)
        return super().__new__(cls)

    def set_gguf_parameters(self) -> None:
        vision, whole = self.hparams_vision, self.global_config
        demands = {
            "vision_config.model_type": (vision.get("model_type"), "clip_vision_model"),
            "vision_config.hidden_act": (vision.get("hidden_act", "quick_gelu"), "quick_gelu"),
            "projector_hidden_act": (whole.get("projector_hidden_act", "gelu"), "gelu"),
            "vision_feature_layer": (whole.get("vision_feature_layer", -2), -2),
            "vision_feature_select_strategy": (whole.get("vision_feature_select_strategy", "default"), "default"),
        }
        for name, (value, supported) in demands.items():
            if value != supported:
                raise ValueError(f"{name} is {value!r}; only models with {supported!r} can be converted")
        super().set_gguf_parameters()
        self.gguf_writer.add_clip_projector_type("mlp")
        self.gguf_writer.add_vision_attention_layernorm_eps(vision.get("layer_norm_eps", 1e-5))
        # hidden_states[-2] counts the embeddings as 0: it is what goes into the last layer
        self.gguf_writer.add_vision_feature_layers([vision["num_hidden_layers"] - 1])

    @classmethod
    def filter_tensors(cls, item: tuple[str, Callable[[], Tensor]]) -> tuple[str, Callable[[], Tensor]] | None:
        name, tensor = item
        name = name.removeprefix("model.")
        name = re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)
        # llama.cpp would apply the last norm to the features, which are taken before it
        if not name.startswith(("vision_tower.", "multi_modal_projector.")) or ".post_layernorm." in name:
            return None
        return super().filter_tensors((name, tensor))

    def modify_tensors(self, data_torch: Tensor, name: str, bid: int | None) -> Iterable[tuple[str, Tensor]]:
        if name.startswith("multi_modal_projector."):
            layer, kind = name.split(".")[1:]
            name = self.format_tensor_name(gguf.MODEL_TENSOR.V_MMPROJ, PROJECTOR[layer], suffix=f".{kind}")
            yield name, data_torch
        else:
            yield from super().modify_tensors(data_torch, name, bid)

    def tensor_force_quant(self, name: str, new_name: str, bid: int | None, n_dims: int) -> Any:
        if ".position_embd." in new_name:
            return gguf.GGMLQuantizationType.F32
        return super().tensor_force_quant(name, new_name, bid, n_dims)
