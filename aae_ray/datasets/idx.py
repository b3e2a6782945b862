"""Images and labels in IDX files, the format of MNIST, EMNIST, KMNIST and QMNIST, read block by block; errors name the
file.

`N` images of a file, `B` images of a block, `H` height, `W` width.
"""

import gzip
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aae_ray.datasets.classes import NO_LABELS
from aae_ray.datasets.damage import AGAIN, readable
from aae_ray.datasets.image_stream import TEST, TRAIN, ImageStream, Origin, size_text
from aae_ray.datasets.packed import open_unpacked
from aae_ray.datasets.pixels import PixelFault, Scale, arrange_block
from aae_ray.errors import UserError
from aae_ray.settings import Data
from aae_ray.settings.values import MAX_SIDE

_BLOCK_BYTES = 1 << 24
_DAMAGED = ((EOFError, zlib.error, gzip.BadGzipFile), "is damaged")

_TRAINING_PART = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_TEST_PART = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
IDX_FILES = (*_TRAINING_PART, *_TEST_PART)

_NAME = re.compile(
    r"(?P<set>|.+?[-_.])((?P<part>train|t10k|test)[-_.])?(?P<kind>images|labels)[-_.]idx[1-4][-_][a-z0-9]+(\.gz)?", re.I
)
_OTHER_NAME = re.compile(r".+[-_.]idx(?P<axes>[1-4])[-_][a-z0-9]+(\.gz)?", re.I)  # my_pictures.idx3-ubyte
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}  # by the third byte of a file
_QMNIST_COLUMNS = 8  # of its labels: the first is the class, the others say who wrote the digit, and where it stood


def find_idx(path: Path) -> dict[str, Path]:
    """The IDX files of a folder, or of the set to which one file belongs, under their names in IDX_FILES.

    Names may be spelled `train-images.idx3-ubyte`, end in .gz, say `test` for `t10k`, and begin with the name of a set,
    as in `emnist-letters-train-images-idx3-ubyte`. Files that name no part are of the training part, and so are a file
    of images and one of labels that say by their axes alone what they are: `my_pictures.idx3-ubyte`. Raises UserError
    where a folder holds several sets.
    """
    folder = path if path.is_dir() else path.parent
    files_there = sorted(folder.iterdir(), key=lambda file: (file.suffix == ".gz", file.name))
    sets: dict[tuple[str, bool], dict[str, Path]] = {}
    for file in files_there:
        if (match := _NAME.fullmatch(file.name)) and file.is_file():
            part = _TRAINING_PART if (match["part"] or "train").lower() == "train" else _TEST_PART
            name = part[("images", "labels").index(match["kind"].lower())]
            sets.setdefault((match["set"].lower(), match["part"] is None), {}).setdefault(name, file)
    if not sets:
        named = [(file, match) for file in files_there if (match := _OTHER_NAME.fullmatch(file.name))]
        images = [file for file, match in named if match["axes"] != "1" and file.is_file()]
        labels = [file for file, match in named if match["axes"] == "1" and file.is_file()]
        alone = len(images) == len(labels) == 1  # else nothing tells whose labels they are
        for file in images:
            sets[(file.name, True)] = dict(zip(_TRAINING_PART, (file, *(labels if alone else ())), strict=False))
    if path != folder:
        sets = {name: files for name, files in sets.items() if path in files.values()}
    if len(sets) > 1:
        first = [next(iter(files.values())).name for files in sets.values()]
        raise UserError(
            f"data.path: {folder} holds several sets of IDX files; choose one by one of its files, such as "
            f"{' or '.join(first[:4])}"
        )
    only = next(iter(sets.values()), {})
    return {name: only[name] for name in IDX_FILES if name in only}


