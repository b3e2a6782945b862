"""How far codes are from their prior: sliced Wasserstein, and a bound on the Jensen-Shannon divergence.

The discriminator of a trial is part of what a study searches, and a weak one is fooled easily. So codes are
compared with the prior by `jsd_bound` and `sliced_wasserstein`, which are the same for every trial.

Shapes: `N` examples, `Z` code, `D` directions, `F` inputs of a network, `R` reference samples, `S` steps, `K` folds,
`L` lanes (networks that train side by side), `B` batch.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from aae_ray.errors import UserError

# ------------------------------------------------------------------------------------------- sliced Wasserstein

DIRECTIONS = 256
MOST_POINTS = 2000


def sliced_wasserstein(codes_NZ: Tensor, prior_NZ: Tensor, prior_std_Z: Tensor | float, *, seed: int) -> float:
    """Sliced Wasserstein-2 distance of codes and prior samples, in units of the prior's standard deviation.

    sqrt(E_u W2(<z, u>, <p, u>)^2) over 256 directions u, uniform on the sphere, that the seed fixes; on a line, W2
    pairs the sorted points. It uses as many points of each side as the smaller one has, at most 2000, drawn by the
    seed. Two independent samples of the prior, of as many points, give the floor. NaN when a code is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    count = min(len(codes_NZ), len(prior_NZ), MOST_POINTS)
    std_Z = torch.as_tensor(prior_std_Z, dtype=torch.float32, device="cpu")

    def chosen(z_NZ: Tensor) -> Tensor:
        rows = torch.randperm(len(z_NZ), generator=generator)[:count]
        return z_NZ.detach().to("cpu", torch.float32)[rows] / std_Z

    z_NZ, p_NZ = chosen(codes_NZ), chosen(prior_NZ)
    if not z_NZ.isfinite().all():
        return math.nan
    u_DZ = functional.normalize(torch.randn(DIRECTIONS, z_NZ.shape[1], generator=generator))
    gaps_DN = (u_DZ @ z_NZ.T).sort(1).values - (u_DZ @ p_NZ.T).sort(1).values
    return gaps_DN.square().mean().sqrt().item()


# --------------------------------------------------------------------------------------------------- JSD bound

FOLDS = 5
LEAST_CODES = 2 * FOLDS  # held-out images without which there is nothing to measure on
MOST_CODES = 10_000  # more would only narrow a standard error that is far below what tells trials apart
PRIOR_SAMPLES = 2000  # at least; they cost nothing, and more of them than codes tighten the bound
REFERENCE_SAMPLES = 2000
RESOLUTION = 0.01  # of the distance to the prior, in the prior's standard deviations
HIDDEN = 48
BATCH = 64  # codes per step and network, and as many prior samples
LEARNING_RATE = 0.01
# Steps and weight decay for this many codes per input of the network; `_held_out_losses` says how others scale.
STEPS, WEIGHT_DECAY, CODES_PER_INPUT = 100, 4.0, 20


@dataclass(frozen=True)
class JsdBound:
    """A lower bound on JSD(q(z), p(z)), its standard error over held-out examples, and prior against prior; nats."""

    nats: float
    standard_error: float
    floor: float


