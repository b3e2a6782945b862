"""The command line's manners: a mistake is a sentence on stderr and exit code 2, Ctrl-C is 130, no traceback."""

import atexit
import errno
import importlib
import inspect
import io
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO, get_args, get_type_hints

import typer
from typer.core import TyperCommand

from aae_ray.errors import INTERRUPTED, MISTAKE, STOPPED, UserError, closest

click_errors: Any = importlib.import_module(typer.BadParameter.__module__)  # typer has a click of its own, or the other

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
CLOSED_PIPE = 141  # as a shell tells the end by SIGPIPE
NAME_BYTES = 255  # the longest name of a file
# Options that several commands have.
ModelName = Annotated[
    str, typer.Option(help="registered model, or folder of a study, of an exported model or of a checkpoint")
]
ModelVersion = Annotated[str, typer.Option(help="alias or version of a registered model")]
TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow server or database; MLFLOW_TRACKING_URI or sqlite:///mlflow.db if none")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="check everything, data included, print the whole study, start nothing")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="show the messages of Ray as well")]
OVERRIDES_HELP = "settings to change, as key=value with dotted keys, e.g. train.epochs=9"


def main(command: Callable[..., Any], name: str) -> NoReturn:
    """Run a function as a command line, all that this process does, and end the process with its exit code."""
    _open_standard_streams()
    try:
        run_command(command, name)
    except SystemExit as end:
        leave(end)
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


def leave(end: SystemExit) -> NoReturn:
    """End the process as Python would, without taking apart what was imported: for PyTorch, Ray and MLflow that takes
    seconds, in which the user waits for the prompt, and frees nothing that the end does not free."""
    unraisable: list[Any] = []
    sys.unraisablehook = unraisable.append  # where Python 3.13 hands a Ctrl-C that comes while threads are waited for
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as Python's own end does
    except KeyboardInterrupt:  # Ctrl-C once more, while a thread has work to end
        end = SystemExit(INTERRUPTED)
    sys.unraisablehook = sys.__unraisablehook__
    for each in unraisable:
        if isinstance(each.exc_value, KeyboardInterrupt):
            end = SystemExit(INTERRUPTED)
        else:
            sys.unraisablehook(each)
    atexit._run_exitfuncs()
    with suppress(OSError):  # what nobody can read changes no exit code
        _flush(sys.stderr)
    try:
        _flush(sys.stdout)
    except BrokenPipeError:  # the reader has what it wanted, as `head` does
        os._exit(end.code if isinstance(end.code, int) and end.code else CLOSED_PIPE)
    except OSError:  # a full disk: Python has its own way to say so
        raise end from None
    if end.code is not None and not isinstance(end.code, int):  # Python has its own way to say that, too
        raise end
    os._exit(end.code or 0)


def _flush(stream: TextIO | None) -> None:
    if stream is not None and not stream.closed:  # a service may have none
        stream.flush()


class Command(TyperCommand):
    """A command whose mistakes are told in our words, all in one sentence, as those in settings are."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, ctx.allow_extra_args = list(args), True
        try:
            rest = super().parse_args(ctx, args)
        except click_errors.UsageError as error:
            raise UserError(self._mistake(error, given)) from None
        if ctx.args:
            raise UserError(f"{' '.join(map(repr, ctx.args))} is more than this command takes; see --help")
        for param in self.params:
            value = ctx.params.get(param.name or "")
            if param.param_type_name == "option" and isinstance(value, str) and value in self._options():
                raise UserError(f"{param.opts[0]} needs a value before {value}")
        return rest

    def _options(self) -> list[str]:
        return [option for param in self.params if param.param_type_name == "option" for option in param.opts]

    def _mistake(self, error: Any, given: list[str]) -> str:
        """What is wrong with the arguments, by the type of click's error."""
        if isinstance(error, click_errors.NoSuchOption):
            return self._unknown_option(error.option_name, given)
        if isinstance(error, click_errors.BadOptionUsage):
            option = error.option_name
            switch = any(option in param.opts and getattr(param, "is_flag", False) for param in self.params)
            return f"{option} is a switch and takes no value" if switch else f"{option} needs a value"
        param = getattr(error, "param", None)
        if param is None:
            return f"{' '.join(given)} is not understood; see --help"
        name = param.opts[0] if param.param_type_name == "option" else (param.metavar or str(param.name).upper())
        if isinstance(error, click_errors.MissingParameter):
            return f"{name} is missing; see --help"
        value = _value_of(param.opts, given)
        return f"{name}: expected {self._expected(str(param.name))}" + (f", got {value!r}" if value else "")

    def _expected(self, name: str) -> str:
        """What a parameter takes, by its annotation."""
        annotation = get_type_hints(inspect.unwrap(self.callback or self._expected), include_extras=True)[name]
        kind, about = get_args(annotation)[:2]
        kinds = {int: "a whole number", float: "a number"}
        wanted = next((text for type_, text in kinds.items() if type_ in (kind, *get_args(kind))), "another value")
        for choice in (kind, *get_args(kind)):
            if isinstance(choice, type) and issubclass(choice, Enum):
                return f"one of {', '.join(each.value for each in choice)}"
        bounds = (("at least", about.min), ("at most", about.max))
        between = " and ".join(f"{side} {bound}" for side, bound in bounds if bound is not None)
        return f"{wanted}{f' of {between}' if between else ''}"

    def _unknown_option(self, option: str, given: Sequence[str]) -> str:
        from aae_ray.settings import dotted_fields

        written = next((argument for argument in given if argument.startswith(option)), option)
        name, _, value = written.partition("=")  # of -train.epochs=3 the parser tells -t
        key = closest(name.lstrip("-"), dotted_fields())
        meant = None if name.lstrip("-") in dotted_fields() else closest(name, self._options())
        if meant is None and key is not None and any(param.nargs == -1 for param in self.params):
            behind = next(iter(given[given.index(written) + 1 :]), "-") if written in given else "-"
            value = value or ("VALUE" if behind.startswith("-") else behind)
            return f"{name} is not an option; settings are given without dashes, as {key}={value}"
        hint = f" Did you mean {meant}?" if meant else f" The options are {', '.join(self._options())}."
        return f"{name} is not an option.{hint}"


