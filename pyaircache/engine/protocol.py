"""What the layers above use of an engine: `Engine` has it, and so has the tests' engine without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..spans import Size
from .engine import Engine
from .marshal import Progress
from .model import EngineModel
from .structs import (
    Compression,
    EngineMethod,
    Info,
    Logprobs,
    Message,
    ModelInfo,
    PromptInfo,
    Sampling,
    Scores,
    Stats,
)


class ModelLike(Protocol):
    """See `EngineModel` for what each call does."""

    @property
    def closed(self) -> bool: ...

    def close(self) -> None: ...

    def info(self) -> ModelInfo: ...

    def forget_images(self) -> None: ...


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

    def prompt_tokens(self) -> NDArray[np.int32]: ...

    def set_sampling(self, sampling: Sampling | None) -> None: ...

    def sample(self) -> tuple[int, bool]: ...

    def logprobs(self, n: int = 0, token: int | None = None) -> Logprobs: ...

    def token_bytes(self, token: int, special: bool = False) -> bytes: ...

    def decode(self, token: int) -> None: ...

    def logits(self) -> NDArray[np.float32]: ...

    def stats(self) -> Stats: ...

    def reset(self) -> None: ...


_model: type[ModelLike] = EngineModel
_engine: type[EngineLike] = Engine  # mypy compares every signature
