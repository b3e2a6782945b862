"""Which columns of tables are numbers of rows, and their values.

`B` rows of a block, `D` columns.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aae_ray import settings
from aae_ray.datasets.classes import is_text
from aae_ray.datasets.rows import Seen, doubles, is_numeric, slip
from aae_ray.datasets.shards import Shard, check_column, check_same, some
from aae_ray.errors import UserError

NUMBER_ROWS = 4096  # of rows of numbers
INDEX = re.compile(r"|Unnamed: 0|__index_level_\d+__")  # columns in which pandas counts the rows
_LIKE_LABELS = ("label", "labels", "class", "target", "species", "outcome", "y")


@dataclass(frozen=True)
class NumberColumns:
    """What is read as rows of numbers, and remarks on what was left out or looks like something else."""

    columns: tuple[str, ...]
    remarks: tuple[str, ...]


def number_columns(shards: Sequence[Shard], data: settings.Data, taken: set[str | None]) -> NumberColumns:
    """The columns of numbers, each value of which is looked at. Raises UserError by file, row and column."""
    first = shards[0]
    if data.columns is not None:
        columns = data.columns
        for name in columns:
            check_column(first, "data.columns", name)
            if name in taken:
                raise UserError(f"data.columns: column {name} of {first.file} is read as labels or parts already")
    else:
        for shard in shards:
            check_slips(shard, [name for name in shard.fields if name not in taken])
        columns = tuple(name for name, field in first.fields.items() if name not in taken and is_numeric(field.type))
        if not columns:
            known = [f"{name} ({field.type})" for name, field in first.fields.items()]
            raise UserError(f"{first.file} has no column of numbers; its columns are {some(known)}")
    for shard in shards:
        for name in columns:
            if name in shard.fields and not is_numeric(shard.fields[name].type):
                check_slips(shard, [name])
                raise _no_number(shard, name)
            check_same(shard, name, first, lambda _: "a number")
    seen = {name: Seen() for name in columns}
    for row, _, values_BD in numbers_of(shards, columns):
        for name, values_B in zip(columns, values_BD.T, strict=True):
            seen[name].observe(values_B, row)
    if all(each.constant for each in seen.values()):
        raise UserError(f"{first.file}: all rows are alike in {some(columns)}, and there is nothing to learn")
    if data.columns is not None:
        return NumberColumns(columns, ())
    return _without_constants(seen, first)


def _without_constants(seen: Mapping[str, Seen], first: Shard) -> NumberColumns:
    """The columns without those that say nothing, with remarks."""
    remarks = []
    index = [name for name, each in seen.items() if INDEX.fullmatch(name) and each.counts_from]
    constant = [name for name, each in seen.items() if each.constant and name not in index]
    if index:
        remarks.append(f"column {some([name or 'without a name' for name in index])} counts the rows and is left out")
    if constant:
        told = some([f"{name} ({seen[name].low:g})" for name in constant])
        remarks.append(f"left out, as all rows have the same value: {told}")
    columns = tuple(name for name in seen if name not in {*index, *constant})
    if "" in columns:
        raise UserError(f"{first.file} has a column without a name; give it one, or name the others with data.columns")
    if counting := [name for name in columns if seen[name].counts_from]:
        remarks.append(f"counts the rows, and is read as a number like others: {some(counting)}")
    if like := [name for name in columns if name.lower() in _LIKE_LABELS]:
        remarks.append(f"data.label_column={like[0]} would take that column as labels; it is read as a number")
    return NumberColumns(columns, tuple(remarks))


def check_slips(shard: Shard, names: Sequence[str]) -> None:
    """Raises UserError where a column holds numbers but for some text."""
    for name in names:
        if name in shard.fields and is_text(shard.fields[name].type):
            values = shard.values(name).to_pylist()
            if (found := slip(values)) is not None:
                row, text = found
                raise UserError(f"{shard.file}: {shard.row_text(row)} of column {name} {text}")


def _no_number(shard: Shard, name: str) -> UserError:
    held = shard.fields[name].type if name in shard.fields else "the name of a folder"
    empty = "; every value of it is empty" if str(held) == "null" else ""
    return UserError(f"{shard.file}: column {name} holds {held}{empty}; rows are of numbers")


def numbers_of(shards: Sequence[Shard], columns: Sequence[str]) -> Iterator[tuple[int, Shard, NDArray[np.float64]]]:
    """Blocks of rows (B, D), each with the number of its first row in its file. Raises UserError by row and column."""
    for shard in shards:
        for row, batch in shard.batches(columns, NUMBER_ROWS):

            def fault(offset: int, name: str, text: str, shard: Shard = shard, row: int = row) -> UserError:
                return UserError(f"{shard.file}: {shard.row_text(row + offset)} of column {name} {text}")

            yield row, shard, doubles(batch, columns, fault)
