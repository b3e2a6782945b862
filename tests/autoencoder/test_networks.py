"""Networks: where noise enters, what initial weights depend on, normalization, and what does not fit."""

import math
from unittest.mock import patch

import pytest
import torch
from torch import nn

from aae_ray.autoencoder import networks, posteriors
from aae_ray.autoencoder.kinds import ImageKind
from aae_ray.autoencoder.model import NETWORKS, build_model
from aae_ray.errors import UserError
from aae_ray.settings import replace
from tests.autoencoder.variants import SHAPE, batch_for, build, variant


def test_universal_noise_enters_hidden_layers_as_well_as_the_head() -> None:
    for network in ("dense", "convolutional"):
        model = build(variant("unsupervised", "universal", network))
        batch = batch_for(model)
        assert batch.posterior_noise_BE is not None
        trunk = model.networks["trunk"]
        quiet = trunk(batch.x_BD, torch.zeros_like(batch.posterior_noise_BE))
        assert not torch.allclose(trunk(batch.x_BD, batch.posterior_noise_BE), quiet)


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_the_variance_of_a_gaussian_posterior_is_the_encoders_and_that_of_the_floor(floor: float) -> None:
    head = posteriors.Gaussian(4, 2, 2, floor).double()
    h_BF, noise_BZ = torch.zeros(3, 4, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    for answered in (-40.0, 0.0, 3.0):
        with torch.no_grad():
            head.moments.bias.copy_(torch.tensor([1.0, 2.0, answered, answered]))
        code = head(h_BF, noise_BZ)
        expected = math.sqrt(math.exp(answered) + floor**2)
        torch.testing.assert_close(code.z_BZ - code.mean_BZ, torch.full_like(noise_BZ, expected))
        torch.testing.assert_close((0.5 * code.log_variance_BZ).exp(), torch.full_like(noise_BZ, expected))
    code.z_BZ.sum().backward()
    gradient = head.moments.bias.grad
    assert gradient is not None and gradient[2:].all()  # the encoder still feels what its variance does


def test_spectral_normalization_holds_each_layer_at_one() -> None:
    discriminator = networks.Discriminator(5, (9, 7)).double()
    discriminator.normalize_spectrally()
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.mul_(20)
    for _ in range(200):
        logits_B = discriminator(torch.randn(6, 5, dtype=torch.float64))
    discriminator.eval()
    for layer in discriminator.layers.children():
        norm = torch.linalg.matrix_norm(layer.weight, 2).item()
        assert norm == pytest.approx(1, rel=1e-3)
    logits_B.sum().backward()
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


@pytest.mark.parametrize("initialization", ["pytorch", "normal"])
def test_spectral_normalization_begins_with_the_initial_weights(initialization: str) -> None:
    """The singular vectors of other weights would leave these many times too large, or too small."""
    values = {"model.discriminator_spectral_norm": True, "model.initialization": initialization}
    discriminator = build(variant("unsupervised", "deterministic", "dense", **values)).networks["style_discriminator"]
    for layer in discriminator.eval().layers.children():  # type: ignore[union-attr]
        assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, rel=0.15)


def test_leaky_rectifiers_pass_a_share_of_what_is_below_zero() -> None:
    plain, leaky = (networks.Discriminator(1, (1,), slope) for slope in (0.0, 0.2))
    for discriminator, expected in ((plain, 0.0), (leaky, -0.4)):
        with torch.no_grad():
            for name, parameter in discriminator.named_parameters():
                parameter.fill_(float(name.endswith("weight")))
            assert discriminator(torch.tensor([[-2.0]])).item() == pytest.approx(expected)
            assert discriminator(torch.tensor([[3.0]])).item() == pytest.approx(3)


def test_initial_weights_depend_on_the_seed_and_on_nothing_else() -> None:
    settings = variant("unsupervised", "deterministic", "dense")
    first = build(settings)
    torch.rand(10)
    again = build(settings)
    vae = build(variant("vae", "gaussian", "dense"))
    other = build(replace(settings, {"seed": 1}))
    for name in first.networks:
        for (_, a), (_, b), (_, c) in zip(
            *(m.networks[name].named_parameters() for m in (first, again, other)), strict=True
        ):
            assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(next(first.networks["decoder"].parameters()), next(vae.networks["decoder"].parameters()))


def test_initial_weights_do_not_depend_on_which_networks_the_code_knows() -> None:
    settings = variant("semi_supervised", "gaussian", "dense")
    first = build(settings)
    others = {"another": lambda model, sizes: nn.Linear(2, 2), **dict(reversed(NETWORKS.items()))}
    with patch.dict(NETWORKS, others, clear=True):
        second = build(settings)
    for name, network in first.networks.items():
        for (key, weight), (_, same) in zip(
            network.named_parameters(), second.networks[name].named_parameters(), strict=True
        ):
            assert torch.equal(weight, same), f"{name}.{key}"


def test_the_papers_initialization() -> None:
    model = build_model(
        variant(
            "unsupervised",
            "deterministic",
            "dense",
            **{"model.initialization": "normal", "model.hidden": (300, 300)},
        ),
        ImageKind(SHAPE),
    )
    weight = model.networks["trunk"].layers[1].weight  # type: ignore[union-attr, index]
    assert weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert all(
        not p.any()
        for network in model.networks.values()
        for key, p in network.named_parameters()
        if key.endswith("bias")
    )


