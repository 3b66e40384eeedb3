"""The conversation: what a question goes through from ``Chat.ask`` to its answer."""

from .answer import Answer, AnswerStream, TokenLogprob
from .async_chat import AsyncChat
from .async_stream import AsyncAnswerStream
from .chat import Chat
from .model import Model
from .options import AskOptions

__all__ = ["Answer", "AnswerStream", "AskOptions", "AsyncAnswerStream", "AsyncChat", "Chat", "Model", "TokenLogprob"]
