"""Whatever is passed in: an answer, or an error of this package in a few words."""

from __future__ import annotations

import dataclasses
import decimal
import fractions
import functools
import inspect
import io
import pathlib
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine
from odd_things import PICTURE, encoded, tried
from PIL import Image

import pyaircache
from pyaircache import (
    All,
    Chat,
    Elite,
    Last,
    Method,
    Pool,
    PyAircacheError,
    PyAircacheWarning,
    Text,
    Video,
    Visual,
    Window,
    convert,
    images,
    model_files,
)
from pyaircache.cli import main, serve
from pyaircache.engine import engine
from pyaircache.engine.protocol import EngineLike


class Hostile:
    """Raises whatever is done with it."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("iter")


class LateImage(Image.Image):
    """A Pillow image of the user's own, which fails when its pixels are needed."""

    def load(self) -> Any:
        raise KeyError("pixels")


def truncated() -> Image.Image:
    return Image.open(io.BytesIO(encoded()[:-40]))


def closed() -> Image.Image:
    picture = PICTURE.copy()
    picture.close()
    return picture


def closed_file() -> io.BytesIO:
    file = io.BytesIO(encoded())
    file.close()
    return file


ODD: list[Any] = [
    None, True, 0, -1, 3.5, float("nan"), float("inf"), 10**400, 1e300, 2 + 1j, decimal.Decimal("0.5"),
    fractions.Fraction(1, 2), np.float32(0.5), np.int64(3), np.bool_(True), np.array(0.5), np.zeros((2, 2)),
    np.zeros((300, 300), object), np.array(["a"]), "", " ", "x" * 100_000, "a\0b", "\ud800", "\udcff.png", b"",
    b"x" * 100_000, bytearray(b"x"), memoryview(b"x"), memoryview(b"abcd")[::2], pathlib.Path("/none/there.png"),
    pathlib.Path("/"), pathlib.PurePosixPath("a\0b"), [], [1], ["a"] * 10_000, (), (1,), (1, 2, 3), set(), {1, 2}, {},
    {"a": 1}, range(3), iter([]), (i for i in range(3)), object(), type, int, len, Hostile(), Hostile, Elite, Elite(),
    Window, Window(), Pool(), Method(), Method, Chat, io.StringIO("text"), io.BytesIO(), closed_file(), closed(),
    truncated(), LateImage(), Image.new("RGB", (0, 5)), Image.new("RGB", (5, 5)), Video([]), Video([1]),
    "data:", "data:image/png;base64", "data:image/png;base64,%%%", "data:image/png;base64," + "A" * 100_000,
    "data:,hello", "http://example.com/page.png",
]  # fmt: skip


@pytest.fixture(scope="module", params=range(len(ODD)), ids=lambda i: f"{i}-{type(ODD[i]).__name__}")
def odd(request: pytest.FixtureRequest) -> Any:
    return ODD[request.param]


@pytest.fixture
def chat(fake: type[FakeEngine]) -> Iterator[Chat]:
    with Chat("fake.gguf", keep=0.5) as chat:
        yield chat


CHAT = [name for name in inspect.signature(Chat).parameters if name not in ("model", "mmproj")]
ASK = [name for name, one in inspect.signature(Chat.ask).parameters.items() if one.kind is one.KEYWORD_ONLY]
CALLED = ("on_progress", "method")  # what a function of the caller's raises comes out
METHOD = [field.name for field in dataclasses.fields(Method)]


@pytest.mark.filterwarnings("ignore::pyaircache.PyAircacheWarning")
def test_chat_takes_any_option(fake, odd):
    for name in CHAT:
        if name not in CALLED or not callable(odd):
            tried(lambda name=name: Chat("fake.gguf", **{name: odd}).close())


def test_paths_of_files(odd):
    tried(lambda: model_files.resolve(odd, None))
    tried(lambda: model_files.resolve(None, odd))


@pytest.mark.filterwarnings("ignore::pyaircache.PyAircacheWarning", "ignore::UserWarning")
def test_ask_takes_anything(chat, odd):
    tried(lambda: chat.ask(odd, "What?"))
    tried(lambda: chat.ask([odd, PICTURE], "What?"))
    tried(lambda: chat.ask(Video(odd), "What?"))
    tried(lambda: chat.ask(Video([odd]), "What?"))
    tried(lambda: chat.ask(None, odd))
    for name in ASK:
        if name not in CALLED or not callable(odd):
            tried(lambda name=name: close(chat.ask(PICTURE, "What?", **{name: odd})))
    part = {"type": "image_url", "image_url": {"url": odd}}
    for content in (odd, [odd], [part], [{**part, "image_url": odd}], [{"type": "text", "text": odd}]):
        tried(lambda content=content: chat.complete([{"role": "user", "content": content}]))
    for messages in (odd, [odd], [{"role": odd}]):
        tried(lambda messages=messages: chat.complete(messages))
    tried(lambda: chat.spans(odd))
    tried(lambda: chat.spans((odd, 28)))
    tried(lambda: chat.spans((28, odd)))
    tried(lambda: chat.reset(timeout=odd))
    assert chat.ask(PICTURE, "What?", keep=0.5) == "hello"


