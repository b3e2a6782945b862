"""What is measured on held-out images: closed forms for the errors, fixed numbers, and no trace left behind."""

import math

import numpy as np
import pytest
import torch

from aae_ray.datasets.dataset import Dataset
from aae_ray.evaluation.figure_data import figure_data
from aae_ray.evaluation.held_out import Encoded, HeldOutMetrics, some_of
from aae_ray.evaluation.metrics import METRICS
from aae_ray.settings import Settings, replace
from aae_ray.training.loop import Training

WRONG = 7  # answers of the hand-made sets


@pytest.fixture
def evaluation(small_run: Settings, digits: Dataset) -> HeldOutMetrics:
    return Training(replace(small_run, {"model.posterior": "gaussian"}), digits).evaluation


def test_the_baseline_is_the_mean_training_image(evaluation: HeldOutMetrics, digits: Dataset) -> None:
    x_NCHW = digits.images_NCHW / 255
    expected = np.square(x_NCHW[digits.test] - x_NCHW[digits.train].mean(0)).mean()
    assert evaluation.cheap("test")["test/mean_image_mse"] == pytest.approx(expected, rel=1e-9)


def test_the_reconstruction_error_is_per_pixel_of_all_held_out_images(
    evaluation: HeldOutMetrics, digits: Dataset
) -> None:
    x_NCHW, answer_NCHW = evaluation.reconstructions("val", len(digits.val))
    expected = (x_NCHW - answer_NCHW).square().mean().item()
    assert evaluation.cheap("val")["val/reconstruction_mse"] == pytest.approx(expected, rel=1e-9)


def test_metrics_are_fixed_numbers_and_leave_no_trace(evaluation: HeldOutMetrics) -> None:
    before = torch.get_rng_state()
    first = evaluation.cheap("val") | evaluation.costly("val")
    again = evaluation.cheap("val") | evaluation.costly("val")
    assert first == again and set(first) <= set(METRICS)
    assert torch.equal(before, torch.get_rng_state())
    assert all(network.training for network in evaluation.model.networks.values())


def test_a_report_encodes_the_images_once(
    small_run: Settings, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics of the epoch, of the report and the figure of the codes share an encoding, until the weights change."""
    training = Training(small_run, digits)
    encoded: list[int] = []
    encode = HeldOutMetrics._encode

    def counted(evaluation: HeldOutMetrics, rows_N: np.ndarray) -> Encoded:
        encoded.append(len(rows_N))
        return encode(evaluation, rows_N)

    monkeypatch.setattr(HeldOutMetrics, "_encode", counted)
    training.train(2)
    figure_data(training.evaluation)
    assert encoded == [len(digits.val)] * 2, "once an epoch"
    before = training.evaluation.codes("val")
    training.load_state_dict(Training(replace(small_run, {"seed": 1}), digits).state_dict())
    assert not torch.equal(before, training.evaluation.codes("val"))


def test_noise_use_is_measured_for_stochastic_posteriors_alone(small_run: Settings, digits: Dataset) -> None:
    for posterior, measured in (("deterministic", False), ("gaussian", True), ("universal", True)):
        result = Training(replace(small_run, {"model.posterior": posterior}), digits).evaluation.costly("val")
        assert ("val/noise_use" in result) is measured
        if measured:
            assert 0 < result["val/noise_use"] <= 1.1


def test_a_choice_of_images_is_of_all_classes_and_in_order() -> None:
    """Of a set that is stored class by class the first images are of one class."""
    rows_N = np.arange(100, 1100)
    chosen = some_of(rows_N, 200)
    assert len(set(chosen)) == 200 and np.array_equal(chosen, np.sort(chosen))
    assert np.array_equal(chosen, some_of(rows_N, 200)) and np.array_equal(some_of(rows_N, 1000), rows_N)
    assert np.bincount((chosen - 100) // 100, minlength=10).min() >= 10


def test_the_error_of_a_label_head_by_hand(small_run: Settings, digits: Dataset) -> None:
    """An image is wrong whose largest logit is not its label's: seven of them, whatever the other logits are."""
    evaluation = Training(replace(small_run, {"task": "semi_supervised", "data.labels": 50}), digits).evaluation
    assert digits.labels_N is not None
    for part, rows in (("val", digits.val), ("test", digits.test)):
        answers_N = torch.from_numpy(digits.labels_N[rows])
        answers_N[:WRONG] = (answers_N[:WRONG] + 1) % 10
        logits_NK = torch.full((len(rows), 10), -5.0).scatter(1, answers_N[:, None], -4.9)
        result = evaluation._labelling(part, torch.zeros(len(rows), 8), logits_NK)
        assert result.pop("label_entropy_nats") == pytest.approx(math.log(10), abs=0.01)
        assert result == {"classification_error": pytest.approx(WRONG / len(rows))}


@pytest.mark.parametrize("prior", ["mixture", "swiss_roll"])
def test_the_error_of_parts_by_hand(prior: str, small_run: Settings, digits: Dataset) -> None:
    """Codes are drawn from their label's part of the prior, seven of them from the part five further on."""
    settings = replace(small_run, {"task": "label_informed", "data.labels": 50, "model.prior": prior})
    evaluation = Training(settings, digits).evaluation
    assert digits.labels_N is not None
    part_N = torch.from_numpy(digits.labels_N[digits.val])
    drawn_NZ = evaluation.model.prior.sample(len(part_N), torch.Generator().manual_seed(0), part_N=part_N)
    astray_N = (part_N[:WRONG] + 5) % 10
    drawn_NZ[:WRONG] = evaluation.model.prior.sample(WRONG, torch.Generator().manual_seed(1), part_N=astray_N)
    own = evaluation.model.prior.part_of(drawn_NZ[WRONG:]) != part_N[WRONG:]  # a component's tail may cross its border
    result = evaluation._labelling("val", drawn_NZ, None)
    assert result == {"part_error": pytest.approx((WRONG + own.sum().item()) / len(part_N))}
    assert own.double().mean() < 0.02


def test_a_sheet_of_styles_has_a_style_a_row_and_a_label_a_column(small_run: Settings, digits: Dataset) -> None:
    training = Training(replace(small_run, {"task": "supervised"}), digits)
    training.train(1)
    sheet_NCHW = training.evaluation.styles(3)
    assert sheet_NCHW.shape == (3 * 10, *digits.shape)
    z_NZ = training.evaluation.prior_codes(3, 0)
    z_NZ[0] = 0
    for row, z_Z in enumerate(z_NZ):
        for column, y_K in enumerate(torch.eye(10)):
            x_1D = training.model.decode(z_Z[None].to(torch.float64), y_K[None].to(torch.float64))
            torch.testing.assert_close(
                sheet_NCHW[10 * row + column].flatten(), x_1D[0].detach().cpu(), check_dtype=False
            )
