"""The word splitter, as tokenizer.json writes it down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from pyaircache.convert.tokenizer import detect

DIGIT, DIGITS = r"\p{N}", r"\p{N}{1,3}"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGIT| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str, **changes: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False} | changes


def byte_level(**changes: Any) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False} | changes


def sequence(*steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (sequence(split(SPLIT.replace("DIGIT", DIGIT)), byte_level()), "qwen2"),
        (sequence(split(SPLIT.replace("DIGIT", DIGITS)), byte_level()), "llama-bpe"),
        (byte_level(use_regex=True), "gpt-2"),
        (sequence(byte_level(use_regex=True)), "gpt-2"),
        # a near miss is a miss: llama.cpp would split other words
        (byte_level(), None),
        (byte_level(use_regex=True, add_prefix_space=True), None),
        (sequence(split(SPLIT.replace("DIGIT", DIGIT), behavior="Removed"), byte_level()), None),
        (sequence(split(SPLIT.replace("DIGIT", DIGIT), invert=True), byte_level()), None),
        (sequence(split(SPLIT.replace("DIGIT", DIGIT)), byte_level(use_regex=True)), None),
        (sequence({"type": "Digits"}, split(SPLIT.replace("DIGIT", DIGIT)), byte_level()), None),
        (sequence(split(r"\s+"), byte_level()), None),
        (sequence({"type": "Split", "pattern": {"String": " "}}, byte_level()), None),
        (sequence(), None),
        ({"type": "Whitespace"}, None),
        (None, None),
    ],
)
def test_detect(step: Any, name: str | None, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"type": "BPE"}, "pre_tokenizer": step}))
    assert detect(path) == name
    path.write_text(json.dumps({"model": {"type": "Unigram"}, "pre_tokenizer": step}))
    assert detect(path) is None


def test_files_that_say_nothing(tmp_path: Path) -> None:
    assert detect(tmp_path / "tokenizer.json") is None
    (tmp_path / "tokenizer.json").write_text("{")
    assert detect(tmp_path / "tokenizer.json") is None


def test_of_a_whole_tokenizer(tmp_path: Path) -> None:
    tiny.save_tokenizer(tmp_path)
    assert detect(tmp_path / "tokenizer.json") == "qwen2"
