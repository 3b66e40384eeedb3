"""Plain data that crosses the border to the engine, as Python objects.

Field names are those of the C structs in ``pyaircache.h``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..spans import Span

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
"""Types of the cache's keys and values."""

ArchiveKind = Literal["none", "auto", "device", "ram", "file"]
"""Where a prompt's full cells are kept for the next question."""

ARCHIVES: tuple[ArchiveKind, ...] = ("none", "auto", "device", "ram", "file")
"""The same in the engine's order."""


@dataclass(frozen=True)
class ModelFacts:
    """What the files of a model say: the beginning of `ModelInfo` and `Info`.

    Attributes:
        description: llama.cpp's own, e.g. "qwen2vl 4M Q8_0".
        architecture: Of the text model, as the GGUF names it.
        projector: Kind of the projector, as its GGUF names it; "" without one.
        n_layers: L, layers of the text model.
        n_embd: Size of its hidden state.
        n_heads: Query heads of a layer.
        n_heads_kv: KV heads of a layer.
        n_vocab: Tokens that it knows.
        n_ctx_train: Context window in tokens that the model was trained with.
        n_params: Weights of the text model.
        model_bytes: Bytes of the text model's weights.
        vision: Whether it can be asked about images.
    """

    description: str
    architecture: str
    projector: str
    n_layers: int
    n_embd: int
    n_heads: int
    n_heads_kv: int
    n_vocab: int
    n_ctx_train: int
    n_params: int
    model_bytes: int
    vision: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-able dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Info(ModelFacts):
    """`ModelFacts`, and what a conversation on the model is and can do.

    Attributes:
        n_ctx: Context window in tokens, as it was made.
        kv_bytes_per_token: Bytes of one token in the KV cache: K and V of all layers.
        can_compress: Whether its cache can be compressed.
        why_not: The reason where not, else "".
    """

    n_ctx: int
    kv_bytes_per_token: int
    can_compress: bool
    why_not: str


@dataclass(frozen=True)
class ModelInfo(ModelFacts):
    """`ModelFacts`, and who uses the model at the moment.

    Attributes:
        n_engines: Conversations on it now.
        n_kept_images: Images, or tiles of one, whose embeddings are kept for the next question on them.
        image_cache_bytes: Bytes that these take.
    """

    n_engines: int
    n_kept_images: int
    image_cache_bytes: int


@dataclass(frozen=True)
class Message:
    """One message of a conversation; the engine's marker stands for an image."""

    role: str
    content: str


@dataclass(frozen=True)
class PromptInfo:
    """Result of a prefill.

    Attributes:
        n_tokens: Tokens of this prompt, text and visual.
        n_visual: N_v, the visual ones.
        n_past: KV cells in use after it.
        spans: Its runs of visual tokens.
        ms_encode: Milliseconds that the encoding of the images took.
        ms_prefill: Milliseconds of the rest.
        n_encoded: Images that were encoded.
        n_reused: Images whose embeddings were kept from before.
    """

    n_tokens: int
    n_visual: int
    n_past: int
    spans: list[Span]
    ms_encode: float
    ms_prefill: float
    n_encoded: int = 0
    n_reused: int = 0


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. The default is greedy: the most likely token, of equal ones that with the lowest id.

    Attributes:
        temperature: 0: the most likely token that penalty and grammar leave, whatever ``top_k`` to ``min_p`` say.
        top_k: Of the k most likely tokens; 0: off.
        top_p: Of the most likely ones that have this probability together, in (0, 1]; 1: off.
        min_p: Of those at least this likely, relative to the most likely one, in [0, 1]; 0: off.
        repeat_penalty: Divides the logits of tokens that were there already, in [0.01, 100]; 1: off.
        repeat_last_n: Among the last n text tokens; 0: off; -1: all.
        seed: The same seed gives the same answer; 0 to 2**32 - 2, the next one draws anew every time.
        grammar: GBNF text that the answer follows.
        json_schema: The same as the text of a JSON schema; not both.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int = 0
    grammar: str | None = None
    json_schema: str | None = None


@dataclass(frozen=True)
class Logprobs:
    """Natural-log probabilities of the next token: softmax over the whole vocabulary, before any `Sampling`.

    Attributes:
        ids: The n most likely tokens, most likely first: int32 [n].
        values: Their log probabilities: float64 [n].
        value: That of the token that was asked about; None: there was none.
    """

    ids: NDArray[np.int32]
    values: NDArray[np.float64]
    value: float | None


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
    kv_bytes_reserved: int
    kv_bytes_allocated: int


@dataclass(frozen=True)
class ArchiveInfo:
    """A prompt's full cells that are kept for the next question.

    Attributes:
        kind: Where; "none": nowhere.
        bytes: That they take there.
        n_tokens: Tokens of the conversation's beginning that they are of.
        n_restored: Tokens that the last conversation took from it.
        ms_make: Milliseconds to make it, in the last conversation; 0: it was not made then.
        ms_restore: Milliseconds to restore it, likewise.
        why: "", or why there is none, or why the last one did not serve.
    """

    kind: ArchiveKind
    bytes: int
    n_tokens: int
    n_restored: int
    ms_make: float
    ms_restore: float
    why: str
