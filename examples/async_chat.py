"""Questions from coroutines: two conversations at once on one model, and an answer piece by piece.

python examples/async_chat.py
"""

import asyncio

from pyaircache import AsyncChat, Model, sample


async def ask(model: Model, number: int) -> str:
    """A conversation of its own; a task that is cancelled cancels its question."""
    page = sample(number)
    async with AsyncChat(model, keep=0.10, n_ctx=1024) as chat:
        return f"{page.question} {await chat.ask(page.path, page.question)}"


async def main() -> None:
    with Model(n_threads=1) as model:
        for line in await asyncio.gather(*(ask(model, number) for number in range(3))):
            print(line)

        page = sample(3)
        async with AsyncChat(model) as chat, await chat.ask(page.path, page.question, stream=True) as stream:
            async for piece in stream:
                print(piece, end="", flush=True)
            print()


asyncio.run(main())
