"""The command line: ``pyaircache ask``, ``methods``, ``info``, ``convert`` and ``serve``.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 2 wrong usage or argument, 130 Ctrl-C, 1 any other
error.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
from PIL import Image

from .. import __version__
from ..chat.answer import Answer
from ..chat.chat import Chat
from ..convert import MMPROJ_TYPES, TEXT_TYPES
from ..convert import convert as convert_folder
from ..engine import engine
from ..errors import ArgumentError, CancelledError, EngineError, PyAircacheError
from ..images import Picture
from ..methods.choice import FULL, refined
from ..methods.method import ALLOCATIONS, Method
from . import terminal
from .describe import describe, lines
from .serve import serve as start_server

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, terminal.EXIT_INTERRUPTED


class _Group(click.Group):
    """Reports every error as one line on stderr."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command; in standalone mode leaves with the exit code of the module's docstring."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        terminal.claim_streams()
        terminal.say_warnings()
        if sys.stdout is None and (sys.argv[1:] if args is None else list(args))[:1] != ["serve"]:
            _fail("standard output is closed, so there is nowhere to put the answer", EXIT_ERROR)
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of our output has gone: nothing left to say, and nobody to say it to
            terminal.give_up(sys.stdout)
            sys.exit(EXIT_ERROR)
        except (click.Abort, KeyboardInterrupt, CancelledError):
            sys.exit(EXIT_INTERRUPTED)
        except click.ClickException as exc:
            _fail(exc.format_message(), exc.exit_code)
        except ArgumentError as exc:
            _fail(str(exc), EXIT_USAGE)
        except PyAircacheError as exc:
            _fail(str(exc), EXIT_ERROR)
        except OSError as exc:  # without a name it is a standard stream
            _fail(f"{exc.filename or 'the output'} cannot be written: {exc.strerror or exc}", EXIT_ERROR)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # a full disk, say: Python would try once more at its end, and speak of it in its own way
        terminal.give_up(sys.stdout)
    terminal.say(f"error: {message}")
    sys.exit(code)


