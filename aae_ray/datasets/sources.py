"""Where the images or rows of a set come from: the digits, a published set, files of one's own, or a URI."""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aae_ray import settings
from aae_ray.datasets import remote
from aae_ray.datasets.columns import NONE
from aae_ray.datasets.damage import unreadable
from aae_ray.datasets.download import Progress, no_progress
from aae_ray.datasets.formats import Format, Stored, find_stored
from aae_ray.datasets.image_stream import ImageStream, Origin
from aae_ray.datasets.parts import with_test
from aae_ray.datasets.pixels import Scale, arrange_block, located_faults
from aae_ray.datasets.prepared import Columns
from aae_ray.datasets.published import PUBLISHED, Published
from aae_ray.datasets.shards import MissingColumn
from aae_ray.errors import UserError, did_you_mean

PIXEL_SETTINGS = (
    "scale",
    "background",
    "channels",
    "size",
    "crop",
    "resample",
    "transpose",
)  # of data, how pixels are read
NAMES = ("digits", *PUBLISHED)  # of sets that need no path
LONGEST_NAME = 90  # letters of a name that a set gets by its path; data.name takes 100


def cache_folder(data: settings.Data) -> Path:
    """Where prepared data lie, and what is derived from them."""
    return Path(os.path.expanduser(data.cache or "~/.cache/aae_ray")).absolute()


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock that other processes of this node wait for; it goes with the process, however that ends."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def looks_like_path(word: str) -> bool:
    """Whether a word says where data lie, and is not the name of a published set."""
    return "/" in word or bool(Path(word).suffix) or (word not in NAMES and os.path.exists(word))


def name_for(path: str) -> str:
    """A name for the set at a path or URI: `faces` for `s3://bucket/faces.parquet`."""
    last = Path(path if remote.is_uri(path) else Path(os.path.expanduser(path)).resolve())
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", last.name.lstrip(".").partition(".")[0]).strip("-")[:LONGEST_NAME] or "own"
    return f"{name}-own" if name in NAMES else name


@dataclass(frozen=True)
class Source:
    """Where images come from: what tells it from other sources and from its own past, and how it is read."""

    identity: Mapping[str, Any]
    read: Callable[[Columns], ImageStream]  # as rows with these columns, where the training part has settled them
    temporary: tuple[Path, ...] = ()  # what reading leaves, and nobody needs when the set is prepared


def find_source(data: settings.Data, progress: Progress = no_progress) -> Source:
    if data.path:
        source = _source_at(data, data.path, "data.path")
        if not data.test_path:
            return source
        test_path = data.test_path
        test = _source_at(data, test_path, "data.test_path")
        # As a test part is published without its answers.
        bare = None
        if data.label_column not in (None, NONE):
            bare = _source_at(data.model_copy(update={"label_column": NONE}), test_path, "data.test_path")
        identity = {"train": source.identity, "test": test.identity}

        def read(columns: Columns) -> ImageStream:
            stream = source.read(columns)
            try:
                images = test.read(stream.columns)
            except MissingColumn as missing:
                if missing.key == "data.label_column" and bare is not None:
                    joined = with_test(stream, bare.read(stream.columns), remote.shown(test_path))
                    lack = missing.lack
                    return replace(joined, remarks=lambda: (*joined.remarks(), f"test images without labels: {lack}"))
                if data.columns is not None:
                    raise
                raise MissingColumn("data.test_path", missing.lack) from None
            return with_test(stream, images, remote.shown(test_path))

        return Source(identity, read, (*source.temporary, *test.temporary, *(bare.temporary if bare else ())))
    if columns := _columns(data):
        raise UserError(f"{columns}: columns, arrays and rows are those of your own files, and data.path names none")
    if data.name == "digits":
        return Source({"digits": "scikit-learn"} | pixel_settings(data), lambda _: _read_digits(data))
    if data.name in PUBLISHED:
        published = PUBLISHED[data.name]
        folder = cache_folder(data) / "downloads" / published.folder
        identity = {"sha256": dict(published.sha256)} | pixel_settings(data)
        return Source(identity, lambda _: _downloaded(published, folder, progress).read(data))
    raise UserError(
        f"data.name: {data.name} is none of {', '.join(NAMES)}; for your own images give data.path."
        f"{did_you_mean(data.name, NAMES)}"
    )


def _downloaded(published: Published, folder: Path, progress: Progress) -> Stored:
    with locked(folder.with_name(f"{folder.name}.lock")):  # sets may share their files
        return published.download(folder, progress)


