"""Data sets: fetched and converted once, into memory maps that all processes of a node share.

`N` images of a set, `B` images of a block, `C` channels, `H` height, `W` width.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aae_ray import settings
from aae_ray.autoencoder.kinds import ExampleKind, ImageKind, RowKind, Shape
from aae_ray.datasets import remote
from aae_ray.datasets.classes import UNKNOWN
from aae_ray.datasets.columns import NONE
from aae_ray.datasets.damage import unreadable
from aae_ray.datasets.download import Progress, no_progress
from aae_ray.datasets.formats import Format, Stored, find_stored
from aae_ray.datasets.image_stream import PART_NAMES, TEST, TO_BE_DRAWN, VALIDATION, ImageStream, Origin, ValueRange
from aae_ray.datasets.parts import with_test
from aae_ray.datasets.pixels import Scale, arrange_block, located_faults
from aae_ray.datasets.prepared import Columns, examples_file, fetch, prepare
from aae_ray.datasets.published import PUBLISHED, Published
from aae_ray.datasets.rows import standardisation
from aae_ray.datasets.shards import MissingColumn
from aae_ray.errors import UserError, did_you_mean

PREPARED_FORMAT = 6  # raised when prepared data or their reading changes, so that older ones are made anew
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
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels of a set, and which of them are for training, validation and test.

    `digest` names the content: equal digests, equal images and labels in equal order. The examples, images
    (N, C, H, W) as bytes or rows (N, D) of doubles, are a read-only memory map. Labels are UNKNOWN of images that
    have none. The parts are sorted indices, disjoint, and cover the set; they follow from the labels, the parts that
    the set may bring, `data.split_seed` and the two fractions. `copies_M2` are the M images that the set holds more
    than once, each with the number of its group of equal ones.
    """

    name: str
    digest: str
    examples_NX: NDArray[Any]
    labels_N: NDArray[np.int64] | None
    train: Indices
    val: Indices
    test: Indices
    class_names: tuple[str, ...] | None = None  # as the source calls the classes; None without labels
    origin: Origin = Origin("arrays in memory")
    value_range: ValueRange | None = None  # of the pixels as the source had them, before any scaling
    copies_M2: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    given_parts: tuple[str, ...] = ()  # of validation and test, those that the source gives; the others are drawn
    rows: RowKind | None = None  # how rows of numbers are standardised; None of images

    @cached_property
    def kind(self) -> ExampleKind:
        """What its examples are."""
        if self.rows is not None:
            return self.rows
        _, channels, height, width = self.examples_NX.shape
        return ImageKind((channels, height, width))

    @property
    def shape(self) -> Shape:
        """Of an example: channels, height and width of an image, or how many numbers a row has."""
        return self.kind.shape

    @property
    def images_NCHW(self) -> NDArray[np.uint8]:
        """The bytes of its images. Rows have none."""
        assert self.rows is None
        return self.examples_NX

    @property
    def classes(self) -> int | None:
        """Number of classes, labels being 0 to classes - 1, or UNKNOWN; None without labels."""
        return None if self.labels_N is None else int(self.labels_N.max()) + 1

    @property
    def unlabelled(self) -> int:
        """How many images have no label."""
        return len(self.examples_NX) if self.labels_N is None else int((np.asarray(self.labels_N) == UNKNOWN).sum())

    def labelled(self, rows: Indices) -> Indices:
        """Those of these images that have a label."""
        return rows[:0] if self.labels_N is None else rows[np.asarray(self.labels_N)[rows] != UNKNOWN]


