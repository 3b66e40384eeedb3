"""The GGUF maker: readable files, the keys that llama.cpp asks for, sane weights, the same bytes for the same seed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import random_gguf
from click.testing import CliRunner
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, dequantize

TEXT_KEYS = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
]
CLIP_KEYS = [
    "has_vision_encoder",
    "projector_type",
    "vision.projection_dim",
    "vision.image_size",
    "vision.patch_size",
    "vision.block_count",
    "vision.embedding_length",
    "vision.feed_forward_length",
    "vision.attention.head_count",
    "vision.image_mean",
    "vision.image_std",
    "vision.attention.layer_norm_epsilon",
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[GGUFReader, GGUFReader]:
    """The tiny pair: (text model, projector)."""
    model, mmproj = random_gguf.make_pair(tmp_path_factory.mktemp("gguf"), "tiny")
    assert mmproj is not None
    return GGUFReader(model), GGUFReader(mmproj)


def value(reader: GGUFReader, key: str) -> object:
    field = reader.get_field(key)
    assert field is not None, key
    return field.contents()


def test_text_model_has_the_keys_of_qwen2vl(pair: tuple[GGUFReader, GGUFReader]) -> None:
    text, shape = pair[0], random_gguf.PRESETS["tiny"]
    assert value(text, "general.architecture") == "qwen2vl"
    for key in TEXT_KEYS:
        value(text, f"qwen2vl.{key}")
    sections = value(text, "qwen2vl.rope.dimension_sections")
    assert sum(sections) == shape.head_dim // 2
    assert value(text, "qwen2vl.block_count") == shape.layers


def test_vocabulary_is_byte_level_with_special_tokens(pair: tuple[GGUFReader, GGUFReader]) -> None:
    text = pair[0]
    tokens = value(text, "tokenizer.ggml.tokens")
    assert len(tokens) == len(set(tokens)) == random_gguf.PRESETS["tiny"].vocab
    assert len(value(text, "tokenizer.ggml.token_type")) == len(tokens)
    assert value(text, "tokenizer.ggml.pre") == "qwen2"
    assert set(random_gguf.SPECIALS) <= set(tokens)
    assert tokens[value(text, "tokenizer.ggml.eos_token_id")] == "<|im_end|>"
    assert value(text, "tokenizer.ggml.merges")
    for merge in value(text, "tokenizer.ggml.merges"):
        left, right = merge.split(" ")
        assert {left, right, left + right} <= set(tokens)
    assert "<|vision_start|><|image_pad|><|vision_end|>" in value(text, "tokenizer.chat_template")


def test_projector_fits_the_text_model(pair: tuple[GGUFReader, GGUFReader]) -> None:
    text, mmproj = pair
    for key in CLIP_KEYS:
        value(mmproj, f"clip.{key}")
    assert value(mmproj, "clip.projector_type") == "qwen2vl_merger"
    tensors = {tensor.name: tensor for tensor in mmproj.tensors}
    assert tensors["mm.2.weight"].shape[1] == value(text, "qwen2vl.embedding_length")
    assert list(tensors["v.patch_embd.weight.1"].shape[:3]) == [14, 14, 3]


def test_tensors_have_the_size_of_their_type(pair: tuple[GGUFReader, GGUFReader]) -> None:
    for reader in pair:
        for tensor in reader.tensors:
            block, size = GGML_QUANT_SIZES[tensor.tensor_type]
            assert tensor.n_bytes == tensor.n_elements // block * size, tensor.name
    types = {tensor.name: tensor.tensor_type for tensor in pair[0].tensors}
    assert types["blk.0.ffn_down.weight"] == GGMLQuantizationType.Q4_0
    assert types["token_embd.weight"] == GGMLQuantizationType.Q8_0


def test_weights_are_finite_and_scaled_to_their_rows(pair: tuple[GGUFReader, GGUFReader]) -> None:
    for tensor in pair[0].tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        assert np.isfinite(values).all(), tensor.name
        if len(tensor.shape) == 2:
            std = 1 / math.sqrt(tensor.shape[0])
            assert np.std(values) == pytest.approx(std, rel=0.05), tensor.name
            assert abs(np.mean(values)) < 0.1 * std, tensor.name


@pytest.mark.parametrize("kind", list(random_gguf.TYPES))
def test_same_seed_same_bytes(tmp_path: Path, kind: str) -> None:
    pairs = [random_gguf.make_pair(tmp_path / name, "tiny", kind, seed=seed) for name, seed in (("a", 3), ("b", 3))]
    other = random_gguf.make_pair(tmp_path / "c", "tiny", kind, seed=4)
    for first, second, third in zip(*pairs, other, strict=True):
        assert first.read_bytes() == second.read_bytes()
        assert first.read_bytes() != third.read_bytes()


def test_text_only_architecture_has_no_projector(tmp_path: Path) -> None:
    model, mmproj = random_gguf.make_pair(tmp_path, "tiny", arch="qwen2")
    assert mmproj is None
    assert GGUFReader(model).get_field("qwen2.rope.dimension_sections") is None


def test_existing_files_are_kept_and_no_part_is_left(tmp_path: Path) -> None:
    model, _ = random_gguf.make_pair(tmp_path, "tiny")
    before = model.stat().st_mtime_ns
    assert random_gguf.make_pair(tmp_path, "tiny")[0].stat().st_mtime_ns == before
    assert {path.suffix for path in tmp_path.iterdir()} == {".gguf"}


@pytest.mark.parametrize(
    ("preset", "params"), [("qwen2-0.5b", 494_032_768), ("qwen2-1.5b", 1_543_714_304), ("qwen2-7b", 7_615_616_512)]
)
def test_presets_have_the_parameters_of_the_real_models(preset: str, params: int) -> None:
    tensors = random_gguf.text_tensors(random_gguf.PRESETS[preset], GGMLQuantizationType.Q4_0)
    assert sum(math.prod(tensor.shape) for tensor in tensors) == params


def test_wrong_values_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="preset must be one of tiny, .* got 'huge'"):
        random_gguf.make_pair(tmp_path, "huge")
    result = CliRunner().invoke(random_gguf.main, [str(tmp_path), "--preset", "tiny", "--vocab", "10"])
    assert result.exit_code == 2
    assert "vocab must be at least 512, got 10" in result.output
