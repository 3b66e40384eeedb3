"""Batches: pages of one size, each with several questions behind it as independent branches.

A row is <prefix> <visual tokens> <vision end> and then `branches` pieces of `branch_length` tokens, each a question,
the tail of the template and its answer. Branches do not see each other (net.py), so one picture serves many questions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from zoo.draw import draw_page
from zoo.page import CELL, Page
from zoo.tokens import Vocabulary

BRANCH_LENGTH = 26
IGNORE = -100
LOOKAHEAD = 8  # answer tokens that the last prompt token has to tell in training

CHARS = " ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.:?"
CHAR_IDS = {c: i for i, c in enumerate(CHARS)}
OWN_CHARS = 5  # that one cell can show
KEY_CHARS = 5  # of what it belongs to: two of the first word, three of the second
KEY2_CHARS = 3
N_CHARS = OWN_CHARS + KEY_CHARS + KEY2_CHARS


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
    chars: torch.Tensor  # [B, N, N_CHARS], what a cell shows and belongs to; IGNORE where nothing has to be told
    where: torch.Tensor  # [B, K, N], bool: the cells that show the answer
    kinds: list[list[str]]  # of the questions


def patchify(pixels: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, 3] to [B, 4 N, 588]: order and scale of Qwen2-VL's processor with mean = std = 0.5, one frame."""
    b, height, width, _ = pixels.shape
    x = (pixels.astype(np.float32) / 255 - 0.5) / 0.5
    x = x.reshape(b, height // CELL, 2, 14, width // CELL, 2, 14, 3).transpose(0, 1, 4, 2, 5, 7, 3, 6)
    return np.ascontiguousarray(x.reshape(b, -1, 588))


def key_chars(key: str, n: int) -> list[int]:
    first, _, second = key.partition(" ")
    text = (first[:2].ljust(2) + second[:3]).ljust(5) if n == KEY_CHARS else key.ljust(n)
    return [CHAR_IDS[c] for c in text[:n]]


def char_targets(page: Page) -> np.ndarray:
    """[N, N_CHARS]: the characters with their centre in a cell, and the key of the text that has the most of them."""
    target = np.full((page.rows, page.columns, N_CHARS), IGNORE, np.int64)
    target[..., :OWN_CHARS] = CHAR_IDS[" "]
    filled = np.zeros((page.rows, page.columns), np.int64)
    for text in page.texts:
        keys = key_chars(text.key, KEY_CHARS) + key_chars(text.key2, KEY2_CHARS) if text.key else None
        for i, char in enumerate(text.text):
            column = int((text.edges[i] + text.edges[i + 1]) / 2) // CELL
            if char == " " or not 0 <= column < page.columns:
                continue
            cell = target[text.row, column]
            if filled[text.row, column] < OWN_CHARS:
                cell[filled[text.row, column]] = CHAR_IDS[char]
                filled[text.row, column] += 1
            if keys is not None:
                cell[OWN_CHARS:] = keys
    return target.reshape(-1, N_CHARS)


def make_batch(
    rng: np.random.Generator,
    vocabulary: Vocabulary,
    n_pages: int,
    rows: int,
    columns: int,
    branches: int,
    layout: str | None = None,
) -> Batch:
    pages, pixels = zip(*(draw_page(rng, rows, columns, layout) for _ in range(n_pages)), strict=True)
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
    return Batch(
        rows,
        columns,
        torch.from_numpy(patchify(np.stack(pixels))),
        torch.tensor(vocabulary.prefix),
        torch.from_numpy(ids),
        torch.from_numpy(labels),
        torch.from_numpy(last),
        torch.from_numpy(lookahead),
        torch.from_numpy(np.stack([char_targets(page) for page in pages])),
        torch.from_numpy(where.reshape(n_pages, branches, -1)),
        kinds,
    )
