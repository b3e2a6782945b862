"""Which columns of tables are images or numbers, labels and parts, and how they are read: of CSV, Parquet, saved Arrow.

A set is a sequence of tables with the same columns. `B` images or rows of a batch, `C` channels, `H` height, `W` width,
`D` columns of numbers.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aae_ray import settings
from aae_ray.datasets.arrow_images import WHAT, Batch, Kind, is_identifier, is_list, is_number, kind_of, read_images
from aae_ray.datasets.classes import NO_LABELS, concatenated, is_label, is_text, label_family
from aae_ray.datasets.image_stream import TEST, TO_BE_DRAWN, ImageStream, Origin, Parts
from aae_ray.datasets.number_columns import INDEX, check_slips, number_columns, numbers_of
from aae_ray.datasets.parts import WORDS, part_of_word, where_they_differ
from aae_ray.datasets.pictures import Pictures
from aae_ray.datasets.rows import is_numeric
from aae_ray.datasets.shards import Shard, check_column, check_same, some
from aae_ray.errors import UserError

LABEL_COLUMN, SPLIT_COLUMN = "label", "split"  # are read without being named
NONE = "none"  # in place of a column's name: none is read
LEAST_PIXELS = 4  # in columns of their own
_PIXEL_NAMES = ("pixel", "pixels", "px", "pix")  # before their numbers; numbers alone are pixels, too
LEAST_DOUBTFUL = 64  # columns such as x0 to x63 that may be an image; fewer are numbers


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


def names_of_class_label(features: Any) -> dict[str, tuple[str, ...]]:
    """The names of the numbers in each column that is a ClassLabel, from the notes of Hugging Face's library."""
    notes = features.items() if isinstance(features, dict) else ()
    names = {column: note.get("names") for column, note in notes if isinstance(note, dict)}
    return {column: tuple(map(str, own)) for column, own in names.items() if isinstance(own, list)}


def read_shards(root: Path, shards: Sequence[Shard], data: settings.Data, form: str, parts_from: str) -> ImageStream:
    """The images or the rows of numbers of tables, in the order given, stored in a format `form`.

    Parts are those of a column `split`, or of the one that is named, else those of the shards, from what `parts_from`
    tells. Files may differ in the widths of their numbers, and some may be empty. Labels and parts are read here,
    images while the blocks are. Raises UserError by file, column and row.
    """
    filled = [shard for shard in shards if shard.rows]
    if not filled:
        raise UserError(f"{root} holds no images and no numbers: it has no rows")
    split_column = _split_column(filled, data.split_column)
    if split_column:  # then names of files say nothing of parts
        filled = [replace(shard, part=TO_BE_DRAWN) for shard in filled]
    label_column = _label_column(filled, data.label_column)
    first, taken = filled[0], {label_column, split_column} - {None}
    numbers = number_columns(filled, data, taken) if _holds_numbers(filled, data, taken) else None
    images = None if numbers else _image_columns(first, data.image_column, taken)
    for shard in filled:
        if images:
            _check_images(shard, images, first, data.image_column)
        if label_column and not _without_answers(shard, label_column):
            labelled = next(each for each in filled if not _without_answers(each, label_column))
            check_same(shard, label_column, labelled, _label_family)
        if split_column:
            check_same(shard, split_column, first, _label_family)

    starts = np.cumsum([0, *(shard.rows for shard in filled)])
    pictures = Pictures(data)

    def blocks() -> Iterator[NDArray[Any]]:
        if images:
            return read_images(lambda: _image_batches(filled, images), pictures, str(root))
        assert numbers is not None
        return (values_BD for _, _, values_BD in numbers_of(filled, numbers.columns))

    def location(column: str | None) -> Callable[[int | None], str]:
        def row_of(image: int | None) -> str:
            if image is None:
                return f"{root}: column {column}"
            index = int(np.searchsorted(starts, image, side="right")) - 1
            shard = filled[index]
            return f"{shard.file}: {shard.row_text(int(image - starts[index]))} of column {column}"

        return row_of

    labels = None if label_column is None else _values(filled, label_column)
    parts, given_by = _parts(filled, split_column, location(split_column), parts_from)
    read = (images.name,) if images else numbers.columns if numbers else ()
    used = (*read, *(column for column in (label_column, split_column) if column))
    known = {*used, *(images.columns if images else ())}
    unused = tuple(dict.fromkeys(name for shard in filled for name in shard.columns if name not in known))
    return ImageStream(
        int(starts[-1]),
        blocks(),
        labels,
        Origin(form, len(shards), used, unused, given_by),
        parts,
        lambda: pictures.scale.seen,
        location(label_column),
        None if label_column is None else _label_names(filled, label_column),
        pictures.remarks if numbers is None else lambda: numbers.remarks,
        None if numbers is None else numbers.columns,
    )


