"""What one question asks for, checked on construction."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from ..checks import between, share, whole
from ..methods.choice import Choice


@dataclass(frozen=True)
class Options:
    """Options of one question.

    Attributes:
        keep: Share of the visual cells to keep, in (0, 1]; 1 runs no compression at all.
        choice: The method.
        max_tokens: Longest answer, at least 1.
        temperature: 0 takes the most likely token; higher is more random; at most 1e6.
        seed: Of the sampling, 0 to 2**32 - 1; None: drawn here.
        reported_seed: The seed for the report: None where it decides nothing and nobody asked for it.

    Raises:
        ArgumentError: A value is outside its limits.
    """

    keep: float
    choice: Choice
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    reported_seed: int | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", share("keep", self.keep))
        object.__setattr__(self, "max_tokens", whole("max_tokens", self.max_tokens, 1, 2**31 - 1))
        object.__setattr__(self, "temperature", between("temperature", self.temperature, 0.0, 1e6))
        given = None if self.seed is None else whole("seed", self.seed, 0, 2**32 - 1)
        seed = secrets.randbits(32) if given is None else given
        object.__setattr__(self, "seed", seed)
        object.__setattr__(self, "reported_seed", seed if self.temperature > 0.0 else given)
