"""Distances of codes and prior against closed forms: what is known of distributions must come out of the functions."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from aae_ray.autoencoder.priors import Prior
from aae_ray.errors import UserError
from aae_ray.evaluation import divergence
from aae_ray.evaluation.divergence import entropy_nearest_neighbours, jsd_bound, kl_by_entropy, sliced_wasserstein


def seeded(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def normal(count: int, size: int, seed: int) -> Tensor:
    return torch.randn(count, size, generator=seeded(seed))


def gaussian(size: int) -> Callable[[int, int], Tensor]:
    return lambda count, seed: normal(count, size, seed)


def drawn_from(prior: Prior) -> Callable[[int, int], Tensor]:
    return lambda count, seed: prior.sample(count, seeded(seed))


def shifted(z_NZ: Tensor, shift: float) -> Tensor:
    return torch.cat([z_NZ[:, :1] + shift, z_NZ[:, 1:]], 1)


# ------------------------------------------------------------------------------------------- sliced Wasserstein


@pytest.mark.parametrize("size", [1, 2, 8])
def test_sliced_wasserstein_of_a_shift(size: int) -> None:
    """Projections are shifted by <s, u>, and E <s, u>^2 = |s|^2 / Z, so the distance is |s| at every latent size."""
    z_NZ, shift_Z = normal(500, size, 0), 3 * torch.ones(size)
    expected = 3 * math.sqrt(size)
    assert sliced_wasserstein(z_NZ + shift_Z, z_NZ, 1.0, seed=0) == pytest.approx(expected, rel=0.12)
    assert sliced_wasserstein(shifted(z_NZ, 2.0), z_NZ, 1.0, seed=0) == pytest.approx(2.0, rel=0.12)
    halved = sliced_wasserstein(z_NZ + shift_Z, z_NZ, torch.full((size,), 2.0), seed=0)
    assert halved == pytest.approx(sliced_wasserstein(z_NZ + shift_Z, z_NZ, 1.0, seed=0) / 2, rel=1e-5)


@pytest.mark.parametrize("size", [2, 8])
def test_sliced_wasserstein_of_a_scale(size: int) -> None:
    """Two centred Gaussians of standard deviations 1 and 2 are |2 - 1| apart on every line."""
    result = sliced_wasserstein(2 * normal(2000, size, 0), normal(2000, size, 1), 1.0, seed=0)
    assert result == pytest.approx(math.sqrt(size), rel=0.05)


def test_sliced_wasserstein_of_equal_points_is_zero_and_of_equal_laws_is_small() -> None:
    z_NZ = normal(1000, 4, 0)
    assert sliced_wasserstein(z_NZ, z_NZ[torch.randperm(1000, generator=seeded(5))], 1.0, seed=0) < 1e-6
    floor = sliced_wasserstein(z_NZ, normal(1000, 4, 1), 1.0, seed=0)
    assert 0.02 < floor < 0.24
    assert floor < sliced_wasserstein(1.2 * z_NZ, normal(1000, 4, 1), 1.0, seed=0)


def test_sliced_wasserstein_draws_its_points_from_all_codes() -> None:
    """Of many codes some are used; they must not be the first ones, which may all be of one class."""
    z_NZ = torch.cat([torch.full((5000, 2), -4.0), torch.full((5000, 2), 4.0)])
    assert sliced_wasserstein(z_NZ, z_NZ.flip(0), 1.0, seed=0) < 2.1


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_sliced_wasserstein_of_codes_that_are_not_finite_is_nan(wrong: float) -> None:
    z_NZ = normal(100, 3, 0)
    codes_NZ = z_NZ.clone()
    codes_NZ[7, 1] = wrong
    assert math.isnan(sliced_wasserstein(codes_NZ, z_NZ, 1.0, seed=0))


# ------------------------------------------------------------------------------------- Kullback-Leibler divergence


def kl_to_the_standard_normal(codes_NZ: Tensor) -> float:
    """As it is measured: what as many prior samples get is taken off."""
    size = codes_NZ.shape[1]
    prior = Prior("gaussian", size)
    codes, samples = (
        kl_by_entropy(z_NZ, prior.log_density(z_NZ), prior.std_Z) for z_NZ in (codes_NZ, normal(len(codes_NZ), size, 2))
    )
    return codes - samples


@pytest.mark.parametrize(
    ("size", "std", "shift"),
    [
        *((size, std, 0.0) for size in (2, 8, 16) for std in (0.5, 1.0, 1.2, 1.5)),
        (4, 1.0, 1.5),
        (4, 0.6, 0.5),
    ],
)
def test_the_kl_divergence_of_gaussians(size: int, std: float, shift: float) -> None:
    """KL(N(m, s^2) || N(0, 1)) = (s^2 + m^2 - 1) / 2 - log s, a coordinate: also of codes wider than the prior."""
    expected = size * ((std**2 - 1) / 2 - math.log(std)) + shift**2 / 2
    codes_NZ = shifted(std * normal(2000, size, 1), shift)
    assert kl_to_the_standard_normal(codes_NZ) == pytest.approx(expected, rel=0.05, abs=0.08)


@pytest.mark.parametrize("size", [2, 8, 16])
def test_the_kl_divergence_grows_with_the_distance_to_the_prior(size: int) -> None:
    z_NZ = normal(1000, size, 1)
    wider = [kl_to_the_standard_normal(std * z_NZ) for std in (1.0, 1.2, 1.5, 2.0)]
    narrower = [kl_to_the_standard_normal(std * z_NZ) for std in (1.0, 0.8, 0.5, 0.1)]
    assert wider == sorted(wider) and narrower == sorted(narrower) and abs(wider[0]) < 0.1


@pytest.mark.parametrize("size", [2, 8])
def test_the_kl_divergence_to_a_scaled_mixture(size: int) -> None:
    """0 of the prior's own samples, and more the wider they are blurred, at any scale of the prior."""
    for scale in (1.0, 5.0):
        prior = Prior("mixture", size, scale)

        def result(off: float, prior: Prior = prior) -> float:
            samples_NZ = prior.sample(1000, seeded(1)) + off * prior.scale * normal(1000, prior.latent_dim, 2)
            return kl_by_entropy(samples_NZ, prior.log_density(samples_NZ), prior.std_Z)

        floor = kl_by_entropy(own := prior.sample(1000, seeded(3)), prior.log_density(own), prior.std_Z)
        values = [result(off) - floor for off in (0.0, 0.1, 0.3)]
        assert abs(values[0]) < 0.15 and values[0] + 0.5 < values[1] < values[2]


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_entropy_of_gaussians(size: int) -> None:
    expected = size * (0.5 * math.log(2 * math.pi * math.e) + math.log(3))
    assert entropy_nearest_neighbours(3 * normal(2000, size, 1)) == pytest.approx(expected, abs=0.04 * size)


