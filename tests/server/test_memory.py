"""--aircache-kv-memory: many compressed conversations in the memory of few whole ones, and who waits for it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from .conftest import CTX, Launch, Page, Server, free_port

Fresh = Callable[..., str]
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def n_cells(launch: Launch, pages: list[Page]) -> int:
    """Of the largest sample page with its question and answer."""
    with launch() as server:
        return max(server.ask(page.ask()).usage.total_tokens for page in pages)


def waiting(server: Server) -> list[dict[str, Any]]:
    return server.http.get("/slots").json()[0]["aircache_memory"]["waiting"]


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 30
    while not (got := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return got


def next_turn(first: list[dict[str, Any]], answer: str) -> list[dict[str, Any]]:
    return [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "And the next row?"}]


def two_pages(pages: list[Page], i: int, greeting: str = "") -> list[dict[str, Any]]:
    """A prompt of two images, which is most of a slot."""
    first, second = pages[i % 4], pages[(i + 1) % 4]
    text = {"type": "text", "text": greeting + second.question}
    return [{"role": "user", "content": [first.part(), second.part(), text]}]


def test_sixteen_conversations_in_the_memory_of_four(launch: Launch, pages: list[Page]) -> None:
    talks = [two_pages(pages, i, f"Visitor {i}: ") for i in range(16)]

    with launch("--aircache-keep", "0.1", "--cache-ram", "0") as alone:  # one after another
        expected = []
        for talk in talks:
            text = alone.text(talk)
            expected.append((text, alone.text(next_turn(talk, text))))

    options = ["--aircache-keep", "0.1", "--cache-ram", "0", "--aircache-kv-memory", f"{4 * CTX}cells"]
    with launch(*options, slots=16) as server, ThreadPoolExecutor(16) as pool:
        first = list(pool.map(server.text, talks))
        assert first == [text for text, _ in expected]
        shares = [slot["aircache_memory"] for slot in server.http.get("/slots").json()]
        assert all(share["kv_bytes"] > 0 for share in shares)  # all are there
        assert shares[0]["kv_bytes_used"] < shares[0]["kv_bytes_budget"]
        assert server.metric("aircache_conversations_dropped_total") == 0

        answers = list(pool.map(server.ask, [next_turn(*pair) for pair in zip(talks, first, strict=True)]))
        assert [answer.choices[0].message.content for answer in answers] == [text for _, text in expected]
        assert all(answer.model_extra["timings"]["aircache"]["ms"] == 0 for answer in answers)
        server.wait_idle()
        assert server.metric("aircache_requests_waiting") == 0


def test_others_beside_compressed_ones(launch: Launch, fresh: Fresh, pages: list[Page], n_cells: int) -> None:
    jobs = [(page.ask(), keep) for page in pages[:3] for keep in (0.1, 1.0)] + [(HELLO, 1.0)] * 2
    with launch("--aircache-kv-memory", f"{2 * n_cells}cells", slots=8) as server, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda job: server.text(*job), jobs)) == [fresh(*job) for job in jobs]


def test_what_waits_says_why(launch: Launch, fresh: Fresh, pages: list[Page]) -> None:
    large = two_pages(pages, 1)
    with launch() as server:
        n_first, n_large = (
            server.ask(messages, max_tokens=1).usage.prompt_tokens for messages in (pages[0].ask(), large)
        )
    # the first one claims 64 cells for its answer at once: then the large one does not fit
    options = ["--aircache-kv-memory", f"{n_first + 64 + n_large}cells", "--aircache-keep", "0.1"]
    with launch(*options, slots=4) as server, ThreadPoolExecutor(3) as pool:
        endless = {"max_tokens": n_large, "extra_body": {"ignore_eos": True}}
        with server.ask(pages[0].ask(), 1.0, stream=True, **endless) as stream:
            next(iter(stream))
            late = []
            for messages in (large, HELLO):
                late.append(pool.submit(server.text, messages))
                wait_for(lambda: len(waiting(server)) == len(late), "nobody waits")
            assert server.metric("aircache_requests_waiting") == 2
            reasons = [task["reason"] for task in waiting(server)]
            assert "KV memory" in reasons[0] and "came before" in reasons[1]  # a small one does not overtake
            with pytest.raises(openai.APITimeoutError):
                server.ask(pages[2].ask(), timeout=0.2)
            wait_for(lambda: len(waiting(server)) <= 2, "the cancelled one still waits")
        assert late[0].result() == fresh(large, 0.1)
        assert late[1].result() == fresh(HELLO, 1.0)
        assert waiting(server) == []


def test_what_can_never_fit_is_refused(launch: Launch, pages: list[Page], n_cells: int) -> None:
    with launch("--aircache-kv-memory", f"{n_cells // 2}cells", "--aircache-keep", "0.1") as server:
        with pytest.raises(openai.BadRequestError, match="--aircache-kv-memory"):
            server.ask(pages[0].ask())
        assert server.text(HELLO)


def test_idle_conversations_make_room_and_come_back(
    launch: Launch, fresh: Fresh, pages: list[Page], n_cells: int
) -> None:
    options = ["--aircache-kv-memory", f"{n_cells + 20}cells", "--aircache-keep", "0.1"]
    with launch(*options, slots=4) as server:
        texts = [server.text(page.ask()) for page in pages[:4]]
        dropped = server.metric("aircache_conversations_dropped_total")
        assert dropped >= 1
        held = [slot["aircache_memory"]["kv_bytes"] for slot in server.http.get("/slots").json()]
        assert held.count(0) == dropped
        second = next_turn(pages[0].ask(), texts[0])  # the oldest one, which is in the host's memory now
        answer = server.ask(second)
        assert answer.model_extra["timings"]["cache_n"] > 80
        assert answer.choices[0].message.content == fresh(pages[0].ask(), 0.1, second)


def test_an_answer_ends_where_the_memory_does(launch: Launch) -> None:
    with launch("--aircache-kv-memory", "160cells", slots=2) as server, ThreadPoolExecutor(2) as pool:
        endless = {"max_tokens": 400, "extra_body": {"ignore_eos": True}}
        answers = list(pool.map(lambda _: server.ask(HELLO, **endless), range(2)))
        for answer in answers:
            assert answer.choices[0].finish_reason == "length"
            assert 1 < answer.usage.completion_tokens < 200
        assert sum(answer.usage.total_tokens for answer in answers) > 100
        assert server.text(HELLO, max_tokens=4)  # idle ones are dropped


def test_an_answer_waits_for_a_prompt_to_be_compressed(launch: Launch, pages: list[Page], n_cells: int) -> None:
    """While a page is read there is no room for the long answer's next cells; then there is."""
    budget = n_cells + 160
    options = ["--aircache-kv-memory", f"{budget}cells", "--aircache-keep", "0.1", "-b", "16", "-ub", "16"]
    with launch(*options, slots=2) as server, ThreadPoolExecutor(1) as pool:
        endless = {"max_tokens": 300, "extra_body": {"ignore_eos": True}}
        with server.ask(HELLO, stream=True, stream_options={"include_usage": True}, **endless) as stream:
            next(iter(stream))
            page = pool.submit(server.text, pages[0].ask())
            usage = [chunk.usage for chunk in stream if chunk.usage]
        assert page.result()
        assert usage[-1].completion_tokens == 300


