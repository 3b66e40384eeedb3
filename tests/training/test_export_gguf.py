"""The exporter against llama.cpp's own converter, and on models and folders of every kind it says it handles."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundled
import gguf
import numpy as np
import pinned
import pytest
import tiny
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLForConditionalGeneration

from pyaircache.model_files import BUNDLED_MMPROJ, BUNDLED_MODEL, bundled_dir
from training import export_gguf

# Keys that differ from the stock converter's on purpose
ON_PURPOSE = {
    "general.name",  # the stock converter title-cases the folder's name
    # the stock converter writes the projection width (256); the blocks' feed-forward is mlp_ratio * width = 768 wide.
    # llama.cpp only prints it.
    "clip.vision.feed_forward_length",
}


def keys(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {key: (field.types, field.contents()) for key, field in reader.fields.items()}


def tensors(reader: gguf.GGUFReader) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in reader.tensors}


def assert_same(ours: Path, theirs: Path, but: frozenset[str] | set[str] = frozenset()) -> None:
    """Same keys with the same types and values, same tensors bit for bit."""
    ours_reader, theirs_reader = gguf.GGUFReader(ours), gguf.GGUFReader(theirs)
    our_keys, their_keys = keys(ours_reader), keys(theirs_reader)
    assert our_keys.keys() == their_keys.keys()
    for key in our_keys.keys() - but:
        assert our_keys[key] == their_keys[key], key
    our_tensors, their_tensors = tensors(ours_reader), tensors(theirs_reader)
    assert our_tensors.keys() == their_tensors.keys()
    for name, tensor in our_tensors.items():
        assert tensor.tensor_type == their_tensors[name].tensor_type, name
        assert tensor.shape.tolist() == their_tensors[name].shape.tolist(), name
        assert tensor.data.tobytes() == their_tensors[name].data.tobytes(), name


# -- against the stock converter --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as a Hugging Face folder."""
    return bundled.save(tmp_path_factory.mktemp("trained") / "pages-vl")


