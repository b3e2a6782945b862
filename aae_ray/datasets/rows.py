"""Rows of numbers: values of a table's columns as doubles, what is seen of each column, and how rows are standardised.

`N` rows of a set, `B` of a batch, `D` columns.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aae_ray.autoencoder.kinds import RowKind
from aae_ray.errors import UserError

LARGEST_WHOLE = 2**53  # beyond it doubles leave whole numbers out
BLOCK_ROWS = 1 << 16  # of a set whose mean is taken, at a time
MOSTLY = 0.5  # share of a column's text that is numbers, above which the rest are slips
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
# With a decimal comma, or with thousands apart: 1,234 may be either.
_WRITTEN_OTHERWISE = re.compile(r"\s*[-+]?(\d+,\d+|\d{1,3}([,. '\u00a0\u202f]\d{3})+([.,]\d+)?)\s*")

Fault = Callable[[int, str, str], UserError]  # of a row of a batch, a column and what is wrong with it


def is_numeric(kind: Any) -> bool:
    """Whether values of this Arrow type are numbers; true and false are 1 and 0."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    checks = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean)
    return any(check(kind) for check in checks)


def doubles(batch: Any, names: Sequence[str], fault: Fault) -> NDArray[np.float64]:
    """The numbers of a record batch, (B, D). Raises UserError at the first that is missing, or no double."""
    return np.stack([_of_column(batch.column(name), name, fault) for name in names], 1)


def _of_column(column: Any, name: str, fault: Fault) -> NDArray[np.float64]:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise fault(row, name, f"is empty; {_MISSING}")
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    if pa.types.is_decimal(column.type):  # Arrow's own cast is off in the last digit
        column = pa.array([float(value) for value in column.to_pylist()], pa.float64())
    stored = column.to_numpy(zero_copy_only=False)
    values = stored.astype(np.float64) + 0.0  # minus zero is zero, and such rows are equal
    if not (good := np.isfinite(values)).all():
        row = int(np.argmin(good))
        what = "NaN (not a number)" if math.isnan(values[row]) else f"{values[row]:g}"
        raise fault(row, name, f"is {what}; {_MISSING}")
    whole = stored.dtype.kind in "iu"
    if whole and not (good := (stored <= LARGEST_WHOLE) & (stored >= -LARGEST_WHOLE)).all():
        row = int(np.argmin(good))
        text = f"is {stored[row]}; whole numbers beyond 2^53 are identifiers most often, and are not kept exactly as "
        raise fault(row, name, f"{text}doubles: leave the column out, naming the others with data.columns")
    return np.asarray(values)


_MISSING = (
    "every value must be a finite number: fill it, by the column's median for example, or leave out the row, or the "
    "column, naming the others with data.columns"
)


def is_a_number(text: str) -> bool:
    """Whether a text is written as a number."""
    return _NUMBER.fullmatch(text) is not None


def slip(values: Sequence[Any]) -> tuple[int, str] | None:
    """The first text that is no number, and what is wrong with it, where most of a column's are; None elsewhere."""
    texts = [(row, value) for row, value in enumerate(values) if isinstance(value, str) and value.strip()]
    wrong = [(row, value) for row, value in texts if not is_a_number(value)]
    otherwise = sum(1 for _, value in wrong if _WRITTEN_OTHERWISE.fullmatch(value))
    if not wrong or len(texts) - len(wrong) + otherwise <= MOSTLY * len(texts):
        return None
    row, value = wrong[0]
    if _WRITTEN_OTHERWISE.fullmatch(value):
        return row, (
            f"is {value!r}; write numbers with a decimal point, and without separators of thousands, or leave out the "
            "column, naming the others with data.columns"
        )
    return row, f"is {value[:40]!r}, and most others are numbers; put it right, leave it empty or leave out the row"


@dataclass
class Seen:
    """What was seen of a column: its ends, and whether it counts the rows of each file, from 0 or from 1."""

    low: float = math.inf
    high: float = -math.inf
    counts_from: frozenset[int] = frozenset((0, 1))

    @property
    def constant(self) -> bool:
        return self.low == self.high

    def observe(self, values_B: NDArray[np.float64], first: int) -> None:
        """More values, whose rows in their file begin with this one."""
        self.low, self.high = min(self.low, float(values_B.min())), max(self.high, float(values_B.max()))
        if self.counts_from:
            offset_B = values_B - first - np.arange(len(values_B))
            self.counts_from = frozenset(start for start in self.counts_from if (offset_B == start).all())


def standardisation(rows_ND: NDArray[np.float64], train: NDArray[np.int64], columns: Sequence[str]) -> RowKind:
    """Mean and standard deviation of the training rows, column by column; 1 in place of the second where all of them
    are alike. Raises UserError where values are so large that there is none."""
    blocks = [train[start : start + BLOCK_ROWS] for start in range(0, len(train), BLOCK_ROWS)]
    with np.errstate(over="ignore", invalid="ignore"):
        mean_D = _sum(rows_ND[rows].sum(0) for rows in blocks) / len(train)
        std_D = np.sqrt(_sum(np.square(rows_ND[rows] - mean_D).sum(0) for rows in blocks) / len(train))
    low_D, high_D = (end([end(rows_ND[rows], 0) for rows in blocks], 0) for end in (np.min, np.max))
    alike_D = low_D == high_D  # by rounding the deviation may be above 0
    mean_D, std_D = np.where(alike_D, low_D, mean_D), np.where(alike_D, 1.0, std_D)
    if not (good_D := np.isfinite(mean_D) & np.isfinite(std_D) & (std_D > 0)).all():
        column = int(np.argmin(good_D))
        raise UserError(
            f"column {columns[column]} has values from {low_D[column]:g} to {high_D[column]:g}, whose standard "
            f"deviation is no finite number above 0; scale it before"
        )
    return RowKind(tuple(columns), tuple(mean_D.tolist()), tuple(std_D.tolist()))


def _sum(parts: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.sum(list(parts), 0)
    return total
