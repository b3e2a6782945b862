"""Data sets that Hugging Face's `save_to_disk` wrote: Arrow files, read record batch by record batch.

Arrow alone reads them: the names of classes and the splits stand in JSON files beside them.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aae_ray.datasets.columns import names_of_class_label, read_shards
from aae_ray.datasets.damage import readable
from aae_ray.datasets.image_stream import TO_BE_DRAWN, ImageStream
from aae_ray.datasets.parts import part_of_word
from aae_ray.datasets.shards import BATCH_ROWS, Shard
from aae_ray.errors import UserError
from aae_ray.settings import Data

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class SavedSplit:
    """One folder of Arrow files, in the order of its state.json, and the names of the classes in its columns.

    A split without rows has no files.
    """

    name: str | None  # as the folder above calls it; None of a set that has no splits
    files: tuple[Path, ...]
    class_names: Mapping[str, tuple[str, ...]]


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
        names = _json(path / "dataset_dict.json").get("splits")
        if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
            raise UserError(f"{path / 'dataset_dict.json'} names no splits; save the set again")
        splits = tuple(split for name in names if (split := _split(path / name, name)).files)
        if not splits:
            raise UserError(f"{path} holds no rows: its splits {', '.join(names)} are empty; save a set that has some")
        return SavedSet(path, splits)
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        if not (split := _split(path, None)).files:
            raise UserError(f"{path} holds no rows: its state.json names no file of data; save a set that has some")
        return SavedSet(path, (split,))
    return None


def _split(folder: Path, name: str | None) -> SavedSplit:
    state, info = _json(folder / "state.json"), _json(folder / "dataset_info.json")
    try:
        files = tuple(folder / entry["filename"] for entry in state["_data_files"])
    except (KeyError, TypeError):
        raise UserError(f"{folder / 'state.json'} names no files of data; save the set again") from None
    missing = [file for file in files if not os.path.isfile(file)]  # which is False of an impossible name, too
    if missing:
        raise UserError(
            f"{missing[0]} is missing, though {folder / 'state.json'} names it; copy or download the whole folder again"
        )
    return SavedSplit(name, files, names_of_class_label(info.get("features")))


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON text"
        raise UserError(f"{file} cannot be read: {reason}; copy or download the whole folder again") from None
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
    shards = [
        _shard(file, TO_BE_DRAWN if part is None else part, split)
        for split, part in zip(saved.splits, parts, strict=True)
        for file in split.files
    ]
    shards.sort(key=lambda shard: shard.part)  # the files of a split stay in their order
    return read_shards(saved.path, shards, data, "a saved Hugging Face dataset", "names of splits")


class _ArrowShard(Shard):
    """A file that holds an Arrow stream."""

    def batches(self, columns: Sequence[str], size: int = BATCH_ROWS) -> Iterator[tuple[int, Any]]:
        import pyarrow as pa

        first = 0
        with _arrow(self.file), pa.memory_map(str(self.file)) as content, pa.ipc.open_stream(content) as stream:
            for batch in stream:
                chosen = batch.select(list(columns))
                chosen.validate(full=True)  # else what offsets say is read without a look at how far the memory goes
                for start in range(0, batch.num_rows, size):
                    yield first + start, chosen.slice(start, size)
                first += batch.num_rows

    def values(self, column: str) -> Any:
        import pyarrow as pa

        with _arrow(self.file), pa.memory_map(str(self.file)) as content, pa.ipc.open_stream(content) as stream:
            values = pa.chunked_array([batch.column(column) for batch in stream], stream.schema.field(column).type)
            values.validate(full=True)
            return values


# ------------------------------------------------------------------------------------------------------------- files


def _arrow(file: Path) -> AbstractContextManager[None]:
    """What is read in it is an Arrow stream. Raises UserError."""
    import pyarrow as pa

    damage = (pa.ArrowException, UnicodeDecodeError, OSError)
    advice = "; copy or download the folder again, or save the set again"
    return readable(file, damage, "cannot be read as an Arrow stream", lambda error: advice)


def _shard(file: Path, part: int, split: SavedSplit) -> Shard:
    import pyarrow as pa

    with _arrow(file), pa.memory_map(str(file)) as content, pa.ipc.open_stream(content) as stream:
        schema: pa.Schema = stream.schema
        rows = sum(batch.num_rows for batch in stream)
    twice = tuple(dict.fromkeys(name for name in schema.names if schema.names.count(name) > 1))
    return _ArrowShard(file, {field.name: field for field in schema}, twice, rows, {}, split.class_names, part)
