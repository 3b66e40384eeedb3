"""Reports: text, JSON and the painted picture."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from pyaircache import ArgumentError, Method, Report, Span, StateError, UnsupportedError
from pyaircache.report import geometry
from pyaircache.report.divergence import jensen_shannon
from pyaircache.report.heatmap import viridis
from pyaircache.report.pictures import PictureInfo

SPAN = Span(image=0, first=3, n_tokens=6, nx=3, ny=2)


def report(**changes) -> Report:
    values = {
        "keep": 0.5,
        "method": "aircache",
        "alpha": 0.9,
        "layers": 2,
        "visual_tokens": 6,
        "prompt_tokens": 20,
        "answer_tokens": 4,
        "stop_reason": "end",
        "budgets": np.array([2, 4], np.int32),
        "kept": [np.array([0, 2], np.int32), np.array([0, 1, 2, 5], np.int32)],
        "scores": np.arange(12, dtype=np.float32).reshape(2, 6),
        "observers": [np.array([9], np.int32), np.array([10, 12], np.int32)],
        "strength": np.array([1.0, 2.0]),
        "skewness": np.array([0.5, 0.0]),
        "kv_bytes_full": 2_000_000,
        "kv_bytes": 500_000,
        "ms_first_token": 12.5,
        "tokens_per_second": 100.0,
        "spans": [SPAN],
    }
    return Report(**{**values, **changes})


def test_json_round_trip():
    one = report()
    back = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert back["budgets"] == [2, 4]
    assert back["kept"] == [[0, 2], [0, 1, 2, 5]]
    assert back["scores"] == one.scores.tolist()
    assert back["spans"][0]["nx"] == 3
    assert back["keep"] == 0.5


def test_json_scalars_only():
    scalars = report().to_dict(scalars_only=True)
    assert all(value is None or isinstance(value, (int, float, str)) for value in scalars.values())
    assert {"visual_tokens", "kv_bytes", "ms_decode", "tokens_per_second"} <= scalars.keys()


def test_json_has_no_nan():
    text = json.dumps(report(skewness=np.array([np.nan, np.inf])).to_dict(), allow_nan=False)
    assert json.loads(text)["skewness"] == [None, None]


def test_repr_is_readable():
    lines = repr(report()).splitlines()
    assert lines[0] == "Report(method='aircache', keep=0.5, alpha=0.9)"
    text = "\n".join(lines)
    for piece in (
        "6 in 1 image (3 x 2)",
        "6 of 12 in 2 layers (50.0%)",
        "2, 4 (min 2, max 4)",
        "1, 2 (min 1, max 2)",
        "500.0 kB of 2.0 MB (25.0%)",
        "4 tokens (stopped: end)",
    ):
        assert piece in text
    assert max(map(len, lines)) <= 120


def test_repr_of_a_follow_up_and_of_many_layers():
    plain = Report(keep=0.1, method="aircache", alpha=0.9, kv_bytes_full=10, kv_bytes=5)
    assert "0 (a question without an image)" in repr(plain)
    assert json.loads(json.dumps(plain.to_dict()))["budgets"] == []
    assert plain.kept_per_token.size == 0
    many = report(layers=80, budgets=np.full(80, 100, np.int32), observers=[np.array([1])] * 80)
    assert max(map(len, repr(many).splitlines())) <= 140


def test_kept_per_token():
    assert report().kept_per_token.tolist() == [1.0, 0.5, 1.0, 0.0, 0.0, 0.5]


def test_kept_per_layer():
    np.testing.assert_allclose(report().kept_per_layer, [2 / 6, 4 / 6])
    assert Report(keep=0.1, method="aircache", alpha=0.9).kept_per_layer.size == 0


def test_jensen_shannon_by_hand():
    assert jensen_shannon(np.array([2, 0]), np.array([0, 5])) == 1
    assert jensen_shannon(np.array([1, 2, 3]), np.array([2, 4, 6])) == 0
    # P = (1/2, 1/2), Q = (1, 0), M = (3/4, 1/4)
    p, q = 0.5 * np.log2(2 / 3) + 0.5 * np.log2(2), np.log2(4 / 3)
    assert jensen_shannon(np.array([1, 1]), np.array([3, 0])) == pytest.approx((p + q) / 2)


def test_divergence(engine):
    one = report(scores=np.array([[9, 9, 9, 9, 9, 9], [3, 0, 0, 0, 0, 0]], np.float32))
    assert one.divergence() == one.divergence("uniform") == one.divergence([3, 3]) == one.divergence(np.ones(2)) > 0
    assert one.divergence("strength") == one.divergence([5, 1])  # 54 : 3, at most 6, at least 1 of 6 cells
    assert one.divergence("skewness") == one.divergence([1, 5])  # 0 : sqrt(6)
    assert one.divergence(Method(allocation="skewness", min_keep=2)) == one.divergence([2, 4]) == 0
    for allocation in ("strength+skewness", "pyramid", "prefix"):
        assert 0 <= one.divergence(allocation) <= 1


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("fair", "allocation must be one of strength"),
        ("vl", "only a question with this allocation has"),
        ([1, 2, 3], "budgets must be 2 numbers"),
        ([0, 0], "with a sum above 0"),
        ([-1, 2], "of at least 0"),
        ([float("nan"), 2], "of at least 0"),
        ([[1], [2, 3]], "budgets must be 2 numbers"),
        (None, "budgets must be 2 numbers"),
    ],
)
def test_divergence_from_something_wrong(engine, other, message):
    with pytest.raises(ArgumentError, match=message):
        report().divergence(other)


def test_divergence_and_ranks_without_compression():
    full = report(scores=np.empty((0, 0), np.float32), budgets=np.array([6, 6], np.int32))
    assert full.divergence([1, 1]) == 0
    for call in (full.divergence, lambda: full.ranked(1), report(budgets=np.empty(0, np.int32)).divergence):
        with pytest.raises(StateError):
            call()


def test_ranked(engine):
    one = report(scores=np.array([[1, 5, 5, 0, 2, 3], [6, 5, 4, 3, 2, 1]], np.float32))
    assert [one.ranked(r).tolist() for r in range(1, 7)] == [[1, 0], [2, 1], [5, 2], [4, 3], [0, 4], [3, 5]]
    for wrong in (0, 7, 1.5):
        with pytest.raises(ArgumentError, match="rank must be a whole number from 1 to 6"):
            one.ranked(wrong)


def test_heatmap_paints_each_cell():
    white = np.full((40, 60, 3), 255, np.uint8)
    painted = np.asarray(report().heatmap(white))
    assert painted.shape == (40, 60, 3) and painted.dtype == np.uint8
    cells = painted.reshape(2, 20, 3, 20, 3)
    assert (cells == cells[:, :1, :, :1]).all()  # one colour in each cell
    bright = cells[:, 0, :, 0].astype(int).sum(axis=-1)  # [ny, nx]
    shares = report().kept_per_token.reshape(2, 3)
    assert (np.sort(bright.ravel()) == bright.ravel()[np.argsort(shares.ravel(), kind="stable")]).all()
    assert bright[0, 0] == bright[0, 2] > bright[0, 1] == bright[1, 2] > bright[1, 0] == bright[1, 1]


def test_heatmap_of_sizes_that_the_grid_does_not_divide():
    for height, width in ((41, 61), (1, 1), (2, 3), (7, 500)):
        assert report().heatmap(np.zeros((height, width, 3), np.uint8)).size == (width, height)


def test_heatmap_of_several_pictures():
    spans = [SPAN, Span(image=1, first=12, n_tokens=2, nx=1, ny=2)]
    one = report(visual_tokens=8, kept=[np.array([7])] * 2, spans=spans)
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    first, second = (np.asarray(one.heatmap([white, black], index=i)) for i in (0, 1))
    assert (first == first[0, 0]).all()  # nothing was kept of it
    assert (second[3] != second[0]).any()
    np.testing.assert_array_equal(second, np.asarray(one.heatmap(black, index=1)))


@pytest.mark.parametrize(
    ("spans", "index", "error", "message"),
    [
        ([SPAN], 1, ArgumentError, "about 1 picture"),
        ([SPAN], -1, ArgumentError, "about 1 picture"),
        ([], 0, ArgumentError, "about 0 pictures"),
        ([Span(0, 0, 6, 0, 0)], 0, UnsupportedError, "do not form a grid"),
        ([Span(0, 0, 6, 2, 2)], 0, UnsupportedError, "do not form a grid"),
        ([Span(0, 0, 3, 3, 1), Span(0, 4, 3, 3, 1)], 0, UnsupportedError, "do not form a grid"),
    ],
)
def test_heatmap_that_cannot_be_made(spans, index, error, message):
    with pytest.raises(error, match=message):
        report(spans=spans).heatmap(np.zeros((4, 4, 3), np.uint8), index)


def test_heatmap_of_a_short_list():
    spans = [SPAN, Span(1, 12, 2, 1, 2)]
    with pytest.raises(ArgumentError, match="about 2 pictures, but a list of 1 images"):
        report(visual_tokens=8, spans=spans).heatmap([np.zeros((4, 4, 3), np.uint8)], 1)


def test_viridis_is_close_to_the_real_one():
    matplotlib = pytest.importorskip("matplotlib")
    values = np.linspace(0, 1, 101)
    np.testing.assert_allclose(viridis(values), matplotlib.colormaps["viridis"](values)[:, :3], atol=0.07)


def lit(one: Report, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The rectangle (left, top, right, bottom) of the brightest pixels."""
    bright = np.asarray(one.heatmap(np.zeros((size[1], size[0], 3), np.uint8), check=False)).astype(int).sum(axis=-1)
    rows, columns = np.nonzero(bright == bright.max())
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    assert (box[2] - box[0]) * (box[3] - box[1]) == len(rows) < bright.size
    return box


