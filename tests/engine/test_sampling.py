"""How answers are drawn: greedily as ever, by llama.cpp's samplers, within a grammar or schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from harness import bundled_files, engine_method, open_engine, pages

from pyaircache.engine import Engine, Sampling
from pyaircache.errors import ArgumentError, EngineError, PyAircacheError

YES_NO = 'root ::= "yes" | "no"'


@pytest.fixture(scope="module")
def opened_once() -> Iterator[Engine]:
    engine = open_engine(*bundled_files(), "f16", n_ctx=1024)
    yield engine
    engine.close()


@pytest.fixture
def engine(opened_once: Engine) -> Engine:
    """Asked about the first page, greedy."""
    opened_once.set_sampling(None)
    pages()[0].ask(opened_once)
    return opened_once


def answer(engine: Engine, count: int = 12) -> list[int]:
    """Tokens up to the end of the answer, or as many."""
    tokens = []
    for _ in range(count):
        token, end = engine.sample()
        if end:
            break
        tokens.append(token)
        engine.decode(token)
    return tokens


def text(engine: Engine, tokens: list[int]) -> str:
    return b"".join(engine.token_bytes(token) for token in tokens).decode()


def ask(engine: Engine, sampling: Sampling | None, count: int = 12) -> list[int]:
    """The answer to the first page's question, drawn in this way."""
    engine.set_sampling(sampling)
    pages()[0].ask(engine)
    return answer(engine, count)


# -- drawing ----------------------------------------------------------------------------------------------------------


def test_greedy_is_the_argmax(engine: Engine) -> None:
    for _ in range(6):
        token, _ = engine.sample()
        assert token == engine.logits().argmax() == engine.sample()[0]
        engine.decode(token)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.5, top_k=1, seed=3),
        Sampling(temperature=1.5, top_p=1e-6, seed=3),
        Sampling(temperature=1.5, min_p=1.0, seed=3),
        Sampling(temperature=1e-42, seed=3),
        Sampling(top_k=5, top_p=0.5, min_p=0.1, seed=3),
        Sampling(repeat_penalty=1.3, repeat_last_n=0),
        Sampling(grammar="root ::= .*"),
        Sampling(temperature=1.5, top_k=1, grammar="root ::= .*"),
    ],
    ids=lambda sampling: ",".join(f"{k}={v}" for k, v in vars(sampling).items() if v != getattr(Sampling, k)),
)
def test_what_leaves_one_token_is_greedy(engine: Engine, sampling: Sampling) -> None:
    greedy = answer(engine)
    assert len(greedy) > 2
    assert ask(engine, sampling) == greedy


def test_the_same_seed_gives_the_same_answer(engine: Engine) -> None:
    answers = [ask(engine, Sampling(temperature=3.0, seed=seed)) for seed in (1, 1, 2, 3)]
    assert answers[0] == answers[1]
    assert answers[0] != answers[2] or answers[0] != answers[3]
    engine.set_sampling(Sampling(temperature=3.0, seed=1))  # also set behind the prompt
    pages()[0].ask(engine)
    assert answer(engine) == answers[0]


@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.2}], ids=str)
def test_draws_follow_the_probabilities(engine: Engine, options: dict[str, Any]) -> None:
    """Against NumPy: without pac_decode each call is another draw from the same logits."""
    temperature, count = 4.0, 3000
    engine.set_sampling(Sampling(temperature=temperature, seed=5, **options))
    drawn = np.bincount([engine.sample()[0] for _ in range(count)], minlength=engine.info().n_vocab) / count

    logits = engine.logits().astype(np.float64)
    order = np.argsort(-logits)
    plain = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    keep = np.ones(len(logits), bool)
    if "top_k" in options:
        keep[order[options["top_k"] :]] = False
    elif "top_p" in options:
        reached = np.cumsum(plain[order]) >= options["top_p"]
        keep[order[reached.argmax() + 1 :]] = False
    elif "min_p" in options:
        keep = plain >= options["min_p"] * plain.max()
    expected = np.where(keep, np.exp((logits - logits.max()) / temperature), 0)
    expected /= expected.sum()
    assert (drawn[~keep] == 0).all()
    assert np.abs(drawn - expected).max() < 0.04


