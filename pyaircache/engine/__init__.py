"""The C engine as Python objects."""

from .engine import STAGE_ENCODE, STAGE_LOAD, STAGE_PREFILL, Engine, version
from .structs import Compression, Info, Message, PromptInfo, Scores, Span, Stats

__all__ = [
    "STAGE_ENCODE",
    "STAGE_LOAD",
    "STAGE_PREFILL",
    "Compression",
    "Engine",
    "Info",
    "Message",
    "PromptInfo",
    "Scores",
    "Span",
    "Stats",
    "version",
]
