"""Several conversations on one context: each as if it were alone, whatever happens to the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Models, bundled_files, engine_method, greedy, open_engine, pages
from raw import Raw

from pyaircache.engine import STAGE_PREFILL, Engine, EngineModel, EnginePool, Message, Sampling
from pyaircache.errors import ArgumentError, CancelledError, ContextError, StateError

N_TOKENS = 8
KEEPS = (0.1, 1.0, 0.5, 0.05)  # of page 0, 1, ...

Made = Callable[..., EnginePool]


@pytest.fixture(scope="module")
def files(models: Models) -> tuple[Path, Path]:
    """The bundled model in F32."""
    model = models("pages-vl")
    return model.text, model.mmproj


@pytest.fixture(scope="module")
def model(files: tuple[Path, Path]) -> Iterator[EngineModel]:
    model = EngineModel(*files, n_threads=1, flash_attn=0)
    yield model
    model.close()


@pytest.fixture
def make(model: EngineModel) -> Made:
    def make_one(n_engines: int = 4, **options: Any) -> EnginePool:
        defaults = {"n_ctx": 768, "n_threads": 1, "n_ubatch": 64, "cache_type_k": "f32", "cache_type_v": "f32"}
        return EnginePool(model, n_engines, **({"flash_attn": 0} | defaults | options))

    return make_one


def begin(engine: Engine, page: int, **options: Any) -> None:
    """Evaluates a page's question, and compresses as KEEPS says."""
    pages()[page].ask(engine, observe=KEEPS[page] < 1, **options)
    if KEEPS[page] < 1:
        engine.compress(engine_method(KEEPS[page]))


@pytest.fixture(scope="module")
def alone(files: tuple[Path, Path]) -> Callable[[int, int], tuple[list[int], np.ndarray]]:
    """What an engine of its own answers: (page, threads) -> tokens and the logits that chose each."""
    known: dict[tuple[int, int], tuple[list[int], np.ndarray]] = {}

    def ask(page: int, n_threads: int) -> tuple[list[int], np.ndarray]:
        if (page, n_threads) not in known:
            engine = open_engine(*files, n_ctx=768, n_threads=n_threads, n_ubatch=64)
            begin(engine, page)
            known[page, n_threads] = greedy(engine, N_TOKENS)
            engine.close()
        return known[page, n_threads]

    return ask


def together(pool: EnginePool, engines: list[Engine], count: int = N_TOKENS) -> list[tuple[list[int], np.ndarray]]:
    """As `greedy`, one step for all at a time."""
    tokens: list[list[int]] = [[] for _ in engines]
    rows = [[engine.logits()] for engine in engines]
    while True:
        for mine, engine in zip(tokens, engines, strict=True):
            mine.append(engine.sample()[0])
        if len(tokens[0]) == count:
            return [(mine, np.stack(row)) for mine, row in zip(tokens, rows, strict=True)]
        assert pool.decode([(e, mine[-1]) for e, mine in zip(engines, tokens, strict=True)]) == [None] * len(engines)
        for row, engine in zip(rows, engines, strict=True):
            row.append(engine.logits())


@pytest.mark.parametrize("n_threads", [1, 2])
def test_together_as_alone(make: Made, alone: Any, n_threads: int) -> None:
    """Pages of different lengths, kept in different shares: the same tokens.

    Prompts give the same bits. Where several tokens are decoded at once, ggml multiplies matrices in another order.
    """
    pool = make(n_threads=n_threads)
    engines = [pool.engine() for _ in KEEPS]
    for page in (2, 0, 3, 1):
        begin(engines[page], page)
    for page, (tokens, logits) in enumerate(together(pool, engines)):
        expected, values = alone(page, n_threads)
        assert tokens == expected
        np.testing.assert_array_equal(logits[0], values[0])
        np.testing.assert_allclose(logits, values, rtol=0, atol=2e-5)


def test_the_model_as_it_is_shipped() -> None:
    """Q8_0 with an F16 cache and flash attention."""
    model = EngineModel(*bundled_files(), n_threads=1)
    pool = EnginePool(model, 4, n_ctx=768, n_threads=1)
    engines = [pool.engine() for _ in KEEPS]
    for page, engine in enumerate(engines):
        begin(engine, page)
    found = [tokens for tokens, _ in together(pool, engines)]
    for page, tokens in enumerate(found):
        engine = Engine(model, n_ctx=768, n_threads=1)
        begin(engine, page)
        assert greedy(engine, N_TOKENS)[0] == tokens
        engine.close()


def test_a_prompt_gives_way_to_the_others(make: Made, alone: Any) -> None:
    """Between two of its ubatches the others take a step; neither notices."""
    pool = make()
    first, second, late = (pool.engine() for _ in range(3))
    begin(first, 0)
    begin(second, 1)
    tokens: list[list[int]] = [[], []]
    stages = []

    def step(stage: int, done: int, total: int) -> None:
        stages.append(stage)
        if stage == STAGE_PREFILL and len(tokens[0]) < N_TOKENS:
            for mine, engine in zip(tokens, (first, second), strict=True):
                mine.append(engine.sample()[0])
            assert pool.decode([(first, tokens[0][-1]), (second, tokens[1][-1])]) == [None, None]

    begin(late, 2, progress=step)
    assert stages.count(STAGE_PREFILL) > 3
    for page, mine in enumerate(tokens):
        assert len(mine) > 3 and mine == alone(page, 1)[0][: len(mine)]
    assert greedy(late, N_TOKENS)[0] == alone(2, 1)[0]