def split_digest(dataset: Dataset) -> str:
    """What tells a split from others of the same images: a digest of the indices of its parts, wherever they come from,
    a column, names of files or a draw."""
    digest = hashlib.sha256()
    for rows in (dataset.train, dataset.val, dataset.test):
        digest.update(f"{len(rows)} ".encode())
        digest.update(rows.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def class_names(dataset: Dataset) -> tuple[str, ...]:
    """The names of the classes in their order: as the source has them, else their numbers; none without labels."""
    return dataset.class_names or tuple(map(str, range(dataset.classes or 0)))


def load(data: settings.Data, progress: Progress = no_progress, *, to_train: bool = True) -> Dataset:
    """The set that the settings name: from the cache, and into it first where it is not there yet.

    Preparing is done by one process at a time, the others wait; `progress` reports it. What nobody trains on may be so
    small that parts of it are empty. Raises UserError where the source, the cache or the split is at fault.
    """
    source = _find_source(data, progress)
    folder = _prepared_folder(data, source)
    try:
        if not folder.is_dir():
            with _locked(folder.with_name(f"{folder.name}.lock")):
                if not folder.is_dir():  # another process may have prepared it while this one waited
                    _make(source, folder, data, progress)
    except OSError as error:
        raise UserError(
            f"data.cache: {folder} cannot be read or written: {error.strerror or error}; give data.cache another place"
        ) from None
    return _open(folder, data, to_train=to_train)


def _check_no_pixels(data: settings.Data) -> None:
    """Raises UserError where settings say how pixels of rows of numbers are read."""
    if given := _pixel_settings(data):
        told = ", ".join(f"data.{name}={value}" for name, value in given.items())
        raise UserError(f"{told}: says how pixels are read, and {data.path} holds rows of numbers; remove it")


def prepared_folder(data: settings.Data) -> Path:
    """Where the prepared set lies, or will lie. Raises UserError where there is no such source."""
    return _prepared_folder(data, _find_source(data))


def _prepared_folder(data: settings.Data, source: "_Source") -> Path:
    content = json.dumps([PREPARED_FORMAT, source.identity], sort_keys=True)
    fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
    return cache_folder(data) / f"{data.name}-{fingerprint}"


def cache_folder(data: settings.Data) -> Path:
    """Where prepared data lie, and what is derived from them."""
    return Path(data.cache or "~/.cache/aae_ray").expanduser().absolute()


# -------------------------------------------------------------------------------------------------- sources


def is_a_place(word: str) -> bool:
    """Whether a word says where data lie, and is not the name of a published set."""
    return "/" in word or bool(Path(word).suffix) or (word not in NAMES and os.path.exists(word))


def name_for(path: str) -> str:
    """A name for the set at a path or URI: `faces` for `s3://bucket/faces.parquet`."""
    last = Path(path if remote.is_uri(path) else Path(path).expanduser().resolve())
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", last.name.lstrip(".").partition(".")[0]).strip("-")[:LONGEST_NAME] or "own"
    return f"{name}-own" if name in NAMES else name


@dataclass(frozen=True)
class _Source:
    """Where images come from: what tells it from other sources and from its own past, and how it is read."""

    identity: Mapping[str, Any]
    read: Callable[[Columns], ImageStream]  # as rows with these columns, where the training part has settled them
    temporary: tuple[Path, ...] = ()  # what reading leaves, and nobody needs when the set is prepared


def _find_source(data: settings.Data, progress: Progress = no_progress) -> _Source:
    if data.path:
        source = _source_at(data, data.path, "data.path")
        if not data.test_path:
            return source
        test_path = data.test_path
        test = _source_at(data, test_path, "data.test_path")
        identity = {"train": source.identity, "test": test.identity}

        def read(columns: Columns) -> ImageStream:
            stream = source.read(columns)
            try:
                images = test.read(stream.columns)
            except MissingColumn as missing:
                if data.columns is not None:
                    raise
                raise MissingColumn("data.test_path", missing.lack) from None
            return with_test(stream, images, remote.shown(test_path))

        return _Source(identity, read, (*source.temporary, *test.temporary))
    if columns := _columns(data):
        raise UserError(f"{columns}: columns, arrays and rows are those of your own files, and data.path names none")
    if data.name == "digits":
        return _Source({"digits": "scikit-learn"} | _pixel_settings(data), lambda _: _read_digits(data))
    if data.name in PUBLISHED:
        published = PUBLISHED[data.name]
        folder = cache_folder(data) / "downloads" / published.folder
        identity = {"sha256": dict(published.sha256)} | _pixel_settings(data)
        return _Source(identity, lambda _: _downloaded(published, folder, progress).read(data))
    raise UserError(
        f"data.name: {data.name} is none of {', '.join(NAMES)}; for your own images give data.path."
        f"{did_you_mean(data.name, NAMES)}"
    )


def _downloaded(published: Published, folder: Path, progress: Progress) -> Stored:
    with _locked(folder.with_name(f"{folder.name}.lock")):  # sets may share their files
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


def _source_at(data: settings.Data, path: str, key: str) -> _Source:
    """Images at a path of this machine, or at the URI of a file system, from which they are downloaded to be read."""
    if not remote.is_uri(path):
        return _stored_source(data, Path(path).expanduser(), key)
    _check_name(data.name, remote.shown(path))
    files = remote.parquet_files(path, key)
    identity: dict[str, Any] = {"uri": remote.shown(path), "files": [astuple(file) for file in files]}
    identity |= _pixel_settings(data) | _column_settings(data)
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder(data) / "downloads" / f"{data.name}-{fingerprint}"

    def read(columns: Columns) -> ImageStream:
        return _stored_source(data, remote.download(path, files, folder, key), key).read(columns)

    return _Source(identity, read, (folder,))


def _stored_source(data: settings.Data, path: Path, key: str) -> _Source:
    _check_name(data.name, str(path))
    try:
        form, stored = _find_stored(data.name, path, key)
        identity: dict[str, Any] = {"files": [_file_identity(file) for file in stored.files]} | _pixel_settings(data)
    except OSError as error:
        raise unreadable(f"{key}: {error.filename or path}", error) from None
    if form.columns:
        identity |= _column_settings(data)
    elif columns := _columns(data.model_copy(update={"label_column": None}) if data.label_column == NONE else data):
        raise UserError(f"{columns}: {path} holds {form.name}, which has neither columns nor named arrays")
    elif data.label_column == NONE:
        return _Source(identity | {"labels": NONE}, lambda _: replace(stored.read(data), labels=None))

    def read(columns: Columns) -> ImageStream:
        return stored.read(data if columns is None else data.model_copy(update={"kind": "rows", "columns": columns}))

    return _Source(identity, read)


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


def _pixel_settings(data: settings.Data) -> dict[str, Any]:
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


# ---------------------------------------------------------------------------------------------------- cache


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock that other processes of this node wait for; it goes with the process, however that ends."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _make(source: _Source, folder: Path, data: settings.Data, progress: Progress) -> None:
    """Prepare a set, or fetch it from where another node has put it; there is it then for those that come later."""
    if data.shared and fetch(data.shared, folder):
        return
    try:
        stream = source.read(None)
        if stream.columns is not None:
            _check_no_pixels(data)
        prepare(stream, folder, data.name, progress)
    finally:
        for temporary in source.temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    if data.shared:
        remote.share(data.shared, folder)


def _open(folder: Path, data: settings.Data, *, to_train: bool = True) -> Dataset:
    try:
        about = json.loads((folder / "about.json").read_bytes())
        columns = about["columns"]
        file = examples_file(columns is not None)
        examples_NX = np.load(folder / file, mmap_mode="r")
        labels_N = np.load(folder / "labels.npy", mmap_mode="r") if about["classes"] is not None else None
        parts_N = np.load(folder / "parts.npy") if about["parts"] else None
        copies_M2 = np.load(folder / "copies.npy")
        if examples_NX.shape != tuple(about["shape"]) or examples_NX.dtype != (np.uint8 if columns is None else "<f8"):
            raise ValueError(f"{file} does not match about.json")
        for name, array in {"labels": labels_N, "parts": parts_N}.items():
            if array is not None and (array.shape != examples_NX.shape[:1] or array.dtype != np.int64):
                raise ValueError(f"{name}.npy does not match {file}")
        if copies_M2.ndim != 2 or copies_M2.shape[1] != 2 or copies_M2.dtype != np.int64:
            raise ValueError(f"copies.npy does not match {file}")
        digest, names, ends = str(about["digest"]), about["classes"], about["value_range"]
        class_names = None if names is None else tuple(map(str, names))
        value_range = None if ends is None else (float(ends[0]), float(ends[1]))
        origin = Origin(**about["origin"] | {key: tuple(about["origin"][key]) for key in ("used", "unused", "remarks")})
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the prepared data in {folder} is damaged ({error}); delete that folder, and it will be prepared again"
        ) from None
    one_class_N, every_N = np.zeros(len(examples_NX), np.int64), np.arange(len(examples_NX))
    noun = "images" if columns is None else "rows"
    train, val, test = _split(one_class_N if labels_N is None else labels_N, parts_N, data, noun)
    if to_train:
        _check_parts({"training": train, "validation": val, "test": test}, parts_N, data, noun)
    try:
        rows = (
            None
            if columns is None
            else standardisation(examples_NX, train if len(train) else every_N, tuple(map(str, columns)))
        )
    except UserError as error:
        raise UserError(f"data.name: {data.name}: {error}") from None
    given = () if parts_N is None else tuple(PART_NAMES[part] for part in (VALIDATION, TEST) if (parts_N == part).any())
    return Dataset(
        data.name,
        digest,
        examples_NX,
        labels_N,
        train,
        val,
        test,
        class_names,
        origin,
        value_range,
        copies_M2,
        given,
        rows,
    )


