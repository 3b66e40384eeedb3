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
from ..errors import ArgumentError, CancelledError, PyAircacheWarning
from ..images import Picture
from ..images.load import Loader
from ..methods.choice import choose
from ..progress import OnProgress, callback
from . import messages as openai
from .answer import Answer, AnswerStream
from .conversation import Turn
from .gate import Gate, Lease
from .options import AskOptions, Options, Unpack, refuse_unknown, says_options
from .session import CANCELLED, Question, Request, Session, refuse_cancelled


class Asking:
    """The part of `Chat` that asks."""

    _session: Session
    _gate: Gate
    _pid: int
    _options: Options
    _image_urls: bool

    @overload
    def ask(
        self,
        image: Picture | Sequence[Picture] | None,
        question: str,
        *,
        follow_up: bool | None = ...,
        stream: Literal[False] = ...,
        **options: Unpack[AskOptions],
    ) -> Answer: ...
    @overload
    def ask(
        self,
        image: Picture | Sequence[Picture] | None,
        question: str,
        *,
        follow_up: bool | None = ...,
        stream: Literal[True],
        **options: Unpack[AskOptions],
    ) -> AnswerStream: ...
    @overload
    def ask(
        self,
        image: Picture | Sequence[Picture] | None,
        question: str,
        *,
        follow_up: bool | None = ...,
        stream: bool,
        **options: Unpack[AskOptions],
    ) -> Answer | AnswerStream: ...
    @says_options
    def ask(
        self,
        image: Picture | Sequence[Picture] | None,
        question: str,
        *,
        follow_up: bool | None = None,
        stream: bool = False,
        **options: Unpack[AskOptions],
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
            stream: Return an iterator over pieces of the answer as they are generated. The prompt is evaluated before
                this call returns.
            options: Those of `AskOptions`.

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
        return self._ask(self._lease(), image, question, follow_up=follow_up, stream=stream, **options)

    @overload
    def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        reuse: bool = ...,
        stream: Literal[False] = ...,
        **options: Unpack[AskOptions],
    ) -> Answer: ...
    @overload
    def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        reuse: bool = ...,
        stream: Literal[True],
        **options: Unpack[AskOptions],
    ) -> AnswerStream: ...
    @overload
    def complete(
        self, messages: Sequence[Mapping[str, Any]], *, reuse: bool = ..., stream: bool, **options: Unpack[AskOptions]
    ) -> Answer | AnswerStream: ...
    @says_options
    def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        reuse: bool = True,
        stream: bool = False,
        **options: Unpack[AskOptions],
    ) -> Answer | AnswerStream:
        """Answers OpenAI-style messages: they become the conversation, and the answer its end.

        What the present conversation has in common with them, from its beginning, is not evaluated again: answers that
        were given here, and images that were compressed with the same ``keep`` and ``method`` by the questions then.
        The rest is one prompt, whose images are compressed together, by the last question. Earlier messages of the
        assistant are taken as they are. ``system`` begins messages that have none.

        Args:
            messages: Dictionaries with ``role`` (system, user or assistant; the last one is the user's) and
                ``content``: a text, or a list of ``{"type": "text", "text": ...}`` and ``{"type": "image_url",
                "image_url": {"url": ...}}``. An address is a data URI, or an image in any other form that `ask` takes
                but the name of a file as a str: that would let whoever wrote the messages read files;
                ``pathlib.Path(name)`` is taken.
            reuse: False: evaluate all of it, whatever the present conversation is.
            stream: As for `ask`.
            options: Those of `AskOptions`.

        Returns:
            As `ask`.

        Raises:
            ArgumentError: The messages are something else. Others as for `ask`.
        """
        return self._complete(self._lease(), messages, reuse=reuse, stream=stream, **options)

    def _lease(self) -> Lease:
        return Lease(self._gate, "a question", question=True)

    def _loader(self, lease: Lease) -> Loader:
        """Reads the pictures of one question, unless it is cancelled."""
        return Loader(self._image_urls, lambda: refuse_cancelled(lambda: lease.cancelled))

    def _ask(
        self, lease: Lease, image: Any, question: Any, *, follow_up: bool | None, **options: Any
    ) -> Answer | AnswerStream:
        """As `ask`, with a place in the queue that the caller may cancel."""
        refuse_unknown("ask()", options, "follow_up", "stream")
        follows = image is None if follow_up is None else flag("follow_up", follow_up)

        def given() -> list[openai.Given]:
            return [openai.question(image, question, self._session.marker, self._loader(lease))]

        return self._answer(lease, given, f"the question {shown(question)}", follows, whole=False, **options)

    def _complete(self, lease: Lease, messages: Any, *, reuse: bool, **options: Any) -> Answer | AnswerStream:
        """As `complete`, with a place in the queue that the caller may cancel."""
        refuse_unknown("complete()", options, "reuse", "stream")
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
        stream: bool,
        keep: float | None = None,
        method: Any = None,
        system: Any = None,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> Answer | AnswerStream:
        """Reads the arguments, waits for the Chat, and answers."""
        started = time.perf_counter()
        chosen = chosen_options(self._options, keep, method, system, **options)
        flag("stream", stream)
        seconds, told = checks.timeout(timeout), callback(on_progress)
        fork.check(self._pid)
        with self._gate.preparing(lease):
            request = Request(given(), chosen, follow_up, whole, told)
            if whole and system:
                _refuse_two_systems(request)
            lease.what = f"a streamed answer to {what.removeprefix('the question ')}" if stream else what

            def begin() -> AnswerStream:
                self._refuse_closed()
                if system is not None and follow_up and not whole:
                    _refuse_another_system(self._session.turns, chosen.system)
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


def chosen_options(default: Options, keep: float | None, method: Any, system: Any, **options: Any) -> Options:
    """Options of a question, as it names them or as the Chat has them.

    Raises:
        ArgumentError: A value is outside its limits.
    """
    return Options(
        keep=default.keep if keep is None else keep,
        choice=default.choice if method is None else choose(method),
        system=default.system if system is None else None if system is False else system,
        **options,
    )


def _refuse_two_systems(request: Request) -> None:
    """For messages that bring a system message where ``system`` gives another."""
    if any(one.role == "system" for one in request.given):
        raise ArgumentError("the messages have a system message already, and system= gives another; give one of them")


def _refuse_another_system(turns: Sequence[Turn], system: str | None) -> None:
    """For a question that follows others and names a system message: only theirs is there."""
    if not turns:
        return
    first = turns[0].given[0]
    theirs = first.content if first.role == "system" else None
    if system != theirs:
        what = f"began with the system message {shown(theirs)}" if theirs is not None else "has no system message"
        raise ArgumentError(
            f"system must be that of the conversation, which {what}; got {shown(system)}: leave it out, or begin a new "
            "conversation (follow_up=False)"
        )


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
