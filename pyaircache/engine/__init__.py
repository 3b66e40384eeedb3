"""The low level: the C engine as Python objects, one method per C function (docs/engine.md).

For those who want to see or change a step that a Chat takes by itself: scores without an eviction, sets of one's own,
logits. It checks what the engine needs, and holds no conversation and no lock.
"""

from ..spans import Size, Span
from .conversing import Part
from .engine import STAGE_ENCODE, STAGE_LOAD, STAGE_PREFILL, Engine, version
from .marshal import Progress
from .model import EngineModel
from .pool import EnginePool
from .protocol import EngineLike, ModelLike, PoolLike
from .selection import allocate, named_methods, select, statistics
from .structs import (
    ARCHIVES,
    ArchiveInfo,
    ArchiveKind,
    CacheType,
    Compression,
    EngineMethod,
    Info,
    Logprobs,
    Message,
    ModelFacts,
    ModelInfo,
    PromptInfo,
    Sampling,
    Scores,
    Stats,
)

__all__ = [
    "ARCHIVES",
    "STAGE_ENCODE",
    "STAGE_LOAD",
    "STAGE_PREFILL",
    "ArchiveInfo",
    "ArchiveKind",
    "CacheType",
    "Compression",
    "Engine",
    "EngineLike",
    "EngineMethod",
    "EngineModel",
    "EnginePool",
    "Info",
    "Logprobs",
    "Message",
    "ModelFacts",
    "ModelInfo",
    "ModelLike",
    "Part",
    "PoolLike",
    "Progress",
    "PromptInfo",
    "Sampling",
    "Scores",
    "Size",
    "Span",
    "Stats",
    "allocate",
    "named_methods",
    "select",
    "statistics",
    "version",
]