def close(answer: Any) -> None:
    if isinstance(answer, pyaircache.AnswerStream):
        answer.close()


def test_methods_windows_and_pools_take_anything(engine, odd):
    for name in METHOD:
        tried(lambda name=name: str(Method(**{name: odd}).engine(0.5)))
    for kind in (Elite, Last, Text, Visual, Pool):
        for field in dataclasses.fields(kind):
            tried(lambda kind=kind, field=field: kind(**{field.name: odd}))
    for parse in (Window.parse, Pool.parse, Method.named):
        tried(lambda parse=parse: parse(odd))


@pytest.fixture(scope="module")
def report(engine: object) -> pyaircache.Report:
    spans = [pyaircache.Span(0, 0, 6, 3, 2)]
    scores = np.linspace(0, 1, 12, dtype=np.float32).reshape(2, 6)
    kept = [np.array([0, 1], np.int32), np.array([5], np.int32)]
    return pyaircache.Report(0.25, "aircache", 0.9, layers=2, visual_tokens=6, budgets=np.array([2, 1], np.int32),
                             kept=kept, scores=scores, spans=spans)  # fmt: skip


def test_report_methods_take_anything(report, odd):
    tried(lambda: report.heatmap(odd))
    tried(lambda: report.heatmap(PICTURE, odd))
    tried(lambda: report.heatmap([PICTURE], odd))
    tried(lambda: report.ranked(odd))
    tried(lambda: report.divergence(odd))
    report.to_dict(scalars_only=odd is not None)


def test_the_servers_options_take_anything(engine, odd, monkeypatch):
    monkeypatch.setattr("os.execv", lambda *arguments: None)
    tried(lambda: serve.serve(odd))
    tried(lambda: serve.serve([odd]))


def test_conversions_take_anything(odd, tmp_path):
    (tmp_path / "model").mkdir()
    tried(lambda: convert.convert(odd, tmp_path))
    for name in ("outtype", "mmproj_outtype", "only", "name", "pre_tokenizer", "force", "verbose"):
        tried(lambda name=name: convert.convert(tmp_path / "model", tmp_path / "out", **{name: odd}))
    if not isinstance(odd, (str, pathlib.PurePath)):
        tried(lambda: convert.convert(tmp_path / "model", odd))


# -- types -------------------------------------------------------------------------------------------------------------


def public() -> Iterator[Any]:
    for name in pyaircache.__all__:
        one = getattr(pyaircache, name)
        if inspect.isclass(one):
            yield one
            for member in vars(one).values():
                if isinstance(member, (staticmethod, classmethod)):
                    yield member.__func__
                elif isinstance(member, property):
                    yield member.fget
                elif inspect.isfunction(member):
                    yield member
    yield from (images.load_image, images.load_images, serve.serve, serve.command, convert.convert, EngineLike,
                engine.Engine, model_files.resolve)  # fmt: skip


def test_type_hints_can_be_read():
    assert typing.get_type_hints(Chat.ask)["stream"] is bool
    seen = 0
    for one in public():
        typing.get_type_hints(one)
        seen += 1
    assert seen > 100


@pytest.mark.parametrize("kind", [engine.Engine, FakeEngine])
def test_engines_have_the_protocols_calls(kind):
    for name, member in vars(EngineLike).items():
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            assert isinstance(vars(kind)[name], property)
            continue
        expected, found = (
            inspect.signature(member, eval_str=True),
            inspect.signature(getattr(kind, name), eval_str=True),
        )
        assert found == expected, name


def test_a_window_of_the_users_own_is_refused():
    class Mine(Elite):
        pass

    class Other(Window):
        pass

    for window in (Mine(), Other()):
        with pytest.raises(pyaircache.ArgumentError, match="window must be one of Elite, Last, Text, Visual, All, "):
            Method(window=window)
    assert Method(window=All()).engine(0.5).window == 4


def test_every_name_makes_a_method(engine):
    assert "full" not in Method.names()
    assert all(isinstance(Method.named(name), Method) for name in Method.names())