def test_the_shares_of_the_label_prior_are_given_known_or_uniform() -> None:
    def shares(label_prior: object, known: list[float] | None = None) -> list[float]:
        settings = variant("supervised", "deterministic", "dense", **{"model.label_prior": label_prior})
        shares_K = build_model(settings, ImageKind(SHAPE), classes=4, known_shares=known).label_shares_K
        assert shares_K is not None
        return shares_K.tolist()

    known = [0.5, 0.25, 0.125, 0.125]
    assert shares("uniform", known) == [0.25] * 4 == shares("labels")
    assert shares("labels", known) == known == shares([4, 2, 1, 1])
    assert build(variant("unsupervised", "deterministic", "dense")).label_shares_K is None


@pytest.mark.parametrize("network", ["dense", "convolutional"])
@pytest.mark.parametrize("posterior", ["deterministic", "universal"])
@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_normalization_takes_scale_out_of_the_encoders_hidden_layers(network: str, posterior: str, kind: str) -> None:
    """Weights and biases ten times as large leave the features as they are."""
    settings = variant("clustering", posterior, network, **{"model.normalization": kind})
    model, batch = build(settings), batch_for(build(settings))
    trunk, noise_BE = model.networks["trunk"], batch.posterior_noise_BE if posterior == "universal" else None
    features_BF = trunk(batch.x_BD, noise_BE)
    alone_BF = trunk(batch.x_BD[:1], None if noise_BE is None else noise_BE[:1])
    assert torch.allclose(alone_BF, features_BF[:1]) == (kind == "layer")
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():
            if "norm" not in name:
                parameter.mul_(10)
    assert torch.allclose(trunk(batch.x_BD, noise_BE), features_BF, rtol=1e-2, atol=1e-2)
    plain = build(variant("clustering", posterior, network)).networks["trunk"]
    assert plain.state_dict().keys() < trunk.state_dict().keys()


@pytest.mark.parametrize("sizes", [(9, 4), (9, 4, 6, 6)])
def test_batch_norm_is_pytorchs(sizes: tuple[int, ...]) -> None:
    """But for the running variance, which is that of the batches and not an estimate of their source's."""
    ours = networks.BatchNorm(4).double()
    theirs = (nn.BatchNorm1d if len(sizes) == 2 else nn.BatchNorm2d)(4).double()
    theirs.eps, theirs.momentum = ours.EPSILON, ours.UPDATE
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for mine, other in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
            mine.copy_(torch.randn(4, generator=generator))
            other.copy_(mine)
    for _ in range(3):
        h = 5 + 3 * torch.randn(*sizes, generator=generator, dtype=torch.float64)
        first, second = h.clone().requires_grad_(), h.clone().requires_grad_()
        answers = ours(first), theirs(second)
        torch.testing.assert_close(*answers)
        for answer in answers:
            answer.pow(3).sum().backward()
        torch.testing.assert_close(first.grad, second.grad)
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
        torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)
    count, start = h.numel() / 4, (1 - ours.UPDATE) ** 3
    assert isinstance(theirs.running_mean, torch.Tensor) and isinstance(theirs.running_var, torch.Tensor)
    torch.testing.assert_close(ours.mean, theirs.running_mean)
    torch.testing.assert_close((ours.variance - start) * count / (count - 1) + start, theirs.running_var)
    theirs.running_var.copy_(ours.variance)
    h = torch.randn(*sizes, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(ours.eval()(h), theirs.eval()(h))


def test_a_short_last_batch_hardly_moves_the_statistics_of_held_out_images() -> None:
    norm = networks.BatchNorm(2).double()
    norm(torch.randn(100, 2, dtype=torch.float64))
    mean, variance = norm.mean.clone(), norm.variance.clone()
    norm(torch.tensor([[7.0, -7.0], [7.0, -7.0]], dtype=torch.float64))
    weight = norm.UPDATE * 2 / 100
    torch.testing.assert_close(norm.mean, (1 - weight) * mean + weight * torch.tensor([7.0, -7.0]).double())
    torch.testing.assert_close(norm.variance, (1 - weight) * variance)


def test_a_last_batch_of_one_image_is_scaled_by_what_the_others_left() -> None:
    """By its own mean every image would be the same, and each phase would take a full step on that."""
    norm = networks.BatchNorm(2).double()
    norm(torch.randn(100, 2, dtype=torch.float64))
    mean, variance = norm.mean.clone(), norm.variance.clone()
    alone = torch.tensor([[7.0, -7.0]], dtype=torch.float64, requires_grad=True)
    trained = norm(alone)
    torch.testing.assert_close(norm.mean, mean, rtol=0, atol=0)
    torch.testing.assert_close(norm.variance, variance, rtol=0, atol=0)
    trained.sum().backward()
    torch.testing.assert_close(alone.grad, (variance + norm.EPSILON).rsqrt()[None])
    torch.testing.assert_close(trained, norm.eval()(alone))


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_the_papers_initialization_leaves_the_gains_of_normalization_at_one(kind: str) -> None:
    values = {"model.initialization": "normal", "model.normalization": kind}
    trunk = build(variant("clustering", "deterministic", "dense", **values)).networks["trunk"]
    gains = [value for key, value in trunk.named_parameters() if "norms" in key and key.endswith("weight")]
    assert len(gains) == 2 and all((gain == 1).all() for gain in gains)


def test_images_too_small_for_the_convolutions_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.channels has 4 layers.*8 x 8"):
        build_model(
            variant("unsupervised", "deterministic", "convolutional", **{"model.channels": (8, 8, 8, 8)}),
            ImageKind(SHAPE),
        )
