"""The console of a command: it outlives a closed pipe and a full disk, and writes ASCII where no more can be shown."""

import os
import re
import sys
import unicodedata
from contextlib import suppress
from typing import IO, Any, cast

from rich.console import Console

LOG_WIDTH = 180  # characters of a line in a log, enough for every table
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
MOVE = re.compile(r"\x1b\[[0-9;?]*[A-HJKhl]")  # of the cursor: a frame of the live screen
LOOKS_LIKE = str.maketrans(
    {
        "\N{DOWNWARDS ARROW}": "v",
        "\N{UPWARDS ARROW}": "^",
        "\N{RIGHTWARDS ARROW}": ">",
        "\N{BLACK STAR}": "*",
        "\N{BOX DRAWINGS HEAVY HORIZONTAL}": "=",
        "\N{BOX DRAWINGS LIGHT HORIZONTAL}": "-",
        "\N{BOX DRAWINGS LIGHT VERTICAL}": "|",
        "\N{BOX DRAWINGS HEAVY VERTICAL}": "|",
        "\N{HORIZONTAL ELLIPSIS}": ".",
        "\N{MIDDLE DOT}": "|",
        "\N{BULLET}": "*",
        "\N{EN DASH}": "-",
        "\N{MULTIPLICATION SIGN}": "x",
        "\N{PLUS-MINUS SIGN}": "~",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    }
)


def ascii_text(text: str) -> str:
    """A text in ASCII, letter for letter: a sign that looks like it, a letter without its accent, `?` for the rest."""
    if text.isascii():
        return text
    text = text.translate(LOOKS_LIKE)
    return "".join(letter if letter.isascii() else _plain(letter) for letter in text)


def _plain(letter: str) -> str:
    if 0x2500 <= ord(letter) < 0x2580:  # corners and crossings of boxes
        return "+"
    plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return plain if len(plain) == 1 else "?"


class Output:
    """A stream that never raises: what cannot be encoded looks like it, and what cannot be written goes to a log where
    there is one.

    A study must not end because its reader did (`| head`), its terminal, or because the disk of its log is full.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self.stream = stream
        self.log: IO[str] | None = None  # takes what the stream does not take any more
        self.encoding = getattr(stream, "encoding", None) or "utf-8"
        self.broken = stream is None

    def write(self, text: str) -> int:
        if self.stream is not None and not self.broken:
            try:
                self.stream.write(self._encodable(text))
            except (OSError, ValueError) as error:  # ValueError: the stream is closed
                self._break(error)
        if self.broken and self.log is not None and not MOVE.search(text):
            with suppress(OSError, ValueError):
                self.log.write(COLOUR.sub("", text))
                self.log.flush()
        return len(text)

    def flush(self) -> None:
        if self.stream is not None and not self.broken:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self._break(error)

    def isatty(self) -> bool:
        try:
            return self.stream is not None and not self.broken and self.stream.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        if self.stream is None:
            raise OSError("this process has no such stream")
        return self.stream.fileno()

    def _encodable(self, text: str) -> str:
        try:
            text.encode(self.encoding)  # strictly, whatever the stream would do about it
        except UnicodeEncodeError:
            return ascii_text(text)
        except LookupError:
            return text
        return text

    def _break(self, error: Exception) -> None:
        """Nothing can be written there any more: what is buffered, and what others write there, goes to nowhere."""
        self.broken = True
        if not isinstance(error, BrokenPipeError | ValueError):
            why = getattr(error, "strerror", None) or error
            with suppress(OSError, ValueError, AttributeError):
                (self.log or sys.stderr).write(f"the output cannot be written ({why}); this goes on without it\n")
        if self.stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)


def console_for(stream: Any = None) -> Console:
    """Colour and width on a terminal and in a notebook; plain lines, wide enough for every table, in a log."""
    output = cast(IO[str], Output(sys.stdout if stream is None else stream))
    console = Console(file=output, highlight=False, soft_wrap=False)
    if console.is_terminal or console.is_jupyter:
        return console
    return Console(file=output, highlight=False, width=max(LOG_WIDTH, console.width), no_color=True)


def is_ascii(console: Console) -> bool:
    """Whether a console shows ASCII alone."""
    return not console.encoding.lower().startswith("utf")
