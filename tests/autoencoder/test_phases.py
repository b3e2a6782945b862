"""The losses against closed forms, and the contract of every task, posterior and network."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from aae_ray.autoencoder import phases
from aae_ray.autoencoder.model import Model, build_model
from aae_ray.autoencoder.phases import TASKS, Batch, Phase
from aae_ray.settings import Settings, UserError, replace
from aae_ray.training.metrics import METRICS

SHAPE = (1, 8, 8)
VARIANTS = [
    (task, posterior, network)
    for task, posterior, network in product(
        TASKS, ("deterministic", "gaussian", "universal"), ("dense", "convolutional")
    )
    if task != "vae" or posterior == "gaussian"
]


def variant(task: str, posterior: str, network: str, **more: object) -> Settings:
    values = {
        "task": task,
        "model.posterior": posterior,
        "model.network": network,
        "train.dtype": "float64",
        "model.latent_dim": 5,
    }
    return replace(Settings(), values | more)


def batch_for(model: Model, size: int = 7, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = math.prod(model.shape)
    x_BD = torch.rand(size, pixels, generator=generator, dtype=torch.float64)
    noise_BE = torch.randn(size, model.noise_dim, generator=generator, dtype=torch.float64) if model.noise_dim else None
    return Batch(x_BD, noise_BE, model.prior.sample(size, generator, torch.float64))


@pytest.mark.parametrize(("task", "posterior", "network"), VARIANTS)
def test_each_phase_gives_gradients_to_the_players_it_moves(task: str, posterior: str, network: str) -> None:
    run = variant(task, posterior, network)
    model = build_model(run, SHAPE)
    for phase in model.phases:
        for player in model.players.values():
            player.zero_grad()
        outcome = phase.loss(model.players, batch_for(model), run)
        assert outcome.loss_B.shape == (7,)
        outcome.loss_B.mean().backward()
        for name in phase.moves:
            for key, parameter in model.players[name].named_parameters():
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, f"{phase.name}: {name}.{key}"


@pytest.mark.parametrize(("task", "posterior", "network"), VARIANTS)
def test_a_loss_is_a_pure_function(task: str, posterior: str, network: str) -> None:
    run = variant(task, posterior, network)
    model = build_model(run, SHAPE)
    before = torch.get_rng_state()
    for phase in model.phases:
        first, second = (phase.loss(model.players, batch_for(model), run).loss_B for _ in range(2))
        assert torch.equal(first, second)
        other = phase.loss(model.players, batch_for(model, seed=1), run).loss_B
        assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("task", "posterior", "network"), VARIANTS)
def test_each_example_has_its_own_loss(task: str, posterior: str, network: str) -> None:
    run = variant(task, posterior, network)
    model = build_model(run, SHAPE)
    whole = batch_for(model)
    half = Batch(*(None if part is None else part[:3] for part in whole))  # type: ignore[arg-type]
    for phase in model.phases:
        torch.testing.assert_close(
            phase.loss(model.players, whole, run).loss_B[:3],
            phase.loss(model.players, half, run).loss_B,
            rtol=1e-10,
            atol=1e-12,
        )


@pytest.mark.parametrize(("task", "posterior", "network"), VARIANTS)
def test_encode_decode_and_sample_have_the_right_shapes(task: str, posterior: str, network: str) -> None:
    for shape in (SHAPE, (3, 13, 10)):
        model = build_model(variant(task, posterior, network), shape)
        batch = batch_for(model)
        z_BZ = model.encode(batch.x_BD, batch.posterior_noise_BE).z_BZ
        assert z_BZ.shape == (7, 5)
        assert model.decode(z_BZ).shape == batch.x_BD.shape
        assert model.sample(3, torch.Generator()).shape == (3, *shape)


@pytest.mark.parametrize(
    "phase", {phase.name: phase for task in TASKS.values() for phase in task}.values(), ids=lambda p: p.name
)
def test_every_metric_of_a_phase_is_in_the_table(phase: Phase) -> None:
    run = (
        variant("vae", "gaussian", "dense")
        if phase.name == "evidence"
        else variant("unsupervised", "gaussian", "dense")
    )
    model = build_model(run, SHAPE)
    outcome = phase.loss(model.players, batch_for(model), run)
    found = phase.summary(outcome.loss_B.detach() if outcome.seen_BM is None else outcome.seen_BM)
    assert found and set(found) <= set(METRICS)


@pytest.mark.parametrize(("reduction", "factor"), [("half_sum", 0.5), ("sum", 1.0), ("mean", 1 / 4)])
def test_reconstruction_reductions_by_hand(reduction: str, factor: float) -> None:
    x_BD = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
    answer_BD = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.0]])
    expected = torch.tensor([2.0, 0.25]) * factor
    torch.testing.assert_close(phases.reconstruction_loss(x_BD, answer_BD, reduction), expected)


def test_the_default_reduction_is_half_the_squared_euclidean_distance() -> None:
    assert Settings().train.reconstruction_reduction == "half_sum"


def constant_discriminator(model: Model, logit: float) -> None:
    last = list(model.players["style_discriminator"].layers)[-1]  # type: ignore[arg-type]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, logit)


@pytest.mark.parametrize("logit", [-50.0, -2.0, 0.0, 2.0, 50.0])
def test_adversarial_losses_against_their_formulas_and_finite_far_out(logit: float) -> None:
    for form in ("non_saturating", "minimax"):
        run = variant("unsupervised", "deterministic", "dense", **{"train.adversarial_loss": form})
        model = build_model(run, SHAPE)
        constant_discriminator(model, logit)
        batch = batch_for(model)
        d = torch.sigmoid(torch.tensor(logit, dtype=torch.float64))
        told_apart = phases.discriminate(model.players, batch, run).loss_B
        fooled = phases.regularize(model.players, batch, run).loss_B
        assert told_apart.isfinite().all() and fooled.isfinite().all()
        if abs(logit) < 10:
            torch.testing.assert_close(told_apart, (-0.5 * (d.log() + (1 - d).log())).expand(7))
            torch.testing.assert_close(fooled, (-d.log() if form == "non_saturating" else (1 - d).log()).expand(7))


def test_a_fooled_discriminator_has_a_loss_of_log_two() -> None:
    run = variant("unsupervised", "deterministic", "dense")
    model = build_model(run, SHAPE)
    constant_discriminator(model, 0.0)
    outcome = phases.discriminate(model.players, batch_for(model), run)
    assert outcome.seen_BM is not None
    assert phases.discriminate_summary(outcome.seen_BM)["adv/discriminator_loss_nats"] == pytest.approx(math.log(2))


def test_the_discriminator_learns_and_the_encoder_fools_it() -> None:
    """A discriminator step lowers its loss; an encoder step raises the logits of its codes."""
    run = variant("unsupervised", "deterministic", "dense")
    model = build_model(run, SHAPE)
    batch = batch_for(model, 64)

    def descend(phase: Phase) -> tuple[float, float]:
        parameters = [p for name in phase.moves for p in model.players[name].parameters()]
        loss = phase.loss(model.players, batch, run).loss_B.mean()
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= 0.05 * gradient
        return loss.item(), phase.loss(model.players, batch, run).loss_B.mean().item()

    for phase in (phases.DISCRIMINATE, phases.REGULARIZE):
        before, after = descend(phase)
        assert after < before, phase.name


def test_the_discriminator_phase_does_not_reach_the_encoder() -> None:
    run = variant("unsupervised", "universal", "dense")
    model = build_model(run, SHAPE)
    phases.discriminate(model.players, batch_for(model), run).loss_B.sum().backward()
    assert all(p.grad is None for name in phases.ENCODER for p in model.players[name].parameters())


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_evidence_against_torch_distributions(scale: float) -> None:
    run = variant("vae", "gaussian", "dense", **{"model.prior_scale": scale})
    model = build_model(run, SHAPE)
    batch = batch_for(model)
    code = model.encode(batch.x_BD, batch.posterior_noise_BE)
    assert code.mean_BZ is not None and code.log_variance_BZ is not None
    posterior = torch.distributions.Normal(code.mean_BZ, (0.5 * code.log_variance_BZ).exp())
    kl_B = torch.distributions.kl_divergence(
        posterior, torch.distributions.Normal(torch.tensor(0.0), torch.tensor(scale))
    ).sum(1)
    error_B = 0.5 * F.mse_loss(model.decode(code.z_BZ), batch.x_BD, reduction="none").sum(1)
    torch.testing.assert_close(phases.evidence(model.players, batch, run).loss_B, error_B + kl_B)


def test_universal_noise_enters_hidden_layers_as_well_as_the_head() -> None:
    for network in ("dense", "convolutional"):
        model = build_model(variant("unsupervised", "universal", network), SHAPE)
        batch = batch_for(model)
        assert batch.posterior_noise_BE is not None
        trunk = model.players["trunk"]
        quiet = trunk(batch.x_BD, torch.zeros_like(batch.posterior_noise_BE))
        assert not torch.allclose(trunk(batch.x_BD, batch.posterior_noise_BE), quiet)


def test_initial_weights_depend_on_the_seed_and_on_nothing_else() -> None:
    run = variant("unsupervised", "deterministic", "dense")
    first = build_model(run, SHAPE)
    torch.rand(10)
    again = build_model(run, SHAPE)
    vae = build_model(variant("vae", "gaussian", "dense"), SHAPE)
    other = build_model(replace(run, {"seed": 1}), SHAPE)
    for name in first.players:
        for (_, a), (_, b), (_, c) in zip(
            *(m.players[name].named_parameters() for m in (first, again, other)), strict=True
        ):
            assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(next(first.players["decoder"].parameters()), next(vae.players["decoder"].parameters()))


def test_the_papers_initialization() -> None:
    model = build_model(
        variant(
            "unsupervised",
            "deterministic",
            "dense",
            **{"model.initialization": "normal", "model.hidden": (300, 300)},
        ),
        SHAPE,
    )
    weight = model.players["trunk"].layers[1].weight  # type: ignore[union-attr, index]
    assert weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert all(
        not p.any() for player in model.players.values() for key, p in player.named_parameters() if key.endswith("bias")
    )


def test_images_too_small_for_the_convolutions_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.channels has 4 layers.*8 x 8"):
        build_model(
            variant("unsupervised", "deterministic", "convolutional", **{"model.channels": (8, 8, 8, 8)}),
            SHAPE,
        )
