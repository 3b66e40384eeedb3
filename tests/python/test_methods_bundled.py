"""Every method, and every option of one, on the bundled model: budgets, sets, reports; no word about quality."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from pyaircache import All, ArgumentError, Chat, Elite, Last, Method, Pool, Text, Visual
from pyaircache.engine import selection

DOCS = Path(__file__).resolve().parents[2] / "docs" / "methods.md"

SUMS = Method(All(), keys="causal", allocation="uniform")
SNAPKV = Method(Last(32), keys="causal", pool=Pool("avg", 5), allocation="uniform")
POINTS = {  # window, keys, pool and allocation as docs/methods.md has them, and what they mean
    "aircache": (("elite, 0.9", "window", "", "strength+skewness"), Method(Elite(0.9), "attention", "window", None,
                                                                           "strength+skewness")),
    "snapkv": (("last 32", "causal", "avg 5", "uniform"), SNAPKV),
    "h2o": (("all", "causal", "", "uniform"), SUMS),
    "elastic": (("all", "causal", "", "uniform"), SUMS),
    "prefixkv": (("all", "causal", "", "prefix"), dataclasses.replace(SUMS, allocation="prefix")),
    "pyramidkv": (("last 32", "causal", "avg 5", "pyramid"), dataclasses.replace(SNAPKV, allocation="pyramid")),
    "vlcache": (("text", "causal", "", "vl"), Method(Text(), keys="causal", allocation="vl")),
    "last": (("last 1", "causal", "", "uniform"), Method(Last(1), keys="causal", allocation="uniform")),
    "random": (("", "", "", "uniform"), Method(score="random", seed=0, allocation="uniform")),
    "stride": (("", "", "", "uniform"), Method(score="stride", allocation="uniform")),
}  # fmt: skip
NAMES = tuple(POINTS)
ALLOCATIONS = ("strength+skewness", "uniform", "pyramid", "strength", "skewness", "prefix", "vl")
COMPOSED = [
    *(Method(window=window) for window in (Elite(0.3, True, True), Last(16), Text(), Text(True), Visual(8), All())),
    *(Method(window=window, keys="causal") for window in (Elite(), Last(1), Text(weighted=True), Visual(8))),
    *(Method(allocation=allocation) for allocation in ALLOCATIONS),
    *(Method(pool=Pool(kind, 3, grid)) for kind in ("avg", "max") for grid in (False, True)),
    Method(merge=0.5),
    Method(uniform_share=0.8),
    Method(last_term=2.0),
    Method(value_norm=True),
    Method(diversity=True),
    Method(min_keep=5),
    Method(Last(4), keys="causal", pool=Pool("max", 5), allocation="vl", merge=1, uniform_share=0.2, last_term=1,
           value_norm=True, diversity=True, min_keep=2),
    Method(All(), keys="causal", pool=Pool("avg", 3), allocation="vl", last_term=1, value_norm=True, diversity=True),
]  # fmt: skip
KEEPS = (0.5, 0.1)


@pytest.mark.parametrize("method", [*NAMES, *COMPOSED], ids=str)
def test_methods(engine, samples, method):
    sample = samples[0]
    with Chat(method=method, n_threads=1) as chat:
        first = str(chat.ask(sample.picture, sample.question, keep=1.0, max_tokens=1))
        assert first
        for keep in KEEPS:
            answer = chat.ask(sample.picture, sample.question, keep=keep)
            report, layers, visual = answer.report, answer.report.layers, answer.report.visual_tokens
            assert answer.startswith(first)  # its logits come from the full cache
            assert report.budgets.sum() == max(round(keep * layers * visual), layers * getattr(method, "min_keep", 1))
            assert report.budgets.min() >= getattr(method, "min_keep", 1)
            for kept, budget in zip(report.kept, report.budgets, strict=True):
                assert len(kept) == budget and (np.diff(kept) > 0).all() and kept[0] >= 0 and kept[-1] < visual
            assert report.scores.shape == (layers, visual)
            assert np.isfinite(report.scores).all() and (report.scores >= 0).all()
            for layer, budget in enumerate(report.budgets):
                best = np.argsort(-report.scores[layer], kind="stable")[:budget]
                np.testing.assert_array_equal(report.kept[layer], np.sort(best))
            assert report.method == str(method)
            assert bool(report.alive.size) == (getattr(method, "allocation", method) in ("vl", "vlcache"))
            again = chat.ask(sample.picture, sample.question, keep=keep)
            assert again == answer and (again.report.scores == report.scores).all()
            chat.ask(None, "And the next one?", max_tokens=2)  # goes on


def test_a_name_is_its_point_of_the_grid():
    """docs/methods.md, "Named methods": its cells and the point they mean, both written out here."""
    table = DOCS.read_text(encoding="utf-8").partition("## Named methods")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line]
    assert rows[0][:5] == ["name", "window", "keys", "pool", "allocation"]
    documented = {row[0].strip("`"): tuple(row[1:5]) for row in rows[2:]}
    assert documented == {name: cells for name, (cells, _) in POINTS.items()} | {"full": ("", "", "", "")}
    assert [*selection.named_methods()] == [*documented]
    for name, (_, point) in POINTS.items():
        assert Method.named(name) == point


def test_options_change_what_they_say(engine, samples):
    sample = samples[0]

    def ask(method):
        with Chat(keep=0.1, method=method, n_threads=1) as chat:
            return chat.ask(sample.picture, sample.question).report

    plain = ask(Method())
    for changes in (
        {"last_term": 1.0},
        {"value_norm": True},
        {"diversity": True},
        {"pool": Pool()},
        {"keys": "causal"},
    ):
        assert (ask(dataclasses.replace(Method(), **changes)).scores != plain.scores).any(), changes
    np.testing.assert_array_equal(ask(Method(allocation="uniform")).scores, plain.scores)
    assert len(set(ask(Method(allocation="uniform", min_keep=2)).budgets.tolist())) <= 2
    seeds = [ask(Method(score="random", seed=seed)).kept for seed in (1, 1, 2)]
    kept = [[layer.tolist() for layer in one] for one in seeds]
    assert kept[0] == kept[1] != kept[2]
    for layer in ask(Method(window=Last(3))).observers:
        assert (np.diff(layer) == 1).all() and len(layer) == 3 and layer[-1] == plain.prompt_tokens - 1


def test_elite_of_the_content_alone(engine, samples):
    """Of the question's own tokens, wherever the template's attract more attention; and the last token if wanted."""
    windows = {"plain": Elite(0.05), "content": Elite(0.05, content_only=True), "last": Elite(0.9, hold_last=True)}
    outside, held = 0, 0
    for sample in samples:
        reports = {}
        for name, window in windows.items():
            with Chat(keep=0.1, method=Method(window=window), n_threads=1) as chat:
                reports[name] = chat.ask(sample.picture, sample.question, max_tokens=1).report
                n_question = chat._engine.count_tokens(sample.question)
        (span,) = reports["plain"].spans
        first = span.first + span.n_tokens + 1  # behind <|vision_end|>
        question = set(range(first, first + n_question))
        last = reports["plain"].prompt_tokens - 1
        assert last not in question
        for plain, content, with_last in zip(*(report.observers for report in reports.values()), strict=True):
            plain, content, with_last = ({*layer.tolist()} for layer in (plain, content, with_last))
            outside += bool(plain - question)
            assert content and content <= question
            assert plain & question <= content  # the most attended of fewer tokens is no more attended
            held += len(with_last) > 1
            assert last in with_last
    assert outside and held


def test_rank_keeps_the_one_token(engine, samples):
    sample = samples[0]
    with Chat(keep=0.1, n_threads=1) as chat:
        plain = chat.ask(sample.picture, sample.question).report
    for rank in (1, 2, 30, plain.visual_tokens):
        with Chat(keep=0.1, method=Method(rank=rank), n_threads=1) as chat:
            report = chat.ask(sample.picture, sample.question).report
        assert report.budgets.tolist() == [1] * report.layers
        np.testing.assert_array_equal(np.concatenate(report.kept), plain.ranked(rank))
    with Chat(method=Method(rank=plain.visual_tokens + 1), n_threads=1) as chat:
        with pytest.raises(ArgumentError, match="rank is"):
            chat.ask(sample.picture, sample.question)
        assert chat.ask(sample.picture, sample.question, keep=1.0) == sample.answer


def test_divergence_of_real_budgets(real_chat, samples):
    report = real_chat.ask(samples[0].picture, samples[0].question, keep=0.25).report
    assert 0 < report.divergence() < 1
    assert report.divergence("strength+skewness") == 0 == report.divergence(report.budgets)
    np.testing.assert_allclose(report.kept_per_layer.mean(), 0.25, atol=0.01)
    with Chat(method="vlcache", n_threads=1) as chat:
        assert chat.ask(samples[0].picture, samples[0].question).report.divergence("vl") == 0


# -- a user's own policy -----------------------------------------------------------------------------------------------


def test_policy_that_does_as_aircache_does(engine, samples):
    def policy(scores, total):
        budgets = selection.allocate(Method().engine(total / scores.size), scores)
        return selection.select(scores, budgets)

    sample = samples[0]
    with Chat(keep=0.25, method=policy, n_threads=1) as mine, Chat(keep=0.25, n_threads=1) as theirs:
        for question in (sample.question, "What is the total?"):
            a, b = (chat.ask(sample.picture, question) for chat in (mine, theirs))
            assert a == b and a.report.kv_bytes == b.report.kv_bytes
            np.testing.assert_array_equal(a.report.strength, b.report.strength)
            np.testing.assert_array_equal(a.report.skewness, b.report.skewness)
            for one, two in zip(a.report.kept, b.report.kept, strict=True):
                np.testing.assert_array_equal(one, two)
        a, b = (chat.ask(None, "And the next one?", max_tokens=8) for chat in (mine, theirs))
        mine._engine.reset()  # as after an interruption: brought back with the sets that were chosen
        mine._session.turns.pop()
        assert mine.ask(None, "And the next one?", max_tokens=8) == a == b


def test_policy_that_fails_leaves_the_chat_usable(engine, samples):
    sample = samples[0]

    def policy(scores, total):
        if broken:
            raise LookupError("mine")
        return selection.select(
            scores, selection.allocate(Method(allocation="uniform").engine(total / scores.size), scores)
        )

    with Chat(keep=0.25, method=policy, n_threads=1) as chat:
        broken = False
        chat.ask(sample.picture, sample.question)
        expected = chat.ask(None, "And the next one?", max_tokens=8)
        chat.ask(sample.picture, sample.question)
        broken = True
        with pytest.raises(LookupError, match="mine"):
            chat.ask(samples[1].picture, samples[1].question)
        broken = False  # with an archive a follow-up is compressed by its own question
        assert chat.ask(None, "And the next one?", max_tokens=8) == expected
        assert chat.ask(sample.picture, sample.question, keep=1.0) == sample.answer


def test_the_documents_example_of_a_policy_runs(engine, samples, monkeypatch):
    code, *_ = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 14
    space: dict = {}
    monkeypatch.chdir(samples[0].picture.parent)
    code = code.replace("page.png", samples[0].picture.name)
    exec(compile(code, str(DOCS), "exec"), space)
    assert space["answer"].report.budgets.sum() > 0
