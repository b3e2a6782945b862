"""The losses against closed forms, and the contract of every task, posterior and network."""

import math

import pytest
import torch
import torch.nn.functional as F

from aae_ray.autoencoder import phases
from aae_ray.autoencoder.model import Model
from aae_ray.autoencoder.phases import Batch, Phase
from aae_ray.autoencoder.posteriors import Code
from aae_ray.evaluation.metrics import METRICS
from aae_ray.settings import Settings
from tests.autoencoder.variants import CLASSES, SHAPE, VARIANTS, batch_for, build, variant


@pytest.mark.parametrize(("task", "posterior", "network"), VARIANTS)
def test_each_phase_gives_gradients_to_the_networks_it_updates(task: str, posterior: str, network: str) -> None:
    settings = variant(task, posterior, network)
    model = build(settings)
    for phase in model.phases:
        for each in model.networks.values():
            each.zero_grad()
        outcome = phase.loss(model.networks, batch_for(model), settings)
        assert outcome.loss_B.shape == (7,)
        outcome.loss_B.mean().backward()
        for name in phase.updates:
            for key, parameter in model.networks[name].named_parameters():
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, f"{phase.name}: {name}.{key}"
        for name in model.networks.keys() - set(phase.updates):
            if phase.name in ("discriminate", "classify"):  # the others look through networks they do not update
                assert all(parameter.grad is None for parameter in model.networks[name].parameters()), name


@pytest.mark.parametrize(("task", "posterior", "network"), VARIANTS)
def test_a_loss_is_a_pure_function(task: str, posterior: str, network: str) -> None:
    settings = variant(task, posterior, network)
    model = build(settings)
    before = torch.get_rng_state()
    for phase in model.phases:
        first, second = (phase.loss(model.networks, batch_for(model), settings).loss_B for _ in range(2))
        assert torch.equal(first, second)
        other = phase.loss(model.networks, batch_for(model, seed=1), settings).loss_B
        assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("task", "posterior", "network"), VARIANTS)
def test_each_example_has_its_own_loss(task: str, posterior: str, network: str) -> None:
    settings = variant(task, posterior, network)
    model = build(settings)
    whole = batch_for(model)
    half = Batch(*(None if part is None else part[:3] for part in whole))  # type: ignore[arg-type]
    for phase in model.phases:
        if phase.couples:
            continue
        torch.testing.assert_close(
            phase.loss(model.networks, whole, settings).loss_B[:3],
            phase.loss(model.networks, half, settings).loss_B,
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
    settings = variant(task, posterior, network)
    model = build(settings)
    for phase in model.phases:
        outcome = phase.loss(model.networks, batch_for(model), settings)
        metrics = phase.summary(outcome.loss_B.detach() if outcome.seen_BM is None else outcome.seen_BM)
        assert metrics and set(metrics) <= set(METRICS)


@pytest.mark.parametrize(("reduction", "factor"), [("half_sum", 0.5), ("sum", 1.0), ("mean", 1 / 4)])
def test_reconstruction_reductions_by_hand(reduction: str, factor: float) -> None:
    x_BD = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
    answer_BD = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.0]])
    expected = torch.tensor([2.0, 0.25]) * factor
    torch.testing.assert_close(phases.reconstruction_loss(x_BD, answer_BD, reduction), expected)


def test_the_default_reduction_is_half_the_squared_euclidean_distance() -> None:
    assert Settings().train.reconstruction_reduction == "half_sum"


def constant_discriminator(model: Model, logit: float) -> None:
    last = list(model.networks["style_discriminator"].layers)[-1]  # type: ignore[arg-type]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, logit)


@pytest.mark.parametrize("logit", [-50.0, -2.0, 0.0, 2.0, 50.0])
@pytest.mark.parametrize("form", ["non_saturating", "minimax"])
def test_adversarial_losses_and_gradients_against_their_formulas_far_out_too(form: str, logit: float) -> None:
    """At a logit of 50 a discriminator is wrong by 50 nats, with a gradient of 1: log(D + 1e-15) has neither."""
    settings = variant("unsupervised", "deterministic", "dense", **{"train.adversarial_loss": form})
    model = build(settings)
    constant_discriminator(model, logit)
    batch = batch_for(model)._replace(style_noise_B2Z=None)
    bias = list(model.networks["style_discriminator"].layers)[-1].bias  # type: ignore[arg-type]
    at = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
    real, fake = F.logsigmoid(at), F.logsigmoid(-at)  # log D and log(1 - D)
    expected = {"discriminate": -real - fake, "regularize": -real if form == "non_saturating" else fake}
    for phase in (phases.DISCRIMINATE, phases.REGULARIZE):
        loss_B = phase.loss(model.networks, batch, settings).loss_B
        torch.testing.assert_close(loss_B, expected[phase.name].expand(7))
        (gradient,) = torch.autograd.grad(loss_B.mean(), bias)
        (by_hand,) = torch.autograd.grad(expected[phase.name], at, retain_graph=True)
        torch.testing.assert_close(gradient[0], by_hand)


