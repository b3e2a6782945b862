"""Which classes are taken for which others: counts, what is told of them, and the figure."""

import io
import tracemalloc
from dataclasses import replace as replace_data
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aae_ray.autoencoder.published import Encoded, Published
from aae_ray.datasets.dataset import Dataset
from aae_ray.evaluation import drawing, final_evaluation
from aae_ray.evaluation.confusion import Confusion
from aae_ray.evaluation.final_evaluation import FinalEvaluation, evaluate_encoder
from aae_ray.evaluation.held_out import HeldOutMetrics
from aae_ray.settings import Settings, replace
from aae_ray.study.loading import from_checkpoint
from aae_ray.training import checkpoint
from aae_ray.training.loop import Training
from tests.evaluation.published_models import NAMES, published


def confusion() -> Confusion:
    labels_N = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    answers_N = torch.tensor([0, 0, 1, 2, 1, 1, 1, 0, 0, 3])
    return Confusion.of(answers_N, labels_N, ("cat", "dog", "cow", "empty"))


def test_each_class_has_its_error_and_what_it_is_taken_for() -> None:
    found = confusion()
    assert found.counts_CC.tolist() == [[2, 1, 1, 0], [0, 3, 0, 0], [2, 0, 0, 1], [0, 0, 0, 0]]
    assert found.error == pytest.approx(0.5)
    np.testing.assert_array_equal(found.errors_C, [0.5, 0, 1, np.nan])
    assert found.lines() == [
        "cow: 100.0% of 3, taken 2 for cat, 1 for empty",
        "cat: 50.0% of 4, taken 1 for dog, 1 for cow",
    ]


def test_of_many_classes_the_worst_are_told() -> None:
    labels_N = torch.arange(40)
    found = Confusion.of((labels_N + 1) % 40, labels_N, tuple(map(str, range(40))))
    assert len(found.lines()) == 11 and found.lines()[-1] == "and 30 more classes"


def test_of_thousands_of_classes_nothing_is_dense_and_nothing_is_drawn() -> None:
    """The whole matrix of 10,000 classes would take 800 MB."""
    labels_N = torch.arange(10_000)
    tracemalloc.start()
    found = Confusion.of(labels_N.clamp(max=9_000), labels_N, tuple(map(str, range(10_000))))
    told = found.error, found.lines(), FinalEvaluation(confusion=found).sheets.keys()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert told[0] == pytest.approx(0.0999) and told[1][0] == "9001: 100.0% of 1, taken 1 for 9000"
    assert told[2] == {"nearest.png"} and peak < 20e6


@pytest.mark.parametrize("classes", [2, 10, 200])
def test_the_figure_fits_its_classes(classes: int, tmp_path: Path) -> None:
    labels_N = torch.arange(5 * classes) % classes
    names = tuple(f"$class {label} of a very long name" for label in range(classes))
    picture = drawing.confusion_matrix(Confusion.of(labels_N.roll(1), labels_N, names))
    width, height = Image.open(io.BytesIO(picture)).size
    assert 500 < width < 1800 and 500 < height < 1800


@pytest.mark.parametrize("task", ["semi_supervised", "clustering"])
def test_a_published_classifier_makes_the_errors_of_its_training(
    task: str, small_run: Settings, digits: Dataset, tmp_path: Path
) -> None:
    """Clusters are named by the majority of their validation images in both."""
    values = {"task": task, "data.labels": 200, "model.clusters": 16, "train.dtype": "float32"}
    training = Training(replace(small_run, values | {"model.hidden": (64, 32), "train.epochs": 3}), digits)
    training.train()
    checkpoint.save(training.state_dict(), tmp_path)
    own, result = training.evaluation.confusion("test"), FinalEvaluation()
    evaluate_encoder(result, from_checkpoint(tmp_path), digits)
    assert own is not None and result.confusion is not None
    np.testing.assert_array_equal(result.confusion.counts_CC, own.counts_CC)
    name = "classification_error" if task == "semi_supervised" else "majority_error"
    assert result.metrics == {f"test/{name}": pytest.approx(training.evaluation.cheap("test")[f"test/{name}"])}
    assert set(result.sheets) == {"nearest.png", "confusion.png"}


def test_classes_of_other_data_are_known_by_their_names(digits: Dataset) -> None:
    """Four classes that go by the same names in another order, by some other names, by none of the model's."""
    model, rows = published("semi_supervised"), np.flatnonzero(np.asarray(digits.labels_N) < 4)[:40]
    labels_N = np.asarray(digits.labels_N)[rows]
    parts = (np.arange(10), np.arange(10, 20), np.arange(20, 40))
    own = Dataset("few", "d" * 32, digits.images_NCHW[rows], labels_N, *parts, NAMES)
    expected, reversed_, some, none = (FinalEvaluation() for _ in range(4))
    evaluate_encoder(expected, model, own)
    evaluate_encoder(reversed_, model, replace_data(own, labels_N=3 - labels_N, class_names=NAMES[::-1]))
    assert expected.confusion is not None and reversed_.confusion is not None
    np.testing.assert_array_equal(reversed_.confusion.counts_CC, expected.confusion.counts_CC)
    assert reversed_.confusion.names == NAMES and reversed_.metrics == expected.metrics

    evaluate_encoder(some, model, replace_data(own, class_names=("zero", "cat", "two", "dog")))
    assert some.confusion is not None
    kept_CC = expected.confusion.counts_CC * np.array([[1], [0], [1], [0]])
    np.testing.assert_array_equal(some.confusion.counts_CC, kept_CC)
    (remark,) = some.remarks
    left = 20 - kept_CC.sum()
    assert remark.startswith(f"{left} of 20 test images are of classes that the model does not know")
    assert remark.endswith("cat, dog")

    evaluate_encoder(none, model, replace_data(own, class_names=("a", "b", "c", "d")))
    assert none.confusion is None and none.metrics == {} and none.remarks[0].startswith("20 of 20 test images")


def test_test_images_are_encoded_in_blocks(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = published("semi_supervised"), []
    encode = Published.encode

    def watched(self: Published, x_NCHW: torch.Tensor) -> Encoded:
        sizes.append(len(x_NCHW))
        return encode(self, x_NCHW)

    monkeypatch.setattr(Published, "encode", watched)
    monkeypatch.setattr(final_evaluation, "BLOCK", 150)
    evaluate_encoder(FinalEvaluation(), model, digits)
    assert sum(sizes) == len(digits.test) and max(sizes) == 150


def test_without_a_label_head_there_is_nothing_to_confuse(small_run: Settings, digits: Dataset, tmp_path: Path) -> None:
    training = Training(replace(small_run, {"train.dtype": "float32"}), digits)
    assert isinstance(training.evaluation, HeldOutMetrics) and training.evaluation.confusion("test") is None
    checkpoint.save(training.state_dict() | {"history": []}, tmp_path)
    result = FinalEvaluation()
    evaluate_encoder(result, from_checkpoint(tmp_path), digits)
    assert result.confusion is None and result.metrics == {}
