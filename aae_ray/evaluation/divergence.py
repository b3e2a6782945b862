"""How far codes are from their prior: sliced Wasserstein, the Kullback-Leibler divergence by entropies, and a bound on
that of Jensen and Shannon.

The discriminator of a trial is part of what a study searches, and a weak one is fooled easily. So codes are
compared with the prior by `jsd_bound` and `sliced_wasserstein`, which are the same for every trial.

Shapes: `N` examples, `Z` code, `D` directions, `F` inputs of a network, `H` its hidden units, `R` reference samples,
`S` steps, `K` folds, each with a network, `B` batch.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from aae_ray.errors import UserError

# ------------------------------------------------------------------------------------------- sliced Wasserstein

DIRECTIONS = 256
MOST_POINTS = 2000


@dataclass(frozen=True)
class PriorSlices:
    """Samples of a prior along random lines, sorted: what any codes of that number are compared with."""

    rows_N: Tensor  # of the codes that are compared
    directions_DZ: Tensor
    std_Z: Tensor
    sorted_DN: NDArray[np.float32]

    @classmethod
    def of(cls, prior_NZ: Tensor, prior_std_Z: Tensor | float, codes: int, *, seed: int) -> "PriorSlices":
        """The slices of these samples for so many codes. The seed draws rows and lines."""
        generator = torch.Generator().manual_seed(seed)
        count = min(codes, len(prior_NZ), MOST_POINTS)
        std_Z = torch.as_tensor(prior_std_Z, dtype=torch.float32, device="cpu").expand(prior_NZ.shape[1])
        rows_N, prior_rows_N = (torch.randperm(size, generator=generator)[:count] for size in (codes, len(prior_NZ)))
        directions_DZ = functional.normalize(torch.randn(DIRECTIONS, prior_NZ.shape[1], generator=generator))
        prior_NZ = prior_NZ.detach().to("cpu", torch.float32)[prior_rows_N] / std_Z
        return cls(rows_N, directions_DZ, std_Z, _sorted_projections(directions_DZ, prior_NZ))

    def distance(self, codes_NZ: Tensor) -> float:
        """Sliced Wasserstein-2 distance of the codes to the prior, as `sliced_wasserstein` has it."""
        z_NZ = codes_NZ.detach().to("cpu", torch.float32)[self.rows_N] / self.std_Z
        if not z_NZ.isfinite().all():
            return math.nan
        gaps_DN = _sorted_projections(self.directions_DZ, z_NZ) - self.sorted_DN
        return math.sqrt(len(self.std_Z) * float(np.square(gaps_DN).mean(dtype=np.float64)))


def sliced_wasserstein(codes_NZ: Tensor, prior_NZ: Tensor, prior_std_Z: Tensor | float, *, seed: int) -> float:
    """Sliced Wasserstein-2 distance of codes and prior samples, in units of the prior's standard deviation.

    sqrt(Z E_u W2(<z, u>, <p, u>)^2) over 256 directions u, uniform on the sphere, that the seed fixes; on a line, W2
    pairs the sorted points. Z is their size: E <s, u>^2 is |s|^2 / Z, so that without this factor the same shift s
    would count the less the more coordinates there are. It uses as many points of each side as the smaller one has, at
    most 2000, drawn by the seed. Two independent samples of the prior, of as many points, give the floor. NaN when a
    code is not finite.
    """
    return PriorSlices.of(prior_NZ, prior_std_Z, len(codes_NZ), seed=seed).distance(codes_NZ)


def _sorted_projections(directions_DZ: Tensor, z_NZ: Tensor) -> NDArray[np.float32]:
    """<z, u> along each direction in rising order, (D, N). NumPy sorts floats many times faster than PyTorch."""
    return np.sort((directions_DZ @ z_NZ.T).numpy(), axis=1)


# ------------------------------------------------------------------------------------- Kullback-Leibler divergence

NEIGHBOUR = 5  # whose distance is taken
LEAST_DISTANCE = 1e-6  # in the prior's standard deviations; codes that are nearer count as so far apart


def entropy_nearest_neighbours(z_NZ: Tensor) -> float:
    """H(z) in nats of the distribution that N samples are from (Kozachenko and Leonenko 1987; Kraskov, Stoegbauer and
    Grassberger 2004, equation 20).

    psi(N) - psi(5) + log V_Z + Z / N sum_i log rho_i, with the distance rho_i from sample i to its fifth neighbour, the
    volume V_Z of the unit ball and the digamma function psi. Raises ValueError for five or fewer samples.
    """
    count, size = z_NZ.shape
    if count <= NEIGHBOUR:
        raise ValueError(f"{NEIGHBOUR} neighbours need more than {NEIGHBOUR} examples, got {count}")
    # Without the shortcut by products: near samples would lie at distances of its rounding.
    distance_NN = torch.cdist(z_NZ, z_NZ, compute_mode="donot_use_mm_for_euclid_dist")
    rho_N = distance_NN.topk(NEIGHBOUR + 1, largest=False).values[:, -1]  # a sample is its own nearest one
    log_rho = rho_N.clamp_min(LEAST_DISTANCE).log().double().mean().item()
    log_ball = size / 2 * math.log(math.pi) - math.lgamma(size / 2 + 1)
    digammas = torch.tensor([count, NEIGHBOUR], dtype=torch.float64).digamma()
    gap: float = (digammas[0] - digammas[1]).item()
    return gap + log_ball + size * log_rho


def kl_by_entropy(z_NZ: Tensor, log_prior_N: Tensor, prior_std_Z: Tensor) -> float:
    """KL(q(z) || p(z)) = E_q[-log p(z)] - H(q) in nats, of N samples of q and log p at them.

    H(q) is that of `entropy_nearest_neighbours`, whose distances are in standard deviations of the prior. Its bias
    grows with the number of coordinates and is alike for alike distributions: take what as many samples of the prior
    get off the result. Unlike a ratio of distances to two sets of samples (Wang, Kulkarni and Verdu 2009) it holds for
    codes that are wider than the prior too, where no prior sample is near. It may be a little below 0. NaN where a
    sample is not finite. Raises ValueError for five or fewer samples.
    """
    if not z_NZ.isfinite().all():
        return math.nan
    entropy = entropy_nearest_neighbours(z_NZ / prior_std_Z) + prior_std_Z.double().log().sum().item()
    return -log_prior_N.double().mean().item() - entropy


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
    four, and the five train at once. The same procedure with prior samples in place of the codes gives the floor.
    Size and budget of the networks depend on the number and dimension of the codes alone. The standard error is that
    of a mean over the scored examples, codes and prior samples apart; it leaves out that other training samples or
    another start would have given another D.

    `draw_prior(count, seed)` returns prior samples (count, Z). Up to four codes that fill no fold are left out, and
    those above 10,000, as the seed decides. It works on the CPU in float32 wherever the codes are, and depends on the
    seed and no global generator. All values are NaN when a code is not finite, or overflows when squared. Raises
    UserError for fewer than ten codes.
    """
    return PriorReference.of(draw_prior, len(codes_NZ), seed=seed).bound(codes_NZ)


