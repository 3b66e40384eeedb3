"""Backend calls and allocations of a question fail once: an error; the next question is answered right."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from typing import Any

import pytest

from pyaircache import Chat, Method, PyAircacheError
from pyaircache.engine import library

METHODS: dict[str, str | Method] = {
    "aircache": "aircache",
    "snapkv": "snapkv",
    "h2o": "h2o",
    "vlcache": "vlcache",
    "merge": Method(merge=0.5),
    "features": Method(value_norm=True, diversity=True),
}
# How many of a question's points fail: with all of them (PYAIRCACHE_ALL_FAULTS=1) it takes minutes.
N_FAILING = {"*": 10, "alloc": 3}
ALL = bool(os.environ.get("PYAIRCACHE_ALL_FAULTS"))


class Faults:
    """The points of this process where memory or a backend can fail on purpose (native/cache/faults.h)."""

    def __init__(self) -> None:
        engine = library.find_library()
        self._llama = ctypes.CDLL(str(engine.with_name(engine.name.replace("pyaircache_engine", "llama"))))
        try:
            self._arm = self._llama.llama_aircache_fault_arm
            self._count = self._llama.llama_aircache_fault_count
        except AttributeError:
            pytest.fail("this build cannot fail on purpose: build with CMAKE_ARGS='-DPYAIRCACHE_TESTS=ON'")
        self._arm.argtypes = [ctypes.c_char_p, ctypes.c_int64]
        self._arm.restype = None
        self._count.restype = ctypes.c_int64

    def arm(self, point: str, n: int = 0) -> None:
        """Counts a point's hits from 1 and lets the n-th fail; 0: none. ``"*"``: all points but ``alloc``."""
        self._arm(point.encode(), n)

    def count(self) -> int:
        """Hits since arm()."""
        return int(self._count())

    def off(self) -> None:
        """Nothing fails any more."""
        self.arm("")


@pytest.fixture
def faults(engine: library.Binding) -> Iterator[Faults]:
    """The points of this process; none is armed before and after a test."""
    points = Faults()
    points.off()
    yield points
    points.off()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_next_question_is_answered_right(faults: Faults, samples: list[Any], method: str | Method) -> None:
    one, other = samples[:2]

    def ask(chat: Chat, sample: Any) -> str:
        return str(chat.ask(sample.picture, sample.question, max_tokens=4))

    with Chat(keep=0.1, method=method, n_threads=1, archive="none") as chat:
        want = {sample.picture: ask(chat, sample) for sample in (one, other)}
        kept = chat.ask(one.picture, one.question, max_tokens=4).report.kept
        with Chat(keep=0.1, method=method, n_threads=1, archive="none") as fresh:
            assert ask(fresh, other) == want[other.picture]

        for point, n_failing in N_FAILING.items():
            faults.arm(point)
            assert ask(chat, one) == want[one.picture]
            total = faults.count()
            assert total > 5
            n_failing = total if ALL else n_failing
            for n in sorted({1 + i * (total - 1) // (n_failing - 1) for i in range(n_failing)}):  # the last one, too
                faults.arm(point, n)
                try:
                    answer = ask(chat, one)
                except PyAircacheError:
                    pass
                else:  # std::stable_sort, for one, does without the memory that it is refused
                    assert point == "alloc" and answer == want[one.picture]
                assert faults.count() >= n
                faults.off()
                assert ask(chat, other) == want[other.picture]

        again = chat.ask(one.picture, one.question, max_tokens=4)
        assert str(again) == want[one.picture]
        assert all((a == b).all() for a, b in zip(again.report.kept, kept, strict=True))