def test_repeat_penalty(engine: Engine) -> None:
    """Of the last text tokens of prompt and answer, as NumPy has it."""
    last_n, penalty = 12, 5.0
    engine.set_sampling(Sampling(repeat_penalty=penalty, repeat_last_n=last_n))
    history = [int(token) for token in engine.prompt_tokens() if token >= 0]
    changed = 0
    for _ in range(8):
        logits = engine.logits()
        for token in set(history[-last_n:]):
            logits[token] *= penalty if logits[token] <= 0 else 1 / penalty
        token, _ = engine.sample()
        assert token == logits.argmax()
        changed += token != engine.logits().argmax()
        engine.decode(token)
        history.append(token)
    assert changed


# -- grammars ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=5.0, seed=1), Sampling(temperature=5.0, top_k=3)], ids=str
)
@pytest.mark.parametrize("compressed", [False, True], ids=["full", "compressed"])
def test_grammar_from_the_first_token(engine: Engine, sampling: Sampling, compressed: bool) -> None:
    engine.set_sampling(Sampling(**{**vars(sampling), "grammar": YES_NO}))
    for _ in range(2):  # a prompt begins the grammar anew
        pages()[0].ask(engine)
        if compressed:
            engine.compress(engine_method(0.1))
        said = answer(engine)
        assert text(engine, said) in ("yes", "no")
        assert engine.sample()[1]  # nothing but the end is left


def test_greedy_within_a_grammar_is_the_likeliest_that_fits(engine: Engine) -> None:
    engine.set_sampling(Sampling(grammar="root ::= [0-9]+"))
    logits = engine.logits()
    digits = [token for token in range(len(logits)) if engine.token_bytes(token).isdigit()]
    assert digits and engine.sample()[0] == max(digits, key=lambda token: logits[token])


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_answers_follow_a_json_schema(engine: Engine, temperature: float) -> None:
    schema = {
        "type": "object",
        "properties": {
            "total": {"type": "integer", "minimum": 1, "maximum": 99},
            "paid": {"type": "boolean"},
            "kind": {"enum": ["bill", "letter"]},
        },
        "required": ["total", "paid", "kind"],
        "additionalProperties": False,
    }
    for seed in range(3):
        said = ask(engine, Sampling(temperature, seed=seed, json_schema=json.dumps(schema)), 200)
        got = json.loads(text(engine, said))
        assert list(got) == ["total", "paid", "kind"]
        assert 1 <= got["total"] <= 99 and got["paid"] in (True, False) and got["kind"] in ("bill", "letter")


def test_a_token_that_does_not_fit_is_not_appended(engine: Engine) -> None:
    engine.set_sampling(Sampling(grammar=YES_NO))
    cells, logits = engine.stats().n_past, engine.logits()
    wrong = int(engine.tokenize("x")[0])
    with pytest.raises(ArgumentError, match=f"token {wrong} does not fit the grammar"):
        engine.decode(wrong)
    assert engine.stats().n_past == cells
    np.testing.assert_array_equal(engine.logits(), logits)
    assert text(engine, answer(engine)) in ("yes", "no")
    engine.set_sampling(None)
    engine.decode(wrong)


