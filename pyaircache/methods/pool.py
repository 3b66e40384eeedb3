"""Over which neighbours scores are pooled: one of the parts of a method."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from ..checks import flag, one_of, shown, whole
from ..engine.structs import EngineMethod
from ..errors import ArgumentError

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
        flag("grid", self.grid)

    def __str__(self) -> str:
        return f"{self.kind}:{self.size}{f'x{self.size}' * self.grid}"

    @staticmethod
    def parse(text: str) -> Pool | None:
        """Reads ``max:5``, ``avg:5``, ``max:3x3`` (on the grid), or ``none``.

        Raises:
            ArgumentError: It is none of these.
        """
        given = text if isinstance(text, str) else ""
        if given == "none":
            return None
        kind, _, size = given.partition(":")
        first, by, second = size.partition("x")
        if kind in _POOLS and re.fullmatch("[0-9]{1,9}", first) and second == (first if by else ""):
            return Pool("avg" if kind == "avg" else "max", int(first), grid=bool(by))
        form = "max:N, avg:N, max:NxN, avg:NxN (on the grid) or none"
        raise ArgumentError(f"pool {shown(text)}: must be of the form {form}")

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
