"""Ten questions in a row about the same pictures, from an archive, against a fresh prefill of the same conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from families import engine_method
from harness import greedy, lists, open_engine
from tiny_vlm import random_picture
from vlm import NAMES, VlmFamily

from pyaircache import ContextError
from pyaircache.engine import ARCHIVES, Engine, EngineMethod, Part
from pyaircache.errors import ArgumentError, PyAircacheError

QUESTIONS = 10
METHOD = engine_method(keep=0.2)

Families = Callable[[str], VlmFamily]
Opened = Callable[..., Engine]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Families:
    """Families by name, made when first asked for."""
    done: dict[str, VlmFamily] = {}

    def get(name: str) -> VlmFamily:
        if name not in done:
            done[name] = VlmFamily(name, tmp_path_factory.mktemp("vlm"))
        return done[name]

    return get


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [np.asarray(random_picture(rng, *size)) for size in [(140, 106), (60, 119), (112, 112)][:count]]


def first(engine: Engine, count: int) -> str:
    """A first question about so many pictures, with text between them."""
    shown = " and this ".join([engine.marker()] * count)
    return f"<|im_start|>user\nLook: {shown}\nWhat is the value of KIWI?<|im_end|>\n<|im_start|>assistant\n"


def question(i: int) -> str:
    return (
        f"<|im_end|>\n<|im_start|>user\nAnd number {i}, of {'all ' * (i % 3)}these?<|im_end|>\n<|im_start|>assistant\n"
    )


def answered(
    engine: Engine, parts: Sequence[Part], images: Sequence[np.ndarray], method: EngineMethod | bool
) -> tuple[list[int], np.ndarray, list[list[int]], list[list[int]]]:
    """Tokens of the answer, the logits that chose them, kept sets, and observers."""
    engine.conversation(parts, images, observe=method)
    if not method:
        return *greedy(engine, 3), [], []
    scores, result = engine.compress(method)
    tokens, rows = greedy(engine, 3)
    return tokens, rows, lists(result.kept), lists(scores.elite)


def check_questions(again: Engine, fresh: Engine, count: int, method: EngineMethod = METHOD) -> None:
    """Also after a failed question, and with another picture in the middle."""
    images, parts = pictures(count), [first(again, count)]
    for i in range(QUESTIONS):
        if i:
            more = i == 6
            images += pictures(1)[:1] if more else []
            parts.append(f" {again.marker()}" * more + question(i))
        fresh.reset()
        got, expected = (answered(engine, parts, images, method) for engine in (again, fresh))
        assert got[0] == expected[0], i
        np.testing.assert_array_equal(got[1], expected[1], str(i))
        assert got[2:] == expected[2:], i
        archive = again.archive()
        assert archive.why == "" and archive.kind != "none"
        assert (archive.n_restored > 0) == (i > 0)
        if i not in (0, 6):
            assert archive.n_restored == archive.n_tokens and archive.ms_make == 0.0
        parts.append(got[0])


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_families(made: Families, opened: Opened, name: str, count: int) -> None:
    model = made(name).model
    options = {"n_ctx": 2048, "cache": "f32"}
    again = opened(model.text, model.mmproj, archive=ARCHIVES.index("ram"), **options)
    check_questions(again, opened(model.text, model.mmproj, **options), count)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cache", ["f16", "q8_0"])
@pytest.mark.parametrize("kind", ["ram", "device", "file", "auto"])
def test_archives(made: Families, opened: Opened, tmp_path: Path, kind: str, cache: str, threads: int) -> None:
    """Each place, with flash attention."""
    model = made(NAMES[0]).model
    options = {"n_ctx": 2048, "cache": cache, "flash": True, "n_threads": threads}
    path = str(tmp_path / "it.archive") if kind == "file" else None
    again = opened(model.text, model.mmproj, archive=ARCHIVES.index(kind), archive_path=path, **options)
    check_questions(again, opened(model.text, model.mmproj, **options), 2)
    assert kind in (again.archive().kind, "auto")
    assert [one.name for one in tmp_path.iterdir()] == (["it.archive"] if path else [])
    again.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "method",
    [
        {"keep": 0.25, "window": "last:8", "keys": "causal", "pool": "avg", "allocation": "uniform"},
        {"keep": 0.25, "window": "visual:20"},
        {"keep": 0.25, "window": "all", "keys": "causal", "allocation": "uniform"},
        {"keep": 0.25, "allocation": "vl", "window": "text"},
    ],
    ids=["last", "visual", "all", "vl"],
)
def test_windows(made: Families, opened: Opened, method: dict[str, object]) -> None:
    """What observes stands before the end of the last picture, too."""
    model = made(NAMES[0]).model
    options = {"n_ctx": 2048, "cache": "f32"}
    again = opened(model.text, model.mmproj, archive=ARCHIVES.index("ram"), **options)
    check_questions(again, opened(model.text, model.mmproj, **options), 3, engine_method(**method))


@pytest.fixture
def engine(made: Families, opened: Opened) -> Engine:
    model = made(NAMES[0]).model
    return opened(model.text, model.mmproj, archive=ARCHIVES.index("ram"), n_ctx=2048)


def test_another_method_may_need_all_again(engine: Engine) -> None:
    """It is evaluated with what it needs, and the archive has it from then on."""
    images, parts = pictures(2), [first(engine, 2)]
    answered(engine, parts, images, engine_method(keep=0.2, window="last:4"))
    info = engine.conversation([*parts, question(1)], images, observe=METHOD)
    assert engine.archive().n_restored == 0 and "between" in engine.archive().why
    assert info.n_encoded == 0 and engine.archive().ms_make > 0
    engine.conversation([*parts, question(2)], images, observe=METHOD)
    assert engine.archive().n_restored > 0 and engine.archive().why == ""


def test_keep_all(engine: Engine) -> None:
    """A question that is not compressed sees all, makes no archive, and leaves one that is there."""
    images, parts = pictures(1), [first(engine, 1)]
    engine.prompt(parts[0], images)
    plain = engine.logits()
    engine.conversation(parts, images)
    np.testing.assert_array_equal(engine.logits(), plain)
    assert engine.archive().kind == "none"
    answered(engine, parts, images, METHOD)
    answered(engine, [*parts, question(1)], images, False)
    assert engine.archive().n_restored > 0
    logits = engine.logits()
    engine.reset()
    assert engine.archive().kind == "none"
    answered(engine, [*parts, question(1)], images, False)
    np.testing.assert_array_equal(engine.logits(), logits)


def test_other_beginnings(engine: Engine) -> None:
    """Another picture, other text before it, or fewer pictures are evaluated; a new conversation on the same is not."""
    one, two, _ = pictures(3)
    head = first(engine, 1)
    answered(engine, [head], [one], METHOD)
    for text, image in [(head, two), ("Now: " + head, one)]:
        answered(engine, [text], [image], METHOD)
        assert engine.archive().n_restored == 0
    answered(engine, [head], [one], METHOD)
    answered(engine, [head.replace("KIWI", "PLUM")], [one], METHOD)
    assert engine.archive().n_restored > 0


@pytest.mark.parametrize("after", [0, 1, 2])
def test_failed_questions_lose_nothing(engine: Engine, after: int) -> None:
    images, parts = pictures(2), [first(engine, 2)]
    tokens, *_ = answered(engine, parts, images, METHOD)
    parts += [tokens, question(1)]
    expected = answered(engine, parts, images, METHOD)

    class StopError(Exception):
        pass

    calls = []

    def stop(*_: object) -> None:
        calls.append(1)
        if len(calls) > after:
            raise StopError

    with pytest.raises(ContextError, match="tokens"):
        engine.conversation(parts, images, reserve=5000, observe=METHOD)
    assert engine.stats().n_past > 0
    if after == 0:
        with pytest.raises(StopError):
            engine.conversation(parts, images, observe=METHOD, progress=stop)
        assert engine.stats().n_past == 0
    with pytest.raises(ArgumentError, match="token is -1"):
        engine.conversation([*parts, [-1]], images, observe=METHOD)
    with pytest.raises(ArgumentError, match="markers"):
        engine.conversation(parts, images[:1], observe=METHOD)
    with pytest.raises(ArgumentError, match="3 images were given, but the parts of the conversation name 2"):
        engine.conversation([*parts, [5]], [*images, images[0]], observe=METHOD)
    got = answered(engine, parts, images, METHOD)
    assert got[0] == expected[0] and got[2:] == expected[2:]
    assert engine.archive().n_restored > 0


def test_a_damaged_file_is_not_used(made: Families, opened: Opened, tmp_path: Path) -> None:
    """All is evaluated again, and the reason said; a new archive is written."""
    model, file = made(NAMES[0]).model, tmp_path / "it"
    engine = opened(
        model.text, model.mmproj, archive=ARCHIVES.index("file"), archive_path=str(file), n_ctx=2048
    )  # fmt: skip
    images, parts = pictures(2), [first(engine, 2)]
    expected = answered(engine, parts, images, METHOD)
    good = file.read_bytes()
    for bad in (good[:100], good[:-1], good[:2000] + bytes([good[2000] ^ 1]) + good[2001:], b"PACARCH\n"):
        file.write_bytes(bad)
        got = answered(engine, parts, images, METHOD)
        assert got[0] == expected[0] and got[2:] == expected[2:]
        assert "archive" in engine.archive().why and engine.archive().n_restored == 0
        answered(engine, parts, images, METHOD)
        assert engine.archive().n_restored > 0
    file.write_bytes(b"somebody else's")
    with pytest.raises(PyAircacheError, match="no archive"):
        answered(engine, parts, images, METHOD)
    assert file.read_bytes() == b"somebody else's"


def test_options(made: Families) -> None:
    model = made(NAMES[0]).model
    for options in ({"archive": 9}, {"archive": ARCHIVES.index("file")}, {"archive_path": "x"}):
        with pytest.raises(ArgumentError, match="archive"):
            open_engine(model.text, model.mmproj, **options)
