"""--aircache-archive: every question sees the whole images, which are neither encoded nor decoded again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .conftest import Launch, Page, Server

Fresh = Callable[..., str]
ON = ("--aircache-archive", "64", "--aircache-keep", "0.1")
QUESTIONS = ["And the next row?", "What is the Order No?", "What is it?", "Total?"]


def first_probs(server: Server, messages: list[dict[str, Any]], **extra: Any) -> dict[str, float]:
    """Log probabilities of the first two tokens' likeliest alternatives."""
    answer = server.ask(messages, logprobs=True, top_logprobs=5, max_tokens=2, extra_body=extra)
    tokens = answer.choices[0].logprobs.content
    return {f"{i} {one.token}": one.logprob for i, token in enumerate(tokens) for one in token.top_logprobs}


def recalled(answer: Any, n_before: int = 80) -> str:
    """The text of an answer whose images were not processed again."""
    timings = answer.model_extra["timings"]
    assert timings["aircache"]["recalled_tokens"] == timings["cache_n"] > n_before
    assert timings["aircache"]["ms"] > 0  # but compressed
    return answer.choices[0].message.content


def test_the_next_turns_see_the_whole_image(launch: Launch, fresh: Fresh, pages: list[Page]) -> None:
    with launch(*ON) as server:
        talk = pages[0].ask()
        text = server.text(talk)
        assert text == fresh(talk, 0.1)
        for question in QUESTIONS:
            talk = [*talk, {"role": "assistant", "content": text}, {"role": "user", "content": question}]
            text = recalled(server.ask(talk))
            assert text == fresh(talk, 0.1)  # as if nothing had been asked before
        assert server.metric("aircache_prompts_recalled_total") == len(QUESTIONS)
        assert server.metric("aircache_images_reused_total") == 0  # nothing was decoded from embeddings either


def test_another_conversation_on_the_same_image(launch: Launch, pages: list[Page]) -> None:
    asked = [pages[0].ask(question) for question in QUESTIONS]
    with launch(*ON, slots=2) as server, launch("--cache-ram", "0") as plain:
        server.ask(pages[0].ask())
        for messages in asked:
            got = first_probs(server, messages)
            assert got == pytest.approx(first_probs(plain, messages, aircache_keep=0.1), abs=1e-3)
        assert server.metric("aircache_prompts_recalled_total") == len(asked)


def test_another_method_and_keep(launch: Launch, fresh: Fresh, pages: list[Page]) -> None:
    other = {"aircache_method": "snapkv", "aircache_window": "visual:16"}
    with launch(*ON) as server, launch("--cache-ram", "0") as plain:
        server.ask(pages[0].ask())
        assert recalled(server.ask(pages[0].ask(), 0.3)) == fresh(pages[0].ask(), 0.3)
        expected = first_probs(plain, pages[0].ask(), aircache_keep=0.2, **other)
        for _ in range(2):  # the first one has to observe visual tokens: decoded again, and archived with them
            assert first_probs(server, pages[0].ask(), aircache_keep=0.2, **other) == pytest.approx(expected, abs=1e-3)
        assert server.text(pages[0].ask(), 1.0) == fresh(pages[0].ask(), 1.0)


def test_a_new_image_in_a_later_turn(launch: Launch, fresh: Fresh, pages: list[Page]) -> None:
    with launch(*ON) as server:
        first = server.text(pages[0].ask())
        second = [*pages[0].ask(), {"role": "assistant", "content": first}, *pages[1].ask()]
        text = recalled(server.ask(second))
        assert text == fresh(second, 0.1)
        third = [*second, {"role": "assistant", "content": text}, {"role": "user", "content": "Total?"}]
        n_first = server.ask(pages[0].ask()).usage.prompt_tokens
        assert recalled(server.ask(third), n_first) == fresh(third, 0.1)


def test_bounded_oldest_first(launch: Launch, fresh: Fresh, pages: list[Page]) -> None:
    with launch(*ON) as server:
        server.ask(pages[0].ask())
        one = server.metric("aircache_archive_bytes")
    limit = 1.5 * one / 2**20
    with launch("--aircache-archive", f"{limit:.3f}", "--aircache-keep", "0.1") as server:
        for page in [*pages[:3], pages[0]]:
            assert server.text(page.ask()) == fresh(page.ask(), 0.1)
            assert 0 < server.metric("aircache_archive_bytes") <= limit * 2**20
        assert server.metric("aircache_prompts_recalled_total") == 0
        recalled(server.ask(pages[0].ask("What is it?")))
    with launch("--aircache-archive", "0.001", "--aircache-keep", "0.1") as server:
        for _ in range(2):
            assert server.text(pages[0].ask()) == fresh(pages[0].ask(), 0.1)
        assert server.metric("aircache_archive_bytes") == 0


def test_beside_a_bound_of_the_kv_memory(launch: Launch, fresh: Fresh, pages: list[Page]) -> None:
    with launch() as server:
        n_cells = server.ask(pages[0].ask()).usage.total_tokens
    with launch(*ON, "--aircache-kv-memory", f"{n_cells + 200}cells", slots=3) as server:
        for question in [pages[0].question, *QUESTIONS]:
            assert server.text(pages[0].ask(question)) == fresh(pages[0].ask(question), 0.1)
