"""Keeps a conversation and an engine in step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from . import _policy
from ._conversation import Turn, next_prompt
from ._custom import kept_sets
from ._engine import Engine, Progress
from ._options import Options
from ._progress import ProgressLine
from ._structs import Compression, Scores, Span
from .errors import ArgumentError, ProjectorError, UnsupportedError
from .report import Report

_RESERVE = 1  # cells that must be free after a prompt: enough to begin an answer
_NO_SCORES = Scores(np.empty((0, 0), np.float32), [], np.empty(0), 0.0)


class Session:
    """The conversation that an engine is to hold.

    ``turns`` is the truth; the engine follows it. An engine call that fails or is interrupted never changes ``turns``,
    and what the engine holds instead is put right before the next question. Not thread-safe.
    """

    def __init__(self, engine: Engine, model_name: str) -> None:
        self.info = engine.info()
        self.turns: list[Turn] = []
        self._engine = engine
        self._model_name = model_name
        self._stale = False  # whether the engine may hold something else than `turns`

    def reset(self) -> None:
        """Forgets the conversation."""
        self.turns = []
        self._stale = True
        self._engine.reset()
        self._stale = False

    def begin(self, images: list[NDArray[np.uint8]], question: str, options: Options) -> tuple[Turn, Report]:
        """Does everything that comes before the first token: prompt and compression.

        Returns:
            (the new turn, now the conversation's last; the report so far).

        Raises:
            ProjectorError: There are images, but the model has no projector.
            UnsupportedError: The model's cache cannot be compressed.
            ContextError: The question does not fit the context window.
            ArgumentError: The question holds the image marker, or the user's policy returned something wrong.
        """
        marker = self._engine.marker() if self.info.vision else ""
        if marker and marker in question:
            raise ArgumentError(f"the question must not contain {marker!r}, which stands for an image")
        if images:
            self._require_vision()
        choice = options.choice
        method = choice.engine(options.keep) if images else None
        if method is not None and not self.info.can_compress:
            raise UnsupportedError(f"{self.info.why_not}; keep=1.0 asks without compression")

        turns = [] if images else self.turns
        content = marker * len(images) + question
        rendered, fed = next_prompt(self._engine.apply_template, turns, content)
        turn = Turn(content, rendered, fed, images, method, choice.policy)
        report = Report(keep=options.keep, method=choice.name, alpha=choice.alpha)
        with ProgressLine() as progress:
            if turns:
                self._catch_up(progress)
            else:
                self._stale = True
                self._engine.reset()
            self._feed(turn, progress, report)
        self.turns = [*turns, turn]
        self._stale = False
        if method is None:
            cells = sum(one.n_prompt + len(one.tokens) for one in self.turns)
            report.kv_bytes_full = cells * self.info.kv_bytes_per_token
        return turn, report

    def spans(self, image: NDArray[np.uint8]) -> list[Span]:
        """What one picture would become.

        Raises:
            ProjectorError: The model has no projector.
        """
        self._require_vision()
        return self._engine.layout(self._engine.marker(), [image]).spans

    def _require_vision(self) -> None:
        if not self.info.vision:
            raise ProjectorError(
                f"{self._model_name} was loaded without a projector and cannot see images; "
                "put its mmproj GGUF file beside it, or name it (mmproj=, --mmproj)"
            )

    def _catch_up(self, progress: Progress) -> None:
        """Brings the engine to the end of the last answer.

        Usually only the answer's last token is missing, which nobody needed until now. After an interrupted call the
        engine may hold something else; then the conversation is evaluated again, token by token as it was.
        """
        last = self.turns[-1]
        decoded = self._engine.stats().n_past - last.n_past
        if self._stale or not 0 <= decoded <= len(last.tokens):
            self._stale = True
            self._engine.reset()
            for turn in self.turns:
                self._feed(turn, progress)
                if turn is not last:
                    self._decode(turn.tokens)
            self._stale = False
            decoded = 0
        self._decode(last.tokens[decoded:])

    def _compress(self, turn: Turn) -> tuple[Scores, Compression]:
        """Compresses as the turn says. The scores are empty when a policy's sets are evicted once more."""
        assert turn.method is not None
        if turn.policy is None:
            return self._engine.compress(turn.method)
        if turn.kept is not None:
            return _NO_SCORES, self._engine.evict(turn.kept)
        scores = self._engine.score(turn.method)
        turn.kept, ms_policy = kept_sets(turn.policy, turn.method, scores.scores, scores.alive)
        strength, skewness = _policy.statistics(scores.scores)
        result = self._engine.evict(turn.kept)
        return scores, replace(result, strength=strength, skewness=skewness, ms_score=scores.ms + ms_policy)

    def _decode(self, tokens: list[int]) -> None:
        for token in tokens:
            self._engine.decode(token)

    def _feed(self, turn: Turn, progress: Progress, report: Report | None = None) -> None:
        """Evaluates a turn's prompt and compresses; fills in the report."""
        observe = turn.method or False
        prompt = self._engine.prompt(turn.fed, turn.images, reserve=_RESERVE, observe=observe, progress=progress)
        compressed = self._compress(turn) if turn.method is not None else None
        stats = self._engine.stats()
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
