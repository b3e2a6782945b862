"""Data that are elsewhere: Parquet files at a URI, and prepared sets that the nodes of a cluster share.

Whoever prepares a set first puts it where it is shared; the others fetch it from there, and check what they have got.
"""

import errno
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aae_ray.errors import UserError
from aae_ray.settings.values import FILE_SYSTEMS

ANSWER_SECONDS = 60.0  # for the first answer of a file system, which may look for credentials meanwhile
BLOCK = 1 << 24  # bytes
ABOUT = "about.json"  # of a prepared set: what is written last
NO_BODY = "No response body"  # what AWS's client says of an answer to HEAD, which never says why
AWS_ERROR = re.compile(r"AWS Error (\w+)(?: \((HTTP status \d+)\))? during (\w+) operation: (.*)", re.DOTALL)
NO_HOST = re.compile(r"Could not resolve host: ([\w.-]+)")
DETAIL = re.compile(r"Detail: \[errno \d+\] (.*)", re.DOTALL)  # how pyarrow's errors end
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RemoteFile:
    """A file below a URI, and what tells it from its own past."""

    name: str  # relative to the URI; of a URI that is a file itself its last part
    size: int
    modified: int  # nanoseconds since 1970


def is_uri(path: str) -> bool:
    """Whether a path is the URI of a file system."""
    return "://" in path


def shown(uri: str) -> str:
    """A URI without what may be secret in it: its parameters, and a user before its host."""
    return re.sub(r"(?<=://)[^/?#\s]+@", "", uri.partition("?")[0])


def parquet_files(uri: str, key: str) -> list[RemoteFile]:
    """The Parquet files below a URI, by name, or the one that it is. `key` is the setting that names it.

    Raises UserError where there are none, or where the file system does not let us see them, within a minute.
    """
    from pyarrow.fs import FileSelector

    with _told(uri, key):
        system, root = _opened(uri, key)
        info = within(lambda: system.get_file_info(root))
        if info.is_file:
            found = [RemoteFile(root.rpartition("/")[2], info.size, info.mtime_ns or 0)]
        else:
            entries = within(lambda: system.get_file_info(FileSelector(root, recursive=True, allow_not_found=True)))
            found = [
                RemoteFile(entry.path[len(root) + 1 :], entry.size, entry.mtime_ns or 0)
                for entry in entries
                if entry.is_file and entry.path.lower().endswith(".parquet") and not _hidden(entry.path[len(root) :])
            ]
    if not found or not found[0].name.lower().endswith(".parquet"):
        raise UserError(
            f"{key}: there are no files called *.parquet at {shown(uri)}; of what is at a URI, Parquet is read"
        )
    return sorted(found, key=lambda file: file.name)


def download(uri: str, files: list[RemoteFile], folder: Path, key: str) -> Path:
    """The files as they lie below a URI, below a folder of this machine. Returns the folder, or the one file."""
    shutil.rmtree(folder, ignore_errors=True)
    with _told(uri, key):
        system, root = _opened(uri, key)
        single = system.get_file_info(root).is_file
        for file in files:
            target = folder / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy_here(system, root if single else f"{root}/{file.name}", target)
    return folder / files[0].name if single else folder


def fetch(uri: str, folder: Path) -> bool:
    """Fetch a prepared set that is shared below a URI, under the name of the folder that it is to be in here; whether
    there is one. Raises UserError where it cannot be read."""
    with _told(uri, "data.shared"):
        system, root = _opened(uri, "data.shared")
        place = f"{root}/{folder.name}"
        if not within(lambda: system.get_file_info(f"{place}/{ABOUT}")).is_file:
            return False
        from pyarrow.fs import FileSelector

        folder.mkdir(parents=True, exist_ok=True)
        for entry in system.get_file_info(FileSelector(place)):
            if entry.is_file:
                _copy_here(system, entry.path, folder / entry.base_name)
    return True


def share(uri: str, folder: Path) -> None:
    """Put a prepared set below a URI; it is complete when it can be seen. Raises UserError where it cannot be put."""
    with _told(uri, "data.shared"):
        system, root = _opened(uri, "data.shared")
        place = f"{root}/{folder.name}"
        if system.type_name != "s3":  # there a name with slashes needs no folders
            system.create_dir(place, recursive=True)
        files = sorted(folder.iterdir(), key=lambda file: file.name == ABOUT)
        for file in files:
            with file.open("rb") as source, system.open_output_stream(f"{place}/{file.name}") as target:
                shutil.copyfileobj(source, target, BLOCK)


def _copy_here(system: Any, path: str, target: Path) -> None:
    with system.open_input_stream(path) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, BLOCK)


def _hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/"))


def _opened(uri: str, key: str) -> tuple[Any, str]:
    from pyarrow.fs import FileSystem

    try:
        system, path = FileSystem.from_uri(uri if is_uri(uri) else Path(uri).absolute().as_uri())
    except ValueError:
        known = ", ".join(f"{scheme}://" for scheme in FILE_SYSTEMS)
        raise UserError(
            f"{key}: {shown(uri)} is not at a file system that is read here; their addresses begin with {known}. "
            "Download it, and name the file or folder"
        ) from None
    return system, path.rstrip("/")


def reason_of(error: BaseException) -> str:
    """Why a file system did not do what it was asked: of what pyarrow says, what is meant for people."""
    text = str(error)
    if found := NO_HOST.search(text):
        return f"no name server knows {found[1].rstrip('.')}"
    if found := AWS_ERROR.search(text):
        code, status, operation, message = found.groups()
        said = message.strip().removeprefix("Unable to parse ExceptionName: ").replace(" Message: ", ": ")
        return f"{status or code if said.startswith(NO_BODY) else said} ({operation})"
    if detail := DETAIL.search(text):
        return detail[1]
    return getattr(error, "strerror", None) or text or type(error).__name__


@contextmanager
def _told(uri: str, key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{key}: {shown(uri)}: {reason_of(error)}; see that the address is right, and which "
            "credentials this machine has"
        ) from None


def within(ask: Callable[[], Answer], seconds: float | None = None) -> Answer:
    """The answer, or its error. Raises TimeoutError where there is none in time; the question is then left alone."""
    limit = ANSWER_SECONDS if seconds is None else seconds
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="ask a file system", daemon=True)
    thread.start()
    thread.join(limit)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(errno.ETIMEDOUT, f"it has not answered within {limit:g} s")
    return answers[0]
