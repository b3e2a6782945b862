"""Labels of every kind: classes in sorted order with their names, images without a label, and what is no label."""

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aae_ray.datasets.classes import UNKNOWN, classes_of, is_label
from aae_ray.errors import UserError


def place(image: int | None) -> str:
    return "column y" if image is None else f"row {image} of column y"


NAMES = ["cat", "ant", "bee", "ant"]
DAYS = [datetime.date(2026, 1, 2), datetime.date(2025, 1, 1)]

KINDS: dict[str, tuple[pa.Array, list[int], tuple[str, ...]]] = {
    "text": (pa.array(NAMES), [2, 0, 1, 0], ("ant", "bee", "cat")),
    "large text": (pa.array(NAMES, pa.large_string()), [2, 0, 1, 0], ("ant", "bee", "cat")),
    "text view": (pa.array(NAMES, pa.string_view()), [2, 0, 1, 0], ("ant", "bee", "cat")),
    "dictionary": (pa.array(NAMES).dictionary_encode(), [2, 0, 1, 0], ("ant", "bee", "cat")),
    "dictionary of numbers": (pa.array([7, 5, 7]).dictionary_encode(), [1, 0, 1], ("5", "7")),
    "umlauts": (pa.array(["Öl", "Zug", "Ärger"]), [2, 0, 1], ("Zug", "Ärger", "Öl")),
    "numbers as text": (pa.array(["10", "9", "-2"]), [2, 1, 0], ("-2", "9", "10")),
    "-1 as text": (pa.array(["10", "9", "-1"]), [1, 0, UNKNOWN], ("9", "10")),
    "-1 beside words": (pa.array(["a", "-1"]), [1, 0], ("-1", "a")),
    "text, some of it numbers": (pa.array(["10", "9", "x"]), [0, 1, 2], ("10", "9", "x")),
    "from one": (pa.array([1, 2, 3, 1]), [0, 1, 2, 0], ("1", "2", "3")),
    "with gaps": (pa.array([40, 0, 7], pa.uint8()), [2, 0, 1], ("0", "7", "40")),
    "negative": (pa.array([-2, -1, 0], pa.int16()), [0, 1, 2], ("-2", "-1", "0")),
    "huge": (pa.array([2**64 - 1, 5], pa.uint64()), [1, 0], ("5", str(2**64 - 1))),
    "floats": (pa.array([2.0, 0.0, 2.0]), [1, 0, 1], ("0", "2")),
    "half": (pa.array([np.float16(2), np.float16(0)]), [1, 0], ("0", "2")),
    "decimals": (pa.array([Decimal("3.00"), Decimal("1.00")]), [1, 0], ("1", "3")),
    "booleans": (pa.array([True, False, True]), [1, 0, 1], ("false", "true")),
    "dates": (pa.array(DAYS), [1, 0], ("2025-01-01", "2026-01-02")),
    "moments": (pa.array(DAYS).cast(pa.timestamp("ns")), [1, 0], ("2025-01-01 00:00:00", "2026-01-02 00:00:00")),
    "moments in UTC": (pa.array(DAYS[:1]).cast(pa.timestamp("us", "UTC")), [0], ("2026-01-02 00:00:00Z",)),
    "times": (pa.array([datetime.time(9, 30), datetime.time(8)]), [1, 0], ("08:00:00", "09:30:00")),
    "nulls": (pa.array(["b", None, "a"]), [1, UNKNOWN, 0], ("a", "b")),
    "nulls in a dictionary": (pa.array(["b", None, "a"]).dictionary_encode(), [1, UNKNOWN, 0], ("a", "b")),
    "null numbers": (pa.array([None, 3, 0]), [UNKNOWN, 1, 0], ("0", "3")),
    "NaN": (pa.array([float("nan"), 3.0, None]), [UNKNOWN, 0, UNKNOWN], ("3",)),
    "-1": (pa.array([-1, 0, 1, -1]), [UNKNOWN, 0, 1, UNKNOWN], ("0", "1")),
    "-1 as a float": (pa.array([-1.0, 0.0, 1.0]), [UNKNOWN, 0, 1], ("0", "1")),
    "one label": (pa.array([0, 0]), [0, 0], ("0",)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_become_classes_in_sorted_order(kind: str) -> None:
    labels, expected, names = KINDS[kind]
    assert is_label(labels.type)
    classes = classes_of(labels, place)
    assert classes is not None
    assert (classes.labels_N.tolist(), classes.names) == (expected, names)
    assert classes.labels_N.dtype == np.int64


FAULTS: dict[str, tuple[pa.Array, str]] = {
    "a fraction": (pa.array([0.0, 1.5]), "row 1 of column y is 1.5; labels that are numbers are whole ones"),
    "a decimal fraction": (pa.array([Decimal("0.5")]), "row 0 of column y is 0.5; labels that are"),
    "infinite": (pa.array([0.0, float("inf")]), "row 1 of column y is inf; labels that are"),
    "empty text": (pa.array(["a", None, ""]), "row 2 of column y is empty text; make it null where an image has no"),
    "an identifier": (pa.array([f"id{n}" for n in range(30)]), "column y has a different label in every row, like an"),
    "too many": (pa.array([*range(10_001)] * 2), "column y has 10001 different labels, like an identifier"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_label_is_told_with_its_place(fault: str) -> None:
    labels, message = FAULTS[fault]
    with pytest.raises(UserError) as error:
        classes_of(labels, place)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([None, None], pa.int32()),
        pa.nulls(3),
        pa.array([-1, None, -1]),
        pa.array(["-1"] * 20),
        pa.array([-1.0, float("nan")]),
    ],
    ids=["null", "of no type", "-1", "-1 as text", "-1 as a float"],
)
def test_images_of_which_none_has_a_label_have_no_classes(labels: pa.Array) -> None:
    assert classes_of(labels, place) is None


@pytest.mark.parametrize("kind", [pa.list_(pa.int8()), pa.struct({"a": pa.int8()}), pa.binary(), pa.duration("s")])
def test_types_that_hold_no_labels(kind: Any) -> None:
    assert not is_label(kind)


VALUES = st.one_of(
    st.lists(st.one_of(st.none(), st.integers(-5, 300)), min_size=1, max_size=40),
    st.lists(st.one_of(st.none(), st.text(max_size=4)), min_size=1, max_size=40),
    st.lists(st.one_of(st.none(), st.booleans()), min_size=1, max_size=40),
    st.lists(st.one_of(st.none(), st.dates()), min_size=1, max_size=40),
    st.lists(st.one_of(st.none(), st.sampled_from([0.0, 1.0, 2.0, 0.5, float("nan")])), min_size=1, max_size=40),
)


@settings(deadline=None)
@given(VALUES)
def test_equal_labels_and_they_alone_are_of_one_class(values: list[Any]) -> None:
    """Whatever the labels are, they are refused or kept apart, in order, and named."""
    try:
        classes = classes_of(pa.array(values), place)
    except UserError:
        return
    if classes is None:
        assert all(value is None or value != value or value in (-1, "-1") for value in values)
        return
    known = [(value, label) for value, label in zip(values, classes.labels_N, strict=True) if label != UNKNOWN]
    assert len(set(known)) == len({value for value, _ in known}) == len({label for _, label in known})
    assert {label for _, label in known} == set(range(len(classes.names)))
    left_out = {value for value, label in zip(values, classes.labels_N, strict=True) if label == UNKNOWN}
    assert all(value is None or value != value or value in (-1, "-1") for value in left_out)
    if not any(isinstance(value, str) for value, _ in known):
        assert [label for _, label in sorted(known)] == sorted(label for _, label in known)
    assert all(classes.names[label].lower() == str(value).removesuffix(".0").lower() for value, label in known)
