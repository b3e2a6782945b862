"""Images and labels in Parquet files, read batch by batch; errors name file, column and row.

`B` images of a batch, `C` channels, `H` height, `W` width.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from aae_ray import settings
from aae_ray.datasets.arrow_images import (
    WHAT,
    Kind,
    is_list,
    is_number,
    kind_of,
    of_one_shape,
    read_images,
)
from aae_ray.datasets.classes import NO_LABELS, concatenated, is_label, is_text, label_family
from aae_ray.datasets.image_stream import TO_BE_DRAWN, ImageStream, Origin, Parts, SeenRange
from aae_ray.datasets.parts import WORDS, part_of_word, parts_of_files
from aae_ray.errors import UserError, did_you_mean

LABEL_COLUMN, SPLIT_COLUMN = "label", "split"  # are read without being named
NONE = "none"  # in place of a column's name: none is read
LEAST_PIXELS = 4  # in columns of their own
_PIXEL_NAMES = ("pixel", "pixels", "px", "pix")  # before their numbers; numbers alone are pixels, too
MOST_COLUMNS = 8  # named in a message
_BATCH_ROWS = 64  # colour images of 256 x 256 as lists of doubles take 100 MB
_MAGIC = b"PAR1"  # at both ends of a file
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_OTHER_FORMATS = {
    b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"\x1f\x8b": "packed with gzip",
    b"PK\x03\x04": "a ZIP archive", b"ARROW1": "an Arrow file (Feather)", b"\x93NUMPY": "a NumPy array",
    b"<!DOC": "a web page", b"<html": "a web page", b"version https://git-lfs": "a pointer of Git LFS to the file",
}  # fmt: skip


@dataclass(frozen=True)
class _Shard:
    """A file, its columns, how many rows it has, and what its folders say (`label=cat`) in place of a column."""

    file: Path
    fields: Mapping[str, Any]
    twice: tuple[str, ...]  # names that several columns have
    rows: int
    hive: Mapping[str, str | None]

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.fields, *(key for key in self.hive if key not in self.fields))


@dataclass(frozen=True)
class _ImageColumns:
    """What is read as images: a column, or a column for each pixel."""

    name: str
    columns: tuple[str, ...]
    sides: tuple[int, ...] = ()  # of a column for each pixel: height and width, or how many there are

    @property
    def per_pixel(self) -> bool:
        return bool(self.sides)

    @property
    def is_plain(self) -> bool:
        """Whether the names of the columns say that they are pixels."""
        return len(self.sides) > 1 or self.name.lower() in _PIXEL_NAMES


def read_parquet(root: Path, files: Sequence[Path], data: settings.Data) -> ImageStream:
    """The images of Parquet files below a folder, in the order given; or of one file, which is `root` itself.

    Images are pictures as bytes (also in Hugging Face's struct of bytes and path), lists or tensors of pixels (H x W,
    C x H x W or H x W x C with 1 or 3 channels, or flat and square), or a column for each pixel (`pixel0`, `pixel1`,
    ...). The image column is found by its type when it is not named; the label column is `label` when that is there.
    Parts are those of a column `split`, else those that files and folders are named by. Files may differ in the widths
    of their numbers, and some may be empty.

    Schemas, labels and parts are read here, images while the blocks are. Raises UserError by file, column and row.
    """
    shards = [_shard(root, file) for file in files]
    filled = [shard for shard in shards if shard.rows]
    if not filled:
        raise UserError(f"{root} holds no images: it has no rows")
    first = filled[0]
    label_column = _label_column(first, data.label_column)
    split_column = _split_column(filled, data.split_column)
    images = _image_columns(first, data.image_column, {label_column, split_column} - {None})
    for shard in filled:
        _check_images(shard, images, first)
        for column in (label_column, split_column):
            if column:
                _check_same(shard, column, first, _label_family)

    starts = np.cumsum([0, *(shard.rows for shard in filled)])
    seen = SeenRange()

    def blocks() -> Iterator[NDArray[np.uint8]]:
        shape_CHW: tuple[int, ...] | None = None
        for shard in filled:
            for row, batch in _batches(shard, images.columns):
                images_BCHW = _images(shard, images, batch, row, shape_CHW, seen)
                yield images_BCHW
                shape_CHW = images_BCHW.shape[1:]

    def place(column: str | None) -> Callable[[int | None], str]:
        def row_of(image: int | None) -> str:
            if image is None:
                return f"{root}: column {column}"
            index = int(np.searchsorted(starts, image, side="right")) - 1
            return f"{filled[index].file}: row {image - starts[index]} of column {column}"

        return row_of

    labels = None if label_column is None else _values(filled, label_column)
    parts, given_by = _parts(root, filled, split_column, place(split_column))
    used = (images.name, *(column for column in (label_column, split_column) if column))
    taken = {*images.columns, *used}
    unused = tuple(column for column in first.columns if column not in taken)
    return ImageStream(
        int(starts[-1]),
        blocks(),
        labels,
        Origin("Parquet", len(files), used, unused, given_by),
        parts,
        lambda: seen.ends,
        place(label_column),
        None if label_column is None else _label_names(first, label_column),
    )


# ---------------------------------------------------------------------------------------------------------- files


@contextmanager
def _readable(file: Path, columns: Sequence[str] = ()) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        of_columns = f" (column {' or '.join(columns)})" if 0 < len(columns) < MOST_COLUMNS else ""
        # Arrow writes nulls among lists of a fixed size, and fails to read them.
        hint = "; a row may be null" if "lists to be of size" in str(error) else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UserError(f"{file} cannot be read as Parquet{of_columns}: {reason}{hint}") from None


def _shard(root: Path, file: Path) -> _Shard:
    import pyarrow.parquet as pq

    with _readable(file):
        _check_ends(file)
        with pq.ParquetFile(file) as parquet:
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    twice = tuple(dict.fromkeys(name for name in schema.names if schema.names.count(name) > 1))
    fields = {field.name: field for field in schema}
    return _Shard(file, fields, twice, rows, {} if file == root else _hive(file.relative_to(root)))


def _check_ends(file: Path) -> None:
    """Whether a file begins and ends as a Parquet file does; of another format it is said which."""
    with file.open("rb") as stream:
        head = stream.read(32)
        if not head:
            raise UserError(f"{file} is empty; write or fetch it again, or take it out of the folder")
        size = file.stat().st_size
        stream.seek(max(0, size - len(_MAGIC)))
        tail = stream.read()
    if not head.startswith(_MAGIC):
        what = next((name for magic, name in _OTHER_FORMATS.items() if head.startswith(magic)), None)
        raise UserError(f"{file} is not a Parquet file: it {f'is {what}' if what else f'begins with {head[:4]!r}'}")
    if tail != _MAGIC:
        raise UserError(f"{file} is cut: its end is missing after {size:,} bytes; write or fetch it again")


def _hive(relative: Path) -> dict[str, str | None]:
    """What folders named `key=value` say, as Hive, Spark, DuckDB and pandas write partitions."""
    pairs = (folder.partition("=") for folder in relative.parts[:-1] if "=" in folder)
    return {unquote(key): None if value == _HIVE_NULL else unquote(value) for key, _, value in pairs}


def _batches(shard: _Shard, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Batches of rows, each with the number of its first row."""
    import pyarrow.parquet as pq

    # Without a buffer size the whole column of a row group, often of a whole file, is read at once.
    options = {"buffer_size": 1 << 20, "pre_buffer": False}
    row = 0
    with _readable(shard.file, columns), pq.ParquetFile(shard.file, **options) as parquet:
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(columns)):
            if batch.num_rows:
                yield row, batch
                row += batch.num_rows


