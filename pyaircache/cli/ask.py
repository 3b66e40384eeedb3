"""``pyaircache ask``: a question about pictures, answered on stdout."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..chat.answer import Answer
from ..chat.chat import Chat
from ..images import load_images
from . import options, terminal
from .arguments import pictures_and_question, refuse_addresses, stdin


@click.command(cls=options.MethodCommand)
@click.argument("arguments", metavar="[IMAGE]... QUESTION", nargs=-1)
@click.option("-q", "--question", metavar="QUESTION", help="The question; then every argument is an image.")
@click.option("--system", metavar="TEXT", help="What the model is told before the question.")
@click.option("-m", "--model", metavar="GGUF", help="Language model; default: the small bundled one.")
@options.mmproj()
@options.no_mmproj
@click.option("--image-urls", is_flag=True, help="An image may be an http(s) address.")
@options.as_json
@click.option("--heatmap", metavar="OUT.png", help="Paint what was kept onto the image; several: OUT-1.png ...")
@click.option("-c", "--ctx", type=int, help="Context window in tokens; default: the model's own, at most 32768.")
@options.answering
@options.computing
@click.option("-v", "--verbose", is_flag=True, help="Show llama.cpp's log, and the report, on stderr.")
def ask(
    arguments: tuple[str, ...],
    question: str | None,
    system: str | None,
    model: str | None,
    mmproj: str | None,
    no_mmproj: bool,
    image_urls: bool,
    as_json: bool,
    heatmap: str | None,
    ctx: int | None,
    seed: int | None,
    n_gpu_layers: int,
    threads: int | None,
    cache_type_k: str,
    cache_type_v: str,
    rpc_servers: str | None,
    verbose: bool,
    **more: Any,
) -> None:
    """Ask QUESTION about any number of images ("-" reads one from stdin).

    The last argument is the question, unless --question gives it. Behind "--" nothing is an option: a question may
    begin with "-" there.

    The options below --verbose say what is kept of the images: --keep and --method, and what replaces a part of that
    method (docs/methods.md).
    """
    names, question = pictures_and_question(arguments, question)
    projector = options.projector(mmproj, no_mmproj)
    if not image_urls:
        refuse_addresses(names)
    _check_heatmap(heatmap, names)
    asking = {"seed": seed} | options.asking(**options.take(more, options.ANSWERING))
    loading = options.given(system=system) | options.chosen(more, seed)
    # Read once: stdin has no second time, and what lies at an address may change before it is painted
    pictures = load_images([stdin() if name == "-" else name for name in names] or None, urls=image_urls)
    chat = Chat(
        model,
        projector,
        n_ctx=ctx,
        n_gpu_layers=n_gpu_layers,
        n_threads=threads,
        cache_type_k=cast(Any, cache_type_k),
        cache_type_v=cast(Any, cache_type_v),
        rpc_servers=rpc_servers,
        verbose=verbose,
        **loading,
    )
    with (
        chat,
        terminal.Interrupts(chat.cancel),
        chat.ask(list(pictures) or None, question, stream=True, **asking) as stream,
    ):
        for piece in stream:
            if not as_json:
                click.echo(piece, nl=False)
        answer = stream.answer
    click.echo(json.dumps(_fields(answer)) if as_json else "")
    if verbose:
        click.echo(repr(answer.report), err=True)
    if heatmap is not None:  # behind the answer, which a full disk must not cost
        _write_heatmaps(answer, pictures, heatmap)


def _fields(answer: Answer) -> dict[str, Any]:
    numbers = answer.report.to_dict(scalars_only=True)
    return {"answer": str(answer), **numbers, "budgets": answer.report.budgets.tolist()}


def _check_heatmap(heatmap: str | None, names: list[str]) -> None:
    """Finds a wrong --heatmap before the model has worked for it."""
    if heatmap is None:
        return
    if not names:
        raise click.UsageError("--heatmap needs an image")
    if not _can_be_written(heatmap):
        raise click.UsageError(f"--heatmap {heatmap}: not the name of a picture file to write, such as heatmap.png")
    if not Path(heatmap).resolve().parent.is_dir():
        raise click.UsageError(f"--heatmap {heatmap}: there is no such folder")


def _can_be_written(name: str) -> bool:
    """Whether Pillow writes RGB pictures of this ending: several it only reads, and others are black and white."""
    kind = Image.registered_extensions().get(Path(name).suffix.lower())
    if kind not in Image.SAVE:
        return False
    try:
        Image.new("RGB", (16, 16)).save(io.BytesIO(), kind)
    except Exception:  # whatever a plugin raises
        return False
    return True


def _write_heatmaps(answer: Answer, pictures: list[NDArray[np.uint8]], out: str) -> None:
    """Writes OUT.png; with several pictures OUT-1.png, OUT-2.png and so on."""
    path = Path(out)
    for index, picture in enumerate(pictures):
        name = path if len(pictures) == 1 else path.with_stem(f"{path.stem}-{index + 1}")
        answer.report.heatmap(picture, index).save(name)
