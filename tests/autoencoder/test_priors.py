"""Priors against their moments and their geometry."""

import math

import pytest
import torch

from aae_ray.autoencoder.priors import Prior, sample_classes, uniform_shares

NAMES = ("gaussian", "uniform", "mixture", "swiss_roll")
COUNT = 200_000


def draw(prior: Prior, count: int = COUNT, seed: int = 0) -> torch.Tensor:
    return prior.sample(count, torch.Generator().manual_seed(seed), torch.float64)


@pytest.mark.parametrize("latent_dim", [2, 3, 8])
@pytest.mark.parametrize("name", NAMES)
def test_standard_deviations_and_shape(name: str, latent_dim: int) -> None:
    prior = Prior(name, latent_dim, scale=2.5)
    z_NZ = draw(prior)
    assert z_NZ.shape == (COUNT, latent_dim)
    torch.testing.assert_close(z_NZ.std(0), prior.std_Z.double(), rtol=0.01, atol=0)


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_the_standard_deviations_of_a_mixture_of_few(parts: int) -> None:
    """Two components lie on one axis: the other coordinate is as narrow as a component is across."""
    prior = Prior("mixture", 3, scale=2.0, parts=parts)
    torch.testing.assert_close(draw(prior).std(0), prior.std_Z.double(), rtol=0.01, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_draw_is_a_function_of_its_generator(name: str) -> None:
    prior = Prior(name, 5)
    assert torch.equal(draw(prior, 100), draw(prior, 100))
    assert not torch.equal(draw(prior, 100), draw(prior, 100, seed=1))


def test_gaussian_has_the_moments_of_a_gaussian() -> None:
    z_NZ = draw(Prior("gaussian", 2))
    assert z_NZ.mean(0).abs().max() < 0.01
    torch.testing.assert_close((z_NZ**4).mean(0), torch.full((2,), 3.0, dtype=torch.float64), rtol=0.05, atol=0)


def test_uniform_fills_its_box_and_nothing_else() -> None:
    z_NZ = draw(Prior("uniform", 3, scale=2.0))
    assert z_NZ.abs().max() <= 2
    torch.testing.assert_close((z_NZ**4).mean(0), torch.full((3,), 2.0**4 / 5, dtype=torch.float64), rtol=0.02, atol=0)


def test_mixture_has_ten_petals_of_the_stated_size() -> None:
    z_NZ = draw(Prior("mixture", 2))
    turn = 2 * math.pi / 10
    component_N = torch.round(torch.atan2(z_NZ[:, 1], z_NZ[:, 0]) / turn) % 10
    share = torch.bincount(component_N.long(), minlength=10) / COUNT
    torch.testing.assert_close(share, torch.full((10,), 0.1), rtol=0.05, atol=0)
    petal_N2 = z_NZ[component_N == 0]  # along the first axis
    assert petal_N2[:, 0].mean().item() == pytest.approx(1.4, abs=0.03)
    assert petal_N2[:, 0].std().item() == pytest.approx(0.5, abs=0.03)
    assert petal_N2[:, 1].abs().median().item() < 0.05


def test_swiss_roll_lies_on_its_spiral_with_uniform_area() -> None:
    z_N2 = draw(Prior("swiss_roll", 2))
    radius_N = z_N2.norm(dim=1)
    angle_N = (4 * math.pi / 3) * radius_N
    torch.testing.assert_close(
        z_N2, radius_N[:, None] * torch.stack([angle_N.cos(), angle_N.sin()], 1), rtol=0, atol=1e-9
    )
    u_N = (radius_N / 3) ** 2  # uniform on [0, 1] by construction
    assert u_N.mean().item() == pytest.approx(0.5, abs=0.01)
    assert (u_N**2).mean().item() == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize("name", ["mixture", "swiss_roll"])
def test_further_coordinates_are_gaussian_and_independent(name: str) -> None:
    z_NZ = draw(Prior(name, 4))
    correlation = torch.corrcoef(z_NZ.T)
    assert (correlation - torch.diag(correlation.diag()))[2:].abs().max() < 0.02
    torch.testing.assert_close(
        (z_NZ[:, 2:] ** 4).mean(0), torch.full((2,), 3.0, dtype=torch.float64), rtol=0.05, atol=0
    )


# ------------------------------------------------------------------------------------------------- parts and classes


@pytest.mark.parametrize("parts", [4, 10])
def test_a_label_selects_a_component_of_the_mixture(parts: int) -> None:
    prior = Prior("mixture", 3, scale=2.0, parts=parts)
    part_N = torch.arange(8000) % parts
    z_N3 = prior.sample(8000, torch.Generator().manual_seed(0), torch.float64, part_N)
    turn_N = 2 * math.pi * part_N.double() / parts
    along_N = (z_N3[:, 0] * turn_N.cos() + z_N3[:, 1] * turn_N.sin()) / 2
    across_N = (z_N3[:, 1] * turn_N.cos() - z_N3[:, 0] * turn_N.sin()) / 2
    assert along_N.mean().item() == pytest.approx(1.4, abs=0.03)
    assert along_N.std().item() == pytest.approx(0.5, abs=0.02)
    assert across_N.mean().abs() < 0.005 and across_N.std().item() == pytest.approx(0.05, abs=0.005)
    assert (prior.part_of(z_N3) == part_N).double().mean() > 0.97  # the inner ends of the petals meet


@pytest.mark.parametrize("parts", [4, 10])
def test_a_label_selects_a_segment_of_the_roll(parts: int) -> None:
    prior = Prior("swiss_roll", 2, parts=parts)
    part_N = torch.arange(4000) % parts
    z_N2 = prior.sample(4000, torch.Generator().manual_seed(0), torch.float64, part_N)
    u_N = (z_N2.norm(dim=1) / 3) ** 2
    assert ((u_N * parts).long().clamp_max(parts - 1) == part_N).double().mean() > 0.999
    assert (prior.part_of(z_N2) == part_N).double().mean() > 0.98


@pytest.mark.parametrize("name", ["mixture", "swiss_roll"])
def test_no_label_selects_the_whole_prior(name: str) -> None:
    prior = Prior(name, 2)
    unlabelled = prior.sample(1000, torch.Generator().manual_seed(0), part_N=torch.full((1000,), -1))
    assert torch.equal(unlabelled, prior.sample(1000, torch.Generator().manual_seed(0)))
    counts = torch.bincount(prior.part_of(unlabelled), minlength=10)
    assert counts.min() > 60


@pytest.mark.parametrize("name", ["gaussian", "uniform"])
def test_a_prior_without_parts_says_so(name: str) -> None:
    with pytest.raises(ValueError, match=f"the {name} prior has no parts"):
        Prior(name, 2).part_of(torch.zeros(1, 2))


def test_the_categorical_prior_draws_every_class_as_an_exact_one_hot() -> None:
    y_NK = sample_classes(COUNT, uniform_shares(5), torch.Generator().manual_seed(0))
    assert y_NK.shape == (COUNT, 5) and set(y_NK.unique().tolist()) == {0.0, 1.0} and (y_NK.sum(1) == 1).all()
    torch.testing.assert_close(y_NK.mean(0), torch.full((5,), 0.2), rtol=0.02, atol=0)


def test_the_categorical_prior_has_the_shares_that_it_is_given() -> None:
    shares_K = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    y_NK = sample_classes(COUNT, shares_K, torch.Generator().manual_seed(0), torch.float64)
    torch.testing.assert_close(y_NK.mean(0), shares_K, rtol=0.02, atol=0)


@pytest.mark.parametrize(("name", "latent_dim"), [("gaussian", 2), ("gaussian", 5), ("mixture", 2), ("mixture", 4)])
def test_log_density_against_torch_distributions(name: str, latent_dim: int) -> None:
    prior = Prior(name, latent_dim, scale=1.5)
    z_NZ = draw(prior, 50)
    if name == "gaussian":
        expected_N = torch.distributions.Normal(0.0, 1.5).log_prob(z_NZ).sum(1)
    else:
        parts = []
        for k in range(10):
            turn = torch.tensor(2 * math.pi * k / 10, dtype=torch.float64)
            axes_22 = torch.stack([torch.stack([turn.cos(), -turn.sin()]), torch.stack([turn.sin(), turn.cos()])])
            spread_22 = axes_22 @ torch.diag(torch.tensor([0.5, 0.05]).double() * 1.5).square() @ axes_22.T
            centre_2 = 1.5 * 1.4 * axes_22[:, 0]
            parts.append(torch.distributions.MultivariateNormal(centre_2, spread_22).log_prob(z_NZ[:, :2]))
        expected_N = torch.stack(parts).logsumexp(0) - math.log(10)
        expected_N = expected_N + torch.distributions.Normal(0.0, 1.5).log_prob(z_NZ[:, 2:]).sum(1)
    torch.testing.assert_close(prior.log_density(z_NZ), expected_N)


def test_a_prior_without_a_density_says_so() -> None:
    with pytest.raises(ValueError, match="the swiss_roll prior has no density here"):
        Prior("swiss_roll", 2).log_density(torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("name", "near", "far", "distance"),
    [
        ("gaussian", (0.0, 0.0, 0.0), (6.0, 8.0, 0.0), 5.0),
        ("uniform", (2.0, -2.0, 1.0), (8.0, 0.0, -10.0), 5.0),
        ("mixture", (2.8, 0.0, 0.0), (2.8, 0.5, 0.0), 5.0),  # five standard deviations across a ray
        ("mixture", (-2.8, 0.0, 0.0), (-2.8, 0.4, 6.0), 5.0),  # four of them, and three of a Gaussian coordinate
        ("swiss_roll", (6.0, 0.0, 0.0), (16.0, 0.0, 0.0), 5.0),
        ("swiss_roll", (0.0, 0.0, 0.0), (6.0, 0.0, 10.0), 5.0),
    ],
)
def test_the_distance_of_a_code_is_from_where_the_prior_is(
    name: str, near: tuple[float, ...], far: tuple[float, ...], distance: float
) -> None:
    """At scale 2; the roll is found to a thousandth of its length."""
    prior = Prior(name, 3, scale=2.0)
    found_N = prior.distance(torch.tensor([near, far], dtype=torch.float64))
    torch.testing.assert_close(found_N, torch.tensor([0, distance], dtype=torch.float64), rtol=0.01, atol=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_draws_of_a_prior_are_near_to_it(name: str) -> None:
    """Three coordinates of a Gaussian are within five standard deviations, far beyond one in a hundred thousand."""
    assert Prior(name, 3, scale=3.0).distance(draw(Prior(name, 3, scale=3.0), 10_000)).max() < 6


@pytest.mark.parametrize(("name", "rows"), [("gaussian", 8), ("uniform", 8), ("mixture", 5), ("swiss_roll", 8)])
def test_a_walk_goes_through_the_prior_from_end_to_end(name: str, rows: int) -> None:
    prior = Prior(name, 4, scale=2.0, parts=5)
    z_NZ = prior.walk(8)
    assert z_NZ.shape == (rows * 8, 4) and not z_NZ[:, 2:].any()
    assert prior.distance(z_NZ).max() < (3 if name == "gaussian" else 1.6)
    plane_RS2 = z_NZ[:, :2].view(rows, 8, 2)
    if name in ("gaussian", "uniform"):
        assert (plane_RS2[:, 1:, 0] > plane_RS2[:, :-1, 0]).all() and (plane_RS2[1:, :, 1] < plane_RS2[:-1, :, 1]).all()
    elif name == "mixture":
        assert [prior.part_of(row_SZ).tolist() for row_SZ in z_NZ.view(rows, 8, 4)] == [[part] * 8 for part in range(5)]
    else:
        radius_N = z_NZ[:, :2].norm(dim=1)
        assert (radius_N[1:] > radius_N[:-1]).all()


def test_a_walk_through_the_gaussian_is_at_its_percentiles() -> None:
    """Equal shares of the prior lie between neighbours (Makhzani et al. 2015, figure 2e)."""
    x_S = Prior("gaussian", 2, scale=3.0).walk(4)[:4, 0]
    draws_N = 3 * torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    shares_S = torch.stack([(draws_N < x).float().mean() for x in x_S])
    torch.testing.assert_close(shares_S, torch.tensor([0.125, 0.375, 0.625, 0.875]), rtol=0, atol=0.005)
