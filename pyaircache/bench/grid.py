"""What is measured: prompts, conversations, and what their cache is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from ..engine.structs import CacheType
from ..errors import ArgumentError

MIN_PROMPT = 128
MAX_BATCH = 256


@dataclass(frozen=True)
class Cache:
    """A cache's type, and the share of its visual cells that is kept: 1 for the full one.

    Its text form is "f16" or "f16:0.1".
    """

    type: str = "f16"
    keep: float = 1.0

    @property
    def full(self) -> bool:
        """Whether nothing is evicted."""
        return self.keep == 1.0

    def __str__(self) -> str:
        return self.type if self.full else f"{self.type}:{self.keep:g}"

    @staticmethod
    def of(text: str) -> Cache:
        """Reads the text form.

        Raises:
            ArgumentError: It is not one.
        """
        kind, colon, share = text.partition(":")
        try:
            keep = float(share) if colon else 1.0
        except ValueError:
            keep = 0.0
        if kind not in get_args(CacheType) or not 0 < keep <= 1:
            types = ", ".join(get_args(CacheType))
            raise ArgumentError(
                f"a cache is TYPE or TYPE:KEEP, such as q8_0 or f16:0.1, with a type of {types}, got {text}"
            )
        return Cache(kind, keep)


CACHES = tuple(map(Cache.of, ("f16", "q8_0", "q4_0", "f16:0.5", "f16:0.1", "q8_0:0.1")))
"""The full cache first: the others are told by it."""


@dataclass(frozen=True)
class Case:
    """One measurement."""

    batch: int
    prompt: int
    cache: Cache
    round: int

    @property
    def place(self) -> tuple[int, int]:
        """Cases of one place are compared with each other."""
        return self.batch, self.prompt


def cases(batches: Sequence[int], prompts: Sequence[int], caches: Sequence[Cache], rounds: int) -> Iterator[Case]:
    """All of them, small ones first. The caches of a place follow each other, every second round in reverse order."""
    for prompt, batch, i in itertools.product(prompts, batches, range(rounds)):
        for cache in caches[:: 1 if i % 2 == 0 else -1]:
            yield Case(batch, prompt, cache, i)


def tokens(text: str) -> int:
    """A number of tokens: "2048", or "2k" for as many.

    Raises:
        ArgumentError: It is none, or less than a prompt takes.
    """
    digits = text[:-1] if text[-1:] in ("k", "K") else text
    value = int(digits) * (1024 if digits != text else 1) if digits.isascii() and digits.isdigit() else 0
    if not MIN_PROMPT <= value <= 2**24:
        raise ArgumentError(
            f"a prompt must be a number of tokens in [{MIN_PROMPT}, {2**24}], such as 2048 or 2k, got {text}"
        )
    return value


def conversations(text: str) -> int:
    """A number of conversations.

    Raises:
        ArgumentError: It is none, or too many.
    """
    value = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= value <= MAX_BATCH:
        raise ArgumentError(f"a batch must be a number of conversations in [1, {MAX_BATCH}], got {text}")
    return value


def short(n_tokens: int) -> str:
    """2048 as "2k"."""
    return f"{n_tokens // 1024}k" if n_tokens % 1024 == 0 else str(n_tokens)
