"""Many questions at once with the bundled model: what one by one gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pyaircache import Answered, Chat, Elite, Method, Model

PAGES = 4


@pytest.fixture(scope="module")
def model(engine: Any) -> Iterator[Model]:
    with Model(n_threads=1) as model:
        yield model


def uniform(scores: Any, total: int) -> list[list[int]]:
    """A policy: the first tokens of every layer."""
    share, rest = divmod(total, len(scores))
    return [list(range(share + (layer < rest))) for layer in range(len(scores))]


def items(samples: list[Any]) -> list[dict[str, Any]]:
    """Pages of different lengths, a question about one of them again, one without a picture; options of all kinds."""
    own: list[dict[str, Any]] = [
        {},
        {"keep": 1.0},
        {"keep": 0.5, "method": "snapkv"},
        {"method": "h2o", "max_tokens": 5},
        {"keep": 0.3, "method": Method(window=Elite(0.5))},
        {"method": uniform, "keep": 0.4},
        {"temperature": 0.7, "seed": 3, "logprobs": 2},
        {"stop": ["1", "e"], "max_tokens": 12},
    ]
    asked = [samples[i % PAGES] for i in range(len(own))]
    found = [
        {"image": one.picture, "question": one.question, **options} for one, options in zip(asked, own, strict=True)
    ]
    return [*found, {"question": "What is the total?", "max_tokens": 4}]


def one_by_one(chat: Chat, given: list[dict[str, Any]]) -> list[Any]:
    return [
        chat.ask(one.get("image"), follow_up=False, **{k: v for k, v in one.items() if k != "image"}) for one in given
    ]


def same(found: list[Answered], expected: list[Any]) -> None:
    for one in found:
        assert one.error is None and one.answer is not None, one
        right = expected[one.index]
        assert one.answer == right
        mine, theirs = one.answer.report, right.report
        assert [kept.tolist() for kept in mine.kept] == [kept.tolist() for kept in theirs.kept]
        assert (mine.keep, mine.method, mine.kv_bytes, mine.stop_reason, mine.answer_tokens) == (
            theirs.keep, theirs.method, theirs.kv_bytes, theirs.stop_reason, theirs.answer_tokens,
        )  # fmt: skip
        assert [token.id for token in one.answer.logprobs] == [token.id for token in right.logprobs]


@pytest.mark.filterwarnings("ignore:.*no effect")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_as_one_by_one(model: Model, samples: list[Any], n_threads: int) -> None:
    given = items(samples)
    with Chat(model, n_ctx=1024, n_threads=n_threads, cache_type_k="f32", cache_type_v="f32") as chat:
        found = list(chat.ask_many(given, n_parallel=4))
        assert len(found) == len(given)
        encoded = sum(one.report.n_encoded for one in found if one.report is not None)
        assert encoded <= PAGES  # a picture that is asked about again is not encoded again
        same(found, one_by_one(chat, given))


def test_closing_early_leaves_everything_usable(model: Model, samples: list[Any]) -> None:
    given = [(one.picture, one.question) for one in samples[:6]]
    with Chat(model, n_ctx=1024) as chat:
        right = chat.ask(*given[0])
        answers = chat.ask_many(given, n_parallel=3)
        first = next(answers)
        answers.close()  # type: ignore[attr-defined]
        assert first.answer
        assert chat.ask(*given[0]) == right
        assert {one.index: one.answer for one in chat.ask_many(given[:2])}[0] == right
        assert model.info.n_engines == 1


def test_pictures_that_do_not_fit_are_errors_of_their_own(model: Model, samples: list[Any]) -> None:
    given = [(one.picture, one.question) for one in samples[:2]]
    with Chat(model, n_ctx=1024) as chat:
        found = {
            one.index: one for one in chat.ask_many([given[0], (given[0][0], "word " * 2000), given[1]], n_parallel=2)
        }
    assert found[0].answer and found[2].answer
    assert "context" in str(found[1].error)
