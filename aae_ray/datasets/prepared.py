"""The prepared form of a set: arrays that processes of a node map into memory, and what is known of them.

A folder with images.npy or rows.npy, copies.npy, labels.npy and parts.npy where there are such, and about.json, whose
digest is that of examples, labels and class names. `N` examples of a set, `B` of a block, `M` copies.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from aae_ray.datasets import remote
from aae_ray.datasets.classes import UNKNOWN, classes_of
from aae_ray.datasets.download import Progress
from aae_ray.datasets.image_stream import ImageStream
from aae_ray.errors import UserError

DIGESTED_EXAMPLES = 4096  # at a time, when a set is checked
Columns = tuple[str, ...] | None  # of rows of numbers; None of images


def prepare(stream: ImageStream, folder: Path, name: str, progress: Progress) -> None:
    """Write images.npy or rows.npy, labels.npy, parts.npy, about.json; the folder gets its name when all of it is on
    the disk."""
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
    classes, remarks = None, []
    if stream.labels is not None:
        classes = classes_of(stream.labels, stream.label_location, stream.label_names, stream.other_labels)
        if classes is None:
            remarks = [f"{stream.label_location(None)} is empty or {UNKNOWN} in every row, so that nothing has a label"]
    digest = hashlib.sha256()
    digests: list[bytes] = []  # of single images, which take some 50 bytes each
    shape: tuple[int, ...] = ()
    kind = np.dtype(np.uint8 if stream.columns is None else "<f8")
    with _durable(folder / examples_file(stream.columns is not None)) as file:
        for block_BX in stream.blocks:
            if not shape:
                shape = (stream.count, *block_BX.shape[1:])
                _check_room(folder, math.prod(shape) * kind.itemsize)
                header = {"descr": kind.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                _digest_shape(digest, shape, stream.columns)
            content = block_BX.astype(kind, copy=False).tobytes()
            file.write(content)
            digest.update(content)
            digests += (hashlib.blake2b(example_X.tobytes(), digest_size=16).digest() for example_X in block_BX)
            progress(len(digests))
    arrays = {"copies": _copies(digests)}
    if classes is not None:
        _digest_labels(digest, classes.labels_N, classes.names)
        arrays["labels"] = classes.labels_N
    if stream.parts is not None:
        arrays["parts"] = stream.parts.astype(np.int64)
    for name, array in arrays.items():
        with _durable(folder / f"{name}.npy") as file:
            np.save(file, array)
    return {
        "digest": digest.hexdigest()[:32],
        "shape": shape,
        "columns": stream.columns,
        "classes": None if classes is None else classes.names,
        "parts": stream.parts is not None,
        "origin": asdict(replace(stream.origin, remarks=(*remarks, *stream.remarks()))),
        "value_range": stream.value_range(),
    }


def fetch(uri: str, folder: Path) -> bool:
    """Fetch a prepared set that is shared, and check it against its digest. Raises UserError where it is damaged."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    named = partial / folder.name  # by which it is known there
    try:
        if not remote.fetch(uri, named):
            return False
        if not _is_whole(named):
            raise UserError(
                f"data.shared: the prepared set {remote.shown(uri)}/{folder.name} does not match its own digest; "
                "delete it there, and it will be prepared again"
            )
        named.rename(folder)
        return True
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Whether examples, labels and names of a prepared set are those that its digest was made of."""
    try:
        about = json.loads((folder / "about.json").read_bytes())
        examples_NX = np.load(folder / examples_file(about["columns"] is not None), mmap_mode="r")
        digest = hashlib.sha256()
        _digest_shape(digest, tuple(about["shape"]), about["columns"])
        for first in range(0, len(examples_NX), DIGESTED_EXAMPLES):
            digest.update(examples_NX[first : first + DIGESTED_EXAMPLES].tobytes())
        if about["classes"] is not None:
            _digest_labels(digest, np.load(folder / "labels.npy"), tuple(about["classes"]))
        return bool(digest.hexdigest()[:32] == about["digest"])
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return False


def _digest_shape(digest: Any, shape: tuple[int, ...], columns: Columns) -> None:
    digest.update(repr(shape).encode())
    if columns is not None:
        digest.update(json.dumps(columns).encode())


def _digest_labels(digest: Any, labels_N: NDArray[np.int64], names: tuple[str, ...]) -> None:
    digest.update(labels_N.astype("<i8").tobytes())
    if names != tuple(map(str, range(len(names)))):
        digest.update(json.dumps(names).encode())


def examples_file(rows: bool) -> str:
    return "rows.npy" if rows else "images.npy"


def _copies(digests: list[bytes]) -> NDArray[np.int64]:
    """Images that are there more than once, each with the number of its group, (M, 2)."""
    _, group_N, counts = np.unique(np.array(digests, "V16"), return_inverse=True, return_counts=True)
    images_M = np.flatnonzero(counts[group_N] > 1)
    _, groups_M = np.unique(group_N[images_M], return_inverse=True)
    return np.stack([images_M, groups_M], 1).astype(np.int64)


def _check_room(folder: Path, needed: int) -> None:
    """Raises UserError where the disk has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"data.cache: the prepared images take {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free under "
            f"{folder.parent}; free some, or give data.cache another place"
        )


@contextmanager
def _durable(file: Path) -> Iterator[IO[bytes]]:
    """A new file whose content is on the disk, not only on its way there, when the block ends."""
    with file.open("wb") as handle:
        yield handle
        handle.flush()
        os.fsync(handle.fileno())
