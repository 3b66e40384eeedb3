"""What only one family has: visual features for later layers, tokens that were added to a tokenizer, ropes for long
contexts, limits of pictures, and what the converter's classes refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pinned
import pytest
import sentencepiece
import tiny_idefics3
import tiny_internvl_hf
import torch
from families import engine_method
from harness import TOKENS, decode
from PIL import Image
from tiny_vlm import random_picture
from vlm import VlmFamily, make_vlm

from pyaircache.engine.engine import Engine
from pyaircache.engine.structs import Message

Opened = Callable[..., Engine]


@pytest.fixture(scope="module")
def qwen3vl(tmp_path_factory: pytest.TempPathFactory) -> VlmFamily:
    return VlmFamily("qwen3vl", tmp_path_factory.mktemp("vlm"))


def test_later_layers_see_the_picture(qwen3vl: VlmFamily) -> None:
    """The embeddings carry what is added behind the first layers, and it matters for whom the reference keeps."""
    case, engine = qwen3vl.case(0, 1), qwen3vl.engine()
    case.ask(engine)
    embeddings = harness.image_embeddings(engine)
    width = qwen3vl.vlm.model.config.text_config.hidden_size
    assert embeddings.shape[1] == 3 * width
    pictures = [Image.fromarray(picture) for picture in case.pictures]
    without = qwen3vl.vlm.forward(case.ids, pictures, [], embeddings[:, :width])
    assert np.abs(without.logits[-1] - engine.logits()).max() > 0.05
    assert np.abs(without.k[0] - case.capture.k[0]).max() < 1e-4 < np.abs(without.k[1] - case.capture.k[1]).max()


@pytest.mark.parametrize("n_batch", [7, 16])
def test_later_layers_in_small_batches(qwen3vl: VlmFamily, opened: Opened, n_batch: int) -> None:
    """However the prompt is split, every row of the batch gets its own features."""
    engine = opened(qwen3vl.vlm.text, qwen3vl.vlm.mmproj, n_batch=n_batch, n_ubatch=n_batch)
    case, method = qwen3vl.case(0, 3), engine_method(keep=0.2)
    case.ask(engine)
    np.testing.assert_allclose(engine.logits(), case.capture.logits[-1], atol=1e-3, rtol=0)
    _, result = engine.compress(method)
    np.testing.assert_allclose(decode(engine, TOKENS), case.decode(result.kept, TOKENS), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("cache", "flash", "error"), [("f32", False, 1e-4), ("q8_0", True, 0.3)])
def test_later_layers_moved_is_masked(qwen3vl: VlmFamily, cache: str, flash: bool, error: float) -> None:
    case, engine, logits = qwen3vl.case(0, 3), qwen3vl.engine(cache, flash), []
    for mask_only in (False, True):
        case.ask(engine)
        engine.compress(engine_method(keep=0.2), mask_only=mask_only)
        logits.append(decode(engine, TOKENS))
    np.testing.assert_allclose(*logits, atol=error, rtol=0)


def test_long_rope(tmp_path: Path, opened: Opened) -> None:
    """Phi-3's factors: llama.cpp chooses by the size of the context, Hugging Face by the length of the prompt.

    So a context within the original one computes what Hugging Face does, a larger one what it would for long prompts.
    """
    family = VlmFamily("internvl-chat phi3 longrope", tmp_path)
    case = family.case(0, 1)
    logits = case.capture.logits[-1]
    for n_ctx, long in ((1024, False), (2048, True)):
        engine = opened(family.vlm.text, family.vlm.mmproj, n_ctx=n_ctx)
        case.ask(engine)
        difference = np.abs(engine.logits() - logits).max()
        assert difference > 0.01 if long else difference < 1e-3
        if long:
            rope = family.vlm.model.model.language_model.rotary_emb
            factors = torch.tensor(tiny_internvl_hf.LONG_ROPE["long_factor"])
            shape = tiny_internvl_hf.SHAPE
            inverse = 1 / (factors * shape.theta ** (torch.arange(0, shape.head_dim, 2) / shape.head_dim))
            rope.register_buffer("inv_freq", inverse.float(), persistent=False)
            rope.register_buffer("original_inv_freq", inverse.float(), persistent=False)
            want = case.forward(case.ids, None, ()).logits[-1]
            np.testing.assert_allclose(engine.logits(), want, atol=1e-3, rtol=0)


def test_internlm2_tokens(tmp_path: Path, opened: Opened) -> None:
    """The tokens of the images are not in tokenizer.model."""
    added = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
    corpus = tmp_path / "corpus.txt"
    texts = [path.read_text("utf-8") for path in sorted((pinned.ROOT / "docs").glob("*.md"))]
    corpus.write_text("\n".join(texts), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "tokenizer"), vocab_size=400, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))

    class Model(tiny_internvl_hf.InternVl):
        def save_tokenizer(self, folder: Path) -> None:
            super().save_tokenizer(folder)
            (folder / "tokenizer.json").unlink()
            decoder = {str(400 + i): {"content": name, "special": True} for i, name in enumerate(added)}
            (folder / "added_tokens.json").write_text(json.dumps({name: 400 + i for i, name in enumerate(added)}))
            config = {"tokenizer_class": "InternLM2Tokenizer", "added_tokens_decoder": decoder, "eos_token": "</s>"}
            (folder / "tokenizer_config.json").write_text(json.dumps(config))

        def load_tokenizer(self, folder: Path) -> Any:
            return None

    config = tiny_internvl_hf.NAMES["internvl-chat internlm2"][0]()
    config.update({"vocab_size": 405, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    model = Model(config, "chat", tmp_path, 0)
    engine = opened(model.text, model.mmproj)
    question = "What is the value of KIWI?"
    assert engine.count_tokens(question) == 1 + len(pieces.encode(question))

    text = f"<|im_start|>user\n{engine.marker()}{question}<|im_end|>\n"
    info = engine.prompt(text, [np.zeros((112, 112, 3), np.uint8)])
    parts = [pieces.encode(part) for part in ("user\n", question, "\n")]
    ids = torch.tensor([1, 400, *parts[0], 402, *[404] * 16, 403, *parts[1], 401, *parts[2]])
    assert info.n_tokens == ids.numel()
    spans = [(span.first, span.n_tokens) for span in info.spans]
    logits = model.forward(ids, [], spans, harness.image_embeddings(engine)).logits[-1]
    np.testing.assert_allclose(engine.logits(), logits, atol=1e-3, rtol=0)


def test_smolvlm_of_one_tile(tmp_path: Path, opened: Opened) -> None:
    """Where no picture is larger than a tile, it comes once, without the line ends that stand behind tiles."""
    one = tiny_idefics3.Idefics3(replace(tiny_idefics3.NAMES["smolvlm"], tiles=1), tmp_path, 0)
    engine, picture = opened(one.text, one.mmproj), random_picture(np.random.default_rng(0), 300, 77)
    info = engine.prompt(f"a{engine.marker()}b", [np.asarray(picture)])
    ids = one.ids(f"a{one.image}b", [picture.size])
    assert (info.n_tokens, info.n_visual, len(info.spans)) == (ids.numel(), one.tile_tokens, 1)
    want = one.logits(ids, [picture])[-1]
    np.testing.assert_allclose(engine.logits(), want, atol=1e-3 * want.abs().max().item(), rtol=0)


def test_smolvlm_chat_template(tmp_path: Path, opened: Opened) -> None:
    """A message that begins with a picture has no space before it, wherever llama.cpp has its marker."""
    made = make_vlm("smolvlm", tmp_path)
    engine = opened(made.text, made.mmproj)
    image, text = {"type": "image"}, lambda words: {"type": "text", "text": words}
    turns = [
        ("user", [image, text("What is this?")]),
        ("assistant", [text("A page.")]),
        ("user", [text("And this? "), image]),
    ]
    want = made.tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns], tokenize=False, add_generation_prompt=True
    )
    assert "User:<image>What" in want and "Assistant: A page." in want
    messages = [
        Message(role, "".join(part.get("text") or engine.marker() for part in content)) for role, content in turns
    ]
    assert engine.apply_template(messages).replace(engine.marker(), "<image>") == want


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llava llama", "vision_feature_layer", -1),
        ("llava llama", "projector_hidden_act", "relu"),
        ("llava llama", "vision_config.hidden_act", "gelu"),
        ("internvl-hf qwen2", "vision_feature_layer", -2),
        ("internvl-hf qwen2", "vision_config.use_qk_norm", True),
        ("llava-next", "vision_feature_select_strategy", "full"),
        ("smolvlm", "vision_config.hidden_act", "quick_gelu"),
        ("smolvlm", "scale_factor", 3),
        ("smolvlm", "text_config.model_type", "mistral"),
    ],
)
def test_refused(tmp_path: Path, name: str, key: str, value: object) -> None:
    """What llama.cpp would compute differently is not converted."""
    make_vlm(name, tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text("utf-8"))
    section, _, last = key.rpartition(".")
    (config[section] if section else config)[last] = value
    file.write_text(json.dumps(config), "utf-8")
    with pytest.raises(AssertionError, match=key):
        pinned.convert(tmp_path)
