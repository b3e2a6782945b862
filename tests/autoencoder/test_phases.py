"""The losses against closed forms, and the contract of every task, posterior and network."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aae_ray.autoencoder import networks, phases
from aae_ray.autoencoder.model import Model, build_model
from aae_ray.autoencoder.phases import TASKS, Batch, Phase
from aae_ray.autoencoder.priors import sample_classes
from aae_ray.mistakes import UserError
from aae_ray.settings import Settings, replace
from aae_ray.training.metrics import METRICS

SHAPE = (1, 8, 8)
CLASSES = 4
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
        "model.clusters": 6,
    }
    if task == "label_informed":
        values["model.prior"] = "mixture"
    return replace(Settings(), values | more)


def build(run: Settings, shape: tuple[int, int, int] = SHAPE) -> Model:
    return build_model(run, shape, classes=CLASSES)


def batch_for(model: Model, size: int = 7, seed: int = 0) -> Batch:
    """A batch with all that any task asks for, noise of every kind included."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(size, *shape, generator=generator, dtype=torch.float64)

    def one_hot(classes: int) -> torch.Tensor:
        return sample_classes(size, classes, generator, torch.float64)

    pixels, y, slots = math.prod(model.shape), model.classes, model.sizes.slots
    return Batch(
        torch.rand(size, pixels, generator=generator, dtype=torch.float64),
        normal(model.noise_dim) if model.noise_dim else None,
        model.prior.sample(size, generator, torch.float64),
        classes_BK=one_hot(y) if y else None,
        labels_BK=one_hot(y) if y else None,
        slots_BS=one_hot(slots) if slots else None,
        input_noise_BD=0.1 * normal(pixels),
        input_mask_BD=torch.rand(size, pixels, generator=generator, dtype=torch.float64),
        style_noise_B2Z=0.1 * normal(2, model.prior.latent_dim),
        label_noise_B2K=0.1 * normal(2, y) if y else None,
    )


@pytest.mark.parametrize(("task", "posterior", "network"), VARIANTS)
def test_each_phase_gives_gradients_to_the_players_it_moves(task: str, posterior: str, network: str) -> None:
    run = variant(task, posterior, network)
    model = build(run)
    for phase in model.phases:
        for player in model.players.values():
            player.zero_grad()
        outcome = phase.loss(model.players, batch_for(model), run)
        assert outcome.loss_B.shape == (7,)
        outcome.loss_B.mean().backward()
        for name in phase.moves:
            for key, parameter in model.players[name].named_parameters():
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, f"{phase.name}: {name}.{key}"
        for name in model.players.keys() - set(phase.moves):
            if phase.name in ("discriminate", "classify"):  # the others look through players that they do not move
                assert all(parameter.grad is None for parameter in model.players[name].parameters()), name


@pytest.mark.parametrize(("task", "posterior", "network"), VARIANTS)
def test_a_loss_is_a_pure_function(task: str, posterior: str, network: str) -> None:
    run = variant(task, posterior, network)
    model = build(run)
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
    model = build(run)
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
        model = build(variant(task, posterior, network), shape)
        batch = batch_for(model)
        z_BZ = model.encode(batch.x_BD, batch.posterior_noise_BE).z_BZ
        assert z_BZ.shape == (7, 5)
        assert model.decode(z_BZ, batch.labels_BK).shape == batch.x_BD.shape
        assert model.sample(3, torch.Generator()).shape == (3, *shape)


@pytest.mark.parametrize(("task", "posterior", "network"), [v for v in VARIANTS if v[1:] == ("gaussian", "dense")])
def test_every_metric_of_a_phase_is_in_the_table(task: str, posterior: str, network: str) -> None:
    run = variant(task, posterior, network)
    model = build(run)
    for phase in model.phases:
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
        model = build(run)
        constant_discriminator(model, logit)
        batch = batch_for(model)._replace(style_noise_B2Z=None)
        d = torch.sigmoid(torch.tensor(logit, dtype=torch.float64))
        told_apart = phases.discriminate(model.players, batch, run).loss_B
        fooled = phases.regularize(model.players, batch, run).loss_B
        assert told_apart.isfinite().all() and fooled.isfinite().all()
        if abs(logit) < 10:
            torch.testing.assert_close(told_apart, -(d.log() + (1 - d).log()).expand(7))
            torch.testing.assert_close(fooled, (-d.log() if form == "non_saturating" else (1 - d).log()).expand(7))


def test_a_fooled_discriminator_has_a_loss_of_log_two() -> None:
    run = variant("unsupervised", "deterministic", "dense")
    model = build(run)
    constant_discriminator(model, 0.0)
    outcome = phases.discriminate(model.players, batch_for(model), run)
    assert outcome.seen_BM is not None
    assert phases.discriminate_summary(outcome.seen_BM)["adv/discriminator_loss_nats"] == pytest.approx(math.log(2))