def test_a_fooled_discriminator_has_a_loss_of_log_two() -> None:
    settings = variant("unsupervised", "deterministic", "dense")
    model = build(settings)
    constant_discriminator(model, 0.0)
    outcome = phases.discriminate(model.networks, batch_for(model), settings)
    assert outcome.seen_BM is not None
    assert phases.discriminate_summary(outcome.seen_BM)["adv/discriminator_loss_nats"] == pytest.approx(math.log(2))


def test_the_discriminator_learns_and_the_encoder_fools_it() -> None:
    """A discriminator step lowers its loss; an encoder step raises the logits of its codes."""
    settings = variant("unsupervised", "deterministic", "dense")
    model = build(settings)
    batch = batch_for(model, 64)

    def descend(phase: Phase) -> tuple[float, float]:
        parameters = [p for name in phase.updates for p in model.networks[name].parameters()]
        loss = phase.loss(model.networks, batch, settings).loss_B.mean()
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= 0.05 * gradient
        return loss.item(), phase.loss(model.networks, batch, settings).loss_B.mean().item()

    for phase in (phases.DISCRIMINATE, phases.REGULARIZE):
        before, after = descend(phase)
        assert after < before, phase.name


def test_the_discriminator_phase_does_not_reach_the_encoder() -> None:
    settings = variant("unsupervised", "universal", "dense")
    model = build(settings)
    phases.discriminate(model.networks, batch_for(model), settings).loss_B.sum().backward()
    assert all(p.grad is None for name in phases.ENCODER for p in model.networks[name].parameters())


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_evidence_against_torch_distributions(scale: float) -> None:
    settings = variant("vae", "gaussian", "dense", **{"model.prior_scale": scale})
    model = build(settings)
    batch = batch_for(model)
    code = model.encode(phases.corrupt(batch), batch.posterior_noise_BE)
    assert code.mean_BZ is not None and code.log_variance_BZ is not None
    posterior = torch.distributions.Normal(code.mean_BZ, (0.5 * code.log_variance_BZ).exp())
    kl_B = torch.distributions.kl_divergence(
        posterior, torch.distributions.Normal(torch.tensor(0.0), torch.tensor(scale))
    ).sum(1)
    error_B = 0.5 * F.mse_loss(model.decode(code.z_BZ), batch.x_BD, reduction="none").sum(1)
    torch.testing.assert_close(phases.negative_elbo(model.networks, batch, settings).loss_B, error_B + kl_B)


def test_evidence_of_a_mixture_is_the_sampled_divergence() -> None:
    settings = variant("vae", "gaussian", "dense", **{"model.prior": "mixture", "model.prior_scale": 2.0})
    model = build(settings)
    batch = batch_for(model)
    code = model.encode(phases.corrupt(batch), batch.posterior_noise_BE)
    assert code.mean_BZ is not None and code.log_variance_BZ is not None
    q = torch.distributions.Normal(code.mean_BZ, (0.5 * code.log_variance_BZ).exp())
    kl_B = q.log_prob(code.z_BZ).sum(1) - model.prior.log_density(code.z_BZ)
    error_B = 0.5 * F.mse_loss(model.decode(code.z_BZ), batch.x_BD, reduction="none").sum(1)
    torch.testing.assert_close(phases.negative_elbo(model.networks, batch, settings).loss_B, error_B + kl_B)


