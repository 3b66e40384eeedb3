"""What one question asks for, checked on construction."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..checks import between, share, shown, texts, whole
from ..engine.marshal import utf8
from ..engine.structs import Sampling
from ..errors import ArgumentError
from ..methods.choice import Choice

_MOST_STOPS, _LONGEST_STOP = 64, 1024
_MOST_LOGPROBS = 1024
_LAST_SEED = 2**32 - 2  # for llama.cpp the next one stands for another seed each time

Schema = Mapping[str, Any] | str
"""A JSON schema, as an object or as its text."""


@dataclass(frozen=True)
class Options:
    """Options of one question; see `Chat.ask` for what each does.

    Attributes:
        keep: Share of the visual cells to keep, in (0, 1]; 1 runs no compression at all.
        choice: The method.
        max_tokens: Longest answer, at least 1.
        temperature: 0 takes the most likely token; higher is more random; at most 1e6.
        top_k: At least 0; 0: off.
        top_p: In (0, 1]; 1: off.
        min_p: In [0, 1]; 0: off.
        repeat_penalty: In [0.01, 100]; 1: off.
        seed: Of the sampling, 0 to 2**32 - 2; None: drawn here.
        stop: A text or texts; here a tuple of them.
        json_schema: An object or a text; here its text, or None.
        grammar: GBNF text, or None. Not both.
        logprobs: Most likely tokens to tell at each place, 0 to 1024; None: nothing is told.
        reported_seed: The seed for the report: None where it decides nothing and nobody asked for it.

    Raises:
        ArgumentError: A value is outside its limits.
    """

    keep: float
    choice: Choice
    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    json_schema: Schema | None = None
    grammar: str | None = None
    logprobs: int | None = None
    reported_seed: int | None = field(init=False)

    def __post_init__(self) -> None:
        given = None if self.seed is None else whole("seed", self.seed, 0, _LAST_SEED)
        seed = secrets.randbelow(_LAST_SEED + 1) if given is None else given
        checked = {
            "keep": share("keep", self.keep),
            "max_tokens": whole("max_tokens", self.max_tokens, 1, 2**31 - 1),
            "temperature": (temperature := between("temperature", self.temperature, 0.0, 1e6)),
            "top_k": whole("top_k", self.top_k, 0, 2**31 - 1),
            "top_p": share("top_p", self.top_p),
            "min_p": between("min_p", self.min_p, 0.0, 1.0),
            "repeat_penalty": between("repeat_penalty", self.repeat_penalty, 0.01, 100.0),
            "seed": seed,
            "reported_seed": seed if temperature > 0.0 else given,
            "stop": _stops(self.stop),
            "json_schema": _schema(self.json_schema),
            "grammar": _grammar(self.grammar),
            "logprobs": None if self.logprobs is None else whole("logprobs", self.logprobs, 0, _MOST_LOGPROBS),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.grammar is not None and self.json_schema is not None:
            raise ArgumentError("json_schema and grammar both say what the answer looks like; give one of them")

    @property
    def sampling(self) -> Sampling:
        """The same for the engine."""
        assert self.seed is not None and not isinstance(self.json_schema, Mapping)
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repeat_penalty=self.repeat_penalty,
            seed=self.seed,
            grammar=self.grammar,
            json_schema=self.json_schema,
        )

    def parameters(self) -> dict[str, Any]:
        """All of it for the report, in JSON's own types, by the names that `Chat.ask` has for them."""
        names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty")
        more = {name: getattr(self, name) for name in (*names, "json_schema", "grammar", "logprobs")}
        head = {"keep": self.keep, "method": self.choice.name}
        return head | more | {"seed": self.reported_seed, "stop": list(self.stop or ())}


def _stops(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = tuple(texts("stop", [value] if isinstance(value, str) else value))
    if len(stops) > _MOST_STOPS:
        raise ArgumentError(f"stop must be at most {_MOST_STOPS} texts, got {len(stops)}")
    for one in stops:
        if not 0 < len(one) <= _LONGEST_STOP:
            raise ArgumentError(f"stop must be texts of 1 to {_LONGEST_STOP} characters, got {shown(one)}")
        utf8(one)
    return stops


def _schema(value: object) -> str | None:
    if value is None:
        return None
    what = "json_schema must be a JSON schema: an object (dict), or its text"
    try:
        text = value if isinstance(value, str) else json.dumps(dict(value) if isinstance(value, Mapping) else None)
        parsed = json.loads(text)
    except (ValueError, TypeError, RecursionError) as exc:
        raise ArgumentError(f"{what}; got {shown(value)}: {exc}") from None
    if not isinstance(parsed, dict):
        raise ArgumentError(f"{what}; got {shown(value)}")
    utf8(text)
    return text


def _grammar(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise ArgumentError(f"grammar must be the text of a GBNF grammar, got {shown(value)}")
    utf8(value)
    return value