def jsd_bound(codes_NZ: Tensor, draw_prior: Callable[[int, int], Tensor], *, seed: int) -> JsdBound:
    """How far codes are from the prior: log 2 - L, a lower bound on their Jensen-Shannon divergence.

    L is the cross-entropy of a fresh discriminator on examples that it was not trained on, the mean of the two
    halves: (E_p[-log D] + E_q[-log(1 - D)]) / 2 (Goodfellow et al. 2014, eq. 1 and theorem 1). log 2 - L is a lower
    bound for any D, so it is at most log 2 = 0.693 (disjoint), and about 0 or a little below for equal distributions.
    Nothing is clipped. With few codes in many dimensions the bound is loose.

    Codes and prior samples are cut into five folds; each fold is scored by the network that trained on the other
    four. The same procedure with prior samples in place of the codes gives the floor; all ten networks train at once.
    Their size and budget depend on the number and dimension of the codes alone. The standard error is that of a mean
    over the scored examples, codes and prior samples apart; it leaves out that other training samples or another
    start would have given another D.

    `draw_prior(count, seed)` returns prior samples (count, Z). Up to four codes that fill no fold are left out, and
    those above 10,000, as the seed decides. It works on the CPU in float32 wherever the codes are, and depends on the
    seed and no global generator. All values are NaN when a code is not finite, or overflows when squared. Raises
    UserError for fewer than ten codes.
    """
    count = min(len(codes_NZ), MOST_CODES) // FOLDS * FOLDS
    if count < LEAST_CODES:
        raise UserError(
            f"val/jsd_nats and test/jsd_nats need at least {LEAST_CODES} held-out images, got {len(codes_NZ)}; "
            "raise data.validation_fraction or data.test_fraction, or give more images"
        )
    prior_count = max(count, PRIOR_SAMPLES)
    # The next seed: the same one would make the initial weights from the very numbers of the prior samples.
    generator = torch.Generator().manual_seed(seed + 1)
    with one_thread(), torch.inference_mode(False), torch.enable_grad():
        drawn_NZ = draw_prior(REFERENCE_SAMPLES + prior_count + count, seed).detach().to("cpu", torch.float32)
        reference_RZ, prior_NZ, stand_in_NZ = drawn_NZ.split([REFERENCE_SAMPLES, prior_count, count])
        rows = torch.randperm(len(codes_NZ), generator=generator)[:count]
        codes_NZ = codes_NZ.detach().to("cpu", torch.float32)[rows]
        fake_NF = _inputs(torch.cat([codes_NZ, stand_in_NZ]), reference_RZ)
        if not fake_NF.isfinite().all():
            return JsdBound(math.nan, math.nan, math.nan)
        real_NF = _inputs(prior_NZ, reference_RZ)
        fake_loss_2N, real_loss_2N = _held_out_losses(fake_NF.view(2, count, -1), real_NF, generator)
    bounds_2 = math.log(2) - (fake_loss_2N.mean(1) + real_loss_2N.mean(1)) / 2
    variance = fake_loss_2N[0].var() / count + real_loss_2N[0].var() / prior_count
    return JsdBound(bounds_2[0].item(), variance.sqrt().item() / 2, bounds_2[1].item())


