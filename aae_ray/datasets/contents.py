"""What a set is, told so that whoever brought it sees whether it was read as they meant it."""

import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aae_ray.autoencoder.kinds import ExampleKind, RowKind
from aae_ray.datasets.classes import UNKNOWN
from aae_ray.datasets.dataset import Dataset, class_names
from aae_ray.datasets.image_stream import PART_NAMES, TRAIN, ValueRange, size_text
from aae_ray.datasets.pixels import number_text
from aae_ray.datasets.shards import MOST_COLUMNS

MOST_CLASSES = 10  # that are listed
MOST_LETTERS = 24  # of a name in a list
RECORDED_LETTERS = 4500  # of all classes, where they are recorded: a tag of MLflow has room for 5000


@dataclass(frozen=True)
class Contents:
    """What was read: the source and its columns, the values, the images or rows of each part and of each class."""

    format: str
    files: int
    used: tuple[str, ...]
    unused: tuple[str, ...]
    value_range: ValueRange | None  # of the pixels before any scaling; None where the source does not tell
    kind: ExampleKind
    parts: dict[str, int]  # images of training, validation and test
    parts_from: str  # by what the source gives them; empty where all are drawn
    classes: dict[str, int] | None  # images of each class; None without labels
    unlabelled: int
    duplicates: int  # images that are equal to one before them
    shared: int  # validation and test images that are equal to one of another part
    given_parts: tuple[str, ...] = ()  # of validation and test; the others are drawn
    remarks: tuple[str, ...] = ()  # on what was left out, and on what was done to images
    untrained: tuple[str, ...] = ()  # classes of which the training part has none

    @property
    def examples(self) -> int:
        return sum(self.parts.values())

    def rows(self, *, recorded: bool = False) -> dict[str, str]:
        """All of it as lines, by what each is about; `recorded` with every class, not only as many as a screen."""
        size = size_text(self.kind.shape)
        numbers = isinstance(self.kind, RowKind)
        rows = {
            self.kind.noun: f"{self.examples:,} of {size} {'numbers' if numbers else '(channels x height x width)'}",
            "source": self._read_from(),
            "values": self._values(),
            "classes": self._classes(recorded=recorded),
            "parts": f"{self._counts()}; {self._parts_from()}",
        }
        if repeated := self._repeated():
            rows["repeated"] = repeated
        if self.remarks:
            rows["remarks"] = "; ".join(self.remarks)
        return rows

    def short(self) -> tuple[str, ...]:
        """The same in two to four lines, for the beginning of a study."""
        values = "" if self.value_range is None else f"; pixels {_values(self.value_range)}"
        size = size_text(self.kind.shape) + (" numbers" if isinstance(self.kind, RowKind) else "")
        lines = (
            f"{self.examples:,} {self.kind.noun} of {size}, read from {self._read_from()}{values}",
            self._standardised(),
            f"{self._classes()}; {self._counts()}, {self._parts_from()}",
            self._repeated(),
            "; ".join(self.remarks),
        )
        return tuple(line for line in lines if line)

    def _values(self) -> str:
        if isinstance(self.kind, RowKind):
            return self._standardised()
        return "of a range that the source does not tell" if self.value_range is None else _values(self.value_range)

    def _standardised(self) -> str:
        """By what each column of rows is standardised; nothing of images."""
        if not isinstance(self.kind, RowKind):
            return ""
        columns = zip(self.kind.columns, self.kind.mean, self.kind.std, strict=True)
        told = [f"{_short(name)} {mean:.4g} ± {std:.3g}" for name, mean, std in columns]
        return f"standardised by mean ± standard deviation of the training rows: {_some(told, MOST_COLUMNS, cut=False)}"

    def _read_from(self) -> str:
        text = self.format + (f", {self.files} files" if self.files > 1 else "")
        if self.used:
            text += f", column{'s' * (len(self.used) > 1)} {_some(self.used, MOST_COLUMNS)}"
        if self.unused:
            text += f"; not used: {_some(self.unused, MOST_COLUMNS)}"
            if self.classes is None:
                text += " (data.label_column takes one of them as labels)"
        return text

    def _classes(self, *, recorded: bool = False) -> str:
        if self.classes is None:
            return "no labels"
        names = [" ".join(name.split()) if recorded else _short(name) for name in self.classes]
        told = _distinct(names, self.classes)
        counts = [f"{name} {count:,}" for name, count in zip(told, self.classes.values(), strict=True)]
        most = MOST_CLASSES
        if recorded:
            ends = itertools.accumulate(len(count) + len(", ") for count in counts)
            most = sum(end <= RECORDED_LETTERS for end in ends)
        text = f"{len(counts)} class{'es' * (len(counts) != 1)}: {_some(counts, most, cut=False)}"
        if self.unlabelled:
            text += f"; without a label {self.unlabelled:,}"
        if self.untrained:
            lacking = _some([_short(name) for name in self.untrained], most)
            text += f"; not among the training {self.kind.noun}: {lacking}"
        if len(counts) == 1:
            text += f"; there is only one class{self._another_column()}"
        return text

    def _another_column(self) -> str:
        """What may have been meant, where the source has columns or arrays beside those that were read."""
        return ". Did you mean another column?" if self.unused else ""

    def _counts(self) -> str:
        return ", ".join(f"{name} {count:,}" for name, count in self.parts.items())

    def _parts_from(self) -> str:
        if not self.given_parts:
            return "drawn"
        drawn = [name for name in self.parts if name != PART_NAMES[TRAIN] and name not in self.given_parts]
        given = f"given by {self.parts_from}"
        return f"{self.given_parts[0]} {given}, {drawn[0]} drawn" if drawn else given

    def _repeated(self) -> str:
        if not self.duplicates:
            return ""
        text = f"copies of an earlier {self.kind.one} {self.duplicates:,}"
        return text + (
            f"; validation and test {self.kind.noun} that also occur in another part {self.shared:,}"
            if self.shared
            else ""
        )