# --------------------------------------------------------------------------------------------------- splits


def _split(
    labels_N: NDArray[np.int64], parts_N: NDArray[np.int64] | None, data: settings.Data, noun: str
) -> tuple[Indices, Indices, Indices]:
    """Sorted indices for training, validation and test: as the source gives them, and drawn where it gives none."""
    if parts_N is None:
        parts_N = np.full(len(labels_N), TO_BE_DRAWN)
    val, test = (np.flatnonzero(parts_N == part) for part in (VALIDATION, TEST))
    rest = np.flatnonzero((parts_N != VALIDATION) & (parts_N != TEST))
    order = rest[_stratified_order(labels_N[rest], data.split_seed)]
    val_count = 0 if len(val) else round(data.validation_fraction * len(rest))
    test_count = 0 if len(test) else round(data.test_fraction * len(rest))
    drawn_val, drawn_test, train = np.split(order, [val_count, val_count + test_count])
    parts = (train, val if len(val) else drawn_val, test if len(test) else drawn_test)
    train, val, test = (np.sort(part) for part in parts)
    return train, val, test


def _check_parts(
    parts: Mapping[str, Indices], parts_N: NDArray[np.int64] | None, data: settings.Data, noun: str
) -> None:
    """Raises UserError where there is nothing to train on, or to measure on."""
    count = sum(map(len, parts.values()))
    empty = [name for name, part in parts.items() if not len(part)]
    if parts_N is not None and not ((parts_N != VALIDATION) & (parts_N != TEST)).any():
        given = " and ".join(name for name, part in parts.items() if len(part))
        raise UserError(
            f"data.name: {data.name} has no training {noun}: its source gives all {count} to {given}; let it "
            f"give some to training, or let the parts be drawn, of a table with data.split_column={NONE}"
        )
    if empty:
        raise UserError(
            f"data.name: {data.name} has too few {noun}, {count}: with data.validation_fraction "
            f"{data.validation_fraction:g} and data.test_fraction {data.test_fraction:g} "
            f"none is left for {empty[0]}; give more {noun}"
        )


def _stratified_order(labels_N: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A random order in which every stretch holds the classes in proportion, give or take an image or two.

    Each class is shuffled and laid out evenly over [0, 1) from a random start; the positions give the order.
    """
    # NumPy keeps the streams of RandomState the same for ever, and those of its newer generators not.
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    shuffled = random.permutation(len(labels_N))
    by_class = shuffled[np.argsort(labels_N[shuffled], kind="stable")]
    _, sizes = np.unique(labels_N, return_counts=True)
    rank = np.arange(len(labels_N)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    position_N = (rank + np.repeat(random.random_sample(len(sizes)), sizes)) / np.repeat(sizes, sizes)
    return by_class[np.argsort(position_N, kind="stable")]
