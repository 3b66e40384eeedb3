"""Asks the engine and the reference the same question."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aircache_ref as ref
import bundled
import numpy as np
import tiny
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2VLForConditionalGeneration

from pyaircache.engine import library, log
from pyaircache.engine.engine import Engine
from pyaircache.engine.status import check
from pyaircache.engine.structs import EngineMethod, Message, PromptInfo
from pyaircache.model_files import bundled_dir, resolve
from training import export_gguf

RPC = os.environ.get("PYAIRCACHE_TEST_RPC")  # address of a server on which all engines run: see test_rpc.py

WINDOWS = ("elite", "last", "text")
ALLOCATIONS = ("strength+skewness", "uniform", "pyramid", "strength", "skewness", "prefix")
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"  # what the chat template makes of an image

# What is fed behind a prompt, whatever the model would have said
TOKENS = (52, 50, 49, 32, 75, 73, 87, 73)


def open_engine(text: Path, mmproj: Path, cache: str = "f32", flash: bool = False, **options: Any) -> Engine:
    """An engine with one thread: the models are so small that two wait for each other. TWO_THREADS has both."""
    defaults = {"n_ctx": 512, "n_threads": 1, "keep_embeddings": True}
    types = {"cache_type_k": cache, "cache_type_v": cache, "flash_attn": int(flash)}
    with llama_log() as lines:
        engine = Engine(text, mmproj, rpc_servers=RPC, **(defaults | types | options))
    where = [line for line in lines if "KV buffer size" in line]
    assert where and all(("RPC" in line) == (RPC is not None) for line in where), where
    return engine


@contextmanager
def llama_log() -> Iterator[list[str]]:
    """What llama.cpp logs meanwhile."""
    ffi, lib, _ = library.load()
    usual = log.install()
    lines: list[str] = []
    callback = ffi.callback("pac_log_callback", lambda level, text, _: lines.append(ffi.string(text).decode()))
    lib.pac_log_set(callback, ffi.NULL)
    try:
        yield lines
    finally:
        lib.pac_log_set(usual, ffi.NULL)


def engine_method(keep: float, window: str = "elite", allocation: str = ALLOCATIONS[0], **rest: Any) -> EngineMethod:
    """Arguments of aircache_ref.compress as the engine's."""
    kind, _, count = window.partition(":")
    numbers = {"window": WINDOWS.index(kind), "allocation": ALLOCATIONS.index(allocation)}
    if count:
        numbers["window_n"] = int(count)
    return EngineMethod(keep=keep, **numbers, **rest)


def image_embeddings(engine: Engine) -> Tensor:
    """What the engine's vision tower made of the last prompt's images: [N_v, n_embd]."""
    ffi, lib = engine._ffi, engine._lib
    data, rows, columns = ffi.new("float **"), ffi.new("int32_t *"), ffi.new("int32_t *")
    check(lib.pac_image_embeddings(engine._engine, data, rows, columns))
    values = np.frombuffer(ffi.buffer(data[0], rows[0] * columns[0] * 4), dtype=np.float32)
    return torch.from_numpy(values.reshape(rows[0], columns[0]).copy())


