"""Files from the network: fetched from the mirrors that have them, and checked."""

import errno
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aae_ray.errors import UserError

_TIMEOUT_S = 20  # without a word from a server, before the next one is tried
_OF_THIS_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES}  # no mirror helps

Progress = Callable[[str, int, int], None]  # what is being done, how much is done, how much there is


def no_progress(what: str, done: int, total: int) -> None:
    """Progress that is not shown."""


def download(
    mirrors: Sequence[str], sha256: Mapping[str, str], folder: Path, homepage: str, progress: Progress
) -> dict[str, Path]:
    """Files by name, from the first mirror that gives each of them with its SHA-256, in a folder.

    A mirror is the address of the folder that holds the files. Those that are there with the right checksum are kept. A
    file gets its name when all of it is there and its checksum is right. Raises UserError, with the addresses tried,
    where no mirror gives the right file, and where it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in sha256:
            if not (folder / name).is_file() or _sha256(folder / name) != sha256[name]:
                _download(mirrors, name, sha256, folder, homepage, progress)
    except OSError as error:
        raise UserError(f"data.cache: {folder} cannot be written: {error.strerror or error}") from None
    return {name: folder / name for name in sha256}


def _download(
    mirrors: Sequence[str],
    name: str,
    sha256: Mapping[str, str],
    folder: Path,
    homepage: str,
    progress: Progress,
) -> None:
    import pooch

    partial = folder / f"{name}.partial"
    failures = []
    try:
        for mirror in mirrors:
            url = mirror.rstrip("/") + "/" + name
            bar = _PoochBar(f"downloading {name}", progress)
            fetch = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=_TIMEOUT_S)
            try:
                fetch(url, str(partial), None)
            except (OSError, ValueError) as error:  # requests' errors are among them
                if isinstance(error, OSError) and error.errno in _OF_THIS_MACHINE:
                    raise
                failures.append(f"{url} ({_reason(error)})")
                continue
            actual = _sha256(partial)
            if actual == sha256[name]:
                os.replace(partial, folder / name)
                return
            failures.append(f"{url} (SHA-256 {actual}, expected {sha256[name]})")
    finally:
        partial.unlink(missing_ok=True)
    raise UserError(
        f"{name} could not be downloaded. Tried {', '.join(failures)}. "
        f"Where the network cannot be reached, put {', '.join(sha256)}, which {homepage} describes, "
        f"into a folder and name it in data.path"
    )


class _PoochBar:
    """What pooch takes for a progress bar: it sets `total`, and calls the rest."""

    def __init__(self, what: str, progress: Progress) -> None:
        self.what, self.progress = what, progress
        self.total = self.done = 0

    def update(self, count: int) -> None:
        self.done += count
        self.progress(self.what, min(self.done, self.total), self.total)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP status {response.status_code}"
    # By name: the classes are those of requests and urllib3, which pooch depends on and this package does not. A server
    # that falls silent within a file raises a ConnectionError around urllib3's ReadTimeoutError.
    words = {
        "ReadTimeoutError": "no answer",
        "ConnectTimeout": "no answer",
        "ReadTimeout": "no answer",
        "ConnectionError": "no connection",
        "ChunkedEncodingError": "the connection was cut",
    }
    names = [kind.__name__ for cause in (*error.args, error) for kind in type(cause).__mro__]
    return next((words[name] for name in names if name in words), str(error))


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
