"""The grid of compression methods: who observes, how scores are made, how cells are shared out (docs/methods.md)."""

from .method import Allocation, Keys, Method, MethodName, Score
from .policy import Policy, PolicyContext
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
    "PolicyContext",
    "Pool",
    "PoolKind",
    "Score",
    "Text",
    "Visual",
    "Window",
]
