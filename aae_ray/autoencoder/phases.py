"""The phases of one training step: which networks each updates, and the loss that it minimises; the table of tasks.

A loss is a pure function of networks, batch and noise: nothing is drawn and no state is kept inside. It returns one
value per example, so that the loop alone decides what an average is, also over several workers and a short last batch.
Sections are those of Makhzani et al. 2015.

Shapes: B batch, D pixels, E noise, Z code, K classes or clusters, S label condition of a discriminator
(one entry for each class, and one for images without a label).
"""

import math
from collections.abc import Callable, Mapping
from functools import partial, reduce
from operator import add
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aae_ray.autoencoder.networks import gather_rows
from aae_ray.autoencoder.posteriors import Code
from aae_ray.autoencoder.priors import build_prior
from aae_ray.settings import RunSettings, setting

KERNEL_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of the discrepancy, times its unit

Networks = Mapping[str, nn.Module]
Source = Literal["all", "labelled"]


class Batch(NamedTuple):
    """What one phase of one step works on; noise and prior draws come from outside, as functions of the step.

    What a task or its settings do not ask for is None.
    """

    x_BD: Tensor
    posterior_noise_BE: Tensor | None = None
    prior_BZ: Tensor | None = None  # draws of p(z)
    classes_BK: Tensor | None = None  # draws of p(y), one-hot
    labels_BK: Tensor | None = None  # of the images, one-hot
    label_condition_BS: Tensor | None = None  # of the images, one-hot, the last entry for those without a label
    warped_BD: Tensor | None = None  # the images, each turned, sheared, scaled and moved a little
    input_noise_BD: Tensor | None = None
    input_mask_BD: Tensor | None = None  # what survives dropout, scaled up
    style_noise_B2Z: Tensor | None = None  # on what a discriminator sees: of the prior's draws, of the codes
    label_noise_B2K: Tensor | None = None
    code: Code | None = None  # of these very images, where the phase before has shared it


class Outcome(NamedTuple):
    """The loss of each example, what the records want to know of it (detached; the loss itself when not given), and
    the code that the phase may share."""

    loss_B: Tensor
    seen_BM: Tensor | None = None
    code: Code | None = None


Loss = Callable[[Networks, Batch, RunSettings], Outcome]
Summary = Callable[[Tensor], dict[str, float]]  # of seen_NM


class Phase(NamedTuple):
    """One forward, one backward and one optimizer step of the networks that it updates; all others are frozen.

    Where its learning rate is 0 a run has no such phase, and all else is as if the table did not have it.
    """

    name: str
    updates: tuple[str, ...]
    loss: Loss
    learning_rate: str  # dotted keys of the settings that its optimizer obeys
    momentum: str
    summary: Summary  # an epoch's metrics, from what the phase saw of all its examples
    draws: tuple[str, ...] = ()  # fields of the batch that are drawn for it, where the task has a use for them
    source: Source = "all"  # the images that it works on
    shares_encoding: tuple[str, ...] = ()  # networks whose encoding the next phase reuses, if it sees the same
    repeats: str | None = None  # dotted key of how many steps in a row it takes, one where there is none
    couples: bool = False  # whether an example's loss depends on others of the batch
    encodes_samples: bool = False  # whether the encoder sees decoded draws of the prior in place of images: these are
    # not corrupted as `train.input_noise` and the like say, and are not in the statistics of batch normalization


class Task(NamedTuple):
    """A row of the table of tasks: phases that run in this order on every mini-batch, and what y is."""

    phases: tuple[Phase, ...]
    section: str  # of the paper
    y: Literal["classes", "clusters"] | None = None  # what the decoder is given besides the style z
    labels: Literal["some", "all"] | None = None  # that training must know
    label_condition: bool = False  # whether the style discriminator is given the label


# ------------------------------------------------------------------------------------------------------- what is shared


