"""Which labels training knows, and whether they are what the task asks for."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from aae_ray.autoencoder.kinds import ImageKind
from aae_ray.autoencoder.phases import TASKS
from aae_ray.datasets.classes import UNKNOWN
from aae_ray.datasets.dataset import Dataset, class_names
from aae_ray.errors import Kind, Problem, SettingsError
from aae_ray.settings import Data, RunSettings

LABELS = 1  # behind the seed: what the numbers are for


def known_labels(dataset: Dataset, settings: RunSettings) -> NDArray[np.int64]:
    """Labels (N,) of all images of the set as training knows them, -1 for those that it does not.

    Only training images have any, and of them those that the source has labelled. `data.labels` of these are known,
    drawn by the settings' seed; all where it is not given. Each class has equal numbers (to within one, as long as it
    has as many), or with `data.labels_drawn` in proportion its share of the labelled training images, rounded, and one
    at least where there are as many labels as classes.
    """
    known_N = np.full(len(dataset.examples_NX), UNKNOWN, np.int64)
    if dataset.labels_N is None or dataset.classes is None:
        return known_N
    chosen = labelled = dataset.labelled(dataset.train)
    labels_T = np.asarray(dataset.labels_N)[labelled]
    count = _count(dataset, settings.data)
    if count < len(labelled):
        # RandomState's streams never change, as in the splits.
        random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((settings.seed, LABELS))))
        shuffled = random.permutation(len(labels_T))
        by_class = shuffled[np.argsort(labels_T[shuffled], kind="stable")]
        sizes = np.bincount(labels_T, minlength=dataset.classes)
        rank = np.arange(len(by_class)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        # The first of every class, then the second of every class, ..., or the first of every class and then of each as
        # large a part as of the others; ties between classes in random order.
        turn = random.permutation(dataset.classes)[labels_T[by_class]]
        position = rank if settings.data.labels_drawn == "evenly" else rank / sizes[labels_T[by_class]]
        chosen = labelled[by_class[np.lexsort((turn, position))[:count]]]
    known_N[chosen] = np.asarray(dataset.labels_N)[chosen]
    return known_N


def known_shares(dataset: Dataset, settings: RunSettings) -> list[float] | None:
    """The share of each class among the labels that training knows, or None where it knows none."""
    if dataset.classes is None:
        return None
    known_N = known_labels(dataset, settings)
    counts = np.bincount(known_N[known_N != UNKNOWN], minlength=dataset.classes)
    return [float(share) for share in counts / counts.sum()] if counts.any() else None


def _count(dataset: Dataset, data: Data) -> int:
    if data.labels is None:
        return len(dataset.labelled(dataset.train))
    return round(data.labels * len(dataset.train)) if data.labels < 1 else int(data.labels)


def _of_images_alone(settings: RunSettings, dataset: Dataset) -> Iterator[tuple[tuple[str, ...], str]]:
    """Settings that images have a use for, and rows of numbers none."""
    if isinstance(dataset.kind, ImageKind):
        return
    what = f"and data.name {dataset.name} holds rows of {dataset.kind.size} numbers"
    if settings.model.network != "dense":
        yield ("model.network",), f"model.network={settings.model.network} is for images, {what}; choose dense"
    if settings.train.input_warp:
        text = f"train.input_warp={settings.train.input_warp:g} turns and moves images, {what}; "
        yield ("train.input_warp",), f"{text}let it be 0, and give train.input_noise or train.input_dropout"


def check(settings: RunSettings, dataset: Dataset) -> None:
    """Raises SettingsError with everything in which settings and data contradict each other."""
    task, data, classes, noun = TASKS[settings.task], settings.data, dataset.classes, dataset.kind.noun
    problems = list(_of_images_alone(settings, dataset))
    if task.labels and classes is None:
        text = (
            f"task {settings.task} needs labels, and data.name {dataset.name} has none; "
            "name them with data.label_column, or choose another task"
        )
        problems.append((("task", "data.label_column"), text))
    if task.labels and classes is not None:
        count, labelled = _count(dataset, data), len(dataset.labelled(dataset.train))
        if task.labels == "all" and (bare := dataset.unlabelled):
            text = (
                f"task {settings.task} needs the label of every {dataset.kind.one}, and {bare} of data.name "
                f"{dataset.name} have none; choose task semi_supervised, or leave those {noun} out"
            )
            problems.append((("task", "data.name"), text))
        if count > labelled:
            of = f"training {noun}" if labelled == len(dataset.train) else f"labelled training {noun}"
            text = f"data.labels asks for {count} labels, and there are {labelled} {of}"
            problems.append((("data.labels",), text))
        elif count < classes:
            text = f"data.labels gives {count} labels to {classes} classes, fewer than one for each; "
            if data.labels is None:
                text = f"{count} training {noun} of data.name {dataset.name} have a label, of {classes} classes; "
            problems.append((("data.labels",), f"{text}give {classes} or more"))
        elif missing := set(range(classes)) - set(np.unique(known_labels(dataset, settings)).tolist()):
            names = class_names(dataset)
            missing_labels = ", ".join(names[label] for label in sorted(missing)[:5])
            text = f"data.name {dataset.name}: no training {dataset.kind.one} has label {missing_labels}, of {classes} "
            text += "classes"
            problems.append((("data.name",), text))
        shares = settings.model.label_prior
        if task.y == "classes" and isinstance(shares, tuple) and len(shares) != classes:
            text = f"model.label_prior has {len(shares)} shares, and data.name {dataset.name} has {classes} classes"
            problems.append((("model.label_prior",), text))
        if task.label_condition and settings.model.prior_components < classes:
            kind = "components of the mixture" if settings.model.prior == "mixture" else "segments of the swiss roll"
            text = (
                f"model.prior_components gives {settings.model.prior_components} {kind}, and the labels of data.name "
                f"{dataset.name} select {classes} of them; give at least {classes}"
            )
            problems.append((("model.prior_components",), text))
    if problems:
        raise SettingsError(Problem(keys, Kind.DATA, "settings", text) for keys, text in problems)