@contextmanager
def one_thread() -> Iterator[None]:
    """The products here are too small to share: on a busy machine a second thread makes them many times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _inputs(z_NZ: Tensor, reference_RZ: Tensor) -> Tensor:
    """What the discriminators see of each code, in the prior's scale: its coordinates, their squares, its distance
    to the nearest of some samples of the prior.

    A few hundred codes cannot teach a network where a thin prior lies (the mixture, the swiss roll), but the
    distance tells. Those priors live in the first two coordinates, so it is taken there as well. Logarithms keep
    outliers from ruling, and as asinh is one-to-one nothing about a code is lost.
    """
    mean_Z, std_Z = reference_RZ.mean(0), reference_RZ.std(0)
    z_NZ, reference_RZ = (z_NZ - mean_Z) / std_Z, (reference_RZ - mean_Z) / std_Z
    inputs = [z_NZ.asinh(), z_NZ.square().log1p() - 0.5, _log_distance(z_NZ, reference_RZ)]
    if z_NZ.shape[1] > 2:
        inputs.append(_log_distance(z_NZ[:, :2], reference_RZ[:, :2]))
    return torch.cat(inputs, 1)


def _log_distance(z_NZ: Tensor, reference_RZ: Tensor) -> Tensor:
    """Logarithm of the distance from each code to the nearest reference sample, (N, 1), in chunks of codes."""
    squares_R = reference_RZ.square().sum(1)
    nearest = [torch.addmm(squares_R, part, reference_RZ.T, alpha=-2).amin(1) for part in z_NZ.split(256)]
    distance_N = (torch.cat(nearest) + z_NZ.square().sum(1)).clamp_min(0).sqrt()
    return distance_N.add(RESOLUTION).log().unsqueeze(1)


def _held_out_losses(fake_2NF: Tensor, real_NF: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """-log(1 - D) of every fake and -log D of every real example, by the network that did not train on it.

    fake_2NF holds the codes and the prior samples that stand in for codes; row i of each result belongs to
    fake_2NF[i]. A lane is one network, for one of the two and one fold; lanes share the start and the draws of
    minibatches, and no parameter. More codes per input bear more steps and need less decay, fewer the reverse: so
    equal distributions stay close to 0 with few codes or many dimensions, and the bound grows tighter with many.
    """
    _, count, inputs = fake_2NF.shape
    growth = min(4.0, max(0.1, math.sqrt(count / inputs / CODES_PER_INPUT)))
    steps = round(STEPS * growth)
    weights, biases = _start(inputs, generator)
    optimizer = torch.optim.AdamW(
        [{"params": weights, "weight_decay": WEIGHT_DECAY / growth}, {"params": biases, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / steps, total_iters=steps)
    fake_rows_SKB = _training_rows(steps, count, generator)
    real_rows_SKB = _training_rows(steps, len(real_NF), generator)
    for fake_rows_KB, real_rows_KB in zip(fake_rows_SKB, real_rows_SKB, strict=True):
        fake_LBF = fake_2NF[:, fake_rows_KB].flatten(0, 1)
        real_LBF = real_NF[real_rows_KB].repeat(2, 1, 1)
        fake_LB, real_LB = _logits(torch.cat([fake_LBF, real_LBF], 1), weights, biases).split(BATCH, 1)
        # A sum over lanes of means over the batch: every lane gets the gradient that it would get alone.
        loss = (functional.softplus(fake_LB) + functional.softplus(-real_LB)).mean(1).sum() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        fake_LB = _logits(fake_2NF.reshape(2 * FOLDS, -1, inputs), weights, biases)
        real_LB = _logits(real_NF.view(FOLDS, -1, inputs).repeat(2, 1, 1), weights, biases)
    return functional.softplus(fake_LB).view(2, -1), functional.softplus(-real_LB).view(2, -1)


def _training_rows(steps: int, count: int, generator: torch.Generator) -> Tensor:
    """Rows for each step and fold, (S, K, B), drawn with replacement from all rows but those of the fold."""
    fold = count // FOLDS
    drawn_SKB = torch.randint(count - fold, (steps, FOLDS, BATCH), generator=generator)
    fold_ends_K1 = fold * torch.arange(1, FOLDS + 1).unsqueeze(1)
    return (fold_ends_K1 + drawn_SKB) % count


def _start(inputs: int, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Weights (L, in, out) and biases (L, 1, out); the last weights are small, so every D starts near 1/2."""
    weights, biases = [], []
    for fan_in, fan_out, gain in ((inputs, HIDDEN, 1.0), (HIDDEN, HIDDEN, 1.0), (HIDDEN, 1, 0.1)):
        weight_1IO = torch.randn(1, fan_in, fan_out, generator=generator) * (gain * math.sqrt(2 / fan_in))
        weights.append(weight_1IO.repeat(2 * FOLDS, 1, 1).requires_grad_())
        biases.append(torch.zeros(2 * FOLDS, 1, fan_out, requires_grad=True))
    return weights, biases


def _logits(x_LBF: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """log D / (1 - D) of every example of every lane, (L, B)."""
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x_LBF = torch.baddbmm(bias, x_LBF, weight).relu()
    return torch.baddbmm(biases[-1], x_LBF, weights[-1]).squeeze(2)