@pytest.mark.parametrize("posterior", ["deterministic", "gaussian", "universal"])
def test_reencoding_by_hand(posterior: str) -> None:
    settings = variant("semi_supervised", posterior, "dense", **{"model.prior": "mixture", "model.prior_scale": 2.0})
    model = build(settings)
    batch = batch_for(model)
    assert batch.prior_BZ is not None and batch.classes_BK is not None
    code = model.encode(model.decode(batch.prior_BZ, batch.classes_BK), batch.posterior_noise_BE)
    found_BZ = code.z_BZ if code.mean_BZ is None else code.mean_BZ
    assert code.label_logits_BK is not None
    style_B = 0.5 * ((found_BZ - batch.prior_BZ) / model.prior.std_Z).square().sum(1)
    label_B = -(code.label_logits_BK.log_softmax(1) * batch.classes_BK).sum(1)
    outcome = phases.reencode(model.networks, batch, settings)
    torch.testing.assert_close(outcome.loss_B, style_B + label_B)
    assert outcome.seen_BM is not None
    metrics = phases.reencode_summary(outcome.seen_BM)
    assert metrics["train/reencoding_style_loss_nats"] == pytest.approx(style_B.mean().item())
    assert metrics["train/reencoding_label_loss_nats"] == pytest.approx(label_B.mean().item())


def test_reencoding_leaves_the_width_of_a_gaussian_posterior_alone() -> None:
    settings = variant("unsupervised", "gaussian", "dense")
    model = build(settings)
    phases.reencode(model.networks, batch_for(model), settings).loss_B.sum().backward()
    gradient_FZ = next(model.networks["style_head"].parameters()).grad
    assert gradient_FZ is not None and gradient_FZ[:5].any() and not gradient_FZ[5:].any()


def test_the_r1_penalty_against_finite_differences() -> None:
    """Half the squared gradient of the logit at each draw of the prior, and at no code, nor by the label condition."""
    weight, step = 3.0, 1e-5
    settings = variant("label_informed", "deterministic", "dense", **{"train.r1_penalty": weight})
    model, plain = build(settings), variant("label_informed", "deterministic", "dense")
    batch = batch_for(model)
    assert batch.prior_BZ is not None and batch.style_noise_B2Z is not None and batch.label_condition_BS is not None
    seen_BZ = batch.prior_BZ + batch.style_noise_B2Z[:, 0]

    def logits(at_BZ: torch.Tensor) -> torch.Tensor:
        logits_B: torch.Tensor = model.networks["style_discriminator"](torch.cat([at_BZ, batch.label_condition_BS], 1))  # type: ignore[list-item]
        return logits_B

    squared_B = torch.zeros(7, dtype=torch.float64)
    for axis in step * torch.eye(5, dtype=torch.float64):
        squared_B += ((logits(seen_BZ + axis) - logits(seen_BZ - axis)) / (2 * step)).square()
    outcome, without = (phases.discriminate(model.networks, batch, each) for each in (settings, plain))
    torch.testing.assert_close(outcome.loss_B - without.loss_B, 0.5 * weight * squared_B, rtol=1e-6, atol=1e-9)
    assert outcome.seen_BM is not None and without.seen_BM is not None
    assert torch.equal(outcome.seen_BM, without.seen_BM)


def test_the_squared_discrepancy_by_hand() -> None:
    """The unbiased estimate, pair by pair (Gretton et al. 2012, equation 3), is the mean over the batch."""
    settings = variant("wae_mmd", "deterministic", "dense", **{"train.mmd_weight": 7.0, "model.prior_scale": 2.0})
    model = build(settings)
    batch = batch_for(model)
    z_BZ, prior_BZ = model.encode(phases.corrupt(batch), None).z_BZ.detach(), batch.prior_BZ
    assert prior_BZ is not None
    scale = 2 * 5 * 2.0**2

    def kernel(a_Z: torch.Tensor, b_Z: torch.Tensor) -> float:
        squared = float((a_Z - b_Z).square().sum())
        return sum(f * scale / (f * scale + squared) for f in (0.1, 0.2, 0.5, 1, 2, 5, 10)) / 7

    pairs = [(i, j) for i in range(7) for j in range(7)]
    alike = sum(kernel(x[i], x[j]) for x in (z_BZ, prior_BZ) for i, j in pairs if i != j) / (7 * 6)
    apart = sum(kernel(z_BZ[i], prior_BZ[j]) for i, j in pairs) / 7**2
    outcome = phases.wae_mmd(model.networks, batch, settings)
    assert outcome.seen_BM is not None
    metrics = phases.wae_mmd_summary(outcome.seen_BM)
    assert metrics["train/squared_mmd"] == pytest.approx(alike - 2 * apart)
    assert outcome.loss_B.mean().item() == pytest.approx(
        metrics["train/reconstruction_loss"] + 7 * metrics["train/squared_mmd"]
    )


