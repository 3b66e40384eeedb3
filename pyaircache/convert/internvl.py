"""InternVL as Hugging Face's own class saves it, for the pinned converter, which knows the original layout.

Importing this registers the class; `conversion` must be importable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from conversion.base import ModelBase
from conversion.internvl import InternVisionModel

if TYPE_CHECKING:
    from torch import Tensor


@ModelBase.register("InternVLForConditionalGeneration")
class InternVlHfModel(InternVisionModel):
    """The pinned class knows these tensors with the prefix that another model of this class has."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        whole, vision = self.global_config, self.hparams_vision
        demands = {
            "vision_feature_layer": (whole.get("vision_feature_layer", -1), -1),
            "vision_feature_select_strategy": (whole.get("vision_feature_select_strategy", "default"), "default"),
            "projector_hidden_act": (whole.get("projector_hidden_act", "gelu"), "gelu"),
            "vision_config.norm_type": (vision.get("norm_type", "layer_norm"), "layer_norm"),
            "vision_config.use_qk_norm": (vision.get("use_qk_norm", False), False),
            "vision_config.use_mean_pooling": (vision.get("use_mean_pooling", True), True),
        }
        for name, (value, supported) in demands.items():
            if value != supported:
                raise ValueError(f"{name} is {value!r}; only models with {supported!r} can be converted")
        self.min_dynamic_tiles = self.preprocessor_config.get("min_patches", 1)
        self.max_dynamic_tiles = self.preprocessor_config.get("max_patches", 12)

    @classmethod
    def filter_tensors(cls, item: tuple[str, Callable[[], Tensor]]) -> tuple[str, Callable[[], Tensor]] | None:
        name, tensor = item
        if name.startswith(("vision_tower.", "multi_modal_projector.")):
            name = f"model.{name}"
        return super().filter_tensors((name, tensor))
