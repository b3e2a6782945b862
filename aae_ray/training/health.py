"""Signs of failing training that end a trial, each under a name: training such a trial further is a waste, and a weak
discriminator must not look like a good fit.
"""

import math
from collections.abc import Mapping, Sequence

from aae_ray.settings import Health, RunSettings, epoch_at

DIVERGED = "diverged"
SATURATED = "discriminator_saturated"
DEAD = "discriminator_dead"
COLLAPSED = "code_collapse"
CLUSTERS_COLLAPSED = "cluster_collapse"
WORSE_THAN_MEAN = "worse_than_mean_image"
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
    return next((reason for reason, shows in SIGNS.items() if all(shows(metrics, health) for metrics in recent)), None)


def _saturated(metrics: Metrics, health: Health) -> bool:
    return metrics.get("adv/discriminator_loss_nats", math.inf) < health.saturated_loss_nats


def _dead(metrics: Metrics, health: Health) -> bool:
    stds = (metrics.get(name, math.inf) for name in ("adv/logit_std", "adv/label_logit_std"))
    return any(std < health.dead_logit_std for std in stds)


def _collapsed(metrics: Metrics, health: Health) -> bool:
    return metrics["val/code_std"] < health.collapsed_code_std


def _clusters_collapsed(metrics: Metrics, health: Health) -> bool:
    return metrics.get("val/cluster_entropy_nats", math.inf) < health.collapsed_clusters_nats


def worse_than_the_mean_image(metrics: Metrics) -> bool:
    """Whether a trial has learned less than what everybody knows before the first epoch."""
    return metrics.get("val/reconstruction_mse", 0.0) > metrics.get("val/mean_image_mse", math.inf)


def _worse_than_mean(metrics: Metrics, health: Health) -> bool:
    return worse_than_the_mean_image(metrics)


SIGNS = {
    SATURATED: _saturated,
    DEAD: _dead,
    COLLAPSED: _collapsed,
    CLUSTERS_COLLAPSED: _clusters_collapsed,
    WORSE_THAN_MEAN: _worse_than_mean,
}
