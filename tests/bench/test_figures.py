"""The arithmetic behind the benchmarks' tables."""

from __future__ import annotations

import bench_common
import overhead
import pytest


@pytest.mark.parametrize("n_visual", [16, 17, 256, 1000, 3989, 4000, 4096, 4097, 8000, 8192, 8281, 12288])
def test_grids_give_nearly_the_wanted_count(n_visual: int) -> None:
    grids = bench_common.grids(n_visual)
    tokens = [columns * rows for columns, rows in grids]
    assert 0.98 * n_visual - 1 <= sum(tokens) <= n_visual
    assert max(tokens) <= bench_common.MAX_IMAGE_TOKENS
    assert all(columns <= rows < 2 * columns for columns, rows in grids)


def test_pictures_have_the_size_of_their_grid() -> None:
    (picture,) = bench_common.pictures(20)
    assert picture.shape == (5 * 28, 4 * 28, 3)


def test_overhead_counts_all_three_parts() -> None:
    assert overhead.overhead(plain=1000, observing=1004, score=3, evict=2) == pytest.approx(0.009)


def test_summary_pairs_the_rounds() -> None:
    rest = {"score": 3.0, "evict": 2.0, "compress": 5.5, "encode": 50.0}
    rounds = [({"prefill": p}, {"prefill": p + 4, **rest}) for p in (1000.0, 1100.0, 2000.0)]  # a drifting machine
    figures = overhead.summary(rounds)
    assert figures["observing - plain (ms)"] == {"median": 4, "min": 4, "max": 4}
    assert figures["overhead (% of plain)"]["median"] == pytest.approx(100 * 9 / 1100)


def test_noise_is_the_median_deviation() -> None:
    assert overhead.noise([98, 100, 103]) == pytest.approx(0.02)


def test_table_aligns() -> None:
    lines = bench_common.table([["", "full"], ["tokens/s", "9.5"]]).splitlines()
    assert lines == ["          full", "--------------", "tokens/s   9.5"]
