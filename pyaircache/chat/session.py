"""Keeps a conversation and an engine in step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..engine import selection
from ..engine.engine import Progress
from ..engine.protocol import EngineLike
from ..engine.structs import Compression, Scores, Size, Span
from ..errors import CancelledError, ProjectorError, UnsupportedError
from ..methods.policy import kept_sets
from ..progress import ProgressLine
from ..report import pictures
from ..report.report import Report
from .conversation import Turn, next_prompt
from .options import Options

Result = TypeVar("Result")

CANCELLED = "the question was cancelled; the conversation is as it was before it"

_RESERVE = 1  # cells that must be free after a prompt: enough to begin an answer
_NO_SCORES = Scores(np.empty((0, 0), np.float32), [], np.empty(0), 0.0)


@dataclass
class Question:
    """A question that is being answered."""

    turns: list[Turn]
    """The conversation with this question at its end."""
    report: Report
    options: Options

    @property
    def turn(self) -> Turn:
        """The question itself."""
        return self.turns[-1]


def unless_cancelled(call: Callable[[], Result], cancelled: Callable[[], bool]) -> Result:
    """An engine's call that can be cancelled, made again when the one who cancelled meant the question before this one.

    Raises:
        CancelledError: This one was meant.
    """
    while True:
        _refuse_cancelled(cancelled)
        try:
            return call()
        except CancelledError:
            if cancelled():
                raise CancelledError(CANCELLED) from None


def _refuse_cancelled(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise CancelledError(CANCELLED)


class Session:
    """The conversation that an engine is to hold.

    ``turns`` is the truth; the engine follows it. A turn becomes a part of it when its answer is complete, by `commit`:
    a question that fails, is cancelled or is interrupted never changes ``turns``, and what the engine holds instead is
    put right before the next question. Not thread-safe.
    """

    def __init__(self, engine: EngineLike, model_name: str) -> None:
        self.info = engine.info()
        self.turns: list[Turn] = []
        self.engine = engine
        self._model_name = model_name
        self._stale = False  # whether the engine may hold something else than `turns`

    def reset(self) -> None:
        """Forgets the conversation."""
        self.turns = []
        self._stale = True
        self.engine.reset()
        self._stale = False

    def begin(
        self, images: list[NDArray[np.uint8]], question: str, options: Options, cancelled: Callable[[], bool]
    ) -> Question:
        """Does everything that comes before the first token: prompt and compression.

        Args:
            images: uint8 [H, W, 3] each; [frames, H, W, 3] is a video.
            question: Its text.
            options: Checked ones.
            cancelled: Whether somebody has cancelled this question.

        Returns:
            The question, whose answer is now to be sampled; no part of ``turns`` yet.

        Raises:
            ProjectorError: There are images, but the model has no projector.
            UnsupportedError: The model's cache cannot be compressed.
            ContextError: The question does not fit the context window.
            ArgumentError: The user's policy returned something wrong.
            CancelledError: It was cancelled.
        """
        if images:
            self._require_vision()
        choice = options.choice
        method = choice.engine(options.keep) if images else None
        if method is not None and not self.info.can_compress:
            raise UnsupportedError(f"{self.info.why_not}; keep=1.0 asks without compression")

        turns = [] if images else self.turns
        content = (self.engine.marker() if images else "") * len(images) + question
        rendered, fed = next_prompt(self.engine.apply_template, turns, content)
        turn = Turn(content, rendered, fed, images, method, choice.policy)
        if images:
            turn.keep, turn.name, turn.alpha = options.keep, choice.name, choice.alpha
        # What holds for a follow-up is what its image's question left; a question without images loses nothing
        shown = turns[0] if turns else turn
        report = Report(keep=shown.keep, method=shown.name, alpha=shown.alpha, seed=options.reported_seed)
        if images:
            report.pictures, report.projector = pictures.infos(images), self.info.projector
            report.tile_side = pictures.tile_side(self.engine, self.info.projector)
        with ProgressLine() as line:

            def progress(stage: int, done: int, total: int) -> None:
                _refuse_cancelled(cancelled)
                line(stage, done, total)

            if turns:
                self._catch_up(progress, cancelled)
            else:
                self._stale = True
                self.engine.reset()
            self._feed(turn, progress, cancelled, report)
        self._stale = True  # until the turn is one of `turns`
        if method is None:
            cells = sum(one.n_prompt + len(one.tokens) for one in [*turns, turn])
            report.kv_bytes_full = cells * self.info.kv_bytes_per_token
        return Question([*turns, turn], report, options)

    def commit(self, question: Question) -> None:
        """Makes a question and its answer, as far as it got, the end of the conversation."""
        self.turns = question.turns
        self._stale = False

    def spans(self, size: Size) -> list[Span]:
        """What one picture of a size would become.

        Raises:
            ProjectorError: The model has no projector.
        """
        self._require_vision()
        return self.engine.layout(self.engine.marker(), [size]).spans

    def _require_vision(self) -> None:
        if not self.info.vision:
            raise ProjectorError(
                f"{self._model_name} was loaded without a projector and cannot see images; "
                "put its mmproj GGUF file beside it, or name it (mmproj=, --mmproj)"
            )

    def _catch_up(self, progress: Progress, cancelled: Callable[[], bool]) -> None:
        """Brings the engine to the end of the last answer.

        Usually only the answer's last token is missing, which nobody needed until now. After an interrupted call the
        engine may hold something else; then the conversation is evaluated again, token by token as it was.
        """
        last = self.turns[-1]
        decoded = self.engine.stats().n_past - last.n_past
        if self._stale or not 0 <= decoded <= len(last.tokens):
            self._stale = True
            self.engine.reset()
            for turn in self.turns:
                self._feed(turn, progress, cancelled)
                if turn is not last:
                    self._decode(turn.tokens, cancelled)
            self._stale = False
            decoded = 0
        self._decode(last.tokens[decoded:], cancelled)

    def _compress(self, turn: Turn, cancelled: Callable[[], bool]) -> tuple[Scores, Compression]:
        """Compresses as the turn says. The scores are empty when a policy's sets are evicted once more.

        The engine does not stop in the middle of this: a cancel is seen between its steps.
        """
        assert turn.method is not None
        if turn.policy is None:
            return self.engine.compress(turn.method)
        if turn.kept is not None:
            return _NO_SCORES, self.engine.evict(turn.kept)
        scores = self.engine.score(turn.method)
        _refuse_cancelled(cancelled)
        turn.kept, ms_policy = kept_sets(turn.policy, turn.method, scores.scores, scores.alive)
        _refuse_cancelled(cancelled)
        strength, skewness = selection.statistics(scores.scores)
        result = self.engine.evict(turn.kept)
        return scores, replace(result, strength=strength, skewness=skewness, ms_score=scores.ms + ms_policy)

    def _decode(self, tokens: list[int], cancelled: Callable[[], bool]) -> None:
        for token in tokens:
            unless_cancelled(lambda token=token: self.engine.decode(token), cancelled)  # type: ignore[misc]

    def _feed(
        self, turn: Turn, progress: Progress, cancelled: Callable[[], bool], report: Report | None = None
    ) -> None:
        """Evaluates a turn's prompt and compresses; fills in the report."""
        observe = turn.method or False
        prompt = unless_cancelled(
            lambda: self.engine.prompt(turn.fed, turn.images, reserve=_RESERVE, observe=observe, progress=progress),
            cancelled,
        )
        compressed = self._compress(turn, cancelled) if turn.method is not None else None
        _refuse_cancelled(cancelled)
        stats = self.engine.stats()
        turn.n_prompt, turn.n_past = prompt.n_tokens, stats.n_past
        if report is None:
            return
        report.prompt_tokens, report.visual_tokens, report.spans = prompt.n_tokens, prompt.n_visual, prompt.spans
        report.ms_encode, report.ms_prefill = prompt.ms_encode, prompt.ms_prefill
        report.layers, report.kv_bytes = self.info.n_layers, stats.kv_bytes
        if compressed is not None:
            scores, result = compressed
            report.scores, report.elite, report.alive = scores.scores, scores.elite, scores.alive
            report.budgets, report.kept = result.budgets, result.kept
            report.strength, report.skewness = result.strength, result.skewness
            report.kv_bytes_full, report.kv_bytes = result.kv_bytes_full, result.kv_bytes
            report.ms_compress = result.ms_score + result.ms_evict
        elif prompt.n_visual:
            every = np.arange(prompt.n_visual, dtype=np.int32)
            report.kept = [every.copy() for _ in range(self.info.n_layers)]
            report.budgets = np.full(self.info.n_layers, prompt.n_visual, dtype=np.int32)
