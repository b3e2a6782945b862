"""Images and labels in NumPy's files: .npy, .npz, and folders of .npy; read block by block, never unpickled.

`N` images of an array, `B` images of a block, `C` channels, `H` height, `W` width.
"""

import math
import re
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from aae_ray.datasets.arrow_images import CHANNELS, WITH_OPACITY
from aae_ray.datasets.classes import NO_LABELS, concatenated
from aae_ray.datasets.columns import NONE
from aae_ray.datasets.damage import AGAIN, readable
from aae_ray.datasets.image_stream import TO_BE_DRAWN, TRAIN, ImageStream, Origin, size_text
from aae_ray.datasets.parts import part_of_word
from aae_ray.datasets.pictures import format_of
from aae_ray.datasets.pixels import BLOCK_BYTES, PixelFault, Scale, arrange_block
from aae_ray.errors import UserError, did_you_mean
from aae_ray.settings import Data
from aae_ray.settings.values import MAX_SIDE

if TYPE_CHECKING:
    import pyarrow as pa

_T = TypeVar("_T")
# Names by which people call arrays, without the part, in lower case.
_IMAGE_NAMES = ("images", "image", "x", "data", "imgs", "img", "pixels")
_LABEL_NAMES = ("labels", "label", "y", "targets", "target")
_ANY_CHANNELS = (*CHANNELS, WITH_OPACITY)
_SHOWN = 6  # arrays in a message
_START = 1024  # bytes that tell one format from another
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_DAMAGED = (
    (
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        SyntaxError,
        tokenize.TokenError,  # of a header, which is a text in Python
    ),
    "is damaged or cut short",
)


@dataclass(frozen=True)
class ArrayHeader:
    """An array in a file, of which only the header was read."""

    name: str
    file: Path
    member: str | None  # of an archive
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return str(self.file) if self.member is None else f"{self.file}: array {self.name}"


def find_arrays(path: Path) -> list[Path]:
    """The .npy and .npz files at a path or in a folder, by name."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in files if file.suffix.lower() in (".npy", ".npz") and not file.name.startswith(".")]


def is_archive_of_arrays(path: Path) -> bool:
    """Whether a file of any name is an archive that NumPy wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def read_arrays(files: Sequence[Path], data: Data) -> ImageStream:
    """The images of NumPy's files: (N, H, W), the same with channels in front or behind, or (N, D), flat and square.

    Arrays are found by their names (`images` and `labels`, `x_train` and `y_test`, ...), the images also as the only
    array that can be any; else `data.image_column` and `data.label_column` name them. Headers and labels are checked
    here, images while the blocks are read. Raises UserError by file and array.
    """
    if data.split_column:
        raise UserError(
            f"data.split_column: {files[0]} holds NumPy's arrays, which have no column of parts; parts are told by the "
            f"names of arrays, such as x_train and x_test"
        )
    headers = [header for file in files for header in _headers(file)]
    images = _image_arrays(headers, data.image_column)
    labels = _label_arrays(headers, images, data.label_column)
    shapes = {header: _image_shape(header) for header in images.values()}
    first = next(iter(shapes))
    for header, shape_HWC in shapes.items():
        if shape_HWC != shapes[first]:
            raise UserError(
                f"{header} holds images of {size_text(shape_HWC)} and {first} of {size_text(shapes[first])} (height x "
                f"width x channels); all images must have the same shape"
            )
    scale = Scale(data)
    counts = [header.shape[0] for header in shapes]
    used = [*images.values(), *labels.values()]
    starts = np.cumsum([0, *counts])

    def label_location(image: int | None) -> str:
        if image is None:
            return ", ".join(map(str, labels.values()))
        index = int(np.searchsorted(starts, image, side="right")) - 1
        return f"{labels[list(images)[index]]}: label {image - starts[index]}"

    return ImageStream(
        sum(counts),
        _blocks(list(shapes), scale, data),
        _labels(images, labels) if labels else None,
        Origin(
            "NumPy",
            len({header.file for header in used}),
            tuple(header.name for header in used),
            tuple(header.name for header in headers if header not in used),
            "" if TO_BE_DRAWN in images else "names of arrays",
        ),
        None if TO_BE_DRAWN in images else np.repeat(np.array(list(images), np.int8), counts),
        value_range=lambda: scale.seen,
        label_location=label_location,
        other_labels=f"name the array of classes with data.label_column, or {NO_LABELS}",
    )


