"""What is measured: the table of metrics, and small measures of codes and labels.

Shapes: `N` examples, `M` draws of noise per example, `Z` code, `K` classes or clusters.
"""

from __future__ import annotations  # the table is read without PyTorch, whose import takes seconds

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

# -------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Limit:
    """What a metric can be at its best or its worst: as another metric says of the same trial, else a number, which is
    NaN where only the other metric can say."""

    value: float
    measured: str | None = None

    def of(self, metrics: Mapping[str, float]) -> float:
        return self.value if self.measured is None else metrics.get(self.measured, self.value)


@dataclass(frozen=True)
class Metric:
    """One thing that is measured; a study can optimise it where it has a direction and is of held-out images.

    `best` and `worst` are the references between which trials are compared on several metrics at once; where they are
    not measured they are limits, beyond which an estimate may lie by `noise`.
    """

    name: str
    unit: str
    direction: Literal["min", "max"] | None
    meaning: str
    best: Limit = Limit(0.0)
    worst: Limit | None = None
    noise: float = 0.0  # an estimate's, in its unit

    @property
    def limits(self) -> tuple[float, float]:
        """What it cannot be below and above, but for noise."""
        beyond = -math.inf if self.direction == "max" else math.inf
        worst = beyond if self.worst is None or self.worst.measured is not None else self.worst.value
        return min(self.best.value, worst), max(self.best.value, worst)

    @property
    def sign(self) -> float:
        """What a value is multiplied by so that smaller is better."""
        return 1.0 if self.direction == "min" else -1.0


def _with_test_twins(metrics: Iterable[Metric]) -> dict[str, Metric]:
    """By name; each val/ metric is followed by its test/ twin, without direction: nothing is tuned on test images."""
    table: dict[str, Metric] = {}
    for metric in metrics:
        table[metric.name] = metric
        if metric.name.startswith("val/"):
            name = "test/" + metric.name.removeprefix("val/")
            table[name] = replace(metric, name=name, direction=None, meaning=f"on test images: {metric.meaning}")
    return table


