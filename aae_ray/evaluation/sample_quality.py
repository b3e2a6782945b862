"""How good generated images and codes are: distances, neighbourhoods, densities; pure functions on the CPU.

The protocols are those of the papers named at each function. All are functions of their arguments and a seed.

Shapes: N real or test examples, M fake ones or samples, F features, D pixels, Z code, K classes, B a block of rows.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aae_ray.errors import UserError

BLOCK = 1000  # rows of a matrix of distances that are held at a time

# ------------------------------------------------------------------------------------------------- features of images


def frechet_distance(real_NF: Tensor, fake_MF: Tensor) -> float:
    """||m_r - m_f||^2 + Tr(S_r + S_f - 2 (S_r S_f)^(1/2)), in float64 (Heusel et al. 2017, eq. 6).

    Biased upwards by about F over the number of examples: compare at equal sizes, beside the floor of as many real
    images. Raises ValueError for fewer than two examples.
    """
    if min(len(real_NF), len(fake_MF)) < 2:
        raise ValueError("a covariance needs two or more examples")
    real_NF, fake_MF = real_NF.double(), fake_MF.double()
    real_cov, fake_cov = torch.cov(real_NF.T), torch.cov(fake_MF.T)
    # Tr (S_r S_f)^(1/2) = sum of the roots of the eigenvalues of S_r^(1/2) S_f S_r^(1/2), which is symmetric.
    values_F, vectors_FF = torch.linalg.eigh(real_cov)
    root_FF = (vectors_FF * values_F.clamp_min(0).sqrt()) @ vectors_FF.T
    cross = torch.linalg.eigvalsh(root_FF @ fake_cov @ root_FF).clamp_min(0).sqrt().sum()
    means = (real_NF.mean(0) - fake_MF.mean(0)).square().sum()
    return float(means + real_cov.trace() + fake_cov.trace() - 2 * cross)


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error."""

    value: float
    standard_error: float


SUBSETS, SUBSET = 100, 1000


def kernel_distance(real_NF: Tensor, fake_MF: Tensor, *, seed: int) -> Estimate:
    """Unbiased squared MMD with the kernel (x . y / F + 1)^3, mean over 100 subsets (Binkowski et al. 2018, KID).

    The subsets overlap, so the standard error is that of the mean over subsets; the chance that lies in the examples
    themselves comes on top.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(SUBSET, max(2, min(len(real_NF), len(fake_MF)) // 2))  # small sets too have subsets that differ
    estimates = []
    for _ in range(SUBSETS):
        x, y = (some[torch.randperm(len(some), generator=generator)[:size]] for some in (real_NF, fake_MF))
        estimates.append(cubic_mmd(x, y))
    values = torch.tensor(estimates, dtype=torch.float64)
    return Estimate(values.mean().item(), values.std().item() / math.sqrt(SUBSETS))


def cubic_mmd(real_NF: Tensor, fake_MF: Tensor) -> float:
    """Unbiased squared MMD of real and fake examples, with the kernel (x . y / F + 1)^3.

    May be a little below 0 for equal distributions.
    """

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        all_NN = similarity(a, a)
        return (all_NN.sum() - all_NN.trace()) / (len(a) * (len(a) - 1))

    real_NF, fake_MF = real_NF.double(), fake_MF.double()
    return (within(real_NF) + within(fake_MF) - 2 * similarity(real_NF, fake_MF).mean()).item()


@dataclass(frozen=True)
class Prdc:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020)."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real_NF: Tensor, fake_MF: Tensor, k: int = 5) -> Prdc:
    """How the k-nearest-neighbour balls of real and fake examples cover each other.

    Precision: fakes in some real ball; recall: reals in some fake ball; density: real balls over a fake, over k;
    coverage: reals whose ball holds a fake. Equal distributions have density 1 and coverage 1 - 2^-k. Balls are open:
    copies of one example lie in none of each other's. Raises ValueError for k or fewer examples.
    """
    if min(len(real_NF), len(fake_MF)) <= k:
        raise ValueError(f"{k} neighbours need more than {k} examples, got {len(real_NF)} and {len(fake_MF)}")
    real_NF, fake_MF = real_NF.double(), fake_MF.double()
    real_radius_N, fake_radius_M = _radii(real_NF, k), _radii(fake_MF, k)
    covered = recalled = 0.0
    balls_M = torch.zeros(len(fake_MF))
    for rows, distance_BM in _distances(real_NF, fake_MF):
        inside_BM = distance_BM < real_radius_N[rows, None]
        balls_M += inside_BM.sum(0)
        covered += inside_BM.any(1).sum().item()
        recalled += (distance_BM < fake_radius_M).any(1).sum().item()
    return Prdc(
        (balls_M > 0).double().mean().item(),
        recalled / len(real_NF),
        balls_M.double().mean().item() / k,
        covered / len(real_NF),
    )


def _radii(x_NF: Tensor, k: int) -> Tensor:
    """Distance of each example to its k-th neighbour; the example itself is the nearest and does not count."""
    return torch.cat([distance.kthvalue(k + 1, dim=1).values for _, distance in _distances(x_NF, x_NF)])


def _distances(a_NF: Tensor, b_MF: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of the matrix of Euclidean distances, (B, M), with the rows that they belong to."""
    for start in range(0, len(a_NF), BLOCK):
        rows = slice(start, start + BLOCK)
        # Without the shortcut by products: an example's distance to itself must be exactly 0.
        yield rows, torch.cdist(a_NF[rows], b_MF, compute_mode="donot_use_mm_for_euclid_dist")