def corrupt(batch: Batch) -> Tensor:
    """The images as the encoder sees them in training: with noise (section 5), some pixels dropped (section 6), and,
    which the paper does not have, warped."""
    x_BD = batch.x_BD if batch.warped_BD is None else batch.warped_BD
    if batch.input_noise_BD is not None:
        x_BD = x_BD + batch.input_noise_BD
    return x_BD if batch.input_mask_BD is None else x_BD * batch.input_mask_BD


def encode(networks: Networks, x_BD: Tensor, noise_BE: Tensor | None) -> Code:
    """q(z|x), and q(y|x) where the task has a label head: both read the same trunk."""
    features_BF = networks["trunk"](x_BD, noise_BE)
    code: Code = networks["style_head"](features_BF, noise_BE)
    return code._replace(label_logits_BK=networks["label_head"](features_BF)) if "label_head" in networks else code


def decoder_input(networks: Networks, z_BZ: Tensor, y_BK: Tensor | None) -> Tensor:
    """What the decoder is given: style and label side by side, or in a reduction their sum W y + z (section 7)."""
    if "cluster_heads" in networks:
        input_BZ: Tensor = networks["cluster_heads"](y_BK) + z_BZ
        return input_BZ
    return z_BZ if y_BK is None else torch.cat([y_BK, z_BZ], dim=1)


def reconstruction_loss(x_BD: Tensor, reconstruction_BD: Tensor, reduction: str) -> Tensor:
    """Squared error per example, shape (B,): half its sum over pixels by default.

    Half the squared Euclidean error is the paper's (appendix A); a mean over pixels makes the gradient D/2 times
    smaller, and with it the paper's learning rates do not train.
    """
    error_B = F.mse_loss(reconstruction_BD, x_BD, reduction="none").sum(1)
    return error_B * {"half_sum": 0.5, "sum": 1.0, "mean": 1 / x_BD.shape[1]}[reduction]


def head_penalty(heads_KZ: Tensor, distance: float) -> Tensor:
    """Sum over pairs of cluster heads of how much nearer than this distance they are (section 7), a scalar."""
    return F.relu(distance - F.pdist(heads_KZ)).sum()


def _encoded(networks: Networks, batch: Batch) -> Code:
    return encode(networks, corrupt(batch), batch.posterior_noise_BE) if batch.code is None else batch.code


def _decoder_label(code: Code, batch: Batch) -> Tensor | None:
    """y as the decoder is given it: q(y|x) where the encoder has a label head, else the image's own label, if any."""
    return batch.labels_BK if code.label_logits_BK is None else code.label_logits_BK.softmax(1)


class AdversarialPair(NamedTuple):
    """What a discriminator learns to tell apart: draws of the prior (real) and codes (fake)."""

    discriminator: nn.Module
    real_B: Tensor | None  # draws of the prior, where the phase has any
    fake_B: Tensor
    noise_B2: Tensor | None
    label_condition_BS: Tensor | None = None


def _adversarial_pairs(networks: Networks, batch: Batch, code: Code) -> list[AdversarialPair]:
    """Styles against p(z), and labels against p(y) where the encoder has a label head."""
    style = networks["style_discriminator"]
    pairs = [AdversarialPair(style, batch.prior_BZ, code.z_BZ, batch.style_noise_B2Z, batch.label_condition_BS)]
    if code.label_logits_BK is not None:
        fake_BK = code.label_logits_BK.softmax(1)
        pairs.append(AdversarialPair(networks["label_discriminator"], batch.classes_BK, fake_BK, batch.label_noise_B2K))
    return pairs


def _seen(pair: AdversarialPair, kind: int) -> Tensor:
    """What the discriminator sees of the real examples (kind 0) or of the fake ones (kind 1).

    Noise blurs both alike: real labels are corners of a simplex, and no softmax ever reaches one. The condition on its
    label tells the discriminator which part of the prior an example should come from (section 2.3).
    """
    seen_B = (pair.real_B, pair.fake_B)[kind]
    assert seen_B is not None
    if pair.noise_B2 is not None:
        seen_B = seen_B + pair.noise_B2[:, kind]
    return seen_B if pair.label_condition_BS is None else torch.cat([seen_B, pair.label_condition_BS], dim=1)


