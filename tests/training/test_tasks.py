"""Every task of the paper, trained on the digits, against the trivial answer that it has to beat by a wide margin."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from aae_ray.autoencoder.phases import TASKS
from aae_ray.datasets.dataset import Dataset
from aae_ray.evaluation.figure_data import FIGURES, STYLE_SHEET, draw, figure_data
from aae_ray.evaluation.metrics import METRICS
from aae_ray.settings import Settings, replace
from aae_ray.training.loop import Training

CHANCE = 0.9  # ten classes: the error of the largest class, of a random label, of a random part of the prior
SHARED = {
    "model.hidden": (128, 128),
    "model.discriminator_hidden": (128, 128),
    "model.latent_dim": 8,
    "train.dtype": "float32",
    "train.batch_size": 50,
    "train.epochs": 40,
    "optim.reconstruction_lr": 2e-3,
    "optim.discrimination_lr": 1e-3,
    "optim.regularization_lr": 1e-3,
}
INFORMED = {
    "train.epochs": 80,
    "model.latent_dim": 2,
    "data.labels": 0.3,
    "optim.reconstruction_lr": 5e-4,
    "optim.discrimination_lr": 1e-2,
    "optim.regularization_lr": 3e-3,
}
NOISY = {"train.label_noise": 0.3}

# Task, what it is given, the metric it is for, and what the metric must reach.
GOALS: list[tuple[str, dict[str, Any], str, float]] = [
    ("unsupervised", {}, "val/reconstruction_mse", 0.4),  # times the error of the mean image
    ("vae", {"model.posterior": "gaussian", "model.decoder_std": 0.3}, "val/reconstruction_mse", 0.6),
    ("wae_mmd", {}, "val/reconstruction_mse", 0.4),
    ("supervised", {}, "val/reconstruction_mse", 0.4),
    ("label_informed", INFORMED | {"model.prior": "mixture"}, "val/part_error", 0.4),
    ("label_informed", INFORMED | {"model.prior": "swiss_roll"}, "val/part_error", 0.4),
    ("semi_supervised", NOISY | {"data.labels": 50, "train.input_noise": 0.3}, "val/classification_error", 0.25),
    ("clustering", NOISY | {"model.clusters": 16, "model.latent_dim": 5}, "val/classification_error", 0.6),
    ("reduction", NOISY | {"model.clusters": 16, "model.latent_dim": 2}, "val/classification_error", 0.6),
    ("semi_supervised_reduction", NOISY | {"data.labels": 50, "model.latent_dim": 2}, "val/classification_error", 0.4),
]
LONG = ("label_informed", "reduction", "semi_supervised_reduction")  # their losses are those of others, put together


def test_every_task_has_a_goal() -> None:
    assert {task for task, *_ in GOALS} == set(TASKS)


@pytest.mark.parametrize(
    ("task", "values", "metric", "goal"),
    [
        pytest.param(*goal, id=f"{goal[0]}-{index}", marks=pytest.mark.slow if goal[0] in LONG else ())
        for index, goal in enumerate(GOALS)
    ],
)
def test_a_task_beats_the_trivial_answer(
    task: str, values: dict[str, Any], metric: str, goal: float, small_run: Settings, digits: Dataset
) -> None:
    training = Training(replace(small_run, SHARED | {"task": task} | values), digits)
    metrics = training.train().metrics
    assert set(metrics) - {"epoch"} <= set(METRICS)
    baseline = metrics["val/mean_image_mse"] if metric == "val/reconstruction_mse" else 1.0
    assert goal * baseline < (metrics["val/mean_image_mse"] if baseline != 1.0 else CHANCE)
    assert metrics[metric] < goal * baseline, f"{metric} is {metrics[metric]:.3f}"
    if TASKS[task].y == "clusters":
        assert metrics["val/clusters_used"] >= 5 and metrics["val/nmi"] > 0.3 and metrics["val/ari"] > 0.1
        assert metrics["val/hungarian_accuracy"] > 0.3
    tested = training.evaluation.cheap("test")
    assert tested[metric.replace("val/", "test/")] < 1.2 * goal * baseline

    sheets = draw(figure_data(training.evaluation))
    assert set(sheets) == {*FIGURES, *([STYLE_SHEET] if training.model.classes else [])}


@pytest.mark.slow
def test_label_information_needs_its_labels(small_run: Settings, digits: Dataset) -> None:
    """The very run that keeps three codes of five in their label's part, with one label of each class and no more."""
    values = SHARED | INFORMED | {"task": "label_informed", "model.prior": "mixture", "data.labels": 10}
    metrics = Training(replace(small_run, values), digits).train().metrics
    assert metrics["val/part_error"] > 0.5


def looks_like(images_ND: Tensor, digits: Dataset) -> Tensor:
    """The label, (N,), whose mean training image each image is nearest to."""
    assert digits.labels_N is not None
    known_N, x_ND = digits.labels_N[digits.train], torch.from_numpy(digits.images_NCHW[digits.train] / 255).flatten(1)
    mean_KD = torch.stack([x_ND[torch.from_numpy(known_N == label)].mean(0) for label in range(10)])
    return torch.cdist(images_ND.double(), mean_KD).argmin(1)


