"""The options of one question: `AskOptions` says what they are, `Options` are checked ones."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, TypeVar

from ..checks import between, share, shown, texts, whole
from ..engine.marshal import utf8
from ..engine.structs import Sampling
from ..errors import ArgumentError
from ..methods.choice import Choice
from ..methods.method import Method, MethodName
from ..methods.policy import Policy
from ..progress import OnProgress
from . import messages

if sys.version_info >= (3, 11):
    from typing import Unpack as Unpack
else:
    from typing_extensions import Unpack as Unpack

Call = TypeVar("Call", bound=Callable[..., Any])

_MOST_STOPS, _LONGEST_STOP = 64, 1024
_MOST_LOGPROBS = 1024
_LAST_SEED = 2**32 - 2  # for llama.cpp the next one stands for another seed each time

Schema = Mapping[str, Any] | str
"""A JSON schema, as an object or as its text."""


class AskOptions(TypedDict, total=False):
    """What `Chat.ask`, `Chat.complete` and their siblings take besides the question, all by name and each optional.

    For functions of your own that pass them on: ``def total(page: Path, **options: Unpack[AskOptions])``.

    Attributes:
        keep: Share of this question's visual cells to keep, in (0, 1], instead of the Chat's own ``keep``. Without an
            archive (``Chat(archive="none")``) a follow-up without an image cannot change what is left of it: another
            ``keep`` or ``method`` than the conversation's has no effect there, and a warning says so.
        method: Instead of the Chat's own, in any form that `Chat` takes.
        system: A system message for the conversation that begins with this question, instead of the Chat's own; False:
            none. A question that follows others cannot change theirs.
        max_tokens: Longest answer, in tokens; 256 if nothing is said.
        temperature: 0, which is the default: always the most likely token; higher: more random; at most 1e6.
        top_k: Draw from the k most likely tokens only; 0: from all.
        top_p: Draw from the most likely tokens that have this probability together, in (0, 1]; 1: from all.
        min_p: Draw from tokens that are at least this likely, relative to the most likely one, in [0, 1]; 0: from all.
        repeat_penalty: Divides the logits of tokens that were there among the last 64, in [0.01, 100]; 1: off.
        seed: Makes a random answer repeatable, 0 to 2**32 - 2; None: another one each time, which the report tells.
        stop: A text, or up to 64, at which the answer ends; it is no part of the answer.
        json_schema: The answer is JSON of this schema, an object or its text. One that is cut off by ``max_tokens`` is
            the beginning of that.
        grammar: The answer follows this GBNF grammar; not together with a schema.
        logprobs: n: `Answer.logprobs` tells how likely each token of the answer was, and of the n most likely tokens in
            its place the same; 0 to 1024; None: nothing.
        timeout: Seconds to wait while the Chat is in use by another question; None: for ever. Only the waiting is
            limited, not the answering.
        on_progress: Called with ("encode", done, total) for images and ("prefill", done, total) for the prompt's
            tokens. What it raises cancels the question and comes out of this call.
    """

    keep: float | None
    method: MethodName | Method | Policy | None
    system: str | Literal[False] | None
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    seed: int | None
    stop: str | Sequence[str] | None
    json_schema: Schema | None
    grammar: str | None
    logprobs: int | None
    timeout: float | None
    on_progress: OnProgress | None


@dataclass(frozen=True)
class Options:
    """`AskOptions` of one question, checked, with their defaults.

    Attributes:
        keep: 1 runs no compression at all.
        choice: The method.
        system: The message with which a conversation begins, or None.
        seed: Drawn here where there was none.
        stop: A tuple of texts.
        json_schema: The schema's text, or None.
        reported_seed: The seed for the report: None where it decides nothing and nobody asked for it.

    Raises:
        ArgumentError: A value is outside its limits.
    """

    keep: float
    choice: Choice
    system: str | None = None
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
            "system": None if self.system is None else messages.system(self.system).content,
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
        head = {"keep": self.keep, "method": self.choice.name, "system": self.system}
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


def refuse_unknown(call: str, given: Iterable[str], *own: str) -> None:
    """Finds an option that no question has.

    Args:
        call: What was called, as the message names it.
        given: Names of options that it was given.
        own: Names that it takes besides those of `AskOptions`.

    Raises:
        TypeError: There is one, as Python says it of functions that list their parameters.
    """
    known = [*own, *AskOptions.__annotations__]
    for name in given:
        if name not in known:
            near = " or ".join(map(repr, difflib.get_close_matches(name, known)))
            hint = f"did you mean {near}?" if near else f"its options are {', '.join(known)}"
            raise TypeError(f"{call} has no option {name!r}; {hint}")


def says_options(call: Call) -> Call:
    """For functions with ``**options: Unpack[AskOptions]``: their signature and help() show every option."""
    signature = inspect.signature(call)
    listed = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    defaults = {one.name: one.default for one in dataclasses.fields(Options)}
    for name, annotation in AskOptions.__annotations__.items():
        text = getattr(annotation, "__forward_arg__", annotation)
        default = defaults.get(name)
        default = None if default is dataclasses.MISSING else default
        listed.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=text))
    call.__signature__ = signature.replace(parameters=listed)  # type: ignore[attr-defined]
    if call.__doc__ and AskOptions.__doc__:  # python -OO has none
        meanings = inspect.cleandoc(AskOptions.__doc__).partition("Attributes:\n")[2]
        call.__doc__ = re.sub(r"    options: .*", lambda _: meanings, inspect.cleandoc(call.__doc__), count=1)
    return call
