"""Data sets: fetched and converted once, into memory maps that all processes of a node share.

`N` images of a set, `B` images of a block, `C` channels, `H` height, `W` width.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from aae_ray import settings
from aae_ray.datasets.classes import UNKNOWN, classes_of
from aae_ray.datasets.download import PUBLISHED, Progress, download, no_progress
from aae_ray.datasets.idx import IDX_FILES, find_idx, read_idx
from aae_ray.datasets.image_stream import PART_NAMES, TEST, TO_BE_DRAWN, VALIDATION, ImageStream, Origin, Parts
from aae_ray.datasets.parquet import read_parquet
from aae_ray.errors import UserError, did_you_mean

PREPARED_FORMAT = 2  # raised when prepared data changes its form, so that older ones are made anew
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels of a set, and which of them are for training, validation and test.

    `digest` names the content: equal digests, equal images and labels in equal order. The images are a
    read-only memory map. Labels are UNKNOWN of images that have none. The parts are sorted indices, disjoint, and cover
    the set; they follow from the labels, the parts that the set may bring, `data.split_seed` and the two fractions.
    """

    name: str
    digest: str
    images_NCHW: NDArray[np.uint8]
    labels_N: NDArray[np.int64] | None
    train: Indices
    val: Indices
    test: Indices
    class_names: tuple[str, ...] | None = None  # as the source calls the classes; None without labels

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, channels, height, width = self.images_NCHW.shape
        return channels, height, width

    @property
    def classes(self) -> int | None:
        """Number of classes, labels being 0 to classes - 1, or UNKNOWN; None without labels."""
        return None if self.labels_N is None else int(self.labels_N.max()) + 1

    @property
    def unlabelled(self) -> int:
        """How many images have no label."""
        return len(self.images_NCHW) if self.labels_N is None else int((np.asarray(self.labels_N) == UNKNOWN).sum())

    def labelled(self, rows: Indices) -> Indices:
        """Those of these images that have a label."""
        return rows[:0] if self.labels_N is None else rows[np.asarray(self.labels_N)[rows] != UNKNOWN]


def class_names(dataset: Dataset) -> tuple[str, ...]:
    """The names of the classes in their order: as the source has them, else their numbers; none without labels."""
    return dataset.class_names or tuple(map(str, range(dataset.classes or 0)))


def load(data: settings.Data, progress: Progress = no_progress) -> Dataset:
    """The set that the settings name: from the cache, and into it first where it is not there yet.

    Preparing is done by one process at a time, the others wait; `progress` reports it. Raises UserError where the
    source, the cache or the split is at fault.
    """
    source = _find_source(data, progress)
    folder = _prepared_folder(data, source)
    if not folder.is_dir():
        try:
            with _locked(folder.with_name(f"{folder.name}.lock")):
                if not folder.is_dir():  # another process may have prepared it while this one waited
                    _prepare(source.read(), folder, data.name, progress)
        except OSError as error:
            raise UserError(f"data.cache: {folder} cannot be written: {error.strerror or error}") from None
    return _open(folder, data)


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


@dataclass(frozen=True)
class _Source:
    """Where images come from: what tells it from other sources and from its own past, and how it is read."""

    identity: Mapping[str, Any]
    read: Callable[[], ImageStream]


def _find_source(data: settings.Data, progress: Progress = no_progress) -> _Source:
    if data.path:
        return _stored_source(data, Path(data.path).expanduser())
    if data.image_column or data.label_column:
        raise UserError("data.image_column and data.label_column are for Parquet files; data.path names none")
    if data.name == "digits":
        return _Source({"digits": "scikit-learn"}, _read_digits)
    if data.name in PUBLISHED:
        published = PUBLISHED[data.name]
        folder = cache_folder(data) / "downloads" / data.name
        identity = {"sha256": dict(published.sha256)}
        return _Source(identity, lambda: read_idx(download(published, folder, progress)))
    known = ("digits", *PUBLISHED)
    raise UserError(
        f"data.name: {data.name} is none of {', '.join(known)}; for your own images give data.path."
        f"{did_you_mean(data.name, known)}"
    )


def _stored_source(data: settings.Data, path: Path) -> _Source:
    if data.name == "digits":
        raise UserError(f"data.name: {path} is not scikit-learn's digits; give it another name")
    try:
        parquet, idx = _files_at(path)
        identity: dict[str, Any] = {"files": [_file_identity(file) for file in (*parquet, *idx.values())]}
    except OSError as error:
        raise UserError(f"data.path: {error.filename or path} cannot be read: {error.strerror}") from None
    if parquet and idx:
        raise UserError(f"data.path: {path} holds both Parquet and IDX files; keep one kind in the folder")
    if parquet:
        identity["columns"] = [data.image_column, data.label_column]
        return _Source(identity, lambda: read_parquet(parquet, data.image_column, data.label_column))
    if data.image_column or data.label_column:
        raise UserError(f"data.image_column and data.label_column are for Parquet files; {path} holds none")
    needed = IDX_FILES if data.name in PUBLISHED else IDX_FILES[:1]
    missing = [name for name in needed if name not in idx]
    if missing:
        also = "" if idx else ", and no Parquet file either"
        raise UserError(f"data.path: {path} has no {missing[0]} (.gz or not){also}")
    return _Source(identity, lambda: read_idx(idx))


def _files_at(path: Path) -> tuple[list[Path], dict[str, Path]]:
    """The Parquet files and the IDX files at a path."""
    if path.is_dir():
        return sorted(path.glob("*.parquet")), find_idx(path)
    if path.suffix == ".parquet" and path.is_file():
        return [path], {}
    what = "is neither a folder nor a .parquet file" if path.exists() else "does not exist"
    raise UserError(f"data.path: {path} {what}")


