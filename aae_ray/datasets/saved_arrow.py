"""Data sets that Hugging Face's `save_to_disk` wrote: Arrow files, read record batch by record batch.

Arrow alone reads them: the names of classes and the splits stand in JSON files beside them.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aae_ray.datasets.arrow_images import WHAT, kind_of, of_one_shape, read_images
from aae_ray.datasets.classes import NO_LABELS, concatenated, is_label
from aae_ray.datasets.image_stream import ImageStream, Origin, SeenRange
from aae_ray.datasets.parts import part_of_word
from aae_ray.errors import UserError, did_you_mean
from aae_ray.settings import Data

if TYPE_CHECKING:
    import pyarrow as pa

_LABEL, _NONE = "label", "none"  # the column that is read without being named; in place of a name: none is
_ROWS = 64  # of a record batch that are decoded together


@dataclass(frozen=True)
class SavedSplit:
    """One folder of Arrow files, in the order of its state.json, and what is known of its columns."""

    name: str | None  # as the folder above calls it; None of a set that has no splits
    files: tuple[Path, ...]
    features: Mapping[str, Any]


@dataclass(frozen=True)
class SavedSet:
    """All splits of a saved set."""

    path: Path
    splits: tuple[SavedSplit, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """All Arrow files."""
        return tuple(file for split in self.splits for file in split.files)


def find_saved(path: Path) -> SavedSet | None:
    """The saved set in a folder, with its splits where it has any; None where there is none.

    Raises UserError where its own notes are damaged or name files that are not there.
    """
    if (path / "dataset_dict.json").is_file():
        names = _json(path / "dataset_dict.json").get("splits", [])
        return SavedSet(path, tuple(_split(path / name, name) for name in names))
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return SavedSet(path, (_split(path, None),))
    return None


def _split(folder: Path, name: str | None) -> SavedSplit:
    state, info = _json(folder / "state.json"), _json(folder / "dataset_info.json")
    try:
        files = tuple(folder / entry["filename"] for entry in state["_data_files"])
    except (KeyError, TypeError):
        raise UserError(f"{folder / 'state.json'} names no files of data; save the set again") from None
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        raise UserError(f"{missing[0] if missing else folder} is missing, though {folder / 'state.json'} names it")
    return SavedSplit(name, files, info.get("features") or {})


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON text"
        raise UserError(f"{file} cannot be read: {reason}") from None
    return content if isinstance(content, dict) else {}


def read_saved(saved: SavedSet, data: Data) -> ImageStream:
    """The images of a saved set, split by split; splits that are called train, validation and test are parts.

    Schemas and labels are read here, images while the blocks are. Raises UserError by file, column and row.
    """
    parts = [None if split.name is None else part_of_word(split.name) for split in saved.splits]
    if any(split.name is not None and part is None for split, part in zip(saved.splits, parts, strict=True)):
        names = ", ".join(str(split.name) for split in saved.splits)
        raise UserError(
            f"data.path: {saved.path} has the splits {names}, of which not all are called train, validation or test; "
            f"give the folder of one of them"
        )
    files = [(file, part, split) for split, part in zip(saved.splits, parts, strict=True) for file in split.files]
    files.sort(key=lambda item: -1 if item[1] is None else item[1])  # the files of a split stay in their order
    headers = {file: _header(file) for file, _, _ in files}
    filled = [item for item in files if headers[item[0]][1]]
    if not filled:
        raise UserError(f"{saved.path} holds no images: it has no rows")
    first, _, split = filled[0]
    schema = headers[first][0]
    label = _label_column(first, schema, data.label_column)
    image = _image_column(first, schema, data.image_column, label)
    for file, _, _ in filled:
        for column in filter(None, (image, label)):
            index = headers[file][0].get_field_index(column)
            if index < 0 or headers[file][0].field(index).type != schema.field(column).type:
                raise UserError(f"{file}: column {column} is not what it is in {first}; save the set again")
    counts = [headers[file][1] for file, _, _ in filled]
    starts = np.cumsum([0, *counts])
    kind = kind_of(schema.field(image))
    assert kind is not None
    seen = SeenRange()

    def blocks() -> Iterator[NDArray[np.uint8]]:
        shape_CHW: tuple[int, ...] | None = None
        for file, _, _ in filled:
            for row, column in _columns(file, image):
                fault = _fault(file, image, row)
                block_BCHW = of_one_shape(read_images(column, kind, fault, seen), shape_CHW, fault)
                yield block_BCHW
                shape_CHW = block_BCHW.shape[1:]

    def label_place(row: int | None) -> str:
        if row is None:
            return f"{saved.path}: column {label}"
        index = int(np.searchsorted(starts, row, side="right")) - 1
        return f"{filled[index][0]}: row {row - starts[index]} of column {label}"

    labels = None
    if label is not None:
        labels = concatenated(
            [values for file, _, _ in filled for _, values in _columns(file, label)], label_place(None)
        )
    used = tuple(filter(None, (image, label)))
    return ImageStream(
        int(starts[-1]),
        blocks(),
        labels,
        Origin(
            "a saved Hugging Face dataset",
            len(filled),
            used,
            tuple(name for name in schema.names if name not in used),
            "" if None in parts else "names of splits",
        ),
        None if None in parts else np.repeat(np.array([part for _, part, _ in filled], np.int8), counts),
        lambda: seen.ends,
        label_place,
        None if label is None else _class_names(split.features.get(label)),
    )


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """The names of a ClassLabel's numbers."""
    names = feature.get("names") if isinstance(feature, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) else None


