"""The quality table: its arithmetic, its place in a file, and a short run on the bundled model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import quality
from click.testing import CliRunner

LOGITS = np.zeros(3, np.float32)
BEGIN, END = quality.BEGIN.format("quality"), quality.END.format("quality")


def test_wilson_is_that_of_the_literature() -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    for right, count, expected in [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611))]:
        assert quality.wilson(right, count) == pytest.approx(expected, abs=5e-5)
    assert quality.wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert quality.wilson(20, 20)[1] == 1


def test_kl_divergence_by_hand() -> None:
    assert quality.kl_divergence(LOGITS, LOGITS + 7) == 0
    half, quarter = np.log(np.array([0.5, 0.5])), np.log(np.array([0.25, 0.75])) + 3
    assert quality.kl_divergence(half, quarter) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    far = quality.kl_divergence(np.float32([0, -1e4]), np.float32([-1e4, 0]))
    assert far == pytest.approx(1e4)


def test_row_counts_right_and_same_answers() -> None:
    cases = [quality.Case(None, "?", expected) for expected in ("12", "34", "56")]
    full = [quality.Outcome(answer, 100, LOGITS) for answer in ("12", "34", "55")]
    got = [quality.Outcome("12", 10, LOGITS), quality.Outcome("3", 20, None), quality.Outcome("55", 30, LOGITS)]
    row = quality.compare("m", 0.2, cases, full, got)
    assert (row.right, row.same, row.cells, row.kl, row.kl_half) == (1, 2, 20, 0, 0)
    shown = ("m", "0.2", "33.3%", "6.1 to 79.2", "66.7%", "20.8 to 93.9", "20.0", "0.00 ± 0.00")
    assert row.shown() == shown


def test_kl_has_an_interval() -> None:
    cases = [quality.Case(None, "?", "1")] * 4
    full = [quality.Outcome("1", 1, LOGITS)] * 4
    got = [quality.Outcome("1", 1, np.float32([x, 0, 0])) for x in (0, 1, 2, 3)]
    kls = [quality.kl_divergence(LOGITS, one.logits) for one in got]
    row = quality.compare("m", 0.2, cases, full, got)
    assert row.kl == pytest.approx(np.mean(kls))
    assert row.kl_half == pytest.approx(1.96 * np.std(kls, ddof=1) / 2)


def test_cases_are_fresh_and_repeatable() -> None:
    cases, again, other = quality.make_cases(7, 5), quality.make_cases(7, 5), quality.make_cases(7, 6)
    assert [(case.question, case.expected) for case in cases] == [(case.question, case.expected) for case in again]
    assert [case.image.tobytes() for case in cases] == [case.image.tobytes() for case in again]
    assert [case.question for case in cases] != [case.question for case in other]
    assert all(side % 28 == 0 for case in cases for side in case.image.size)


def test_command_names_what_is_not_default() -> None:
    default = (quality.PAGES, quality.SEED, quality.KEEPS, quality.METHODS)
    assert quality.command(*default) == "python bench/quality.py"
    expected = "python bench/quality.py --pages 3 --seed 2 --keep 0.5 --method snapkv --method h2o"
    assert quality.command(3, 2, [0.5], ["snapkv", "h2o"]) == expected


def test_table_goes_between_the_markers(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    other = f"{quality.BEGIN.format('card')}\nc\n{quality.END.format('card')}\n"
    path.write_text(f"a\n{BEGIN}\nold \\1\n{END}\nb\n{other}")
    for block in ("| new \\1 |", "| newer |"):
        path.write_text(quality.replaced(path, block))
        assert path.read_text() == f"a\n{BEGIN}\n{block}\n{END}\nb\n{other}"
    assert quality.replaced(path, "d", "card") == f"a\n{BEGIN}\n{block}\n{END}\nb\n{other}".replace("\nc\n", "\nd\n")


@pytest.mark.parametrize(("file", "methods"), [("README.md", ["aircache"]), ("docs/quality.md", quality.METHODS)])
def test_tables_are_whole(file: str, methods: list[str]) -> None:
    table = (quality.ROOT / file).read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert "`python bench/quality.py" in table
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line]
    assert rows[0] == list(quality.HEAD)
    expected = [(method, f"{keep:g}") for method in methods for keep in quality.KEEPS]
    assert [(row[0], row[1]) for row in rows[2:]] == [("full", "1"), *expected]


def test_presets_are_points_of_the_grid() -> None:
    needs_engine()
    known = quality.Method.names()
    for name in quality.METHODS:
        method = quality.method_of(name)
        assert method in known if name in quality.NAMED else isinstance(method, quality.Method)
    assert str(quality.method_of("last16+max5")) == "window=last:16 keys=causal pool=max:5 allocation=uniform"
    assert {*quality.NAMED, "elastic"} == set(known)  # elastic is h2o


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--keep", "0"), "greater than 0 and at most 1, got 0"),
        (("--pages", "0"), "0 is not in the range"),
        (("--update", __file__), BEGIN),
        (("--method", "nonsense", "--pages", "1"), "nonsense"),
        (("--model", "none.gguf", "--pages", "1"), "none.gguf does not exist"),
    ],
)
def test_wrong_options_are_named(options: tuple[str, ...], said: str) -> None:
    if options[0] in ("--method", "--model"):
        needs_engine()
    result = CliRunner().invoke(quality.main, list(options))
    assert result.exit_code in (1, 2)
    assert said in result.output


def needs_engine() -> None:
    if os.environ.get("PYAIRCACHE_NO_ENGINE") == "1":
        pytest.skip("PYAIRCACHE_NO_ENGINE=1")


def test_on_the_bundled_model(tmp_path: Path) -> None:
    needs_engine()
    readme, path = tmp_path / "README.md", tmp_path / "out.json"
    readme.write_text(f"{BEGIN}\n{END}\n")
    options = ["--pages", "6", "--keep", "1", "--keep", "0.25", "--method", "aircache", "--method", "last+max5"]
    options += ["--update", str(readme), "--json", str(path)]
    result = CliRunner().invoke(quality.main, options)
    assert result.exit_code == 0, result.output
    assert readme.read_text() == f"{BEGIN}\n{result.output}{END}\n"
    data = json.loads(path.read_text())
    assert str(tmp_path) not in path.read_text() + result.output
    full, kept, pooled = data["rows"]
    assert (full["method"], full["keep"], full["same"], full["kl"]) == ("full", 1, 6, 0)
    assert full["right"] >= 5  # it is a good reader
    assert (kept["method"], kept["keep"], kept["pages"]) == ("aircache", 0.25, 6)
    assert kept["cells"] == pytest.approx(full["cells"] / 4, rel=0.01)
    assert kept["kl"] > 0
    assert kept["right"] >= 5  # of what the question is about, nothing is lost
    assert (pooled["method"], pooled["keep"]) == ("last+max5", 0.25)


def test_logits_are_those_of_the_second_token() -> None:
    needs_engine()
    (case,) = quality.make_cases(1, 3)
    with quality.Chat(n_threads=1) as chat:
        outcome = quality.ask(chat, case, 0.25, "aircache")
        chat.ask(case.image, case.question, keep=0.25, max_tokens=2)
        np.testing.assert_array_equal(outcome.logits, chat.engine.logits())
