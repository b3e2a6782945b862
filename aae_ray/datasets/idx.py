"""Images and labels in IDX files, the format of MNIST, read block by block; errors name the file.

`N` images of a file, `B` images of a block, `H` height, `W` width.
"""

import gzip
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from aae_ray.datasets.image_stream import TEST, TRAIN, ImageStream, Origin, size_text
from aae_ray.errors import UserError

_BLOCK_BYTES = 1 << 24
_MAX_SIDE = 4096  # pixels; a header beyond it is damaged, and would ask for all memory

_TRAINING_PART = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_TEST_PART = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
IDX_FILES = (*_TRAINING_PART, *_TEST_PART)


def find_idx(folder: Path) -> dict[str, Path]:
    """Those of IDX_FILES that are in the folder, plain or as .gz, also spelled `train-images.idx3-ubyte`."""
    files: dict[str, Path] = {}
    for name in IDX_FILES:
        dotted = name.replace("-idx", ".idx")
        for spelling in (name, f"{name}.gz", dotted, f"{dotted}.gz"):
            if (folder / spelling).is_file():
                files.setdefault(name, folder / spelling)
    return files


def read_idx(files: Mapping[str, Path]) -> ImageStream:
    """The images of IDX files, under their names in IDX_FILES; all labels may be absent, or the test part.

    Headers and labels are checked here, images while the blocks are read. Raises UserError for a missing, damaged,
    empty or contradictory file.
    """
    with_labels = any("labels" in name for name in files)
    with_test = any(name in files for name in _TEST_PART)
    parts = [_TRAINING_PART, _TEST_PART] if with_test else [_TRAINING_PART]
    needed = [name for pair in parts for name in (pair if with_labels else pair[:1])]
    for name in needed:
        if name not in files:
            beside = next(iter(files.values()))
            raise UserError(f"{beside.parent / name} is missing (.gz or not), though {beside.name} is there")

    shapes = [_checked_shape(files[images], dimensions=3) for images, _ in parts]
    for (images, labels), shape in zip(parts, shapes, strict=True):
        if with_labels and (count := _checked_shape(files[labels], dimensions=1)[0]) != shape[0]:
            raise UserError(f"{files[images]} holds {shape[0]} images and {files[labels]} {count} labels, not one each")
        if shape[1:] != shapes[0][1:]:
            raise UserError(
                f"{files[images]} holds images of {size_text(shape[1:])} pixels and {files[parts[0][0]]} of "
                f"{size_text(shapes[0][1:])}; all images must have the same shape"
            )

    def blocks() -> Iterator[NDArray[np.uint8]]:
        for (images, _), shape in zip(parts, shapes, strict=True):
            for images_BHW in _rows(files[images], shape):
                yield images_BHW[:, np.newaxis]

    values = None
    if with_labels:
        import pyarrow as pa

        rows = [row for (_, name), shape in zip(parts, shapes, strict=True) for row in _rows(files[name], shape[:1])]
        values = pa.array(np.concatenate(rows))
    sizes = [shape[0] for shape in shapes]
    given = np.repeat(np.array((TRAIN, TEST)[: len(sizes)], np.int8), sizes) if with_test else None
    return ImageStream(sum(sizes), blocks(), values, Origin("IDX", len(needed)), given)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _open(path: Path) -> gzip.GzipFile | BinaryIO:
    # By content, not by name: servers and browsers unpack .gz files on the way and leave the name as it was.
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else path.open("rb")


def _checked_shape(path: Path, dimensions: int) -> tuple[int, ...]:
    what = "images" if dimensions == 3 else "labels"
    magic = bytes((0, 0, 8, dimensions))  # 8: unsigned bytes
    with _readable(path), _open(path) as stream:
        header = stream.read(4 + 4 * dimensions)
    if not header:
        raise UserError(f"{path} is empty")
    if header[:4] != magic:
        raise UserError(
            f"{path} is not an IDX file of {what}: it begins with {header[:4].hex(' ')}, not {magic.hex(' ')}"
        )
    if len(header) < 4 + 4 * dimensions:
        raise UserError(f"{path} ends within its header")
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4", offset=4))
    if shape[0] == 0:
        raise UserError(f"{path} holds no {what}")
    if not all(1 <= side <= _MAX_SIDE for side in shape[1:]):
        raise UserError(f"{path} declares images of {size_text(shape[1:])} pixels; a side can be 1 to {_MAX_SIDE}")
    return shape


def _rows(path: Path, shape: tuple[int, ...]) -> Iterator[NDArray[np.uint8]]:
    what = "images" if len(shape) == 3 else "labels"
    row_bytes = math.prod(shape[1:])
    block_rows = max(1, _BLOCK_BYTES // row_bytes)
    with _readable(path), _open(path) as stream:
        stream.read(4 + 4 * len(shape))
        for start in range(0, shape[0], block_rows):
            rows = min(block_rows, shape[0] - start)
            content = stream.read(rows * row_bytes)
            if len(content) < rows * row_bytes:
                whole = start + len(content) // row_bytes
                raise UserError(f"{path} ends after {whole} of the {shape[0]} {what} that its header declares")
            yield np.frombuffer(content, np.uint8).reshape(rows, *shape[1:])
        if stream.read(1):
            raise UserError(f"{path} has trailing data after the {shape[0]} {what} that its header declares")
