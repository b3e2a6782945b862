"""The protocol as a whole: real images do as well as the floors, junk does not; nothing is left to chance."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from aae_ray.datasets.dataset import Dataset
from aae_ray.datasets.images import Images
from aae_ray.evaluation import figure_data as pictures
from aae_ray.evaluation import final_evaluation
from aae_ray.evaluation import held_out as evaluation
from aae_ray.evaluation.judge import Judge
from aae_ray.evaluation.metrics import METRICS
from aae_ray.settings import Settings
from aae_ray.settings import replace as changed
from aae_ray.training.loop import Training


def images(dataset: Dataset, rows: Any) -> torch.Tensor:
    return torch.from_numpy(dataset.images_NCHW[rows]).float() / 255


def test_real_images_do_as_well_as_the_floors_and_noise_does_not(digits: Dataset, judge: Judge) -> None:
    real_NCHW = images(digits, digits.train)
    real = final_evaluation.evaluate_samples(lambda count: real_NCHW[:count], digits, judge)
    noise_NCHW = torch.rand(1079, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = final_evaluation.evaluate_samples(lambda count: noise_NCHW[:count], digits, judge)
    assert set(real.metrics) <= set(METRICS)
    assert real.metrics["quality/fid_local"] < 3 * real.metrics["quality/fid_local_floor"]
    assert real.metrics["quality/coverage"] > 0.9 > 0.3 > noise.metrics["quality/coverage"]
    assert noise.metrics["quality/fid_local"] > 20 * real.metrics["quality/fid_local"]
    assert real.metrics["quality/parzen_nats"] == pytest.approx(real.metrics["quality/parzen_anchor_nats"])
    assert noise.metrics.get("quality/parzen_nats", -1e9) < real.metrics["quality/parzen_nats"]
    assert any("is not evidence of better samples" in remark for remark in real.remarks)
    assert real.nearest_sheet.startswith(b"\x89PNG")


def test_a_lost_class_gives_a_warning(digits: Dataset, judge: Judge) -> None:
    assert digits.labels_N is not None
    kept = digits.train[digits.labels_N[digits.train] != 4]
    result = final_evaluation.evaluate_samples(lambda count: images(digits, kept)[:count], digits, judge)
    assert result.metrics["quality/classes_missing"] == 1
    assert "coverage warning: samples rarely show class 4" in result.remarks
    assert result.class_shares[4] < 0.02 and sum(result.class_shares) == pytest.approx(1)
    tags = final_evaluation.final_evaluation_tags(result, judge)
    assert tags["aae.class_shares"].count(",") == 9 and "rarely show class 4" in tags["aae.remarks"]


def class_by_class(dataset: Dataset) -> Dataset:
    """The same images, stored class by class: the first of a part are of one class."""
    assert dataset.labels_N is not None
    labels_N = np.asarray(dataset.labels_N)
    parts = (dataset.train, dataset.val, dataset.test)
    train, val, test = (rows[np.argsort(labels_N[rows], kind="stable")] for rows in parts)
    return replace(dataset, train=train, val=val, test=test)


def test_images_are_drawn_where_not_all_are_taken(
    digits: Dataset, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples like real images get what the floors get, also where the set is stored class by class."""
    monkeypatch.setattr(final_evaluation, "MOST", 200)
    monkeypatch.setattr(final_evaluation, "PARZEN_SAMPLES", 300)
    monkeypatch.setattr(final_evaluation, "PARZEN_VALIDATION", 60)
    rows = np.random.default_rng(0).permutation(digits.train)
    result = final_evaluation.evaluate_samples(
        lambda count: images(digits, rows)[:count], class_by_class(digits), judge
    )
    metrics = result.metrics
    assert metrics["quality/fid_local"] < 2 * metrics["quality/fid_local_floor"]
    assert metrics["quality/coverage"] > 0.8 and metrics["quality/classes_missing"] == 0
    assert metrics["quality/parzen_nats"] == pytest.approx(metrics["quality/parzen_anchor_nats"], abs=3)


def test_codes_and_pictures_are_of_all_classes(
    small_run: Settings, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "CODES", 100)
    monkeypatch.setattr(evaluation, "NOISE_IMAGES", 100)
    training = Training(changed(small_run, {"model.posterior": "gaussian"}), class_by_class(digits))
    labels_N = np.asarray(training.dataset.labels_N)[training.dataset.val]
    data = pictures.figure_data(training.evaluation)
    assert len(data["codes"]) == len(data["labels"]) == 100
    assert np.bincount(data["labels"], minlength=10).min() >= 3
    codes_NZ = training.evaluation.decoder_inputs("val")[:, :2].float().numpy()
    for code_Z, label in zip(data["codes"], data["labels"], strict=True):
        (index,) = np.flatnonzero((codes_NZ == code_Z).all(1))
        assert labels_N[index] == label
    watched = Watched(training.dataset, training.device, training.images.dtype)
    training.evaluation.images = watched
    training.evaluation._noise_use("val")
    assert np.bincount(np.asarray(training.dataset.labels_N)[watched.taken], minlength=10).min() >= 3


