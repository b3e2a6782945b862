"""The study's log file: what Ray, MLflow and other libraries have to say, and tracebacks. The screen stays ours."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from rich.console import Console

from aae_ray.reporting.console import Output

LOG = "study.log"
CHATTY = ("ray", "mlflow", "alembic", "sqlalchemy", "optuna", "matplotlib", "urllib3")


@contextmanager
def logged(folder: Path, console: Console, *, verbose: bool) -> Iterator[None]:
    """Whatever this process and its children write to their standard streams goes to the study's log, except what the
    console prints; that as well from the moment on that nobody can read the console any more. With `verbose` the
    streams stay as they are.

    Libraries in C++ write to file descriptors, so these are what is redirected.
    """
    handler = logging.FileHandler(folder / LOG, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk must not fill the screen
    os.close(os.open(folder / LOG, os.O_WRONLY | os.O_CREAT, 0o600))
    root = logging.getLogger()
    root.addHandler(handler)
    before = console.file
    if not verbose:  # else they also say it where they always do
        for name in CHATTY:
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [], True
    for name in ("aae_ray", "ray"):
        logging.getLogger(name).setLevel(logging.INFO)
    if verbose:
        try:
            with _spare(before, folder):
                yield
        finally:
            root.removeHandler(handler)
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    saved = os.dup(1), os.dup(2)
    encoding = getattr(before, "encoding", None) or "utf-8"
    terminal = os.fdopen(os.dup(saved[0]), "w", buffering=1, encoding=encoding)
    log = os.open(folder / LOG, os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    console.file = cast(IO[str], Output(terminal))
    try:
        with _spare(console.file, folder):
            yield
    finally:
        with suppress(OSError, ValueError):
            terminal.flush()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for descriptor in saved:
            os.close(descriptor)
        console.file = before
        root.removeHandler(handler)


@contextmanager
def _spare(output: IO[str], folder: Path) -> Iterator[None]:
    """The log takes what a console's output cannot."""
    if not isinstance(output, Output):
        yield
        return
    with (folder / LOG).open("a", encoding="utf-8") as log:
        output.log = log
        try:
            yield
        finally:
            output.log = None
