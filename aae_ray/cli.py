"""The command line's manners: a mistake is a sentence on stderr and exit code 2, Ctrl-C is 130, no traceback."""

import atexit
import io
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TextIO

import typer

from aae_ray.errors import INTERRUPTED, MISTAKE, STOPPED, UserError

OVERRIDES_HELP = "settings to change, as key=value with dotted keys, e.g. train.epochs=9"


def main(command: Callable[..., Any], name: str) -> NoReturn:
    """Run a function as a command line, all that this process does, and end the process with its exit code."""
    _open_standard_streams()
    try:
        run_command(command, name)
    except SystemExit as end:
        _leave(end)
    raise AssertionError("a command leaves by itself")


def _open_standard_streams() -> None:
    """A service may start us without them. The next files to be opened would then be taken for them."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def _leave(end: SystemExit) -> NoReturn:
    """End the process as Python would, without taking apart what was imported: for PyTorch, Ray and MLflow that takes
    seconds, in which the user waits for the prompt, and frees nothing that the end does not free."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as Python's own end does
    except KeyboardInterrupt:  # Ctrl-C once more, while a thread has work to end
        end = SystemExit(INTERRUPTED)
    atexit._run_exitfuncs()
    with suppress(OSError):  # what nobody can read changes no exit code
        _flush(sys.stderr)
    try:
        _flush(sys.stdout)
    except OSError:  # a closed pipe, a full disk: Python has its own way to say so
        raise end from None
    if end.code is not None and not isinstance(end.code, int):  # Python has its own way to say that, too
        raise end
    os._exit(end.code or 0)


def _flush(stream: TextIO | None) -> None:
    if stream is not None and not stream.closed:  # a service may have none
        stream.flush()


def run_command(command: Callable[..., Any], name: str) -> None:
    """Run a function as a command line and leave with its exit code."""
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command(help=command.__doc__)(command)
    _write_what_can_be_written()
    try:
        app(prog_name=f"python -m aae_ray.{name}")  # leaves by itself, with 130 after Ctrl-C
    except UserError as error:
        with suppress(OSError):  # a closed pipe, a full disk: the exit code says it too
            print(error, file=sys.stderr, flush=True)
        sys.exit(MISTAKE)


def leave_study(interrupted: bool, well: bool) -> None:
    """Leave with the exit code of a study's end, where it did not end well."""
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if not well:
        raise typer.Exit(STOPPED)


def _write_what_can_be_written() -> None:
    """A letter that the encoding of stdout has no code for is written as an escape, and is no reason to end."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if not encoding.lower().startswith("utf") and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def file_and_overrides(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """`[FILE] [key=value ...]` as a file, if one is named, and the overrides. Raises UserError for two files."""
    files = [argument for argument in arguments if "=" not in argument]
    if len(files) > 1:
        raise UserError(f"expected one file and key=value settings, got {' and '.join(files)}")
    return (files[0] if files else None), [argument for argument in arguments if "=" in argument]