def _values(shards: Sequence[_Shard], column: str) -> Any:
    """A column of all files, in the order of the images, as an array of one type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = []
    for shard in shards:
        if column in shard.fields:
            with _readable(shard.file, [column]), pq.ParquetFile(shard.file) as parquet:
                values.append(parquet.read([column]).column(0))
        else:
            values.append(pa.array([shard.hive[column]] * shard.rows, pa.string()))
    return concatenated(values, f"{shards[-1].file}: column {column}")


# -------------------------------------------------------------------------------------------------------- columns


def _image_columns(first: _Shard, named: str | None, taken: set[str | None]) -> _ImageColumns:
    able = [name for name, field in first.fields.items() if name not in taken and kind_of(field) is not None]
    pixels = [] if able and not named else _columns_of_pixels(first, taken)
    if named:
        group = next((group for group in pixels if group.name == named), None)
        if group and named not in first.fields:
            return group
        _check_column(first, "data.image_column", named)
        if named not in able:
            held = first.fields[named].type if named in first.fields else "the name of a folder"
            raise UserError(f"{first.file}: column {named} holds {held}{_hint(first, named)}; images are {WHAT}")
        return _ImageColumns(named, (named,))
    candidates = [_ImageColumns(name, (name,)) for name in able]
    candidates = candidates or [group for group in pixels if group.is_plain]
    if not candidates:
        known = [f"{name} ({field.type}){_hint(first, name)}" for name, field in first.fields.items()]
        raise UserError(f"{first.file} has no column of images ({WHAT}); its columns are {_some(known)}")
    if len(candidates) > 1:
        names = ", ".join(group.name for group in candidates)
        raise UserError(f"{first.file} has several columns of images, {names}; choose one with data.image_column")
    return candidates[0]


def _columns_of_pixels(shard: _Shard, taken: set[str | None]) -> list[_ImageColumns]:
    """Columns of numbers that are counted through, in squares: `pixel0` to `pixel783`, `1` to `784`, `1x1` to `28x28`.

    Other names, such as `f0` to `f63`, are taken as pixels where data.image_column names them.
    """
    groups: dict[str, dict[tuple[int, ...], str]] = {}
    for name, field in shard.fields.items():
        found = re.fullmatch(r"(.*?)(\d+)(?:x(\d+))?", name)
        if found and name not in taken and is_number(field.type):
            index = tuple(int(number) for number in found.groups()[1:] if number is not None)
            groups.setdefault(found.group(1), {})[index] = name
    columns = []
    for prefix, by_index in groups.items():
        indices = sorted(by_index)
        low, high = indices[0], indices[-1]
        sides = tuple(last - begin + 1 for begin, last in zip(low, high, strict=False))
        whole = len({len(index) for index in indices}) == 1 and len(indices) == int(np.prod(sides)) and max(low) <= 1
        square = len(sides) > 1 or math.isqrt(sides[0]) ** 2 == sides[0]
        if whole and square and len(indices) >= LEAST_PIXELS:
            name = prefix.rstrip("_-. ") or _PIXEL_NAMES[0]
            columns.append(_ImageColumns(name, tuple(by_index[index] for index in indices), sides))
    return columns


def _hint(shard: _Shard, column: str) -> str:
    """What a column of text looks like, where somebody may have taken it for images."""
    import pyarrow.parquet as pq

    if column not in shard.fields or not is_text(shard.fields[column].type):
        return ""
    with _readable(shard.file, [column]), pq.ParquetFile(shard.file) as parquet:
        batch = next(parquet.iter_batches(1, columns=[column]), None)
    value = None if batch is None or not batch.num_rows else batch.column(0)[0].as_py()
    if not isinstance(value, str):
        return ""
    if re.search(r"\.(png|jpe?g|webp|gif|tiff?|bmp)$", value, re.IGNORECASE):
        return ", paths of pictures such as " + value[-40:] + ", which must be in the file themselves"
    if re.fullmatch(r"(?:[A-Za-z0-9+/]{4}){10,}[A-Za-z0-9+/=]*", value[:400].strip()):
        return ", base64 by its look, which must be decoded to bytes"
    return ""


def _label_column(first: _Shard, named: str | None) -> str | None:
    column = _column(first, "data.label_column", named, LABEL_COLUMN)
    if column is not None and column in first.fields and not is_label(kind := first.fields[column].type):
        one_hot = ", like one-hot codes" if is_list(kind) else ""
        raise UserError(
            f"{first.file}: column {column} holds {kind}{one_hot}; labels are one whole number, text, date or "
            f"true or false for each image; {NO_LABELS}"
        )
    return column


def _split_column(shards: Sequence[_Shard], named: str | None) -> str | None:
    """The column that says to which part an image belongs: the one that is named, or `split` where it says so."""
    first = shards[0]
    column = _column(first, "data.split_column", named, SPLIT_COLUMN)
    if column is None or named:
        return column
    texts = column not in first.fields or is_label(first.fields[column].type)
    if not texts or not all(column in shard.columns for shard in shards):
        return None
    values = {str(value) for value in _values(shards, column).unique().to_pylist() if value is not None}
    return column if any(part_of_word(value) is not None for value in values) else None


def _column(first: _Shard, key: str, named: str | None, usual: str) -> str | None:
    if named == NONE:
        if NONE in first.columns:
            raise UserError(f"{key}: {NONE} stands for no column, and {first.file} has one of that name; rename it")
        return None
    if named:
        _check_column(first, key, named)
    return named or (usual if usual in first.columns else None)


def _check_column(shard: _Shard, key: str, named: str) -> None:
    if named not in shard.columns:
        raise UserError(
            f"{key}: {shard.file} has no column {named}, but {_some(shard.columns)}."
            f"{did_you_mean(named, shard.columns)}"
        )


def _check_images(shard: _Shard, images: _ImageColumns, first: _Shard) -> None:
    for column in images.columns:
        _check_same(shard, column, first, _image_family)


def _image_family(field: Any) -> str | None:
    if is_number(field.type):
        return "a number"
    kind = kind_of(field)
    return None if kind is None else kind.family


def _label_family(field: Any) -> str | None:
    return label_family(field.type)


def _check_same(shard: _Shard, column: str, first: _Shard, family: Callable[[Any], str | None]) -> None:
    """Raises UserError where a file has not that column, has it twice, or holds other things in it than the first."""
    if column in shard.twice:
        raise UserError(f"{shard.file} has several columns of the name {column}; give each a name of its own")
    if column not in shard.columns:
        held = first.fields[column].type if column in first.fields else "the name of a folder"
        raise UserError(f"{shard.file}: column {column} is missing; in {first.file} it holds {held}")
    if column not in shard.fields or column not in first.fields:
        return
    mine, other = (family(each.fields[column]) for each in (shard, first))
    if mine != other and "nothing" not in (mine, other):
        kinds = [each.fields[column].type for each in (shard, first)]
        raise UserError(f"{shard.file}: column {column} holds {kinds[0]}; in {first.file} it holds {kinds[1]}")


def _label_names(first: _Shard, column: str) -> tuple[str, ...] | None:
    """The names of a Hugging Face ClassLabel, which stand in the file's metadata."""
    import pyarrow.parquet as pq

    metadata = pq.read_schema(first.file).metadata or {}
    try:
        names = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _some(names: Sequence[str]) -> str:
    """Names of columns, of which there may be hundreds."""
    more = f", ... ({len(names)} in all)" if len(names) > MOST_COLUMNS else ""
    return ", ".join(names[:MOST_COLUMNS]) + more if names else "none"


