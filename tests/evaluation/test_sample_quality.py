"""Every measure of quality against a closed form, brute force or a set made by hand."""

import math

import pytest
import torch
from torch import Tensor

from aae_ray.errors import UserError
from aae_ray.evaluation import sample_quality as quality


def normal(count: int, size: int, seed: int, std: float = 1.0, mean: float = 0.0) -> Tensor:
    x_NF = torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x_NF * std + mean


# ------------------------------------------------------------------------------------------------- features of images


def standardized(x_NF: Tensor, covariance_FF: Tensor, mean: float) -> Tensor:
    """Examples whose sample mean and sample covariance are exactly these."""
    x_NF = x_NF - x_NF.mean(0)
    white_NF = x_NF @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x_NF.T))).T
    found_NF: Tensor = white_NF @ torch.linalg.cholesky(covariance_FF).T + mean
    return found_NF


def test_frechet_distance_of_two_gaussians() -> None:
    """Commuting covariances: sum of squared differences of the standard deviations along common axes, plus means."""
    axes_33 = torch.linalg.qr(normal(3, 3, 5)).Q
    a, b = (axes_33 @ torch.diag(torch.tensor(v)).double() @ axes_33.T for v in ([1.0, 4.0, 9.0], [4.0, 1.0, 0.25]))
    real, fake = standardized(normal(50, 3, 0), a, 0.0), standardized(normal(70, 3, 1), b, 2.0)
    expected = 3 * 2.0**2 + (1 - 2) ** 2 + (2 - 1) ** 2 + (3 - 0.5) ** 2
    assert quality.frechet_distance(real, fake) == pytest.approx(expected, rel=1e-9)
    assert quality.frechet_distance(real, real) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_bears_features_that_never_vary() -> None:
    dead = torch.cat([normal(40, 2, 0), torch.zeros(40, 3, dtype=torch.float64)], 1)
    assert quality.frechet_distance(dead, dead) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="two or more"):
        quality.frechet_distance(dead[:1], dead)


def test_kernel_distance_by_brute_force() -> None:
    """With as many examples as a subset takes, up to their order, all subsets are drawn from the same few."""
    real, fake = normal(8, 3, 0), normal(8, 3, 1, mean=1.0)
    result = quality.kernel_distance(real, fake, seed=0)
    again = quality.kernel_distance(real, fake, seed=0)
    assert result == again and result.standard_error > 0
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(quality.SUBSETS):
        x, y = (some[torch.randperm(8, generator=generator)[:4]] for some in (real, fake))

        def kernel(a: Tensor, b: Tensor) -> float:
            return ((a @ b).item() / 3 + 1) ** 3

        pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
        within = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs) / 12
        values.append(within - 2 * sum(kernel(a, b) for a in x for b in y) / 16)
    assert result.value == pytest.approx(sum(values) / len(values), rel=1e-9)


def test_kernel_distance_is_about_zero_for_equal_distributions() -> None:
    equal = quality.kernel_distance(normal(1000, 4, 0), normal(1000, 4, 1), seed=0)
    apart = quality.kernel_distance(normal(1000, 4, 0), normal(1000, 4, 1, mean=0.5), seed=0)
    assert abs(equal.value) < 0.1 < apart.value


def test_neighbourhoods_by_hand() -> None:
    """On a line, k = 1: real balls are [-1, 1], [0, 2], [9, 19] (radius to the nearest other: 1, 1, 9 -> 10 +- 9)."""
    real, fake = (torch.tensor(v, dtype=torch.float64)[:, None] for v in ([0.0, 1.0, 10.0], [0.5, 1.5, 50.0]))
    # Radii: real 1, 1, 9; fake 1, 1, 48.5. 0.5 lies in the balls of 0 and 1, 1.5 in those of 1 and 10, 50 in none.
    result = quality.prdc(real, fake, k=1)
    assert result.precision == pytest.approx(2 / 3)
    assert result.density == pytest.approx((2 + 2 + 0) / 3)
    assert result.coverage == pytest.approx(1.0)
    assert result.recall == pytest.approx(1.0)  # 0 and 1 near 0.5; 10 within 48.5 of 50
    assert quality.prdc(real, torch.tensor([[100.0], [101.0]], dtype=torch.float64), k=1) == quality.Prdc(0, 0, 0, 0)


def test_equal_distributions_have_density_one_and_the_known_coverage() -> None:
    result = quality.prdc(normal(1500, 3, 0), normal(1500, 3, 1))
    assert result.density == pytest.approx(1, abs=0.05)
    assert result.coverage == pytest.approx(1 - 2**-5, abs=0.02)
    assert result.precision > 0.9 and result.recall > 0.9


def test_copies_of_one_example_count_for_nothing() -> None:
    result = quality.prdc(torch.zeros(20, 2), torch.zeros(20, 2))
    assert (result.density, result.coverage) == (0, 0)
    with pytest.raises(ValueError, match="5 neighbours need more than 5 examples, got 5 and 9"):
        quality.prdc(torch.zeros(5, 2), torch.zeros(9, 2))


def test_a_lost_mode_shows_in_recall_and_coverage_alone() -> None:
    modes = normal(600, 2, 0)
    modes[300:] += 20
    result = quality.prdc(modes, normal(600, 2, 1))
    assert result.precision > 0.9 and result.recall < 0.6 and result.coverage < 0.6


