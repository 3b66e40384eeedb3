"""The engine against the reference: both tools are scripts, so their folders are put on the path."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "reference")]

import harness  # noqa: E402

from pyaircache.engine.engine import Engine  # noqa: E402

torch.set_num_threads(1)  # the models are so small that more threads only wait for each other


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> harness.Models:
    """Models in F32, made when first asked for: "pages-vl", or a shape of tiny.SHAPES and a seed as in "gqa-0"."""
    made: dict[str, harness.Model] = {}

    def get(name: str) -> harness.Model:
        if name not in made and name.endswith(harness.TWO_THREADS):
            made[name] = harness.two_threads(get(name.removesuffix(harness.TWO_THREADS)))
        elif name not in made:
            made[name] = harness.make_model(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture
def opened() -> Iterator[Callable[..., Engine]]:
    """Opens engines that are closed after the test: opened(text, mmproj, cache=, flash=, ...)."""
    engines: list[Engine] = []

    def open_one(*files: Path, **options: Any) -> Engine:
        engines.append(harness.open_engine(*files, **options))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.close()