METRICS: dict[str, Metric] = _with_test_twins(
    [
        Metric(
            "val/reconstruction_mse",
            "squared pixel or std",
            "min",
            "mean squared error per pixel, pixels in [0, 1]; of rows per column, in standard deviations of training",
            worst=Limit(1.0, "val/mean_image_mse"),
        ),
        Metric(
            "val/mean_image_mse",
            "squared pixel or std",
            None,
            "mean squared error of always predicting the mean training image, or row: the baseline",
        ),
        Metric(
            "val/jsd_nats",
            "nats",
            "min",
            "lower bound on the Jensen-Shannon divergence of codes z (not of y) and prior, by a fresh discriminator",
            best=Limit(0.0, "val/jsd_nats_floor"),
            worst=Limit(math.log(2)),
            noise=0.1,
        ),
        Metric("val/jsd_nats_se", "nats", None, "standard error of that bound over held-out examples"),
        Metric(
            "val/jsd_nats_floor",
            "nats",
            None,
            "that bound for prior against prior: what a perfect match gets",
            noise=0.1,
        ),
        Metric(
            "val/joint_jsd_nats",
            "nats",
            "min",
            "the same bound for label and code together, y drawn from q(y|x), against p(y) p(z)",
            best=Limit(0.0, "val/joint_jsd_nats_floor"),
            worst=Limit(math.log(2)),
            noise=0.1,
        ),
        Metric("val/joint_jsd_nats_se", "nats", None, "standard error of that bound over held-out examples"),
        Metric(
            "val/joint_jsd_nats_floor",
            "nats",
            None,
            "that bound for draws of p(y) p(z): what a perfect match gets",
            noise=0.1,
        ),
        Metric(
            "val/kl_aggregate_nats",
            "nats",
            "min",
            "KL(q(z) || p(z)) of codes and prior, where the prior has a density; by the entropy of nearest neighbours",
            noise=0.5,
        ),
        Metric(
            "val/kl_posterior_nats",
            "nats",
            None,
            "E_x KL(q(z|x) || p(z)), where both have a density: mutual information and KL(q(z) || p(z)) together",
        ),
        Metric(
            "val/mutual_information_nats",
            "nats",
            None,
            "I(x; z) = E_x KL(q(z|x) || p(z)) - KL(q(z) || p(z)), where q(z|x) and p(z) have a density",
            noise=0.5,
        ),
        Metric(
            "val/kid_local",
            "kernel",
            "min",
            "squared kernel distance of samples and held-out images, features of the data's own judge, unbiased; "
            "measured where a study asks for it",
            worst=Limit(math.nan, "val/kid_local_ceiling"),
            noise=0.1,
        ),
        Metric("val/kid_local_ceiling", "kernel", None, "that distance for the mean training image as every sample"),
        Metric(
            "val/scaled_sliced_wasserstein",
            "prior std",
            "min",
            "sliced Wasserstein-2 distance of codes z (not of y) and prior, in standard deviations of the prior, times "
            "the root of the latent size: a shift of one coordinate counts alike at every size",
            best=Limit(0.0, "val/scaled_sliced_wasserstein_floor"),
        ),
        Metric(
            "val/scaled_sliced_wasserstein_floor",
            "prior std",
            None,
            "that distance for prior against prior: what a perfect match gets",
        ),
        Metric(
            "val/noise_use",
            "ratio",
            None,
            "share of the codes' variance that is noise of q(z|x), E_x[Var_noise z] / Var[z]; 0: noise ignored",
            worst=Limit(1.0),
        ),
        Metric(
            "val/code_std",
            "ratio",
            None,
            "standard deviation of the codes over the prior's, mean over dimensions; 0: collapsed",
        ),
        Metric(
            "val/classification_error",
            "ratio",
            "min",
            "share of images whose label q(y|x) gets wrong; a cluster has the label of its surest image among others, "
            "validation images (the paper's rule)",
            worst=Limit(1.0),
        ),
        Metric("val/classification_error_low", "ratio", None, "lower end of that share's 95 % Wilson interval"),
        Metric("val/classification_error_high", "ratio", None, "upper end of that share's 95 % Wilson interval"),
        Metric(
            "val/majority_error",
            "ratio",
            "min",
            "the same where a cluster has the most frequent label of the other images in it",
            worst=Limit(1.0),
        ),
        Metric("val/majority_error_low", "ratio", None, "lower end of that share's 95 % Wilson interval"),
        Metric("val/majority_error_high", "ratio", None, "upper end of that share's 95 % Wilson interval"),
        Metric(
            "val/balanced_error",
            "ratio",
            "min",
            "mean over classes of the share in error, one minus the balanced accuracy; clusters named by majority",
            worst=Limit(1.0),
        ),
        Metric("val/balanced_error_low", "ratio", None, "lower end of that mean's 95 % interval, over the images"),
        Metric("val/balanced_error_high", "ratio", None, "upper end of that mean's 95 % interval, over the images"),
        Metric(
            "val/hungarian_accuracy",
            "ratio",
            "max",
            "share of images in the cluster of their class, at most one cluster for each, the best such pairing",
            best=Limit(1.0),
            worst=Limit(0.0),
        ),
        Metric(
            "val/nmi",
            "ratio",
            "max",
            "normalized mutual information of clusters and classes",
            best=Limit(1.0),
            worst=Limit(0.0),
        ),
        Metric(
            "val/ari",
            "ratio",
            "max",
            "adjusted Rand index of clusters and classes; 0: random",
            best=Limit(1.0),
            worst=Limit(0.0),
            noise=0.5,
        ),
        Metric(
            "val/label_entropy_nats",
            "nats",
            "min",
            "mean entropy of q(y|x); 0: one-hot like all draws of p(y)",
        ),
        Metric("val/clusters_used", "clusters", None, "clusters that hold an image; the others are empty"),
        Metric(
            "val/cluster_entropy_nats", "nats", None, "entropy of the sizes of the clusters; 0: one holds everything"
        ),
        Metric(
            "val/part_error",
            "ratio",
            "min",
            "share of codes that lie in a part of the prior which belongs to another label",
            worst=Limit(1.0),
        ),
        *(
            Metric(
                f"train/{phase}_gradient_share",
                "ratio",
                None,
                f"phase {phase}'s share of the gradients on the encoder's trunk, by their norms, before the optimizer, "
                "in the epoch's first step",
            )
            for phase in ("reconstruct", "regularize", "classify", "reencode")
        ),
        Metric(
            "adv/discriminator_loss_nats",
            "nats",
            None,
            "mean of the two halves, (E_p[-log D] + E_q[-log(1 - D)]) / 2: log 2 = 0.693 when fooled",
        ),
        Metric(
            "adv/accuracy_real",
            "ratio",
            None,
            "share of prior samples that the trial's discriminator takes for prior samples",
        ),
        Metric("adv/accuracy_fake", "ratio", None, "share of codes that the trial's discriminator takes for codes"),
        Metric("adv/encoder_loss_nats", "nats", None, "what the encoder minimises to fool the discriminator"),
        Metric("adv/logit_std", "nats", None, "standard deviation of the discriminator's logits; 0: dead"),
        Metric("adv/label_discriminator_loss_nats", "nats", None, "the same, of the label discriminator"),
        Metric("adv/label_accuracy_real", "ratio", None, "the same, of the label discriminator"),
        Metric("adv/label_accuracy_fake", "ratio", None, "the same, of the label discriminator"),
        Metric("adv/label_logit_std", "nats", None, "the same, of the label discriminator"),
        Metric("adv/label_encoder_loss_nats", "nats", None, "the same, against the label discriminator"),
        Metric("train/classification_loss_nats", "nats", None, "cross-entropy of q(y|x) on the labelled batches"),
        Metric("train/classification_error", "ratio", None, "share of labelled images in error, in training"),
        Metric(
            "train/reconstruction_loss",
            "loss",
            None,
            "the reconstruction error that is trained, reduced as train.reconstruction_reduction says; without the "
            "heads' penalty of a reduction, and before the VAE divides it by model.decoder_std squared",
        ),
        Metric(
            "train/reencoding_style_loss_nats",
            "nats",
            None,
            "half the squared error of z, in standard deviations of the prior, of images decoded from the prior",
        ),
        Metric("train/reencoding_label_loss_nats", "nats", None, "cross-entropy of q(y|x) on the same images"),
        Metric("train/squared_mmd", "ratio", None, "squared maximum mean discrepancy of codes and prior, wae_mmd"),
        Metric("train/kl_nats", "nats", None, "E_x KL(q(z|x) || p(z)) of the VAE"),
        *(
            Metric(f"quality/{name}", unit, None, meaning)
            for name, unit, meaning in (
                (
                    "fid_local",
                    "squared feature",
                    "Frechet distance of features of samples and test images, by the data's own judge",
                ),
                (
                    "fid_local_floor",
                    "squared feature",
                    "that distance for as many of the judge's own training images",
                ),
                ("kid_local", "kernel", "kernel distance of the same features, unbiased"),
                (
                    "kid_local_se",
                    "kernel",
                    "its standard error over subsets; sampling noise of the samples themselves is not included",
                ),
                ("kid_local_floor", "kernel", "that distance for real training images"),
                (
                    "conditional_accuracy",
                    "ratio",
                    "share of samples in which the judge sees the class, or the cluster's majority class, that the "
                    "decoder was given",
                ),
                ("precision", "ratio", "share of samples within reach of a test image, among those features"),
                ("recall", "ratio", "share of test images within reach of a sample"),
                ("density", "ratio", "test images within reach of a sample, over those expected; 1: alike"),
                ("coverage", "ratio", "share of test images that have a sample within reach"),
                ("coverage_floor", "ratio", "that share for as many real training images"),
                ("class_kl_nats", "nats", "divergence of the samples' classes from those of real images"),
                ("class_confidence", "ratio", "mean confidence of the judge in the class of a sample"),
                ("class_entropy_nats", "nats", "mean entropy of the judge's prediction for a sample"),
                ("classes_missing", "classes", "classes with less than a fifth of their share of real images"),
                ("judge_accuracy", "ratio", "accuracy of the judge itself, on the test images"),
                ("parzen_nats", "nats", "Parzen window log-likelihood of the test images under samples"),
                ("parzen_nats_se", "nats", "its standard error over test images"),
                ("parzen_sigma", "pixel", "the window, chosen on the validation images"),
                ("parzen_samples", "images", "how many samples: the score rises with them; 10,000 in the paper"),
                ("parzen_anchor_nats", "nats", "the same with as many real training images in place of the samples"),
                (
                    "column_wasserstein",
                    "std",
                    "Wasserstein-1 distance of a column's values in samples and test rows, mean over columns",
                ),
                ("column_wasserstein_floor", "std", "that distance for real training rows"),
                (
                    "correlation_error",
                    "ratio",
                    "absolute difference of two columns' correlation in samples and test rows, mean over pairs",
                ),
                ("correlation_error_floor", "ratio", "that difference for real training rows"),
                ("imq_mmd", "kernel", "squared kernel discrepancy of held-out codes and prior"),
                ("imq_mmd_floor", "kernel", "that discrepancy for prior against prior"),
                (
                    "reencoding_error",
                    "prior std",
                    "distance of prior samples from the codes of their images, per dimension",
                ),
            )
        ),
        Metric("perf/images_per_second", "images/s", "max", "training images per second over all workers"),
    ]
)