def test_the_kl_divergence_of_codes_that_coincide_is_a_number() -> None:
    assert 10 < kl_to_the_standard_normal(torch.zeros(50, 2)) < 100
    assert math.isnan(kl_to_the_standard_normal(torch.full((50, 2), math.nan)))
    with pytest.raises(ValueError, match="more than 5 examples, got 5"):
        kl_to_the_standard_normal(normal(5, 2, 0))


# --------------------------------------------------------------------------------------------------- JSD bound

GAUSSIANS = [Prior("gaussian", 2), Prior("gaussian", 8, 5.0), Prior("gaussian", 16)]
PRIORS = [*GAUSSIANS, Prior("mixture", 2), Prior("swiss_roll", 8)]


def jsd_of_shifted_normals(shift: float) -> float:
    """JSD(N(0, 1), N(shift, 1)) by quadrature; further independent dimensions add nothing."""
    t = torch.linspace(-12, 12 + shift, 200_001, dtype=torch.float64)
    log_p, log_q = (-(t**2) / 2, -((t - shift) ** 2) / 2)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    integrand = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return (torch.trapezoid(integrand, t) / 2 / math.sqrt(2 * math.pi)).item()


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: f"{prior.name}-{prior.latent_dim}")
def test_the_bound_is_about_zero_for_the_prior_and_log_2_for_what_lies_elsewhere(prior: Prior) -> None:
    codes_NZ = prior.sample(360, seeded(1))
    matched = jsd_bound(codes_NZ, drawn_from(prior), seed=0)
    assert -0.04 < matched.nats < 0.02 and -0.04 < matched.floor < 0.02
    elsewhere = jsd_bound(codes_NZ + 10 * prior.std_Z, drawn_from(prior), seed=0)
    assert 0.66 < elsewhere.nats < math.log(2)
    assert elsewhere.floor == matched.floor  # networks of codes and floor share nothing


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0, 4.0])
def test_the_bound_stays_below_the_true_divergence_and_comes_close(shift: float) -> None:
    truth = jsd_of_shifted_normals(shift)
    result = jsd_bound(shifted(normal(2000, 4, 1), shift), gaussian(4), seed=0)
    assert truth - 0.03 < result.nats < truth + 3 * result.standard_error


