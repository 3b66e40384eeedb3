"""Exports a Hugging Face Qwen2-VL folder to the two GGUF files that llama.cpp wants: text model and projector.

The output follows llama.cpp's own converter tensor for tensor (tests/training/test_export_gguf.py compares), which is
what `pyaircache convert` runs. This is a second way to the same files that shares no code with the first: tests compare
the two, and export random models on the fly without starting a process.

    python -m training.export_gguf HF_DIR --text model-Q8_0.gguf --mmproj mmproj-F16.gguf
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import gguf
import numpy as np
from gguf import GGMLQuantizationType as Quant
from gguf import LlamaFileType as FileType
from safetensors import safe_open

from training.export_tokenizer import add_tokenizer, read_json

OUTTYPES = {
    "F32": (Quant.F32, FileType.ALL_F32),
    "F16": (Quant.F16, FileType.MOSTLY_F16),
    "Q8_0": (Quant.Q8_0, FileType.MOSTLY_Q8_0),
}
TEXT_OUTTYPES = ("F32", "F16", "Q8_0")
MMPROJ_OUTTYPES = ("F32", "F16")

TEXT_KEYS = (
    "num_hidden_layers",
    "vocab_size",
    "max_position_embeddings",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
)
VISION_KEYS = ("depth", "embed_dim", "hidden_size", "num_heads")

TEXT_NAMES = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
TEXT_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
VISION_NAMES = {"merger.ln_q": "v.post_ln", "merger.mlp.0": "mm.0", "merger.mlp.2": "mm.2"}
VISION_BLOCK_NAMES = {
    "norm1": "ln1",
    "norm2": "ln2",
    "attn.proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
# transformers hard-codes the epsilon of the vision tower's layer norms
VISION_NORM_EPS = 1e-6


def export_text(hf_dir: str | Path, out: str | Path, outtype: str = "F32", name: str | None = None) -> Path:
    """Writes the language model of `hf_dir` with its tokenizer and chat template.

    Args:
        hf_dir: folder with config.json, *.safetensors, tokenizer.json and tokenizer_config.json.
        out: the GGUF file to write.
        outtype: "F32", "F16" or "Q8_0"; vectors stay F32, rows that Q8_0 cannot hold (not a multiple of 32) are F16.
        name: general.name; the folder's name when None.

    Returns:
        The path written.

    Raises:
        ValueError: the folder is not a Qwen2-VL that llama.cpp can run, or a file of it is missing.
    """
    quant, file_type = _outtype(outtype, TEXT_OUTTYPES)
    folder = Path(hf_dir)
    config = _read_config(folder)
    text = _text_config(config)
    n_layers, vocab_size = text["num_hidden_layers"], text["vocab_size"]
    tensors = [(target, array) for target, array in _text_tensors(folder, config, n_layers)]

    writer = _writer(out, "qwen2vl")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name or folder.resolve().name)
    writer.add_size_label(_size_label(tensors))
    writer.add_block_count(n_layers)
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text.get("num_key_value_heads") or text["num_attention_heads"])
    theta, sections = _mrope(text)
    writer.add_rope_dimension_sections([*sections, 0])
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(text.get("rms_norm_eps", 1e-6))
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_tokenizer(writer, folder, config, text, vocab_size)
    return _write(writer, tensors, quant, out)


def export_mmproj(hf_dir: str | Path, out: str | Path, outtype: str = "F16", name: str | None = None) -> Path:
    """Writes the vision tower and merger of `hf_dir` (llama.cpp's projector type `qwen2vl_merger`).

    Args:
        hf_dir: folder with config.json, *.safetensors and preprocessor_config.json.
        out: the GGUF file to write.
        outtype: "F32" or "F16"; vectors stay F32.
        name: general.name; the folder's name when None.

    Returns:
        The path written.

    Raises:
        ValueError: as for export_text.
    """
    quant, file_type = _outtype(outtype, MMPROJ_OUTTYPES)
    folder = Path(hf_dir)
    config = _read_config(folder)
    vision = _vision_config(config)
    preprocessor = read_json(folder, "preprocessor_config.json")
    tensors = [(target, array) for target, array in _vision_tensors(folder, vision["depth"])]

    writer = _writer(out, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_name(name or folder.resolve().name)
    writer.add_size_label(_size_label(tensors))
    writer.add_file_type(file_type)
    writer.add_clip_has_vision_encoder(True)
    writer.add_vision_projection_dim(vision["hidden_size"])
    writer.add_vision_image_size(560)  # llama.cpp's stand-in for "any size"
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["embed_dim"])
    writer.add_vision_feed_forward_length(vision["embed_dim"] * vision["mlp_ratio"])
    writer.add_vision_block_count(vision["depth"])
    writer.add_vision_head_count(vision["num_heads"])
    writer.add_vision_image_mean(_triple(preprocessor, "image_mean"))
    writer.add_vision_image_std(_triple(preprocessor, "image_std"))
    writer.add_clip_projector_type("qwen2vl_merger")
    writer.add_vision_attention_layernorm_eps(VISION_NORM_EPS)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return _write(writer, tensors, quant, out)


# -- configuration ----------------------------------------------------------------------------------------------------


def _outtype(outtype: str, allowed: tuple[str, ...]) -> tuple[Quant, FileType]:
    if outtype.upper() not in allowed:
        raise ValueError(f"outtype must be one of {', '.join(allowed)}, got {outtype!r}")
    return OUTTYPES[outtype.upper()]


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder, "config.json")
    if config.get("model_type") != "qwen2_vl":
        raise ValueError(f"model_type must be 'qwen2_vl', got {config.get('model_type')!r}")
    return config


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The text part: nested since transformers 4.52, the top level itself before."""
    text = config.get("text_config") or config
    _require(text, "config.json (text)", TEXT_KEYS)
    width, heads = text["hidden_size"], text["num_attention_heads"]
    heads_kv = text.get("num_key_value_heads") or heads
    if width % heads:
        raise ValueError(f"hidden_size ({width}) must be a multiple of num_attention_heads ({heads})")
    if heads % heads_kv:
        raise ValueError(f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({heads_kv})")
    if text.get("head_dim") not in (None, width // heads):
        raise ValueError(
            f"head_dim must be hidden_size / num_attention_heads = {width // heads}, got {text['head_dim']}"
        )
    if text.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act must be 'silu', got {text['hidden_act']!r}")
    if text.get("use_sliding_window"):
        raise ValueError("use_sliding_window is not supported: llama.cpp's qwen2vl attends to the whole context")
    return text


def _mrope(text: dict[str, Any]) -> tuple[float, list[int]]:
    """Base and the three sections of the multimodal rotary embedding."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(f"rope_type must be 'default' or 'mrope', got {kind!r}")
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    sections = rope.get("mrope_section")
    if not sections or len(sections) != 3 or sum(sections) != half:
        raise ValueError(f"mrope_section must be three numbers that sum to head_dim / 2 = {half}, got {sections}")
    theta = rope.get("rope_theta", text.get("rope_theta"))
    if theta is None:
        raise ValueError("config.json has no rope_theta")
    return float(theta), [int(s) for s in sections]


def _vision_config(config: dict[str, Any]) -> dict[str, Any]:
    vision = dict(config.get("vision_config") or {})
    _require(vision, "config.json (vision_config)", VISION_KEYS)
    defaults = {"mlp_ratio": 4, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    vision = {**defaults, **vision}
    width = _text_config(config)["hidden_size"]
    head_dim, rest = divmod(vision["embed_dim"], vision["num_heads"])
    if rest or head_dim % 4:
        raise ValueError(
            f"vision embed_dim / num_heads must be a multiple of 4, got {vision['embed_dim']} / {vision['num_heads']}"
        )
    if vision["hidden_size"] != width:
        raise ValueError(f"vision hidden_size must be the text's ({width}), got {vision['hidden_size']}")
    for key in ("spatial_merge_size", "temporal_patch_size"):
        if vision[key] != 2:
            raise ValueError(f"{key} must be 2, got {vision[key]}")
    if vision.get("in_channels", vision.get("in_chans", 3)) != 3:
        raise ValueError("the vision tower must take 3 channels")
    if vision.get("hidden_act", "quick_gelu") != "quick_gelu":
        raise ValueError(f"vision hidden_act must be 'quick_gelu', got {vision['hidden_act']!r}")
    if vision["mlp_ratio"] == 1:
        # llama.cpp takes a square down projection for an old file with up and down swapped, and swaps them
        raise ValueError("mlp_ratio must not be 1")
    return vision


def _require(config: dict[str, Any], where: str, keys: tuple[str, ...]) -> None:
    missing = [key for key in keys if config.get(key) is None]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")


def _triple(preprocessor: dict[str, Any], key: str) -> list[float]:
    values = preprocessor.get(key)
    if not isinstance(values, list) or len(values) != 3:
        raise ValueError(f"preprocessor_config.json: {key} must be three numbers, got {values}")
    return [float(v) for v in values]


# -- tensors ----------------------------------------------------------------------------------------------------------


def _tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors of the folder's safetensors, as float32, with the names of the class that saved them unified."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no *.safetensors")
    for file in files:
        # NumPy has no bfloat16, so PyTorch reads it
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a dict)
                name = key.removeprefix("model.").removeprefix("language_model.").removeprefix("model.")
                yield name, tensors.get_tensor(key).float().numpy()


def _text_tensors(folder: Path, config: dict[str, Any], n_layers: int) -> Iterator[tuple[str, np.ndarray]]:
    expected = set(TEXT_NAMES.values()) | {
        f"blk.{i}.{target}.{kind}"
        for i in range(n_layers)
        for target in TEXT_LAYER_NAMES.values()
        for kind in (("weight", "bias") if target in ("attn_q", "attn_k", "attn_v") else ("weight",))
    }
    # with tied embeddings llama.cpp reuses token_embd when there is no output.weight
    tied = config.get("tie_word_embeddings", _text_config(config).get("tie_word_embeddings", False))
    if not tied:
        expected.add("output.weight")
    for name, array in _tensors(folder):
        if name.startswith("visual."):
            continue
        if name == "lm_head.weight":
            if tied:
                continue
            target = "output.weight"
        elif name.startswith("layers."):
            _, layer, rest = name.split(".", 2)
            module, _, kind = rest.rpartition(".")
            target = f"blk.{layer}.{TEXT_LAYER_NAMES.get(module, '?')}.{kind}"
        else:
            target = TEXT_NAMES.get(name, "?")
        if target not in expected:
            raise ValueError(f"unexpected text tensor {name}")
        expected.remove(target)
        yield target, array
    if expected:
        raise ValueError(f"{folder} lacks {len(expected)} text tensor(s), e.g. {min(expected)}")


def _vision_tensors(folder: Path, depth: int) -> Iterator[tuple[str, np.ndarray]]:
    parts = (*VISION_BLOCK_NAMES.values(), "attn_q", "attn_k", "attn_v")
    modules = [*VISION_NAMES.values(), *(f"v.blk.{i}.{part}" for i in range(depth) for part in parts)]
    expected = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    expected |= {"v.patch_embd.weight", "v.patch_embd.weight.1"}
    for name, array in _tensors(folder):
        if not name.startswith("visual."):
            continue
        for target, part in _vision_parts(name.removeprefix("visual."), array):
            if target not in expected:
                raise ValueError(f"unexpected vision tensor {name}")
            expected.remove(target)
            yield target, np.ascontiguousarray(part)
    if expected:
        raise ValueError(f"{folder} lacks {len(expected)} vision tensor(s), e.g. {min(expected)}")


def _vision_parts(name: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    module, _, kind = name.rpartition(".")
    if module == "patch_embed.proj":
        # [width, 3, 2, patch, patch]: one 2-D convolution for each of the two frames
        yield f"v.patch_embd.{kind}", array[:, :, 0]
        yield f"v.patch_embd.{kind}.1", array[:, :, 1]
    elif module.startswith("blocks."):
        _, block, module = module.split(".", 2)
        if module == "attn.qkv":
            for letter, part in zip("qkv", np.split(array, 3), strict=True):
                yield f"v.blk.{block}.attn_{letter}.{kind}", part
        else:
            yield f"v.blk.{block}.{VISION_BLOCK_NAMES.get(module, '?')}.{kind}", array
    else:
        yield f"{VISION_NAMES.get(module, '?')}.{kind}", array


def _size_label(tensors: list[tuple[str, np.ndarray]]) -> str:
    return gguf.size_label(sum(array.size for _, array in tensors), 0, 0, 0)


# -- writing ----------------------------------------------------------------------------------------------------------


def _writer(out: str | Path, architecture: str) -> gguf.GGUFWriter:
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    return gguf.GGUFWriter(out, architecture)


def _write(writer: gguf.GGUFWriter, tensors: list[tuple[str, np.ndarray]], quant: Quant, out: str | Path) -> Path:
    for name, array in tensors:
        target = Quant.F32 if array.ndim <= 1 else quant
        if target == Quant.Q8_0 and array.shape[-1] % gguf.GGML_QUANT_SIZES[Quant.Q8_0][0]:
            target = Quant.F16
        writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(array), target), raw_dtype=target)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(out)


@click.command(help=__doc__)
@click.argument("hf_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--text", type=click.Path(dir_okay=False, path_type=Path), help="Text GGUF to write.")
@click.option("--text-type", type=click.Choice(TEXT_OUTTYPES, case_sensitive=False), default="Q8_0", show_default=True)
@click.option("--mmproj", type=click.Path(dir_okay=False, path_type=Path), help="Projector GGUF to write.")
@click.option(
    "--mmproj-type", type=click.Choice(MMPROJ_OUTTYPES, case_sensitive=False), default="F16", show_default=True
)
@click.option("--name", help="general.name; default: the folder's name.")
def main(
    hf_dir: Path, text: Path | None, text_type: str, mmproj: Path | None, mmproj_type: str, name: str | None
) -> None:
    if text is None and mmproj is None:
        raise click.UsageError("nothing to do: give --text, --mmproj or both")
    try:
        if text is not None:
            click.echo(export_text(hf_dir, text, text_type, name))
        if mmproj is not None:
            click.echo(export_mmproj(hf_dir, mmproj, mmproj_type, name))
    except ValueError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
