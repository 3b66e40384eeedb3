"""The grid of compression methods: who observes, how scores are made, how cells are shared out (docs/methods.md)."""

from .method import Method
from .policy import Policy
from .window import All, Elite, Last, Pool, Text, Visual, Window

__all__ = ["All", "Elite", "Last", "Method", "Policy", "Pool", "Text", "Visual", "Window"]
