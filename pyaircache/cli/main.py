"""The command ``pyaircache``: its subcommands, and how errors and exit codes leave it.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 2 wrong usage or argument, 130 Ctrl-C, 1 any other
error.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from .. import __version__
from ..engine import engine
from ..errors import ArgumentError, CancelledError, EngineError, PyAircacheError
from . import terminal
from .ask import ask
from .batch import batch
from .bench import bench
from .convert import convert
from .demo import demo
from .info import info
from .methods import methods
from .serve import serve_command

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, terminal.EXIT_INTERRUPTED


class _Group(click.Group):
    """Reports every error as one line on stderr; lists the commands in the order in which they were added."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(self.commands)

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


for _command in (demo, ask, batch, info, methods, convert, bench, serve_command):
    main.add_command(_command)

if __name__ == "__main__":
    main(prog_name="pyaircache")
