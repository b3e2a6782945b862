"""Data sets: fetched and converted once, into memory maps that all processes of a node share.

`N` images of a set, `B` images of a block, `C` channels, `H` height, `W` width.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aae_ray import settings
from aae_ray.autoencoder.kinds import ExampleKind, ImageKind, RowKind, Shape
from aae_ray.datasets import remote
from aae_ray.datasets.classes import UNKNOWN
from aae_ray.datasets.download import Progress, no_progress
from aae_ray.datasets.image_stream import PART_NAMES, TEST, VALIDATION, Origin, ValueRange
from aae_ray.datasets.prepared import examples_file, fetch, prepare
from aae_ray.datasets.rows import standardisation
from aae_ray.datasets.sources import Source, cache_folder, find_source, locked, pixel_settings
from aae_ray.datasets.splits import Indices, check_parts, split
from aae_ray.errors import UserError

PREPARED_FORMAT = 7  # raised when prepared data or their reading changes, so that older ones are made anew


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
    source = find_source(data, progress)
    folder = _prepared_folder(data, source)
    try:
        if not folder.is_dir():
            with locked(folder.with_name(f"{folder.name}.lock")):
                if not folder.is_dir():  # another process may have prepared it while this one waited
                    _make(source, folder, data, progress)
    except OSError as error:
        raise UserError(
            f"data.cache: {folder} cannot be read or written: {error.strerror or error}; give data.cache another place"
        ) from None
    dataset = _open(folder, data, to_train=to_train)
    if to_train:
        _check_differ(dataset, data)
    return dataset


def _check_differ(dataset: Dataset, data: settings.Data) -> None:
    """Raises UserError for images that are all equal; rows that are were refused as they were read."""
    copies_M2, count = dataset.copies_M2, len(dataset.examples_NX)
    if len(copies_M2) == count > 1 and (copies_M2[:, 1] == copies_M2[0, 1]).all():
        others = ", or name another column or array with data.image_column" if dataset.origin.unused else ""
        raise UserError(
            f"data.path: all {count:,} {dataset.kind.noun} in {data.path} are equal, and there is nothing to learn; "
            f"bring some that differ{others}"
        )


def _check_no_pixels(data: settings.Data) -> None:
    """Raises UserError where settings say how pixels of rows of numbers are read."""
    if given := pixel_settings(data):
        told = ", ".join(f"data.{name}={value}" for name, value in given.items())
        raise UserError(f"{told}: says how pixels are read, and {data.path} holds rows of numbers; remove it")


def prepared_folder(data: settings.Data) -> Path:
    """Where the prepared set lies, or will lie. Raises UserError where there is no such source."""
    return _prepared_folder(data, find_source(data))


def _prepared_folder(data: settings.Data, source: Source) -> Path:
    content = json.dumps([PREPARED_FORMAT, source.identity], sort_keys=True)
    fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
    return cache_folder(data) / f"{data.name}-{fingerprint}"


def _make(source: Source, folder: Path, data: settings.Data, progress: Progress) -> None:
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
    train, val, test = split(one_class_N if labels_N is None else labels_N, parts_N, data, noun)
    if to_train:
        check_parts({"training": train, "validation": val, "test": test}, parts_N, data, noun)
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
