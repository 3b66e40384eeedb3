"""What the layers above use of an engine: `Engine` has it, and so has the tests' engine without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import PyAircacheError
from ..spans import Size
from . import structs
from .conversing import Part
from .engine import Engine
from .marshal import Progress
from .model import EngineModel
from .pool import EnginePool


class ModelLike(Protocol):
    """See `EngineModel` for what each call does."""

    @property
    def closed(self) -> bool: ...

    def close(self) -> None: ...

    def info(self) -> structs.ModelInfo: ...

    def forget_images(self) -> None: ...


class EngineLike(Protocol):
    """See `Engine` for what each call does."""

    @property
    def closed(self) -> bool: ...

    def close(self) -> None: ...

    def cancel(self) -> None: ...

    def info(self) -> structs.Info: ...

    def marker(self) -> str: ...

    def apply_template(self, messages: Sequence[structs.Message], add_generation_prompt: bool = True) -> str: ...

    def layout(self, text: str, images: Sequence[NDArray[np.uint8] | Size] = ()) -> structs.PromptInfo: ...

    def prompt(
        self,
        text: str,
        images: Sequence[NDArray[np.uint8]] = (),
        *,
        reserve: int = 0,
        observe: structs.EngineMethod | bool = False,
        progress: Progress | None = None,
    ) -> structs.PromptInfo: ...

    def conversation(
        self,
        parts: Sequence[Part],
        images: Sequence[NDArray[np.uint8]] = (),
        *,
        reserve: int = 0,
        observe: structs.EngineMethod | bool = False,
        progress: Progress | None = None,
    ) -> structs.PromptInfo: ...

    def archive(self) -> structs.ArchiveInfo: ...

    def score(self, method: structs.EngineMethod) -> structs.Scores: ...

    def evict(
        self, kept: Sequence[NDArray[np.int32]], mask_only: bool = False, merge: float = 0.0
    ) -> structs.Compression: ...

    def compress(
        self, method: structs.EngineMethod, mask_only: bool = False
    ) -> tuple[structs.Scores, structs.Compression]: ...

    def prompt_tokens(self) -> NDArray[np.int32]: ...

    def set_sampling(self, sampling: structs.Sampling | None) -> None: ...

    def sample(self) -> tuple[int, bool]: ...

    def logprobs(self, n: int = 0, token: int | None = None) -> structs.Logprobs: ...

    def token_bytes(self, token: int, special: bool = False) -> bytes: ...

    def decode(self, token: int) -> None: ...

    def logits(self) -> NDArray[np.float32]: ...

    def stats(self) -> structs.Stats: ...

    def reset(self) -> None: ...


class PoolLike(Protocol):
    """See `EnginePool` for what each call does; ``Any`` stands for the engines of its own kind."""

    def engine(self) -> EngineLike: ...

    def decode(self, steps: Sequence[tuple[Any, int]]) -> list[PyAircacheError | None]: ...

    def close(self) -> None: ...


_model: type[ModelLike] = EngineModel
_engine: type[EngineLike] = Engine  # mypy compares every signature
_pool: type[PoolLike] = EnginePool
