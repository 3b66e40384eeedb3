"""``pyaircache serve``: the bundled llama-server, with the bundled model unless another is named."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

import click

from .. import model_files
from ..checks import texts
from ..errors import EngineError

SERVER = "llama-server"
_MODEL = ("-m", "--model")
_ELSEWHERE = ("-mu", "--model-url", "-hf", "-hfr", "--hf-repo", "-dr", "--docker-repo", "--models-dir")
_ELSEWHERE_ENV = ("LLAMA_ARG_HF", "LLAMA_ARG_MODEL_", "LLAMA_ARG_DOCKER", "LLAMA_ARG_MODELS")
_MMPROJ = ("-mm", "--mmproj", "-mmu", "--mmproj-url", "--no-mmproj")
_ANSWERS = ("-h", "--help", "--usage", "--version", "--list-devices", "-cl", "--cache-list", "--completion-bash")


@click.command("serve", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def serve_command(options: tuple[str, ...]) -> None:
    """Answer OpenAI clients: start the bundled llama-server with OPTIONS, its own (--help shows them).

    Without --model it serves the small bundled one; a projector in the model's folder is found.
    --aircache-keep 0.1 compresses what images leave in the cache.
    """
    serve(options)


def command(args: Sequence[str]) -> list[str]:
    """The command line of llama-server: its own options, and the model files where they are not named.

    Raises:
        ArgumentError: The options are not a list of texts.
        EngineError: There is no llama-server.
        ModelNotFoundError: A file does not exist.
        ModelError: A file is not a GGUF.
        ProjectorError: Several projectors fit equally well.
    """
    args = texts("the server's options", args)
    line = [str(model_files.find_program(SERVER)), *args]
    if _given(args, _ANSWERS) or _given(args, _ELSEWHERE):
        return line
    model = _value(args, _MODEL) or os.environ.get("LLAMA_ARG_MODEL")
    if model is None and any(name.startswith(_ELSEWHERE_ENV) for name in os.environ):
        return line
    if model is not None and (_given(args, _MMPROJ) or "LLAMA_ARG_MMPROJ" in os.environ):
        return line
    model_path, mmproj_path = model_files.resolve(model, None)
    if model is None:
        line += ["--model", str(model_path)]
    if mmproj_path is not None and not _given(args, _MMPROJ):
        line += ["--mmproj", str(mmproj_path)]
    return line


def serve(args: Sequence[str]) -> NoReturn:
    """Becomes llama-server: signals reach it, and its exit code is this process's.

    Raises:
        EngineError: The system cannot start llama-server.
        PyAircacheError: See `command`.
    """
    line = command(args)
    try:
        os.execv(line[0], line)
    except (OSError, ValueError) as exc:
        raise EngineError(f"{line[0]} cannot be started: {getattr(exc, 'strerror', None) or exc}") from exc


def _given(args: Sequence[str], names: Sequence[str]) -> bool:
    return any(arg.split("=", 1)[0] in names for arg in args)


def _value(args: Sequence[str], names: Sequence[str]) -> str | None:
    for arg, following in zip(args, [*args[1:], ""], strict=False):
        if arg in names:
            return following
    return None