def test_threads_take_turns(make: Made, alone: Any) -> None:
    """A prompt in one thread, steps in another."""
    pool = make()
    first, late = pool.engine(), pool.engine()
    begin(first, 0)
    thread = threading.Thread(target=begin, args=(late, 2))
    thread.start()
    assert greedy(first, N_TOKENS)[0] == alone(0, 1)[0]
    thread.join()
    assert greedy(late, N_TOKENS)[0] == alone(2, 1)[0]


def test_what_fails_for_one_does_not_concern_the_others(make: Made, alone: Any) -> None:
    pool = make(3)
    first, second, third = (pool.engine() for _ in range(3))
    begin(first, 0)
    begin(second, 1)
    third.set_sampling(Sampling(grammar='root ::= "x"'))
    begin(third, 2)
    token = first.sample()[0]
    wrong, none, bad = pool.decode([(third, token), (first, token), (second, -1)])
    assert isinstance(wrong, ArgumentError) and "grammar" in str(wrong)
    assert none is None
    assert isinstance(bad, ArgumentError) and "does not exist" in str(bad)
    second.decode(alone(1, 1)[0][0])  # as if nothing had been
    assert [first.sample()[0], second.sample()[0]] == [alone(page, 1)[0][1] for page in (0, 1)]


def test_a_full_conversation_and_a_free_one(make: Made) -> None:
    pool = make(2, n_ctx=256)
    full, free = pool.engine(), pool.engine()
    for engine, length in ((full, 1), (free, 50)):
        text = engine.apply_template([Message("user", "a " * length)])
        engine.prompt(text)
    while full.stats().n_free:
        full.decode(5)
    error, none = pool.decode([(full, 5), (free, 5)])
    assert isinstance(error, ContextError) and none is None


def test_one_is_cancelled(make: Made, alone: Any) -> None:
    pool = make(2)
    first, second = pool.engine(), pool.engine()
    begin(first, 0)

    def cancel(stage: int, done: int, total: int) -> None:
        if stage == STAGE_PREFILL and done > 100:
            second.cancel()

    with pytest.raises(CancelledError):
        begin(second, 1, progress=cancel)
    assert greedy(first, N_TOKENS)[0] == alone(0, 1)[0]
    begin(second, 1)
    assert greedy(second, N_TOKENS)[0] == alone(1, 1)[0]


def test_engines_come_and_go(make: Made, alone: Any) -> None:
    pool = make(2)
    first, second = pool.engine(), pool.engine()
    with pytest.raises(StateError, match="all 2 engines"):
        pool.engine()
    begin(first, 0)
    begin(second, 1)
    first.close()
    third = pool.engine()
    assert third.stats().n_past == 0
    begin(third, 2)
    assert [found for found, _ in together(pool, [third, second])] == [alone(2, 1)[0], alone(1, 1)[0]]
    pool.close()
    assert third.stats().n_past > 0  # engines hold the context
    with pytest.raises(StateError, match="closed"):
        pool.engine()


def test_wrong_calls(make: Made, model: EngineModel) -> None:
    pool, other = make(2), make(2)
    engine, stranger = pool.engine(), other.engine()
    n_engines_before = model.info().n_engines
    with pytest.raises(ArgumentError, match="another|not of this pool"):
        pool.decode([(stranger, 1)])
    with pytest.raises(ArgumentError, match="two steps"):
        pool.decode([(engine, 1), (engine, 1)])
    assert pool.decode([]) == []
    for n_engines in (0, -1, 257):
        with pytest.raises(ArgumentError, match="n_engines"):
            make(n_engines)
    with pytest.raises(ArgumentError, match=r"n_engines \* n_ctx"):
        make(256, n_ctx=1 << 24)
    assert model.info().n_engines <= n_engines_before  # a pool without engines is none


def test_the_border(model: EngineModel) -> None:
    """Null pointers are refused."""
    raw = Raw()
    lib, ffi = raw.lib, raw.ffi
    out = ffi.new("pac_pool **")
    assert lib.pac_pool_new(ffi.NULL, ffi.NULL, 2, out) == lib.PAC_ERR_ARGUMENT
    assert lib.pac_pool_new(model.pointer, ffi.NULL, 2, ffi.NULL) == lib.PAC_ERR_ARGUMENT
    assert lib.pac_pool_engine(ffi.NULL, ffi.NULL) == lib.PAC_ERR_ARGUMENT
    assert lib.pac_pool_decode(ffi.NULL, ffi.NULL, 0) == lib.PAC_ERR_ARGUMENT
    lib.pac_pool_free(ffi.NULL)
    assert lib.pac_pool_new(model.pointer, raw.params(n_ctx=256)[1], 2, out) == 0
    steps = ffi.new("struct pac_step[1]")
    assert lib.pac_pool_decode(out[0], steps, 1) == lib.PAC_ERR_ARGUMENT and "no engine" in raw.error()
    assert lib.pac_pool_decode(out[0], ffi.NULL, 1) == lib.PAC_ERR_ARGUMENT
    lib.pac_pool_free(out[0])
    raw.close()
