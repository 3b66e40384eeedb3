"""What the pinned converter lacks of InternVL: the layout of Hugging Face's own class, and InternLM2 as text model.

Importing this registers the classes; `conversion` must be importable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from conversion.base import ModelBase, gguf
from conversion.internlm import InternLM2Model
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


@ModelBase.register("InternLM2ForCausalLM")
class InternLm2Model(InternLM2Model):
    """The pinned class stops at InternVL2: it wants every token in tokenizer.model, where those added later are not,
    and the number of the end token at the top of config.json."""

    model_arch = gguf.MODEL_ARCH.INTERNLM2

    def set_vocab(self) -> None:
        from sentencepiece import SentencePieceProcessor

        tokens, scores, types = self._create_vocab_sentencepiece()
        # A piece that is one zero byte would be an empty string in C; the pinned class takes the same stand-in
        tokens = ["\N{DRAGON}".encode() if token == b"\x00" else token for token in tokens]
        pieces = SentencePieceProcessor(str(self.dir_model / "tokenizer.model")).encode("a", out_type=str)
        writer = self.gguf_writer
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types(types)
        writer.add_add_space_prefix(pieces[0].startswith("\N{LOWER ONE EIGHTH BLOCK}"))

        special = gguf.SpecialVocab(self.dir_model, n_vocab=len(tokens))
        for kind in ("bos", "eos"):
            if kind not in special.special_token_ids and (token := self.hparams.get(f"{kind}_token_id")) is not None:
                special.special_token_ids[kind] = token
        if b"<|im_end|>" in tokens:  # an answer ends here, whatever the language model alone ends with
            special.special_token_ids["eos"] = tokens.index(b"<|im_end|>")
        special.add_to_gguf(writer)