def _print_version(context: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    try:
        found = f", engine {engine.version()}"
    except EngineError:
        found = ", engine not found"
    click.echo(f"pyaircache {__version__}{found}")
    context.exit()


@click.group(cls=_Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Versions.")
@click.pass_context
def main(context: click.Context) -> None:
    """Ask vision-language models about images, with a compressed visual KV cache."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # an answer may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="replace")
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@main.command()
@click.argument("images", metavar="IMAGE...", nargs=-1)
@click.argument("question")
@click.option("-m", "--model", metavar="GGUF", help="Language model; default: the small bundled one.")
@click.option("--mmproj", metavar="GGUF", help="Its vision projector; default: the one in the model's folder.")
@click.option("--no-mmproj", is_flag=True, help="No projector: a text model, whatever lies beside it.")
@click.option("--keep", type=float, default=0.10, show_default=True, help="Share of visual KV cells to keep, (0, 1].")
@click.option("--method", default="aircache", show_default=True, help="A name of `pyaircache methods`.")
@click.option("--alpha", type=float, help="Threshold of an elite window, (0, 1]; default: 0.9.")
@click.option("--window", metavar="WINDOW", help="Who observes: elite, last:16, text, visual:32 or all.")
@click.option("--allocation", metavar="NAME", help=f"How layers share the cells: {', '.join(ALLOCATIONS)}.")
@click.option("--pool", metavar="POOL", help="Pooling of scores: max:5, avg:5, max:3x3 (on the grid), none.")
@click.option("--merge", type=float, help="Share of the dropped tokens to merge instead, [0, 1].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: the answer and the report's numbers.")
@click.option("--heatmap", metavar="OUT.png", help="Paint what was kept onto the image.")
@click.option("-c", "--ctx", type=int, help="Context window in tokens; default: the model's own, at most 32768.")
@click.option("-n", "--max-tokens", type=int, default=256, show_default=True, help="Longest answer.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: always the most likely token.")
@click.option("--seed", type=int, help="Of an answer with a temperature, and of the method random.")
@click.option("-ngl", "--n-gpu-layers", type=int, default=-1, show_default=True, help="Layers on the GPU; -1: all.")
@click.option("-t", "--threads", type=int, help="CPU threads; default: one per physical core.")
@click.option("-ctk", "--cache-type-k", default="f16", show_default=True, help="Type of the cache's keys.")
@click.option("-ctv", "--cache-type-v", default="f16", show_default=True, help="Type of the cache's values.")
@click.option("--rpc", "rpc_servers", metavar="HOST:PORT,...", help="Compute on ggml RPC servers.")
@click.option("-v", "--verbose", is_flag=True, help="Show llama.cpp's log, and the report, on stderr.")
def ask(
    images: tuple[str, ...],
    question: str,
    model: str | None,
    mmproj: str | None,
    no_mmproj: bool,
    keep: float,
    method: str,
    alpha: float | None,
    window: str | None,
    allocation: str | None,
    pool: str | None,
    merge: float | None,
    as_json: bool,
    heatmap: str | None,
    ctx: int | None,
    max_tokens: int,
    temperature: float,
    seed: int | None,
    n_gpu_layers: int,
    threads: int | None,
    cache_type_k: str,
    cache_type_v: str,
    rpc_servers: str | None,
    verbose: bool,
) -> None:
    """Ask QUESTION about one or more images ("-" reads one from stdin).

    --window, --allocation, --pool and --merge replace that part of the method.
    """
    if not images and (os.path.isfile(question) or _is_picture_name(question)):
        raise click.UsageError(f"Missing argument 'QUESTION': what is the question about {question}?")
    if mmproj is not None and no_mmproj:
        raise click.UsageError("--mmproj and --no-mmproj are given both")
    _check_heatmap(heatmap, images)
    chosen, alpha = refined(method, alpha, window=window, allocation=allocation, pool=pool, merge=merge, seed=seed)
    pictures: list[Picture] = [_stdin() if name == "-" else name for name in images]
    names: Any = {"method": chosen, "cache_type_k": cache_type_k, "cache_type_v": cache_type_v}  # which Chat checks
    chat = Chat(
        model,
        False if no_mmproj else mmproj,
        keep=keep,
        alpha=alpha,
        n_ctx=ctx,
        n_gpu_layers=n_gpu_layers,
        n_threads=threads,
        **names,
        rpc_servers=rpc_servers,
        verbose=verbose,
    )
    options: Any = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    with (
        chat,
        terminal.Interrupts(chat.cancel),
        chat.ask(pictures or None, question, stream=True, **options) as stream,
    ):
        for piece in stream:
            if not as_json:
                click.echo(piece, nl=False)
        answer = stream.answer
    if heatmap is not None:
        _write_heatmaps(answer, pictures, heatmap)
    if as_json:
        numbers = answer.report.to_dict(scalars_only=True)
        click.echo(json.dumps({"answer": str(answer), **numbers, "budgets": answer.report.budgets.tolist()}))
    else:
        click.echo()
    if verbose:
        click.echo(repr(answer.report), err=True)


def _stdin() -> bytes:
    if sys.stdin is None:
        raise click.UsageError('"-" reads an image from standard input, which is closed')
    return sys.stdin.buffer.read()


def _is_picture_name(name: str) -> bool:
    return Path(name).suffix.lower() in Image.registered_extensions()


def _check_heatmap(heatmap: str | None, images: tuple[str, ...]) -> None:
    """Finds a wrong --heatmap before the model has worked for it."""
    if heatmap is None:
        return
    if not images:
        raise click.UsageError("--heatmap needs an image")
    if not _is_picture_name(heatmap):
        raise click.UsageError(f"--heatmap {heatmap}: not the name of a picture file, such as heatmap.png")
    if not Path(heatmap).resolve().parent.is_dir():
        raise click.UsageError(f"--heatmap {heatmap}: there is no such folder")


def _write_heatmaps(answer: Answer, pictures: list[Picture], out: str) -> None:
    """Writes OUT.png; with several pictures OUT-1.png, OUT-2.png and so on."""
    path = Path(out)
    for index, picture in enumerate(pictures):
        name = path if len(pictures) == 1 else path.with_stem(f"{path.stem}-{index + 1}")
        answer.report.heatmap(picture, index).save(name)


@main.command()
def methods() -> None:
    """List the named methods: name, then window, keys, allocation and whatever else is not as in aircache."""
    for name in Method.names():
        click.echo(f"{name:<10} {Method.named(name)}")
    click.echo(f"{FULL:<10} no compression: keep=1")


@main.command()
@click.argument("model", metavar="MODEL.gguf")
@click.argument("mmproj", metavar="[MMPROJ.gguf]", required=False)
@click.option("--mmproj", "named", metavar="GGUF", help="Vision projector; default: the one in the model's folder.")
@click.option("--no-mmproj", is_flag=True, help="No projector: a text model, whatever lies beside it.")
@click.option("--image-size", "sizes", metavar="WxH", multiple=True, help="What a picture of W x H pixels becomes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-v", "--verbose", is_flag=True, help="Show llama.cpp's log on stderr.")
def info(
    model: str,
    mmproj: str | None,
    named: str | None,
    no_mmproj: bool,
    sizes: tuple[str, ...],
    as_json: bool,
    verbose: bool,
) -> None:
    """Show what MODEL.gguf is, and whether its visual cache can be compressed."""
    if mmproj is not None and named is not None:
        raise click.UsageError("the projector is given twice")
    if no_mmproj and (mmproj is not None or named is not None):
        raise click.UsageError("a projector and --no-mmproj are given both")
    pictures = [_size(text) for text in sizes]
    with Chat(model, False if no_mmproj else mmproj or named, n_ctx=512, n_gpu_layers=0, verbose=verbose) as chat:
        fields = describe(chat, pictures)
    click.echo(json.dumps(fields) if as_json else "\n".join(lines(fields)))


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text)
    if match is None:
        raise click.UsageError(f"--image-size {text}: must be width and height in pixels, such as 640x480")
    return int(match[1]), int(match[2])


@main.command()
@click.argument("source", metavar="HF_DIR")
@click.option("-o", "--out", metavar="OUT", required=True, help="Folder for the files; made if need be.")
@click.option("--outtype", default="f16", show_default=True, help=f"Language model: {', '.join(TEXT_TYPES)}.")
@click.option("--mmproj-outtype", default="f16", show_default=True, help=f"Projector: {', '.join(MMPROJ_TYPES)}.")
@click.option("--only", default="both", show_default=True, help="text or mmproj: write one of the two files.")
@click.option("--name", help="Name of the files and of the model; default: the folder's.")
@click.option("--pre-tokenizer", metavar="NAME", help="llama.cpp's word splitter, such as qwen2; default: detected.")
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@click.option("-v", "--verbose", is_flag=True, help="Show the converter's log on stderr.")
def convert(source: str, out: str, **options: Any) -> None:
    """Convert the Hugging Face model folder HF_DIR to GGUF: language model and projector. Prints their paths."""
    for path in convert_folder(source, out, **options):
        if path is not None:
            click.echo(path)


@main.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def serve(options: tuple[str, ...]) -> None:
    """Answer OpenAI clients: start the bundled llama-server with OPTIONS, its own (--help shows them).

    Without --model it serves the small bundled one; a projector in the model's folder is found.
    --aircache-keep 0.1 compresses what images leave in the cache.
    """
    start_server(options)


if __name__ == "__main__":
    main(prog_name="pyaircache")