def _file_identity(file: Path) -> tuple[str, int, int]:
    status = file.stat()
    return str(file.resolve()), status.st_size, status.st_mtime_ns


def _read_digits() -> ImageStream:
    """The 1797 digits of 8 x 8 pixels that ship with scikit-learn, their 17 levels spread over 0 to 255."""
    import pyarrow as pa
    from sklearn.datasets import load_digits

    digits = load_digits()
    images_NHW = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return ImageStream(
        len(images_NHW), iter([images_NHW[:, np.newaxis]]), pa.array(digits.target), Origin("scikit-learn's digits")
    )


# ---------------------------------------------------------------------------------------------------- cache


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock that other processes of this node wait for; it goes with the process, however that ends."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _prepare(stream: ImageStream, folder: Path, name: str, progress: Progress) -> None:
    """Write images.npy, labels.npy, parts.npy, about.json; the folder gets its name when all of it is on the disk."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
    partial.mkdir()
    try:
        about = _write_arrays(stream, partial, lambda done: progress(f"preparing {name}", done, stream.count))
        with _durable(partial / "about.json") as file:
            file.write(json.dumps(about | {"name": name}, indent=2).encode())
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_arrays(stream: ImageStream, folder: Path, progress: Callable[[int], None]) -> dict[str, Any]:
    classes = None if stream.labels is None else classes_of(stream.labels, stream.label_place)
    digest = hashlib.sha256()
    shape: tuple[int, ...] = ()
    done = 0
    with _durable(folder / "images.npy") as file:
        for images_BCHW in stream.blocks:
            if not shape:
                shape = (stream.count, *images_BCHW.shape[1:])
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                digest.update(repr(shape).encode())
            content = images_BCHW.tobytes()
            file.write(content)
            digest.update(content)
            done += len(images_BCHW)
            progress(done)
    if classes is not None:
        digest.update(classes.labels_N.astype("<i8").tobytes())
        if classes.names != tuple(map(str, range(len(classes.names)))):
            digest.update(json.dumps(classes.names).encode())
        with _durable(folder / "labels.npy") as file:
            np.save(file, classes.labels_N)
    if stream.parts is not None:
        with _durable(folder / "parts.npy") as file:
            np.save(file, stream.parts)
    return {
        "digest": digest.hexdigest()[:32],
        "shape": shape,
        "classes": None if classes is None else classes.names,
        "parts": stream.parts is not None,
    }


@contextmanager
def _durable(file: Path) -> Iterator[IO[bytes]]:
    """A new file whose content is on the disk, not only on its way there, when the block ends."""
    with file.open("wb") as handle:
        yield handle
        handle.flush()
        os.fsync(handle.fileno())


def _open(folder: Path, data: settings.Data) -> Dataset:
    try:
        about = json.loads((folder / "about.json").read_bytes())
        images_NCHW = np.load(folder / "images.npy", mmap_mode="r")
        labels_N = np.load(folder / "labels.npy", mmap_mode="r") if about["classes"] is not None else None
        parts_N = np.load(folder / "parts.npy") if about["parts"] else None
        if images_NCHW.shape != tuple(about["shape"]) or images_NCHW.dtype != np.uint8:
            raise ValueError("images.npy does not match about.json")
        if labels_N is not None and (labels_N.shape != images_NCHW.shape[:1] or labels_N.dtype != np.int64):
            raise ValueError("labels.npy does not match images.npy")
        if parts_N is not None and (parts_N.shape != images_NCHW.shape[:1] or parts_N.dtype != np.int8):
            raise ValueError("parts.npy does not match images.npy")
        digest, names = str(about["digest"]), about["classes"]
        class_names = None if names is None else tuple(map(str, names))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the prepared data in {folder} is damaged ({error}); delete that folder, and it will be prepared again"
        ) from None
    one_class_N = np.zeros(len(images_NCHW), np.int64)
    train, val, test = _split(one_class_N if labels_N is None else labels_N, parts_N, data)
    return Dataset(data.name, digest, images_NCHW, labels_N, train, val, test, class_names)


# --------------------------------------------------------------------------------------------------- splits


def _split(labels_N: NDArray[np.int64], parts_N: Parts | None, data: settings.Data) -> tuple[Indices, Indices, Indices]:
    """Sorted indices for training, validation and test: as the source gives them, and drawn where it gives none."""
    if parts_N is None:
        parts_N = np.full(len(labels_N), TO_BE_DRAWN, np.int8)
    val, test = (np.flatnonzero(parts_N == part) for part in (VALIDATION, TEST))
    rest = np.flatnonzero((parts_N != VALIDATION) & (parts_N != TEST))
    order = rest[_stratified_order(labels_N[rest], data.split_seed)]
    val_count = 0 if len(val) else round(data.validation_fraction * len(rest))
    test_count = 0 if len(test) else round(data.test_fraction * len(rest))
    drawn_val, drawn_test, train = np.split(order, [val_count, val_count + test_count])
    parts = (train, val if len(val) else drawn_val, test if len(test) else drawn_test)
    empty = [name for name, part in zip(PART_NAMES, parts, strict=True) if len(part) == 0]
    if empty:
        raise UserError(
            f"data.name: {data.name} has too few images, {len(labels_N)}: with data.validation_fraction "
            f"{data.validation_fraction:g} and data.test_fraction {data.test_fraction:g} "
            f"none is left for {empty[0]}"
        )
    train, val, test = (np.sort(part) for part in parts)
    return train, val, test


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