def test_what_no_token_fits(engine: Engine) -> None:
    engine.set_sampling(Sampling(grammar='root ::= "\\U0001F600"'))
    if not any(b"\xf0" in engine.token_bytes(token) for token in range(engine.info().n_vocab)):
        with pytest.raises(PyAircacheError, match="no token of the model's vocabulary fits"):
            engine.sample()
    engine.set_sampling(None)
    engine.sample()


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1: it must be in"),
        ({"top_p": 0.0}, r"top_p is 0: it must be in \(0, 1\]"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"min_p": 1.5}, r"min_p is 1.5: it must be in \[0, 1\]"),
        ({"repeat_penalty": 0.0}, "repeat_penalty is 0"),
        ({"repeat_penalty": float("inf")}, "repeat_penalty is inf"),
        ({"repeat_last_n": -2}, "repeat_last_n is -2"),
        ({"grammar": YES_NO, "json_schema": "{}"}, "cannot both be given"),
        ({"grammar": "root ::= "}, None),
        ({"grammar": 'root = "yes"'}, r'expecting ::= at line 1, column 6, where it says: = "yes"$'),
        (
            {"grammar": 'root ::= x # é\nx ::= ("a" | "b"\nc ::= "d"'},
            r"expecting '\)' at line 3, column 3, where it says: ::= .d.$",
        ),
        ({"grammar": 'root ::= ("a"'}, r"expecting '\)' at the end$"),
        ({"grammar": 'root ::= "a"{99999999999999999999}'}, "a number in it is too large"),
        ({"grammar": "# nothing"}, "it has no rules"),
        ({"grammar": 'start ::= "yes"'}, "it has no rule 'root'"),
        ({"grammar": "root ::= other"}, "Undefined rule identifier 'other'"),
        ({"grammar": "root ::= root 'a'"}, "the grammar cannot be used"),
        ({"grammar": 'root ::= root "a" | "b"'}, "the rule root begins with itself"),
        ({"grammar": 'root ::= "a' + "b" * 70000}, "the grammar has more than 65536 bytes"),
        ({"grammar": "é" * 30000}, f"expecting name at line 1, column 1, where it says: {'é' * 20}\\.\\.\\.$"),
        ({"json_schema": "{"}, "the JSON schema cannot be used"),
        ({"json_schema": '{"type": "thing"}'}, "unrecognized type thing"),
        ({"json_schema": '{"$ref": "#/none"}'}, "cannot resolve"),
        ({"json_schema": '"text"'}, "must be an object"),
        ({"json_schema": "\udcff"}, "not valid Unicode"),
        ({"json_schema": " " * 70000}, "the JSON schema has more than 65536 bytes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_values_change_nothing(engine: Engine, wrong: dict[str, Any], said: str | None) -> None:
    engine.set_sampling(Sampling(grammar=YES_NO))
    if said is None:  # an empty answer
        engine.set_sampling(Sampling(**wrong))
        assert answer(engine) == []
        return
    with pytest.raises(ArgumentError, match=said) as caught:
        engine.set_sampling(Sampling(**wrong))
    assert len(str(caught.value)) < 500
    assert text(engine, answer(engine)) in ("yes", "no")


def properties(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(count)}}


DOUBLED = "\n".join(f'r{i} ::= r{i + 1} "a" | r{i + 1} "b"' for i in range(60)) + '\nr60 ::= "c"'
CHAIN = "\n".join(f"r{i} ::= r{i + 1}" for i in range(4000)) + '\nr4000 ::= "c"'
REFS = {str(i): json.loads('{"items":' * 50 + f'{{"$ref":"#/d/{i + 1}"}}' + "}" * 50) for i in range(100)}
CHAIN_OF_REFS = json.dumps({"$ref": "#/d/0", "d": REFS | {"100": {}}}, separators=(",", ":"))
TYPES = ["object", "array", "string", "null"] * 3


