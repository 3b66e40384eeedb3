"""What a question cost and what its compression kept."""

from .report import Report

__all__ = ["Report"]