# -------------------------------------------------------------------------------------------------------------- losses


def reconstruct(networks: Networks, batch: Batch, settings: RunSettings) -> Outcome:
    """Reconstruction phase: encoder and decoder minimise the reconstruction error (section 2, figure 1).

    In a reduction the cluster heads are updated with them, and repel each other.
    """
    code = _encoded(networks, batch)
    reconstruction_BD = networks["decoder"](decoder_input(networks, code.z_BZ, _decoder_label(code, batch)))
    error_B = reconstruction_loss(batch.x_BD, reconstruction_BD, settings.train.reconstruction_reduction)
    if "cluster_heads" not in networks:
        return Outcome(error_B)
    (heads_KZ,) = networks["cluster_heads"].parameters()
    return Outcome(error_B + head_penalty(heads_KZ, settings.model.head_distance), error_B.detach())


def discriminate(networks: Networks, batch: Batch, settings: RunSettings) -> Outcome:
    """Regularization phase, first half: each discriminator learns to tell prior draws (real) from codes (fake).

    Per example -log D(real) - log(1 - D(fake)), both halves in full, as in the paper's objective: a mean of the two
    would halve the paper's learning rate. Real and fake codes go through the discriminator in one forward.

    The R1 penalty adds half the squared gradient of the logit at each draw of the prior, times its weight (Mescheder et
    al. 2018, equation 9): where codes follow the prior a discriminator is to be flat.
    """
    code, penalty = _encoded(networks, batch), settings.train.r1_penalty
    losses, seen = [], []
    for pair in _adversarial_pairs(networks, batch, code):
        if penalty and pair.real_B is not None:
            pair = pair._replace(real_B=pair.real_B.detach().requires_grad_())
        logits_2B = pair.discriminator(torch.cat([_seen(pair, 0), _seen(pair, 1).detach()])).view(2, -1)
        real_B, fake_B = logits_2B.unbind()
        losses += [F.softplus(-real_B), F.softplus(fake_B)]
        if penalty and pair.real_B is not None:
            (slope_BZ,) = torch.autograd.grad(real_B.sum(), pair.real_B, create_graph=True)
            losses.append(0.5 * penalty * slope_BZ.square().sum(1))
        seen.append(logits_2B.detach())
    return Outcome(reduce(add, losses), torch.cat(seen).T, code)


def regularize(networks: Networks, batch: Batch, settings: RunSettings) -> Outcome:
    """Regularization phase, second half: the encoder learns to fool the discriminators.

    Non-saturating: -log D(z). Minimax, as in the paper's objective: log(1 - D(z)), whose gradient vanishes where the
    discriminator is sure.
    """
    losses = []
    for pair in _adversarial_pairs(networks, batch, _encoded(networks, batch)):
        logits_B = pair.discriminator(_seen(pair, 1))
        saturates = settings.train.adversarial_loss == "minimax"
        losses.append(-F.softplus(logits_B) if saturates else F.softplus(-logits_B))
    return Outcome(reduce(add, losses), torch.stack([loss_B.detach() for loss_B in losses], dim=1))


def classify(networks: Networks, batch: Batch, settings: RunSettings) -> Outcome:
    """Semi-supervised classification phase: q(y|x) minimises the cross-entropy on a labelled mini-batch (section 5)."""
    assert batch.labels_BK is not None
    logits_BK = networks["label_head"](networks["trunk"](corrupt(batch), batch.posterior_noise_BE))
    loss_B = F.cross_entropy(logits_BK, batch.labels_BK, reduction="none")
    wrong_B = logits_BK.argmax(1) != batch.labels_BK.argmax(1)
    return Outcome(loss_B, torch.stack([loss_B.detach(), wrong_B.to(loss_B.dtype)], dim=1))


