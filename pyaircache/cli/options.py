"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import click

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
