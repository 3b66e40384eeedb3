"""The conversation: what a question goes through from ``Chat.ask`` to its answer."""

from .answer import Answer, AnswerStream
from .chat import Chat

__all__ = ["Answer", "AnswerStream", "Chat"]
