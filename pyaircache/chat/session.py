"""Keeps a conversation and an engine in step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from ..engine import selection
from ..engine.conversing import Part
from ..engine.marshal import Progress
from ..engine.protocol import EngineLike
from ..engine.structs import Compression, EngineMethod, PromptInfo, Scores
from ..errors import CancelledError, ProjectorError, StateError, UnsupportedError
from ..methods.policy import PolicyContext, kept_sets
from ..progress import ProgressLine
from ..report import pictures
from ..report.process import process_memory
from ..report.report import Report
from ..spans import Size, Span
from .conversation import Turn, matching, next_prompt
from .messages import Given, system
from .options import Options

Result = TypeVar("Result")

CANCELLED = "the question was cancelled; the conversation is as it was before it"

_RESERVE = 1  # cells that must be free after a prompt: enough to begin an answer
_NO_SCORES = Scores(np.empty((0, 0), np.float32), [], np.empty(0), 0.0)


@dataclass
class Request:
    """What is asked.

    Attributes:
        given: The new messages; with ``whole`` all messages.
        options: Checked ones.
        follow_up: Whether they follow the conversation so far.
        whole: They are the whole conversation, of which is not fed again what the engine holds already.
        on_progress: Told of the engine's progress.
    """

    given: list[Given]
    options: Options
    follow_up: bool
    whole: bool = False
    on_progress: Progress = lambda stage, done, total: None


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
        refuse_cancelled(cancelled)
        try:
            return call()
        except CancelledError:
            if cancelled():
                raise CancelledError(CANCELLED) from None


def refuse_cancelled(cancelled: Callable[[], bool]) -> None:
    """Raises CancelledError where a question was cancelled."""
    if cancelled():
        raise CancelledError(CANCELLED)


class Session:
    """The conversation that an engine is to hold.

    ``turns`` is the truth; the engine follows it. A turn becomes a part of it when its answer is complete, by `commit`:
    a question that fails, is cancelled or is interrupted never changes ``turns``, and what the engine holds instead is
    put right before the next question. Not thread-safe.
    """

    def __init__(self, engine: EngineLike, model_name: str, archives: bool = False) -> None:
        self.info = engine.info()
        self.marker = engine.marker() if self.info.vision else ""
        self.turns: list[Turn] = []
        self.engine = engine
        self._model_name = model_name
        self._stale = False  # whether the engine may hold something else than `turns`
        self._archives = archives  # whether the engine was told to keep a prompt's full cells for the next question

    def messages(self) -> list[dict[str, Any]]:
        """The conversation as OpenAI-style messages."""
        out: list[dict[str, Any]] = []
        for turn in self.turns:
            out += [*(one.to_dict() for one in turn.given), {"role": "assistant", "content": turn.answer}]
        return out

    def undo(self) -> None:
        """Drops the last turn. The engine is brought to the end of the one before it with the next question.

        Raises:
            StateError: There is none.
        """
        if not self.turns:
            raise StateError("there is nothing to undo: no question has been answered in this conversation")
        self.turns, self._stale = self.turns[:-1], True

    def reset(self) -> None:
        """Forgets the conversation."""
        self.turns = []
        self._stale = True
        self.engine.reset()
        self._stale = False

    def begin(self, request: Request, cancelled: Callable[[], bool]) -> Question:
        """Does everything that comes before the first token: prompt and compression.

        Args:
            request: What is asked.
            cancelled: Whether somebody has cancelled this question.

        Returns:
            The question, whose answer is now to be sampled; no part of ``turns`` yet.

        Raises:
            ProjectorError: There are images, but the model has no projector.
            UnsupportedError: The model's cache cannot be compressed.
            ContextError: The question does not fit the context window.
            ArgumentError: The user's policy returned something wrong, or the grammar cannot be followed.
            CancelledError: It was cancelled.
        """
        refuse_cancelled(cancelled)
        options, choice = request.options, request.options.choice
        turns, given = self._placed(request)
        images = any(one.images for one in given)
        if images:
            self._require_vision()
        again = self._begins_again(turns, images, choice.engine(options.keep))
        method = choice.engine(options.keep) if images or again else None
        if method is not None and not self.info.can_compress:
            raise UnsupportedError(f"{self.info.why_not}; keep=1.0 asks without compression")

        rendered, fed = next_prompt(self.engine.apply_template, turns, [one.message for one in given])
        turn = Turn(given, rendered, fed, method, choice.policy)
        if images or again:
            turn.keep, turn.name, turn.alpha = options.keep, choice.name, choice.alpha
        self.engine.set_sampling(options.sampling)  # refuses a grammar before anything is evaluated
        # Without an archive, what holds for a follow-up is what the last images' question left
        first = (turns[0].given if turns else given)[0]
        shown = turn if again else next((one for one in [turn, *reversed(turns)] if one.images), turn)
        report = Report(
            keep=shown.keep,
            method=shown.name,
            alpha=shown.alpha,
            seed=options.reported_seed,
            parameters={**options.parameters(), "system": first.content if first.role == "system" else False},
        )
        seen = [*turns, turn] if again else [turn]
        if images or again:
            report.pictures = pictures.infos([image for one in seen for image in one.images])
            report.projector = self.info.projector
            report.tile_side = pictures.tile_side(self.engine, self.info.projector)
        raised: list[CancelledError] = []

        def over() -> bool:
            return bool(raised) or cancelled()

        with ProgressLine() as line:

            def progress(stage: int, done: int, total: int) -> None:
                refuse_cancelled(cancelled)
                line(stage, done, total)
                try:
                    request.on_progress(stage, done, total)
                except CancelledError as exc:  # else it would pass for one that meant another question
                    raised.append(exc)
                    raise

            if again:
                self._stale = True
                self._feed(turn, progress, over, report, turns)
            elif turns:
                self._catch_up(turns, progress, over)
                self.engine.set_sampling(options.sampling)
            else:
                self._stale = True
                self.engine.reset()
            if not again:
                self._feed(turn, progress, over, report)
        self._stale = True  # until the turn is one of `turns`
        if method is None or (turns and not again):
            cells = sum(one.n_prompt + len(one.tokens) for one in [*turns, turn])
            report.kv_bytes_full = cells * self.info.kv_bytes_per_token
        return Question([*turns, turn], report, options)

    def _begins_again(self, turns: list[Turn], images: bool, method: EngineMethod | None) -> bool:
        """Whether a question is asked with the conversation before it as one prompt, which sees all images again."""
        if not self._archives or not (images or any(turn.images for turn in turns)):
            return False
        return (bool(turns) and turns[-1].archived) or (method is not None and not any(turn.images for turn in turns))

    def _placed(self, request: Request) -> tuple[list[Turn], list[Given]]:
        """(the turns that the request follows, the messages that are new to them)."""
        given, options = request.given, request.options
        begins = request.whole or not request.follow_up or not self.turns
        if begins and options.system is not None and all(one.role != "system" for one in given):
            given = [system(options.system), *given]
        if not request.follow_up:
            return [], given
        if not request.whole:
            return self.turns, given
        method, policy = options.choice.engine(options.keep), options.choice.policy
        archived = bool(self.turns) and self.turns[-1].archived
        count, covered = matching(
            self.turns,
            given,
            lambda turn: archived or not turn.images or (turn.method == method and turn.policy is policy),
        )
        return self.turns[:count], given[covered:]

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
        return self.engine.layout(self.marker, [size]).spans

    def _require_vision(self) -> None:
        if not self.info.vision:
            raise ProjectorError(
                f"{self._model_name} was loaded without a projector and cannot see images; "
                "put its mmproj GGUF file beside it, or name it (mmproj=, --mmproj)"
            )

    def _catch_up(self, turns: list[Turn], progress: Progress, cancelled: Callable[[], bool]) -> None:
        """Brings the engine to the end of the last answer of ``turns``: all of the conversation, or its beginning.

        Usually only the answer's last token is missing, which nobody needed until now. After an interrupted call the
        engine may hold something else; then the conversation is evaluated again, token by token as it was.
        """
        self.engine.set_sampling(None)  # earlier answers had grammars of their own
        last = turns[-1]
        decoded = self.engine.stats().n_past - last.n_past
        if self._stale or len(turns) < len(self.turns) or not 0 <= decoded <= len(last.tokens):
            self._stale = True
            self.engine.reset()
            for turn in turns:
                self._feed(turn, progress, cancelled)
                if turn is not last:
                    self._decode(turn.tokens, cancelled)
            self._stale = len(turns) < len(self.turns)
            decoded = 0
        self._decode(last.tokens[decoded:], cancelled)

    def _compress(self, turn: Turn, prompt: PromptInfo, cancelled: Callable[[], bool]) -> tuple[Scores, Compression]:
        """Compresses as the turn says. The scores are empty when a policy's sets are evicted once more.

        The engine does not stop in the middle of this: a cancel is seen between its steps.
        """
        assert turn.method is not None
        if turn.policy is None:
            return self.engine.compress(turn.method)
        if turn.kept is not None:
            return _NO_SCORES, self.engine.evict(turn.kept)
        scores = self.engine.score(turn.method)
        refuse_cancelled(cancelled)
        turn.kept, ms_policy = kept_sets(
            turn.policy,
            turn.method,
            scores.scores,
            scores.alive,
            lambda: PolicyContext(prompt.spans, self.engine.prompt_tokens(), scores.elite, turn.keep),
        )
        refuse_cancelled(cancelled)
        strength, skewness = selection.statistics(scores.scores)
        result = self.engine.evict(turn.kept)
        return scores, replace(result, strength=strength, skewness=skewness, ms_score=scores.ms + ms_policy)

    def _begin_again(
        self, turns: list[Turn], progress: Progress, cancelled: Callable[[], bool], report: Report | None
    ) -> PromptInfo:
        """Evaluates a conversation as one prompt, but for what the archive holds of it."""
        parts: list[Part] = [turns[0].fed]
        for last, turn in itertools.pairwise(turns):
            parts += [last.tokens, turn.fed]
        images = [image for turn in turns for image in turn.images]
        observe = turns[-1].method or False
        prompt = unless_cancelled(
            lambda: self.engine.conversation(parts, images, reserve=_RESERVE, observe=observe, progress=progress),
            cancelled,
        )
        archive = self.engine.archive()
        turns[-1].archived = archive.kind != "none"
        if report is not None:
            report.archive, report.archive_bytes, report.archive_note = archive.kind, archive.bytes, archive.why
            report.n_restored, report.ms_restore, report.ms_archive = (
                archive.n_restored,
                archive.ms_restore,
                archive.ms_make,
            )
        return prompt

    def _decode(self, tokens: list[int], cancelled: Callable[[], bool]) -> None:
        for token in tokens:
            unless_cancelled(lambda token=token: self.engine.decode(token), cancelled)  # type: ignore[misc]

    def _feed(
        self,
        turn: Turn,
        progress: Progress,
        cancelled: Callable[[], bool],
        report: Report | None = None,
        before: list[Turn] | None = None,
    ) -> None:
        """Evaluates a turn's prompt and compresses; fills in the report.

        ``before``: turns that are evaluated with it as one prompt, or taken from the archive; None: they lie in the
        engine already.
        """
        method = turn.method if turn.images or before is not None else None
        if before is None:
            observe = method or False
            prompt = unless_cancelled(
                lambda: self.engine.prompt(turn.fed, turn.images, reserve=_RESERVE, observe=observe, progress=progress),
                cancelled,
            )
        else:
            prompt = self._begin_again([*before, turn], progress, cancelled, report)
        compressed = self._compress(turn, prompt, cancelled) if method is not None else None
        refuse_cancelled(cancelled)
        stats = self.engine.stats()
        if before:
            turn.kept = None  # of all images: not what this turn by itself would leave
        turn.n_prompt = prompt.n_tokens - sum(one.n_prompt + len(one.tokens) for one in before or ())
        turn.n_past = stats.n_past
        if report is None:
            return
        report.prompt_tokens, report.visual_tokens, report.spans = prompt.n_tokens, prompt.n_visual, prompt.spans
        report.ms_encode, report.ms_prefill = prompt.ms_encode, prompt.ms_prefill
        report.n_encoded, report.n_reused = prompt.n_encoded, prompt.n_reused
        report.layers, report.kv_bytes = self.info.n_layers, stats.kv_bytes
        report.kv_bytes_reserved, report.kv_bytes_allocated = stats.kv_bytes_reserved, stats.kv_bytes_allocated
        report.process_bytes, report.process_bytes_peak = process_memory()
        if compressed is not None:
            scores, result = compressed
            report.scores, report.observers, report.alive = scores.scores, scores.elite, scores.alive
            report.budgets, report.kept = result.budgets, result.kept
            report.strength, report.skewness = result.strength, result.skewness
            report.kv_bytes_full, report.kv_bytes = result.kv_bytes_full, result.kv_bytes
            report.ms_compress = result.ms_score + result.ms_evict
        elif prompt.n_visual:
            every = np.arange(prompt.n_visual, dtype=np.int32)
            report.kept = [every.copy() for _ in range(self.info.n_layers)]
            report.budgets = np.full(self.info.n_layers, prompt.n_visual, dtype=np.int32)
