"""The comparison with the model card's table: its arithmetic, and a short run."""

from __future__ import annotations

import json
from pathlib import Path

import like_card
import pytest
from click.testing import CliRunner

from pyaircache import Elite, Method, Pool

from .test_quality import needs_engine


def test_difference_is_that_of_the_literature() -> None:
    """Newcombe 1998, Statistics in Medicine 17, p. 873, table II, method 10."""
    for counts, expected in [
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((5, 56, 0, 29), (-0.0381, 0.1926)),
        ((0, 10, 0, 20), (-0.1611, 0.2775)),
    ]:
        assert like_card.difference(*counts) == pytest.approx(expected, abs=5e-5)


def test_figures_agree_or_not() -> None:
    figure = like_card.Figure("last", 0.1, 100, 50, 40)
    assert figure.agrees
    shown = ("last", "0.1", "50.0%", "40.4 to 59.6", "50.0%", "39.3 to 60.7", "-14.4 to +14.4", "yes")
    assert figure.shown() == shown
    assert like_card.Figure("last", 0.1, 100, 90, 40).shown()[-1] == "no"


def test_methods_of_the_card() -> None:
    needs_engine()
    methods = {row: like_card.card_method(row) for row in like_card.CARD}
    assert methods["aircache"] == "aircache" and methods["random"] == "random"
    assert methods["aircache, uniform"] == Method(allocation="uniform")
    expected = Method(window=Elite(0.05), allocation="uniform", pool=Pool("max", 5))
    assert methods["aircache 0.05+max5, uniform"] == expected
    for row in ("last", "last+max5", "last16", "last16+max5"):
        method = methods[row] if isinstance(methods[row], Method) else Method.named(row)
        assert (method.keys, method.allocation) == ("causal", "uniform")


def test_document_has_the_whole_table() -> None:
    text = (Path(like_card.__file__).parents[1] / "docs" / "quality.md").read_text(encoding="utf-8")
    rows = [line for line in text.partition("<!-- card:begin -->")[2].partition("<!-- card:end -->")[0].splitlines()
            if line.startswith("|")]  # fmt: skip
    assert len(rows) == 2 + len(like_card.CARD) * len(like_card.KEEPS)


def test_on_the_bundled_model(tmp_path: Path) -> None:
    needs_engine()
    path, document = tmp_path / "out.json", tmp_path / "quality.md"
    document.write_text("<!-- card:begin -->\n<!-- card:end -->\n")
    result = CliRunner().invoke(like_card.main, ["--pages", "1", "--json", str(path), "--update", str(document)])
    assert result.exit_code == 0, result.output
    assert document.read_text() == f"<!-- card:begin -->\n{result.output}<!-- card:end -->\n"
    rows = json.loads(path.read_text())["rows"]
    assert [row["score"] for row in rows[::4]] == list(like_card.CARD)