@torch.no_grad()
def test_samples_show_their_label_where_the_encoder_is_to_find_it(small_run: Settings, digits: Dataset) -> None:
    """Only z and y by themselves are compared with their priors; together they may mean another digit, or none."""
    values = SHARED | NOISY | {"task": "semi_supervised", "data.labels": 100, "train.epochs": 10}
    shown = []
    for rate in (0.0, 1e-3):
        with torch.enable_grad():
            training = Training(replace(small_run, values | {"optim.reencoding_lr": rate}), digits)
            training.train()
        z_NZ, y_NK = training.evaluation.prior_decoder_inputs(1000)
        assert y_NK is not None
        labels_N = looks_like(training.model.decode(z_NZ, y_NK), digits)
        shown.append((labels_N == y_NK.argmax(1)).double().mean().item())
    assert shown[1] > 1.5 * shown[0]


def test_the_label_that_is_given_is_the_digit_that_is_shown(small_run: Settings, digits: Dataset) -> None:
    """Images of a style sheet look most like the mean image of the label that their decoder was given; chance is 0.1.

    A style of eight numbers is wide enough for these small images to keep part of the label, one of four is less so.
    """
    values = SHARED | {"task": "supervised", "model.latent_dim": 4, "train.epochs": 60}
    training = Training(replace(small_run, values), digits)
    training.train()
    shown_N = looks_like(training.evaluation.styles(10).flatten(1), digits)
    asked_N = torch.arange(10).repeat(10)
    assert (shown_N == asked_N)[:10].sum() >= 8, "the style 0, the most likely one"
    assert (shown_N == asked_N).double().mean() > 0.5  # 0.70 to 0.74 of three seeds


def test_a_cluster_is_named_after_its_surest_validation_image(small_run: Settings, digits: Dataset) -> None:
    training = Training(replace(small_run, {"task": "clustering", "model.clusters": 12}), digits)
    training.train(1)
    evaluation = training.evaluation
    val, test = evaluation._look_at("val").logits_NK, evaluation._look_at("test").logits_NK
    assert val is not None and test is not None and digits.labels_N is not None
    name_of_cluster = torch.from_numpy(digits.labels_N[digits.val])[val.double().softmax(1).argmax(0)]
    wrong_N = name_of_cluster[test.argmax(1)] != torch.from_numpy(digits.labels_N[digits.test])
    expected = wrong_N.double().mean().item()
    assert evaluation.cheap("test")["test/classification_error"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("network", "normalization", "posterior", "task"),
    [
        *product(("dense", "convolutional"), ("none", "batch", "layer"), ("gaussian",), ("semi_supervised",)),
        ("dense", "none", "universal", "semi_supervised_reduction"),
        ("convolutional", "none", "deterministic", "semi_supervised_reduction"),
    ],
)
def test_mixed_precision_is_for_products_alone(
    network: str, normalization: str, posterior: str, task: str, small_run: Settings, digits: Dataset
) -> None:
    """Weights, codes, probabilities and losses keep their precision: in bfloat16 a probability has three digits.

    That they are of type float32 says little: rounded numbers may be, so none of them has bfloat16's few digits only.
    """
    values: dict[str, Any] = {
        "train.dtype": "float32",
        "optim.algorithm": "sgd",
        "model.network": network,
        "model.channels": (4, 8),
        "model.normalization": normalization,
    }
    values |= {"task": task, "data.labels": 50, "model.posterior": posterior}
    mixed, full = (Training(replace(small_run, values | {"train.mixed_precision": on}), digits) for on in (True, False))
    products: set[torch.dtype] = set()
    trunk = next(iter(mixed.model.networks["trunk"].children()))
    trunk[0].register_forward_hook(lambda _, inputs, answer: products.add(answer.dtype))  # type: ignore[index]
    answers: dict[str, set[torch.dtype]] = {}

    def look(name: str, answer: Any) -> None:
        for part in answer if isinstance(answer, tuple) else [answer]:
            if part is not None:
                answers.setdefault(name, set()).add(part.dtype)
                assert not torch.equal(part, part.bfloat16().float()), f"{name} is rounded"

    for name, each in mixed.model.networks.items():
        if name != "trunk":
            each.register_forward_hook(lambda _, inputs, answer, name=name: look(name, answer))
    step = next(mixed.batches.epoch(0))
    seen = mixed.step(step)
    full.step(step)
    assert products == {torch.bfloat16}
    assert {name: kinds for name, kinds in answers.items() if kinds != {torch.float32}} == {}
    assert set(answers) == set(mixed.model.networks) - {"trunk"}
    assert {tensor.dtype for tensor in seen} == {torch.float32}
    weight, same = (next(training.model.networks["decoder"].parameters()) for training in (mixed, full))
    assert weight.dtype == torch.float32 and not torch.equal(weight, same)
    torch.testing.assert_close(weight, same, rtol=0.1, atol=5e-3)