MISSING_SHARE = 0.2  # of its share of real images


@dataclass(frozen=True)
class ClassHistogram:
    """Which classes a classifier sees in samples."""

    share_K: tuple[float, ...]
    kl_to_real_nats: float  # over the classes that real images have
    confidence: float  # mean of the largest probability
    entropy_nats: float  # mean over samples
    missing: tuple[int, ...]  # the coverage warning: classes with less than a fifth of their share of real images


def class_histogram(probabilities_MK: Tensor, real_K: Tensor) -> ClassHistogram:
    """Of samples, beside the number of real images of each class: a class that has none is not missed, and the
    divergence of the samples' shares from those of real images is over the classes that have some."""
    classes = probabilities_MK.shape[1]
    p_MK, real_K = probabilities_MK.double(), real_K.double()
    share_K = torch.bincount(p_MK.argmax(1), minlength=classes).double() / len(p_MK)
    known_K = share_K[real_K > 0] / share_K[real_K > 0].sum().clamp_min(1e-300)
    expected_K = real_K[real_K > 0] / real_K.sum()
    return ClassHistogram(
        tuple(share_K.tolist()),
        torch.special.xlogy(known_K, known_K / expected_K).sum().item(),
        p_MK.amax(1).mean().item(),
        -torch.special.xlogy(p_MK, p_MK).sum(1).mean().item(),
        tuple(torch.nonzero(share_K < MISSING_SHARE * real_K / real_K.sum()).flatten().tolist()),
    )


def nearest_images(fake_MD: Tensor, real: Iterable[Tensor]) -> Tensor:
    """Index of the real image nearest to each fake one, (M,), by Euclidean distance of pixels (figure 5).

    The real images come in blocks real_BD, so that not all of them are held at a time.
    """
    nearest_M = torch.zeros(len(fake_MD), dtype=torch.int64)
    least_M, seen = torch.full((len(fake_MD),), math.inf), 0
    for real_BD in real:
        distance_M, index_M = torch.cdist(fake_MD.float(), real_BD.float()).min(1)
        closer_M = distance_M < least_M
        nearest_M[closer_M], least_M[closer_M] = index_M[closer_M] + seen, distance_M[closer_M]
        seen += len(real_BD)
    return nearest_M


# ------------------------------------------------------------------------------------------------------------- of rows


def column_distances(real_ND: Tensor, fake_ND: Tensor) -> Tensor:
    """The Wasserstein-1 distance of each column's values, (D,): the mean distance of both in sorted order.

    Raises ValueError where there are not as many of one as of the other.
    """
    if real_ND.shape != fake_ND.shape:
        raise ValueError(f"expected as many rows of both, got {tuple(real_ND.shape)} and {tuple(fake_ND.shape)}")
    return (real_ND.double().sort(0).values - fake_ND.double().sort(0).values).abs().mean(0)