def slots_busy(server: Server) -> list[bool]:
    return [slot["is_processing"] for slot in server.http.get("/slots").json()]


def endless(server: Server, messages: list[dict[str, Any]], max_tokens: int, **fields: Any) -> Any:
    """A long answer of which the first token is there; it ends where the stream is closed."""
    fields = {"ignore_eos": True, "aircache_keep": 1.0, **fields}
    stream = server.ask(messages, stream=True, max_tokens=max_tokens, extra_body=fields)
    next(iter(stream))
    return stream


def test_several_answers_wait_in_the_line_for_their_slots(launch: Launch, pages: list[Page]) -> None:
    """Two such requests, deferred behind one that waited, woke each other for ever."""
    options = ["-c", str(3 * 2048), "--aircache-kv-memory", f"{3 * 2048}cells", "--threads-http", "12"]
    with (
        launch(*options, slots=3) as server,
        ThreadPoolExecutor(3) as pool,
        endless(server, HELLO, 2000),
        endless(server, HELLO, 2000) as other,
    ):
        late = []
        for messages, n in ((HELLO, 2), (HELLO, 2), (pages[0].ask(), 1)):
            late.append(pool.submit(server.ask, messages, n=n))
            wait_for(lambda: len(waiting(server)) == len(late), "nobody waits")
        reasons = [task["reason"] for task in waiting(server)]
        assert "2 free slots" in reasons[0] and "came before" in reasons[1] and "came before" in reasons[2]
        other.close()  # wakes all of them
        assert [len(request.result().choices) for request in late] == [2, 2, 1]
        assert any(slots_busy(server))