def test_policies_of_any_kind_have_a_name(fake):
    def policy(scores: Any, total: int) -> Any:
        raise AssertionError

    policy.__name__ = "p" * 1000
    for one in (policy, functools.partial(policy)):
        with Chat("fake.gguf", method=one) as chat:
            assert len(repr(chat)) < 300


# -- what was made of options ------------------------------------------------------------------------------------------


def test_options_that_become_something_else_are_spoken_of(engine):
    with pytest.warns(PyAircacheWarning, match="n_ctx=64 became 256"), Chat(n_ctx=64, n_threads=1) as chat:
        assert chat.info.n_ctx == 256
    train = chat.info.n_ctx_train
    with pytest.warns(PyAircacheWarning, match=f"more than the {train} tokens .* trained with") as caught:
        Chat(n_ctx=train + 256, n_threads=1).close()
    assert caught[0].filename == __file__


@pytest.mark.parametrize("n_threads", [513, 4096])
def test_more_threads_than_ggml_has(fake, n_threads):
    with pytest.raises(
        pyaircache.ArgumentError, match=f"n_threads must be a whole number from 0 to 512, got {n_threads}"
    ):
        Chat("fake.gguf", n_threads=n_threads)


def test_more_threads_than_processors(fake, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    with pytest.warns(PyAircacheWarning, match="n_threads=5 is more than the 4 processors"):
        Chat("fake.gguf", n_threads=5).close()


def test_follow_ups_report_what_holds(chat, recwarn):
    chat.ask(PICTURE, "One?", keep=0.25)
    assert not recwarn.list
    report = chat.ask(None, "Two?").report
    assert (report.keep, report.method, report.alpha) == (0.25, "aircache", 0.9)
    assert not recwarn.list
    with pytest.warns(PyAircacheWarning, match=r"keep=0.75 has no effect: .*\(keep=0.25\)") as caught:
        report = chat.ask(None, "Three?", keep=0.75).report
    assert report.keep == 0.25 and caught[0].filename == __file__
    chat.reset()
    report = chat.ask(None, "Four?").report
    assert (report.keep, report.method, report.alpha) == (1.0, "full", None)
    with pytest.warns(PyAircacheWarning, match="there is no image in this conversation"):
        chat.ask(None, "Five?", keep=0.5)
    with pytest.raises(pyaircache.ArgumentError, match="keep must be"):
        chat.ask(None, "Six?", keep=2)


def test_the_seed_is_reported(chat):
    assert chat.ask(None, "What?").report.seed is None
    assert chat.ask(None, "What?", seed=7).report.seed == 7
    assert chat.ask(None, "What?", temperature=1, seed=8).report.seed == 8
    seeds = {chat.ask(None, "What?", temperature=1).report.seed for _ in range(4)}
    assert len(seeds) > 1 and all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in seeds)


def test_a_reported_seed_repeats_the_answer(real_chat, samples):
    first = real_chat.ask(samples[0].picture, samples[0].question, temperature=3.0, max_tokens=12)
    again = real_chat.ask(samples[0].picture, samples[0].question, temperature=3.0, max_tokens=12,
                          seed=first.report.seed)  # fmt: skip
    assert again == first


def test_a_foreign_projector_can_be_left_out(engine, tmp_path, samples):
    folder = model_files.bundled_dir()
    (tmp_path / "m.gguf").symlink_to(folder / model_files.BUNDLED_MODEL)
    (tmp_path / "mmproj-m.gguf").write_bytes(b"GGUF, but not of this model")
    with pytest.raises(PyAircacheError):
        Chat(tmp_path / "m.gguf", n_threads=1)
    with Chat(tmp_path / "m.gguf", mmproj=False, n_threads=1) as chat:
        assert not chat.info.vision
        assert chat.ask(None, "What is the total?", max_tokens=2).report.answer_tokens <= 2
        with pytest.raises(pyaircache.ProjectorError):
            chat.ask(samples[0].picture, "What is the total?")


def test_markers_are_ordinary_text(real_chat, samples):
    for question in ("What does <__media__> mean?", "<__image__> <image> <|image_pad|>"):
        assert isinstance(real_chat.ask(samples[0].picture, question, max_tokens=2), str)
        assert isinstance(real_chat.ask(None, question, max_tokens=2), str)


def test_the_command_line_says_the_same(fake):
    assert [line.split()[0] for line in _run("methods").splitlines()] == [*Method.names(), "full"]


def _run(*arguments: str) -> str:
    from click.testing import CliRunner

    return CliRunner().invoke(main.main, arguments).stdout
