"""One model for several engines, in one thread and in several; and the image embeddings that it keeps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from harness import bundled_files, engine_method, image_embeddings, pages
from raw import Raw

from pyaircache.engine import STAGE_ENCODE, STAGE_PREFILL, Engine, EngineModel, PromptInfo, Sampling
from pyaircache.errors import ArgumentError, CancelledError, ContextError, StateError

Made = Callable[..., Engine]


@pytest.fixture
def model() -> Iterator[EngineModel]:
    model = EngineModel(*bundled_files(), n_threads=1)
    yield model
    model.close()


@pytest.fixture
def make() -> Iterator[Made]:
    """Engines on a model, closed after the test."""
    made: list[Engine] = []

    def make_one(model: EngineModel, **options: Any) -> Engine:
        made.append(Engine(model, **({"n_ctx": 768, "n_threads": 1, "keep_embeddings": True} | options)))
        return made[-1]

    yield make_one
    for engine in made:
        engine.close()


def answer(engine: Engine, page: int, keep: float = 0.2) -> tuple[list[int], np.ndarray]:
    """Tokens of a compressed answer, and the logits behind them."""
    pages()[page].ask(engine)
    engine.compress(engine_method(keep))
    tokens = []
    for _ in range(6):
        tokens.append(engine.sample()[0])
        engine.decode(tokens[-1])
    return tokens, engine.logits()


# -- engines on one model ---------------------------------------------------------------------------------------------


def test_the_model_s_own_numbers(model: EngineModel, make: Made) -> None:
    assert model.info().n_engines == 0 and model.info().vision
    engine = make(model, n_ctx=512, cache_type_k="f32")
    other = make(model, n_ctx=1024, n_batch=64)
    info, mine = model.info(), engine.info()
    assert info.n_engines == 2
    assert (mine.n_ctx, other.info().n_ctx) == (512, 1024)
    for name in set(vars(info)) & set(vars(mine)):
        assert getattr(info, name) == getattr(mine, name), name
    other.close()
    assert model.info().n_engines == 1


def test_each_engine_has_its_own_conversation(model: EngineModel, make: Made) -> None:
    alone = [answer(make(model), page) for page in (0, 1)]
    first, second = make(model), make(model)
    pages()[0].ask(first)
    pages()[1].ask(second)
    second.set_sampling(Sampling(grammar='root ::= "x"'))
    for engine, (tokens, _) in zip((first, second), alone, strict=True):
        engine.compress(engine_method(0.2))
        if engine is second:
            engine.set_sampling(None)
        for token in tokens:
            assert engine.sample()[0] == token
            engine.decode(token)
    np.testing.assert_array_equal(first.logits(), alone[0][1])
    np.testing.assert_array_equal(second.logits(), alone[1][1])
    with pytest.raises(ContextError):
        make(model, n_ctx=256).prompt("word " * 400)


@pytest.mark.parametrize("kept", [0, 1 << 28], ids=["encoded each time", "embeddings kept"])
def test_threads_give_the_answers_that_each_gives_alone(make: Made, kept: int) -> None:
    model = EngineModel(*bundled_files(), n_threads=1, image_cache_bytes=kept)
    work = [[0, 1, 2], [2, 0, 1]]
    alone = {page: answer(make(model), page) for page in range(3)}
    model.forget_images()
    got: dict[tuple[int, int], tuple[list[int], np.ndarray]] = {}
    engines = [make(model), make(model)]
    model.close()  # the engines hold it

    def run(i: int) -> None:
        for page in work[i]:
            got[i, page] = answer(engines[i], page)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 6
    for (_, page), (tokens, logits) in got.items():
        assert tokens == alone[page][0]
        np.testing.assert_array_equal(logits, alone[page][1])


def test_engines_outlive_their_model(model: EngineModel, make: Made) -> None:
    engine = make(model)
    expected = answer(engine, 0)[0]
    model.close()
    assert model.closed and answer(engine, 0)[0] == expected
    for call in (model.info, model.forget_images, lambda: make(model)):
        with pytest.raises(StateError, match="the model is closed"):
            call()
    model.close()


def test_options_of_the_wrong_one(model: EngineModel) -> None:
    with pytest.raises(ArgumentError, match="mmproj goes with the path"):
        Engine(model, bundled_files()[1])
    with pytest.raises(ArgumentError, match="no option is called 'image_cache_bytes'; there are n_ctx"):
        Engine(model, image_cache_bytes=0)
    with pytest.raises(ArgumentError, match="no option is called 'n_ctx'; there are n_gpu_layers"):
        EngineModel(*bundled_files(), n_ctx=512)
    with pytest.raises(ArgumentError, match="image_cache_bytes is -1"):
        EngineModel(*bundled_files(), image_cache_bytes=-1)


def test_at_the_border() -> None:
    """Struct sizes, a model that was freed, and one that does not load."""
    first = Raw()
    ffi, lib = first.ffi, first.lib
    out = ffi.new("pac_model **")
    params, engine_params = first.params()
    for size in (0, 8, params.size - 1, params.size + 1, 2**32 - 1):
        params.size = size
        assert lib.pac_model_new(params, out) == lib.PAC_ERR_ARGUMENT
        assert f"pac_model_params.size is {size}" in first.error() and out[0] == ffi.NULL
    params, _ = first.params(model="nowhere.gguf")
    assert lib.pac_model_new(params, out) == lib.PAC_ERR_FILE

    assert lib.pac_model_new(first.params()[0], out) == 0
    second = Raw(shared=out[0])
    assert second.status == 0 and second.prompt("Hello") == 0
    engine_params.size = 4
    engine = ffi.new("pac_engine **")
    assert lib.pac_engine_new(out[0], engine_params, engine) == lib.PAC_ERR_ARGUMENT
    assert "pac_engine_params.size is 4" in first.error() and engine[0] == ffi.NULL
    assert lib.pac_engine_new(out[0], ffi.NULL, engine) == 0  # the defaults
    lib.pac_engine_free(engine[0])
    lib.pac_model_free(out[0])
    lib.pac_model_free(out[0])  # while an engine holds it this does nothing
    assert lib.pac_engine_new(out[0], ffi.NULL, engine) == lib.PAC_ERR_ARGUMENT
    assert first.error() == "the model was freed"
    sampling = ffi.new("struct pac_sampling *", lib.pac_sampling_default())
    sampling.size += 1
    assert lib.pac_sampling_set(second.ptr, sampling) == lib.PAC_ERR_ARGUMENT
    assert second.prompt("Hello again") == 0
    second.close()
    first.close()


# -- kept embeddings --------------------------------------------------------------------------------------------------


def ask(engine: Engine, *pictures: np.ndarray, observe: bool = True) -> tuple[PromptInfo, np.ndarray]:
    engine.reset()
    info = engine.prompt(engine.marker() * len(pictures) + "What is this?", list(pictures), observe=observe)
    return info, engine.logits()


def random_picture(seed: int, height: int = 90, width: int = 120) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_a_picture_is_encoded_once(model: EngineModel, make: Made) -> None:
    engine, picture = make(model), random_picture(0)
    first, logits = ask(engine, picture)
    embeddings = image_embeddings(engine)
    assert (first.n_encoded, first.n_reused) == (1, 0)
    size = 4 * embeddings.numel()
    assert (model.info().n_kept_images, model.info().image_cache_bytes) == (1, size)

    for other in (engine, make(model)):
        again, same = ask(other, picture.copy())
        assert (again.n_encoded, again.n_reused) == (0, 1)
        assert again.spans == first.spans and again.n_past == first.n_past
        np.testing.assert_array_equal(same, logits)
        assert (image_embeddings(other) == embeddings).all()
        np.testing.assert_array_equal(other.score(engine_method(0.5)).scores, engine.score(engine_method(0.5)).scores)

    model.forget_images()
    assert model.info().image_cache_bytes == 0
    info, same = ask(engine, picture)
    assert (info.n_encoded, info.n_reused) == (1, 0)
    np.testing.assert_array_equal(same, logits)


def test_what_makes_another_picture(model: EngineModel, make: Made) -> None:
    """Content, size, and whether it is a video; not its place in the prompt, nor the text."""
    engine, picture = make(model), random_picture(0)
    ask(engine, picture)
    changed = picture.copy()
    changed[-1, -1, -1] ^= 1
    turned = picture.reshape(picture.shape[1], picture.shape[0], 3)  # the same bytes
    for other in (changed, turned, picture[None]):
        info, logits = ask(engine, other)
        assert (info.n_encoded, info.n_reused) == (1, 0)
        assert ask(engine, other)[0].n_encoded == 0
        fresh = make(model)
        model.forget_images()
        np.testing.assert_array_equal(ask(fresh, other)[1], logits)
        ask(engine, picture)
    info, logits = ask(engine, changed, picture, random_picture(7), picture)
    assert (info.n_encoded, info.n_reused) == (2, 2)
    info, same = ask(engine, changed, picture, random_picture(7), picture)
    assert (info.n_encoded, info.n_reused) == (0, 4)
    np.testing.assert_array_equal(same, logits)
    assert engine.prompt("Hello").n_reused == 0


def test_a_picture_twice_in_one_prompt(make: Made) -> None:
    model, picture = EngineModel(*bundled_files(), n_threads=1, image_cache_bytes=0), random_picture(0)
    expected = ask(make(model), picture, picture)
    assert (expected[0].n_encoded, expected[0].n_reused) == (2, 0)
    kept = EngineModel(*bundled_files(), n_threads=1)
    info, logits = ask(make(kept), picture, picture)
    assert (info.n_encoded, info.n_reused) == (1, 1)
    np.testing.assert_array_equal(logits, expected[1])
    for one in (model, kept):
        one.close()


def test_memory_is_bounded(make: Made) -> None:
    """The least recently used picture goes first; one that is larger than the limit is not kept at all."""
    size = 12 * 256 * 4  # of the embeddings of 120 x 90 pixels
    with_room_for_two = EngineModel(*bundled_files(), n_threads=1, image_cache_bytes=2 * size + 100)
    engine = make(with_room_for_two)
    a, b, c = (random_picture(seed) for seed in range(3))
    assert [ask(engine, p)[0].n_encoded for p in (a, b, a, c, a, b, c)] == [1, 1, 0, 1, 0, 1, 1]
    assert with_room_for_two.info().image_cache_bytes == 2 * size
    assert ask(engine, random_picture(0, 300, 200))[0].n_encoded == 1
    assert with_room_for_two.info().n_kept_images == 2
    assert ask(engine, random_picture(0, 300, 200))[0].n_encoded == 1
    assert ask(engine, c)[0].n_encoded == 0
    with_room_for_two.close()

    none = EngineModel(*bundled_files(), n_threads=1, image_cache_bytes=0)
    engine = make(none)
    assert [ask(engine, a)[0].n_encoded for _ in range(2)] == [1, 1]
    assert none.info().n_kept_images == 0
    none.close()


class Cancel(Exception):
    pass


def test_what_was_not_encoded_to_its_end_is_not_kept(model: EngineModel, make: Made) -> None:
    engine, picture = make(model), random_picture(0, 600, 800)
    stages = []

    def cancel_from_another_thread(stage: int, done: int, total: int) -> None:
        stages.append(stage)
        if stage == STAGE_ENCODE:
            thread = threading.Thread(target=engine.cancel)
            thread.start()
            thread.join()

    with pytest.raises(CancelledError):
        engine.prompt(engine.marker() + "?", [picture], progress=cancel_from_another_thread)
    assert stages[-1] == STAGE_ENCODE and model.info().n_kept_images == 0

    def fail_behind_the_picture(stage: int, done: int, total: int) -> None:
        if stage == STAGE_PREFILL and model.info().n_kept_images:
            raise Cancel

    with pytest.raises(Cancel):
        engine.prompt(engine.marker() + "?", [picture], progress=fail_behind_the_picture)
    assert model.info().n_kept_images == 1  # this one was
    assert ask(engine, picture)[0].n_encoded == 0


def test_one_engine_is_cancelled_while_another_encodes(model: EngineModel, make: Made) -> None:
    """Whether it waits for the vision tower or has it: it stops, and the other one does not notice."""
    large, engine, other = random_picture(0, 560, 840), make(model, n_ctx=1024), make(model, n_ctx=1024)
    expected = ask(engine, large)[1]
    model.forget_images()

    encoding, results = threading.Event(), {}

    def encode() -> None:
        engine.reset()
        engine.prompt(engine.marker() + "What is this?", [large], observe=True, progress=lambda *_: encoding.set())
        results["logits"] = engine.logits()

    def wait_for_it() -> None:
        try:
            other.prompt(other.marker() + "?", [random_picture(9, 560, 840)])
            results["other"] = "answered"
        except CancelledError:
            results["other"] = "cancelled"

    threads = [threading.Thread(target=encode), threading.Thread(target=wait_for_it)]
    threads[0].start()
    assert encoding.wait(60)
    threads[1].start()
    while threads[1].is_alive():
        other.cancel()
    for thread in threads:
        thread.join()
    assert results["other"] == "cancelled" and other.stats().n_past == 0
    np.testing.assert_array_equal(results["logits"], expected)
