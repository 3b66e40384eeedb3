"""pyaircache: ask vision-language models about images, with a compressed visual KV cache (AirCache) in llama.cpp.

::

    from pyaircache import Chat

    with Chat("model.gguf", keep=0.1) as chat:
        answer = chat.ask("page.png", "What is the total?")
        print(answer)
        print(answer.report)
"""

from __future__ import annotations

from importlib import metadata as _metadata

from ._custom import Policy
from ._structs import Info, Span
from .answer import Answer, AnswerStream
from .chat import Chat
from .errors import (
    ArgumentError,
    ContextError,
    ConversionError,
    EngineError,
    ImageError,
    ImageNotFoundError,
    ModelError,
    ModelNotFoundError,
    OutOfMemoryError,
    ProjectorError,
    PyAircacheError,
    StateError,
    UnsupportedError,
)
from .images import Video
from .method import Method
from .report import Report
from .window import All, Elite, Last, Pool, Text, Visual, Window

try:
    __version__ = _metadata.version("pyaircache")
except _metadata.PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

__all__ = [
    "All",
    "Answer",
    "AnswerStream",
    "ArgumentError",
    "Chat",
    "ContextError",
    "ConversionError",
    "Elite",
    "EngineError",
    "ImageError",
    "ImageNotFoundError",
    "Info",
    "Last",
    "Method",
    "ModelError",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "Policy",
    "Pool",
    "ProjectorError",
    "PyAircacheError",
    "Report",
    "Span",
    "StateError",
    "Text",
    "UnsupportedError",
    "Video",
    "Visual",
    "Window",
    "__version__",
]
