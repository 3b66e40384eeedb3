"""Options that several commands have."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

import click

from ..methods import grammar
from ..methods.choice import refined
from .arguments import text_of

Command = TypeVar("Command", bound=Callable[..., Any])

no_mmproj = click.option("--no-mmproj", is_flag=True, help="No projector: a text model, whatever lies beside it.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def mmproj(name: str = "mmproj") -> Callable[[Command], Command]:
    """--mmproj, as the parameter of this name."""
    text = "Vision projector; default: the one in the model's folder."
    return click.option("--mmproj", name, metavar="GGUF", help=text)


def projector(mmproj: str | None, no_mmproj: bool) -> str | Literal[False] | None:
    """What the two options say, as `Chat` takes it.

    Raises:
        click.UsageError: They are given both.
    """
    if mmproj is not None and no_mmproj:
        raise click.UsageError("a projector (--mmproj) and --no-mmproj are given both")
    return False if no_mmproj else mmproj


def given(**options: Any) -> dict[str, Any]:
    """The options that were given: neither None nor empty."""
    return {name: value for name, value in options.items() if value is not None and value != ()}


def _together(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several decorators as one, in the order of the help."""

    def decorate(command: Command) -> Command:
        for one in reversed(decorators):
            command = one(command)
        return command

    return decorate


answering = _together(
    click.option("-n", "--max-tokens", type=int, default=256, show_default=True, help="Longest answer."),
    click.option("--temperature", type=float, default=0.0, show_default=True, help="0: always the most likely token."),
    click.option("--top-k", type=int, metavar="K", help="Draw among the K most likely tokens; 0: all."),
    click.option(
        "--top-p", type=float, metavar="P", help="Draw among those that have this probability together, (0, 1]."
    ),
    click.option(
        "--min-p", type=float, metavar="P", help="Draw among those this likely, relative to the best, [0, 1]."
    ),
    click.option(
        "--repeat-penalty", type=float, metavar="X", help="Above 1: tokens that were there become less likely."
    ),
    click.option("--seed", type=int, help="Of an answer with a temperature, and of random scores."),
    click.option("--stop", metavar="TEXT", multiple=True, help="End the answer before this text; may be repeated."),
    click.option("--json-schema", metavar="FILE|JSON", help="The answer is JSON that follows this schema."),
    click.option("--grammar", metavar="FILE", help="The answer follows this GBNF grammar."),
)
"""How answers are drawn: ``ANSWERING``, and ``--seed``."""

ANSWERING = (
    "max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "stop", "json_schema", "grammar"
)  # fmt: skip
"""The parameters of `answering`, which `asking` reads."""

computing = _together(
    click.option("-ngl", "--n-gpu-layers", type=int, default=-1, show_default=True, help="Layers on the GPU; -1: all."),
    click.option("-t", "--threads", type=int, help="CPU threads; default: one per physical core."),
    click.option("-ctk", "--cache-type-k", default="f16", show_default=True, help="Type of the cache's keys."),
    click.option("-ctv", "--cache-type-v", default="f16", show_default=True, help="Type of the cache's values."),
    click.option("--rpc", "rpc_servers", metavar="HOST:PORT,...", help="Compute on ggml RPC servers."),
)
"""Where and how it is computed."""


def asking(json_schema: str | None, grammar: str | None, **options: Any) -> dict[str, Any]:
    """What the options of `answering` say, as `Chat.ask` takes it.

    Raises:
        click.UsageError: A file cannot be read.
    """
    texts = {
        "json_schema": text_of("--json-schema", json_schema, "{"),
        "grammar": text_of("--grammar", grammar),
    }
    return given(**options, **texts)


def take(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Takes some options out of others."""
    return {name: options.pop(name) for name in names}


class MethodCommand(click.Command):
    """A command with an option for every part of a method, which the engine lists (docs/methods.md).

    Its function gets them by the parts' names: what `chosen` takes. There is one ``--seed``, which the command itself
    has: of the answer, and of the method's scores where these are random.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own options, the method's, and --help."""
        own, count = super().get_params(ctx), len(self.params)
        return [*own[:count], *self._method, *own[count:]]

    @functools.cached_property
    def _method(self) -> list[click.Parameter]:
        defaults = {"keep": "; default: 0.1", "method": "; default: aircache"}
        found: list[click.Parameter] = []
        for part in grammar.parts():
            if part.name != "seed":
                flag, text = f"--{part.name.replace('_', '-')}", part.help + defaults.get(part.name, "")
                found.append(click.Option([flag, part.name], metavar=part.hint, help=f"{text[0].upper()}{text[1:]}."))
        return found


def chosen(parts: Mapping[str, str | None], seed: int | None) -> dict[str, Any]:
    """What the options of a `MethodCommand` say, as options of `Chat`: those of ``keep``, ``method`` and ``alpha`` that
    are needed.

    Raises:
        ArgumentError: A part is outside its limits, or does not fit the others.
    """
    texts = {name: text for name, text in parts.items() if text is not None}
    keep, name = texts.pop("keep", None), texts.pop("method", "aircache")
    method, alpha = refined(name, texts, seed)
    return given(keep=grammar.read("keep", keep).keep if keep is not None else None, method=method, alpha=alpha)