def _value_of(options: Sequence[str], given: Sequence[str]) -> str | None:
    """What stands behind an option on the command line, as `--option=value` or as `--option value`."""
    for index, argument in enumerate(given):
        name, equals, value = argument.partition("=")
        if name in options:
            return value if equals else next(iter(given[index + 1 :]), None)
    return None


def run_command(command: Callable[..., Any], name: str) -> None:
    """Run a function as a command line and leave with its exit code."""
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command(help=command.__doc__, cls=Command)(command)
    _write_what_can_be_written()
    try:
        app(prog_name=f"python -m aae_ray.{name}")  # leaves by itself, with 130 after Ctrl-C
    except UserError as error:
        with suppress(OSError):  # a closed pipe, a full disk: the exit code says it too
            print(error, file=sys.stderr, flush=True)
        sys.exit(MISTAKE)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        sys.exit(no_room(error))


def no_room(error: OSError) -> int:
    """Say that a disk is full; the exit code."""
    where = f" ({error.filename})" if error.filename else ""
    with suppress(OSError):
        print(f"what this command writes has no room{where}: {error.strerror}; make some first", file=sys.stderr)
    return MISTAKE


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


def check_out(out: Path, ending: str) -> None:
    """Raises UserError for a file to write that has another ending, or lies in no folder. os.path answers for a name
    that is too long, at which a Path raises OSError."""
    if out.suffix.lower() != ending or not os.path.isdir(out.absolute().parent) or os.path.isdir(out):
        raise UserError(f"--out {out}: give a name that ends in {ending}, in a folder that exists")
    if len(os.fsencode(out.name)) > NAME_BYTES:
        raise UserError(f"--out {out} cannot be written: File name too long; give one of at most {NAME_BYTES} bytes")


def file_and_overrides(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """`[FILE] [key=value ...]` as a file, if one is named, and the overrides. Raises UserError for two files, and for
    settings that are spelled otherwise."""
    files = [argument for argument in arguments if "=" not in argument]
    if not files:
        return None, list(arguments)
    if not os.path.exists(files[0]) or len(files) > 1:
        _check_spelling(arguments)
    if len(files) > 1:
        raise UserError(f"expected one file and key=value settings, got {' and '.join(files)}")
    return files[0], [argument for argument in arguments if "=" in argument]


def _check_spelling(arguments: Sequence[str]) -> None:
    """Raises UserError for `key = value`, `key value`, `key:value` and a key alone."""
    from aae_ray.settings import dotted_fields

    known = dotted_fields()
    for index, argument in enumerate(arguments):
        match = re.fullmatch(r"([A-Za-z_][\w.]*)\s*(?:=|:\s*(.*))?", argument, re.DOTALL)
        key = match[1].removeprefix("run.") if match else ""
        key = f"{key}.type" if f"{key}.type" in known else key
        if match is None or key not in known:
            continue
        behind = "".join(arguments[index + 1 : index + 3]) if match[2] is None else ""
        value, written = match[2] or behind.removeprefix("=") or "VALUE", " ".join(arguments[index:])
        raise UserError(f"{written}: settings are given as key=value without spaces, as {key}={value}")
