"""The command line's manners: a mistake is a sentence on stderr and exit code 2, Ctrl-C is 130, no traceback."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from aae_ray.mistakes import UserError

MISTAKE, INTERRUPTED = 2, 130

OVERRIDES_HELP = "settings to change, as key=value with dotted keys, e.g. train.epochs=9"


def run_command(command: Callable[..., Any], name: str) -> None:
    """Run a function as a command line and leave with its exit code."""
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command(help=command.__doc__)(command)
    try:
        app(prog_name=f"python -m aae_ray.{name}")  # leaves by itself, with 130 after Ctrl-C
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(MISTAKE)


def file_and_overrides(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """`[FILE] [key=value ...]` as a file, if one is named, and the overrides. Raises UserError for two files."""
    files = [argument for argument in arguments if "=" not in argument]
    if len(files) > 1:
        raise UserError(f"expected one file and key=value settings, got {' and '.join(files)}")
    return (files[0] if files else None), [argument for argument in arguments if "=" in argument]
