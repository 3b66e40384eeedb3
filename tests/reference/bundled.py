"""The bundled model as Hugging Face has it: a folder made of its two GGUF files, with the weights as F32.

The names are those of export_gguf, read backwards; tests/training/test_export_gguf.py holds that exporting the
folder gives the files in the package again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tiny
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from pyaircache.model_files import BUNDLED_MMPROJ, BUNDLED_MODEL, bundled_dir
from training import export_gguf

TEXT = {ours: theirs for theirs, ours in export_gguf.TEXT_NAMES.items()} | {"output.weight": "lm_head.weight"}
TEXT_LAYER = {ours: theirs for theirs, ours in export_gguf.TEXT_LAYER_NAMES.items()}
VISION = {ours: theirs for theirs, ours in export_gguf.VISION_NAMES.items()}
VISION_BLOCK = {ours: theirs for theirs, ours in export_gguf.VISION_BLOCK_NAMES.items()}


def save(folder: Path) -> Path:
    """Writes the folder; it is created if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    text, mmproj = (gguf.GGUFReader(bundled_dir() / name) for name in (BUNDLED_MODEL, BUNDLED_MMPROJ))
    keys = {key: field.contents() for reader in (text, mmproj) for key, field in reader.fields.items()}
    model = Qwen2VLForConditionalGeneration(_config(keys))
    state = _text_state(_values(text)) | _vision_state(_values(mmproj))
    model.load_state_dict({name: torch.from_numpy(values) for name, values in state.items()})  # strict: all of them
    model.save_pretrained(folder)
    _save_tokenizer(folder, keys)
    (folder / "preprocessor_config.json").write_text(json.dumps(tiny.PREPROCESSOR | {
        "image_mean": keys["clip.vision.image_mean"], "image_std": keys["clip.vision.image_std"]
    }))  # fmt: skip
    return folder


def _config(keys: dict[str, Any]) -> Qwen2VLConfig:
    text = {key.removeprefix("qwen2vl."): value for key, value in keys.items() if key.startswith("qwen2vl.")}
    vision = {key.removeprefix("clip.vision."): value for key, value in keys.items() if key.startswith("clip.vision.")}
    tokens = keys["tokenizer.ggml.tokens"]
    return Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokens),
            "hidden_size": text["embedding_length"],
            "intermediate_size": text["feed_forward_length"],
            "num_hidden_layers": text["block_count"],
            "num_attention_heads": text["attention.head_count"],
            "num_key_value_heads": text["attention.head_count_kv"],
            "max_position_embeddings": text["context_length"],
            "rms_norm_eps": float(f"{text['attention.layer_norm_rms_epsilon']:.6g}"),  # as it was before it was F32
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": text["rope.freq_base"],
                "mrope_section": text["rope.dimension_sections"][:3],
            },
            "bos_token_id": keys["tokenizer.ggml.bos_token_id"],
            "eos_token_id": keys["tokenizer.ggml.eos_token_id"],
            "pad_token_id": keys["tokenizer.ggml.padding_token_id"],
        },
        vision_config={
            "depth": vision["block_count"],
            "embed_dim": vision["embedding_length"],
            "hidden_size": vision["projection_dim"],
            "num_heads": vision["attention.head_count"],
            "mlp_ratio": vision["feed_forward_length"] // vision["embedding_length"],
            "patch_size": vision["patch_size"],
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "in_channels": 3,
        },
        image_token_id=tokens.index("<|image_pad|>"),
        video_token_id=tokens.index("<|video_pad|>"),
        vision_start_token_id=tokens.index("<|vision_start|>"),
        vision_end_token_id=tokens.index("<|vision_end|>"),
        tie_word_embeddings=False,
    )


def _values(reader: gguf.GGUFReader) -> dict[str, np.ndarray]:
    return {one.name: gguf.dequantize(one.data, one.tensor_type).astype(np.float32) for one in reader.tensors}


def _text_state(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    state = {}
    for name, array in values.items():
        if name.startswith("blk."):
            _, layer, module, kind = name.split(".")
            state[f"model.language_model.layers.{layer}.{TEXT_LAYER[module]}.{kind}"] = array
        else:
            theirs = TEXT[name]
            state[theirs if theirs.startswith("lm_head") else f"model.language_model.{theirs}"] = array
    return state


def _vision_state(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    frames = [values.pop(name) for name in ("v.patch_embd.weight", "v.patch_embd.weight.1")]
    state = {"model.visual.patch_embed.proj.weight": np.stack(frames, axis=2)}
    for name in list(values):
        if ".attn_q." in name:  # the three are one matrix
            parts = [values.pop(name.replace(".attn_q.", f".attn_{letter}.")) for letter in "qkv"]
            _, _, block, _, kind = name.split(".")
            state[f"model.visual.blocks.{block}.attn.qkv.{kind}"] = np.concatenate(parts)
    for name, array in values.items():
        module, _, kind = name.rpartition(".")
        if module.startswith("v.blk."):
            _, _, block, part = module.split(".")
            state[f"model.visual.blocks.{block}.{VISION_BLOCK[part]}.{kind}"] = array
        else:
            state[f"model.visual.{VISION[module]}.{kind}"] = array
    return state


def _save_tokenizer(folder: Path, keys: dict[str, Any]) -> None:
    tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    vocabulary = {token: i for i, token in enumerate(tokens) if kinds[i] == gguf.TokenType.NORMAL}
    made = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in keys["tokenizer.ggml.merges"]]))
    made.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(tiny.SPLIT), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    control = [i for i, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL]
    made.add_special_tokens([AddedToken(tokens[i], normalized=False, special=True) for i in control])
    assert [made.token_to_id(tokens[i]) for i in control] == control
    made.save(str(folder / "tokenizer.json"))
    settings = {f"{kind}_token": tokens[keys[f"tokenizer.ggml.{key}_token_id"]]
                for kind, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}  # fmt: skip
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(keys["tokenizer.chat_template"])
