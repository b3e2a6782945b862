"""SVHN, Street View house numbers cropped to single digits (Netzer et al. 2011), in MATLAB files; errors name the file.

`N` images of a file, `B` images of a block, `C` channels, `H` height, `W` width.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aae_ray.datasets.damage import readable
from aae_ray.datasets.image_stream import TEST, TRAIN, ImageStream, Origin, size_text
from aae_ray.errors import UserError

FILES = ("train_32x32.mat", "test_32x32.mat")

_SHAPE_HWC = (32, 32, 3)
_BLOCK_ROWS = 4096
# Damaged content raises ValueError, TypeError, zlib.error, MemoryError, ...
_DAMAGED = ((Exception,), "cannot be read as a MATLAB file")


def read_svhn(files: Mapping[str, Path]) -> ImageStream:
    """The images of train_32x32.mat, then those of test_32x32.mat; labels are the digits, 0 to 9.

    What the files hold and the labels are checked here, pixels while the blocks are read; the images of one file are in
    memory then (225 MB for training). Raises UserError for a damaged or contradictory file.
    """
    paths = [files[name] for name in FILES]
    counts = [_checked_count(path) for path in paths]
    labels_N = np.concatenate([_digits(path) for path in paths])

    def blocks() -> Iterator[NDArray[np.uint8]]:
        for path, count in zip(paths, counts, strict=True):
            images_HWCN = _variable(path, "X")
            for start in range(0, count, _BLOCK_ROWS):
                images_BCHW = images_HWCN[..., start : start + _BLOCK_ROWS].transpose(3, 2, 0, 1)
                yield np.ascontiguousarray(images_BCHW)

    import pyarrow as pa

    parts_N = np.repeat(np.array((TRAIN, TEST), np.int8), counts)
    origin = Origin("MATLAB", len(files), ("X", "y"), parts="names of files")
    return ImageStream(sum(counts), blocks(), pa.array(labels_N), origin, parts_N)


def _checked_count(path: Path) -> int:
    """How many images the file declares, each with a label."""
    from scipy.io import whosmat

    with readable(path, *_DAMAGED):
        variables = {name: (shape, kind) for name, shape, kind in whosmat(path)}
    for name in ("X", "y"):
        if name not in variables:
            held = ", ".join(variables) or "nothing"
            raise UserError(
                f"{path} has no variable {name}, but {held}; SVHN has images in X and labels in y, so the file is cut "
                f"or another one"
            )
    shape, kind = variables["X"]
    if len(shape) != 4 or shape[:3] != _SHAPE_HWC or kind != "uint8":
        raise UserError(
            f"{path}: X is {size_text(shape)} of {kind}; SVHN has {size_text(_SHAPE_HWC)} x images of uint8"
        )
    labels = int(np.prod(variables["y"][0]))
    if labels != shape[3]:
        raise UserError(f"{path} holds {shape[3]} images and {labels} labels, not one each")
    if not labels:
        raise UserError(f"{path} holds no images")
    return labels


def _digits(path: Path) -> NDArray[np.int64]:
    """Labels (N,): SVHN writes 10 for the digit 0."""
    labels_N = _variable(path, "y").reshape(-1)
    wrong = ~np.isin(labels_N, np.arange(1, 11))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(f"{path}: image {row} has label {labels_N[row]}; SVHN has 1 to 9, and 10 for the digit 0")
    return np.asarray(labels_N.astype(np.int64) % 10)


def _variable(path: Path, name: str) -> NDArray[Any]:
    from scipy.io import loadmat

    with readable(path, *_DAMAGED):
        return np.asarray(loadmat(path, variable_names=[name])[name])
