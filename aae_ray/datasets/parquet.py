"""Images and labels in Parquet files, read batch by batch; errors name file, column and row.

`B` images of a batch, `C` channels, `H` height, `W` width.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aae_ray.datasets.classes import NO_LABELS, is_label
from aae_ray.datasets.image_stream import ImageStream, Origin, size_text
from aae_ray.errors import UserError, did_you_mean

CHANNELS = (1, 3)  # grey and colour: what can be shown
LABEL_COLUMN = "label"  # is read without being named
NONE = "none"  # in place of a column's name: it is not read
_BATCH_ROWS = 64  # colour images of 256 x 256 as lists of doubles take 100 MB


@dataclass(frozen=True)
class _Rows:
    """Where a batch stands, for messages: its file, its column and the number of its first row, from 0."""

    file: Path
    column: str
    first: int

    def fault(self, offset: int, message: str) -> UserError:
        return UserError(f"{self.file}: row {self.first + offset} of column {self.column} {message}")


def read_parquet(files: Sequence[Path], image_column: str | None, label_column: str | None) -> ImageStream:
    """The images of Parquet files of one schema, in the order given.

    Images are PNG or JPEG bytes (also in Hugging Face's struct of bytes and path), or lists of pixels: H x W,
    C x H x W with 1 or 3 channels, or flat and square. Whole pixel values are 0 to 255; fractions in [0, 1] become
    0 to 255. The image column is found by its type when it is not named; the label column is `label` when that is
    there.
    Schemas and labels are checked here, images while the blocks are read. Raises UserError by file, column and row.
    """
    headers = {file: _header(file) for file in files}
    first, _ = headers[files[0]]
    label_column = _label_column(files[0], first, label_column)
    image_column = _image_column(files[0], first, image_column, label_column)
    wanted = [column for column in (image_column, label_column) if column]
    for file, (schema, _) in headers.items():
        for column in wanted:
            if schema.get(column) != first[column]:
                actual = f"holds {schema[column]}" if column in schema else "is missing"
                raise UserError(f"{file}: column {column} {actual}; in {files[0]} it holds {first[column]}")
    count = sum(rows for _, rows in headers.values())
    if count == 0:
        raise UserError(f"{files[0] if len(files) == 1 else files[0].parent} holds no images: it has no rows")

    def blocks() -> Iterator[NDArray[np.uint8]]:
        shape_CHW: tuple[int, ...] | None = None
        for file in files:
            row = 0
            for batch in _batches(file, [image_column]):
                images_BCHW = _images(batch.column(image_column), _Rows(file, image_column, row), shape_CHW)
                yield images_BCHW
                shape_CHW = images_BCHW.shape[1:]
                row += len(images_BCHW)

    ends = np.cumsum([rows for _, rows in headers.values()])

    def label_place(image: int | None) -> str:
        if image is None:
            return f"{files[0] if len(files) == 1 else files[0].parent}: column {label_column}"
        index = int(np.searchsorted(ends, image, side="right"))
        row = image - (int(ends[index - 1]) if index else 0)
        return f"{files[index]}: row {row} of column {label_column}"

    labels = _read_labels(files, label_column) if label_column else None
    unused = tuple(column for column in first if column not in wanted)
    origin = Origin("Parquet", len(files), tuple(wanted), unused)
    return ImageStream(count, blocks(), labels, origin, label_place=label_place)


def _read_labels(files: Sequence[Path], column: str) -> Any:
    """The labels of all files, in the order of the images, as an array of one type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for file in files:
        with _readable(file, [column]), pq.ParquetFile(file) as parquet:
            labels = parquet.read([column]).column(0)
        if pa.types.is_dictionary(labels.type):  # of each row group its own
            labels = labels.cast(labels.type.value_type)
        tables.append(pa.table({column: labels}))
    return pa.concat_tables(tables, promote_options="permissive").column(0).combine_chunks()


@contextmanager
def _readable(file: Path, columns: Sequence[str] = ()) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        of_columns = f" (column {' or '.join(columns)})" if columns else ""
        # Arrow writes nulls among lists of a fixed size, and fails to read them.
        hint = "; a row may be null" if "lists to be of size" in str(error) else ""
        raise UserError(f"{file} cannot be read as Parquet{of_columns}: {error}{hint}") from None


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The types of the columns by name, and the number of rows."""
    import pyarrow.parquet as pq

    with _readable(file):
        if file.stat().st_size == 0:
            raise UserError(f"{file} is empty")
        with pq.ParquetFile(file) as parquet:
            return {field.name: field.type for field in parquet.schema_arrow}, parquet.metadata.num_rows


def _batches(file: Path, columns: list[str]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    # Without a buffer size the whole column of a row group, often of a whole file, is read at once.
    options = {"buffer_size": 1 << 20, "pre_buffer": False}
    with _readable(file, columns), pq.ParquetFile(file, **options) as parquet:
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
            if batch.num_rows:
                yield batch


def _image_column(file: Path, schema: Mapping[str, Any], named: str | None, label_column: str | None) -> str:
    what = "PNG or JPEG bytes, or lists of pixel values"
    able = [
        column
        for column, kind in schema.items()
        if column != label_column and (_holds_bytes(kind) or _holds_pixels(kind))
    ]
    if named:
        _check_column(file, schema, "data.image_column", named)
        if named not in able:
            raise UserError(f"{file}: column {named} holds {schema[named]}; images are {what}")
        return named
    if not able:
        columns = ", ".join(f"{column} ({kind})" for column, kind in schema.items()) or "none"
        raise UserError(f"{file} has no column of images ({what}); its columns are {columns}")
    if len(able) > 1:
        raise UserError(f"{file} has several columns of images, {', '.join(able)}; choose one with data.image_column")
    return able[0]


def _label_column(file: Path, schema: Mapping[str, Any], named: str | None) -> str | None:
    if named == NONE:
        if NONE in schema:
            raise UserError(
                f"data.label_column: {NONE} stands for no labels, and {file} has a column of that name; rename it"
            )
        return None
    if named:
        _check_column(file, schema, "data.label_column", named)
    column = named or (LABEL_COLUMN if LABEL_COLUMN in schema else None)
    if column and not is_label(schema[column]):
        one_hot = ", like one-hot codes" if _is_list(schema[column]) else ""
        raise UserError(
            f"{file}: column {column} holds {schema[column]}{one_hot}; labels are one whole number, text, date or "
            f"true or false for each image; {NO_LABELS}"
        )
    return column


def _check_column(file: Path, schema: Mapping[str, Any], key: str, named: str) -> None:
    if named not in schema:
        columns = ", ".join(schema)
        raise UserError(f"{key}: {file} has no column {named}, but {columns}.{did_you_mean(named, schema)}")


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _holds_pixels(kind: Any) -> bool:
    depth = 0
    while _is_list(kind):
        kind, depth = kind.value_type, depth + 1
    return 1 <= depth <= 3 and _is_number(kind)


def _nulls(values: Any) -> NDArray[np.bool_]:
    return np.asarray(values.is_null().to_numpy(zero_copy_only=False))


def _images(column: Any, rows: _Rows, shape_CHW: tuple[int, ...] | None) -> NDArray[np.uint8]:
    """A batch of rows as images_BCHW; `shape_CHW` is that of the images before, if there were any."""
    missing = _nulls(column)
    if missing.any():
        raise rows.fault(int(np.argmax(missing)), "is null; every row must hold an image")
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
    if _holds_bytes(column.type):
        images = [_decoded(value, rows, offset) for offset, value in enumerate(column.to_pylist())]
    else:
        images = _as_bytes(_with_channels(_nested_pixels(column, rows), rows), rows)
    expected = shape_CHW or images[0].shape
    for offset, image_CHW in enumerate(images):
        if image_CHW.shape != expected:
            raise rows.fault(
                offset,
                f"is {size_text(image_CHW.shape)} (channels x height x width) and those before it are "
                f"{size_text(expected)}; all images must have the same shape",
            )
    return np.asarray(images)


def _decoded(value: Any, rows: _Rows, offset: int) -> NDArray[np.uint8]:
    """A PNG or JPEG as image_CHW: one channel where it is grey, else three; transparency is dropped."""
    from PIL import Image, UnidentifiedImageError

    content = value["bytes"] if isinstance(value, dict) else value
    if content is None:
        raise rows.fault(offset, "has no bytes, only a path; the images themselves must be in the file")
    try:
        image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
        image.load()
    except Exception as error:  # damaged bytes raise struct.error, SyntaxError, OSError, ...
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise rows.fault(offset, f"cannot be decoded as a PNG or JPEG image: {reason}") from None
    if image.mode.startswith("I"):
        raise rows.fault(offset, "has 16 bits per pixel; convert the images to 8 bits")
    image_HWC = np.atleast_3d(np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")))
    return image_HWC.transpose(2, 0, 1)


def _nested_pixels(column: Any, rows: _Rows) -> NDArray[Any]:
    """Lists of equal lengths as one array, with a dimension for each level of nesting."""
    import pyarrow.compute as pc

    values, shape = column, [len(column)]

    def check(good: NDArray[np.bool_], message: str) -> None:
        if not good.all():
            raise rows.fault(int(np.argmin(good)) // math.prod(shape[1:]), message)

    while True:
        check(~_nulls(values), "holds a null; every pixel must have a value")
        if not _is_list(values.type):
            return np.asarray(values.to_numpy(zero_copy_only=False).reshape(shape))
        lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        check(lengths > 0, "holds an empty list; every row must hold an image")
        check(
            lengths == lengths[0],
            f"has lists of another length than those before it ({', '.join(map(str, np.unique(lengths)))}); "
            f"all images must have the same shape",
        )
        shape.append(int(lengths[0]))
        values = values.flatten()


def _with_channels(pixels: NDArray[Any], rows: _Rows) -> NDArray[Any]:
    """Pixels as nested in the file, with the batch in front, as pixels_BCHW."""
    shape = pixels.shape[1:]
    if len(shape) == 1:
        side = math.isqrt(shape[0])
        if side * side != shape[0]:
            raise rows.fault(0, f"is a flat list of {shape[0]} pixels, not a square; nest it as H x W")
        return pixels.reshape(-1, 1, side, side)
    if len(shape) == 2:
        return pixels[:, np.newaxis]
    if shape[2] <= 4 < shape[0]:
        raise rows.fault(0, f"is {size_text(shape)}, which looks like H x W x C; nest the lists as C x H x W")
    if shape[0] not in CHANNELS:
        raise rows.fault(0, f"is {size_text(shape)} (channels x height x width); images have 1 channel or 3")
    return pixels


def _as_bytes(pixels_BCHW: NDArray[Any], rows: _Rows) -> NDArray[np.uint8]:
    whole = np.issubdtype(pixels_BCHW.dtype, np.integer)
    good = (pixels_BCHW >= 0) & (pixels_BCHW <= (255 if whole else 1))  # false for NaN
    if not good.all():
        offset = int(np.argmin(good.reshape(len(good), -1).all(axis=1)))
        right = "whole pixel values are 0 to 255" if whole else "pixel values with a fraction are in [0, 1]"
        raise rows.fault(offset, f"has a pixel of {pixels_BCHW[~good][0]}; {right}")
    return pixels_BCHW.astype(np.uint8) if whole else np.rint(pixels_BCHW * 255).astype(np.uint8)