def contents_of(dataset: Dataset) -> Contents:
    """What a prepared set holds, in the parts that it was split into."""
    labels_N = None if dataset.labels_N is None else np.asarray(dataset.labels_N)
    classes: dict[str, int] | None = None
    untrained: tuple[str, ...] = ()
    if labels_N is not None:
        counts_K = np.bincount(labels_N[labels_N != UNKNOWN], minlength=dataset.classes or 0)
        classes = dict(zip(class_names(dataset), counts_K.tolist(), strict=True))
        trained = set(np.unique(labels_N[dataset.train]).tolist())
        untrained = tuple(name for label, name in enumerate(classes) if label not in trained)
    parts = dict(zip(PART_NAMES, (dataset.train, dataset.val, dataset.test), strict=True))
    duplicates, shared = _copies(dataset, tuple(parts.values()))
    origin = dataset.origin
    return Contents(
        origin.format,
        origin.files,
        origin.used,
        origin.unused,
        dataset.value_range,
        dataset.kind,
        {name: len(part) for name, part in parts.items()},
        origin.parts,
        classes,
        0 if labels_N is None else dataset.unlabelled,
        duplicates,
        shared,
        dataset.given_parts,
        origin.remarks,
        untrained,
    )


def _copies(dataset: Dataset, parts: tuple[NDArray[np.int64], ...]) -> tuple[int, int]:
    """How many images are equal to an earlier one, and how many of validation and test to one of another part."""
    copies_M2 = dataset.copies_M2
    if not len(copies_M2):
        return 0, 0
    part_N = np.zeros(len(dataset.examples_NX), np.int8)
    for number, rows in enumerate(parts):
        part_N[rows] = number
    images_M, groups_M = copies_M2.T
    parts_M = part_N[images_M]
    several_G = np.zeros((int(groups_M.max()) + 1, len(parts)), bool)
    several_G[groups_M, parts_M] = True
    shared_M = (several_G.sum(1) > 1)[groups_M] & (parts_M > 0)
    return len(copies_M2) - len(np.unique(groups_M)), int(shared_M.sum())


def _values(ends: ValueRange) -> str:
    low, high = map(number_text, ends)
    return f"{low} to {high} before scaling"


def _short(name: str) -> str:
    name = " ".join(name.split()) or "(without a name)"
    return name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"


def _distinct(shown: Sequence[str], names: Iterable[str]) -> list[str]:
    """Names as they are shown; those that would look like another one with each of their letters told apart."""
    looks = [unicodedata.normalize("NFKC", name) for name in shown]
    often = Counter(looks)
    return [ascii(name) if often[look] > 1 else short for short, look, name in zip(shown, looks, names, strict=True)]


def _some(names: "list[str] | tuple[str, ...]", most: int, *, cut: bool = True) -> str:
    more = f", ... and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(_short(name) if cut else name for name in names[:most]) + more
