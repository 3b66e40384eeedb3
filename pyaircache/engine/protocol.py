"""What the layers above use of an engine: `Engine` has it, and so has the tests' engine without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .engine import Engine, Progress
from .structs import Compression, EngineMethod, Info, Message, PromptInfo, Scores, Size, Stats


class EngineLike(Protocol):
    """See `Engine` for what each call does."""

    @property
    def closed(self) -> bool: ...

    def close(self) -> None: ...

    def cancel(self) -> None: ...

    def info(self) -> Info: ...

    def marker(self) -> str: ...

    def apply_template(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str: ...

    def layout(self, text: str, images: Sequence[NDArray[np.uint8] | Size] = ()) -> PromptInfo: ...

    def prompt(
        self,
        text: str,
        images: Sequence[NDArray[np.uint8]] = (),
        *,
        reserve: int = 0,
        observe: EngineMethod | bool = False,
        progress: Progress | None = None,
    ) -> PromptInfo: ...

    def score(self, method: EngineMethod) -> Scores: ...

    def evict(self, kept: Sequence[NDArray[np.int32]], mask_only: bool = False, merge: float = 0.0) -> Compression: ...

    def compress(self, method: EngineMethod, mask_only: bool = False) -> tuple[Scores, Compression]: ...

    def sample(self, temperature: float = 0.0, seed: int = 0) -> tuple[int, bool]: ...

    def token_bytes(self, token: int) -> bytes: ...

    def decode(self, token: int) -> None: ...

    def stats(self) -> Stats: ...

    def reset(self) -> None: ...


_: type[EngineLike] = Engine  # mypy compares every signature
