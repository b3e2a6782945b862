"""Files that cannot be read, as a sentence."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aae_ray.errors import UserError

# What the errors of gzip, zip and Arrow mean, by their words, for people alone.
_MEANINGS = (
    (
        re.compile(r"before the end-of-stream|null or length 0|message body, got \d|but only read \d"),
        "it ends too early",
    ),
    (re.compile(r"^(Bad CRC-32|CRC check failed)|CRC checksum"), "its content does not fit its checksum"),
    (
        re.compile(r"[Tt]hrift(?!.*size limit)|[Ff]latbuffer|File name in directory|metadata (length|bytes)"),
        "it is not put together right",
    ),
)
AGAIN = "copy or download it again, or take it out of the folder"
ANEW = "write or fetch it again, or leave it out"  # of what may be a file or a row


def _again(error: Exception) -> str:
    return f"; {AGAIN}"


@contextmanager
def readable(
    file: object, damage: tuple[type[Exception], ...], text: str, advice: Callable[[Exception], str] = _again
) -> Iterator[None]:
    """What is read in here is of this file. Raises UserError: the file, `text` and the reason for an error of `damage`,
    which say that its content is not what it should be, with the advice that goes with it; and for other errors of the
    system that it cannot be read."""
    try:
        yield
    except PermissionError as error:
        raise unreadable(file, error) from None
    except damage as error:
        raise UserError(f"{file} {text}: {_reason(error)}{advice(error)}") from None
    except OSError as error:
        raise unreadable(file, error) from None


def unreadable(file: object, error: OSError) -> UserError:
    """A file that the system does not let us read, with the system's reason and what to do."""
    advice = AGAIN
    if isinstance(error, FileNotFoundError):
        advice = "put the file there again, or take the link to it out of the folder"
    if isinstance(error, PermissionError):
        advice = "give yourself the right to read it, or take it out of the folder"
    return UserError(f"{file} cannot be read: {error.strerror or error}; {advice}")


def _reason(error: Exception) -> str:
    """The system's words for its own errors, without number and path; what the libraries mean by theirs; else their
    first line, as part of a sentence."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    for written, meant in _MEANINGS:
        if written.search(str(error)):
            return meant
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
