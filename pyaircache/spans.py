"""Where the visual tokens of a picture lie: what engine, reports and heatmaps have in common. Needs no library."""

from __future__ import annotations

from dataclasses import dataclass

Size = tuple[int, int]
"""Width and height of a picture, in pixels; columns and rows of a grid."""


@dataclass(frozen=True)
class Span:
    """One run of visual tokens: a picture, or one tile of it."""

    image: int
    """Index into the images of the question."""
    first: int
    """Index of its first token among the prompt's tokens."""
    n_tokens: int
    """Visual tokens of the run."""
    nx: int
    """Columns of the token grid; 0 when the tokens do not form a grid."""
    ny: int
    """Rows of the token grid."""
    pos0: int = 0
    """Its first position in the conversation; models with 2D positions give a picture fewer than tokens."""
    pos1: int = 0
    """The position behind its last one."""
