"""What a picture would become, against what it becomes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import kinds
import numpy as np
import pytest
import tiny_internvl

from pyaircache import ArgumentError, Chat, ProjectorError
from pyaircache.engine.engine import Engine
from pyaircache.model_files import BUNDLED_MMPROJ, BUNDLED_MODEL, bundled_dir


@pytest.fixture(scope="module", params=["grid", "tiles"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The bundled model, whose tokens form a grid, and one that cuts pictures into tiles."""
    if request.param == "grid":
        return bundled_dir() / BUNDLED_MODEL, bundled_dir() / BUNDLED_MMPROJ
    folder = tmp_path_factory.mktemp("tiles")
    mmproj = tiny_internvl._export_vision(folder, kinds.WIDTH, np.random.default_rng(0))
    return kinds.save("gemma3", folder / "text.gguf"), mmproj


def test_layout_is_that_of_the_prompt(files: tuple[Path, Path]) -> None:
    engine = Engine(*files, n_ctx=1024, n_threads=1)
    rng = np.random.default_rng(0)
    sizes = [(112, 112), (224, 112), (60, 300)]
    pictures = [rng.integers(256, size=(height, width, 3), dtype=np.uint8) for width, height in sizes]
    text = "Look: {0}, {0} and {0}. What?".format(engine.marker())
    for _ in range(2):  # the second follows the first, at other positions
        planned = engine.layout(text, [np.zeros_like(picture) for picture in pictures])
        before = engine.stats().n_past
        found = engine.prompt(text, pictures)
        assert planned == replace(found, ms_encode=0.0, ms_prefill=0.0, n_encoded=0, n_reused=0)
        assert before == found.n_past - found.n_tokens
    assert engine.count_tokens(text, pictures) == planned.n_tokens
    assert {span.image for span in planned.spans} == {0, 1, 2}
    engine.close()


def test_chat_tells_spans_and_keeps_its_conversation(files: tuple[Path, Path]) -> None:
    with Chat(*files, keep=1.0, n_ctx=1024, n_threads=1) as chat:
        picture = np.zeros((112, 224, 3), np.uint8)
        asked = chat.ask(picture, "What?", max_tokens=2)
        spans = chat.spans((224, 112))
        assert [(one.n_tokens, one.nx, one.ny) for one in spans] == [
            (one.n_tokens, one.nx, one.ny) for one in asked.report.spans
        ]
        assert chat.ask(None, "And?", max_tokens=2).report.prompt_tokens > 0
        for size in ((0, 5), (5,), 7, (1.5, 2), (40000, 1)):
            with pytest.raises(ArgumentError, match="size must be|must be a whole number from 1 to 32768"):
                chat.spans(size)


def test_spans_need_a_projector(tmp_path: Path) -> None:
    with (
        Chat(kinds.save("gemma3", tmp_path / "text.gguf"), n_ctx=256, n_threads=1) as chat,
        pytest.raises(ProjectorError, match="was loaded without a projector"),
    ):
        chat.spans((10, 10))
