"""Which part of a picture each visual token looks at.

The families cut pictures in their own ways (native/mtmd, docs/pictures.md). What is known here are the picture's size
and its spans; from these follows where each tile lies. All coordinates are pixels of the picture, upright.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import ArgumentError, UnsupportedError
from ..spans import Size, Span
from .pictures import LLAVA_NEXT, ONEVISION

IDEFICS3, INTERNVL, LLAVA = "idefics3", "internvl", "mlp"
_MAX_TILES = 1024  # of one picture: native/mtmd/onevision-image.cpp
_REDUCED_FROM = 1.1  # OneVision reduces grids whose sides are more than this too long


@dataclass(frozen=True)
class Tile:
    """A grid of tokens over a part of a picture; what of it lies outside looks at padding."""

    first: int
    """Its first token among the picture's."""
    nx: int
    ny: int
    left: float
    top: float
    right: float
    bottom: float
    stride: int
    """Tokens from one row to the next: nx, and one more where a newline ends each row."""


def tiles(projector: str, side: int, size: Size, spans: Sequence[Span], alone: bool) -> list[Tile]:
    """The grids of one picture's tokens. Overviews are among them.

    Args:
        projector: The projector's kind, as its GGUF names it.
        side: Tokens along a side of a tile, for ``llava_onevision`` and ``llava_next``.
        size: Of the picture as it was asked about.
        spans: The picture's.
        alone: Whether the question had no other picture.

    Raises:
        ArgumentError: These spans cannot be of a picture of this size.
        UnsupportedError: This family's layout is not known.
    """
    width, height = size
    n_tokens = spans[0].n_tokens
    if len(spans) == 1 and spans[0].nx > 0 and spans[0].nx * spans[0].ny == n_tokens:
        return [_stretched(0, spans[0].nx, spans[0].ny, size)]
    tile = math.isqrt(n_tokens)
    square = tile * tile == n_tokens and all(span.n_tokens == n_tokens for span in spans)
    if projector in (ONEVISION, LLAVA_NEXT) and side > 0 and len(spans) == 1:
        return _onevision(side, size, n_tokens) if alone or projector == LLAVA_NEXT else [_padded(side, size)]
    if projector in (IDEFICS3, INTERNVL) and square:
        choose = _internvl_grid if projector == INTERNVL else _idefics3_grid
        return _tiles_and_overview(tile, size, choose(size, len(spans) - 1) if len(spans) > 1 else None)
    if projector == LLAVA and square:
        return [_padded(tile, size)] if len(spans) == 1 else _llava_tiles(tile, size, len(spans))
    total = sum(span.n_tokens for span in spans)
    raise UnsupportedError(
        f"the {total} visual tokens of a picture of {width} x {height} pixels do not form a grid that is known for the "
        f"projector {projector or 'of this report'!r}, so there is no place for them on the picture"
    )


def _stretched(first: int, nx: int, ny: int, size: Size) -> Tile:
    """The whole picture, stretched to the grid."""
    return Tile(first, nx, ny, 0.0, 0.0, size[0], size[1], nx)