@pytest.fixture(scope="module")
def stock(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Its text model and projector in F32 by llama.cpp's converter."""
    return pinned.convert(Path(shutil.copytree(trained, tmp_path_factory.mktemp("stock") / "pages-vl")))


def test_text_f32_is_the_stock_converters(trained: Path, stock: tuple[Path, Path], tmp_path: Path) -> None:
    ours = export_gguf.export_text(trained, tmp_path / "text.gguf", "F32")
    assert_same(ours, stock[0], ON_PURPOSE)


def test_mmproj_is_the_stock_converters(trained: Path, stock: tuple[Path, Path], tmp_path: Path) -> None:
    ours = export_gguf.export_mmproj(trained, tmp_path / "mmproj.gguf", "F32")
    assert_same(ours, stock[1], ON_PURPOSE)
    assert keys(gguf.GGUFReader(ours))["clip.vision.feed_forward_length"][1] == 768


@pytest.mark.parametrize("outtype", ["F16", "Q8_0"])
def test_text_is_llama_quantizes(outtype: str, program: Callable[[str], Path], tmp_path: Path) -> None:
    """To the last byte, and no weight is further from the exact one than half a step. Random weights: those of the
    bundled model have been rounded to Q8_0 already."""
    folder = tiny.save_tiny(tmp_path / "hf", seed=2)
    exact = export_gguf.export_text(folder, tmp_path / "exact.gguf", "F32")
    ours = gguf.GGUFReader(export_gguf.export_text(folder, tmp_path / "ours.gguf", outtype))
    command = [program("llama-quantize"), "--pure", exact, tmp_path / "theirs.gguf", outtype]
    subprocess.run(command, check=True, capture_output=True)
    theirs, exact = tensors(gguf.GGUFReader(tmp_path / "theirs.gguf")), tensors(gguf.GGUFReader(exact))
    assert tensors(ours).keys() == theirs.keys() == exact.keys()
    rounded = 0
    for name, tensor in tensors(ours).items():
        assert tensor.tensor_type == theirs[name].tensor_type, name
        assert tensor.data.tobytes() == theirs[name].data.tobytes(), name
        values = exact[name].data
        if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
            assert tensor.data.tobytes() == values.tobytes(), name
            continue
        assert tensor.tensor_type.name == outtype
        error = np.abs(gguf.dequantize(tensor.data, tensor.tensor_type) - values).reshape(-1, 32)
        if outtype == "F16":
            assert (error <= np.abs(values.reshape(-1, 32)) * 2**-11 + 2**-25).all(), name
        else:
            step = np.abs(values.reshape(-1, 32)).max(axis=1, keepdims=True) / 127
            assert (error <= 0.51 * step + 127 * step * 2**-11).all(), name  # half a step, and the scale is F16
        rounded += error.any()
    assert rounded > 10


def test_the_bundled_files_are_the_exporters(trained: Path, tmp_path: Path) -> None:
    """From GGUF to Hugging Face's form and back: nothing is lost, to the last byte."""
    text = export_gguf.export_text(trained, tmp_path / "text.gguf", "Q8_0")
    mmproj = export_gguf.export_mmproj(trained, tmp_path / "mmproj.gguf", "F16")
    assert text.read_bytes() == (bundled_dir() / BUNDLED_MODEL).read_bytes()
    assert mmproj.read_bytes() == (bundled_dir() / BUNDLED_MMPROJ).read_bytes()


def test_shipped_files_are_complete() -> None:
    folder = bundled_dir()
    lines = [json.loads(line) for line in (folder / "samples" / "samples.jsonl").read_text().splitlines()]
    assert sorted(line["file"] for line in lines) == sorted(p.name for p in (folder / "samples").glob("*.png"))
    assert lines and all(line.keys() == {"file", "question", "answer"} for line in lines)
    assert (folder / "README.md").is_file()
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 25e6


# -- random models ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=list(tiny.SHAPES))
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, tiny.save_tiny(tmp_path_factory.mktemp(request.param), request.param, seed=1)


def test_random_text(named: tuple[str, Path], tmp_path: Path) -> None:
    shape, folder = tiny.SHAPES[named[0]], named[1]
    reader = gguf.GGUFReader(export_gguf.export_text(folder, tmp_path / "text.gguf", "F32"))
    values = {key: contents for key, (_, contents) in keys(reader).items()}
    assert values["qwen2vl.block_count"] == shape.layers
    assert values["qwen2vl.attention.head_count"] == shape.heads
    assert values["qwen2vl.attention.head_count_kv"] == shape.heads_kv
    assert values["qwen2vl.rope.dimension_sections"] == [*shape.sections, 0]
    assert values["qwen2vl.rope.freq_base"] == shape.theta
    state = load_file(folder / "model.safetensors")
    found = tensors(reader)
    assert ("output.weight" in found) == (not shape.tied)
    last = shape.layers - 1
    for theirs, ours in {
        "model.embed_tokens.weight": "token_embd.weight",
        f"model.layers.{last}.self_attn.k_proj.bias": f"blk.{last}.attn_k.bias",
        f"model.layers.{last}.mlp.down_proj.weight": f"blk.{last}.ffn_down.weight",
    }.items():
        np.testing.assert_array_equal(found[ours].data, state[theirs].numpy())


def test_random_mmproj(named: tuple[str, Path], tmp_path: Path) -> None:
    shape, folder = tiny.SHAPES[named[0]], named[1]
    reader = gguf.GGUFReader(export_gguf.export_mmproj(folder, tmp_path / "mmproj.gguf", "F32"))
    values = {key: contents for key, (_, contents) in keys(reader).items()}
    assert values["clip.vision.block_count"] == shape.vision_depth
    assert values["clip.vision.projection_dim"] == shape.heads * shape.head_dim
    state = load_file(folder / "model.safetensors")
    found = tensors(reader)
    qkv = state["visual.blocks.1.attn.qkv.weight"].numpy()
    parts = [found[f"v.blk.1.attn_{letter}.weight"].data for letter in "qkv"]
    np.testing.assert_array_equal(np.concatenate(parts), qkv)
    frames = state["visual.patch_embed.proj.weight"].numpy()
    np.testing.assert_array_equal(found["v.patch_embd.weight.1"].data, frames[:, :, 1])


def test_q8_0_falls_back_to_f16_for_odd_rows(tmp_path: Path) -> None:
    """Rows of 48 are no multiple of Q8_0's 32; rows of 96 (the down projection) are."""
    shape = tiny.Shape(layers=1, heads=3, heads_kv=3, head_dim=16, sections=(2, 3, 3))
    folder = tiny.save_tiny(tmp_path / "hf", shape)
    found = tensors(gguf.GGUFReader(export_gguf.export_text(folder, tmp_path / "text.gguf", "Q8_0")))
    assert found["blk.0.attn_q.weight"].tensor_type == gguf.GGMLQuantizationType.F16
    assert found["blk.0.ffn_down.weight"].tensor_type == gguf.GGMLQuantizationType.Q8_0
    assert found["blk.0.attn_q.bias"].tensor_type == gguf.GGMLQuantizationType.F32


# -- folders of other makers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model; tests that change it work on a copy."""
    return tiny.save_tiny(tmp_path_factory.mktemp("gqa"), "gqa")


@pytest.fixture()
def copy(model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_dir, tmp_path / "hf"))