def reencode(networks: Networks, batch: Batch, settings: RunSettings) -> Outcome:
    """Re-encoding phase, which the paper does not have: of an image that is decoded from a draw of p(y)p(z), the
    encoder finds the draw.

    Cross-entropy on y, where there is q(y|x), and half the squared error on z in standard deviations of the prior:
    with it encoder and decoder maximise a lower bound on the mutual information of code and image (Chen et al. 2016,
    equation 5, with a Gaussian of the prior's width for z). A Gaussian q(z|x) is held to the draw by its mean, so that
    the phase does not take its noise away.
    """
    assert batch.prior_BZ is not None
    x_BD = networks["decoder"](decoder_input(networks, batch.prior_BZ, batch.classes_BK))
    code = encode(networks, x_BD, batch.posterior_noise_BE)
    z_BZ = code.z_BZ if code.mean_BZ is None else code.mean_BZ
    std_Z = build_prior(settings.model).std_Z.to(z_BZ)
    losses = [0.5 * ((z_BZ - batch.prior_BZ) / std_Z).square().sum(1)]
    if code.label_logits_BK is not None:
        assert batch.classes_BK is not None
        losses.append(F.cross_entropy(code.label_logits_BK, batch.classes_BK, reduction="none"))
    return Outcome(reduce(add, losses), torch.stack([loss_B.detach() for loss_B in losses], dim=1))


def negative_elbo(networks: Networks, batch: Batch, settings: RunSettings) -> Outcome:
    """The VAE's single phase: reconstruction error plus KL(q(z|x) || p(z)) (Kingma and Welling 2014, appendix B).

    In closed form for the Gaussian prior, from the one draw of z for the mixture: log q(z|x) - log p(z), unbiased.
    With the reduction half_sum this is, up to a constant, the negative evidence lower bound of a decoder whose output
    is a Gaussian of standard deviation `model.decoder_std`.
    """
    code = _encoded(networks, batch)
    assert code.mean_BZ is not None and code.log_variance_BZ is not None
    if settings.model.prior == "gaussian":
        log_ratio_BZ = code.log_variance_BZ - 2 * math.log(settings.model.prior_scale)  # log of q's variance over p's
        distance_BZ = code.mean_BZ.square() / settings.model.prior_scale**2
        kl_B = 0.5 * (distance_BZ + log_ratio_BZ.exp() - 1 - log_ratio_BZ).sum(1)
    else:
        noise_BZ = (code.z_BZ - code.mean_BZ) * (-0.5 * code.log_variance_BZ).exp()
        log_q_B = -0.5 * (noise_BZ.square() + code.log_variance_BZ + math.log(2 * math.pi)).sum(1)
        kl_B = log_q_B - build_prior(settings.model).log_density(code.z_BZ)
    error_B = reconstruction_loss(batch.x_BD, networks["decoder"](code.z_BZ), settings.train.reconstruction_reduction)
    return Outcome(error_B / settings.model.decoder_std**2 + kl_B, torch.stack([error_B, kl_B], dim=1).detach())


def inverse_multiquadric(a_BZ: Tensor, b_GZ: Tensor, scale: float) -> Tensor:
    """The kernel C / (C + |a - b|^2), (B, G), at most 1, as a mean over several C, multiples of the scale.

    At one C, as Tolstikhin et al. 2018 write it in section 4, codes that are far out feel nothing, and stay there.
    """
    squared_BG = torch.cdist(a_BZ, b_GZ, compute_mode="donot_use_mm_for_euclid_dist").square()
    kernels = [factor * scale / (factor * scale + squared_BG) for factor in KERNEL_SCALES]
    return reduce(add, kernels) / len(kernels)