# -------------------------------------------------------------------------------------------------------- columns


def _image_columns(first: Shard, named: str | None, taken: set[str | None]) -> _ImageColumns:
    able = [name for name, field in first.fields.items() if name not in taken and kind_of(field) is not None]
    likely = [name for name in able if not is_identifier(first.fields[name])]
    pixels = [] if likely and not named else _columns_of_pixels(first, taken)
    if named:
        group = next((group for group in pixels if group.name == named), None)
        if group and named not in first.fields:
            return group
        check_column(first, "data.image_column", named)
        if named not in able:
            held = first.fields[named].type if named in first.fields else "the name of a folder"
            raise UserError(f"{first.file}: column {named} holds {held}{_hint(first, named)}; images are {WHAT}")
        return _ImageColumns(named, (named,))
    candidates = [_ImageColumns(name, (name,)) for name in likely]
    candidates = candidates or [group for group in pixels if group.is_plain]
    if not candidates:
        hints = {name: _hint(first, name) for name in first.fields}
        known = [f"{name} ({field.type}){hints[name]}" for name, field in first.fields.items()]
        numeric = [name for name, field in first.fields.items() if name not in taken and is_numeric(field.type)]
        advice = f"; data.kind=rows reads the numbers in {some(numeric)} as rows" if numeric else ""
        if not numeric and not any(hints.values()):
            advice = "; see that this is the right file"
        raise UserError(f"{first.file} has no column of images ({WHAT}); its columns are {some(known)}{advice}")
    if len(candidates) > 1:
        names = ", ".join(group.name for group in candidates)
        raise UserError(f"{first.file} has several columns of images, {names}; choose one with data.image_column")
    return candidates[0]


def _columns_of_pixels(shard: Shard, taken: set[str | None]) -> list[_ImageColumns]:
    """Columns of numbers that are counted through, in squares: `pixel0` to `pixel783`, `1` to `784`, `1x1` to `28x28`.

    Other names, such as `f0` to `f63`, are taken as pixels where data.image_column names them.
    """
    columns = []
    for prefix, by_index in _counted_columns(shard, taken).items():
        indices = sorted(by_index)
        low, high = indices[0], indices[-1]
        sides = tuple(last - begin + 1 for begin, last in zip(low, high, strict=False))
        whole = len({len(index) for index in indices}) == 1 and len(indices) == int(np.prod(sides)) and max(low) <= 1
        square = len(sides) > 1 or math.isqrt(sides[0]) ** 2 == sides[0]
        if whole and square and len(indices) >= LEAST_PIXELS:
            name = prefix.rstrip("_-. ") or _PIXEL_NAMES[0]
            columns.append(_ImageColumns(name, tuple(by_index[index] for index in indices), sides))
    return columns


def _counted_columns(shard: Shard, taken: Collection[str | None] = ()) -> dict[str, dict[tuple[int, ...], str]]:
    """Columns of numbers by what stands before the number in their name, and by that number."""
    groups: dict[str, dict[tuple[int, ...], str]] = {}
    for name, field in shard.fields.items():
        match = re.fullmatch(r"(.*?)(\d+)(?:x(\d+))?", name)
        if match and name not in taken and is_number(field.type):
            index = tuple(int(number) for number in match.groups()[1:] if number is not None)
            groups.setdefault(match.group(1), {})[index] = name
    return groups


def _hint(shard: Shard, column: str) -> str:
    """What a column of text looks like, where somebody may have taken it for images."""
    if column not in shard.fields or not is_text(shard.fields[column].type):
        return ""
    _, batch = next(shard.batches([column]))
    value = batch.column(0)[0].as_py()
    if not isinstance(value, str):
        return ""
    if re.search(r"\.(png|jpe?g|webp|gif|tiff?|bmp)$", value, re.IGNORECASE):
        return ", paths of pictures such as " + value[-40:] + ", which must be in the file themselves"
    if re.fullmatch(r"(?:[A-Za-z0-9+/]{4}){10,}[A-Za-z0-9+/=]*", value[:400].strip()):
        return ", base64 by its look, which must be decoded to bytes"
    return ""


def _without_answers(shard: Shard, column: str) -> bool:
    """Whether a file is of a test part that was published without its labels."""
    return shard.part == TEST and column not in shard.columns


