"""Options that several commands have."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import click

from ..methods import grammar
from ..methods.choice import refined

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