def tiled(projector: str, counts: list[int], token: int, side: int = 0) -> Report:
    spans = [Span(0, 0, count, 0, 0) for count in counts]
    return report(
        projector=projector, spans=spans, visual_tokens=sum(counts), kept=[np.array([token])] * 2, tile_side=side
    )


@pytest.mark.parametrize(
    ("projector", "counts", "token", "size", "box"),
    [
        ("internvl", [4], 3, (40, 20), (20, 10, 40, 20)),  # the picture is one tile, stretched
        ("internvl", [4, 4, 4], 5, (80, 40), (60, 0, 80, 20)),  # the second of two tiles beside each other
        ("internvl", [4, 4, 4], 6, (40, 80), (0, 60, 20, 80)),  # and below each other
        ("internvl", [4, 4, 4], 9, (80, 40), (40, 0, 80, 20)),  # the overview comes last
        ("idefics3", [4], 3, (40, 20), (20, 10, 40, 20)),
        ("idefics3", [4] * 9, 5, (80, 40), (30, 0, 40, 10)),  # 4 x 2 tiles, and the whole picture last
        ("idefics3", [4] * 9, 32, (80, 40), (0, 0, 40, 20)),
        ("mlp", [16], 4, (40, 20), (0, 0, 10, 10)),  # 4 x 4 cells over a square; the first and last row are padding
        ("mlp", [16], 6, (20, 40), (10, 10, 20, 20)),
        ("mlp", [4, 4, 4], 5, (40, 10), (30, 0, 40, 5)),  # a LLaVA-NeXT of others: a canvas of 40 x 20
        ("llava_onevision", [4 + 2 * 5], 4 + 5, (80, 40), (0, 20, 20, 40)),  # 2 rows of 4 tokens and a newline
        ("llava_onevision", [4 + 2 * 5], 1, (80, 40), (40, 0, 80, 20)),  # the base comes first
        ("llava_next", [4 + 2 * 5], 4 + 5, (80, 40), (0, 20, 20, 40)),
    ],
)
def test_heatmap_of_tiles(projector, counts, token, size, box):
    assert lit(tiled(projector, counts, token, side=2), size) == box