def many_types(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        inner = {"type": TYPES, "properties": {"a": inner}, "items": inner}
    return inner


# A list as some libraries write it: its converter follows the $ref of an allOf anew each time.
LIST_OF_ALL = {
    "$ref": "#/d/N",
    "d": {"N": {"type": "object", "properties": {"next": {"allOf": [{"$ref": "#/d/N"}]}}}},
}
TWICE_EACH = {
    "$ref": "#/d/0",
    "d": {
        str(i): {
            "type": "object",
            "properties": {name: {"allOf": [{"$ref": f"#/d/{i + 1}"}]} for name in ("a", "b")} if i < 40 else {},
        }
        for i in range(41)
    },
}
# Each spelling of an index is built again, within the one before
_SPELLINGS = [{"$ref": f"#/allOf/0{letter * n}"} for letter in "abcdefghij" for n in range(1, 100)]
_DEEP: dict[str, Any] = {"anyOf": _SPELLINGS}
for _ in range(25):
    _DEEP = {"items": _DEEP}
OTHER_SPELLINGS = {"allOf": [_DEEP]}


@pytest.mark.parametrize(
    "hostile",
    [
        {"grammar": "root ::= " + "(" * 60000},
        {"grammar": "root ::= " + "(" * 10000 + '"a"' + ")" * 10000},
        {"grammar": 'root ::= "a"{5,2}'},
        {"grammar": 'root ::= "a"{99999999999999999999}'},
        {"grammar": 'root ::= ("a"?){2000}' + ' ("a"?){2000}' * 3000},
        {"grammar": 'root ::= "' + "a" * 20000 + '"' + "{2000}" * 3000},
        {"grammar": "root ::= r0\n" + DOUBLED},
        {"grammar": "root ::= r0\n" + CHAIN},
        {"grammar": 'root ::= b root "y" | "x"\nb ::= c\nc ::= "d" |'},
        {"grammar": 'root ::= b root\nb ::= c\nc ::= ""'},
        {"json_schema": json.dumps(LIST_OF_ALL)},
        {"json_schema": json.dumps(TWICE_EACH)},
        {"json_schema": json.dumps(OTHER_SPELLINGS)},
        {"json_schema": json.dumps({"anyOf": [{"type": "null"}, {"$ref": "#/anyOf/0" + "_" * 50000}]})},
        {"json_schema": json.dumps({"$ref": "#/const", "const": {"type": "string", "pattern": "^\\d+$"}})},
        {"json_schema": json.dumps({"type": "array", "items": {"type": "null"}, "maxItems": 4294967297})},
        {"json_schema": "[" * 60000},
        {"json_schema": '{"not":' * 5000 + "{}" + "}" * 5000},
        {"json_schema": json.dumps(properties(2000))},
        {"json_schema": json.dumps({"type": "object", "properties": {" " * 20000: {"type": "string"}}})},
        {"json_schema": json.dumps(many_types(8))},
        {
            "json_schema": json.dumps(
                {"allOf": [{"$ref": "#/d/a"}], "d": {"a": {"$ref": "#/d/b"}, "b": {"$ref": "#/d/a"}}}
            )
        },
        {"json_schema": json.dumps({"allOf": [{"$ref": "#/allOf/0"}]})},
        {"json_schema": CHAIN_OF_REFS},
        {"json_schema": json.dumps({"$ref": "#/d/a", "d": {"a": {"$ref": "#/d/a"}}})},
        {"json_schema": json.dumps({"type": "array", "items": {"type": "null"}, "minItems": 2000000000})},
        {"json_schema": json.dumps({"type": "string", "minLength": -5})},
        {"json_schema": json.dumps({"type": "integer", "minimum": 1e300})},
        {"json_schema": json.dumps({"type": "string", "pattern": "^" + "(" * 5000 + ")" * 4999 + "$"})},
    ],
    ids=lambda value: str(value)[:60],
)
def test_hostile_ones_are_refused(engine: Engine, hostile: dict[str, Any]) -> None:
    """What would end the process, fill the memory or go on for ever."""
    with pytest.raises(ArgumentError) as caught:
        engine.set_sampling(Sampling(**hostile))
    assert len(str(caught.value)) < 500
    engine.sample()


def test_a_grammar_that_never_goes_on(engine: Engine) -> None:
    """Behind its first letter no token fits, not even the end: that is an error, and all stays as it was."""
    engine.set_sampling(Sampling(grammar='root ::= "1" r\nr ::= b r\nb ::= c\nc ::= ""'))
    before = engine.stats().n_past
    with pytest.raises(PyAircacheError):
        engine.decode(int(engine.tokenize("1")[0]))
        engine.sample()
    assert engine.stats().n_past == before
    engine.set_sampling(None)
    engine.sample()


def test_a_grammar_that_can_be_read_in_too_many_ways(engine: Engine) -> None:
    """Each token doubles the ways to go on: the answer ends with an error, not with the memory's end."""
    engine.set_sampling(Sampling(grammar='root ::= "1" x | "1" y | "1"\nx ::= root "b"\ny ::= root "c"'))
    one = int(engine.tokenize("1")[0])
    with pytest.raises(EngineError, match="the grammar takes too long"):
        for _ in range(40):
            engine.decode(one)
    engine.set_sampling(None)
    engine.decode(one)