def test_shards_make_the_same_file(model_dir: Path, copy: Path, tmp_path: Path) -> None:
    model = Qwen2VLForConditionalGeneration.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="1MB")
    assert len(list(copy.glob("*.safetensors"))) > 1
    for export in (export_gguf.export_text, export_gguf.export_mmproj):
        assert_same(export(copy, tmp_path / "a.gguf", "F16", "x"), export(model_dir, tmp_path / "b.gguf", "F16", "x"))


def test_names_of_the_class_in_memory_are_known(model_dir: Path, copy: Path, tmp_path: Path) -> None:
    """transformers 4.52 and later call the parts model.language_model and model.visual unless they rename on saving."""
    state = load_file(copy / "model.safetensors")
    renamed = {
        "model." + key if key.startswith("visual.") else key.replace("model.", "model.language_model."): tensor
        for key, tensor in state.items()
    }
    save_file(renamed, copy / "model.safetensors")
    for export in (export_gguf.export_text, export_gguf.export_mmproj):
        assert_same(export(copy, tmp_path / "a.gguf", "F32", "x"), export(model_dir, tmp_path / "b.gguf", "F32", "x"))


def test_flat_configuration_is_known(model_dir: Path, copy: Path, tmp_path: Path) -> None:
    """The configuration of Qwen's own releases: text keys at the top level, rope_scaling, template in JSON."""
    config = json.loads((copy / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    config.update(text | {"model_type": "qwen2_vl", "rope_theta": rope["rope_theta"]})
    config["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    (copy / "config.json").write_text(json.dumps(config))
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    for export in (export_gguf.export_text, export_gguf.export_mmproj):
        assert_same(export(copy, tmp_path / "a.gguf", "F32", "x"), export(model_dir, tmp_path / "b.gguf", "F32", "x"))


def test_bfloat16_weights_are_read(copy: Path, tmp_path: Path) -> None:
    state = {key: tensor.bfloat16() for key, tensor in load_file(copy / "model.safetensors").items()}
    save_file(state, copy / "model.safetensors")
    found = tensors(gguf.GGUFReader(export_gguf.export_text(copy, tmp_path / "text.gguf", "F32")))
    expected = state["model.layers.0.mlp.up_proj.weight"].to(torch.float32).numpy()
    np.testing.assert_array_equal(found["blk.0.ffn_up.weight"].data, expected)


# -- errors -----------------------------------------------------------------------------------------------------------


def text_part(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["text_config"].update(changes)


def vision_part(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["vision_config"].update(changes)


def rope(sections: list[int], kind: str = "default") -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "mrope_section": sections}}


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="llava"), "'qwen2_vl', got 'llava'"),
        (text_part(hidden_size=None), "lacks hidden_size"),
        (text_part(num_attention_heads=5), r"hidden_size \(128\) must be a multiple of num_attention_heads \(5\)"),
        (text_part(num_key_value_heads=3), r"\(4\) must be a multiple of num_key_value_heads \(3\)"),
        (text_part(head_dim=64), "head_dim must be .* 32, got 64"),
        (text_part(hidden_act="gelu"), "'silu', got 'gelu'"),
        (text_part(use_sliding_window=True), "use_sliding_window"),
        (text_part(vocab_size=200), "highest id is 273, vocab_size is 200"),
        (text_part(num_hidden_layers=2), "unexpected text tensor model.layers.2|unexpected text tensor layers.2"),
        (text_part(num_hidden_layers=4), "lacks 12 text tensor"),
        (text_part(**rope([4, 6, 5])), "sum to head_dim / 2 = 16, got .4, 6, 5."),
        (text_part(**rope([4, 6, 6], "yarn")), "'default' or 'mrope', got 'yarn'"),
    ],
)
def test_text_refuses(change: Callable[[dict[str, Any]], None], message: str, copy: Path, tmp_path: Path) -> None:
    edit(copy / "config.json", change)
    with pytest.raises(ValueError, match=message):
        export_gguf.export_text(copy, tmp_path / "text.gguf")
    assert not (tmp_path / "text.gguf").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (vision_part(depth=None), "lacks depth"),
        (vision_part(depth=2), "unexpected vision tensor"),
        (vision_part(depth=5), "lacks 32 vision tensor"),
        (vision_part(num_heads=3), "multiple of 4, got 64 / 3"),
        (vision_part(hidden_size=64), r"must be the text's \(128\), got 64"),
        (vision_part(temporal_patch_size=1), "temporal_patch_size must be 2, got 1"),
        (vision_part(in_channels=1), "3 channels"),
        (vision_part(hidden_act="gelu"), "'quick_gelu', got 'gelu'"),
        (vision_part(mlp_ratio=1), "mlp_ratio"),
    ],
)
def test_mmproj_refuses(change: Callable[[dict[str, Any]], None], message: str, copy: Path, tmp_path: Path) -> None:
    edit(copy / "config.json", change)
    with pytest.raises(ValueError, match=message):
        export_gguf.export_mmproj(copy, tmp_path / "mmproj.gguf")
    assert not (tmp_path / "mmproj.gguf").exists()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", r"no \*.safetensors"),
        ("tokenizer.json", "no tokenizer.json"),
        ("tokenizer_config.json", "no tokenizer_config.json"),
        ("chat_template.jinja", "no chat template"),
    ],
)
def test_missing_files_are_named(file: str, message: str, copy: Path, tmp_path: Path) -> None:
    (copy / file).unlink()
    with pytest.raises(ValueError, match=message):
        export_gguf.export_text(copy, tmp_path / "text.gguf")