def test_a_newline_and_padding_have_no_place():
    for one in (tiled("llava_onevision", [14], 8, side=2), tiled("mlp", [16], 0)):
        painted = np.asarray(one.heatmap(np.zeros((40, 80, 3), np.uint8)))
        assert (painted == painted[0, 0]).all()


def test_heatmap_of_tokens_that_no_such_picture_makes():
    with pytest.raises(ArgumentError, match="15 visual tokens cannot be of a picture of 80 x 40"):
        tiled("llava_onevision", [15], 0, side=2).heatmap(np.zeros((40, 80, 3), np.uint8))


def test_heatmap_knows_its_picture():
    asked = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    one = report(pictures=[PictureInfo.of(asked)])
    assert one.heatmap(asked).size == one.heatmap([asked]).size == (30, 20)
    with pytest.raises(ArgumentError, match="has 20 x 30 pixels, that one had 30 x 20"):
        one.heatmap(asked.transpose(1, 0, 2))
    with pytest.raises(ArgumentError, match="same size, 30 x 20, but other pixels"):
        one.heatmap(asked ^ 1)
    with pytest.raises(ArgumentError, match="about 1 picture, but a list of 2 images"):
        one.heatmap([asked, asked])
    assert one.heatmap(np.zeros((40, 60, 3), np.uint8), check=False).size == (60, 40)
    assert json.loads(json.dumps(one.to_dict()))["pictures"][0]["width"] == 30