def test_the_discrepancy_of_the_prior_from_itself_is_none_on_average() -> None:
    settings = variant("wae_mmd", "deterministic", "dense")
    model = build(settings)
    found = []
    for seed in range(200):
        batch = batch_for(model, 16, seed)
        other = batch_for(model, 16, seed + 1000).prior_BZ
        assert other is not None
        outcome = phases.wae_mmd(model.networks, batch._replace(code=Code(other)), settings)
        assert outcome.seen_BM is not None
        found.append(outcome.seen_BM[:, 1].mean())
    mean = torch.stack(found).mean().item()
    assert abs(mean) < 4 * torch.stack(found).std().item() / 200**0.5


def test_a_batch_of_one_has_no_discrepancy() -> None:
    settings = variant("wae_mmd", "deterministic", "dense")
    model = build(settings)
    outcome = phases.wae_mmd(model.networks, batch_for(model, 1), settings)
    assert outcome.seen_BM is not None and torch.equal(outcome.loss_B, outcome.seen_BM[:, 0])


# ----------------------------------------------------------------------------------- who is given which labels


def test_the_decoder_is_given_the_label_and_the_encoder_is_not() -> None:
    settings = variant("supervised", "deterministic", "dense")
    model = build(settings)
    batch = batch_for(model)
    assert batch.labels_BK is not None
    other = batch._replace(labels_BK=batch.labels_BK.roll(1, dims=1))
    loss_B, other_B = (phases.reconstruct(model.networks, b, settings).loss_B for b in (batch, other))
    assert not torch.isclose(loss_B, other_B).any()
    for phase in (phases.discriminate, phases.regularize):
        assert torch.equal(phase(model.networks, batch, settings).loss_B, phase(model.networks, other, settings).loss_B)


def test_the_slot_reaches_the_discriminator_alike_for_real_and_fake_and_never_the_encoder() -> None:
    settings = variant("label_informed", "deterministic", "dense")
    model = build(settings)
    batch = batch_for(model)._replace(style_noise_B2Z=None)
    assert batch.label_condition_BS is not None and batch.label_condition_BS.shape == (7, CLASSES + 1)
    seen: list[torch.Tensor] = []
    model.networks["style_discriminator"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    phases.discriminate(model.networks, batch, settings)
    phases.regularize(model.networks, batch, settings)
    both, fake = seen
    for condition in (both[:7, 5:], both[7:, 5:], fake[:, 5:]):
        assert torch.equal(condition, batch.label_condition_BS)
    other = batch._replace(label_condition_BS=batch.label_condition_BS.roll(1, dims=1))
    assert torch.equal(
        phases.reconstruct(model.networks, batch, settings).loss_B,
        phases.reconstruct(model.networks, other, settings).loss_B,
    )


def test_classification_against_the_log_softmax() -> None:
    settings = variant("semi_supervised", "deterministic", "dense")
    model = build(settings)
    batch = batch_for(model)
    assert batch.labels_BK is not None
    logits_BK = model.encode(phases.corrupt(batch), None).label_logits_BK
    assert logits_BK is not None
    expected_B = -(logits_BK.log_softmax(1) * batch.labels_BK).sum(1)
    outcome = phases.classify(model.networks, batch, settings)
    torch.testing.assert_close(outcome.loss_B, expected_B)
    assert outcome.seen_BM is not None
    wrong = (logits_BK.argmax(1) != batch.labels_BK.argmax(1)).double().mean().item()
    assert phases.classify_summary(outcome.seen_BM)["train/classification_error"] == pytest.approx(wrong)


@pytest.mark.parametrize("pair", ["style", "label"])
def test_real_is_the_prior_and_fake_the_code(pair: str) -> None:
    """A step of the phase raises D of draws of the prior and lowers D of codes: of styles as of labels."""
    settings = variant("semi_supervised", "deterministic", "dense")
    model = build(settings)
    batch = batch_for(model, 64)
    discriminator = model.networks[f"{pair}_discriminator"]
    code = model.encode(phases.corrupt(batch), None)
    assert code.label_logits_BK is not None
    drawn, answered = {
        "style": (batch.prior_BZ, code.z_BZ),
        "label": (batch.classes_BK, code.label_logits_BK.softmax(1)),
    }[pair]
    noise_B2 = {"style": batch.style_noise_B2Z, "label": batch.label_noise_B2K}[pair]
    assert drawn is not None and noise_B2 is not None
    seen: list[torch.Tensor] = []
    hook = discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    loss_B = phases.discriminate(model.networks, batch, settings).loss_B
    hook.remove()
    torch.testing.assert_close(seen[0], torch.cat([drawn + noise_B2[:, 0], answered.detach() + noise_B2[:, 1]]))

    def gap() -> float:
        """How much surer D is that draws of the prior are real than that codes are."""
        with torch.no_grad():
            return float(discriminator(drawn).mean() - discriminator(answered).mean())

    before = gap()
    parameters = list(discriminator.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss_B.mean(), parameters), strict=True):
        parameter.data -= 0.05 * gradient
    assert gap() > before


