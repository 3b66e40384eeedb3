"""Tiny random models of every family, converted by llama.cpp's converter, against Hugging Face's: pictures, how many
tokens they are, logits, and then the compression as for the models of the other tests."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
from families import check_method, engine_method
from harness import TOKENS, decode
from PIL import Image
from tiny_vlm import random_picture
from vlm import NAMES, VlmFamily, ggml_rounding

# Width and height: tiny, tall, wide, with and without resizing, one or several tiles
SIZES = [(9, 13), (112, 112), (61, 301), (640, 90), (211, 97), (500, 375), (336, 224), (30, 500)]
METHODS = {
    "keep 0.1": {"keep": 0.1},
    "keep 0.4": {"keep": 0.4, "alpha": 0.7},
    "snapkv": {"keep": 0.25, "window": "last:8", "keys": "causal", "pool": "avg", "allocation": "uniform"},
    "sums, merged": {"keep": 0.25, "window": "all", "keys": "causal", "allocation": "uniform", "merge": 1.0},
}

Families = Callable[[str], VlmFamily]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Families:
    """Families by name, made when first asked for."""
    done: dict[str, VlmFamily] = {}

    def get(name: str) -> VlmFamily:
        if name not in done:
            done[name] = VlmFamily(name, tmp_path_factory.mktemp("vlm"))  # llama.cpp looks for names of models in it
        return done[name]

    return get


@pytest.fixture(params=NAMES)
def family(request: pytest.FixtureRequest, made: Families) -> VlmFamily:
    return made(request.param)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_features(family: VlmFamily, size: tuple[int, int]) -> None:
    """From the same picture, through processor, vision tower and projector of either side."""
    picture = random_picture(np.random.default_rng(size), *size)
    got, pixels = family.embed(picture), family.vlm.pixels(picture)
    want = family.vlm.features(pixels)
    assert got.shape == want.shape
    top = want.abs().max().item()
    np.testing.assert_allclose(got, want, atol=1.5e-3 * top, rtol=0)
    with ggml_rounding(family.vlm.model) if family.vlm.rounds else nullcontext():
        want = family.vlm.features(pixels)
    np.testing.assert_allclose(got, want, atol=5e-4 * top, rtol=0)
    assert (got - want).abs().mean() < 5e-5 * top


def test_token_counts(family: VlmFamily) -> None:
    """Of 100 random sizes, half of them in the range where every pixel counts."""
    rng, engine = np.random.default_rng(0), family.engine()
    sizes = np.concatenate([rng.integers(8, 300, (50, 2)), np.exp(rng.uniform(np.log(20), np.log(1800), (50, 2)))])
    for width, height in sizes.astype(int).tolist():
        ids = family.vlm.ids(f"a{family.vlm.image}b", [(width, height)])
        got = engine.count_tokens(f"a{engine.marker()}b", [np.zeros((height, width, 3), np.uint8)])
        assert got == ids.numel(), (width, height)


@pytest.mark.parametrize("n_images", [1, 3])
def test_logits(family: VlmFamily, n_images: int) -> None:
    """Of the whole prompt with its pictures, from pixels to logits, on either side."""
    case, engine = family.case(0, n_images), family.engine()
    case.ask(engine)
    pictures = [Image.fromarray(picture) for picture in case.pictures]
    logits = family.vlm.logits(case.ids, pictures)[-1]
    np.testing.assert_allclose(engine.logits(), logits, atol=1e-3 * logits.abs().max().item(), rtol=0)


@pytest.mark.parametrize("n_images", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_compression(family: VlmFamily, method: str, n_images: int) -> None:
    """Logits of the prompt and after the eviction, scores, windows, budgets and kept sets."""
    check_method(family, engine_method(**METHODS[method]), n_images)


def test_keep_all(family: VlmFamily) -> None:
    """With nothing to evict, nothing changes, not by a bit."""
    case, engine = family.case(0, 3), family.engine()
    rows = []
    for compress in (False, True):
        case.ask(engine, observe=compress)
        if compress:
            _, result = engine.compress(engine_method(keep=1.0))
            assert [kept.size for kept in result.kept] == [case.capture.visual.size] * case.capture.n_layers
        rows.append(np.concatenate([engine.logits()[None], decode(engine, TOKENS)]))
    np.testing.assert_array_equal(*rows)