def _label_column(shards: Sequence[Shard], named: str | None) -> str | None:
    usual = named or LABEL_COLUMN
    asked = [shard for shard in shards if not _without_answers(shard, usual)] or list(shards)
    first = next((shard for shard in asked if LABEL_COLUMN in shard.columns and not named), asked[0])
    column = _column(first, "data.label_column", named, LABEL_COLUMN)
    if column is not None and column not in asked[0].columns:
        raise UserError(f"{asked[0].file}: column {column} is missing, which is in {first.file}; {NO_LABELS}")
    if column is not None and column in first.fields and not is_label(kind := first.fields[column].type):
        one_hot = ", like one-hot codes" if is_list(kind) else ""
        raise UserError(
            f"{first.file}: column {column} holds {kind}{one_hot}; labels are one whole number, text, date or "
            f"true or false for each image; {NO_LABELS}"
        )
    return column


def _split_column(shards: Sequence[Shard], named: str | None) -> str | None:
    """The column that says to which part an image belongs: the one that is named, or `split` where it says so."""
    first = next((shard for shard in shards if SPLIT_COLUMN in shard.columns and not named), shards[0])
    column = _column(first, "data.split_column", named, SPLIT_COLUMN)
    if column is None or named:
        return column
    texts = column not in first.fields or is_label(first.fields[column].type)
    if not texts:
        return None
    with_it = [shard for shard in shards if column in shard.columns]
    values = {str(value) for value in _values(with_it, column).unique().to_pylist() if value is not None}
    if not any(part_of_word(value) is not None for value in values):
        return None
    if without := next((shard for shard in shards if column not in shard.columns), None):
        raise UserError(
            f"{without.file}: column {column} is missing, which says in {with_it[0].file} to which part an image "
            f"belongs; write it into all files, or give data.split_column={NONE}, which reads the images without it"
        )
    return column


def _column(first: Shard, key: str, named: str | None, usual: str) -> str | None:
    if named == NONE:
        if NONE in first.columns:
            raise UserError(f"{key}: {NONE} stands for no column, and {first.file} has one of that name; rename it")
        return None
    if named:
        check_column(first, key, named)
    return named or (usual if usual in first.columns else None)


def _check_images(shard: Shard, images: _ImageColumns, first: Shard, named: str | None) -> None:
    """Raises UserError where a file has other columns of images than the first."""
    for column in images.columns:
        check_same(shard, column, first, _image_family)
    if images.per_pixel:
        counted = next(group for group in _counted_columns(shard).values() if images.columns[0] in group.values())
        if more := [column for column in counted.values() if column not in images.columns]:
            raise UserError(
                f"{shard.file} has more columns of pixels than {first.file}: {some(more)}; all images must have the "
                f"same size"
            )
    elif not named and shard.columns != first.columns:
        new = [name for name, field in shard.fields.items() if name not in first.columns and kind_of(field) is not None]
        if more := [name for name in new if not is_identifier(shard.fields[name])]:
            raise UserError(
                f"{shard.file} has a column of images that {first.file} has not, {some(more)}, beside {images.name}; "
                f"choose one with data.image_column"
            )


def _image_family(field: Any) -> str | None:
    if is_number(field.type):
        return "a number"
    kind = kind_of(field)
    return None if kind is None else kind.family


def _label_family(field: Any) -> str | None:
    return label_family(field.type)


# -------------------------------------------------------------------------------------------------- rows of numbers


def _holds_numbers(shards: Sequence[Shard], data: settings.Data, taken: set[str | None]) -> bool:
    """Whether tables are read as rows of numbers: as the settings say, else where they have no images, and nothing but
    numbers besides. Raises UserError where numbers may be pixels, or a slip among them makes them text."""
    first = shards[0]
    if data.kind != "auto" or data.columns or data.image_column:
        return data.kind == "rows" or data.columns is not None
    if any(kind_of(field) is not None for name, field in first.fields.items() if name not in taken):
        return False
    groups = _columns_of_pixels(first, taken)
    if any(group.is_plain for group in groups):
        return False
    for shard in shards:
        check_slips(shard, [name for name in shard.fields if name not in taken])
    others = [field for name, field in first.fields.items() if name not in taken and not INDEX.fullmatch(name)]
    if not others or not all(is_numeric(field.type) for field in others):
        return False
    if doubtful := next((group for group in groups if len(group.columns) >= LEAST_DOUBTFUL), None):
        high, wide = doubtful.sides if len(doubtful.sides) > 1 else [math.isqrt(doubtful.sides[0])] * 2
        raise UserError(
            f"{first.file}: columns {doubtful.columns[0]} to {doubtful.columns[-1]} may be {len(doubtful.columns)} "
            f"numbers, or the pixels of images of {high} x {wide}; data.kind=rows reads numbers, and "
            f"data.image_column={doubtful.name} images"
        )
    _check_no_pixels_are_missing(first, taken)
    return True