def test_the_class_histogram_by_hand_and_its_alarm() -> None:
    p_4K = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.4, 0.0], [0.1, 0.9, 0.0], [0.8, 0.1, 0.1]])
    result = quality.class_histogram(p_4K, torch.tensor([5, 5, 5]))
    assert result.share_K == pytest.approx((0.75, 0.25, 0.0))
    assert result.kl_to_real_nats == pytest.approx(math.log(3) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert result.confidence == pytest.approx((0.7 + 0.6 + 0.9 + 0.8) / 4)
    assert result.missing == (2,)
    entropy = -sum(p * math.log(p) for row in p_4K.tolist() for p in row if p) / 4
    assert result.entropy_nats == pytest.approx(entropy, rel=1e-6)
    assert quality.class_histogram(torch.eye(4), torch.ones(4)).missing == ()


def test_a_class_is_missing_that_real_images_have() -> None:
    """Labels from 1 to 3, of which the last is rare: samples like the real images raise no alarm, and are as the data
    are; samples that show each alike are not."""
    real_K = torch.tensor([0, 50, 45, 5])
    like_real = torch.eye(4).repeat_interleave(real_K, 0)
    result = quality.class_histogram(like_real, real_K)
    assert result.missing == () and result.kl_to_real_nats == pytest.approx(0, abs=1e-12)
    assert quality.class_histogram(like_real[:95], real_K).missing == (3,)
    even = quality.class_histogram(torch.eye(4)[1:].repeat(5, 1), real_K)
    expected = -sum(math.log(3 * share) for share in (0.5, 0.45, 0.05)) / 3
    assert even.kl_to_real_nats == pytest.approx(expected) and even.missing == ()
    beyond = quality.class_histogram(torch.eye(4), real_K)  # one sample of the class that no real image has
    assert beyond.kl_to_real_nats == pytest.approx(expected)


def test_the_nearest_image_is_itself_when_it_was_copied() -> None:
    real = torch.rand(300, 16, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([5, 299, 0, 5])
    for blocks in (300, 7):
        assert torch.equal(quality.nearest_images(real[rows] + 1e-4, real.split(blocks)), rows)


# ------------------------------------------------------------------------------------------------------------ of codes


def test_imq_discrepancy_by_brute_force() -> None:
    x, y, std = normal(7, 2, 0), normal(5, 2, 1, mean=0.3), 1.7

    def kernel(a: Tensor, b: Tensor) -> float:
        base, square = 2 * 2 * std**2, (a - b).square().sum().item()
        return sum(base * s / (base * s + square) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))

    def within(z: Tensor) -> float:
        count = len(z)
        return sum(kernel(z[i], z[j]) for i in range(count) for j in range(count) if i != j) / (count * (count - 1))

    cross = sum(kernel(a, b) for a in x for b in y) / 35
    assert quality.imq_mmd(x, y, std) == pytest.approx(within(x) + within(y) - 2 * cross, rel=1e-9)


def test_imq_discrepancy_is_about_zero_for_equal_distributions() -> None:
    equal, apart = (quality.imq_mmd(normal(800, 3, 0), normal(800, 3, 1, mean=m), 1.0) for m in (0.0, 1.0))
    assert abs(equal) < 0.01 < 0.2 < apart


# ------------------------------------------------------------------------------------------------------ Parzen windows


def brute_force(samples: Tensor, x: Tensor, sigma: float) -> Tensor:
    """log of a mean of normal densities, image by image."""
    density = torch.distributions.Normal(samples.double(), sigma)
    joint = torch.stack([density.log_prob(one.double()).sum(1) for one in x])
    return torch.logsumexp(joint, dim=1) - math.log(len(samples))


def test_parzen_against_brute_force_and_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, validation, test = (torch.rand(n, 6, generator=torch.Generator().manual_seed(n)) for n in (90, 40, 50))
    grid = (0.05, 0.1, 0.2, 0.4, 1.0)
    result = quality.parzen(samples, validation, test, grid)
    assert result.sigma == max(grid, key=lambda sigma: brute_force(samples, validation, sigma).mean().item())
    scores = brute_force(samples, test, result.sigma)
    assert result.nats == pytest.approx(scores.mean().item(), rel=1e-9)
    assert result.standard_error == pytest.approx((scores.std() / math.sqrt(50)).item(), rel=1e-9)
    monkeypatch.setattr(quality, "BLOCK", 7)
    streamed = quality.parzen(samples, validation, test, grid)
    assert streamed.nats == pytest.approx(result.nats, rel=1e-12) and streamed.samples == 90


def test_parzen_of_one_sample_is_a_gaussian() -> None:
    samples, x = torch.zeros(1, 4), torch.tensor([[0.3, 0.0, 0.0, 0.4]])
    result = quality.parzen(samples, x, x.expand(2, 4), (0.5,))
    assert result.nats == pytest.approx(-0.25 / (2 * 0.25) - 4 * math.log(0.5 * math.sqrt(2 * math.pi)))


def test_the_default_grid_is_the_papers() -> None:
    assert pytest.approx(torch.logspace(-1, 0, 10, dtype=torch.float64).tolist()) == quality.SIGMAS


@pytest.mark.parametrize("grid", [(0.5, 0.7, 1.0), (0.001, 0.002)])
def test_a_window_at_the_edge_of_the_grid_is_refused(grid: tuple[float, ...]) -> None:
    samples, validation, test = (torch.rand(n, 3, generator=torch.Generator().manual_seed(n)) for n in (200, 40, 50))
    with pytest.raises(UserError, match="lies at its edge .* there may be a better one"):
        quality.parzen(samples, validation, test, grid)