@pytest.mark.parametrize("size", [2, 8, 16])
def test_the_bound_ranks_codes_by_how_far_they_are(size: int) -> None:
    """With as few codes as the digits hold out."""
    z_NZ = normal(360, size, 1)

    def result(codes_NZ: Tensor) -> float:
        return jsd_bound(codes_NZ, gaussian(size), seed=0).nats

    shifts = [result(shifted(z_NZ, shift)) for shift in (0.0, 0.5, 1.0, 2.0, 4.0)]
    narrow = [result(scale * z_NZ) for scale in (1.0, 0.7, 0.5, 0.1)]
    ring_NZ = normal(1000, size, 2)
    ring_NZ = ring_NZ[ring_NZ[:, :2].norm(dim=1) > 1][:360]  # a hole in the middle
    assert shifts == sorted(shifts) and narrow == sorted(narrow)
    assert result(ring_NZ) > shifts[0] + 0.02


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize("name", ["mixture", "swiss_roll"])
def test_the_bound_sees_codes_beside_a_thin_prior(name: str, size: int) -> None:
    prior = Prior(name, size)
    on_NZ = prior.sample(360, seeded(1))
    beside = [jsd_bound(on_NZ + off * normal(360, size, 2), drawn_from(prior), seed=0).nats for off in (0.0, 0.1, 0.3)]
    matched_moments_NZ = normal(360, size, 2) * prior.std_Z
    assert beside[0] < 0.01 < beside[1] < beside[2]
    assert jsd_bound(matched_moments_NZ, drawn_from(prior), seed=0).nats > 0.2


@pytest.mark.parametrize(("count", "size"), [(10, 2), (60, 64), (363, 32)])
def test_codes_that_can_be_learned_by_heart_gain_nothing(count: int, size: int) -> None:
    """In many dimensions a few codes can be told apart from anything, by whoever has seen them."""
    result = jsd_bound(normal(count, size, 1), gaussian(size), seed=0)
    assert -0.1 < result.nats < 0.02


def test_a_fold_is_never_trained_on_and_all_else_is() -> None:
    rows_SKB = divergence._training_rows(steps=50, count=20, generator=seeded(0))
    for fold in range(divergence.FOLDS):
        assert set(rows_SKB[:, fold].flatten().tolist()) == set(range(20)) - set(range(4 * fold, 4 * fold + 4))


