"""SmolVLM and Idefics 3 for the pinned converter, which knows both: what it would convert wrongly without a word is
refused or mended here.

Importing this registers the classes; `conversion` must be importable and its own classes loaded, since a later
registration wins.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from conversion.base import ModelBase
from conversion.llama import LlamaModel
from conversion.smolvlm import SmolVLMModel

ARCHITECTURES = ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration")

# A message that begins with a picture has no space behind its role. In llama.cpp a message is a text with a marker for
# every picture, so the template must look for that, too.
_FIRST_IS_IMAGE = re.compile(r"message(\['content'\]|\.content)\[0\](\['type'\]|\.type) == 'image'")
_OR_MARKER = r"(\g<0> or (message\1[0]['text'] or '')[:8] == '<__media')"

# Of Hugging Face's classes: what a config.json leaves out
_DEFAULTS = {"layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"}


@ModelBase.register(*ARCHITECTURES)
class Idefics3TextModel(LlamaModel):
    """The language model, whatever its own configuration calls it, with a chat template that llama.cpp can fill in."""

    model_arch = LlamaModel.model_arch  # the converter wants it in every class
    of_whole = True  # see worker

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        whole = ModelBase.load_hparams(self.dir_model, False)
        kind = (whole.get("text_config") or {}).get("model_type", "llama")
        if kind != "llama":
            raise ValueError(f"text_config.model_type is {kind!r}; only models with 'llama' can be converted")

    def set_vocab(self) -> None:
        super().set_vocab()
        template = chat_template(self.dir_model)
        if template:
            for shard in self.gguf_writer.kv_data:
                shard.pop("tokenizer.chat_template", None)
            self.gguf_writer.add_chat_template(_FIRST_IS_IMAGE.sub(_OR_MARKER, template))


@ModelBase.register(*ARCHITECTURES)
class Idefics3VisionModel(SmolVLMModel):
    """SigLIP on tiles, pixels shuffled into channels, one matrix."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for key, value in _DEFAULTS.items():
            self.hparams.setdefault(key, value)
        vision, pixels = self.hparams, self.preprocessor_config
        tile, patch, scale = vision["image_size"], vision["patch_size"], self.global_config.get("scale_factor", 2)
        demands = {
            "vision_config.hidden_act": (vision["hidden_act"], "gelu_pytorch_tanh"),
            "max_image_size": (pixels.get("max_image_size", {"longest_edge": tile}), {"longest_edge": tile}),
            "resample": (pixels.get("resample", 1), 1),  # Lanczos
            "do_image_splitting": (pixels.get("do_image_splitting", True), True),
            "do_resize": (pixels.get("do_resize", True), True),
            "do_rescale": (pixels.get("do_rescale", True), True),
            "do_normalize": (pixels.get("do_normalize", True), True),
            "patches in a row of a tile, modulo scale_factor": (tile // patch % scale, 0),
        }
        for name, (value, supported) in demands.items():
            if value != supported:
                raise ValueError(f"{name} is {value!r}; only models with {supported!r} can be converted")
        if not isinstance(pixels.get("size", {}).get("longest_edge"), int):
            raise ValueError("preprocessor_config.json must give size as {'longest_edge': pixels}")


def chat_template(folder: Path) -> str | None:
    """The processor's, else the tokenizer's; None when there is none, or one of several names."""
    for file in ("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json"):
        path = folder / file
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            template = text if path.suffix == ".jinja" else json.loads(text).get("chat_template")
            if isinstance(template, str):
                return template
    return None
