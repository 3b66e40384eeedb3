"""Every backend call and some allocations of a question fail once: an error; the next question is answered right."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
from conftest import Sample

from pyaircache import Chat, Method, PyAircacheError, _ffi

METHODS: dict[str, str | Method] = {
    "aircache": "aircache",
    "snapkv": "snapkv",
    "h2o": "h2o",
    "vlcache": "vlcache",
    "merge": Method(merge=0.5),
    "features": Method(value_norm=True, diversity=True),
}
ALLOCATIONS = 6  # of the many of a question


class Faults:
    """The points of this process where memory or a backend can fail on purpose (native/cache/faults.h)."""

    def __init__(self) -> None:
        engine = _ffi.find_library()
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
def faults(engine: _ffi.Binding) -> Iterator[Faults]:
    """The points of this process; none is armed before and after a test."""
    points = Faults()
    points.off()
    yield points
    points.off()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_next_question_is_answered_right(faults: Faults, samples: list[Sample], method: str | Method) -> None:
    one, other = samples[:2]

    def ask(chat: Chat, sample: Sample) -> str:
        return str(chat.ask(sample.picture, sample.question, max_tokens=4))

    with Chat(keep=0.1, method=method, n_threads=1) as chat:
        want = {sample.picture: ask(chat, sample) for sample in (one, other)}
        kept = chat.ask(one.picture, one.question, max_tokens=4).report.kept
        with Chat(keep=0.1, method=method, n_threads=1) as fresh:
            assert ask(fresh, other) == want[other.picture]

        for point in ("*", "alloc"):
            faults.arm(point)
            assert ask(chat, one) == want[one.picture]
            total = faults.count()
            assert total > 5
            step = 1 if point == "*" else max(1, total // ALLOCATIONS)
            for n in range(1, total + 1, step):
                faults.arm(point, n)
                with pytest.raises(PyAircacheError):
                    ask(chat, one)
                assert faults.count() >= n
                faults.off()
                assert ask(chat, other) == want[other.picture]

        again = chat.ask(one.picture, one.question, max_tokens=4)
        assert str(again) == want[one.picture]
        assert all((a == b).all() for a, b in zip(again.report.kept, kept, strict=True))
