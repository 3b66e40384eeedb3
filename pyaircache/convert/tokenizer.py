"""Which of llama.cpp's word splitters a tokenizer.json asks for.

The pinned converter knows a tokenizer by a hash of what it makes of one long text. A vocabulary of its own, as that of
a small or a fine-tuned model, has a hash nobody knows; how it splits words is written in tokenizer.json all the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_SHARED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# The expression in front of the byte-level step, and llama.cpp's name for it. None: that step's own expression.
_SPLITS: dict[str | None, str] = {
    _SHARED % r"\p{N}": "qwen2",
    _SHARED % r"\p{N}{1,3}": "llama-bpe",
    None: "gpt-2",
}


def detect(tokenizer: Path) -> str | None:
    """llama.cpp's name of the word splitter in a tokenizer.json; None when it is not one of the known."""
    try:
        value = json.loads(tokenizer.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if value.get("model", {}).get("type") != "BPE":
        return None
    return _named(value.get("pre_tokenizer"))


def _named(step: Any) -> str | None:
    steps = step.get("pretokenizers", []) if isinstance(step, dict) and step.get("type") == "Sequence" else [step]
    if not steps or not all(isinstance(one, dict) for one in steps):
        return None
    *before, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if not before:
        return _SPLITS[None] if last.get("use_regex", True) else None
    split = before[0]
    whole = len(before) == 1 and split.get("type") == "Split" and split.get("behavior") == "Isolated"
    if not whole or split.get("invert") or last.get("use_regex", True):
        return None
    pattern = split.get("pattern")
    return _SPLITS.get(pattern.get("Regex")) if isinstance(pattern, dict) and pattern.get("Regex") else None
