"""``pyaircache info``: what is installed, what a model is, and what its pictures become."""

from __future__ import annotations

import json
import re

import click

from ..chat.chat import Chat
from . import options
from .describe import describe, installation, lines


@click.command()
@click.argument("model", metavar="[MODEL.gguf]", required=False)
@click.argument("mmproj", metavar="[MMPROJ.gguf]", required=False)
@options.mmproj("named")
@options.no_mmproj
@click.option("--image-size", "sizes", metavar="WxH", multiple=True, help="What a picture of W x H pixels becomes.")
@options.as_json
@click.option("-v", "--verbose", is_flag=True, help="Show llama.cpp's log on stderr.")
def info(
    model: str | None,
    mmproj: str | None,
    named: str | None,
    no_mmproj: bool,
    sizes: tuple[str, ...],
    as_json: bool,
    verbose: bool,
) -> None:
    """Show what MODEL.gguf is, and whether its visual cache can be compressed.

    Without it: what is installed, and the small bundled model.
    """
    if mmproj is not None and named is not None:
        raise click.UsageError("the projector is given twice")
    chosen = options.projector(mmproj or named, no_mmproj)
    pictures = [_size(text) for text in sizes]
    fields = {} if model is not None else installation()
    with Chat(model, chosen, n_ctx=512, n_gpu_layers=0, verbose=verbose) as chat:
        fields |= describe(chat, pictures)
    click.echo(json.dumps(fields) if as_json else "\n".join(lines(fields)))


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text)
    if match is None:
        raise click.UsageError(f"--image-size {text}: must be width and height in pixels, such as 640x480")
    return int(match[1]), int(match[2])
