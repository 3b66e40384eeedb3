"""`Chat` for asyncio: the same methods as coroutines, streams as asynchronous iterators."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal, TypeVar, overload

from .. import checks
from ..checks import flag
from ..engine.structs import Info
from ..errors import CancelledError, StateError
from ..images import Picture
from ..progress import OnProgress, Stage, callback
from ..spans import Span
from .answer import Answer, AnswerStream
from .async_stream import AsyncAnswerStream
from .chat import Chat
from .many import Answered, Item
from .model import Model
from .options import AskOptions, Unpack, refuse_unknown, says_options
from .session import CANCELLED
from .turns import Turn, Turns

Result = TypeVar("Result")


class AsyncChat:
    """One conversation with a model, for asyncio.

    ::

        async with AsyncChat("model.gguf", keep=0.1) as chat:
            print(await chat.ask("page.png", "What is the total?"))
            async for piece in await chat.ask(None, "And the date?", stream=True):
                print(piece, end="")

    It computes in a thread of its own; the event loop goes on meanwhile. Tasks queue for it in the order of coming. A
    task that is cancelled while its question is answered cancels the question: the conversation is as it was before.
    Several AsyncChats on one `Model` answer at the same time. Callbacks and policies are called in that thread.

    Of one event loop only: that of the first call.

    Args:
        model: As for `Chat`, and so all others. The model is loaded by the ``async with``, or else by the first call.
        mmproj: The projector.
        options: See `Chat`.

    Raises:
        TypeError: `Chat` has no such option. Whatever else it raises comes with the loading.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Model | None = None,
        mmproj: str | os.PathLike[str] | Literal[False] | None = None,
        **options: Any,
    ) -> None:
        inspect.signature(Chat).bind(model, mmproj, **options)
        self._make: Callable[..., Chat] = lambda **more: Chat(model, mmproj, **{**options, **more})
        self._told: OnProgress | None = options.get("on_progress")
        self._loads = not isinstance(model, Model)
        self._made: Chat | None = None
        self._turns = Turns()
        self._stream: Callable[[], AsyncAnswerStream | None] = lambda: None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pyaircache")

    async def __aenter__(self) -> AsyncChat:
        async with Turn(self._turns, "loading", None):
            await self._chat()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Async{self._made!r}" if self._made is not None else "AsyncChat(not loaded yet)"

    @property
    def chat(self) -> Chat:
        """The `Chat` that does the work. It must not be asked meanwhile.

        Raises:
            StateError: It has not been loaded yet.
        """
        if self._made is None:
            raise StateError("this AsyncChat is not loaded yet: `async with` loads it, and so does the first call")
        return self._made

    @property
    def info(self) -> Info:
        """See `Chat.info`; StateError before it is loaded."""
        return self.chat.info

    @property
    def messages(self) -> list[dict[str, Any]]:
        """See `Chat.messages`; StateError before it is loaded."""
        return self.chat.messages

    @overload
    async def ask(
        self,
        image: Picture | Sequence[Picture] | None,
        question: str,
        *,
        follow_up: bool | None = ...,
        stream: Literal[False] = ...,
        **options: Unpack[AskOptions],
    ) -> Answer: ...
    @overload
    async def ask(
        self,
        image: Picture | Sequence[Picture] | None,
        question: str,
        *,
        follow_up: bool | None = ...,
        stream: Literal[True],
        **options: Unpack[AskOptions],
    ) -> AsyncAnswerStream: ...
    @overload
    async def ask(
        self,
        image: Picture | Sequence[Picture] | None,
        question: str,
        *,
        follow_up: bool | None = ...,
        stream: bool,
        **options: Unpack[AskOptions],
    ) -> Answer | AsyncAnswerStream: ...
    @says_options
    async def ask(
        self,
        image: Picture | Sequence[Picture] | None,
        question: str,
        *,
        follow_up: bool | None = None,
        stream: bool = False,
        **options: Unpack[AskOptions],
    ) -> Answer | AsyncAnswerStream:
        """See `Chat.ask`. With ``stream=True`` an `AsyncAnswerStream`, when the prompt has been evaluated.

        Args:
            image: As for `Chat.ask`, and so the next three.
            question: The text of the question.
            follow_up: Whether it follows the conversation so far.
            stream: Whether the answer comes in pieces.
            options: Those of `AskOptions`.
        """
        refuse_unknown("ask()", options, "follow_up", "stream")
        return await self._answer("_ask", image, question, follow_up=follow_up, stream=stream, **options)

    @overload
    async def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        reuse: bool = ...,
        stream: Literal[False] = ...,
        **options: Unpack[AskOptions],
    ) -> Answer: ...
    @overload
    async def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        reuse: bool = ...,
        stream: Literal[True],
        **options: Unpack[AskOptions],
    ) -> AsyncAnswerStream: ...
    @overload
    async def complete(
        self, messages: Sequence[Mapping[str, Any]], *, reuse: bool = ..., stream: bool, **options: Unpack[AskOptions]
    ) -> Answer | AsyncAnswerStream: ...
    @says_options
    async def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        reuse: bool = True,
        stream: bool = False,
        **options: Unpack[AskOptions],
    ) -> Answer | AsyncAnswerStream:
        """See `Chat.complete`.

        Args:
            messages: As for `Chat.complete`, and so the next two.
            reuse: Whether what was evaluated before is taken as it is.
            stream: Whether the answer comes in pieces.
            options: Those of `AskOptions`.
        """
        refuse_unknown("complete()", options, "reuse", "stream")
        return await self._answer("_complete", messages, reuse=reuse, stream=stream, **options)

    @says_options
    async def ask_many(
        self,
        items: Iterable[Item],
        *,
        n_parallel: int = 8,
        n_ctx: int | None = None,
        **options: Unpack[AskOptions],
    ) -> AsyncIterator[Answered]:
        """See `Chat.ask_many`: an asynchronous generator, with threads of its own. They take the questions, too.

        A task that is cancelled while it waits for an answer stops all of them.
        """
        if self._made is None:
            async with Turn(self._turns, "loading", None):
                await self._chat()
        chat = self.chat
        thread = ThreadPoolExecutor(1, thread_name_prefix="pyaircache-many")
        try:
            run = await self._run(lambda: chat._many(items, n_parallel, n_ctx, options), lambda: None, thread)
            answers = run.answers()
            try:
                while True:
                    done = await self._run(lambda: next(answers, None), lambda: run.end(CANCELLED), thread)
                    if done is None:
                        return
                    yield done
            finally:
                await self._run(run.close, lambda: None, thread)
        finally:
            thread.shutdown(wait=False)

    async def spans(self, size: tuple[int, int], *, timeout: float | None = None) -> list[Span]:
        """See `Chat.spans`."""
        return await self._hold("spans()", lambda chat: chat.spans(size), timeout)

    async def undo(self, *, timeout: float | None = None) -> None:
        """See `Chat.undo`."""
        await self._hold("undo()", lambda chat: chat.undo(), timeout)

    async def reset(self, *, timeout: float | None = None) -> None:
        """See `Chat.reset`."""
        await self._hold("reset()", lambda chat: chat.reset(), timeout)

    def cancel(self) -> bool:
        """See `Chat.cancel`: at once, and no coroutine. The task that waits for the answer gets this package's
        CancelledError; a stream that nobody reads ends."""
        if self._made is None:
            return False
        found = self._made.cancel()
        stream = self._stream()
        if stream is not None:
            stream._let_go_if_done()
        return found

    async def close(self) -> None:
        """See `Chat.close`: waits for the call that is running; an open stream ends, and questions that wait get a
        StateError. May be called again."""
        if self._turns.closed:
            return
        self._turns.closed = True

        def end() -> None:
            if self._made is not None:  # looked at behind a loading that is under way
                self._made.close()

        try:
            await self._run(end, lambda: None)
        finally:
            stream = self._stream()
            if stream is not None:
                stream._let_go_if_done()
            self._thread.shutdown(wait=False)

    async def _chat(self) -> Chat:
        """The Chat, loaded if need be; the caller has its turn."""
        over = threading.Event()

        def progress(stage: Stage, done: int, total: int) -> None:
            if over.is_set():
                raise CancelledError("the loading was cancelled")
            if self._told is not None:
                self._told(stage, done, total)

        def make() -> Chat:
            callback(self._told)  # which says what is wrong with it
            made = self._make(on_progress=progress) if self._loads else self._make()
            self._made = made  # here, so that it is not lost with a task that is cancelled meanwhile
            return made

        if self._made is not None:
            return self._made
        return await self._run(make, over.set)

    async def _hold(self, what: str, body: Callable[[Chat], Result], timeout: float | None) -> Result:
        async with Turn(self._turns, what, checks.timeout(timeout)):
            chat = await self._chat()
            return await self._run(lambda: body(chat), lambda: None)

    async def _answer(
        self,
        name: Literal["_ask", "_complete"],
        *what: Any,
        stream: bool,
        timeout: float | None = None,
        **options: Any,
    ) -> Any:
        """Asks, with a turn that stays with a stream."""
        seconds, streams = checks.timeout(timeout), flag("stream", stream)
        async with Turn(self._turns, "a streamed answer" if streams else "a question", seconds) as turn:
            chat = await self._chat()
            lease = chat._lease()
            answer: Answer | AnswerStream = await self._run(
                lambda: getattr(chat, name)(lease, *what, stream=streams, **options), lambda: chat._cancel(lease)
            )
            if not isinstance(answer, AnswerStream):
                return answer
            pieces = AsyncAnswerStream(self._run, self._turns, lambda: chat._cancel(lease), answer, turn.keep())
            self._stream = weakref.ref(pieces)
            return pieces

    async def _run(
        self, call: Callable[[], Result], cancel: Callable[[], object], thread: ThreadPoolExecutor | None = None
    ) -> Result:
        """Calls something in the thread, or in another one. A task that is cancelled cancels it, and goes on when it
        has ended.

        Raises:
            RuntimeError: It raised a StopIteration, which no coroutine can.
        """

        def holdable() -> Result:
            try:
                return call()
            except StopIteration as exc:  # no future holds one: whoever waits for it would do so for ever
                raise RuntimeError("a policy or callback raised StopIteration") from exc

        future = asyncio.get_running_loop().run_in_executor(thread or self._thread, holdable)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            cancel()
            while not future.done():  # whatever else the task is told: the next call must not find this one's traces
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            if not future.cancelled() and future.exception() is None:
                late: object = future.result()
                if isinstance(late, AnswerStream):  # nobody will read it
                    late.end(CANCELLED)
            raise
