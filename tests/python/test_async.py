"""AsyncChat: coroutines, streams, tasks that are cancelled. On the engine without a model, but for the last test."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fake_engine import FakeModel
from threading_tools import IMAGE, PATIENCE, Stopped, turns

from pyaircache import ArgumentError, AsyncChat, BusyError, CancelledError, ContextError, Model, StateError


def run(main: Callable[[AsyncChat], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    """A coroutine with a Chat that is closed afterwards."""

    async def whole() -> Any:
        async with AsyncChat("fake.gguf", keep=0.5, **options) as chat:
            return await asyncio.wait_for(main(chat), PATIENCE)

    return asyncio.run(whole())


async def entered(stopped: Stopped) -> None:
    """Waits until the engine's thread has come to the stop."""
    assert await asyncio.to_thread(stopped.entered.wait, PATIENCE)


def test_questions_of_several_tasks_are_answered_in_the_order_of_asking(fake):
    async def main(chat: AsyncChat) -> None:
        answers = await asyncio.gather(chat.ask(IMAGE, "0"), *(chat.ask(None, str(i)) for i in range(1, 5)))
        assert answers == ["hello"] * 5 and answers[0].report.visual_tokens == 6
        assert [turn.content for turn in chat.chat._session.turns] == ["<image>0", "1", "2", "3", "4"]
        await chat.undo()
        assert len(chat.messages) == 8 and chat.info.architecture == "fake"
        await chat.reset()
        assert chat.messages == [] and len(await chat.spans((28, 28))) == 1
        answer = await chat.complete([{"role": "user", "content": "And?"}], logprobs=1)
        assert answer == "hello" and len(answer.logprobs) == 5
        with pytest.raises(ArgumentError, match="keep"):
            await chat.ask(None, "What?", keep=2)

    run(main)


def test_the_loop_goes_on_meanwhile(fake):
    async def main(chat: AsyncChat) -> None:
        stopped = Stopped(chat.chat, "prompt")
        asking = asyncio.create_task(chat.ask(IMAGE, "What?"))
        await entered(stopped)
        with pytest.raises(BusyError, match="busy after .* with a question"):
            await chat.ask(None, "And?", timeout=0)
        stopped.go_on.set()
        assert await asking == "hello"
        assert await chat.ask(None, "And?", timeout=0) == "hello"

    run(main)


def test_a_callback_that_stops_an_iteration(fake):
    def stops(*progress: object) -> None:
        raise StopIteration

    async def main(chat: AsyncChat) -> None:
        with pytest.raises(RuntimeError, match="a policy or callback raised StopIteration") as caught:
            await chat.ask(IMAGE, "What?", on_progress=stops)
        assert isinstance(caught.value.__cause__, StopIteration)
        assert await chat.ask(IMAGE, "What?") == "hello"

    run(main)


def test_streams(fake):
    async def main(chat: AsyncChat) -> None:
        stream = await chat.ask(IMAGE, "What?", stream=True)
        waiting = asyncio.create_task(chat.ask(None, "And?"))
        assert [piece async for piece in stream] == list("hello")
        assert stream.done and stream.report.stop_reason == "end" and stream.answer == "hello"
        assert await waiting == "hello"
        async with await chat.ask(None, "Three?", stream=True) as stream:
            assert await anext(stream) == "h"
        assert stream.report.stop_reason == "closed"
        assert await (await chat.ask(None, "Four?", stream=True)).read() == "hello"
        assert [answer for _, answer in turns(chat.chat)] == ["hello", "hello", "h", "hello"]

    run(main)


def test_a_dropped_stream_gives_the_turn_back(fake):
    async def main(chat: AsyncChat) -> None:
        async for _ in await chat.ask(IMAGE, "What?", stream=True):
            break
        gc.collect()
        assert await chat.ask(None, "And?") == "hello"

    run(main)