def read_idx(files: Mapping[str, Path], data: Data) -> ImageStream:
    """The images of IDX files, under their names in IDX_FILES; all labels may be absent, or the test part.

    Headers and labels are checked here, images while the blocks are read. Raises UserError for a missing, damaged,
    empty or contradictory file.
    """
    import pyarrow as pa

    with_labels = any("labels" in name for name in files)
    with_test = any(name in files for name in _TEST_PART)
    parts = [_TRAINING_PART, _TEST_PART] if with_test else [_TRAINING_PART]
    needed = [name for pair in parts for name in (pair if with_labels else pair[:1])]
    for name in needed:
        if name not in files:
            beside = next(iter(files.values()))
            match = _NAME.fullmatch(beside.name)
            named = name if match is None or match["part"] else name.partition("-")[2]
            own_name = f"{match['set'] if match else ''}{named}"
            raise UserError(f"{beside.parent / own_name} is missing (.gz or not), though {beside.name} is there")
    if data.transpose is None and (transposed := [file for file in files.values() if "emnist" in file.name.lower()]):
        raise UserError(
            f"{transposed[0]}: EMNIST's own files store rows and columns of each image exchanged; data.transpose=true "
            f"puts them upright, and data.transpose=false takes images as they are stored"
        )

    headers = [_header(files[images], "images") for images, _ in parts]
    shapes = [shape for shape, _ in headers]
    for (images, _), shape in zip(parts, shapes, strict=True):
        if shape[1:] != shapes[0][1:]:
            raise UserError(
                f"{files[images]} holds images of {size_text(shape[1:])} pixels and {files[parts[0][0]]} of "
                f"{size_text(shapes[0][1:])}; all images must have the same shape"
            )
    scale = Scale(data)

    def scaled(observe: bool) -> Iterator[NDArray[np.uint8]]:
        for (images, _), (shape, dtype) in zip(parts, headers, strict=True):
            start = 0
            for rows_BHW in _rows(files[images], shape, dtype):
                try:
                    if observe:
                        scale.observe(rows_BHW)
                    else:
                        yield arrange_block(scale.to_bytes(rows_BHW)[..., np.newaxis], data)
                except PixelFault as fault:
                    raise UserError(f"{files[images]}: image {start + fault.index} {fault}") from None
                start += len(rows_BHW)

    def blocks() -> Iterator[NDArray[np.uint8]]:
        if data.scale or any(dtype != np.uint8 for _, dtype in headers):
            yield from scaled(observe=True)  # nothing, but a message then knows the range of the whole set
        yield from scaled(observe=False)
        try:
            scale.finish()
        except PixelFault as fault:
            raise UserError(f"{files[parts[0][0]]} {fault}") from None

    labels = []
    remarks: tuple[str, ...] = ()
    for (images, name), shape in zip(parts, shapes, strict=True):
        if with_labels:
            values, columns = _labels(files[name], files[images], shape[0])
            labels.append(values)
            if columns > 1:
                remarks = (f"of the {columns} columns of QMNIST's labels the first was read, the class",)
    sizes = [shape[0] for shape in shapes]
    starts = np.cumsum([0, *sizes])

    def label_location(image: int | None) -> str:
        if image is None:
            return ", ".join(str(files[name]) for _, name in parts)
        index = int(np.searchsorted(starts, image, side="right")) - 1
        return f"{files[parts[index][1]]}: label {image - starts[index]}"

    return ImageStream(
        sum(sizes),
        blocks(),
        pa.array(np.concatenate(labels)) if labels else None,
        Origin("IDX", len(needed), parts="names of files" if with_test else ""),
        np.repeat(np.array((TRAIN, TEST)[: len(sizes)], np.int8), sizes) if with_test else None,
        value_range=lambda: scale.seen,
        remarks=lambda: remarks,
        label_location=label_location,
        other_labels=f"give the file of classes, or {NO_LABELS}",
    )


def _labels(file: Path, images: Path, count: int) -> tuple[NDArray[Any], int]:
    """The labels of a file, and of how many columns they are the first."""
    shape, dtype = _header(file, "labels")
    if shape[0] != count:
        raise UserError(
            f"{images} holds {count} images and {file} {shape[0]} labels, not one each; take the labels that belong to "
            f"the images, or leave them out: {NO_LABELS}"
        )
    if len(shape) == 2 and shape[1] != _QMNIST_COLUMNS:
        raise UserError(
            f"{file} holds {shape[1]} values for each image; labels are one, or the {_QMNIST_COLUMNS} of QMNIST"
        )
    values = np.concatenate([rows.reshape(len(rows), -1)[:, 0] for rows in _rows(file, shape, dtype)])
    return values.astype(dtype.newbyteorder("=")), shape[1] if len(shape) == 2 else 1


def _header(path: Path, what: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and the type of an array of images, of three dimensions, or of labels, of one or two."""
    with readable(path, *_DAMAGED), open_unpacked(path) as stream:
        start = stream.read(4)
        dimensions = start[3] if len(start) == 4 else 0
        sizes = stream.read(4 * dimensions)
    if not start:
        raise UserError(f"{path} is empty; {AGAIN}")
    right = (3,) if what == "images" else (1, 2)
    if start[:2] != b"\0\0" or dimensions not in right or start[2] not in _TYPES:
        raise UserError(
            f"{path} is not an IDX file of {what}: it begins with {start.hex(' ')}, not 00 00, a type of numbers (08: "
            f"bytes) and {' or '.join(f'{number:02}' for number in right)} dimensions; {AGAIN}"
        )
    if len(sizes) < 4 * dimensions:
        raise UserError(f"{path} ends within its header; {AGAIN}")
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    if shape[0] == 0:
        raise UserError(f"{path} holds no {what}; write or fetch one that has some")
    if not all(1 <= side <= MAX_SIDE for side in shape[1:]):
        raise UserError(f"{path} declares {what} of {size_text(shape[1:])}; a side can be 1 to {MAX_SIDE}")
    return shape, np.dtype(_TYPES[start[2]])


def _rows(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    what = "images" if len(shape) == 3 else "labels"
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    block_rows = max(1, _BLOCK_BYTES // row_bytes)
    with readable(path, *_DAMAGED), open_unpacked(path) as stream:
        stream.read(4 + 4 * len(shape))
        for start in range(0, shape[0], block_rows):
            rows = min(block_rows, shape[0] - start)
            content = stream.read(rows * row_bytes)
            if len(content) < rows * row_bytes:
                whole = start + len(content) // row_bytes
                raise UserError(f"{path} ends after {whole} of the {shape[0]} {what} that its header declares; {AGAIN}")
            yield np.frombuffer(content, dtype).reshape(rows, *shape[1:])
        if stream.read(1):
            raise UserError(
                f"{path} has trailing data after the {shape[0]} {what} that its header declares: it was written over "
                f"a longer one, or appended to; {AGAIN}"
            )