def test_codes_are_drawn_that_are_held_against_the_prior(
    small_run: Settings, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes that follow the prior, in the order of their first coordinate: the first hundred are all on one side."""
    monkeypatch.setattr(final_evaluation, "CODES", 100)
    training = Training(small_run, digits)
    codes_NZ = training.evaluation.prior_codes(359, 7)
    monkeypatch.setattr(training.evaluation, "codes", lambda part: codes_NZ[codes_NZ[:, 0].argsort()])
    drawn = final_evaluation.evaluate_codes(training.evaluation)["quality/imq_mmd"]
    monkeypatch.setattr(final_evaluation, "some_of", lambda rows, count: rows[:count])
    assert drawn < 0.3 * final_evaluation.evaluate_codes(training.evaluation)["quality/imq_mmd"]


class Watched(Images):
    """Remembers which images were taken last."""

    taken: np.ndarray

    def __getitem__(self, indices: np.ndarray) -> torch.Tensor:
        self.taken = indices
        return super().__getitem__(indices)


def test_few_images_are_evaluated_without_neighbours(digits: Dataset, judge: Judge) -> None:
    few = replace(digits, train=digits.train[:5])
    result = final_evaluation.evaluate_samples(lambda count: images(digits, digits.test)[:count], few, judge)
    assert "quality/coverage" not in result.metrics and "quality/judge_accuracy" in result.metrics
    assert any("need more than 5 training and test images" in remark for remark in result.remarks)


def test_tiny_images_are_evaluated_without_a_judge(digits: Dataset) -> None:
    result = final_evaluation.evaluate_samples(lambda count: images(digits, digits.test)[:count], digits, None)
    assert any("without 4 x 4 pixels there is no judge" in remark for remark in result.remarks)


def test_data_without_labels_are_evaluated_without_a_judge(digits: Dataset) -> None:
    unlabelled = replace(digits, labels_N=None)
    result = final_evaluation.evaluate_samples(lambda count: images(digits, digits.train)[:count], unlabelled, None)
    assert "quality/parzen_nats" in result.metrics and "quality/fid_local" not in result.metrics
    assert any("without labels" in remark for remark in result.remarks)


@pytest.mark.parametrize("task", ["unsupervised", "semi_supervised", "reduction"])
def test_a_whole_model_is_evaluated_the_same_each_time(
    task: str, small_run: Settings, digits: Dataset, judge: Judge
) -> None:
    settings = changed(
        small_run, {"task": task, "data.labels": 50, "model.posterior": "gaussian", "train.dtype": "float32"}
    )
    training = Training(settings, digits)
    training.train(2)
    first, again = (final_evaluation.evaluate_model(training.evaluation, judge, training.history[-1]) for _ in range(2))
    assert first.metrics == again.metrics and set(first.metrics) <= set(METRICS)
    assert {"quality/imq_mmd", "quality/imq_mmd_floor", "quality/reencoding_error"} <= set(first.metrics)
    assert first.nearest_sheet == again.nearest_sheet


@pytest.mark.parametrize("task", ["supervised", "clustering"])
def test_samples_show_the_class_that_the_decoder_was_given(
    task: str, small_run: Settings, digits: Dataset, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that shows a training image of the class that its label stands for; three clusters for each class."""
    assert digits.labels_N is not None
    labels = 10 if task == "supervised" else 30
    evaluation = Training(changed(small_run, {"task": task, "model.clusters": labels}), digits).evaluation
    class_of_label_K = torch.arange(labels) % 10
    if task == "clustering":
        truth_N = torch.from_numpy(digits.labels_N[digits.val])
        cluster_N = truth_N + 10 * (torch.arange(len(truth_N)) % 3)
        logits_NK = 9.0 * torch.nn.functional.one_hot(cluster_N, labels)
        seen = evaluation._look_at("val")._replace(logits_NK=logits_NK)
        monkeypatch.setattr(evaluation, "_look_at", lambda part: seen)
    first = [digits.train[digits.labels_N[digits.train] == label][0] for label in range(10)]
    shown_KD = images(digits, np.array(first)).flatten(1)

    def decoder(shift: int) -> Any:
        return lambda z_NZ, y_NK: shown_KD[(class_of_label_K[y_NK.argmax(1)] + shift) % 10]

    for shift, expected in ((0, 1.0), (1, 0.0)):
        object.__setattr__(evaluation.model, "decode", decoder(shift))
        result = final_evaluation.evaluate_condition(evaluation, judge)
        assert result == {"quality/conditional_accuracy": pytest.approx(expected, abs=0.15)}
    assert final_evaluation.evaluate_condition(evaluation, None) == {}


def test_prior_samples_that_come_back_have_no_reencoding_error(small_run: Settings, digits: Dataset) -> None:
    """A decoder that writes the code into its first pixels, and an encoder that reads it from there."""
    training = Training(changed(small_run, {"model.latent_dim": 3}), digits)
    evaluation = training.evaluation
    model = evaluation.model

    class Copy:
        noise_dim, prior, label_shares_K = 0, model.prior, None

        @staticmethod
        def decode(z_NZ: torch.Tensor, y_NK: None) -> torch.Tensor:
            return torch.cat([z_NZ, torch.zeros(len(z_NZ), 61, dtype=z_NZ.dtype)], 1)

        @staticmethod
        def encode(x_ND: torch.Tensor, noise_NE: None) -> object:
            return type("Code", (), {"z_BZ": x_ND[:, :3] + 0.5})

    evaluation.codes("test")  # by the model itself
    evaluation.model = Copy()  # type: ignore[assignment]
    assert final_evaluation.evaluate_codes(evaluation)["quality/reencoding_error"] == pytest.approx(0.5)
