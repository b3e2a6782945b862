"""Which part of a set an image belongs to, where its source says so: by files, folders, a column or a second path."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aae_ray.datasets.classes import concatenated
from aae_ray.datasets.image_stream import TEST, TO_BE_DRAWN, TRAIN, VALIDATION, ImageStream, ValueRange, size_text
from aae_ray.errors import UserError

WORDS = {
    "train": TRAIN, "training": TRAIN,
    "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION,
    "test": TEST, "testing": TEST,
}  # fmt: skip
# `test`, `test-00000-of-00003`, `mnist_test`, `test1`, and not `latest` or `test_images_of_cats`.
_NAMED = re.compile(rf"(?:.*[-_. ])?({'|'.join(WORDS)})(?:[-_. ]?\d.*)?", re.IGNORECASE)


def part_of_word(word: str) -> int | None:
    """The part that a word such as `Test` names; None where it names none."""
    return WORDS.get(word.strip().lower())


def parts_of_files(root: Path, files: Sequence[Path]) -> list[int] | None:
    """The part of each file below a folder, by its name or that of a folder on the way; None where all are of one."""
    return where_they_differ([TO_BE_DRAWN if file == root else _part_of_file(file.relative_to(root)) for file in files])


def where_they_differ(parts: list[int]) -> list[int] | None:
    """The same parts, of which several are told apart; None where all are of one, as those tell nothing."""
    return parts if len({TRAIN if part == TO_BE_DRAWN else part for part in parts}) > 1 else None


def _part_of_file(relative: Path) -> int:
    for folder in relative.parts[:-1]:
        if (part := part_of_word(folder.rpartition("=")[2])) is not None:
            return part
    # Between the dots of a name stand parts (`mnist.train.parquet`) and other things (`train.v2.snappy.parquet`).
    named = [match for piece in relative.name.split(".") if (match := _NAMED.fullmatch(piece))]
    return WORDS[named[-1].group(1).lower()] if named else TO_BE_DRAWN


def with_test(stream: ImageStream, test: ImageStream, location: str) -> ImageStream:
    """A set and, behind it, a second source as its test part; `location` is that of the second, for messages.

    Of a second source that has parts itself the test part is taken alone: its other images may be those of the first.
    Raises UserError when the first has a test part already, or the two do not belong together.
    """
    if stream.parts is not None and (stream.parts == TEST).any():
        raise UserError(f"data.test_path: data.path has a test part of its own, beside {location}; give one of them")
    if stream.labels is None and test.labels is not None:
        raise UserError(f"data.test_path: {location} has labels and data.path has none")
    if test.labels is not None and stream.label_names != test.label_names:
        raise UserError(f"data.test_path: the classes of {location} have other names than those of data.path")
    if test.columns != stream.columns:
        raise UserError(f"data.test_path: {location} does not hold what data.path holds, which is {_held(stream)}")
    taken = np.arange(test.count) if test.parts is None else np.flatnonzero(test.parts == TEST)
    if not len(taken):
        raise UserError(f"data.test_path: {location} has parts, and none for the test")

    def blocks() -> Iterator[NDArray[Any]]:
        shape: tuple[int, ...] = ()
        for images_BCHW in stream.blocks:
            shape = images_BCHW.shape[1:]
            yield images_BCHW
        for images_BCHW in _of_rows(test.blocks, taken):
            if images_BCHW.shape[1:] != shape:
                raise UserError(
                    f"data.test_path: {location} has images of {size_text(images_BCHW.shape[1:])} (channels x height x "
                    f"width) and data.path of {size_text(shape)}; all images must have the same shape"
                )
            yield images_BCHW

    def value_range() -> ValueRange | None:
        ends = [ends for ends in (stream.value_range(), test.value_range()) if ends is not None]
        return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None

    def label_location(image: int | None) -> str:
        if image is None or image < stream.count:
            return stream.label_location(image)
        return test.label_location(int(taken[image - stream.count]))

    def remarks() -> tuple[str, ...]:
        left = test.count - len(taken)
        of_test = (f"images of data.test_path that are not of its test part, left out: {left}",) if left else ()
        return stream.remarks() + tuple(f"in data.test_path, {remark}" for remark in test.remarks()) + of_test

    labels = None
    if stream.labels is not None:
        import pyarrow as pa

        own_labels = pa.nulls(len(taken)) if test.labels is None else test.labels.take(taken)
        labels = concatenated([stream.labels, own_labels], location)
    own = np.full(stream.count, TRAIN, np.int8) if stream.parts is None else stream.parts
    given_by = " and ".join(filter(None, (stream.origin.parts, "data.test_path")))
    origin = replace(stream.origin, files=stream.origin.files + test.origin.files, parts=given_by)
    return ImageStream(
        stream.count + len(taken),
        blocks(),
        labels,
        origin,
        np.concatenate([own, np.full(len(taken), TEST, np.int8)]),
        value_range,
        label_location,
        stream.label_names,
        remarks,
        stream.columns,
        stream.other_labels,
    )


def _held(stream: ImageStream) -> str:
    return "images" if stream.columns is None else f"rows of the columns {', '.join(stream.columns[:8])}"


def _of_rows(blocks: Iterator[NDArray[Any]], rows: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
    """Those images_BCHW of blocks whose numbers, in ascending order, are given."""
    start = 0
    for images_BCHW in blocks:
        first, stop = np.searchsorted(rows, (start, start + len(images_BCHW)))
        if first < stop:
            yield images_BCHW[rows[first:stop] - start]
        start += len(images_BCHW)
