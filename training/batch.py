"""Batches: pages of one size, each with several questions behind it as independent branches.

A row is <prefix> <visual tokens> <vision end> and then `branches` pieces of `branch_length` tokens, each a question,
the tail of the template and its answer. Branches do not see each other (net.py), so one picture serves many questions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from training.draw import draw_page
from training.page import CELL, Page
from training.tokens import Vocabulary

BRANCH_LENGTH = 26
IGNORE = -100
LOOKAHEAD = 8  # answer tokens that the last prompt token has to tell in training

CHARS = " ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.:?"
CHAR_IDS = {c: i for i, c in enumerate(CHARS)}
OWN_CHARS = 5  # that one cell can show
KEY_WORDS = 3  # two of the label that a cell belongs to, one of its column or sign


@dataclass
class Batch:
    """Shapes: B pages, N = rows * columns visual tokens, K branches of L tokens."""

    rows: int
    columns: int
    patches: torch.Tensor  # [B, 4 N, 588], float32
    prefix: torch.Tensor  # [n_prefix], the tokens before the visual ones
    ids: torch.Tensor  # [B, K, L]
    labels: torch.Tensor  # [B, K, L], the next token inside answers, IGNORE elsewhere
    last: torch.Tensor  # [B, K], index of the last prompt token in its branch
    lookahead: torch.Tensor  # [B, K, LOOKAHEAD], the answer's tokens
    chars: torch.Tensor  # [B, N, OWN_CHARS], what a cell shows, in CHARS; a space where there is nothing
    keys: torch.Tensor  # [B, N, KEY_WORDS], tokens of what a cell belongs to; IGNORE where there are none
    where: torch.Tensor  # [B, K, N], bool: the cells that show the answer
    kinds: list[list[str]]  # of the questions


def patchify(pixels: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, 3] to [B, 4 N, 588]: order and scale of Qwen2-VL's processor with mean = std = 0.5, one frame."""
    b, height, width, _ = pixels.shape
    x = (pixels.astype(np.float32) / 255 - 0.5) / 0.5
    x = x.reshape(b, height // CELL, 2, 14, width // CELL, 2, 14, 3).transpose(0, 1, 4, 2, 5, 7, 3, 6)
    return np.ascontiguousarray(x.reshape(b, -1, 588))


def cell_targets(page: Page, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """[N, OWN_CHARS]: the characters with their centre in a cell; [N, KEY_WORDS]: what its text belongs to."""
    chars = np.full((page.rows, page.columns, OWN_CHARS), CHAR_IDS[" "], np.int64)
    keys = np.full((page.rows, page.columns, KEY_WORDS), IGNORE, np.int64)
    filled = np.zeros((page.rows, page.columns), np.int64)
    for text in page.texts:
        words = [*text.key.split()[:2], None, None][:2] + [text.key2 or None]
        key = [IGNORE if w is None else vocabulary.encode(" " + w)[0] for w in words]
        for i, char in enumerate(text.text):
            column = int((text.edges[i] + text.edges[i + 1]) / 2) // CELL
            if char == " " or not 0 <= column < page.columns:
                continue
            if filled[text.row, column] < OWN_CHARS:
                chars[text.row, column, filled[text.row, column]] = CHAR_IDS[char]
                filled[text.row, column] += 1
            keys[text.row, column] = key
    return chars.reshape(-1, OWN_CHARS), keys.reshape(-1, KEY_WORDS)


def make_batch(
    rng: np.random.Generator,
    vocabulary: Vocabulary,
    n_pages: int,
    rows: int,
    columns: int,
    branches: int,
    layout: str | None = None,
    mix: dict[str, float] | None = None,
) -> Batch:
    pages, pixels = zip(*(draw_page(rng, rows, columns, layout, mix) for _ in range(n_pages)), strict=True)
    ids = np.full((n_pages, branches, BRANCH_LENGTH), vocabulary.pad, np.int64)
    labels = np.full_like(ids, IGNORE)
    last = np.zeros((n_pages, branches), np.int64)
    lookahead = np.full((n_pages, branches, LOOKAHEAD), IGNORE, np.int64)
    where = np.zeros((n_pages, branches, rows, columns), bool)
    kinds = []
    for b, page in enumerate(pages):
        order = rng.permutation(len(page.questions))
        chosen = [page.questions[order[j % len(order)]] for j in range(branches)]
        kinds.append([q.kind for q in chosen])
        for j, question in enumerate(chosen):
            prompt = vocabulary.encode(question.text) + vocabulary.tail
            answer = [*vocabulary.encode(question.answer), vocabulary.im_end]
            n, m = len(prompt), len(answer)
            ids[b, j, : n + m - 1] = prompt + answer[:-1]
            labels[b, j, n - 1 : n + m - 1] = answer
            last[b, j] = n - 1
            where[b, j, question.row, slice(*question.columns)] = True
            lookahead[b, j, : min(m, LOOKAHEAD)] = answer[:LOOKAHEAD]
    chars, keys = zip(*(cell_targets(page, vocabulary) for page in pages), strict=True)
    return Batch(
        rows,
        columns,
        torch.from_numpy(patchify(np.stack(pixels))),
        torch.tensor(vocabulary.prefix),
        torch.from_numpy(ids),
        torch.from_numpy(labels),
        torch.from_numpy(last),
        torch.from_numpy(lookahead),
        torch.from_numpy(np.stack(chars)),
        torch.from_numpy(np.stack(keys)),
        torch.from_numpy(where.reshape(n_pages, branches, -1)),
        kinds,
    )
