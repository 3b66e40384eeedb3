"""Finding and checking model files."""

from __future__ import annotations

import os

import pytest

from pyaircache import ModelError, ModelNotFoundError, ProjectorError, model_files


def gguf(path, content=b"GGUF\3\0\0\0"):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "not a GGUF"), (b"PK\3\4", "not a GGUF"), (b"FUGG\0\0", "big-endian")]
)
def test_wrong_content(tmp_path, content, message):
    with pytest.raises(ModelError, match=message):
        model_files.check_gguf(gguf(tmp_path / "a.gguf", content))


def test_missing_folder_and_unreadable(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        model_files.resolve(tmp_path / "none.gguf", None)
    assert isinstance(caught.value, ModelNotFoundError) and isinstance(caught.value, ModelError)
    with pytest.raises(ModelError, match="is a folder"):
        model_files.resolve(tmp_path, None)
    if os.name == "posix" and os.geteuid() != 0:
        path = gguf(tmp_path / "a.gguf")
        path.chmod(0)
        with pytest.raises(ModelError, match="cannot be read"):
            model_files.check_gguf(path)


def test_missing_projector_is_named(tmp_path):
    model = gguf(tmp_path / "m.gguf")
    with pytest.raises(ModelNotFoundError, match="projector file .*p.gguf does not exist"):
        model_files.resolve(model, tmp_path / "p.gguf")


@pytest.mark.parametrize(
    ("model", "beside", "chosen"),
    [
        ("m.gguf", [], None),
        ("m.gguf", ["other.gguf", "mmproj.txt"], None),
        ("m.gguf", ["mmproj-model-f16.gguf"], "mmproj-model-f16.gguf"),
        ("m.gguf", ["MMPROJ-F16.GGUF"], "MMPROJ-F16.GGUF"),
        ("qwen2-vl-7b-q4.gguf", ["mmproj-qwen2-vl-2b-f16.gguf", "mmproj-qwen2-vl-7b-f16.gguf"],
         "mmproj-qwen2-vl-7b-f16.gguf"),
        ("qwen2-vl-7b-q4.gguf", ["llava.mmproj.gguf", "qwen2-vl.mmproj.gguf"], "qwen2-vl.mmproj.gguf"),
        ("mmproj-tool.gguf", ["mmproj-a.gguf"], "mmproj-a.gguf"),
    ],
)  # fmt: skip
def test_projector_beside_the_model(tmp_path, model, beside, chosen):
    path = gguf(tmp_path / model)
    for name in beside:
        gguf(tmp_path / name)
    found = model_files.resolve(path, None)[1]
    assert (found.name if found else None) == chosen


def test_equally_good_projectors(tmp_path):
    model = gguf(tmp_path / "qwen.gguf")
    names = ["mmproj-qwen-f16.gguf", "mmproj-qwen-f32.gguf"]
    for name in names:
        gguf(tmp_path / name)
    with pytest.raises(ProjectorError, match="mmproj-qwen-f16.gguf, mmproj-qwen-f32.gguf; pass mmproj="):
        model_files.resolve(model, None)
    assert model_files.resolve(model, tmp_path / names[1])[1] == tmp_path / names[1]


def test_bundled_model():
    model, mmproj = model_files.resolve(None, None)
    assert (model.name, mmproj.name) == ("pages-vl-Q8_0.gguf", "mmproj-pages-vl-F16.gguf")
