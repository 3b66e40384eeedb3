"""The tokenizer and the chat template of an exported model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf

# The word splitter of Qwen2's tokenizer; llama.cpp calls it "qwen2". Another one would tokenise differently there.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_json(folder: Path, file: str) -> dict[str, Any]:
    """A JSON file of a model's folder.

    Raises:
        ValueError: It is missing, or no JSON.
    """
    path = folder / file
    if not path.is_file():
        raise ValueError(f"{folder} has no {file}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def add_tokenizer(
    writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any], text: dict[str, Any], vocab_size: int
) -> None:
    """Writes the tokenizer and the chat template of a folder.

    Raises:
        ValueError: llama.cpp would split words differently, or something is missing.
    """
    tokenizer = read_json(folder, "tokenizer.json")
    settings = read_json(folder, "tokenizer_config.json")
    model = tokenizer.get("model", {})
    if model.get("type") != "BPE":
        raise ValueError(f"tokenizer.json: model type must be 'BPE', got {model.get('type')!r}")
    if QWEN2_SPLIT not in json.dumps(tokenizer.get("pre_tokenizer"), ensure_ascii=False).replace("\\\\", "\\"):
        raise ValueError("tokenizer.json: the pre-tokenizer must be Qwen2's; llama.cpp would split words differently")

    ids: dict[str, int] = dict(model["vocab"])
    kinds = dict.fromkeys(ids, gguf.TokenType.NORMAL)
    for token in tokenizer.get("added_tokens", []):
        ids[token["content"]] = token["id"]
        kinds[token["content"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    if max(ids.values()) >= vocab_size:
        raise ValueError(f"the tokenizer's highest id is {max(ids.values())}, vocab_size is {vocab_size}")
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    for token, i in ids.items():
        tokens[i], types[i] = token, kinds[token]

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
    if merges:
        writer.add_token_merges(merges)
    for kind, add in (
        ("eos", writer.add_eos_token_id),
        ("pad", writer.add_pad_token_id),
        ("bos", writer.add_bos_token_id),
    ):
        token_id = _special_id(kind, settings, ids, text, config)
        if token_id is not None:
            add(token_id)
    template = _chat_template(folder, settings)
    if template is None:
        raise ValueError(f"{folder} has no chat template (chat_template.jinja or .json, tokenizer_config.json)")
    writer.add_chat_template(template)


def _special_id(kind: str, settings: dict[str, Any], ids: dict[str, int], *configs: dict[str, Any]) -> int | None:
    """Id of the bos/eos/pad token: the tokenizer's own setting first, then the model's configuration."""
    token = settings.get(f"{kind}_token")
    content = token["content"] if isinstance(token, dict) else token
    if content is not None:
        if content not in ids:
            raise ValueError(f"tokenizer_config.json: {kind}_token {content!r} is not in the vocabulary")
        return ids[content]
    for config in configs:
        value = config.get(f"{kind}_token_id")
        if isinstance(value, int):
            return value
    return None


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        return read_json(folder, "chat_template.json").get("chat_template")
    return settings.get("chat_template")
