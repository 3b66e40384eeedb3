"""Log probabilities, a prompt's tokens, tokens of a text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from harness import bundled_files, open_engine, pages

from pyaircache.engine import Engine, Sampling
from pyaircache.errors import ArgumentError


@pytest.fixture(scope="module")
def opened_once() -> Iterator[Engine]:
    engine = open_engine(*bundled_files(), "f16", n_ctx=1024)
    yield engine
    engine.close()


@pytest.fixture
def engine(opened_once: Engine) -> Engine:
    """Asked about the first page, greedy."""
    opened_once.set_sampling(None)
    pages()[0].ask(opened_once)
    return opened_once


def test_logprobs(engine: Engine) -> None:
    logits = engine.logits().astype(np.float64)
    expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    engine.set_sampling(Sampling(temperature=2.0, top_k=2, grammar='root ::= "yes" | "no"'))  # changes nothing here

    got = engine.logprobs(5, token=7)
    order = np.lexsort((np.arange(len(logits)), -logits))
    np.testing.assert_array_equal(got.ids, order[:5])
    np.testing.assert_allclose(got.values, expected[order[:5]], atol=1e-9)
    assert got.value == pytest.approx(expected[7], abs=1e-9)

    everything = engine.logprobs(len(logits))
    np.testing.assert_array_equal(everything.ids, order)
    assert np.exp(everything.values).sum() == pytest.approx(1)
    assert everything.value is None
    assert engine.logprobs().ids.size == 0
    for wrong in ({"n": -1}, {"n": len(logits) + 1}, {"token": -1}, {"token": len(logits)}):
        with pytest.raises(ArgumentError, match="must be in"):
            engine.logprobs(**wrong)


def test_prompt_tokens(engine: Engine) -> None:
    """Ids and pieces of a prompt, and where its spans are."""
    page = pages()[0]
    info = page.ask(engine)
    ids = engine.prompt_tokens()
    assert len(ids) == info.n_tokens
    visual = np.zeros(len(ids), bool)
    for span in info.spans:
        visual[span.first : span.first + span.n_tokens] = True
    np.testing.assert_array_equal(ids == -1, visual)
    said = b"".join(engine.token_bytes(int(token), special=True) for token in ids[~visual]).decode()
    assert page.question in said and "<|im_start|>user" in said
    engine.prompt("And then?")
    assert engine.prompt_tokens().tolist() == engine.tokenize("And then?", special=True).tolist()


def test_tokenize(engine: Engine) -> None:
    name = "<|im_end|>"
    [end] = engine.tokenize(name, special=True)
    assert engine.token_bytes(int(end)) == b"" and engine.token_bytes(int(end), special=True) == name.encode()
    plain = engine.tokenize(name)
    assert len(plain) > 1 and b"".join(map(engine.token_bytes, plain.tolist())).decode() == name
    assert engine.tokenize("").size == 0