def correlation_error(real_ND: Tensor, fake_MD: Tensor) -> float:
    """Absolute difference of the correlations of both, mean over pairs of columns; that with a constant counts as 0.

    Raises ValueError for fewer than two columns.
    """
    columns = real_ND.shape[1]
    if columns < 2:
        raise ValueError("a correlation needs two columns")
    above = torch.triu_indices(columns, columns, 1)
    real_P, fake_P = (torch.corrcoef(rows.double().T).nan_to_num()[above[0], above[1]] for rows in (real_ND, fake_MD))
    return (real_P - fake_P).abs().mean().item()


# ------------------------------------------------------------------------------------------------------------ of codes

IMQ_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def imq_mmd(codes_NZ: Tensor, prior_MZ: Tensor, prior_std: float) -> float:
    """Squared MMD of codes and prior, unbiased, kernel sum over s of C / (C + ||x - y||^2) with C = 2 Z std^2 s.

    Tolstikhin et al. 2018 (WAE-MMD). May be a little below 0 for equal distributions.
    """
    codes_NZ, prior_MZ = codes_NZ.double(), prior_MZ.double()
    base = 2 * codes_NZ.shape[1] * prior_std**2

    def mean(a: Tensor, b: Tensor, same: bool) -> float:
        total = 0.0
        for _, distance in _distances(a, b):
            total += sum((base * s / (base * s + distance.square())).sum().item() for s in IMQ_SCALES)
        # With itself every example has distance 0 and adds 1 for each scale: that is left out.
        return (total - len(IMQ_SCALES) * len(a)) / (len(a) * (len(a) - 1)) if same else total / (len(a) * len(b))

    return mean(codes_NZ, codes_NZ, True) + mean(prior_MZ, prior_MZ, True) - 2 * mean(codes_NZ, prior_MZ, False)


# ------------------------------------------------------------------------------------------------------ Parzen windows

SIGMAS = tuple(10 ** (exponent / 9 - 1) for exponent in range(10))  # ten values from 0.1 to 1, evenly in the logarithm


@dataclass(frozen=True)
class Parzen:
    """A Parzen window estimate of the log-likelihood of test images under samples, in nats an image."""

    nats: float
    standard_error: float
    sigma: float
    samples: int


def parzen(samples_MD: Tensor, validation_ND: Tensor, test_ND: Tensor, sigmas: Sequence[float] = SIGMAS) -> Parzen:
    """log-mean-exp over samples of Gaussian windows, whose width is chosen on the validation images.

    The protocol of Goodfellow et al. 2014 (their parzen_ll.py): the sigma of the grid with the best mean on the
    validation images is used on the test images. Distances and sums are in float64, streamed over blocks of samples.
    Raises UserError when that sigma lies at the edge of the grid: beyond it there may be a better one.
    """
    scores = {sigma: score.mean().item() for sigma, score in _scores(samples_MD, validation_ND, sigmas).items()}
    sigma = max(scores, key=scores.__getitem__)
    if sigma in (min(sigmas), max(sigmas)) and len(sigmas) > 1:
        raise UserError(
            f"the best Parzen window of the grid, sigma {sigma:.3g}, lies at its edge ({min(sigmas):.3g} to "
            f"{max(sigmas):.3g}), and beyond it there may be a better one"
        )
    score_N = _scores(samples_MD, test_ND, (sigma,))[sigma]
    return Parzen(score_N.mean().item(), score_N.std().item() / math.sqrt(len(score_N)), sigma, len(samples_MD))


def _scores(samples_MD: Tensor, x_ND: Tensor, sigmas: Sequence[float]) -> dict[float, Tensor]:
    """Log-likelihood of each image for each sigma, (N,); the log-sum-exp is carried from block to block of samples."""
    x_ND = x_ND.double()
    squares_N = x_ND.square().sum(1)
    scores = {sigma: torch.full((len(x_ND),), -math.inf, dtype=torch.float64) for sigma in sigmas}
    for block_BD in samples_MD.split(BLOCK):
        block_BD = block_BD.double()
        squared_NB = (squares_N[:, None] + block_BD.square().sum(1) - 2 * x_ND @ block_BD.T).clamp_min(0)
        for sigma in sigmas:
            block_N = torch.logsumexp(-squared_NB / (2 * sigma**2), dim=1)
            scores[sigma] = torch.logaddexp(scores[sigma], block_N)
    pixels = x_ND.shape[1]
    for sigma in sigmas:
        scores[sigma] -= math.log(len(samples_MD)) + pixels * math.log(sigma * math.sqrt(2 * math.pi))
    return scores