def test_the_discriminator_learns_and_the_encoder_fools_it() -> None:
    """A discriminator step lowers its loss; an encoder step raises the logits of its codes."""
    run = variant("unsupervised", "deterministic", "dense")
    model = build(run)
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
    model = build(run)
    phases.discriminate(model.players, batch_for(model), run).loss_B.sum().backward()
    assert all(p.grad is None for name in phases.ENCODER for p in model.players[name].parameters())


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_evidence_against_torch_distributions(scale: float) -> None:
    run = variant("vae", "gaussian", "dense", **{"model.prior_scale": scale})
    model = build(run)
    batch = batch_for(model)
    code = model.encode(phases.corrupt(batch), batch.posterior_noise_BE)
    assert code.mean_BZ is not None and code.log_variance_BZ is not None
    posterior = torch.distributions.Normal(code.mean_BZ, (0.5 * code.log_variance_BZ).exp())
    kl_B = torch.distributions.kl_divergence(
        posterior, torch.distributions.Normal(torch.tensor(0.0), torch.tensor(scale))
    ).sum(1)
    error_B = 0.5 * F.mse_loss(model.decode(code.z_BZ), batch.x_BD, reduction="none").sum(1)
    torch.testing.assert_close(phases.evidence(model.players, batch, run).loss_B, error_B + kl_B)


def test_evidence_of_a_mixture_is_the_sampled_divergence() -> None:
    run = variant("vae", "gaussian", "dense", **{"model.prior": "mixture", "model.prior_scale": 2.0})
    model = build(run)
    batch = batch_for(model)
    code = model.encode(phases.corrupt(batch), batch.posterior_noise_BE)
    assert code.mean_BZ is not None and code.log_variance_BZ is not None
    q = torch.distributions.Normal(code.mean_BZ, (0.5 * code.log_variance_BZ).exp())
    kl_B = q.log_prob(code.z_BZ).sum(1) - model.prior.log_density(code.z_BZ)
    error_B = 0.5 * F.mse_loss(model.decode(code.z_BZ), batch.x_BD, reduction="none").sum(1)
    torch.testing.assert_close(phases.evidence(model.players, batch, run).loss_B, error_B + kl_B)


def test_universal_noise_enters_hidden_layers_as_well_as_the_head() -> None:
    for network in ("dense", "convolutional"):
        model = build(variant("unsupervised", "universal", network))
        batch = batch_for(model)
        assert batch.posterior_noise_BE is not None
        trunk = model.players["trunk"]
        quiet = trunk(batch.x_BD, torch.zeros_like(batch.posterior_noise_BE))
        assert not torch.allclose(trunk(batch.x_BD, batch.posterior_noise_BE), quiet)


def test_initial_weights_depend_on_the_seed_and_on_nothing_else() -> None:
    run = variant("unsupervised", "deterministic", "dense")
    first = build(run)
    torch.rand(10)
    again = build(run)
    vae = build(variant("vae", "gaussian", "dense"))
    other = build(replace(run, {"seed": 1}))
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


@pytest.mark.parametrize("network", ["dense", "convolutional"])
@pytest.mark.parametrize("posterior", ["deterministic", "universal"])
@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_normalization_takes_scale_out_of_the_encoders_hidden_layers(network: str, posterior: str, kind: str) -> None:
    """Weights and biases ten times as large leave the features as they are."""
    run = variant("clustering", posterior, network, **{"model.normalization": kind})
    model, batch = build(run), batch_for(build(run))
    trunk, noise_BE = model.players["trunk"], batch.posterior_noise_BE if posterior == "universal" else None
    features_BF = trunk(batch.x_BD, noise_BE)
    alone_BF = trunk(batch.x_BD[:1], None if noise_BE is None else noise_BE[:1])
    assert torch.allclose(alone_BF, features_BF[:1]) == (kind == "layer")
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():
            if "norm" not in name:
                parameter.mul_(10)
    assert torch.allclose(trunk(batch.x_BD, noise_BE), features_BF, rtol=1e-2, atol=1e-2)
    plain = build(variant("clustering", posterior, network)).players["trunk"]
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
    norm(torch.tensor([[7.0, -7.0]], dtype=torch.float64))
    weight = norm.UPDATE / 100
    torch.testing.assert_close(norm.mean, (1 - weight) * mean + weight * torch.tensor([7.0, -7.0]).double())
    torch.testing.assert_close(norm.variance, (1 - weight) * variance)


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_the_papers_initialization_leaves_the_gains_of_normalization_at_one(kind: str) -> None:
    values = {"model.initialization": "normal", "model.normalization": kind}
    trunk = build(variant("clustering", "deterministic", "dense", **values)).players["trunk"]
    gains = [value for key, value in trunk.named_parameters() if "norms" in key and key.endswith("weight")]
    assert len(gains) == 2 and all((gain == 1).all() for gain in gains)


def test_images_too_small_for_the_convolutions_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.channels has 4 layers.*8 x 8"):
        build_model(
            variant("unsupervised", "deterministic", "convolutional", **{"model.channels": (8, 8, 8, 8)}),
            SHAPE,
        )


# ------------------------------------------------------------------------------------- what labels are told to whom