def wae_mmd(networks: Networks, batch: Batch, settings: RunSettings) -> Outcome:
    """The single phase of the Wasserstein autoencoder with MMD: reconstruction error plus `train.mmd_weight` times the
    squared maximum mean discrepancy of codes and draws of the prior (Tolstikhin et al. 2018, algorithm 2).

    The discrepancy is the unbiased estimate, which may be below zero, over the batch of all workers, with inverse
    multiquadric kernels around the expected squared distance of two draws of the prior, 2 Z sigma^2 for the Gaussian
    as in the paper. Examples are coupled: each has the terms in which it comes first, and the mean over the
    batch is the estimate. A batch of one has none.
    """
    assert batch.prior_BZ is not None
    code = _encoded(networks, batch)
    reconstruction_BD = networks["decoder"](code.z_BZ)
    error_B = reconstruction_loss(batch.x_BD, reconstruction_BD, settings.train.reconstruction_reduction)
    pairs_G2Z, first = gather_rows(torch.cat([code.z_BZ, batch.prior_BZ], dim=1))
    total, mine = len(pairs_G2Z), slice(first, first + len(error_B))
    z_GZ, prior_GZ = pairs_G2Z.chunk(2, dim=1)
    z_BZ, prior_BZ = z_GZ[mine], prior_GZ[mine]
    scale = 2 * build_prior(settings.model).std_Z.square().sum().item()
    kernel = partial(inverse_multiquadric, scale=scale)
    # The kernel of an example with itself, one, has no place in the unbiased estimate.
    alike_B = kernel(z_BZ, z_GZ).sum(1) + kernel(prior_BZ, prior_GZ).sum(1) - 2
    apart_B = kernel(z_BZ, prior_GZ).sum(1) + kernel(prior_BZ, z_GZ).sum(1)
    mmd_B = alike_B / (total - 1) - apart_B / total if total > 1 else torch.zeros_like(error_B)
    return Outcome(error_B + settings.train.mmd_weight * mmd_B, torch.stack([error_B, mmd_B], dim=1).detach())


# ----------------------------------------------------------------------------------------------------------- summaries

PAIR_PREFIXES = ("adv/", "adv/label_")  # of the metrics of the style's pair and the label's


def reconstruct_summary(loss_N: Tensor) -> dict[str, float]:
    return {"train/reconstruction_loss": loss_N.mean().item()}


def discriminate_summary(logits_NM: Tensor) -> dict[str, float]:
    """Of two columns for each pair, the logits of its real and of its fake examples; losses are means of both halves,
    log 2 when the discriminator is fooled."""
    metrics: dict[str, float] = {}
    for prefix, logits_N2 in zip(PAIR_PREFIXES, logits_NM.split(2, dim=1), strict=False):
        real_N, fake_N = logits_N2.unbind(1)
        metrics |= {
            f"{prefix}discriminator_loss_nats": 0.5 * (F.softplus(-real_N).mean() + F.softplus(fake_N).mean()).item(),
            f"{prefix}accuracy_real": (real_N > 0).double().mean().item(),
            f"{prefix}accuracy_fake": (fake_N < 0).double().mean().item(),
            f"{prefix}logit_std": logits_N2.std(correction=0).item(),
        }
    return metrics


def regularize_summary(loss_NG: Tensor) -> dict[str, float]:
    return {
        f"{prefix}encoder_loss_nats": loss_N.mean().item()
        for prefix, loss_N in zip(PAIR_PREFIXES, loss_NG.T, strict=False)
    }


def classify_summary(seen_N2: Tensor) -> dict[str, float]:
    loss_N, wrong_N = seen_N2.unbind(1)
    return {
        "train/classification_loss_nats": loss_N.mean().item(),
        "train/classification_error": wrong_N.double().mean().item(),
    }


def reencode_summary(losses_NM: Tensor) -> dict[str, float]:
    names = ("train/reencoding_style_loss_nats", "train/reencoding_label_loss_nats")
    return {name: loss_N.mean().item() for name, loss_N in zip(names, losses_NM.T, strict=False)}


def negative_elbo_summary(parts_N2: Tensor) -> dict[str, float]:
    error_N, kl_N = parts_N2.unbind(1)
    return {"train/reconstruction_loss": error_N.mean().item(), "train/kl_nats": kl_N.mean().item()}


def wae_mmd_summary(parts_N2: Tensor) -> dict[str, float]:
    error_N, mmd_N = parts_N2.unbind(1)
    return {"train/reconstruction_loss": error_N.mean().item(), "train/squared_mmd": mmd_N.mean().item()}


# ---------------------------------------------------------------------------------------------------------- the tables

ENCODER = ("trunk", "style_head")
LABELLING_ENCODER = (*ENCODER, "label_head")
RECONSTRUCTION = ("optim.reconstruction_lr", "optim.reconstruction_momentum")