# ----------------------------------------------------------------------------------------------------- measures

NORMAL_QUANTILE = 1.959964  # two-sided 95 %


def code_std(codes_NZ: Tensor, prior_std_Z: Tensor) -> float:
    """Standard deviation of the codes over that of the prior, mean over dimensions."""
    return (codes_NZ.std(0) / prior_std_Z).mean().item()


def mean_entropy(logits_NK: Tensor) -> float:
    """Mean over examples of the entropy of a categorical distribution, in nats: 0 for one-hots, log K when unsure."""
    import torch

    return float(torch.special.entr(logits_NK.double().softmax(1)).sum(1).mean())


def balanced_error(answers_N: Tensor, labels_N: Tensor) -> tuple[float, tuple[float, float]]:
    """Mean over the classes that there are of the share of images in error, one minus the balanced accuracy, and its
    95 % interval: from the Wilson intervals of the classes (Zou and Donner 2008), so that a rare class without an error
    is not taken for a certain one."""
    wrong_N = (answers_N != labels_N).double()
    of_classes = [wrong_N[labels_N == label] for label in labels_N.unique()]
    shares = [wrong_n.mean().item() for wrong_n in of_classes]
    mean, below, above = sum(shares) / len(shares), 0.0, 0.0
    for share, wrong_n in zip(shares, of_classes, strict=True):
        low, high = wilson_interval(share, len(wrong_n))
        below, above = below + (share - low) ** 2, above + (high - share) ** 2
    return mean, (mean - math.sqrt(below) / len(shares), mean + math.sqrt(above) / len(shares))


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of so many examples (Wilson 1927): right also where few or none are in error."""
    squared = NORMAL_QUANTILE**2 / count
    center = share + squared / 2
    half = (squared * (share * (1 - share) + squared / 4)) ** 0.5
    return (center - half) / (1 + squared), (center + half) / (1 + squared)


def noise_use(z_MNZ: Tensor) -> float:
    """R = E_x[Var_noise z] / Var[z], mean over dimensions, from M draws of noise for each of N examples.

    0 when the encoder ignores its noise, 1 where the code says nothing about the image. A dimension that does not
    vary at all uses no noise and counts as 0. Raises ValueError for fewer than two draws.
    """
    import torch

    draws, _, size = z_MNZ.shape
    if draws < 2:
        raise ValueError(f"noise use needs two or more draws per example, got {draws}")
    within_Z = z_MNZ.var(0).mean(0)
    total_Z = z_MNZ.reshape(-1, size).var(0)
    return torch.where(total_Z == 0, 0.0, within_Z / total_Z).mean().item()
