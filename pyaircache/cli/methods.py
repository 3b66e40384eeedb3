"""``pyaircache methods``: the named methods."""

from __future__ import annotations

import click

from ..methods.choice import FULL
from ..methods.method import Method


@click.command()
def methods() -> None:
    """List the named methods: name, then window, keys, allocation and whatever else is not as in aircache."""
    for name in Method.names():
        click.echo(f"{name:<10} {Method.named(name)}")
    click.echo(f"{FULL:<10} no compression: keep=1")
