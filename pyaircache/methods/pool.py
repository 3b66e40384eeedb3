"""Over which neighbours scores are pooled: one of the parts of a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..checks import flag, one_of, whole
from ..engine.structs import EngineMethod
from ..errors import ArgumentError
from . import grammar

PoolKind = Literal["avg", "max"]
_NONE, _AVG, _MAX = range(3)  # pac_method.pool
_POOLS: dict[PoolKind, int] = {"avg": _AVG, "max": _MAX}


@dataclass(frozen=True)
class Pool:
    """Each score becomes the maximum or the average over its neighbours, inside each image.

    Attributes:
        kind: ``"max"`` or ``"avg"`` (zeros beyond the border count).
        size: Odd number of neighbours, the token itself included.
        grid: On the image's token grid, ``size`` x ``size``, instead of along the run of tokens.
    """

    kind: PoolKind = "max"
    size: int = 5
    grid: bool = False

    def __post_init__(self) -> None:
        one_of("pool kind", self.kind, _POOLS)
        object.__setattr__(self, "size", whole("pool size", self.size, 1, 65535))
        if self.size % 2 == 0:
            raise ArgumentError(f"pool size must be odd, got {self.size}")
        object.__setattr__(self, "grid", flag("grid", self.grid))

    def __str__(self) -> str:
        return f"{self.kind}:{self.size}{f'x{self.size}' * self.grid}"

    @staticmethod
    def parse(text: str) -> Pool | None:
        """Reads ``max:5``, ``avg:5``, ``max:3x3`` (on the grid), or ``none``. The engine does: its library is needed.

        Raises:
            ArgumentError: It is none of these.
            EngineError: The engine library is missing.
        """
        return Pool.of(grammar.read("pool", text))

    @staticmethod
    def of(method: EngineMethod) -> Pool | None:
        """The pooling of an engine's method."""
        kinds = {code: kind for kind, code in _POOLS.items()}
        if not method.pool:
            return None
        return Pool(kinds[method.pool], method.pool_size or 1, grid=bool(method.pool_2d))

    def fields(self) -> dict[str, Any]:
        """The fields of ``pac_method`` that say the same."""
        return {"pool": _POOLS[self.kind], "pool_size": self.size, "pool_2d": self.grid}
