"""Signs of failing training that end a trial, each under a name: training such a trial further is a waste, and a weak
discriminator must not look like a good fit.
"""

import math
from collections.abc import Mapping, Sequence

from aae_ray.settings import RunSettings, epoch_at

DIVERGED = "diverged"
SATURATED = "discriminator_saturated"
DEAD = "discriminator_dead"
COLLAPSED = "code_collapse"
CLUSTERS_COLLAPSED = "cluster_collapse"
WORSE_THAN_MEAN = "worse_than_mean_image"
LEAST_OF_PRIOR_ENTROPY = 0.5  # share of the entropy of p(y): clusters that have it are not collapsed
EXPLODED = 1e9  # no metric of ours reaches this in a run that learns

Metrics = Mapping[str, float]


def health_stop_reason(history: Sequence[Metrics], settings: RunSettings) -> str | None:
    """The reason to end a trial after these epochs (metrics of each, oldest first), or None.

    Divergence, a number that is not finite or absurdly large, ends a trial at once. The other signs count after the
    grace period only, because an early run looks like a failing one, and must show in `health.patience` epochs in
    a row.
    """
    if not all(abs(value) < EXPLODED for value in history[-1].values()):  # also false for a NaN
        return DIVERGED
    health = settings.health
    recent = history[-health.patience :]
    started = len(history) - health.patience >= epoch_at(health.grace_fraction, settings.train.epochs)
    if not health.stop or not started:
        return None
    return next(
        (reason for reason, shows in SIGNS.items() if all(shows(metrics, settings) for metrics in recent)), None
    )


def _saturated(metrics: Metrics, settings: RunSettings) -> bool:
    return metrics.get("adv/discriminator_loss_nats", math.inf) < settings.health.saturated_loss_nats


def _dead(metrics: Metrics, settings: RunSettings) -> bool:
    stds = (metrics.get(name, math.inf) for name in ("adv/logit_std", "adv/label_logit_std"))
    return any(std < settings.health.dead_logit_std for std in stds)


def _collapsed(metrics: Metrics, settings: RunSettings) -> bool:
    return metrics["val/code_std"] < settings.health.collapsed_code_std


def _clusters_collapsed(metrics: Metrics, settings: RunSettings) -> bool:
    """A match of few or uneven clusters has no more entropy than p(y), and is none."""
    limit = min(settings.health.collapsed_clusters_nats, LEAST_OF_PRIOR_ENTROPY * _label_prior_entropy(settings))
    return metrics.get("val/cluster_entropy_nats", math.inf) < limit


def _label_prior_entropy(settings: RunSettings) -> float:
    """Of p(y) over the clusters, in nats."""
    shares = settings.model.label_prior
    if isinstance(shares, str):
        return math.log(settings.model.clusters)
    return -sum(share / sum(shares) * math.log(share / sum(shares)) for share in shares)


def worse_than_the_mean_image(metrics: Metrics) -> bool:
    """Whether a trial has learned less than what everybody knows before the first epoch."""
    return metrics.get("val/reconstruction_mse", 0.0) > metrics.get("val/mean_image_mse", math.inf)


def _worse_than_mean(metrics: Metrics, settings: RunSettings) -> bool:
    return worse_than_the_mean_image(metrics)


SIGNS = {
    SATURATED: _saturated,
    DEAD: _dead,
    COLLAPSED: _collapsed,
    CLUSTERS_COLLAPSED: _clusters_collapsed,
    WORSE_THAN_MEAN: _worse_than_mean,
}