@pytest.mark.parametrize("call", ["prompt", "decode"])
def test_a_cancelled_task_cancels_its_question(fake, call):
    async def main(chat: AsyncChat) -> None:
        await chat.ask(IMAGE, "One?")
        before = turns(chat.chat)
        stopped = Stopped(chat.chat, call)
        asking = asyncio.create_task(chat.ask(None, "Two?"))
        await entered(stopped)
        asking.cancel()
        asyncio.get_running_loop().call_soon(stopped.go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert turns(chat.chat) == before
        assert await chat.ask(None, "Three?") == "hello"

    run(main)


def test_a_cancelled_task_in_the_queue_leaves_the_others_alone(fake):
    async def main(chat: AsyncChat) -> None:
        stream = await chat.ask(IMAGE, "What?", stream=True)
        waiting = asyncio.create_task(chat.ask(None, "Two?"))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await stream.read() == "hello"

    run(main)


def test_a_cancelled_reader_cancels_the_stream(fake):
    async def main(chat: AsyncChat) -> None:
        stream = await chat.ask(IMAGE, "What?", stream=True)
        assert await anext(stream) == "h"
        stopped = Stopped(chat.chat, "decode")
        reading = asyncio.create_task(stream.read())
        await entered(stopped)
        reading.cancel()
        asyncio.get_running_loop().call_soon(stopped.go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert stream.report.stop_reason == "cancelled" and turns(chat.chat) == []
        assert await chat.ask(None, "And?") == "hello"

    run(main)


def test_cancel_ends_a_stream_that_nobody_reads(fake):
    async def main(chat: AsyncChat) -> None:
        assert not chat.cancel()
        stream = await chat.ask(IMAGE, "What?", stream=True)
        assert chat.cancel()
        assert await chat.ask(None, "And?", timeout=0) == "hello"
        with pytest.raises(CancelledError):
            await anext(stream)

    run(main)


def test_close_ends_streams_and_refuses_what_waits(fake):
    with pytest.raises(TypeError, match="keeep"):
        AsyncChat(keeep=1)

    async def main() -> None:
        chat = AsyncChat("fake.gguf")
        with pytest.raises(StateError, match="not loaded"):
            _ = chat.chat
        stream = await chat.ask(IMAGE, "What?", stream=True)  # loads it
        waiting = asyncio.create_task(chat.ask(None, "And?"))
        await asyncio.sleep(0)
        await chat.close()
        await chat.close()
        for call in (waiting, chat.ask(None, "What?"), anext(stream)):
            with pytest.raises(StateError, match="closed"):
                await call

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_a_task_that_is_cancelled_ends_the_loading(fake, monkeypatch):
    """At the loading's next step, without waiting for its end; the next call loads anew."""
    reached, told = threading.Event(), []

    class Slow(FakeModel):
        def __init__(self, *arguments: Any, progress: Any, **options: Any) -> None:
            reached.set()
            while not told or told[-1] < 3:  # the third time nobody cancels
                progress(0, len(told), 1000)
            super().__init__(*arguments, **options)

    monkeypatch.setattr("pyaircache.chat.model.EngineModel", Slow)

    async def main() -> None:
        chat = AsyncChat("fake.gguf", on_progress=lambda stage, done, total: told.append(0 if asking else 3))
        asking: list[asyncio.Task[Any]] = [asyncio.create_task(chat.ask(None, "What?"))]
        assert await asyncio.to_thread(reached.wait, PATIENCE)
        asking[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking[0]
        asking.clear()
        assert await chat.ask(None, "What?") == "hello"
        await chat.close()

    asyncio.run(main())


def test_a_task_that_is_cancelled_while_it_loads_loses_no_model(fake, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    made = fake.__init__

    def load(self: Any, *arguments: Any, **options: Any) -> None:
        begun.set()
        assert go_on.wait(PATIENCE)
        made(self, *arguments, **options)

    monkeypatch.setattr(fake, "__init__", load)

    async def main() -> None:
        chat = AsyncChat("fake.gguf")
        asking = asyncio.create_task(chat.ask(None, "What?"))
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        asking.cancel()
        asyncio.get_running_loop().call_soon(go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await asking
        loaded = chat.chat
        await chat.close()
        assert loaded._engine.closed and loaded.model.closed

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_errors_and_progress_come_from_the_thread(fake):
    seen: list[tuple[Any, ...]] = []

    async def main(chat: AsyncChat) -> None:
        await chat.ask(None, "What?", on_progress=lambda *told: seen.append((threading.get_ident(), *told)))
        chat.chat._engine.fail["prompt"] = ContextError("too long")
        with pytest.raises(ContextError):
            await chat.ask(None, "And?")

    run(main)
    assert [told[1:3] for told in seen] == [("prefill", 0)] and seen[0][0] != threading.get_ident()


def test_two_on_one_model_answer_together(engine, samples):
    """The real engine: each in its own thread, and both read their page."""

    async def main() -> None:
        with Model(n_threads=1) as model:
            async with AsyncChat(model, keep=1.0) as one, AsyncChat(model, keep=1.0) as two:
                asked = [(one, samples[0]), (two, samples[1])]
                answers = await asyncio.gather(*(chat.ask(s.picture, s.question) for chat, s in asked))
        assert answers == [samples[0].answer, samples[1].answer]

    asyncio.run(asyncio.wait_for(main(), 10 * PATIENCE))
