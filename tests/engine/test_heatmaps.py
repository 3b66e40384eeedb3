"""Which pixels light up: a change in a picture moves the embeddings of the token whose cell lies over it most."""

from __future__ import annotations

from pathlib import Path

import harness
import numpy as np
import pytest
import tiny_onevision as tov
from tiny_vlm import random_picture
from vlm import make_vlm

from pyaircache import Report
from pyaircache.report import pictures

SIZES = {
    "qwen2vl": [(300, 100)],
    "llava llama": [(112, 112), (300, 100), (90, 200)],
    "internvl-chat qwen2": [(100, 100), (300, 100), (448, 224)],
    "smolvlm": [(100, 100), (300, 100), (90, 200)],
    "llava-next": [(100, 100), (300, 100), (90, 200)],
    "onevision": [(100, 100), (300, 100), (112, 300), (640, 480)],
}


@pytest.mark.parametrize("name", SIZES)
def test_the_cell_over_a_change_lights_up(name: str, tmp_path: Path) -> None:
    vlm = tov.save_tiny(tmp_path) if name == "onevision" else make_vlm(name, tmp_path)
    engine = harness.open_engine(vlm.text, vlm.mmproj, n_ctx=2048)
    projector = engine.info().projector
    hits = total = 0
    for size in SIZES[name]:
        rng = np.random.default_rng(size)
        picture = np.array(random_picture(rng, *size))
        for at in rng.uniform(0.1, 0.9, (4, 2)):
            x, y = (int(share * n) for share, n in zip(at, size, strict=True))
            changed = picture.copy()
            patch = max(2, min(size) // 20)
            changed[max(0, y - patch) : y + patch, max(0, x - patch) : x + patch] ^= 0x80
            before, after = (embeddings(engine, array) for array in (picture, changed))
            spans = before[1]
            token = int(np.linalg.norm(after[0] - before[0], axis=1).argmax())
            report = Report(
                keep=0.1, method="random", alpha=None, layers=1, visual_tokens=len(before[0]), spans=spans,
                kept=[np.array([token])], projector=projector, pictures=pictures.infos([picture]),
                tile_side=pictures.tile_side(engine, projector),
            )  # fmt: skip
            painted = np.asarray(report.heatmap(picture)).astype(int)
            dark = np.asarray(report.heatmap(np.zeros_like(picture), check=False)).astype(int).sum(axis=-1)
            lit = dark == dark.max()
            assert painted.shape == picture.shape and 0 < lit.sum() <= lit.size / 4
            rows, columns = np.nonzero(lit)
            assert (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1) == lit.sum()  # one rectangle
            near = patch + max(size) // 12  # a change at a cell's border moves its neighbour, too
            hits += bool(
                rows.min() - near <= y <= rows.max() + near and columns.min() - near <= x <= columns.max() + near
            )
            total += 1
    engine.close()
    assert hits >= 0.75 * total, f"{hits} of {total}"


def embeddings(engine: harness.Engine, picture: np.ndarray) -> tuple[np.ndarray, list]:
    engine.reset()
    info = engine.prompt(engine.marker() + "Hi", [picture])
    return harness.image_embeddings(engine).numpy(), info.spans
