"""Converts tiny Hugging Face folders to GGUF with the converter of the pinned llama.cpp.

It runs in a process of its own, one for all conversions: its gguf package is newer than the installed one, which the
tests import.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VENDOR = ROOT / "vendor" / "llama.cpp"

# Modules that register classes for what the pinned converter does not know
OURS = tuple(f"pyaircache.convert.families.{name}" for name in ("idefics3", "internvl", "llava", "llava_next"))


def convert(hf_dir: Path) -> tuple[Path, Path]:
    """Writes text.gguf and mmproj.gguf in F32 into the folder and names them."""
    process = _process()
    assert process.stdin and process.stdout
    print(hf_dir, file=process.stdin, flush=True)
    answer = process.stdout.readline().strip()
    assert answer == "done", answer or "the converter's process ended: see its output above"
    return hf_dir / "text.gguf", hf_dir / "mmproj.gguf"


@functools.cache
def _process() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    atexit.register(process.kill)
    return process


# -- in the other process ---------------------------------------------------------------------------------------------


def _serve() -> None:
    """Answers every folder named on stdin with one line."""
    answers, sys.stdout = sys.stdout, sys.stderr
    base = _converter()
    for line in sys.stdin:
        try:
            _convert(base, Path(line.strip()))
            answer = "done"
        except Exception as error:
            answer = f"{type(error).__name__}: {error}".replace("\n", " ")
        print(answer, file=answers, flush=True)


def _convert(base: Any, hf_dir: Path) -> None:
    hparams = base.ModelBase.load_hparams(hf_dir, False)
    with base.torch.inference_mode():
        for kind, name in ((base.ModelType.TEXT, "text.gguf"), (base.ModelType.MMPROJ, "mmproj.gguf")):
            registered = base.ModelBase._model_classes[kind]
            model = registered.get(hparams["architectures"][0])
            if not getattr(model, "of_whole", False):  # as pyaircache.convert.worker chooses
                model = registered[base.get_model_architecture(hparams, kind)]
            model(hf_dir, base.gguf.LlamaFileType.ALL_F32, hf_dir / name).write()


def _converter() -> Any:
    """The converter's module of base classes, with all families registered."""
    sys.path[:0] = [str(VENDOR), str(VENDOR / "gguf-py"), str(ROOT)]
    conversion = importlib.import_module("conversion")
    conversion.load_all_models()
    for module in OURS:
        importlib.import_module(module)
    conversion.base.torch.set_num_threads(1)
    # The converter recognises a tokenizer by what it makes of one text; that of a vocabulary of 288 is not in its list
    text, classes = conversion.base.TextModel, conversion.base.ModelBase._model_classes
    text.get_vocab_base_pre = lambda *_: "qwen2"

    # Some classes insist on tokenizer.model, or on a package that reads it before they look whether it is there
    for name in ("InternLM2ForCausalLM", "Phi3ForCausalLM", "LlamaForCausalLM"):
        model = classes[conversion.base.ModelType.TEXT][name]
        model.set_vocab = functools.partialmethod(_set_vocab, model.set_vocab)
    text._set_vocab_sentencepiece = functools.partialmethod(_only_with_file, text._set_vocab_sentencepiece)
    return conversion.base


def _only_with_file(model: Any, original: Callable[[Any], None]) -> None:
    if not (model.dir_model / "tokenizer.model").is_file():
        raise FileNotFoundError
    original(model)


def _set_vocab(model: Any, original: Callable[[Any], None]) -> None:
    if (model.dir_model / "tokenizer.model").is_file():
        original(model)
    else:
        model._set_vocab_gpt2()


if __name__ == "__main__":
    _serve()