def test_the_summary_of_a_game_by_hand() -> None:
    """Logits of two pairs, real and fake, of four images."""
    logits_NM = torch.tensor(
        [[1.0, -1.0, 0.5, 2.0], [1.0, -1.0, 0.5, 2.0], [-1.0, -1.0, 0.5, 2.0], [3.0, 3.0, 0.5, 2.0]]
    )
    metrics = phases.discriminate_summary(logits_NM)
    sure, unsure, far = (math.log1p(math.exp(value)) for value in (-1.0, 1.0, -3.0))  # softplus
    real, fake = (2 * sure + unsure + far) / 4, (3 * sure + 3 + far) / 4
    deviations = [value - 0.5 for value in (1, 1, -1, 3, -1, -1, -1, 3)]
    assert metrics["adv/accuracy_real"] == 0.75 and metrics["adv/accuracy_fake"] == 0.75
    assert metrics["adv/label_accuracy_real"] == 1 and metrics["adv/label_accuracy_fake"] == 0
    assert metrics["adv/discriminator_loss_nats"] == pytest.approx((real + fake) / 2, rel=1e-6)
    assert metrics["adv/logit_std"] == pytest.approx((sum(d * d for d in deviations) / 8) ** 0.5, rel=1e-6)
    assert metrics["adv/label_logit_std"] == pytest.approx(0.75)


def test_the_kl_of_the_evidence_by_hand() -> None:
    """What is recorded of the loss are its two parts: KL(N(m, s^2) || N(0, 1)) is (m^2 + s^2 - 1 - 2 log s) / 2."""
    settings = variant("vae", "gaussian", "dense")
    model = build(settings)
    batch = batch_for(model)
    code = model.encode(phases.corrupt(batch), batch.posterior_noise_BE)
    assert code.mean_BZ is not None and code.log_variance_BZ is not None
    kl_BZ = (code.mean_BZ.square() + code.log_variance_BZ.exp() - 1 - code.log_variance_BZ) / 2
    seen_BM = phases.negative_elbo(model.networks, batch, settings).seen_BM
    assert seen_BM is not None
    assert phases.negative_elbo_summary(seen_BM)["train/kl_nats"] == pytest.approx(kl_BZ.sum(1).mean().item())


def test_the_head_penalty_by_hand() -> None:
    heads_KZ = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])  # distances 5, 1 and the root of 18
    assert phases.head_penalty(heads_KZ, 4.0).item() == pytest.approx(3.0)
    assert phases.head_penalty(heads_KZ, 0.5).item() == 0
    assert phases.head_penalty(heads_KZ, 6.0).item() == pytest.approx(1 + 5 + 6 - 18**0.5)


def test_a_reduction_is_the_cluster_head_plus_the_style() -> None:
    model = build(variant("reduction", "deterministic", "dense"))
    (heads_KZ,) = model.networks["cluster_heads"].parameters()
    z_BZ, y_BK = torch.randn(6, 5, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(model.decoder_input(z_BZ, y_BK), heads_KZ + z_BZ)
    assert phases.head_penalty(heads_KZ, 5.0) < 15 * 5  # they start apart


def test_corruption_is_noise_then_dropout_and_the_target_stays_clean() -> None:
    x_BD = torch.full((2, 4), 0.5)
    noise_BD, mask_BD = torch.full((2, 4), 0.25), torch.tensor([[0.0, 2.0, 0.0, 2.0]]).expand(2, 4)
    batch = Batch(x_BD, input_noise_BD=noise_BD, input_mask_BD=mask_BD)
    assert torch.equal(phases.corrupt(batch), torch.tensor([[0.0, 1.5, 0.0, 1.5]]).expand(2, 4))
    settings = variant("unsupervised", "deterministic", "dense")
    model = build(settings)
    whole = batch_for(model)
    answer_BD = model.decode(model.encode(phases.corrupt(whole), None).z_BZ)
    expected_B = 0.5 * (answer_BD - whole.x_BD).square().sum(1)
    torch.testing.assert_close(phases.reconstruct(model.networks, whole, settings).loss_B, expected_B)