def _padded(side: int, size: Size) -> Tile:
    """The picture in the middle of a square."""
    longer = max(size)
    left, top = -((longer - size[0]) // 2), -((longer - size[1]) // 2)
    return Tile(0, side, side, left, top, left + longer, top + longer, side)


def _cut(tile: int, grid: Size, left: float, top: float, right: float, bottom: float) -> list[Tile]:
    """Tiles in reading order over an area."""
    step_x, step_y = (right - left) / grid[0], (bottom - top) / grid[1]
    return [
        Tile(
            (y * grid[0] + x) * tile * tile, tile, tile,
            left + x * step_x, top + y * step_y, left + (x + 1) * step_x, top + (y + 1) * step_y, tile,
        )
        for y in range(grid[1])
        for x in range(grid[0])
    ]  # fmt: skip


def _grids(count: int) -> Iterator[Size]:
    """Of so many tiles: (columns, rows)."""
    return ((nx, count // nx) for nx in range(1, count + 1) if count % nx == 0)


def _tiles_and_overview(tile: int, size: Size, grid: Size | None) -> list[Tile]:
    """Tiles over the stretched picture, then the overview, of which a picture of one tile has nothing else."""
    if grid is None:
        return [_stretched(0, tile, tile, size)]
    return [*_cut(tile, grid, 0.0, 0.0, *size), _stretched(grid[0] * grid[1] * tile * tile, tile, tile, size)]


def _internvl_grid(size: Size, count: int) -> Size:
    """Of so many tiles the grid that is closest to the picture's shape."""
    return min(_grids(count), key=lambda grid: abs(size[0] / size[1] - grid[0] / grid[1]))


def _idefics3_grid(size: Size, count: int) -> Size:
    """Along the shorter side there are as many tiles as its share of the longer one needs, rounded up."""

    def off(grid: Size) -> float:
        longer, shorter = grid if size[0] >= size[1] else grid[::-1]
        return abs(shorter - 0.5 - longer * min(size) / max(size))

    return min(_grids(count), key=off)


def _llava_tiles(tile: int, size: Size, n_spans: int) -> list[Tile]:
    """LLaVA-NeXT in llama.cpp's own files: tiles over the picture in the middle of a canvas, the stretched overview."""
    width, height = size

    def scale(grid: Size) -> float:
        return min(grid[0] / width, grid[1] / height)

    grid = max(_grids(n_spans - 1), key=scale)  # all have the same area: the picture fills most of it
    across, down = grid[0] / scale(grid), grid[1] / scale(grid)
    left, top = (width - across) / 2, (height - down) / 2
    overview = _stretched((n_spans - 1) * tile * tile, tile, tile, size)
    return [*_cut(tile, grid, left, top, left + across, top + down), overview]


@dataclass(frozen=True)
class _Packed:
    """OneVision's tokens of a grid of tiles, rid of the padding."""

    grid: Size
    x: int  # tokens cut off at each side
    y: int
    rows: int
    cols: int


def _onevision(side: int, size: Size, n_tokens: int) -> list[Tile]:
    """The base, which is the whole picture stretched to one tile, then rows of the grid with a newline each."""
    width, height = size
    base = _stretched(0, side, side, size)
    rest = n_tokens - side * side
    if rest == 0:  # so thin that nothing of the grid was left
        return [base]
    packed = _packed(side, size, rest)
    if packed is None:
        raise ArgumentError(f"{n_tokens} visual tokens cannot be of a picture of {width} x {height} pixels")
    # In tokens of the canvas: the picture in its middle, of which what was cut off is whole tokens
    across, down = packed.grid[0] * side, packed.grid[1] * side
    scale = min(across / width, down / height)
    left, top = (packed.x - (across - width * scale) / 2) / scale, (packed.y - (down - height * scale) / 2) / scale
    right, bottom = width - left, height - top
    grid = Tile(side * side, packed.cols, packed.rows, left, top, right, bottom, packed.cols + 1)
    return [base, grid] if packed.cols > 0 else [base]


def _packed(side: int, size: Size, rest: int) -> _Packed | None:
    """The grid that makes so many tokens of the picture; of several the one of fewest tiles, not reduced if possible.

    Which grids the model has, and above how many tiles it reduces them, is not known here.
    """
    found = None
    for count in range(1, _MAX_TILES + 1):
        for grid in _grids(count):
            x, y = unpadded(side, size, grid)
            w, h = grid[0] * side - 2 * x, grid[1] * side - 2 * y
            if h * (w + 1) == rest:
                return _Packed(grid, x, y, h, w)
            if found is None and h * (w + 1) > rest:
                for most in range(max(1, rest // side**2 - 2), rest // side**2 + 4):
                    rows, cols = reduced(side, w, h, most)
                    if rows * (cols + 1) == rest:
                        found = _Packed(grid, x, y, rows, cols)
                        break
    return found


def unpadded(side: int, size: Size, grid: Size) -> Size:
    """Columns and rows of tokens that OneVision cuts off at each side of a grid of tiles: they are of padding.

    As native/mtmd/onevision-image.cpp computes it, which follows the model's Python code to the last rounding.
    """
    (width, height), (across, down) = size, (grid[0] * side, grid[1] * side)

    def scaled(n: int, to: int, source: int) -> int:
        return math.floor(n * (to / source) + 5e-8)

    if width / height > across / down:
        return 0, (down - scaled(height, across, width)) // 2
    return (across - scaled(width, down, height)) // 2, 0


def reduced(side: int, w: int, h: int, most: int) -> Size:
    """Rows and columns of w x h tokens, where more than about ``most`` tiles' worth of them are reduced."""
    ratio = math.sqrt(h * w / (most * side * side))
    if ratio <= _REDUCED_FROM:
        return h, w
    return max(1, int(h // ratio)), max(1, int(w // ratio))
