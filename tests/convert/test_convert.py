"""Conversions, compared bit by bit with other ways to the same files; and how they end when they do not end well."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import bundled
import gguf
import pinned
import pytest
import tiny
import tiny_idefics3
from click.testing import CliRunner
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from pyaircache import Chat, ConversionError
from pyaircache.cli import main
from pyaircache.convert import convert
from pyaircache.model_files import BUNDLED_MMPROJ, bundled_dir
from training import export_gguf

NAME = {"general.name"}
# export_gguf writes the blocks' width, the converter the projection's; llama.cpp only prints it
NAME_AND_WIDTH = NAME | {"clip.vision.feed_forward_length"}


def content(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys with types and values; tensors with types, shapes and bytes."""
    reader = gguf.GGUFReader(path)
    return (
        {key: (field.types, field.contents()) for key, field in reader.fields.items()},
        {one.name: (one.tensor_type, one.shape.tolist(), one.data.tobytes()) for one in reader.tensors},
    )


def assert_same(ours: Path, theirs: Path, but: set[str] = NAME) -> None:
    (our_keys, our_tensors), (their_keys, their_tensors) = content(ours), content(theirs)
    assert our_keys.keys() == their_keys.keys() and our_tensors.keys() == their_tensors.keys()
    assert {key for key in our_keys if our_keys[key] != their_keys[key]} <= but
    assert [name for name in our_tensors if our_tensors[name] != their_tensors[name]] == []