def test_the_decoder_is_told_the_label_and_the_encoder_is_not() -> None:
    run = variant("supervised", "deterministic", "dense")
    model = build(run)
    batch = batch_for(model)
    assert batch.labels_BK is not None
    other = batch._replace(labels_BK=batch.labels_BK.roll(1, dims=1))
    loss_B, other_B = (phases.reconstruct(model.players, b, run).loss_B for b in (batch, other))
    assert not torch.isclose(loss_B, other_B).any()
    for phase in (phases.discriminate, phases.regularize):
        assert torch.equal(phase(model.players, batch, run).loss_B, phase(model.players, other, run).loss_B)


def test_the_slot_reaches_the_discriminator_alike_for_real_and_fake_and_never_the_encoder() -> None:
    run = variant("label_informed", "deterministic", "dense")
    model = build(run)
    batch = batch_for(model)._replace(style_noise_B2Z=None)
    assert batch.slots_BS is not None and batch.slots_BS.shape == (7, CLASSES + 1)
    seen: list[torch.Tensor] = []
    model.players["style_discriminator"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    phases.discriminate(model.players, batch, run)
    phases.regularize(model.players, batch, run)
    both, fake = seen
    for slots in (both[:7, 5:], both[7:, 5:], fake[:, 5:]):
        assert torch.equal(slots, batch.slots_BS)
    other = batch._replace(slots_BS=batch.slots_BS.roll(1, dims=1))
    assert torch.equal(
        phases.reconstruct(model.players, batch, run).loss_B, phases.reconstruct(model.players, other, run).loss_B
    )


def test_classification_against_the_log_softmax() -> None:
    run = variant("semi_supervised", "deterministic", "dense")
    model = build(run)
    batch = batch_for(model)
    assert batch.labels_BK is not None
    logits_BK = model.encode(phases.corrupt(batch), None).label_logits_BK
    assert logits_BK is not None
    expected_B = -(logits_BK.log_softmax(1) * batch.labels_BK).sum(1)
    outcome = phases.classify(model.players, batch, run)
    torch.testing.assert_close(outcome.loss_B, expected_B)
    assert outcome.seen_BM is not None
    wrong = (logits_BK.argmax(1) != batch.labels_BK.argmax(1)).double().mean().item()
    assert phases.classify_summary(outcome.seen_BM)["train/classification_error"] == pytest.approx(wrong)


@pytest.mark.parametrize("game", [0, 1])
def test_each_discriminator_learns_towards_its_own_target(game: int) -> None:
    """On separable examples a step of the phase lowers the loss of the style's discriminator and of the label's."""
    run = variant("semi_supervised", "deterministic", "dense")
    model = build(run)
    batch = batch_for(model, 64)
    name = ("adv/", "adv/label_")[game] + "discriminator_loss_nats"

    def loss() -> float:
        seen_BM = phases.discriminate(model.players, batch, run).seen_BM
        assert seen_BM is not None
        return phases.discriminate_summary(seen_BM)[name]

    before = loss()
    phases.discriminate(model.players, batch, run).loss_B.mean().backward()
    for player in ("style_discriminator", "label_discriminator"):
        for parameter in model.players[player].parameters():
            assert parameter.grad is not None
            parameter.data -= 0.05 * parameter.grad
    assert loss() < before


def test_the_head_penalty_by_hand() -> None:
    heads_KZ = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])  # distances 5, 1 and the root of 18
    assert phases.head_penalty(heads_KZ, 4.0).item() == pytest.approx(3.0)
    assert phases.head_penalty(heads_KZ, 0.5).item() == 0
    assert phases.head_penalty(heads_KZ, 6.0).item() == pytest.approx(1 + 5 + 6 - 18**0.5)


def test_a_reduction_is_the_cluster_head_plus_the_style() -> None:
    model = build(variant("reduction", "deterministic", "dense"))
    (heads_KZ,) = model.players["cluster_heads"].parameters()
    z_BZ, y_BK = torch.randn(6, 5, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(model.place(z_BZ, y_BK), heads_KZ + z_BZ)
    assert phases.head_penalty(heads_KZ, 5.0) < 15 * 5  # they start apart


def test_corruption_is_noise_then_dropout_and_the_target_stays_clean() -> None:
    x_BD = torch.full((2, 4), 0.5)
    noise_BD, mask_BD = torch.full((2, 4), 0.25), torch.tensor([[0.0, 2.0, 0.0, 2.0]]).expand(2, 4)
    batch = Batch(x_BD, input_noise_BD=noise_BD, input_mask_BD=mask_BD)
    assert torch.equal(phases.corrupt(batch), torch.tensor([[0.0, 1.5, 0.0, 1.5]]).expand(2, 4))
    run = variant("unsupervised", "deterministic", "dense")
    model = build(run)
    whole = batch_for(model)
    answer_BD = model.decode(model.encode(phases.corrupt(whole), None).z_BZ)
    expected_B = 0.5 * (answer_BD - whole.x_BD).square().sum(1)
    torch.testing.assert_close(phases.reconstruct(model.players, whole, run).loss_B, expected_B)