def _check_no_pixels_are_missing(first: Shard, taken: set[str | None]) -> None:
    """Raises UserError where columns are called pixels, and are not those of a whole image."""
    for prefix, by_index in _counted_columns(first, taken).items():
        if prefix.rstrip("_-. ").lower() not in _PIXEL_NAMES or len(by_index) < LEAST_PIXELS:
            continue
        numbers = sorted(by_index)
        names = f"{by_index[numbers[0]]} to {by_index[numbers[-1]]}"
        counted = {index[0] for index in numbers if len(index) == 1} or {0}
        missing = [number for number in range(min(counted), max(counted)) if number not in counted]
        lacks = f"{prefix}{missing[0]} is missing" if missing else "they are not as many as a square or H x W has"
        side = math.isqrt(len(by_index) // 3)
        if not missing and 3 * side * side == len(by_index):
            raise UserError(
                f"{first.file}: columns {names} are as many as a colour image of {side} x {side} has, in an order that "
                "nobody tells; store pictures, or lists of H x W x 3, or give data.kind=rows to read them as numbers"
            )
        raise UserError(
            f"{first.file}: columns {names} are called pixels, and are {len(by_index)}: {lacks}; complete them, or "
            "give data.kind=rows to read them as numbers"
        )


def _label_names(shards: Sequence[Shard], column: str) -> tuple[str, ...] | None:
    """The names of the numbers in a column, which must be the same in all files."""
    shards = [shard for shard in shards if not _without_answers(shard, column)]
    names = [shard.class_names.get(column) for shard in shards]
    for shard, own in zip(shards, names, strict=True):
        if own != names[0]:
            mine, first = (f"the names {some(each)}" if each else "no names" for each in (own, names[0]))
            raise UserError(
                f"{shard.file}: the classes of column {column} have {mine}, and in {shards[0].file} {first}; write all "
                f"files with the same names in the same order"
            )
    return names[0]


# ---------------------------------------------------------------------------------------------- images and parts


def _values(shards: Sequence[Shard], column: str) -> Any:
    """A column of all files, in the order of the images, as an array of one type."""
    import pyarrow as pa

    def of(shard: Shard) -> Any:
        if column in shard.fields:
            return shard.values(column)
        if _without_answers(shard, column):
            return pa.nulls(shard.rows)
        return pa.array([shard.hive[column]] * shard.rows, pa.string())

    values = [of(shard) for shard in shards]
    return concatenated(values, f"{shards[-1].file}: column {column}")


def _image_batches(shards: Sequence[Shard], images: _ImageColumns) -> Iterator[Batch]:
    for shard in shards:
        for row, batch in shard.batches(images.columns):
            yield _image_batch(shard, images, batch, row)


def _image_batch(shard: Shard, images: _ImageColumns, batch: Any, row: int) -> Batch:
    """A batch of rows of the image column, or of the columns of pixels as lists."""

    def fault(offset: int, message: str) -> UserError:
        return UserError(f"{shard.file}: row {row + offset} of column {images.name} {message}")

    if not images.per_pixel:
        kind = kind_of(shard.fields[images.name])
        assert kind is not None
        return Batch(batch.column(0), kind, fault)
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
    return Batch(lists, Kind(family.family, shape), fault)


def _parts(
    shards: Sequence[Shard], column: str | None, location: Callable[[int | None], str], by: str
) -> tuple[Parts | None, str]:
    """The part of each image where the source gives it, and by what."""
    if column is not None:
        values = [None if value is None else str(value) for value in _values(shards, column).to_pylist()]
        parts = {value: TO_BE_DRAWN if value is None else part_of_word(value) for value in set(values)}
        for image, value in enumerate(values):
            if parts[value] is None:
                raise UserError(
                    f"{location(image)} is {value}, which names no part ({', '.join(WORDS)}); "
                    f"data.split_column={NONE} reads the images without parts"
                )
        return np.array([parts[value] for value in values], np.int8), f"column {column}"
    by_shard = where_they_differ([shard.part for shard in shards])
    if by_shard is None:
        return None, ""
    return np.repeat(np.array(by_shard, np.int8), [shard.rows for shard in shards]), by
