"""What is measured on held-out images: closed forms for the errors, fixed numbers, and no trace left behind."""

import math
from dataclasses import replace as changed

import numpy as np
import pytest
import torch

from aae_ray.datasets.classes import UNKNOWN
from aae_ray.datasets.dataset import Dataset
from aae_ray.datasets.images import examples
from aae_ray.evaluation.figure_data import figure_data
from aae_ray.evaluation.held_out import Encoded, HeldOutMetrics, measured, some_of
from aae_ray.evaluation.judge import Judge
from aae_ray.evaluation.metrics import METRICS
from aae_ray.search.choice import scaled
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


def test_classes_name_themselves_without_a_look_at_an_image(small_run: Settings, digits: Dataset) -> None:
    evaluation = Training(replace(small_run, {"task": "semi_supervised"}), digits).evaluation
    classes_K = evaluation.classes_of_labels()
    assert classes_K is not None and torch.equal(classes_K, torch.arange(10))
    assert not evaluation._encodings


def test_noise_use_is_measured_for_stochastic_posteriors_alone(small_run: Settings, digits: Dataset) -> None:
    for posterior, used in (("deterministic", False), ("gaussian", True), ("universal", True)):
        result = Training(replace(small_run, {"model.posterior": posterior}), digits).evaluation.costly("val")
        assert ("val/noise_use" in result) is used
        if used:
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
        for name in ("classification_error", "balanced_error"):
            assert result.pop(f"{name}_low") < result[name] < result.pop(f"{name}_high")
        truth_N = torch.from_numpy(digits.labels_N[rows])
        recall = [(answers_N[truth_N == label] == label).double().mean().item() for label in range(10)]
        assert result == {
            "classification_error": pytest.approx(WRONG / len(rows)),
            "balanced_error": pytest.approx(1 - sum(recall) / 10),
        }


@pytest.mark.parametrize("task", ["semi_supervised", "clustering", "label_informed"])
def test_images_without_a_label_count_in_no_metric_over_labels(small_run: Settings, digits: Dataset, task: str) -> None:
    """What is said of labels is what would be said of the labelled images alone; all else is of all images."""
    assert digits.labels_N is not None
    values = {"task": task, "model.clusters": 12} | ({"model.prior": "mixture"} if task == "label_informed" else {})
    labels_N = np.where(np.arange(len(digits.labels_N)) % 3 == 0, UNKNOWN, digits.labels_N)
    partly = changed(digits, labels_N=labels_N)
    labelled = changed(partly, val=partly.labelled(partly.val), test=partly.labelled(partly.test))
    assert len(labelled.val) < len(digits.val)
    of_all, of_labelled = (Training(replace(small_run, values), data).evaluation for data in (partly, labelled))
    over_labels = {"part_error", "classification_error", "balanced_error", "majority_error", "hungarian_accuracy"}
    for part in ("val", "test"):
        expected, result = of_labelled.cheap(part), of_all.cheap(part)
        names = [name for name in result if name.partition("/")[2] in over_labels]
        assert names and {name: result[name] for name in names} == {name: expected[name] for name in names}
        assert result[f"{part}/reconstruction_mse"] != expected[f"{part}/reconstruction_mse"]
    assert {name.partition("/")[2] for name in names} <= {
        name.partition("/")[2] for name in measured(replace(small_run, values), partly)
    }


def test_a_part_without_labels_has_no_metrics_over_them(small_run: Settings, digits: Dataset) -> None:
    assert digits.labels_N is not None
    settings = replace(small_run, {"task": "clustering"})
    for part, rows in (("val", digits.val), ("test", digits.test)):
        labels_N = np.asarray(digits.labels_N).copy()
        labels_N[rows] = UNKNOWN
        bare = changed(digits, labels_N=labels_N)
        evaluation = Training(settings, bare).evaluation
        result = evaluation.cheap("val") | evaluation.cheap("test")
        assert f"{part}/hungarian_accuracy" not in result and f"{part}/classification_error" not in result
        assert f"{part}/clusters_used" in result
        assert ("val/classification_error" in measured(settings, bare)) is (part == "test")
        assert (evaluation.classes_of_labels() is None) is (part == "val")


