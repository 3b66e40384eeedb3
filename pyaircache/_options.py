"""What one question asks for, checked on construction."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ._checks import between, share, whole
from ._choice import Choice


@dataclass(frozen=True)
class Options:
    """Options of one question.

    Attributes:
        keep: Share of the visual cells to keep, in (0, 1]; 1 runs no compression at all.
        choice: The method.
        max_tokens: Longest answer, at least 1.
        temperature: 0 takes the most likely token; higher is more random.
        seed: Of the sampling, 0 to 2**32 - 1.

    Raises:
        ArgumentError: A value is outside its limits.
    """

    keep: float
    choice: Choice
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", share("keep", self.keep))
        object.__setattr__(self, "max_tokens", whole("max_tokens", self.max_tokens, 1, 2**31 - 1))
        object.__setattr__(self, "seed", whole("seed", self.seed, 0, 2**32 - 1))
        object.__setattr__(self, "temperature", between("temperature", self.temperature, 0.0, math.inf))
