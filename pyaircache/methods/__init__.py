"""The grid of compression methods: who observes, how scores are made, how cells are shared out (docs/methods.md)."""

from .method import Allocation, Keys, Method, MethodName, Score
from .policy import Policy
from .pool import Pool, PoolKind
from .window import All, Elite, Last, Text, Visual, Window

__all__ = [
    "All",
    "Allocation",
    "Elite",
    "Keys",
    "Last",
    "Method",
    "MethodName",
    "Policy",
    "Pool",
    "PoolKind",
    "Score",
    "Text",
    "Visual",
    "Window",
]
