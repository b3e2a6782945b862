"""The phases of one training step: which players each moves, and the loss that it minimises.

A loss is a pure function of players, batch and noise: nothing is drawn and no state is kept inside. It returns one
value per example, so that the loop alone decides what an average is, also over several workers and a short last batch.

Shapes: B batch, D pixels, E noise, Z code.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aae_ray import settings
from aae_ray.autoencoder.posteriors import Code

Players = Mapping[str, nn.Module]


class Batch(NamedTuple):
    """What one phase of one step works on; noise and prior draws come from outside, as functions of the step."""

    x_BD: Tensor
    posterior_noise_BE: Tensor | None
    prior_BZ: Tensor | None


class Outcome(NamedTuple):
    """The loss of each example, and what the records want to know of it (detached; the loss itself when not given)."""

    loss_B: Tensor
    seen_BM: Tensor | None = None


Loss = Callable[[Players, Batch, settings.Settings], Outcome]
Summary = Callable[[Tensor], dict[str, float]]  # of seen_NM


class Phase(NamedTuple):
    """One forward, one backward and one optimizer step of the players that it moves; all others are frozen."""

    name: str
    moves: tuple[str, ...]
    loss: Loss
    learning_rate: str  # dotted keys of the settings that its optimizer obeys
    momentum: str
    summary: Summary  # an epoch's metrics, from what the phase saw of all its examples
    draws_prior: bool = False


def encode(players: Players, x_BD: Tensor, noise_BE: Tensor | None) -> Code:
    code: Code = players["style_head"](players["trunk"](x_BD, noise_BE), noise_BE)
    return code


def reconstruction_loss(x_BD: Tensor, reconstruction_BD: Tensor, reduction: str) -> Tensor:
    """Squared error per example, shape (B,): half its sum over pixels by default.

    Half the squared Euclidean error is the paper's (appendix A); a mean over pixels makes the gradient D/2 times
    smaller, and with it the paper's learning rates do not train.
    """
    error_B = F.mse_loss(reconstruction_BD, x_BD, reduction="none").sum(1)
    return error_B * {"half_sum": 0.5, "sum": 1.0, "mean": 1 / x_BD.shape[1]}[reduction]


def reconstruct(players: Players, batch: Batch, run: settings.Settings) -> Outcome:
    """Reconstruction phase: encoder and decoder minimise the reconstruction error (section 2, figure 1)."""
    z_BZ = encode(players, batch.x_BD, batch.posterior_noise_BE).z_BZ
    return Outcome(reconstruction_loss(batch.x_BD, players["decoder"](z_BZ), run.train.reconstruction_reduction))


def discriminate(players: Players, batch: Batch, run: settings.Settings) -> Outcome:
    """Regularization phase, first half: the discriminator learns to tell prior draws (real) from codes (fake).

    Per example the mean of both halves of the cross-entropy, in nats: log 2 when the discriminator is fooled. Real and
    fake codes go through it in one forward.
    """
    assert batch.prior_BZ is not None
    with torch.no_grad():
        fake_BZ = encode(players, batch.x_BD, batch.posterior_noise_BE).z_BZ
    logits_2B = players["style_discriminator"](torch.cat([batch.prior_BZ, fake_BZ]))
    real_B, fake_B = logits_2B.chunk(2)
    return Outcome(0.5 * (F.softplus(-real_B) + F.softplus(fake_B)), logits_2B.detach().view(2, -1).T)


def regularize(players: Players, batch: Batch, run: settings.Settings) -> Outcome:
    """Regularization phase, second half: the encoder learns to fool the discriminator.

    Non-saturating: -log D(z). Minimax, as the game is written: log(1 - D(z)), whose gradient vanishes where the
    discriminator is sure.
    """
    logits_B = players["style_discriminator"](encode(players, batch.x_BD, batch.posterior_noise_BE).z_BZ)
    return Outcome(F.softplus(-logits_B) if run.train.adversarial_loss == "non_saturating" else -F.softplus(logits_B))


def evidence(players: Players, batch: Batch, run: settings.Settings) -> Outcome:
    """The VAE's single phase: reconstruction error plus KL(q(z|x) || N(0, s^2 I)) (Kingma, Welling 2014, appendix B).

    With the reduction half_sum this is, up to a constant, the negative evidence lower bound of a decoder that answers
    with a Gaussian of standard deviation `model.decoder_std`.
    """
    code = encode(players, batch.x_BD, batch.posterior_noise_BE)
    assert code.mean_BZ is not None and code.log_variance_BZ is not None
    log_ratio_BZ = code.log_variance_BZ - 2 * math.log(run.model.prior_scale)  # log of q's variance over p's
    distance_BZ = code.mean_BZ.square() / run.model.prior_scale**2
    kl_B = 0.5 * (distance_BZ + log_ratio_BZ.exp() - 1 - log_ratio_BZ).sum(1)
    error_B = reconstruction_loss(batch.x_BD, players["decoder"](code.z_BZ), run.train.reconstruction_reduction)
    return Outcome(error_B / run.model.decoder_std**2 + kl_B, torch.stack([error_B, kl_B], dim=1).detach())


def reconstruct_summary(loss_N: Tensor) -> dict[str, float]:
    return {"train/reconstruction_loss": loss_N.mean().item()}


def discriminate_summary(logits_N2: Tensor) -> dict[str, float]:
    real_N, fake_N = logits_N2.unbind(1)
    return {
        "adv/discriminator_loss_nats": 0.5 * (F.softplus(-real_N).mean() + F.softplus(fake_N).mean()).item(),
        "adv/accuracy_real": (real_N > 0).double().mean().item(),
        "adv/accuracy_fake": (fake_N < 0).double().mean().item(),
        "adv/logit_std": logits_N2.std(correction=0).item(),
    }


def regularize_summary(loss_N: Tensor) -> dict[str, float]:
    return {"adv/encoder_loss_nats": loss_N.mean().item()}


def evidence_summary(parts_N2: Tensor) -> dict[str, float]:
    error_N, kl_N = parts_N2.unbind(1)
    return {"train/reconstruction_loss": error_N.mean().item(), "train/kl_nats": kl_N.mean().item()}


ENCODER = ("trunk", "style_head")
RECONSTRUCTION = ("optim.reconstruction_lr", "optim.reconstruction_momentum")

RECONSTRUCT = Phase("reconstruct", (*ENCODER, "decoder"), reconstruct, *RECONSTRUCTION, reconstruct_summary)
DISCRIMINATE = Phase(
    "discriminate",
    ("style_discriminator",),
    discriminate,
    "optim.discrimination_lr",
    "optim.adversarial_momentum",
    discriminate_summary,
    draws_prior=True,
)
REGULARIZE = Phase(
    "regularize",
    ENCODER,
    regularize,
    "optim.regularization_lr",
    "optim.adversarial_momentum",
    regularize_summary,
)
EVIDENCE = Phase("evidence", (*ENCODER, "decoder"), evidence, *RECONSTRUCTION, evidence_summary)

# A task is a tuple of phases, played in this order on every mini-batch.
TASKS: dict[str, tuple[Phase, ...]] = {
    "unsupervised": (RECONSTRUCT, DISCRIMINATE, REGULARIZE),  # Makhzani et al. 2015, section 2
    "vae": (EVIDENCE,),  # Kingma and Welling 2014, the baseline
}
