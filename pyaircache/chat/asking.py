"""Asking: what `Chat` does with a question, from its arguments to its answer."""

from __future__ import annotations

import sys
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, overload

from .. import checks
from ..checks import flag, shown
from ..engine import fork
from ..errors import CancelledError, PyAircacheWarning
from ..images import Picture
from ..images.load import Loader
from ..methods.choice import choose
from ..methods.method import Method, MethodName
from ..methods.policy import Policy
from ..progress import OnProgress, callback
from . import messages as openai
from .answer import Answer, AnswerStream
from .gate import Gate, Lease
from .options import Options, Schema
from .session import CANCELLED, Question, Request, Session, refuse_cancelled


class Asking:
    """The part of `Chat` that asks."""

    _session: Session
    _gate: Gate
    _pid: int
    _options: Options
    _image_urls: bool

    # fmt: off
    @overload
    def ask(self, image: Picture | Sequence[Picture] | None, question: str, *, follow_up: bool | None = ...,
            keep: float | None = ..., method: MethodName | Method | Policy | None = ...,
            max_tokens: int = ..., temperature: float = ..., top_k: int = ..., top_p: float = ..., min_p: float = ...,
            repeat_penalty: float = ..., seed: int | None = ..., stop: str | Sequence[str] | None = ...,
            json_schema: Schema | None = ..., grammar: str | None = ..., logprobs: int | None = ...,
            stream: Literal[False] = ..., timeout: float | None = ...,
            on_progress: OnProgress | None = ...) -> Answer: ...
    @overload
    def ask(self, image: Picture | Sequence[Picture] | None, question: str, *, follow_up: bool | None = ...,
            keep: float | None = ..., method: MethodName | Method | Policy | None = ...,
            max_tokens: int = ..., temperature: float = ..., top_k: int = ..., top_p: float = ..., min_p: float = ...,
            repeat_penalty: float = ..., seed: int | None = ..., stop: str | Sequence[str] | None = ...,
            json_schema: Schema | None = ..., grammar: str | None = ..., logprobs: int | None = ...,
            stream: Literal[True], timeout: float | None = ...,
            on_progress: OnProgress | None = ...) -> AnswerStream: ...
    @overload
    def ask(self, image: Picture | Sequence[Picture] | None, question: str, *, follow_up: bool | None = ...,
            keep: float | None = ..., method: MethodName | Method | Policy | None = ...,
            max_tokens: int = ..., temperature: float = ..., top_k: int = ..., top_p: float = ..., min_p: float = ...,
            repeat_penalty: float = ..., seed: int | None = ..., stop: str | Sequence[str] | None = ...,
            json_schema: Schema | None = ..., grammar: str | None = ..., logprobs: int | None = ...,
            stream: bool, timeout: float | None = ...,
            on_progress: OnProgress | None = ...) -> Answer | AnswerStream: ...
    # fmt: on
    def ask(
        self,
        image: Picture | Sequence[Picture] | None,
        question: str,
        *,
        follow_up: bool | None = None,
        keep: float | None = None,
        method: MethodName | Method | Policy | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repeat_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        json_schema: Schema | None = None,
        grammar: str | None = None,
        logprobs: int | None = None,
        stream: bool = False,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Answer | AnswerStream:
        """Asks a question.

        With an image a new conversation begins, unless ``follow_up=True``; without one the question follows the
        conversation so far, or is a plain text question when there is none. A question that fails, is cancelled or is
        interrupted leaves the conversation as it was.

        Args:
            image: A path, a file's bytes, a file opened in binary mode, a data URI, a Pillow image, a uint8 array
                [H, W, 3] (or [H, W], [H, W, 4]), a list of these, or None; in each place a `Video` of them, too.
            question: The text of the question.
            follow_up: True: the question, with its images, follows the conversation so far; False: a new conversation
                begins; None: a question with an image begins one, a question without follows.
            keep: Share of this question's visual cells to keep instead of the Chat's own ``keep``. A follow-up without
                an image cannot change what is left of it: another ``keep`` or ``method`` than the conversation's has no
                effect there, and a warning says so.
            method: Instead of the Chat's own, in any form that `Chat` takes.
            max_tokens: Longest answer, in tokens.
            temperature: 0: always the most likely token; higher: more random; at most 1e6.
            top_k: Draw from the k most likely tokens only; 0: from all.
            top_p: Draw from the most likely tokens that have this probability together, in (0, 1]; 1: from all.
            min_p: Draw from tokens that are at least this likely, relative to the most likely one, in [0, 1]; 0: from
                all.
            repeat_penalty: Divides the logits of tokens that were there among the last 64, in [0.01, 100]; 1: off.
            seed: Makes a random answer repeatable, 0 to 2**32 - 2; None: another one each time, which the report tells.
            stop: A text, or up to 64, at which the answer ends; it is no part of the answer.
            json_schema: The answer is JSON of this schema, an object or its text. One that is cut off by ``max_tokens``
                is the beginning of that.
            grammar: The answer follows this GBNF grammar; not together with a schema.
            logprobs: n: `Answer.logprobs` tells how likely each token of the answer was, and of the n most likely
                tokens in its place the same; 0 to 1024; None: nothing.
            stream: Return an iterator over pieces of the answer as they are generated. The prompt is evaluated before
                this call returns.
            timeout: Seconds to wait while the Chat is in use by another question; None: for ever. Only the waiting is
                limited, not the answering.
            on_progress: Called with ("encode", done, total) for images and ("prefill", done, total) for the prompt's
                tokens. What it raises cancels the question and comes out of this call.

        Returns:
            The answer; with ``stream=True`` an ``AnswerStream``, which holds the Chat until it ends.

        Warns:
            PyAircacheWarning: ``keep`` or ``method`` has no effect; or this call has waited long for a stream that
                nobody reads.

        Raises:
            ImageError: An image cannot be read.
            ProjectorError: There is an image, but the model has no projector.
            ContextError: The question does not fit the context window.
            UnsupportedError: This model's cache cannot be compressed (``keep=1.0`` works).
            ArgumentError: A value is outside its limits; or the grammar or schema cannot be followed.
            BusyError: The Chat did not become free in time; or a streamed answer is open, and this is the only thread
                there is, so that nobody could read it while this call waits.
            CancelledError: `cancel` was called.
            StateError: The Chat is closed, or the call comes from inside the Chat's own policy.
            ForkError: This process was forked from the one that made the Chat.
            KeyboardInterrupt: Ctrl-C, after the engine has stopped, which is soon, but not before a picture that is
                being encoded is done (a large one on a CPU: seconds); `cancel`, from another thread, is faster. The
                Chat stays usable.
        """
        # fmt: off
        return self._ask(
            self._lease(), image, question, follow_up=follow_up,
            keep=keep, method=method, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
            min_p=min_p, repeat_penalty=repeat_penalty, seed=seed, stop=stop, json_schema=json_schema,
            grammar=grammar, logprobs=logprobs, stream=stream, timeout=timeout, on_progress=on_progress,
        )
        # fmt: on

    # fmt: off
    @overload
    def complete(self, messages: Sequence[Mapping[str, Any]], *, reuse: bool = ...,
            keep: float | None = ..., method: MethodName | Method | Policy | None = ...,
            max_tokens: int = ..., temperature: float = ..., top_k: int = ..., top_p: float = ..., min_p: float = ...,
            repeat_penalty: float = ..., seed: int | None = ..., stop: str | Sequence[str] | None = ...,
            json_schema: Schema | None = ..., grammar: str | None = ..., logprobs: int | None = ...,
            stream: Literal[False] = ..., timeout: float | None = ...,
            on_progress: OnProgress | None = ...) -> Answer: ...
    @overload
    def complete(self, messages: Sequence[Mapping[str, Any]], *, reuse: bool = ...,
            keep: float | None = ..., method: MethodName | Method | Policy | None = ...,
            max_tokens: int = ..., temperature: float = ..., top_k: int = ..., top_p: float = ..., min_p: float = ...,
            repeat_penalty: float = ..., seed: int | None = ..., stop: str | Sequence[str] | None = ...,
            json_schema: Schema | None = ..., grammar: str | None = ..., logprobs: int | None = ...,
            stream: Literal[True], timeout: float | None = ...,
            on_progress: OnProgress | None = ...) -> AnswerStream: ...
    @overload
    def complete(self, messages: Sequence[Mapping[str, Any]], *, reuse: bool = ...,
            keep: float | None = ..., method: MethodName | Method | Policy | None = ...,
            max_tokens: int = ..., temperature: float = ..., top_k: int = ..., top_p: float = ..., min_p: float = ...,
            repeat_penalty: float = ..., seed: int | None = ..., stop: str | Sequence[str] | None = ...,
            json_schema: Schema | None = ..., grammar: str | None = ..., logprobs: int | None = ...,
            stream: bool, timeout: float | None = ...,
            on_progress: OnProgress | None = ...) -> Answer | AnswerStream: ...
    # fmt: on
    def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        reuse: bool = True,
        keep: float | None = None,
        method: MethodName | Method | Policy | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repeat_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        json_schema: Schema | None = None,
        grammar: str | None = None,
        logprobs: int | None = None,
        stream: bool = False,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Answer | AnswerStream:
        """Answers OpenAI-style messages: they become the conversation, and the answer its end.

        What the present conversation has in common with them, from its beginning, is not evaluated again: answers that
        were given here, and images that were compressed with the same ``keep`` and ``method`` by the questions then.
        The rest is one prompt, whose images are compressed together, by the last question. Earlier messages of the
        assistant are taken as they are. A Chat's ``system`` begins messages that have none.

        Args:
            messages: Dictionaries with ``role`` (system, user or assistant; the last one is the user's) and
                ``content``: a text, or a list of ``{"type": "text", "text": ...}`` and ``{"type": "image_url",
                "image_url": {"url": ...}}``. An address is a data URI, or an image in any other form that `ask` takes
                but the name of a file as a str: that would let whoever wrote the messages read files;
                ``pathlib.Path(name)`` is taken.
            reuse: False: evaluate all of it, whatever the present conversation is.
            keep: This and all others as for `ask`.

        Returns:
            As `ask`.

        Raises:
            ArgumentError: The messages are something else. Others as for `ask`.
        """
        # fmt: off
        return self._complete(
            self._lease(), messages, reuse=reuse,
            keep=keep, method=method, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
            min_p=min_p, repeat_penalty=repeat_penalty, seed=seed, stop=stop, json_schema=json_schema,
            grammar=grammar, logprobs=logprobs, stream=stream, timeout=timeout, on_progress=on_progress,
        )
        # fmt: on

    def _lease(self) -> Lease:
        return Lease(self._gate, "a question", question=True)

    def _loader(self, lease: Lease) -> Loader:
        """Reads the pictures of one question, unless it is cancelled."""
        return Loader(self._image_urls, lambda: refuse_cancelled(lambda: lease.cancelled))

    def _ask(
        self, lease: Lease, image: Any, question: Any, *, follow_up: bool | None, **options: Any
    ) -> Answer | AnswerStream:
        """As `ask`, with a place in the queue that the caller may cancel."""
        follows = image is None if follow_up is None else flag("follow_up", follow_up)

        def given() -> list[openai.Given]:
            return [openai.question(image, question, self._session.marker, self._loader(lease))]

        return self._answer(lease, given, f"the question {shown(question)}", follows, whole=False, **options)

    def _complete(self, lease: Lease, messages: Any, *, reuse: bool, **options: Any) -> Answer | AnswerStream:
        """As `complete`, with a place in the queue that the caller may cancel."""
        follows = flag("reuse", reuse)

        def given() -> list[openai.Given]:
            return openai.parse(messages, self._session.marker, self._loader(lease))

        return self._answer(lease, given, "messages", follows, whole=True, **options)

    def _answer(
        self,
        lease: Lease,
        given: Callable[[], list[openai.Given]],
        what: str,
        follow_up: bool,
        *,
        whole: bool,
        keep: float | None,
        method: Any,
        stream: bool,
        timeout: float | None,
        on_progress: OnProgress | None,
        **options: Any,
    ) -> Answer | AnswerStream:
        """Reads the arguments, waits for the Chat, and answers."""
        started = time.perf_counter()
        default = self._options
        chosen = Options(
            keep=default.keep if keep is None else keep,
            choice=default.choice if method is None else choose(method),
            **options,
        )
        flag("stream", stream)
        seconds, told = checks.timeout(timeout), callback(on_progress)
        fork.check(self._pid)
        with self._gate.preparing(lease):
            request = Request(given(), chosen, follow_up, whole, told)
            lease.what = f"a streamed answer to {what.removeprefix('the question ')}" if stream else what

            def begin() -> AnswerStream:
                self._refuse_closed()
                asked = self._session.begin(request, lambda: lease.cancelled)
                _warn_of_no_effect(asked, keep is not None, method is not None)
                answer = AnswerStream(self._session, asked, started, lease, self)
                try:
                    if stream:
                        lease.stream = weakref.ref(answer)
                    if lease.cancelled:  # by a thread that did not see the stream yet
                        raise CancelledError(CANCELLED)
                    return answer
                except BaseException as exc:
                    answer.abandon(exc)
                    raise

            if stream:
                return self._gate.enter(lease, begin, seconds)
            return self._gate.hold(lease, lambda: begin().read(), seconds)

    def _refuse_closed(self) -> None:
        raise NotImplementedError


def _warn_of_no_effect(asked: Question, keep: bool, method: bool) -> None:
    """Says so where a question without an image was given a ``keep`` or a ``method`` that is not what holds."""
    options, report = asked.options, asked.report
    changes, holds = [], []
    if keep and options.keep != report.keep:
        changes.append(f"keep={options.keep:g}")
        holds.append(f"keep={report.keep:g}")
    if method and options.choice.name != report.method:
        changes.append(f"method={options.choice.name}")
        holds.append(f"method={report.method}")
    if not changes or asked.turn.images:
        return
    why = "there is no image in this conversation"
    if any(turn.images for turn in asked.turns):
        why = (
            "a follow-up reads its image as it was kept for the question about it "
            f"({', '.join(holds)}); ask with the image again"
        )
    warning(f"{' and '.join(changes)} {'has' if len(changes) == 1 else 'have'} no effect: {why}")


def warning(message: str) -> None:
    """Warns about the line outside this package."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__package__") == __package__:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, PyAircacheWarning, stacklevel=level)