def test_broken_files_are_named(copy: Path, tmp_path: Path) -> None:
    edit(copy / "preprocessor_config.json", lambda c: c.update(image_mean=0.5))
    with pytest.raises(ValueError, match="image_mean must be three numbers, got 0.5"):
        export_gguf.export_mmproj(copy, tmp_path / "mmproj.gguf")
    edit(copy / "tokenizer_config.json", lambda c: c.update(eos_token="<nope>"))
    with pytest.raises(ValueError, match="eos_token '<nope>' is not in the vocabulary"):
        export_gguf.export_text(copy, tmp_path / "text.gguf")
    edit(copy / "tokenizer.json", lambda c: c.update(pre_tokenizer=None))
    with pytest.raises(ValueError, match="pre-tokenizer must be Qwen2's"):
        export_gguf.export_text(copy, tmp_path / "text.gguf")
    (copy / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        export_gguf.export_text(copy, tmp_path / "text.gguf")


def test_unknown_outtypes_are_refused(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="F32, F16, Q8_0, got 'Q4_0'"):
        export_gguf.export_text(model_dir, tmp_path / "text.gguf", "Q4_0")
    with pytest.raises(ValueError, match="F32, F16, got 'Q8_0'"):
        export_gguf.export_mmproj(model_dir, tmp_path / "mmproj.gguf", "Q8_0")


# -- command line -----------------------------------------------------------------------------------------------------


def test_command_writes_both(model_dir: Path, tmp_path: Path) -> None:
    text, mmproj = tmp_path / "text.gguf", tmp_path / "mmproj.gguf"
    arguments = [str(model_dir), "--text", str(text), "--text-type", "f16", "--mmproj", str(mmproj), "--name", "small"]
    result = CliRunner().invoke(export_gguf.main, arguments)
    assert result.exit_code == 0, result.output
    for file in (text, mmproj):
        assert keys(gguf.GGUFReader(file))["general.name"][1] == "small"


def test_command_explains_itself(model_dir: Path, tmp_path: Path) -> None:
    nothing = CliRunner().invoke(export_gguf.main, [str(model_dir)])
    assert nothing.exit_code == 2 and "nothing to do" in nothing.output
    wrong = CliRunner().invoke(export_gguf.main, [str(tmp_path), "--text", str(tmp_path / "text.gguf")])
    assert wrong.exit_code == 1 and "no config.json" in wrong.output