def test_written_out_gradients_and_steps_are_those_of_pytorch() -> None:
    x_KBF = torch.randn(divergence.FOLDS, 2 * divergence.BATCH, 4, generator=seeded(1))
    ours = divergence.Discriminators(4, seeded(0))
    theirs = [parameter.clone().requires_grad_() for parameter in ours.parameters]
    groups = [{"params": theirs[:3], "weight_decay": 2.0}, {"params": theirs[3:], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    for _ in range(5):
        first_KBH = torch.baddbmm(theirs[3], x_KBF, theirs[0]).relu()
        logits_KB1 = torch.baddbmm(theirs[5], torch.baddbmm(theirs[4], first_KBH, theirs[1]).relu(), theirs[2])
        fake_KB1, real_KB1 = logits_KB1.chunk(2, 1)
        losses = torch.nn.functional.softplus(torch.cat([fake_KB1, -real_KB1], 1))
        optimizer.zero_grad()
        losses.mean((1, 2)).sum().backward()
        ours.differentiate(x_KBF)
        for mine, parameter in zip(ours.gradients, theirs, strict=True):
            torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-7)
        optimizer.step()
        ours.update(x_KBF, 0.01, 2.0)
    for mine, parameter in zip(ours.parameters, theirs, strict=True):
        torch.testing.assert_close(mine, parameter.detach(), rtol=1e-4, atol=1e-5)


def test_a_reference_is_used_again_and_again() -> None:
    """What depends on the prior and the number of codes alone is taken once, and nothing of it is used up."""
    reference = divergence.PriorReference.of(gaussian(3), 100, seed=4)
    slices = divergence.PriorSlices.of(normal(100, 3, 7), 1.0, 100, seed=4)
    for scale in (0.5, 0.5, 1.0):
        codes_NZ = scale * normal(100, 3, 1)
        assert reference.bound(codes_NZ) == jsd_bound(codes_NZ, gaussian(3), seed=4)
        assert slices.distance(codes_NZ) == sliced_wasserstein(codes_NZ, normal(100, 3, 7), 1.0, seed=4)


def test_the_standard_error_is_the_spread_over_samples() -> None:
    result = [jsd_bound(shifted(normal(200, 2, 100 + k), 1.5), gaussian(2), seed=k) for k in range(16)]
    spread = torch.tensor([bound.nats for bound in result]).std().item()
    error = sum(bound.standard_error for bound in result) / len(result)
    assert 0.5 < spread / error < 2


def test_the_bound_depends_on_the_seed_and_nothing_else() -> None:
    codes_NZ = 0.7 * normal(363, 3, 1)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    first = jsd_bound(codes_NZ, gaussian(3), seed=4)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    torch.manual_seed(123)
    with torch.inference_mode():
        assert jsd_bound(codes_NZ.double(), gaussian(3), seed=4) == first
    assert jsd_bound(codes_NZ, gaussian(3), seed=5) != first


def test_the_bound_does_not_see_the_scale_of_the_prior() -> None:
    codes_NZ = 0.7 * normal(360, 3, 1)
    large = jsd_bound(100 * codes_NZ, lambda count, seed: 100 * normal(count, 3, seed), seed=0)
    assert large.nats == pytest.approx(jsd_bound(codes_NZ, gaussian(3), seed=0).nats, abs=0.003)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 1e30])
def test_the_bound_of_codes_that_are_not_finite_is_nan(wrong: float) -> None:
    codes_NZ = normal(50, 2, 0)
    codes_NZ[7, 1] = wrong
    result = jsd_bound(codes_NZ, gaussian(2), seed=0)
    assert all(map(math.isnan, (result.nats, result.standard_error, result.floor)))


def test_a_label_that_no_reference_sample_has_leaves_the_bound_a_number() -> None:
    """Of ten thousand labels, most are in none of the 2,000 reference samples."""

    def draw(count: int, seed: int) -> Tensor:
        return torch.cat([normal(count, 2, seed), torch.zeros(count, 1)], 1)

    codes_NZ = draw(60, 5)
    codes_NZ[0, 2] = 1
    assert math.isfinite(jsd_bound(codes_NZ, draw, seed=0).nats)


def test_too_few_codes_are_a_user_error() -> None:
    with pytest.raises(UserError, match="at least 10 held-out images, got 9; raise data.validation_fraction"):
        jsd_bound(normal(9, 2, 0), gaussian(2), seed=0)