# ---------------------------------------------------------------------------------------------- images and parts


def _images(
    shard: _Shard, images: _ImageColumns, batch: Any, row: int, shape_CHW: tuple[int, ...] | None, seen: SeenRange
) -> NDArray[np.uint8]:
    """A batch of rows as images_BCHW; `shape_CHW` is that of the images before, if there were any."""

    def fault(offset: int, message: str) -> UserError:
        return UserError(f"{shard.file}: row {row + offset} of column {images.name} {message}")

    if not images.per_pixel:
        kind = kind_of(shard.fields[images.name])
        assert kind is not None
        return of_one_shape(read_images(batch.column(0), kind, fault, seen), shape_CHW, fault)
    import pyarrow as pa

    for name in images.columns:
        if (nulls := batch.column(name).null_count) and nulls:
            empty = np.asarray(batch.column(name).is_null().to_numpy(zero_copy_only=False))
            text = f"row {row + int(np.argmax(empty))} of column {name} is null; every pixel must have a value"
            raise UserError(f"{shard.file}: {text}")
    pixels_BD = np.stack([batch.column(name).to_numpy(zero_copy_only=False) for name in images.columns], 1)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(pixels_BD.reshape(-1)), pixels_BD.shape[1])
    shape = images.sides if len(images.sides) > 1 else ()
    family = kind_of(pa.field(images.name, lists.type))
    assert family is not None
    return of_one_shape(read_images(lists, Kind(family.family, shape), fault, seen), shape_CHW, fault)


def _parts(
    root: Path, shards: Sequence[_Shard], column: str | None, place: Callable[[int | None], str]
) -> tuple[Parts | None, str]:
    """The part of each image where the source gives it, and by what."""
    if column is not None:
        values = [None if value is None else str(value) for value in _values(shards, column).to_pylist()]
        parts = {value: TO_BE_DRAWN if value is None else part_of_word(value) for value in set(values)}
        for image, value in enumerate(values):
            if parts[value] is None:
                raise UserError(
                    f"{place(image)} is {value}, which names no part ({', '.join(WORDS)}); "
                    f"data.split_column={NONE} reads the images without parts"
                )
        return np.array([parts[value] for value in values], np.int8), f"column {column}"
    by_file = parts_of_files(root, [shard.file for shard in shards])
    if by_file is None:
        return None, ""
    return np.repeat(np.array(by_file, np.int8), [shard.rows for shard in shards]), "names of files and folders"