def test_the_grid_of_idefics_is_found_again():
    """From the count of tiles alone, of one to five along the longer side."""
    for width, height in np.random.default_rng(0).integers(8, 3000, (60, 2)):
        size = (int(width), int(height))
        for longer in range(1, 6):
            shorter = math.ceil(longer * min(size) / max(size))
            grid = (longer, shorter) if width >= height else (shorter, longer)
            count = grid[0] * grid[1]
            tiles = geometry.tiles("idefics3", 0, size, [Span(0, 0, 4, 0, 0)] * (count + (count > 1)), True)
            assert len({tile.left for tile in tiles[:count]}) == grid[0]
            assert (tiles[-1].left, tiles[-1].top, tiles[-1].right, tiles[-1].bottom) == (0, 0, *size)


GRIDS = [(x, y) for y in range(1, 7) for x in range(1, 7)]


@pytest.mark.parametrize("side", [5, 27])
def test_the_grid_of_onevision_is_found_again(side):
    """From the count of tokens alone, for grids of up to 6 x 6 tiles of which more than 9 are reduced."""
    rng = np.random.default_rng(side)
    for width, height in rng.integers(20, 3000, (60, 2)):
        size = (int(width), int(height))
        scales = {g: min(g[0] / width, g[1] / height) for g in GRIDS}
        grid = min(GRIDS, key=lambda g: (g[0] * g[1] - width * height * scales[g] ** 2, g))  # the least padding
        x, y = geometry.unpadded(side, size, grid)
        rows, cols = geometry.reduced(side, grid[0] * side - 2 * x, grid[1] * side - 2 * y, 9)
        base, packed = geometry.tiles(
            "llava_onevision", side, size, [Span(0, 0, side**2 + rows * (cols + 1), 0, 0)], True
        )
        assert (packed.ny, packed.nx, packed.first, packed.stride) == (rows, cols, side**2, cols + 1)
        across, down = (packed.right - packed.left) / cols, (packed.bottom - packed.top) / rows  # of a cell
        assert abs(packed.left) <= across and abs(packed.right - width) <= across
        assert abs(packed.top) <= down and abs(packed.bottom - height) <= down
        assert (base.left, base.top, base.right, base.bottom) == (0, 0, *size)
