"""How a set is split into training, validation and test: as its source gives them, else drawn, class by class."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from aae_ray import settings
from aae_ray.datasets.columns import NONE
from aae_ray.datasets.image_stream import TEST, TO_BE_DRAWN, VALIDATION
from aae_ray.errors import UserError

Indices = NDArray[np.int64]


def split(
    labels_N: NDArray[np.int64], parts_N: NDArray[np.int64] | None, data: settings.Data, noun: str
) -> tuple[Indices, Indices, Indices]:
    """Sorted indices for training, validation and test: as the source gives them, and drawn where it gives none."""
    if parts_N is None:
        parts_N = np.full(len(labels_N), TO_BE_DRAWN)
    val, test = (np.flatnonzero(parts_N == part) for part in (VALIDATION, TEST))
    rest = np.flatnonzero((parts_N != VALIDATION) & (parts_N != TEST))
    order = rest[_stratified_order(labels_N[rest], data.split_seed)]
    val_count = 0 if len(val) else round(data.validation_fraction * len(rest))
    test_count = 0 if len(test) else round(data.test_fraction * len(rest))
    drawn_val, drawn_test, train = np.split(order, [val_count, val_count + test_count])
    parts = (train, val if len(val) else drawn_val, test if len(test) else drawn_test)
    train, val, test = (np.sort(part) for part in parts)
    return train, val, test


def check_parts(
    parts: Mapping[str, Indices], parts_N: NDArray[np.int64] | None, data: settings.Data, noun: str
) -> None:
    """Raises UserError where there is nothing to train on, or to measure on."""
    count, where = sum(map(len, parts.values())), f" ({data.path})" if data.path else ""
    empty = [name for name, part in parts.items() if not len(part)]
    if parts_N is not None and not ((parts_N != VALIDATION) & (parts_N != TEST)).any():
        given = " and ".join(name for name, part in parts.items() if len(part))
        raise UserError(
            f"data.name: {data.name} has no training {noun}: its source gives all {count} to {given}; let it "
            f"give some to training, or let the parts be drawn, of a table with data.split_column={NONE}"
        )
    if empty:
        raise UserError(
            f"data.name: {data.name}{where} has too few {noun}, {count}: with data.validation_fraction "
            f"{data.validation_fraction:g} and data.test_fraction {data.test_fraction:g} "
            f"none is left for {empty[0]}; give more {noun}"
        )


def _stratified_order(labels_N: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A random order in which every stretch holds the classes in proportion, give or take an image or two.

    Each class is shuffled and laid out evenly over [0, 1) from a random start; the positions give the order.
    """
    # NumPy keeps the streams of RandomState the same for ever, and those of its newer generators not.
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    shuffled = random.permutation(len(labels_N))
    by_class = shuffled[np.argsort(labels_N[shuffled], kind="stable")]
    _, sizes = np.unique(labels_N, return_counts=True)
    rank = np.arange(len(labels_N)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    position_N = (rank + np.repeat(random.random_sample(len(sizes)), sizes)) / np.repeat(sizes, sizes)
    return by_class[np.argsort(position_N, kind="stable")]
