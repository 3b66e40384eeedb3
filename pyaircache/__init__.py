"""pyaircache: ask vision-language models about images, with a compressed visual KV cache (AirCache) in llama.cpp.

::

    from pyaircache import Chat, sample

    page = sample()  # comes with the package, like the small model
    with Chat(keep=0.1) as chat:  # a model of your own: Chat("model.gguf", keep=0.1)
        answer = chat.ask(page.path, page.question)
        print(answer)
        print(answer.report)
"""

from __future__ import annotations

from importlib import metadata as _metadata

from .chat.answer import Answer, AnswerStream, TokenLogprob
from .chat.async_chat import AsyncChat
from .chat.async_stream import AsyncAnswerStream
from .chat.chat import Chat
from .chat.many import Answered
from .chat.model import Model
from .chat.options import AskOptions
from .engine.structs import CacheType, Info, ModelFacts, ModelInfo
from .errors import (
    ArgumentError,
    BusyError,
    CancelledError,
    ContextError,
    ConversionError,
    EngineError,
    ForkError,
    ImageError,
    ImageNotFoundError,
    ModelError,
    ModelNotFoundError,
    OutOfMemoryError,
    ProjectorError,
    PyAircacheError,
    PyAircacheWarning,
    StateError,
    UnsupportedError,
)
from .images import Pages, Video
from .methods.method import Method, MethodName
from .methods.policy import Policy, PolicyContext
from .methods.pool import Pool
from .methods.window import All, Elite, Last, Text, Visual, Window
from .report.report import Report
from .samples import Sample, sample
from .spans import Span

try:
    __version__ = _metadata.version("pyaircache")
except _metadata.PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

__all__ = [
    "All",
    "Answer",
    "AnswerStream",
    "Answered",
    "ArgumentError",
    "AskOptions",
    "AsyncAnswerStream",
    "AsyncChat",
    "BusyError",
    "CacheType",
    "CancelledError",
    "Chat",
    "ContextError",
    "ConversionError",
    "Elite",
    "EngineError",
    "ForkError",
    "ImageError",
    "ImageNotFoundError",
    "Info",
    "Last",
    "Method",
    "MethodName",
    "Model",
    "ModelError",
    "ModelFacts",
    "ModelInfo",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "Pages",
    "Policy",
    "PolicyContext",
    "Pool",
    "ProjectorError",
    "PyAircacheError",
    "PyAircacheWarning",
    "Report",
    "Sample",
    "Span",
    "StateError",
    "Text",
    "TokenLogprob",
    "UnsupportedError",
    "Video",
    "Visual",
    "Window",
    "__version__",
    "sample",
]