@dataclass(frozen=True)
class PriorReference:
    """What any codes of that number are told apart from, and how well prior samples in their place are."""

    seed: int
    codes: int
    reference_RZ: Tensor
    real_NF: Tensor
    floor: float

    @classmethod
    def of(cls, draw_prior: Callable[[int, int], Tensor], codes: int, *, seed: int) -> "PriorReference":
        """The reference for so many codes, with its floor. Raises UserError for fewer than ten codes."""
        count = _scored(codes)
        if count < LEAST_CODES:
            raise UserError(
                f"val/jsd_nats and test/jsd_nats need at least {LEAST_CODES} held-out images, got {codes}; "
                "raise data.validation_fraction or data.test_fraction, or give more images"
            )
        prior_count = max(count, PRIOR_SAMPLES)
        with one_thread():
            drawn_NZ = draw_prior(REFERENCE_SAMPLES + prior_count + count, seed).detach().to("cpu", torch.float32)
            reference_RZ, prior_NZ, stand_in_NZ = drawn_NZ.split([REFERENCE_SAMPLES, prior_count, count])
            real_NF = _inputs(prior_NZ, reference_RZ)
            without_floor = cls(seed, codes, reference_RZ, real_NF, math.nan)
            fake_loss_N, real_loss_N = without_floor._losses(stand_in_NZ)
            return replace(without_floor, floor=_bound(fake_loss_N, real_loss_N))

    def bound(self, codes_NZ: Tensor) -> JsdBound:
        """The bound for these codes, as `jsd_bound` has it."""
        rows_N = torch.randperm(self.codes, generator=self._generator())[: _scored(self.codes)]
        fake_loss_N, real_loss_N = self._losses(codes_NZ.detach().to("cpu", torch.float32)[rows_N])
        nats = _bound(fake_loss_N, real_loss_N)
        if math.isnan(nats):
            return JsdBound(math.nan, math.nan, math.nan)
        variance = fake_loss_N.var() / len(fake_loss_N) + real_loss_N.var() / len(real_loss_N)
        return JsdBound(nats, variance.sqrt().item() / 2, self.floor)

    def _losses(self, fake_NZ: Tensor) -> tuple[Tensor, Tensor]:
        """-log(1 - D) of these and -log D of the prior samples, held out; NaN where one of these is not finite."""
        with one_thread(), torch.no_grad():
            fake_NF = _inputs(fake_NZ, self.reference_RZ)
            if not fake_NF.isfinite().all():
                return (torch.tensor([math.nan]),) * 2
            generator = self._generator()
            torch.randperm(self.codes, generator=generator)  # behind the draw of rows
            return _held_out_losses(fake_NF, self.real_NF, generator)

    def _generator(self) -> torch.Generator:
        """The next seed: the same one would make the initial weights from the very numbers of the prior samples."""
        return torch.Generator().manual_seed(self.seed + 1)


