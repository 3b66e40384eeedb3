"""Answers the questions of a list with a Chat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ..chat.chat import Chat
from ..chat.many import Answered
from ..chat.options import AskOptions
from ..errors import ArgumentError
from ..methods import grammar
from ..methods.choice import choose, refined
from .lists import Question, placed

_NOT_IN_LISTS = ("timeout", "on_progress")
_LEAST = 256  # cells


@dataclass(frozen=True)
class Job:
    """What all questions have in common; plain values, so that it reaches other machines.

    Attributes:
        folder: Where the names of pictures are counted from.
        chat: Options of `Chat`, without ``n_ctx``.
        asking: `AskOptions`.
        parts: Parts of the method in words, as on the command line: they hold for lines that replace some of them.
        seed: Of random scores.
        n_parallel: Questions at the same time.
        n_ctx: Context window of each; 0: the model's own, at most 32768.
    """

    folder: str
    chat: Mapping[str, Any] = field(default_factory=dict)
    asking: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    n_parallel: int = 8
    n_ctx: int = 0

    def open(self) -> Chat:
        """A Chat to ask with, which holds no conversation of its own."""
        return Chat(n_ctx=_LEAST, **self.chat)


def item_of(question: Question, job: Job) -> dict[str, Any]:
    """A question as `Chat.ask_many` takes it.

    Raises:
        ArgumentError: Its line cannot be read, or has something that no question has.
    """
    if question.error is not None:
        raise ArgumentError(question.error)
    fields = {name: value for name, value in question.fields.items() if name != "id"}
    words = [part.name for part in grammar.parts() if part.name not in ("keep", "seed")]
    options = [name for name in AskOptions.__annotations__ if name not in _NOT_IN_LISTS]
    known = list(dict.fromkeys(["image", "question", *options, *words]))
    for name in fields:
        if name not in known:
            raise ArgumentError(f"a line has no {name!r}: there are id, {', '.join(known)}")
    item = {name: value for name, value in fields.items() if name not in words}
    item["image"] = placed(item.get("image"), Path(job.folder))
    parts = {name: str(fields[name]) for name in words if name in fields}
    if parts:
        common = {} if "method" in parts else dict(job.parts)  # another method begins anew
        texts = {name: text for name, text in {**common, **parts}.items() if name != "keep"}
        name = texts.pop("method", "aircache")
        method, alpha = refined(name, texts, fields.get("seed", job.seed))
        item["method"] = method if alpha is None else choose(method, alpha).method
    return item


def result_of(question: Question, done: Answered) -> dict[str, Any]:
    """The line of results for a question that is done."""
    if done.answer is None:
        return failed(question, done.error)
    report = done.answer.report
    numbers = report.to_dict(scalars_only=True)
    return question.result(answer=str(done.answer), **numbers, budgets=report.budgets.tolist())


def failed(question: Question, error: Exception | None) -> dict[str, Any]:
    """The line of results for a question that has no answer."""
    return question.result(error=str(error), error_type=type(error).__name__)


def answers(chat: Chat, job: Job, questions: Iterable[Question]) -> Iterator[dict[str, Any]]:
    """The results, as they are ready."""
    asked: list[Question] = []
    wrong: list[dict[str, Any]] = []

    def items() -> Iterator[dict[str, Any]]:
        for question in questions:
            try:
                item = item_of(question, job)
            except (ArgumentError, TypeError, ValueError) as exc:
                wrong.append(failed(question, exc))
                continue
            asked.append(question)
            yield item

    options: Any = {"n_parallel": job.n_parallel, "n_ctx": job.n_ctx, **job.asking}
    with closing(cast(Any, chat.ask_many(items(), **options))) as found:
        for done in found:
            yield result_of(asked[done.index], done)
            while wrong:
                yield wrong.pop(0)
    yield from wrong
