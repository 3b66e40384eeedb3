"""The tokenizer: byte-level BPE as Qwen2's (same split into words, every digit by itself), trained on the pages' own
text, so that each of their words is one or two tokens."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from training import layouts
from training.export_tokenizer import QWEN2_SPLIT
from training.page import new_page

VOCAB_SIZE = 1216
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(seed: int = 1, n_pages: int = 4000) -> Tokenizer:
    """Trains it on what `n_pages` pages say and ask."""
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(n_pages):
        page = new_page(rng, 14, 14)
        list(layouts.LAYOUTS.values())[i % len(layouts.LAYOUTS)](page)
        lines += [text for question in page.questions for text in (question.text, question.answer)]
        lines.append("user\nassistant\n")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=3,
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


class Vocabulary:
    """Token ids of the parts of a prompt."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
        self.pad, self.im_start, self.im_end = (ids[t] for t in SPECIAL[:3])
        self.vision_start, self.vision_end, self.image, self.video = (ids[t] for t in SPECIAL[3:])
        assert max(ids.values()) < VOCAB_SIZE

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    @cached_property
    def prefix(self) -> list[int]:
        """What stands before the first visual token."""
        return self.encode("<|im_start|>user\n<|vision_start|>")

    @cached_property
    def tail(self) -> list[int]:
        """What stands between the question and the answer."""
        return self.encode("<|im_end|>\n<|im_start|>assistant\n")

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files as Hugging Face and the exporter read them."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        settings = {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "bos_token": None,
            "model_max_length": 4096,
            "extra_special_tokens": {},
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