RECONSTRUCT = Phase("reconstruct", (*ENCODER, "decoder"), reconstruct, *RECONSTRUCTION, reconstruct_summary)
DISCRIMINATE = Phase(
    "discriminate",
    ("style_discriminator",),
    discriminate,
    "optim.discrimination_lr",
    "optim.adversarial_momentum",
    discriminate_summary,
    draws=("prior_BZ", "style_noise_B2Z"),
    shares_encoding=ENCODER,
    repeats="train.discriminator_steps",
)
REGULARIZE = Phase(
    "regularize",
    ENCODER,
    regularize,
    "optim.regularization_lr",
    "optim.adversarial_momentum",
    regularize_summary,
    draws=("style_noise_B2Z",),
)
CLASSIFY = Phase(
    "classify",
    ("trunk", "label_head"),
    classify,
    "optim.classification_lr",
    "optim.classification_momentum",
    classify_summary,
    source="labelled",
)
REENCODE = Phase(
    "reencode",
    (*ENCODER, "decoder"),
    reencode,
    "optim.reencoding_lr",
    "optim.reconstruction_momentum",
    reencode_summary,
    draws=("prior_BZ", "classes_BK"),
    encodes_samples=True,
)
NEGATIVE_ELBO = Phase("negative_elbo", (*ENCODER, "decoder"), negative_elbo, *RECONSTRUCTION, negative_elbo_summary)
WAE_MMD = Phase(
    "wae_mmd", (*ENCODER, "decoder"), wae_mmd, *RECONSTRUCTION, wae_mmd_summary, draws=("prior_BZ",), couples=True
)

UNSUPERVISED = (RECONSTRUCT, DISCRIMINATE, REGULARIZE)
LABELLING = (
    RECONSTRUCT._replace(updates=(*LABELLING_ENCODER, "decoder")),
    DISCRIMINATE._replace(
        updates=("style_discriminator", "label_discriminator"),
        draws=("prior_BZ", "classes_BK", "style_noise_B2Z", "label_noise_B2K"),
        shares_encoding=LABELLING_ENCODER,
    ),
    REGULARIZE._replace(updates=LABELLING_ENCODER, draws=("style_noise_B2Z", "label_noise_B2K")),
)
REDUCING = (RECONSTRUCT._replace(updates=(*LABELLING_ENCODER, "decoder", "cluster_heads")), *LABELLING[1:])
LABEL_REENCODE = REENCODE._replace(updates=(*LABELLING_ENCODER, "decoder"))

TASKS: dict[str, Task] = {
    "unsupervised": Task((*UNSUPERVISED, REENCODE), "2"),
    "label_informed": Task((*UNSUPERVISED, REENCODE), "2.3", labels="some", label_condition=True),
    "supervised": Task((*UNSUPERVISED, REENCODE), "4", y="classes", labels="all"),
    "semi_supervised": Task((*LABELLING, CLASSIFY, LABEL_REENCODE), "5", y="classes", labels="some"),
    "clustering": Task((*LABELLING, LABEL_REENCODE), "6", y="clusters"),
    "reduction": Task((*REDUCING, LABEL_REENCODE), "7", y="clusters"),
    "semi_supervised_reduction": Task((*REDUCING, CLASSIFY, LABEL_REENCODE), "7", y="classes", labels="some"),
    "vae": Task((NEGATIVE_ELBO, REENCODE), "none: Kingma and Welling 2014, the baseline"),
    "wae_mmd": Task((WAE_MMD, REENCODE), "none: Tolstikhin et al. 2018, without a discriminator"),
}


def phases_of(settings: RunSettings) -> tuple[Phase, ...]:
    """The phases of a step: those of the run's task whose learning rate is above 0, each as often as it repeats."""
    phases = (phase for phase in TASKS[settings.task].phases if setting(settings, phase.learning_rate) > 0)
    return tuple(
        phase for phase in phases for _ in range(setting(settings, phase.repeats) if phase.repeats is not None else 1)
    )