def test_who_waits_for_a_slot_of_its_own_holds_nobody_up(launch: Launch, pages: list[Page]) -> None:
    with launch("-c", "2048", slots=2) as server:
        n_first, n_large = (server.ask(two_pages(pages, i), max_tokens=1).usage.prompt_tokens for i in (0, 1))
    options = ["-c", str(3 * 2048), "--aircache-kv-memory", f"{n_first + 64 + n_large + 64}cells"]
    with (
        launch(*options, "--aircache-keep", "0.1", slots=3) as server,
        ThreadPoolExecutor(3) as pool,
        endless(server, two_pages(pages, 0), 2000, id_slot=0) as first,
        endless(server, HELLO, 2000, id_slot=1) as second,
    ):
        large = pool.submit(server.text, two_pages(pages, 1), extra_body={"id_slot": 2})
        wait_for(lambda: len(waiting(server)) == 1, "the large one does not wait")
        bound = pool.submit(server.text, HELLO, extra_body={"id_slot": 1})
        small = pool.submit(server.text, HELLO)
        wait_for(lambda: len(waiting(server)) == 3, "the others do not wait")
        first.close()
        assert large.result() and small.result()
        assert slots_busy(server)[1] and not bound.done()
        second.close()
        assert bound.result()


def test_requests_go_on_when_answers_do(launch: Launch, pages: list[Page]) -> None:
    """While the pages are read an answer waits, and so does a request; the compression lets both of them go on."""
    rows = "".join(f" row {i}" for i in range(150))
    content = [*(page.part() for page in pages[:4]), {"type": "text", "text": rows}]
    book = [{"role": "user", "content": content}]
    long_text = [{"role": "user", "content": "".join(f" row {i}" for i in range(50))}]
    with launch("-c", "4096") as server:
        n_hello, n_book = (server.ask(messages, max_tokens=1).usage.prompt_tokens for messages in (HELLO, book))
    free = 2 * 64 + 63  # that much at most, however far the first answer is by then
    budget = n_hello + 64 + n_book + 64 + free
    options = ["-c", str(3 * 4096), "--aircache-kv-memory", f"{budget}cells", "-b", "4", "-ub", "4"]
    with launch(*options, slots=3) as server, ThreadPoolExecutor(2) as pool, endless(server, HELLO, 1500, id_slot=0):
        ignore = {"ignore_eos": True, "aircache_keep": 0.1, "id_slot": 1}
        pool.submit(server.ask, book, max_tokens=400, extra_body=ignore)
        wait_for(lambda: slots_busy(server)[1], "the book is not read")
        late = pool.submit(server.ask, long_text, max_tokens=2)
        wait_for(lambda: waiting(server) or late.done(), "the text does not wait")
        assert not late.done()
        assert late.result().choices
        assert slots_busy(server)[:2] == [True, True]


BAD = [("--aircache-kv-memory", "much"), ("--aircache-kv-memory", "-1"), ("--aircache-archive", "16cells")]


@pytest.mark.parametrize(("flag", "value"), BAD)
def test_limits_of_flags(program: Callable[[str], Path], models: list[str], flag: str, value: str) -> None:
    line = [program("llama-server"), *models, "--port", str(free_port()), flag, value]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert flag[2:].replace("-", "_") in done.stdout + done.stderr and value in done.stdout + done.stderr
