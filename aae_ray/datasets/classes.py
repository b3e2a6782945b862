"""Labels as a source has them, of whatever kind, as classes 0 to K - 1 with names.

`N` images of a set, `K` classes.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aae_ray.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

UNKNOWN = -1  # the class of an image without a label
MAX_CLASSES = 10_000  # more are identifiers that were taken for classes
_FEW = 9  # images whose labels may all differ: of more, they are identifiers
_WHOLE = re.compile("-?(0|[1-9][0-9]*)")

NO_LABELS = "data.label_column=none reads the images without labels"
OTHER_LABELS = f"name the column of classes with data.label_column, or {NO_LABELS}"


@dataclass(frozen=True, eq=False)
class Classes:
    """Classes of all images, (N,), UNKNOWN where there is none, and the name of each class, in sorted order."""

    labels_N: NDArray[np.int64]
    names: tuple[str, ...]


def label_family(kind: Any) -> str | None:
    """What sort of labels an Arrow type holds, in a word; None where it holds none."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    families = {
        "numbers": types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind),
        "text": is_text(kind),
        "dates and times": _is_moment(kind),
        "true and false": types.is_boolean(kind),
        "nothing": types.is_null(kind),
    }
    return next((family for family, holds in families.items() if holds), None)


def is_label(kind: Any) -> bool:
    """Whether values of this Arrow type can be labels."""
    return label_family(kind) is not None


def is_text(kind: Any) -> bool:
    """Whether values of this Arrow type are text."""
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_moment(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_date(kind) or pa.types.is_time(kind) or pa.types.is_timestamp(kind))


def concatenated(labels: "Sequence[pa.Array]", location: str) -> "pa.Array":
    """Labels of several sources as those of one: numbers of different types, or text of different types.

    Raises UserError, which names the place of the last one, where they do not go together.
    """
    import pyarrow as pa

    plain = []
    for values in labels:
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        plain.append(values.cast(pa.large_string() if is_text(kind) else kind))
    tables = [pa.table({"label": values}) for values in plain]
    try:
        return pa.concat_tables(tables, promote_options="permissive").column(0).combine_chunks()
    except pa.ArrowException:
        kinds = " and ".join(dict.fromkeys(str(values.type) for values in plain))
        raise UserError(f"{location}: labels are {kinds}; they must be of one kind") from None


def classes_of(
    labels: "pa.Array",
    location: Callable[[int | None], str],
    label_names: Sequence[str] | None = None,
    others: str = OTHER_LABELS,
) -> Classes | None:
    """The classes of labels: whole numbers (also as decimals or floats), text, dates and times, true and false.

    Classes are numbered in sorted order, text that is whole numbers throughout by their values. Images whose label is
    null or NaN have none, and those of -1, also as text, where all others are whole numbers from 0 up. Where no image
    has one, as in test parts that are published without their answers, there are no classes: None. `location` says
    where the label of an image stands, and where all of them do (None); `label_names` are the names of the labels 0, 1,
    ..., where the source has names for its numbers; `others` is what to do where labels are no classes. Raises
    UserError at these.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    known_N = np.asarray(labels.is_valid().to_numpy(zero_copy_only=False))
    if pa.types.is_floating(labels.type) or pa.types.is_decimal(labels.type):
        labels, known_N = _whole_numbers(labels, known_N, location)
    if not known_N.any():
        return None

    encoded = labels.dictionary_encode()
    index_N = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    values, keys = _named(encoded.dictionary)
    if "" in values:
        first = int(np.flatnonzero(known_N & (index_N == values.index("")))[0])
        raise UserError(f"{location(first)} is empty text; make it null where an image has no label")
    order = sorted(range(len(values)), key=keys.__getitem__)
    if keys[order[0]] == UNKNOWN:
        known_N &= index_N != order.pop(0)
    if not order:
        return None
    if len(order) > MAX_CLASSES or len(order) == known_N.sum() > _FEW:
        differ = "a different label in every row" if len(order) == known_N.sum() else f"{len(order)} different labels"
        raise UserError(f"{location(None)} has {differ}, like an identifier and unlike a class; {others}")
    rank = np.full(len(values), UNKNOWN, np.int64)
    rank[order] = np.arange(len(order))
    names = (values[index] for index in order)
    if label_names is not None and pa.types.is_integer(labels.type):
        names = (label_names[keys[index]] if 0 <= keys[index] < len(label_names) else values[index] for index in order)
    return Classes(np.where(known_N, rank[index_N], UNKNOWN), tuple(names))


def _whole_numbers(
    labels: "pa.Array", known_N: NDArray[np.bool_], location: Callable[[int | None], str]
) -> tuple["pa.Array", NDArray[np.bool_]]:
    """Decimals and floats without a fraction as whole numbers; NaN is no label."""
    import pyarrow as pa

    values = labels.to_pylist()
    known_N = known_N & np.array([value is not None and value == value for value in values], bool)
    for row in np.flatnonzero(known_N):
        if abs(values[row]) > 2**62 or values[row] != int(values[row]):
            raise UserError(
                f"{location(int(row))} is {values[row]}; labels that are numbers are whole ones; {NO_LABELS}"
            )
    whole = [int(value) if known else None for value, known in zip(values, known_N, strict=True)]
    return pa.array(whole, pa.int64()), known_N


def _named(values: "pa.Array") -> tuple[list[str], list[Any]]:
    """The name of each value, and what they are sorted by."""
    import pyarrow as pa

    if pa.types.is_integer(values.type):
        numbers = values.to_pylist()
        return [str(number) for number in numbers], numbers
    names = values.cast(pa.string()).to_pylist()
    if _is_moment(values.type):
        names = [re.sub(r"\.0+(?=Z?$)", "", name) for name in names]
    elif all(_WHOLE.fullmatch(name) for name in names):
        return names, [int(name) for name in names]
    return names, names
