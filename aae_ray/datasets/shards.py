"""Tables in files, of which a set may have several: what all of them must have alike."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aae_ray.errors import UserError, did_you_mean

MOST_COLUMNS = 8  # named in a message
BATCH_ROWS = 64  # colour images of 256 x 256 as lists of doubles take 100 MB


@dataclass(frozen=True)
class Shard(ABC):
    """A table in a file: its columns, how many rows it has, and what its folders say (`label=cat`) in place of one."""

    file: Path
    fields: Mapping[str, Any]
    twice: tuple[str, ...]  # names that several columns have
    rows: int
    hive: Mapping[str, str | None]
    class_names: Mapping[str, tuple[str, ...]]  # of the numbers in a column, where the file has names for them
    part: int  # by the name of its file, folder or split

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.fields, *(key for key in self.hive if key not in self.fields))

    @abstractmethod
    def batches(self, columns: Sequence[str], size: int = BATCH_ROWS) -> Iterator[tuple[int, Any]]:
        """Record batches of these columns, of so many rows at most, each with the number of its first row."""

    @abstractmethod
    def values(self, column: str) -> Any:
        """All values of a column of the file."""

    def row_text(self, row: int) -> str:
        """A row, for messages."""
        return f"row {row}"


def some(names: Sequence[str]) -> str:
    """Names of columns, of which there may be hundreds."""
    more = f", ... ({len(names)} in all)" if len(names) > MOST_COLUMNS else ""
    return ", ".join(names[:MOST_COLUMNS]) + more if names else "none"


class MissingColumn(UserError):
    """A file has not the column that a setting names."""

    def __init__(self, key: str, lack: str) -> None:
        super().__init__(key, lack)
        self.key, self.lack = key, lack

    def __str__(self) -> str:
        return ": ".join(self.args)


def check_column(shard: Shard, key: str, named: str) -> None:
    """Raises MissingColumn."""
    if named not in shard.columns:
        meant = did_you_mean(named, shard.columns)
        raise MissingColumn(key, f"{shard.file} has no column {named}, but {some(shard.columns)}.{meant}")


def check_same(shard: Shard, column: str, first: Shard, family: Callable[[Any], str | None]) -> None:
    """Raises UserError where a file has not that column, has it twice, or holds other things in it than the first."""
    if column in shard.twice:
        raise UserError(f"{shard.file} has several columns of the name {column}; give each a name of its own")
    if column not in shard.columns:
        held = first.fields[column].type if column in first.fields else "the name of a folder"
        raise UserError(
            f"{shard.file}: column {column} is missing; in {first.file} it holds {held}. Write it into all files, or "
            f"take this one out of the folder"
        )
    if column not in shard.fields or column not in first.fields:
        return
    mine, other = (family(each.fields[column]) for each in (shard, first))
    if mine != other and "nothing" not in (mine, other):
        kinds = [each.fields[column].type for each in (shard, first)]
        raise UserError(
            f"{shard.file}: column {column} holds {kinds[0]}; in {first.file} it holds {kinds[1]}. Write it alike in "
            f"all files, or take this one out of the folder"
        )
