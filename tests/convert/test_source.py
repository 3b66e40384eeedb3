"""What is refused before the converter starts, and what is found out about a folder."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from pyaircache import ArgumentError, ConversionError, ModelNotFoundError
from pyaircache.convert import convert
from pyaircache.convert.source import open_source
from pyaircache.convert.types import MMPROJ_TYPES, TEXT_TYPES, unquantised


def safetensors(path: Path, dtype: str = "BF16", data: int = 16, name: str = "a.weight") -> Path:
    """A file of one 2 x 4 tensor and a vector; `data` bytes of weights."""
    header = {
        "__metadata__": {"format": "pt"},
        name: {"dtype": dtype, "shape": [2, 4], "data_offsets": [0, 12]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "some-vl"
    path.mkdir()
    (path / "config.json").write_text('{"architectures": ["SomeForConditionalGeneration"]}')
    return path


def refused(folder: Path, message: str, error: type[Exception] = ConversionError) -> None:
    """By the whole function, which leaves nothing behind."""
    out = folder.parent / "out"
    with pytest.raises(error, match=message):
        convert(folder, out)
    assert not out.exists()


def test_folders_that_are_none(tmp_path: Path, folder: Path) -> None:
    refused(tmp_path / "none", "none does not exist", ModelNotFoundError)
    with pytest.raises(FileNotFoundError, match="llava-hf/some does not exist; models are not downloaded"):
        convert("llava-hf/some", tmp_path / "out")
    refused(folder / "config.json", "is a file; give the folder")
    (folder / "config.json").rename(folder / "adapter_config.json")
    refused(folder, r"is an adapter \(LoRA\)")
    (folder / "adapter_config.json").unlink()
    refused(folder, "has no config.json")


@pytest.mark.parametrize(("content", "message"), [("{", "cannot be read as JSON"), ("[]", "holds no JSON object")])
def test_damaged_configuration(folder: Path, content: str, message: str) -> None:
    (folder / "config.json").write_text(content)
    refused(folder, message)


def test_pickles_are_never_opened(folder: Path) -> None:
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"not even a pickle")
    refused(folder, r"as pickle only \(pytorch_model-00001-of-00002.bin\): opening one can run any code")
    safetensors(folder / "model.safetensors")
    source = open_source(folder)  # beside safetensors they do not matter
    assert source.types == {"BF16"} and not source.has_mtp


def test_missing_weights_are_named(folder: Path) -> None:
    refused(folder, r"has no \*.safetensors")
    safetensors(folder / "weights.safetensors")
    refused(folder, r"must be called model\*.safetensors, found weights.safetensors")


def test_missing_parts_are_named(folder: Path) -> None:
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict(zip("ab", names, strict=True))}))
    safetensors(folder / names[0])
    refused(folder, f"lacks 1 of 2 weight files .{names[1]}.: finish the download")
    safetensors(folder / names[1], "F16", name="model.mtp.fc.weight")
    assert open_source(folder).types == {"BF16", "F16"} and open_source(folder).has_mtp
    index.write_text("{}")
    refused(folder, "has no weight_map")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a safetensors file, or was cut off"),
        (b"\x80\x04pickled", "is not a safetensors file, or was cut off"),
        (struct.pack("<Q", 4) + b"{{{{", "has a damaged safetensors header"),
        (struct.pack("<Q", 8) + b'{"a": 1}', "has a damaged safetensors header"),
    ],
)
def test_damaged_weights(folder: Path, content: bytes, message: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, f"model.safetensors {message}")


def test_weights_that_were_cut_off(folder: Path) -> None:
    size = safetensors(folder / "model.safetensors", data=15).stat().st_size
    refused(folder, f"model.safetensors was cut off: {size:,} of {size + 1:,} bytes")


def test_names(folder: Path, tmp_path: Path) -> None:
    safetensors(folder / "model.safetensors")
    assert open_source(folder).name == "some-vl" and not open_source(folder).from_cache
    snapshot = tmp_path / "models--maker--Their-VL-2B" / "snapshots" / "0123abcd"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    assert open_source(snapshot).name == "Their-VL-2B" and open_source(snapshot).from_cache


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outtype": "q9"}, "outtype must be one of f32, f16, .*q4_k_m.*; got 'q9'"),
        ({"mmproj_outtype": "q4_k_m"}, "mmproj_outtype must be one of f32, f16, bf16, q8_0; got 'q4_k_m'"),
        ({"only": "vision"}, "only must be one of both, text, mmproj"),
        ({"name": "a/b"}, "name must be a name for files, without folders, got 'a/b'"),
        ({"name": ""}, "name must be"),
        ({"force": 1}, "force must be True or False"),
    ],
)
def test_arguments(folder: Path, options: dict[str, Any], message: str) -> None:
    safetensors(folder / "model.safetensors")
    with pytest.raises(ArgumentError, match=message):
        convert(folder, folder.parent / "out", **options)


def test_what_lies_in_the_way(folder: Path) -> None:
    safetensors(folder / "model.safetensors")
    (folder.parent / "out").write_text("")
    with pytest.raises(ConversionError, match="out is a file; name a folder"):
        convert(folder, folder.parent / "out")
    (folder.parent / "out").unlink()
    (folder.parent / "out").mkdir()
    (folder.parent / "out" / "mmproj-some-vl-F16.gguf").write_text("precious")
    with pytest.raises(ConversionError, match="mmproj-some-vl-F16.gguf exists already; .*--force"):
        convert(folder, folder.parent / "out")
    assert [path.read_text() for path in (folder.parent / "out").iterdir()] == ["precious"]


def test_missing_packages_come_with_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safetensors(folder / "model.safetensors")
    monkeypatch.setattr("pyaircache.convert.run.NEEDED", ("torch", "no_such_package"))
    refused(folder, r"needs no_such_package, not installed here: pip install 'pyaircache\[convert\]'")


def test_types() -> None:
    assert set(MMPROJ_TYPES) < set(TEXT_TYPES) and len(set(TEXT_TYPES)) == len(TEXT_TYPES)
    assert unquantised({"F32", "BF16"}) == "f32" and unquantised({"F16"}) == "f16"
    assert unquantised({"BF16"}) == unquantised({"BF16", "F16"}) == unquantised({"F8_E4M3"}) == "bf16"