def _columns(data: settings.Data) -> str:
    """The settings that name columns, of those that were given."""
    given = {
        "data.image_column": data.image_column,
        "data.label_column": data.label_column,
        "data.split_column": data.split_column,
        "data.columns": data.columns,
        "data.kind=rows": data.kind == "rows",
    }
    return ", ".join(key for key, column in given.items() if column)


def _source_at(data: settings.Data, path: str, key: str) -> Source:
    """Images at a path of this machine, or at the URI of a file system, from which they are downloaded to be read."""
    if not remote.is_uri(path):
        return _stored_source(data, Path(os.path.expanduser(path)), key)
    _check_name(data.name, remote.shown(path))
    files = remote.parquet_files(path, key)
    identity: dict[str, Any] = {"uri": remote.shown(path), "files": [astuple(file) for file in files]}
    identity |= pixel_settings(data) | _column_settings(data)
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder(data) / "downloads" / f"{data.name}-{fingerprint}"

    def read(columns: Columns) -> ImageStream:
        return _stored_source(data, remote.download(path, files, folder, key), key).read(columns)

    return Source(identity, read, (folder,))


def _stored_source(data: settings.Data, path: Path, key: str) -> Source:
    _check_name(data.name, str(path))
    try:
        form, stored = _find_stored(data.name, path, key)
        identity: dict[str, Any] = {"files": [_file_identity(file) for file in stored.files]} | pixel_settings(data)
    except OSError as error:
        raise unreadable(f"{key}: {error.filename or path}", error) from None
    if form.columns:
        identity |= _column_settings(data)
    elif columns := _columns(data.model_copy(update={"label_column": None}) if data.label_column == NONE else data):
        raise UserError(f"{columns}: {path} holds {form.name}, which has neither columns nor named arrays")
    elif data.label_column == NONE:
        return Source(identity | {"labels": NONE}, lambda _: replace(stored.read(data), labels=None))

    def read(columns: Columns) -> ImageStream:
        return stored.read(data if columns is None else data.model_copy(update={"kind": "rows", "columns": columns}))

    return Source(identity, read)


def _check_name(name: str, path: str) -> None:
    if name == "digits":
        raise UserError(
            f"data.name: {path} is not scikit-learn's digits; give it another name, such as data.name={name_for(path)}"
        )


def _find_stored(name: str, path: Path, key: str) -> tuple[Format, Stored]:
    """The files of the published set of this name, where they were put there by hand; else those of the one format."""
    published = PUBLISHED.get(name)
    if published is None:
        return find_stored(path, key)
    if path.is_dir() and (stored := published.find(path, key)) is not None:
        return Format(f"the files of {name}", lambda _: stored), stored
    try:
        return find_stored(path, key)
    except UserError as error:
        raise UserError(
            f"{error}; the files of {name} itself are {' or '.join(map(', '.join, published.forms))}"
        ) from None


def pixel_settings(data: settings.Data) -> dict[str, Any]:
    """The settings on which the pixels of a prepared set depend, of those that differ from their defaults."""
    given = {name: getattr(data, name) for name in PIXEL_SETTINGS}
    return {name: value for name, value in given.items() if value != settings.Data.model_fields[name].default}


def _column_settings(data: settings.Data) -> dict[str, Any]:
    """The settings that say what the columns of a table are."""
    named = {"columns": [data.image_column, data.label_column, data.split_column]}
    return named | ({"rows": [data.kind, data.columns]} if data.kind != "auto" or data.columns else {})


def _file_identity(file: Path) -> tuple[str, int, int]:
    status = file.stat()
    return str(file.resolve()), status.st_size, status.st_mtime_ns


def _read_digits(data: settings.Data) -> ImageStream:
    """The 1797 digits of 8 x 8 pixels that ship with scikit-learn, their 17 levels spread over 0 to 255."""
    import pyarrow as pa
    from sklearn.datasets import load_digits

    digits = load_digits()
    scale = Scale(data if data.scale else data.model_copy(update={"scale": "0:16"}))

    def blocks() -> Iterator[NDArray[np.uint8]]:
        with located_faults("data.name: digits"):
            scale.observe(digits.images)
            yield arrange_block(scale.to_bytes(digits.images)[..., np.newaxis], data)

    origin = Origin("scikit-learn's digits")
    return ImageStream(len(digits.images), blocks(), pa.array(digits.target), origin, value_range=lambda: scale.seen)
