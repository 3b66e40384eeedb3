"""Models whose cache cannot be compressed: refused by name, and answered without compression."""

from __future__ import annotations

from pathlib import Path

import kinds
import numpy as np
import pytest
import tiny_internvl

from pyaircache import Chat, StateError, UnsupportedError
from pyaircache.engine.engine import Engine
from pyaircache.engine.structs import EngineMethod

KINDS = {
    "deepseek2": r"deepseek2 model cannot be compressed: MLA caches \(no V\) are not supported",
    "gemma3": r"gemma3 model cannot be compressed: sliding-window caches are not supported",
    "lfm2": r"lfm2 model cannot be compressed: hybrid memories \(attention and recurrent layers\) are not supported",
    "lfm2-swa": r"lfm2 model cannot be compressed: hybrid memories",
    "mamba": r"mamba model cannot be compressed: recurrent memories are not supported",
}


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def files(kind: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The text model and a projector for it."""
    folder = tmp_path_factory.mktemp(kind)
    mmproj = tiny_internvl._export_vision(folder, kinds.WIDTH, np.random.default_rng(0))
    return kinds.save(kind, folder / f"{kind}.gguf"), mmproj


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(1).integers(256, size=(112, 112, 3), dtype=np.uint8)


def test_refused_by_name_and_answered_without(kind: str, files: tuple[Path, Path], picture: np.ndarray) -> None:
    with Chat(*files, n_ctx=512, n_threads=1, keep=0.5) as chat:
        assert not chat.info.can_compress
        with pytest.raises(UnsupportedError, match=f"{KINDS[kind]}.*keep=1.0 asks without compression"):
            chat.ask(picture, "What?")
        full = chat.ask(picture, "What?", keep=1.0, max_tokens=8)
        assert full.report.visual_tokens == 16
        assert full.report.kept is not None and all(len(one) == 16 for one in full.report.kept)
        assert chat.ask(None, "And?", max_tokens=4).report.visual_tokens == 0  # a follow-up needs no compression
        assert str(chat.ask(picture, "What?", keep=1.0, max_tokens=8)) == str(full)


def test_refused_before_anything_is_evaluated(kind: str, files: tuple[Path, Path], picture: np.ndarray) -> None:
    engine = Engine(*files, n_ctx=512, n_threads=1)
    prompt = f"{engine.marker()}What?"
    with pytest.raises(UnsupportedError, match=KINDS[kind]):
        engine.prompt(prompt, [picture], observe=True)
    assert engine.stats().n_past == 0
    engine.prompt(prompt, [picture])
    before = engine.logits()
    with pytest.raises(StateError, match="was not observed"):
        engine.compress(EngineMethod(keep=0.5))
    assert np.array_equal(engine.logits(), before)
    engine.decode(5)
    assert np.isfinite(engine.logits()).all()
    engine.close()
