"""The table of metrics, and moments against closed forms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Generator, Tensor

from aae_ray.evaluation.metrics import METRICS, balanced_error, code_std, mean_entropy, noise_use, wilson_interval
from aae_ray.settings import Settings


def seeded(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def normal(count: int, size: int, seed: int) -> Tensor:
    return torch.randn(count, size, generator=seeded(seed))


# -------------------------------------------------------------------------------------------------- the table


def test_every_metric_is_well_formed() -> None:
    for name, metric in METRICS.items():
        family, _, leaf = name.partition("/")
        assert metric.name == name and leaf
        assert family in ("val", "test", "adv", "train", "perf", "quality")
        assert metric.direction in ("min", "max", None)
        assert metric.unit and metric.meaning


def test_every_validation_metric_has_a_test_twin_that_no_study_can_optimise() -> None:
    val = {name.removeprefix("val/"): metric for name, metric in METRICS.items() if name.startswith("val/")}
    test = {name.removeprefix("test/"): metric for name, metric in METRICS.items() if name.startswith("test/")}
    assert val.keys() == test.keys() and "reconstruction_mse" in val
    for leaf, twin in test.items():
        assert twin.direction is None and twin.meaning.endswith(val[leaf].meaning)
        like_val = replace(twin, name=val[leaf].name, meaning=val[leaf].meaning, direction=val[leaf].direction)
        assert like_val == val[leaf]


def test_the_default_objectives_have_directions() -> None:
    assert {METRICS[name].direction for name in Settings().study.objectives} == {"min"}


# ------------------------------------------------------------------------------------------- images and moments


def test_code_std_is_measured_in_the_priors_scale() -> None:
    codes_NZ = normal(20_000, 2, 0) * torch.tensor([1.0, 10.0])
    assert code_std(codes_NZ, torch.tensor([2.0, 5.0])) == pytest.approx((0.5 + 2) / 2, rel=0.02)
    assert code_std(torch.ones(5, 2), torch.ones(2)) == 0


def test_the_entropy_of_one_hots_is_zero_and_of_the_unsure_the_logarithm() -> None:
    assert mean_entropy(1000 * torch.eye(4)) == 0
    assert mean_entropy(torch.zeros(3, 16)) == pytest.approx(math.log(16))
    assert mean_entropy(torch.tensor([[0.25, 0.75], [1.0, 0.0]]).log()) == pytest.approx(
        -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / 2
    )


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (1.0, 1.0), (0.6, 0.8), (0.0, 1.0)])
def test_noise_use_is_the_noises_share_of_the_variance(a: float, b: float) -> None:
    x_NZ, noise_MNZ = normal(4000, 3, 0), torch.randn(8, 4000, 3, generator=seeded(1))
    assert noise_use(a * x_NZ + b * noise_MNZ) == pytest.approx(b**2 / (a**2 + b**2), abs=0.02)


def test_noise_use_of_dead_dimensions_is_zero_and_one_draw_is_too_few() -> None:
    z_MNZ = torch.randn(4, 1000, 2, generator=seeded(0))
    z_MNZ[..., 1] = 3.0
    assert noise_use(z_MNZ) == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ValueError, match="two or more draws"):
        noise_use(z_MNZ[:1])


def test_the_balanced_error_weighs_classes_alike() -> None:
    """Nine of ten images are of one class: to answer it always is right nine times of ten, and of one class of two."""
    labels_N = torch.tensor([2] * 9 + [5])
    assert balanced_error(torch.full((10,), 2), labels_N)[0] == pytest.approx(0.5)
    assert balanced_error(labels_N, labels_N)[0] == 0


def test_the_interval_of_a_balanced_error_holds_the_truth_about_as_often_as_it_says() -> None:
    """Classes of 400, 30 and 10 images, of which shares of 2, 20 and 40 % are in error."""
    shares, sizes, random = (0.02, 0.2, 0.4), (400, 30, 10), np.random.default_rng(0)
    labels_N, truth, held = torch.arange(3).repeat_interleave(torch.tensor(sizes)), sum(shares) / 3, 0
    for _ in range(400):
        wrong_N = torch.cat([torch.from_numpy(random.random(n) < p) for n, p in zip(sizes, shares, strict=True)])
        low, high = balanced_error((labels_N + wrong_N.long()) % 3, labels_N)[1]
        held += low <= truth <= high
    assert 0.92 <= held / 400 <= 0.99
    none_wrong = balanced_error(labels_N, labels_N)[1]
    assert (
        none_wrong[0] == pytest.approx(0, abs=1e-9) and none_wrong[1] > 0.05
    )  # ten images without an error prove little


@pytest.mark.parametrize(("wrong", "count"), [(0, 10), (1, 359), (40, 359), (359, 359)])
def test_the_interval_of_an_error_is_wilsons(wrong: int, count: int) -> None:
    expected = binomtest(wrong, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(wrong / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)