def _scored(codes: int) -> int:
    """How many of so many codes are scored."""
    return min(codes, MOST_CODES) // FOLDS * FOLDS


def _bound(fake_loss_N: Tensor, real_loss_N: Tensor) -> float:
    return math.log(2) - (fake_loss_N.mean() + real_loss_N.mean()).item() / 2


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
    std_Z = torch.where(std_Z > 0, std_Z, 1.0)  # a label so rare that no reference sample has it
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


def _held_out_losses(fake_NF: Tensor, real_NF: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """-log(1 - D) of every fake and -log D of every real example, by the network that did not train on it.

    More codes per input bear more steps and need less decay, fewer the reverse: so equal distributions stay close to 0
    with few codes or many dimensions, and the bound grows tighter with many.
    """
    count, inputs = fake_NF.shape
    growth = min(4.0, max(0.1, math.sqrt(count / inputs / CODES_PER_INPUT)))
    steps = round(STEPS * growth)
    networks = Discriminators(inputs, generator)
    fake_rows_SKB = _training_rows(steps, count, generator)
    real_rows_SKB = count + _training_rows(steps, len(real_NF), generator)
    rows_SN = torch.cat([fake_rows_SKB, real_rows_SKB], 2).flatten(1)
    both_NF = torch.cat([fake_NF, real_NF])
    for step, rows_N in enumerate(rows_SN):
        rate = LEARNING_RATE * (1 - (1 - 1 / steps) * step / steps)
        networks.update(both_NF.index_select(0, rows_N).view(FOLDS, 2 * BATCH, inputs), rate, WEIGHT_DECAY / growth)
    fake_KB = networks.logits(fake_NF.view(FOLDS, -1, inputs))
    real_KB = networks.logits(real_NF.view(FOLDS, -1, inputs))
    return functional.softplus(fake_KB).flatten(), functional.softplus(-real_KB).flatten()


def _training_rows(steps: int, count: int, generator: torch.Generator) -> Tensor:
    """Rows for each step and fold, (S, K, B), drawn with replacement from all rows but those of the fold."""
    fold = count // FOLDS
    drawn_SKB = torch.randint(count - fold, (steps, FOLDS, BATCH), generator=generator)
    fold_ends_K1 = fold * torch.arange(1, FOLDS + 1).unsqueeze(1)
    return (fold_ends_K1 + drawn_SKB) % count


class Discriminators:
    """A network for each fold, with two hidden layers of rectifiers; they share the start, and no parameter.

    So small a network spends most of its time in the bookkeeping of autograd and of an optimizer. Its gradients and the
    steps of AdamW (Loshchilov and Hutter 2019, algorithm 2) are therefore written out, over one vector of parameters.
    """

    BETAS, EPSILON = (0.9, 0.999), 1e-8

    def __init__(self, inputs: int, generator: torch.Generator) -> None:
        """The last weights are small, so every D starts near 1/2."""
        layers = ((inputs, HIDDEN, 1.0), (HIDDEN, HIDDEN, 1.0), (HIDDEN, 1, 0.1))
        weights = [
            (torch.randn(1, fan_in, fan_out, generator=generator) * (gain * math.sqrt(2 / fan_in))).repeat(FOLDS, 1, 1)
            for fan_in, fan_out, gain in layers
        ]
        self._shapes = [*(weight.shape for weight in weights), *((FOLDS, 1, fan_out) for _, fan_out, _ in layers)]
        self._vector = torch.cat(
            [torch.cat([weight.flatten() for weight in weights]), torch.zeros((2 * HIDDEN + 1) * FOLDS)]
        )
        self._decayed = self._vector[: sum(weight.numel() for weight in weights)]
        self.parameters = self._parts(self._vector)  # weights (K, in, out) of the layers, then biases (K, 1, out)
        self._gradient = torch.empty_like(self._vector)
        self.gradients = self._parts(self._gradient)
        self._mean, self._square = torch.zeros_like(self._vector), torch.zeros_like(self._vector)
        self._steps = 0
        self._sign_B1 = torch.cat([torch.ones(BATCH, 1), -torch.ones(BATCH, 1)])  # of fake examples, and of real ones

    def _parts(self, vector: Tensor) -> list[Tensor]:
        parts = vector.split([math.prod(shape) for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def logits(self, x_KBF: Tensor) -> Tensor:
        """log D / (1 - D) of every example, (K, B)."""
        return self._forward(x_KBF)[-1].squeeze(2)

    def _forward(self, x_KBF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What both hidden layers and the last one say."""
        weight1, weight2, weight3, bias1, bias2, bias3 = self.parameters
        first_KBH = torch.baddbmm(bias1, x_KBF, weight1).relu_()
        second_KBH = torch.baddbmm(bias2, first_KBH, weight2).relu_()
        # One column is too few for a matrix product to pay.
        return first_KBH, second_KBH, (second_KBH * weight3.mT).sum(2, keepdim=True).add_(bias3)

    def differentiate(self, x_KBF: Tensor) -> None:
        """Fill `gradients` with those of each network's loss, (mean -log(1 - D(fake)) + mean -log D(real)) / 2.

        The first half of a batch is fake, the second real.
        """
        first_KBH, second_KBH, logits_KB1 = self._forward(x_KBF)
        _, weight2, weight3, *_ = self.parameters
        back_KB1 = (logits_KB1 * self._sign_B1).sigmoid_().mul_(self._sign_B1).div_(2 * BATCH)
        back2_KBH = (back_KB1 * weight3.mT).mul_(second_KBH.sign())  # rectified, so the sign is the derivative
        back1_KBH = torch.bmm(back2_KBH, weight2.mT).mul_(first_KBH.sign())
        gradient1, gradient2, gradient3, *bias_gradients = self.gradients
        torch.bmm(x_KBF.mT, back1_KBH, out=gradient1)
        torch.bmm(first_KBH.mT, back2_KBH, out=gradient2)
        torch.sum(second_KBH * back_KB1, 1, out=gradient3.squeeze(2))
        for back, gradient in zip((back1_KBH, back2_KBH, back_KB1), bias_gradients, strict=True):
            torch.sum(back, 1, keepdim=True, out=gradient)

    def update(self, x_KBF: Tensor, rate: float, decay: float) -> None:
        """A step of AdamW; biases do not decay."""
        self.differentiate(x_KBF)
        self._steps += 1
        beta1, beta2 = self.BETAS
        self._decayed.mul_(1 - rate * decay)
        self._mean.lerp_(self._gradient, 1 - beta1)
        self._square.mul_(beta2).addcmul_(self._gradient, self._gradient, value=1 - beta2)
        unbiased = math.sqrt(1 - beta2**self._steps)
        scale = self._square.sqrt().add_(self.EPSILON * unbiased)
        self._vector.addcdiv_(self._mean, scale, value=-rate * unbiased / (1 - beta1**self._steps))
