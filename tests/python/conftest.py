"""Fixtures for the tests of the Python layer.

Tests that use the ``engine`` fixture need the built engine library. They fail without it, so that CI cannot lose them
silently; ``PYAIRCACHE_NO_ENGINE=1`` skips them on purpose. Those on ``fake_engine`` need no library.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fake_engine import NAMED, FakeEngine, FakeModel, FakePool

from pyaircache import Chat, model_files
from pyaircache.chat import chat as chat_module
from pyaircache.chat import many as many_module
from pyaircache.chat import model as model_module
from pyaircache.engine import library, log, selection


class Sample(NamedTuple):
    """One line of the bundled samples.jsonl."""

    picture: Path
    question: str
    answer: str


@pytest.fixture(scope="session")
def engine() -> library.Binding:
    """The loaded engine library."""
    if os.environ.get("PYAIRCACHE_NO_ENGINE") == "1":
        pytest.skip("PYAIRCACHE_NO_ENGINE=1")
    binding = library.load()  # raises where there is none: a failure, not a skip
    binding.lib.pac_log_set(log.install(), binding.ffi.NULL)  # tests of the engine may have replaced it
    return binding


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """The bundled sample questions."""
    folder = model_files.bundled_dir() / "samples"
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]
    return [Sample(folder / entry["file"], entry["question"], entry["answer"]) for entry in entries]


@pytest.fixture(scope="session")
def shared_chat(engine: library.Binding) -> Iterator[Chat]:
    """The bundled model, loaded once. Without an archive: a follow-up goes on behind what is left."""
    with Chat(n_threads=1, archive="none") as chat:
        yield chat


@pytest.fixture
def real_chat(shared_chat: Chat) -> Iterator[Chat]:
    """The bundled model with no conversation."""
    shared_chat.reset()
    yield shared_chat


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    """Makes ``Chat("fake.gguf")`` use FakeEngine instead of the library."""
    monkeypatch.setattr(chat_module, "Engine", FakeEngine)
    monkeypatch.setattr(many_module, "EnginePool", FakePool)
    monkeypatch.setattr(model_module, "EngineModel", FakeModel)
    monkeypatch.setattr(selection, "named_methods", lambda: NAMED)
    monkeypatch.setattr(model_files, "resolve", lambda model, mmproj: (Path(model or "fake.gguf"), None))
    return FakeEngine


@pytest.fixture
def chat(fake: type[FakeEngine]) -> Iterator[Chat]:
    """A Chat without a model."""
    with Chat("fake.gguf", keep=0.5) as chat:
        yield chat


@pytest.fixture
def pool() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    """Threads to call a Chat from."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        yield pool
