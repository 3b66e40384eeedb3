"""Plain data that crosses the border to the engine, as Python objects.

Field names are those of the C structs in ``pyaircache.h``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]
"""Width and height of a picture, in pixels."""


@dataclass(frozen=True)
class Info:
    """What a loaded model is and can do.

    Attributes:
        description: llama.cpp's own, e.g. "qwen2vl 4M Q8_0".
        architecture: Of the text model, as the GGUF names it.
        projector: Kind of the projector, as its GGUF names it; "" without one.
        n_layers: L, layers of the text model.
        n_embd: Size of its hidden state.
        n_heads: Query heads of a layer.
        n_heads_kv: KV heads of a layer.
        n_vocab: Tokens that it knows.
        n_ctx: Context window in tokens, as it was made.
        n_ctx_train: Context window in tokens that the model was trained with.
        n_params: Weights of the text model.
        model_bytes: Bytes of the text model's weights.
        kv_bytes_per_token: Bytes of one token in the KV cache: K and V of all layers.
        vision: Whether it can be asked about images.
        can_compress: Whether its cache can be compressed.
        why_not: The reason where not, else "".
    """

    description: str
    architecture: str
    projector: str
    n_layers: int
    n_embd: int
    n_heads: int
    n_heads_kv: int
    n_vocab: int
    n_ctx: int
    n_ctx_train: int
    n_params: int
    model_bytes: int
    kv_bytes_per_token: int
    vision: bool
    can_compress: bool
    why_not: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-able dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Message:
    """One message of a conversation; the engine's marker stands for an image."""

    role: str
    content: str


@dataclass(frozen=True)
class Span:
    """One run of visual tokens: a picture, or one tile of it."""

    image: int
    """Index into the images of the question."""
    first: int
    """Index of its first token among the prompt's tokens."""
    n_tokens: int
    """Visual tokens of the run."""
    nx: int
    """Columns of the token grid; 0 when the tokens do not form a grid."""
    ny: int
    """Rows of the token grid."""
    pos0: int = 0
    """Its first position in the conversation; models with 2D positions give a picture fewer than tokens."""
    pos1: int = 0
    """The position behind its last one."""


@dataclass(frozen=True)
class PromptInfo:
    """Result of a prefill; times in milliseconds."""

    n_tokens: int
    n_visual: int
    n_past: int
    spans: list[Span]
    ms_encode: float
    ms_prefill: float


@dataclass(frozen=True)
class EngineMethod:
    """Parameters of a compression; None keeps the engine's default (docs/method.md, sections 1 and 2)."""

    keep: float
    min_keep: int | None = None
    window: int | None = None
    window_n: int | None = None
    alpha: float | None = None
    elite_content: bool | None = None
    elite_last: bool | None = None
    score: int | None = None
    keys: int | None = None
    seed: int | None = None
    text_weights: bool | None = None
    pool: int | None = None
    pool_size: int | None = None
    pool_2d: bool | None = None
    last_term: float | None = None
    value_norm: bool | None = None
    diversity: bool | None = None
    allocation: int | None = None
    uniform_share: float | None = None
    rank: int | None = None
    merge: float | None = None


@dataclass(frozen=True)
class Scores:
    """Importance I of docs/method.md, section 1: scores [L, N_v], elite: L arrays of prompt token indices."""

    scores: NDArray[np.float32]
    elite: list[NDArray[np.int32]]
    alive: NDArray[np.float64]
    """[L] for VL-Cache's allocation, else empty."""
    ms: float


@dataclass(frozen=True)
class Compression:
    """Result of an eviction: budgets, strength, skewness [L]; kept: L arrays of visual indices."""

    budgets: NDArray[np.int32]
    kept: list[NDArray[np.int32]]
    strength: NDArray[np.float64]
    skewness: NDArray[np.float64]
    kv_bytes_full: int
    kv_bytes: int
    ms_score: float
    ms_evict: float


@dataclass(frozen=True)
class Stats:
    """The engine's counters."""

    n_ctx: int
    n_past: int
    n_free: int
    n_graphs_reused: int
    n_decodes: int
    kv_bytes: int
    kv_bytes_allocated: int