# --------------------------------------------------------------------------------------------------------- which ones


def _role(name: str) -> tuple[str, int]:
    """The name of an array without its part, in lower case, and the part: `x_train` is an x of TRAIN."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    parts = [part for word in words if (part := part_of_word(word)) is not None]
    name = "_".join(word for word in words if part_of_word(word) is None)
    return name, parts[0] if len(parts) == 1 else TO_BE_DRAWN


def _image_arrays(headers: Sequence[ArrayHeader], named: str | None) -> dict[int, ArrayHeader]:
    """The arrays of images by their part, in the order of the parts; the one of TO_BE_DRAWN alone."""
    location = headers[0].file if len({header.file for header in headers}) == 1 else headers[0].file.parent
    if named:
        chosen = [header for header in headers if header.name == named]
        chosen = chosen or [header for header in headers if _role(header.name)[0] == named.lower()]
        if not chosen:
            raise _no_array(location, headers, "data.image_column", named)
    else:
        chosen = [header for header in headers if _role(header.name)[0] in _IMAGE_NAMES]
        chosen = chosen or [header for header in headers if _layout(header.shape) and header.dtype.kind in "buif"]
        chosen = [header for header in chosen if len(header.shape) > 1] or chosen
        chosen = chosen or (list(headers) if len(headers) == 1 else [])  # to say what is wrong with the one there is
    listed = ", ".join(f"{header.name} ({size_text(header.shape)} of {header.dtype})" for header in headers[:_SHOWN])
    if not chosen:
        raise UserError(f"{location} has no array of images; it holds {listed}")
    by_part = {_role(header.name)[1]: header for header in chosen}
    if len(by_part) < len(chosen) or (TO_BE_DRAWN in by_part and len(by_part) > 1):
        names = ", ".join(header.name for header in chosen)
        raise UserError(f"{location} has several arrays of images, {names}; choose one with data.image_column")
    if TO_BE_DRAWN not in by_part and TRAIN not in by_part:
        names = ", ".join(header.name for header in chosen)
        raise UserError(
            f"{location} has no images to train on, only {names}; data.image_column takes one for all parts"
        )
    if named and len(chosen) == 1:  # of whatever part it was: the rest is not read
        return {TO_BE_DRAWN: chosen[0]}
    return dict(sorted(by_part.items()))


def _label_arrays(
    headers: Sequence[ArrayHeader], images: Mapping[int, ArrayHeader], named: str | None
) -> dict[int, ArrayHeader]:
    """The arrays of labels by the part of the images to which they belong."""
    if named == NONE:
        return {}
    rest = [header for header in headers if header not in images.values()]
    if named:
        chosen = [header for header in rest if header.name == named]
        chosen = chosen or [header for header in rest if _role(header.name)[0] == named.lower()]
        if not chosen:
            raise _no_array(headers[0].file, headers, "data.label_column", named)
    else:
        chosen = [header for header in rest if _role(header.name)[0] in _LABEL_NAMES]
    by_part: dict[int, ArrayHeader] = {}
    for part, image_header in images.items():
        own = _role(image_header.name)[1]
        mine = [header for header in chosen if _role(header.name)[1] == own] or (chosen if named else [])
        if len(mine) > 1:
            names = ", ".join(header.name for header in mine)
            raise UserError(f"{mine[0].file} has several arrays of labels, {names}; choose with data.label_column")
        if mine:
            by_part[part] = mine[0]
    return by_part


def _no_array(location: Path, headers: Sequence[ArrayHeader], key: str, named: str) -> UserError:
    names = [header.name for header in headers]
    return UserError(
        f"{key}: {location} has no array {named}, but {', '.join(names[:_SHOWN])}.{did_you_mean(named, names)}"
    )


# ------------------------------------------------------------------------------------------------------------- shapes


def _layout(shape: Sequence[int]) -> str | None:
    """How the axes of an array of images stand for N, H, W and C; None where it can be none, or more than one."""
    if len(shape) == 2:
        return "flat" if shape[1] >= 4 and math.isqrt(shape[1]) ** 2 == shape[1] else None
    if len(shape) == 3:
        return "NHW"
    if len(shape) == 4:
        last, front = shape[3] in CHANNELS, shape[1] in CHANNELS
        if not last and not front:
            last, front = shape[3] == WITH_OPACITY, shape[1] == WITH_OPACITY
        return None if last == front else "NHWC" if last else "NCHW"
    return None


def _image_shape(header: ArrayHeader) -> tuple[int, int, int]:
    """Height, width and channels of the images. Raises UserError where the array has none, or it is not clear."""
    shape, layout = header.shape, _layout(header.shape)
    if header.dtype.kind not in "buif":
        raise UserError(f"{header} holds values of type {header.dtype}; images are numbers or booleans")
    if shape[:1] == (0,):
        raise UserError(f"{header} holds no images; store some, or name another array with data.image_column")
    if layout is None and len(shape) == 4 and shape[1] in _ANY_CHANNELS and shape[3] in _ANY_CHANNELS:
        raise UserError(
            f"{header} is {size_text(shape)}, which may be N x C x H x W as well as N x H x W x C; save images of one "
            "channel as N x H x W, and those of more as pictures"
        )
    if layout is None:
        raise UserError(
            f"{header} is {size_text(shape) or 'one number'}; images are N x H x W, N x H x W x C or N x C x H x W, "
            f"with 1, 3 or 4 channels, or N x D, flat and square. Reshape it"
        )
    if layout == "NHW" and shape[2] in _ANY_CHANNELS and shape[1] > 4:
        raise UserError(
            f"{header} is {size_text(shape)}, which looks like one picture, height x width x channels; as "
            f"N x H x W x C it begins with the number of images"
        )
    side = math.isqrt(shape[1])
    shape_HWC = {
        "flat": (side, side, 1),
        "NHW": (*shape[1:], 1),
        "NHWC": shape[1:],
        "NCHW": (*shape[2:], *shape[1:2]),
    }[layout]
    height, width, channels = shape_HWC
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise UserError(f"{header} holds images of {height} x {width} pixels; a side can be 1 to {MAX_SIDE}")
    return height, width, channels


def _as_BHWC(rows: NDArray[Any]) -> NDArray[Any]:
    layout = _layout(rows.shape)
    if layout == "flat":
        side = math.isqrt(rows.shape[1])
        return rows.reshape(-1, side, side, 1)
    if layout == "NHW":
        return rows[..., np.newaxis]
    return rows if layout == "NHWC" else rows.transpose(0, 2, 3, 1)


def _blocks(headers: Sequence[ArrayHeader], scale: Scale, data: Data) -> Iterator[NDArray[np.uint8]]:
    if data.scale or any(header.dtype != np.uint8 for header in headers):
        for header in headers:  # so that a message knows the range of the whole set
            for _ in _scaled(header, scale.observe):
                pass
    for header in headers:
        yield from _scaled(header, lambda rows: arrange_block(scale.to_bytes(_as_BHWC(rows)), data))
    try:
        scale.finish()
    except PixelFault as fault:
        raise UserError(f"{headers[0]} {fault}") from None


def _scaled(header: ArrayHeader, apply: Callable[[NDArray[Any]], _T]) -> Iterator[_T]:
    """What a function makes of each block of an array; its faults are told with the array and the image."""
    start = 0
    for rows in _rows(header):
        try:
            yield apply(rows)
        except PixelFault as fault:
            raise UserError(f"{header}: image {start + fault.index} {fault}") from None
        start += len(rows)


# ------------------------------------------------------------------------------------------------------------- labels


def _labels(images: Mapping[int, ArrayHeader], labels: Mapping[int, ArrayHeader]) -> "pa.Array":
    """Labels of all images, null in parts that have none."""
    import pyarrow as pa

    arrays = [
        _label_array(labels[part], header) if part in labels else pa.nulls(header.shape[0])
        for part, header in images.items()
    ]
    return concatenated(arrays, str(next(iter(labels.values()))))


def _label_array(header: ArrayHeader, images: ArrayHeader) -> "pa.Array":
    import pyarrow as pa

    shape, dtype = header.shape, header.dtype
    if len(shape) == 2 and shape[1] > 1:
        advice = f"for labels spread over {shape[1]} columns (one-hot) store their argmax(1)"
        raise UserError(f"{header} is {size_text(shape)}; labels are one value for each image: {advice}. {NO_LABELS}")
    if shape not in ((images.shape[0],), (images.shape[0], 1)):
        raise UserError(
            f"{images} holds {images.shape[0]} images and {header} is {size_text(shape) or 'one value'}: labels "
            f"are one value for each image. {NO_LABELS}"
        )
    values = np.concatenate([rows.reshape(-1) for rows in _rows(header)])
    if dtype.kind == "S":
        values = np.array([_decoded(value, row, header) for row, value in enumerate(values.tolist())])
    if values.dtype.kind in "uif":
        values = values.astype(np.float32 if dtype == np.float16 else dtype.newbyteorder("="))
    try:
        return pa.array(values.tolist() if values.dtype.kind == "U" else values)
    except (pa.ArrowException, TypeError) as error:
        raise UserError(
            f"{header} holds values of type {dtype}, which cannot be labels ({error}). {NO_LABELS}"
        ) from None


def _decoded(value: bytes, row: int, header: ArrayHeader) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise UserError(f"{header}: label {row} is {value!r}, which is not UTF-8; store the labels as text") from None


# -------------------------------------------------------------------------------------------------------------- files


def _headers(file: Path) -> list[ArrayHeader]:
    """Every array of a file. Raises UserError where it is none of NumPy's, is damaged, or holds Python objects."""
    with readable(file, *_DAMAGED):
        with file.open("rb") as content:
            start = content.read(_START)
        if not start:
            raise UserError(f"{file} is empty; {AGAIN}")
        if start.startswith(b"\x93NUMPY"):
            with file.open("rb") as stream:
                return [_header(stream, file, None)]
        if not zipfile.is_zipfile(file):
            kind = format_of(start)
            actual = "is an archive that is cut short" if start.startswith(b"PK") else "is none of NumPy's files"
            but = f", but {kind}" if kind and not start.startswith(b"PK") else f"; {AGAIN}"
            raise UserError(f"{file} {actual}{but}")
        headers = []
        with zipfile.ZipFile(file) as archive:
            for member in sorted(name for name in archive.namelist() if name.lower().endswith(".npy")):
                with archive.open(member) as stream:
                    headers.append(_header(stream, file, member))
        if not headers:
            raise UserError(f"{file} is an archive without arrays; store them with np.savez")
        return headers


