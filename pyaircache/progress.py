"""A progress line for people who wait at a terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, Literal

from .checks import shown
from .engine.engine import STAGE_ENCODE, STAGE_LOAD, STAGE_PREFILL
from .errors import ArgumentError

Stage = Literal["load", "encode", "prefill"]
OnProgress = Callable[[Stage, int, int], object]
"""``on_progress(stage, done, total)``: permille of the loading, images of the encoding, tokens of the prompt."""

_WORDS: dict[int, Stage] = {STAGE_LOAD: "load", STAGE_ENCODE: "encode", STAGE_PREFILL: "prefill"}

# Stages of a conversion, beyond the engine's
STAGE_TEXT, STAGE_MMPROJ, STAGE_QUANTIZE = 10, 11, 12

# Each stage's label and what it counts; loading counts in permille, which nobody wants to read
_STAGES = {
    STAGE_LOAD: ("loading model", ""),
    STAGE_ENCODE: ("encoding images", "images"),
    STAGE_PREFILL: ("reading prompt", "tokens"),
    STAGE_TEXT: ("writing language model", "B"),
    STAGE_MMPROJ: ("writing projector", "B"),
    STAGE_QUANTIZE: ("quantising", "tensors"),
}
_DELAY_S = 1.0  # what is quicker shows nothing


def callback(on_progress: object) -> Callable[[int, int, int], object]:
    """A caller's ``on_progress`` as the engine's progress function; None: nothing is told.

    Raises:
        ArgumentError: It cannot be called.
    """
    if on_progress is None:
        return lambda stage, done, total: None
    if not callable(on_progress):
        raise ArgumentError(f"on_progress must be a function of (stage, done, total), got {shown(on_progress)}")
    return lambda stage, done, total: on_progress(_WORDS[stage], done, total)


class ProgressLine:
    """Shows progress on stderr, if that is a terminal, once a stage takes longer than a second.

    An instance is the engine's progress function: called with (stage, done, total).
    """

    def __init__(self) -> None:
        self._enabled = sys.stderr is not None and sys.stderr.isatty()
        self._stage: int | None = None
        self._bar: Any = None
        self._timer: threading.Timer | None = None
        self._refreshed = False  # whether the timer has shown the bar, which the bar itself does not know then
        self._lock = threading.Lock()

    def __call__(self, stage: int, done: int, total: int) -> None:
        if not self._enabled:
            return
        if stage != self._stage:
            self.close()
            self._stage, self._bar = stage, _bar(stage, total)
            # An image is encoded in one go, without a further call: the line must appear by itself.
            self._timer = threading.Timer(_DELAY_S, self._refresh, [self._bar])
            self._timer.daemon = True
            self._timer.start()
        with self._lock:
            self._bar.total = total
            self._bar.update(done - self._bar.n)

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the line."""
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            bar, self._bar = self._bar, None
            if bar is not None:
                if self._refreshed:
                    bar.clear()
                self._refreshed = False
                bar.close()

    def _refresh(self, bar: Any) -> None:
        with self._lock:
            if bar is self._bar:
                bar.refresh()
                self._refreshed = True


def _bar(stage: int, total: int) -> Any:
    from tqdm import tqdm  # imported late: most calls show nothing

    label, unit = _STAGES.get(stage, ("working", ""))
    counts = " {n_fmt}/{total_fmt} " + unit if unit else ""
    return tqdm(
        total=total,
        desc=label,
        unit_scale=unit == "B",
        delay=_DELAY_S,
        leave=False,
        file=sys.stderr,
        bar_format="{l_bar}{bar}|" + counts + " {elapsed}",
        dynamic_ncols=True,
    )
