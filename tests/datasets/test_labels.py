"""Which labels training knows: balanced, fixed by a seed, and refused in sentences that name the keys."""

from collections.abc import Mapping
from dataclasses import replace as changed
from typing import Any

import numpy as np
import pytest

from aae_ray.datasets.dataset import Dataset
from aae_ray.datasets.labels import check, known_labels, known_shares
from aae_ray.errors import SettingsError
from aae_ray.settings import Settings, replace


@pytest.mark.parametrize("labels", [10, 100, 101, 0.25])
def test_the_draw_is_balanced_and_from_training_images_alone(digits: Dataset, labels: float) -> None:
    known_N = known_labels(digits, replace(Settings(), {"data.labels": labels}))
    rows = np.flatnonzero(known_N >= 0)
    assert len(rows) == (labels if labels >= 1 else round(labels * len(digits.train)))
    assert set(rows) <= set(digits.train)
    assert digits.labels_N is not None and np.array_equal(known_N[rows], digits.labels_N[rows])
    counts = np.bincount(known_N[rows], minlength=10)
    assert counts.max() - counts.min() <= 1


def test_the_draw_follows_from_its_seed_and_grows_with_the_number(digits: Dataset) -> None:
    def rows(labels: int | None, seed: int = 0) -> set[int]:
        settings = replace(Settings(), {"data.labels": labels, "seed": seed})
        return set(np.flatnonzero(known_labels(digits, settings) >= 0).tolist())

    assert rows(100) == rows(100) != rows(100, seed=1)
    assert rows(100) < rows(200)
    assert rows(None) == set(digits.train.tolist())


def test_labels_of_held_out_images_are_never_known(digits: Dataset) -> None:
    known_N = known_labels(digits, Settings())
    assert (known_N[digits.val] == -1).all() and (known_N[digits.test] == -1).all()


def test_the_shares_of_classes_are_those_of_the_labels_that_are_known(digits: Dataset) -> None:
    assert digits.labels_N is not None
    counts = np.bincount(digits.labels_N[digits.train])
    assert known_shares(digits, Settings()) == pytest.approx(counts / len(digits.train))
    assert known_shares(digits, replace(Settings(), {"data.labels": 20})) == pytest.approx(np.full(10, 0.1))
    assert known_shares(changed(digits, labels_N=None), Settings()) is None
    assert known_shares(digits, replace(Settings(), {"data.labels": 1e-4})) is None  # none of 1,079


@pytest.mark.parametrize("labels", [10, 50, 200, 0.5])
def test_labels_are_drawn_in_proportion(digits: Dataset, labels: float) -> None:
    """Of classes 3, 5 and 8 there are few images: as few labels, but one at least of each, whatever the seed."""
    assert digits.labels_N is not None
    labels_T = digits.labels_N[digits.train]
    rare_T = np.isin(labels_T, (3, 5, 8))
    few = changed(digits, train=np.concatenate([digits.train[~rare_T], digits.train[rare_T][::10]]))
    counts_K = np.bincount(digits.labels_N[few.train], minlength=10)
    settings = replace(Settings(), {"data.labels": labels, "data.labels_drawn": "in_proportion"})
    for seed in range(3):
        known_N = known_labels(few, replace(settings, {"seed": seed}))
        drawn_K = np.bincount(known_N[known_N >= 0], minlength=10)
        assert drawn_K.sum() == (labels if labels >= 1 else round(labels * len(few.train)))
        assert drawn_K.min() >= 1 and np.abs(drawn_K - drawn_K.sum() * counts_K / counts_K.sum()).max() <= 1.5
        assert known_shares(few, replace(settings, {"seed": seed})) == pytest.approx(drawn_K / drawn_K.sum())


def without(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """The set with these images unlabelled."""
    labels_N = np.asarray(dataset.labels_N).copy()
    labels_N[rows] = -1
    return changed(dataset, labels_N=labels_N)


@pytest.mark.parametrize("drawn", ["evenly", "in_proportion"])
def test_images_without_a_label_are_never_drawn(digits: Dataset, drawn: str) -> None:
    partly = without(digits, digits.train[::2])
    settings = replace(Settings(), {"task": "semi_supervised", "data.labels_drawn": drawn})
    check(settings, partly)
    assert set(np.flatnonzero(known_labels(partly, settings) >= 0)) == set(digits.train[1::2])
    some = known_labels(partly, replace(settings, {"data.labels": 100}))
    assert set(np.flatnonzero(some >= 0)) < set(digits.train[1::2]) and (some >= 0).sum() == 100
    shares = known_shares(partly, settings)
    assert shares is not None and sum(shares) == pytest.approx(1)


def test_what_unlabelled_images_do_not_allow(digits: Dataset) -> None:
    partly = without(digits, digits.train[10:])
    few = replace(Settings(), {"task": "semi_supervised", "data.labels": 11})
    with pytest.raises(SettingsError, match="asks for 11 labels, and there are 10 labelled training images"):
        check(few, partly)
    with pytest.raises(SettingsError, match="needs the label of every image, and 1 of data.name digits have none"):
        check(replace(Settings(), {"task": "supervised"}), without(digits, digits.val[:1]))
    with pytest.raises(SettingsError, match="5 training images of data.name digits have a label, of 10 classes"):
        check(replace(Settings(), {"task": "semi_supervised"}), without(digits, digits.train[5:]))
    named = changed(digits, class_names=tuple("abcdefghij"))
    fours = digits.train[np.asarray(digits.labels_N)[digits.train] == 4]
    with pytest.raises(SettingsError, match="no training image has label e, of 10 classes"):
        check(replace(Settings(), {"task": "semi_supervised"}), without(named, fours))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"task": "supervised", "model.label_prior": [0.5, 0.5]}, "model.label_prior has 2 shares.*10 classes"),
        ({"task": "semi_supervised", "data.labels": 9}, "9 labels to 10 classes"),
        ({"task": "semi_supervised", "data.labels": 100_000}, "data.labels asks for 100000 labels"),
        (
            {"task": "label_informed", "model.prior": "mixture", "model.prior_components": 8},
            "8 components of the mixture",
        ),
        (
            {"task": "label_informed", "model.prior": "swiss_roll", "model.prior_components": 9},
            "9 segments of the swiss roll",
        ),
    ],
)
def test_contradictions_with_the_data_name_their_keys(
    digits: Dataset, values: Mapping[str, Any], sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        check(replace(Settings(), values), digits)


def test_all_contradictions_are_reported_at_once(digits: Dataset) -> None:
    values = {"task": "label_informed", "model.prior": "mixture", "model.prior_components": 4, "data.labels": 3}
    with pytest.raises(SettingsError) as caught:
        check(replace(Settings(), values), digits)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("task", ["label_informed", "supervised", "semi_supervised", "semi_supervised_reduction"])
def test_labels_are_not_asked_of_unlabelled_data(digits: Dataset, task: str) -> None:
    bare = changed(digits, labels_N=None)
    with pytest.raises(SettingsError, match=f"task {task} needs labels, and data.name digits has none"):
        check(replace(Settings(), {"task": task, "model.prior": "mixture"}), bare)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"task": "label_informed"}, "needs model.prior mixture or swiss_roll"),
        ({"task": "clustering", "model.clusters": 60, "train.batch_size": 50}, "model.clusters is more than"),
        ({"task": "supervised", "data.labels": 100}, "needs the label of every image"),
        ({"data.labels": 10.5}, "a whole number or a fraction"),
    ],
)
def test_contradictions_within_the_settings(values: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(Settings(), values)