def _header(stream: IO[bytes], file: Path, member: str | None) -> ArrayHeader:
    name = member.removesuffix(".npy") if member else file.stem
    location = f"{file}: array {name}" if member else str(file)
    version = np.lib.format.read_magic(stream)
    if version not in _HEADER_READERS:
        raise UserError(
            f"{location} has version {version[0]}.{version[1]} of the format, which only structured arrays need"
        )
    shape, fortran, dtype = _HEADER_READERS[version](stream)
    if dtype.hasobject:
        raise UserError(
            f"{location} holds Python objects, which are never unpickled, as that can run any code; store numbers, for "
            f"images of one shape np.stack(images)"
        )
    return ArrayHeader(name, file, member, shape, fortran, dtype)


def _rows(header: ArrayHeader) -> Iterator[NDArray[Any]]:
    """An array block by block along its first axis."""
    row_bytes = math.prod(header.shape[1:]) * header.dtype.itemsize
    block_rows = max(1, BLOCK_BYTES // max(1, row_bytes))
    with readable(header, *_DAMAGED):
        if header.fortran and len(header.shape) > 1:  # the first axis varies fastest: rows lie scattered over the file
            whole = np.load(header.file, mmap_mode="r")
            array = whole if header.member is None else whole[header.member.removesuffix(".npy")]
            for start in range(0, header.shape[0], block_rows):
                yield np.ascontiguousarray(array[start : start + block_rows])
            return
        with _opened(header) as stream:
            for start in range(0, header.shape[0], block_rows):
                rows = min(block_rows, header.shape[0] - start)
                content = stream.read(rows * row_bytes)
                if len(content) < rows * row_bytes:
                    whole_rows = start + len(content) // row_bytes
                    whole_text = f"after {whole_rows} of its {header.shape[0]} rows"
                    raise UserError(f"{header} is cut short, {whole_text}; {AGAIN}")
                yield np.frombuffer(content, header.dtype).reshape(rows, *header.shape[1:])


@contextmanager
def _opened(header: ArrayHeader) -> Iterator[IO[bytes]]:
    """The file or member of an array, behind its header."""
    with ExitStack() as stack:
        stream: IO[bytes]
        if header.member is None:
            stream = stack.enter_context(header.file.open("rb"))
        else:
            stream = stack.enter_context(stack.enter_context(zipfile.ZipFile(header.file)).open(header.member))
        _HEADER_READERS[np.lib.format.read_magic(stream)](stream)
        yield stream
