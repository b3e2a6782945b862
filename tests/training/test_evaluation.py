"""What is measured on held-out images: closed forms for the errors, fixed numbers, and no trace left behind."""

import numpy as np
import pytest
import torch

from aae_ray.settings import Settings, replace
from aae_ray.training.data import Dataset
from aae_ray.training.evaluation import Evaluation
from aae_ray.training.loop import Training
from aae_ray.training.metrics import METRICS


@pytest.fixture
def evaluation(small_run: Settings, digits: Dataset) -> Evaluation:
    return Training(replace(small_run, {"model.posterior": "gaussian"}), digits).evaluation


def test_the_baseline_is_the_mean_training_image(evaluation: Evaluation, digits: Dataset) -> None:
    x_NCHW = digits.images_NCHW / 255
    expected = np.square(x_NCHW[digits.test] - x_NCHW[digits.train].mean(0)).mean()
    assert evaluation.cheap("test")["test/mean_image_mse"] == pytest.approx(expected, rel=1e-9)


def test_the_reconstruction_error_is_per_pixel_of_all_held_out_images(evaluation: Evaluation, digits: Dataset) -> None:
    x_NCHW, answer_NCHW = evaluation.reconstructions("val", len(digits.val))
    expected = (x_NCHW - answer_NCHW).square().mean().item()
    assert evaluation.cheap("val")["val/reconstruction_mse"] == pytest.approx(expected, rel=1e-9)


def test_metrics_are_fixed_numbers_and_leave_no_trace(evaluation: Evaluation) -> None:
    before = torch.get_rng_state()
    first = evaluation.cheap("val") | evaluation.costly("val")
    again = evaluation.cheap("val") | evaluation.costly("val")
    assert first == again and set(first) <= set(METRICS)
    assert torch.equal(before, torch.get_rng_state())
    assert all(player.training for player in evaluation.model.players.values())


def test_noise_use_is_measured_for_stochastic_posteriors_alone(small_run: Settings, digits: Dataset) -> None:
    for posterior, measured in (("deterministic", False), ("gaussian", True), ("universal", True)):
        found = Training(replace(small_run, {"model.posterior": posterior}), digits).evaluation.cheap("val")
        assert ("val/noise_use" in found) is measured
        if measured:
            assert 0 < found["val/noise_use"] <= 1.1