# ----------------------------------------------------------------------------------------------------------- columns


def _image_column(file: Path, schema: "pa.Schema", named: str | None, label: str | None) -> str:
    able = [field.name for field in schema if field.name != label and kind_of(field) is not None]
    if named:
        _check_column(file, schema, "data.image_column", named)
    if named and named not in able:
        raise UserError(f"{file}: column {named} holds {schema.field(named).type}; images are {WHAT}")
    if not able:
        columns = ", ".join(f"{field.name} ({field.type})" for field in list(schema)[:8]) or "none"
        raise UserError(f"{file} has no column of images ({WHAT}); its columns are {columns}")
    if len(able) > 1 and not named:
        raise UserError(f"{file} has several columns of images, {', '.join(able)}; choose one with data.image_column")
    return named or able[0]


def _label_column(file: Path, schema: "pa.Schema", named: str | None) -> str | None:
    if named == _NONE:
        return None
    if named:
        _check_column(file, schema, "data.label_column", named)
    column = named or (_LABEL if _LABEL in schema.names else None)
    if column is not None and not is_label(schema.field(column).type):
        raise UserError(f"{file}: column {column} holds {schema.field(column).type}, which is no label; {NO_LABELS}")
    return column


def _check_column(file: Path, schema: "pa.Schema", key: str, named: str) -> None:
    if named not in schema.names:
        columns = ", ".join(schema.names[:8])
        raise UserError(f"{key}: {file} has no column {named}, but {columns}.{did_you_mean(named, schema.names)}")


def _fault(file: Path, column: str, first: int) -> Callable[[int, str], UserError]:
    return lambda offset, message: UserError(f"{file}: row {first + offset} of column {column} {message}")


# ------------------------------------------------------------------------------------------------------------- files


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UserError(f"{file} cannot be read as an Arrow stream: {reason}; save the set again") from None


def _header(file: Path) -> tuple["pa.Schema", int]:
    """The schema of a file and the number of its rows."""
    import pyarrow as pa

    with _readable(file), pa.memory_map(str(file)) as content, pa.ipc.open_stream(content) as stream:
        return stream.schema, sum(batch.num_rows for batch in stream)


def _columns(file: Path, column: str) -> Iterator[tuple[int, "pa.Array"]]:
    """A column in pieces of a few rows, each with the number of its first row."""
    import pyarrow as pa

    first = 0
    with _readable(file), pa.memory_map(str(file)) as content, pa.ipc.open_stream(content) as stream:
        for batch in stream:
            values = batch.column(column)
            for start in range(0, len(values), _ROWS):
                yield first + start, values.slice(start, _ROWS)
            first += len(values)
