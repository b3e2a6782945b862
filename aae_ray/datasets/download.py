"""Published data sets: where they lie on the network, and how their files are fetched and checked."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aae_ray.datasets.idx import IDX_FILES
from aae_ray.errors import UserError

Progress = Callable[[str, int, int], None]  # what is being done, how much is done, how much there is


def no_progress(what: str, done: int, total: int) -> None:
    """Progress that is not shown."""


@dataclass(frozen=True)
class Published:
    """A set of IDX files on the network: addresses to try in turn, and the SHA-256 of each file."""

    mirrors: tuple[str, ...]
    sha256: Mapping[str, str]


PUBLISHED = {
    "mnist": Published(
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        sha256={
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion-mnist": Published(
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        sha256={
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
}


def download(published: Published, folder: Path, progress: Progress) -> dict[str, Path]:
    """The files of a published set in a folder, under their names in IDX_FILES.

    Files that are there with the right checksum are kept. Raises UserError, with the addresses tried, where
    no mirror gives the right file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, sha256 in published.sha256.items():
        if not (folder / name).is_file() or _sha256(folder / name) != sha256:
            _download(published.mirrors, name, sha256, folder, progress)
    return {name.removesuffix(".gz"): folder / name for name in published.sha256}


def _download(mirrors: Sequence[str], name: str, sha256: str, folder: Path, progress: Progress) -> None:
    import pooch

    partial = folder / f"{name}.partial"
    failures = []
    for mirror in mirrors:
        url = mirror.rstrip("/") + "/" + name
        bar = _PoochBar(f"downloading {name}", progress)
        fetch = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=20)
        try:
            fetch(url, str(partial), None)
        except (OSError, ValueError) as error:  # requests' errors are among them
            failures.append(f"{url} ({_reason(error)})")
            continue
        actual = _sha256(partial)
        if actual == sha256:
            os.replace(partial, folder / name)
            return
        failures.append(f"{url} (SHA-256 {actual}, expected {sha256})")
    partial.unlink(missing_ok=True)
    raise UserError(
        f"{name} could not be downloaded. Tried {', '.join(failures)}. "
        f"Where the network cannot be reached, put the files {', '.join(IDX_FILES)} (.gz or not) "
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
    # By name: the classes are those of requests, a dependency of pooch and not of this package.
    words = {
        "ConnectionError": "no connection",
        "ConnectTimeout": "no answer",
        "ReadTimeout": "no answer",
        "ChunkedEncodingError": "the connection was cut",
    }
    names = [kind.__name__ for kind in type(error).__mro__]
    return next((words[name] for name in names if name in words), str(error))


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
