"""Grammars and JSON schemas in requests: whatever they are, the server lives, says why, and answers the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from .conftest import Launch, Server

BODY = {"prompt": "The number is", "n_predict": 40, "temperature": 0.0}


@pytest.fixture(scope="module")
def server(launch: Launch) -> Iterator[Server]:
    """One for all of these."""
    with launch(slots=2, images=False) as running:
        yield running


@pytest.fixture(autouse=True)
def _alive(server: Server) -> Iterator[None]:
    """After each of them no slot is busy, and a plain grammar is followed as ever."""
    yield
    server.wait_idle()
    assert complete(server, grammar='root ::= "yes"').json()["content"] == "yes"


def complete(server: Server, **fields: Any) -> httpx.Response:
    return server.http.post("/completion", json={**BODY, **fields})


def refused(answer: httpx.Response) -> str:
    """The message of an answer that is an error."""
    assert answer.status_code in (400, 500), answer.text
    message = str(answer.json()["error"]["message"])
    assert len(message) < 700
    return message


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ('root ::= ("a" | "b"\nc ::= "d"', "expecting ')' at line 2, column 3, where it says: ::= "),
        ('root ::= ("a"', "expecting ')' at the end"),
        ("root ::= other", "Undefined rule identifier 'other'"),
        ('start ::= "a"', "it has no rule 'root'"),
        ('root ::= a "x" | "y"\na ::= root', "begins with itself"),
        ("# nothing", "it has no rules"),
        ("root ::= " + "(" * 60000, "nested too deeply"),
        ('root ::= "' + "a" * 20000 + '"' + "{2000}" * 300, "takes too long"),
        ('root ::= "a"{99999999999999999999}', "a number in it is too large"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_grammar(server: Server, grammar: str, said: str) -> None:
    answer = complete(server, grammar=grammar)
    assert answer.status_code == 400
    assert said in refused(answer)


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ('root ::= "1" root "b" | "1" root "c"', "the grammar takes too long"),  # each letter doubles the ways
        ('root ::= "1" r\nr ::= b r\nb ::= c\nc ::= ""', "no token of the model's vocabulary fits the grammar"),
    ],
    ids=["ambiguous", "never goes on"],
)
def test_a_grammar_that_cannot_be_followed(server: Server, grammar: str, said: str) -> None:
    """It ends its own request; the other slot's goes on."""
    with ThreadPoolExecutor() as pool:
        other = pool.submit(complete, server, n_predict=200, ignore_eos=True)
        assert said in refused(complete(server, grammar=grammar))
        assert other.result().json()["tokens_predicted"] == 200


def test_a_trigger_that_the_regex_library_cannot_take(server: Server) -> None:
    """It would end the process: std::regex recurses over its terms."""
    lazy = {"grammar": 'root ::= "yes"', "grammar_lazy": True}
    trigger = {"type": 2, "value": "x" * 200000}
    assert "a trigger of it has 200000 bytes" in refused(complete(server, grammar_triggers=[trigger], **lazy))


def properties(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(count)}}


LIST_OF_ALL = {
    "$ref": "#/d/N",
    "d": {"N": {"type": "object", "properties": {"next": {"allOf": [{"$ref": "#/d/N"}]}}}},
}
CIRCLE = {"allOf": [{"$ref": "#/d/a"}], "d": {"a": {"$ref": "#/d/b"}, "b": {"$ref": "#/d/a"}}}
NESTED = json.loads('{"items":' * 100 + "{}" + "}" * 100)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (properties(3000), "3000, more than 256"),
        (NESTED, "nested more than 64 levels"),
        (LIST_OF_ALL, "nested too deeply"),
        (CIRCLE, "leads to nothing but further ones"),
        ({"type": "object", "properties": {" " * 20000: {}}}, "20000, more than 128"),
        ({"type": ["string"] * 5, "items": [{"type": ["null"] * 5}] * 3000}, "more than 3000 objects"),
        ({"$ref": "#/d/" + "_" * 50000}, "more than 1024"),
        ({"type": "integer", "minimum": 1e300}, "minimum is beyond 2^53"),
        ({"type": "thing"}, "unrecognized type thing"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_hostile_schema(server: Server, schema: dict[str, Any], said: str) -> None:
    assert said in refused(complete(server, json_schema=schema))


def test_a_pattern_that_is_not_followed(server: Server) -> None:
    """As llama.cpp does, any string goes; the log says so."""
    answer = complete(server, json_schema={"type": "string", "pattern": "^(?=a)b$"}, n_predict=8)
    assert answer.status_code == 200
    log = server.log.read_text(errors="replace")
    assert "the JSON schema is followed in part: pattern ^(?=a)b$ is not supported" in log
    assert "WARNING: JSON schema conversion" not in log
