"""LLaVA-OneVision for llama.cpp's converter: the projector type ``llava_onevision`` of our patches, and its Qwen2.

Imported where ``conversion`` and ``gguf`` are the pinned ones. What the model says otherwise than llama.cpp can do it
is refused: a projector that is nearly right answers nonsense without a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from conversion.base import MmprojModel, ModelBase
from conversion.qwen import Qwen2Model

ARCHITECTURE = "LlavaOnevisionForConditionalGeneration"
PROJECTOR = "llava_onevision"

MAX_TILES = "clip.vision.anyres_max_tiles"
"""Where a picture has more tokens than this many tiles (by a fifth), they are reduced to about that many."""

# What transformers renders of a message: images first, then a newline and the text. In llama.cpp a message is a text
# with a marker for every image, so images are where the marker is; the newline behind them is put there by libmtmd.
TEMPLATE = (
    "{%% for message in messages %%}{%% set content = message['content'] or '' %%}"
    "{{ '<|im_start|>' + message['role'] + '%s' }}{%% if '<__media' not in content %%}{{ '\\n' }}{%% endif %%}"
    "{{ content + '<|im_end|>' }}{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ '<|im_start|>assistant\\n' }}{%% endif %%}"
)
_TYPED = re.compile(r"message\['role'\] \+ '( |\\n)'.*selectattr\('type', 'equalto', 'image'\)", re.S)


@ModelBase.register(ARCHITECTURE)
class LlavaOnevisionTextModel(Qwen2Model):
    """The language model; the base class leaves out the rest."""

    model_arch = Qwen2Model.model_arch  # the converter wants it in every class

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        kind = self.hparams.get("text_config", self.hparams).get("model_type")
        if kind != "qwen2":
            raise ValueError(f"the language model of a LLaVA-OneVision must be a qwen2, this one is {kind!r}")

    def set_vocab(self) -> None:
        """The tokenizer, with the processor's chat template in a form that llama.cpp can fill in."""
        self._set_vocab_gpt2()
        for file in ("chat_template.jinja", "chat_template.json"):
            path = self.dir_model / file
            if not path.is_file():
                continue
            text = path.read_text(encoding="utf-8")
            template = text if path.suffix == ".jinja" else json.loads(text).get("chat_template") or ""
            typed = _TYPED.search(template)
            for shard in self.gguf_writer.kv_data:
                shard.pop("tokenizer.chat_template", None)  # may be that of the language model alone
            self.gguf_writer.add_chat_template(TEMPLATE % typed[1] if typed else template)
            return


@ModelBase.register(ARCHITECTURE)
class LlavaOnevisionVisionModel(MmprojModel):
    """SigLIP up to the block whose output is taken, the projector and the newline."""

    projector = PROJECTOR
    use_gelu = True
    default_layer, default_eps = -1, 1e-6

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config, tower, pixels = self.global_config, self.hparams, self.preprocessor_config
        self.check_model(config, tower, pixels)
        require("projector_hidden_act", config.get("projector_hidden_act", "gelu"), "gelu")
        require("resample", pixels.get("resample", 3), 3)
        for key in ("do_resize", "do_rescale", "do_normalize"):
            require(key, pixels.get(key, True), True)
        if not {"image_mean", "image_std"} <= pixels.keys():
            raise ValueError("preprocessor_config.json, with image_mean and image_std, is missing")

        side = tower["image_size"]
        self.pinpoints = grids = config.get("image_grid_pinpoints") or pixels.get("image_grid_pinpoints")
        if not grids:
            raise ValueError("config.json has no image_grid_pinpoints")
        require("the preprocessor's image_grid_pinpoints", pixels.get("image_grid_pinpoints", grids), grids)
        if any(len(pair) != 2 or pair[0] % side or pair[1] % side for pair in self.pinpoints):
            raise ValueError(f"image_grid_pinpoints must be pairs of multiples of the tile's {side} pixels")
        self.max_tiles = self.most_tiles(config)

        layer = config.get("vision_feature_layer", self.default_layer)
        blocks = tower["num_hidden_layers"]
        if not isinstance(layer, int) or not -blocks <= layer <= blocks or layer == 0:
            raise ValueError(f"vision_feature_layer must be one of the tower's {blocks} blocks, got {layer!r}")
        self.block_count = tower["num_hidden_layers"] = layer if layer > 0 else blocks + 1 + layer

    def check_model(self, config: dict[str, Any], tower: dict[str, Any], pixels: dict[str, Any]) -> None:
        """Refuses what the graph would compute otherwise."""
        require("vision_config.model_type", tower.get("model_type"), "siglip_vision_model")
        require("vision_config.hidden_act", tower.get("hidden_act"), "gelu_pytorch_tanh")
        require("vision_feature_select_strategy", config.get("vision_feature_select_strategy"), "full")
        size = {"height": tower["image_size"], "width": tower["image_size"]}
        require("size", pixels.get("size", size), size)

    def most_tiles(self, config: dict[str, Any]) -> int:
        """Above how many tiles tokens are reduced."""
        ratio = re.fullmatch(r"anyres_max_(\d+)", str(config.get("vision_aspect_ratio", "anyres_max_9")))
        if ratio is None:
            raise ValueError(f"vision_aspect_ratio must be anyres_max_N, got {config['vision_aspect_ratio']!r}")
        return int(ratio[1])

    def set_gguf_parameters(self) -> None:
        """What the graph and the preprocessing need to know."""
        super().set_gguf_parameters()
        writer = self.gguf_writer
        writer.add_clip_projector_type(self.projector)
        writer.add_vision_attention_layernorm_eps(self.hparams.get("layer_norm_eps", self.default_eps))
        writer.add_vision_use_gelu(self.use_gelu)
        writer.add_vision_image_grid_pinpoints([n for height, width in self.pinpoints for n in (width, height)])
        writer.add_uint32(MAX_TILES, self.max_tiles)

    @classmethod
    def filter_tensors(cls, item: tuple[str, Callable[[], Any]]) -> tuple[str, Callable[[], Any]] | None:
        """Leaves the language model out, and gives the rest the names that all versions of transformers once had."""
        name, tensor = item
        name = re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name.removeprefix("model."))
        if name.startswith("lm_head.") or ".vision_model.head." in name or ".post_layernorm." in name:
            return None  # the output is taken before the last norm
        return super().filter_tensors((name, tensor))

    def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Iterable[tuple[str, Any]]:
        """Drops the blocks behind the one that is read, and names the projector as llama.cpp's LLaVA does."""
        if bid is not None and "encoder.layers." in name and bid >= self.block_count:
            return
        for ours, theirs in (("mm.0", "multi_modal_projector.linear_1"), ("mm.2", "multi_modal_projector.linear_2")):
            if name.startswith(theirs):
                yield ours + name.removeprefix(theirs), data_torch
                return
        yield from super().modify_tensors(data_torch, name, bid)


def require(key: str, got: Any, *allowed: Any) -> None:
    """Refuses a value that is none of those allowed."""
    if got not in allowed:
        raise ValueError(f"{key} must be {' or '.join(map(repr, allowed))}, got {got!r}")