@pytest.fixture
def copy(made_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_dir, tmp_path / "tiny-vl"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def save_text(folder: Path, model: Any, config: Any, **shape: int) -> None:
    """A tiny random language model with the tokenizer of the others."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 512} | shape  # fmt: skip
    model(config(vocab_size=288, **shape)).save_pretrained(folder)
    tiny.save_tokenizer(folder)


def refused(message: str, source: Path, out: Path, **options: Any) -> None:
    with pytest.raises(ConversionError, match=message):
        convert(source, out, **options)
    assert not out.exists()


# -- against other ways -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as a Hugging Face folder."""
    return bundled.save(tmp_path_factory.mktemp("trained") / "pages-vl")


@pytest.fixture(scope="module")
def stock(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Its text model and projector in F32 by llama.cpp's converter, called without our code."""
    return pinned.convert(Path(shutil.copytree(trained, tmp_path_factory.mktemp("stock") / "pages-vl")))


def test_a_trained_model_is_the_stock_converters_and_answers(
    trained: Path, stock: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "a" / "b"
    files = convert(trained, out, outtype="F32", name="pages")
    assert files == (out / "pages-F32.gguf", out / "mmproj-pages-F16.gguf")
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in files)
    assert_same(files.model, stock[0])
    assert_same(files.mmproj, bundled_dir() / BUNDLED_MMPROJ, NAME_AND_WIDTH)
    assert content(files.model)[0]["general.name"][1] == "pages"
    sample = json.loads((bundled_dir() / "samples" / "samples.jsonl").read_text().splitlines()[0])
    with Chat(files.model, n_threads=1) as chat:  # the projector is found beside it
        picture = bundled_dir() / "samples" / sample["file"]
        assert chat.info.vision and str(chat.ask(picture, sample["question"], keep=1.0)) == sample["answer"]


def test_a_random_model_is_the_exporters(made_dir: Path, tmp_path: Path) -> None:
    for outtype, mmproj_outtype in (("f16", "f32"), ("q8_0", "f16")):
        files = convert(made_dir, tmp_path, outtype=outtype, mmproj_outtype=mmproj_outtype)
        assert files.model == tmp_path / f"tiny-vl-{outtype.upper()}.gguf"
        text = export_gguf.export_text(made_dir, tmp_path / "text", outtype)
        mmproj = export_gguf.export_mmproj(made_dir, tmp_path / "mmproj", mmproj_outtype)
        assert_same(files.model, text)
        assert_same(files.mmproj, mmproj, NAME_AND_WIDTH)


def test_quantised_is_llama_quantizes(
    trained: Path, stock: tuple[Path, Path], program: Callable[[str], Path], tmp_path: Path
) -> None:
    """From F32 weights through F32, so that nothing is rounded twice."""
    files = convert(trained, tmp_path / "out", outtype="q4_k_m", only="text", name="pages")
    assert files == (tmp_path / "out" / "pages-Q4_K_M.gguf", None)
    assert list((tmp_path / "out").iterdir()) == [files.model]
    expected = tmp_path / "expected.gguf"
    command = [program("llama-quantize"), stock[0], expected, "Q4_K_M", "1"]
    subprocess.run(command, check=True, capture_output=True)
    assert_same(files.model, expected)


def test_a_text_model_for_the_whole(tmp_path: Path) -> None:
    """SmolVLM's own class writes its text model, though the configuration inside names a plain one: its template is
    then one that llama.cpp can fill in."""
    made = tiny_idefics3.make("smolvlm", tmp_path / "smolvlm")
    files = convert(tmp_path / "smolvlm", tmp_path / "out", outtype="f32", mmproj_outtype="f32")
    assert_same(files.model, made.text)
    assert_same(files.mmproj, made.mmproj)
    keys = content(files.model)[0]
    assert "<__media" in keys["tokenizer.chat_template"][1] and keys["general.architecture"][1] == "llama"


def test_a_text_model_inside_an_unknown_one(tmp_path: Path) -> None:
    """Only the type of the language model is known; the part that sees is not, and is refused by name."""
    folder = tmp_path / "seer"
    save_text(folder, Qwen2ForCausalLM, Qwen2Config)
    plain = convert(folder, tmp_path / "plain")
    assert plain.mmproj is None  # nothing to see with
    text = json.loads((folder / "config.json").read_text())
    del text["architectures"]
    seer = {"architectures": ["SeerForConditionalGeneration"], "model_type": "seer", "vision_config": {"depth": 2}}
    (folder / "config.json").write_text(json.dumps(seer | {"text_config": text}))
    message = "the vision part of SeerForConditionalGeneration cannot be converted; known are .*Qwen2VLFor"
    refused(message, folder, tmp_path / "out")
    refused(message, folder, tmp_path / "out", only="mmproj")
    assert_same(convert(folder, tmp_path / "text", only="text").model, plain.model)
    edit(folder / "config.json", lambda c: c["text_config"].update(model_type="seer_text"))
    refused("the language model of SeerForConditionalGeneration cannot be", folder, tmp_path / "out", only="text")
    edit(folder / "config.json", lambda c: c.pop("architectures"))
    refused("names no architecture", folder, tmp_path / "out", only="text")


# -- tokenizers -------------------------------------------------------------------------------------------------------


def test_unknown_word_splitters_need_a_name(copy: Path, tmp_path: Path) -> None:
    edit(copy / "tokenizer.json", lambda t: t["pre_tokenizer"]["pretokenizers"].pop(0))
    refused(r"how this tokenizer splits words is not known.*--pre-tokenizer\): .*qwen2", copy, tmp_path / "out")
    refused("pre_tokenizer must be one of .*qwen2.*; got 'qwen7'", copy, tmp_path / "out", pre_tokenizer="qwen7")
    model = convert(copy, tmp_path / "out", pre_tokenizer="gpt-2").model
    assert content(model)[0]["tokenizer.ggml.pre"][1] == "gpt-2"


# -- nothing of the folder is run -------------------------------------------------------------------------------------


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Puts code into a folder and names it in its configuration; makes the folder the current one. The file that is
    there afterwards if any of it ran."""
    proof = tmp_path / "executed"

    def spoil(folder: Path) -> Path:
        code = f"open({str(proof)!r}, 'w').close()\nclass Evil:\n    pass\n"
        for name in ("evil.py", "torch.py", "conversion.py", "gguf.py", "sitecustomize.py"):
            (folder / name).write_text(code)
        auto_map = {"AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", None], "AutoModel": "evil.Evil"}
        for file in ("config.json", "tokenizer_config.json"):
            edit(folder / file, lambda c: c.update(auto_map=auto_map))
        monkeypatch.chdir(folder)  # where a careless `python -m` looks first
        return proof

    return spoil


def test_code_of_the_folder_is_passed_over(copy: Path, tmp_path: Path, evil: Callable[[Path], Path]) -> None:
    """transformers has classes of its own for this model."""
    proof = evil(copy)
    convert(".", tmp_path / "out")
    assert not proof.exists()


def test_code_of_the_folder_that_is_needed_is_refused(tmp_path: Path, evil: Callable[[Path], Path]) -> None:
    """With this architecture's tokenizer the converter itself asks for trust_remote_code."""
    folder = tmp_path / "hf"
    save_text(folder, Qwen3ForCausalLM, Qwen3Config, head_dim=16)
    edit(folder / "config.json", lambda c: c.update(
        architectures=["InternS1ForConditionalGeneration"], model_type="evil",
        text_config={"architectures": ["Qwen3ForCausalLM"]}))  # fmt: skip
    proof = evil(folder)
    edit(folder / "tokenizer_config.json", lambda c: c.update(tokenizer_class="EvilTokenizer"))
    refused("needs Python code of its own to be run", Path("."), tmp_path / "out", only="text")
    assert not proof.exists()


# -- bad ends ---------------------------------------------------------------------------------------------------------


def test_a_tensor_nobody_knows(copy: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(copy / "model.safetensors")
    state["model.layers.0.surprise.weight"] = state["visual.merger.mlp.0.weight"].clone()
    save_file(state, copy / "model.safetensors")
    refused("tiny-vl cannot be converted: Can not map tensor '.*surprise", copy, tmp_path / "out")


def test_a_failure_keeps_what_was_there(made_dir: Path, copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = convert(made_dir, out)
    before = files.model.read_bytes()
    (copy / "preprocessor_config.json").unlink()  # found out when the language model is written already
    with pytest.raises(ConversionError, match="KeyError: 'image_mean'"):
        convert(copy, out, force=True)
    assert sorted(out.iterdir()) == sorted(files) and files.model.read_bytes() == before
    files.model.write_bytes(b"")
    convert(made_dir, out, force=True)
    assert files.model.read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_a_converter_that_dies(made_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho one >&2; echo 'out of luck' >&2; exit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    refused(r"the converter failed \(exit code 3\); its last words: one \| out of luck", made_dir, tmp_path / "out")
    script.write_text("#!/bin/sh\nkill -9 $$\n")
    refused("the converter was stopped by signal 9", made_dir, tmp_path / "out")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_leaves_nothing(made_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pyaircache", "convert", str(made_dir), "-o", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        deadline = time.monotonic() + 120
        while not list(out.glob(".converting-*/log")):
            assert running.poll() is None and time.monotonic() < deadline, "the conversion does not begin"
            with suppress(subprocess.TimeoutExpired):
                running.wait(0.01)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to both processes
        _, err = running.communicate(timeout=120)
    assert running.returncode == 130 and not err.strip()
    assert not out.exists()


# -- command line -----------------------------------------------------------------------------------------------------


def test_command(made_dir: Path, tmp_path: Path) -> None:
    arguments = ["convert", str(made_dir), "-o", str(tmp_path), "--outtype", "q8_0", "--name", "x"]
    result = CliRunner().invoke(main.main, arguments)
    paths = [tmp_path / "x-Q8_0.gguf", tmp_path / "mmproj-x-F16.gguf"]
    assert (result.exit_code, result.stdout.split(), result.stderr) == (0, [str(path) for path in paths], "")
    again = CliRunner().invoke(main.main, arguments)
    assert again.exit_code == 1 and again.stderr.startswith("pyaircache: error: ") and "--force" in again.stderr
    wrong = CliRunner().invoke(main.main, [*arguments, "--outtype", "q9"])
    assert wrong.exit_code == 2 and "outtype must be one of" in wrong.stderr
