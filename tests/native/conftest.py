"""Fixtures of the native tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from picture_files import Dump, picture, saved


@pytest.fixture(scope="module")
def dump(program: Callable[[str], Path]) -> Iterator[Dump]:
    """The program, and that it is there in the end."""
    dump = Dump(program("picture-dump"))
    yield dump
    assert dump.process.stdin and dump.process.stdout
    dump.process.stdin.close()
    assert dump.process.wait(30) == 0
    dump.process.stdout.close()


@pytest.fixture(scope="module")
def webp(dump: Dump) -> None:
    if "not read by this build" in str(dump.decode(saved(picture(4, 4), "WEBP"))):
        pytest.skip("built without libwebp")