def test_label_and_code_that_depend_on_each_other_are_seen_together_alone(
    small_run: Settings, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes follow the prior and so do labels, but the label is the sign of a coordinate: only the pair tells."""
    evaluation = Training(replace(small_run, {"task": "clustering", "model.clusters": 2}), digits).evaluation
    z_NZ = evaluation.prior_codes(1000, 7)

    def result(label_N: torch.Tensor) -> dict[str, float]:
        logits_N2 = torch.full((1000, 2), -20.0).scatter(1, label_N[:, None], 20.0)
        monkeypatch.setattr(evaluation, "_look_at", lambda part: Encoded(z_NZ, logits_N2, None, 0.0))
        return evaluation.costly("val")

    apart = result((torch.rand(1000, generator=torch.Generator().manual_seed(0)) < 0.5).long())
    together = result((z_NZ[:, 0] > 0).long())
    assert together["val/jsd_nats"] == apart["val/jsd_nats"] < 0.02
    assert abs(apart["val/joint_jsd_nats"] - apart["val/joint_jsd_nats_floor"]) < 0.03
    assert together["val/joint_jsd_nats"] > 0.12  # of 0.216: half of the pairs that p(y) p(z) has do not occur


def test_labels_are_drawn_from_what_the_label_head_says(
    small_run: Settings, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest probability alone would hide how unsure q(y|x) is; the probabilities lie where no prior draw does."""
    evaluation = Training(replace(small_run, {"task": "clustering", "model.clusters": 2}), digits).evaluation
    logits_N2 = torch.tensor([[0.75, 0.25]]).log().repeat(4000, 1)
    monkeypatch.setattr(evaluation, "_look_at", lambda part: Encoded(torch.zeros(4000, 3), logits_N2, None, 0.0))
    y_N2 = evaluation._labels("val")
    assert set(y_N2.unique().tolist()) == {0.0, 1.0} and (y_N2.sum(1) == 1).all()
    assert y_N2[:, 0].mean().item() == pytest.approx(0.75, abs=0.03)
    assert torch.equal(y_N2, evaluation._labels("val"))


@pytest.mark.parametrize(("gain", "noise"), [(0.8, 0.6), (1.0, 0.5), (0.6, 0.3), (1.3, 0.8)])
def test_what_codes_tell_of_their_images_against_closed_forms(
    gain: float, noise: float, small_run: Settings, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of x ~ N(0, 1) and z = a x + b e, a coordinate: q(z) = N(0, a^2 + b^2) and I(x; z) = log(1 + a^2 / b^2) / 2."""
    evaluation = Training(replace(small_run, {"model.posterior": "gaussian"}), digits).evaluation
    size = evaluation.model.prior.latent_dim
    x_NZ, e_NZ = (torch.randn(2000, size, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    entropy_N = torch.full((2000,), size * (0.5 * math.log(2 * math.pi * math.e) + math.log(noise)))
    variance = gain**2 + noise**2
    aggregate = size * ((variance - 1) / 2 - math.log(variance) / 2)
    information = size * math.log(1 + gain**2 / noise**2) / 2
    values = evaluation._kl(gain * x_NZ + noise * e_NZ, entropy_N)
    assert values["kl_posterior_nats"] == pytest.approx(aggregate + information, abs=0.1)
    assert values["kl_aggregate_nats"] == pytest.approx(aggregate, rel=0.05, abs=0.1)
    assert values["mutual_information_nats"] == pytest.approx(information, abs=0.2)


def test_the_vae_and_the_adversarial_autoencoder_have_both_halves_of_the_kl_term(
    small_run: Settings, digits: Dataset
) -> None:
    names = {f"val/{name}" for name in ("kl_aggregate_nats", "kl_posterior_nats", "mutual_information_nats")}
    for task in ("unsupervised", "vae"):
        training = Training(replace(small_run, {"task": task, "model.posterior": "gaussian"}), digits)
        result = training.train(1).metrics
        assert names <= result.keys()
        assert result["val/kl_posterior_nats"] == pytest.approx(
            result["val/kl_aggregate_nats"] + result["val/mutual_information_nats"]
        )
    for prior in ("swiss_roll", "uniform"):  # without a density wherever codes may lie: infinite
        other = Training(replace(small_run, {"model.posterior": "gaussian", "model.prior": prior}), digits)
        assert not names & other.evaluation.costly("val").keys()


def test_samples_are_judged_where_there_is_a_judge(small_run: Settings, digits: Dataset, judge: Judge) -> None:
    """Real images are near 0, an untrained decoder's are far."""
    training = Training(small_run, digits, judge=judge)
    assert "val/kid_local" not in Training(small_run, digits).evaluation.costly("val")
    untrained = training.evaluation.costly("val")["val/kid_local"]
    rows = digits.train[: len(digits.val)]
    training.evaluation.samples = lambda count: examples(digits, rows)  # type: ignore[method-assign]
    real = training.evaluation.costly("val")["val/kid_local"]
    assert abs(real) < 0.05 * untrained


def test_the_kernel_distance_is_at_its_worst_for_the_mean_image(
    small_run: Settings, digits: Dataset, judge: Judge
) -> None:
    evaluation = Training(small_run, digits, judge=judge).evaluation
    mean_CHW = examples(digits, digits.train).mean(0)
    evaluation.samples = lambda count: mean_CHW.expand(count, -1, -1, -1)  # type: ignore[method-assign]
    values = evaluation.costly("val")
    assert values["val/kid_local"] == pytest.approx(values["val/kid_local_ceiling"], rel=1e-3)
    assert scaled("val/kid_local", values) == pytest.approx(1, abs=1e-3)


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