def decode(engine: Engine, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Feeds tokens; the logits after each: [len(tokens), n_vocab]."""
    rows = []
    for token in tokens:
        engine.decode(token)
        rows.append(engine.logits())
    return np.stack(rows)


def greedy(engine: Engine, count: int) -> tuple[list[int], NDArray[np.float32]]:
    """The most likely tokens, also behind the end of the answer, and the logits that chose each."""
    tokens, rows = [], [engine.logits()]
    while True:
        tokens.append(engine.sample()[0])
        if len(tokens) == count:
            return tokens, np.stack(rows)
        engine.decode(tokens[-1])
        rows.append(engine.logits())


def lists(arrays: Sequence[np.ndarray]) -> list[list[int]]:
    """Arrays as lists, which compare and print well."""
    return [array.tolist() for array in arrays]


# -- models and questions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A prompt in both forms."""

    prompt: tiny.Prompt
    pictures: list[Image.Image]

    def ask(self, engine: Engine, marker: str | None = None) -> None:
        """Evaluates it, observed."""
        text = self.prompt.text.replace(IMAGE, marker or engine.marker())
        info = engine.prompt(text, [np.asarray(picture) for picture in self.pictures], observe=True)
        assert info.n_tokens == self.prompt.input_ids.numel()


def question(seed: int, n_images: int, tokenizer: PreTrainedTokenizerFast | None = None) -> Question:
    """One or three random images with text around them; None: the tokenizer of the tiny models."""
    rng = np.random.default_rng(seed)
    sizes = [(4, 6)] if n_images == 1 else [(4, 5), (2, 4), (4, 4)][:n_images]
    pictures = [tiny.random_image(rng, *size) for size in sizes]
    between = (" and ", " Also this one: ", "")
    content = [part for pair in zip(pictures, between, strict=False) for part in pair]
    return Question(tiny.chat_prompt(["Look: ", *content, "\nWhat is the value of KIWI?"], tokenizer), pictures)


@dataclass(frozen=True)
class Asked:
    """A question and what the reference makes of it, with the image embeddings of the engine.

    llama.cpp's vision tower looks GELU up in a table of F16 values: its own error of about 1e-3 would hide what is
    tested here. test_vision_tower compares the embeddings themselves.
    """

    question: Question
    embeddings: Tensor
    capture: ref.Capture

    @property
    def vision(self) -> tuple[Tensor, Tensor, Tensor]:
        return *self.question.prompt.vision, self.embeddings


@dataclass(eq=False)
class Model:
    """One model as Hugging Face's and as GGUF files, all in F32."""

    reference: Qwen2VLForConditionalGeneration = field(repr=False)
    text: Path
    mmproj: Path
    tokenizer: PreTrainedTokenizerFast | None = None  # None: that of the tiny models
    threads: int = 1
    engines: dict[tuple[str, bool], Engine] = field(default_factory=dict, repr=False)

    def engine(self, cache: str = "f32", flash: bool = False) -> Engine:
        """An engine without a conversation, opened once."""
        if (cache, flash) not in self.engines:
            self.engines[cache, flash] = open_engine(self.text, self.mmproj, cache, flash, n_threads=self.threads)
        self.engines[cache, flash].reset()
        return self.engines[cache, flash]

    @functools.cache  # noqa: B019 (lives as long as the session)
    def asked(self, seed: int, n_images: int, cache: str = "f32", flash: bool = False) -> Asked:
        """question(seed, n_images) by the reference with a cache of this type."""
        asked = question(seed, n_images, self.tokenizer)
        engine = self.engine(cache, flash)
        asked.ask(engine)
        embeddings, prompt = image_embeddings(engine), asked.prompt
        dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[cache]
        return Asked(
            asked,
            embeddings,
            ref.qwen2vl_forward(self.reference, prompt.input_ids, *prompt.vision, embeddings, cache_dtype=dtype),
        )


Models = Callable[[str], Model]
"""The fixture `models`."""

TWO_THREADS = " on two threads"
"""What is put behind a model's name for one that computes on two threads."""


def two_threads(model: Model) -> Model:
    """The same model with engines of its own."""
    return replace(model, threads=2, engines={})


def make_model(name: str, folder: Path) -> Model:
    """Makes or takes a model and exports it: see the fixture `models`."""
    tokenizer = None
    if name == "pages-vl":
        hf_dir = bundled.save(folder / name)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(hf_dir)
    else:
        shape, _, seed = name.partition("-")
        hf_dir = tiny.save_tiny(folder / "hf", shape, int(seed))
    return Model(
        tiny.load(hf_dir),
        export_gguf.export_text(hf_dir, folder / "text.gguf", "F32"),
        export_gguf.export_mmproj(hf_dir, folder / "mmproj.gguf", "F32"),
        tokenizer,
    )


# -- the bundled model's pages ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """A bundled sample page, a question about it and the right answer."""

    picture: NDArray[np.uint8]
    question: str
    answer: str

    def ask(self, engine: Engine, observe: bool = True, **options: Any) -> PromptInfo:
        """Evaluates the question in a new conversation."""
        engine.reset()
        text = engine.apply_template([Message("user", engine.marker() + self.question)])
        return engine.prompt(text, [self.picture], observe=observe, **options)


@functools.cache
def pages() -> list[Page]:
    """The sample pages in the package."""
    folder = bundled_dir() / "samples"
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    pictures = [np.asarray(Image.open(folder / line["file"]).convert("RGB")) for line in lines]
    return [Page(p, line["question"], line["answer"]) for p, line in zip(pictures, lines, strict=True)]


def bundled_files() -> tuple[Path, Path]:
    """The bundled model as it is shipped: text model and projector."""
    return resolve(None, None)


def follow_up(engine: Engine) -> None:
    """A second question without an image, where an answer was cut off."""
    engine.prompt("<|im_end|>\n<|im_start|>user\nAnd the next one?<|im_end|>\n<|im_start|>assistant\n")
