"""Illnesses that a trained model's metrics show, of which training does not end.

`training.health` ends trials that learn nothing more. What is named here goes on, and must not be taken for a good fit.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

FOOLED_NATS = 5e-3  # a discriminator's loss this near to log 2 tells nothing apart
CLEARLY = 5  # standard errors by which the bound is above its floor
LEAST_NOISE_USE = 1e-3
LEAST_JUDGE_ACCURACY = 0.8

Metrics = Mapping[str, float]


class Illness(StrEnum):
    """What a diagnostic is about."""

    FOOLED = "discriminator_fooled"
    NOISE_LOST = "posterior_noise_lost"
    POOR_JUDGE = "judge_too_poor"
    FRONT_WITHIN_NOISE = "front_within_noise"


@dataclass(frozen=True)
class Diagnostic:
    """An illness, the metrics that show it, and a sentence for people."""

    kind: Illness
    evidence: Metrics
    text: str


def diagnose(metrics: Metrics) -> tuple[Diagnostic, ...]:
    """The illnesses that a model has by the metrics of its last report and of its final evaluation, as far as known."""
    found = (sign(metrics) for sign in SIGNS)
    return tuple(diagnostic for diagnostic in found if diagnostic is not None)


def _fooled(metrics: Metrics) -> Diagnostic | None:
    """The trial's discriminator takes codes for prior samples, and a fresh one does not: its rate is too high, most
    often, and the encoder is led nowhere. Its logits vary, so that it does not count as dead."""
    names = ("adv/discriminator_loss_nats", "val/jsd_nats", "val/jsd_nats_se", "val/jsd_nats_floor")
    if not all(name in metrics for name in names):
        return None
    loss, bound, error, floor = (metrics[name] for name in names)
    if abs(loss - math.log(2)) > FOOLED_NATS or bound - floor <= CLEARLY * error:
        return None
    return Diagnostic(
        Illness.FOOLED,
        {name: metrics[name] for name in names},
        f"the discriminator is fooled (loss {loss:.4f}, log 2 is {math.log(2):.4f}) while codes are off their prior: "
        f"val/jsd_nats {bound:.4f}, floor {floor:.4f}, standard error {error:.4f}; lower optim.discrimination_lr",
    )


def _noise_lost(metrics: Metrics) -> Diagnostic | None:
    """A stochastic posterior that has become deterministic, as the authors of the Wasserstein autoencoder saw too
    (Rubenstein, Schoelkopf and Tolstikhin 2018)."""
    share = metrics.get("val/noise_use", math.inf)
    if share >= LEAST_NOISE_USE:
        return None
    return Diagnostic(
        Illness.NOISE_LOST,
        {"val/noise_use": share},
        f"the posterior has lost its noise: {share:.1e} of the codes' variance, and the model is deterministic in all "
        "but name",
    )


def _poor_judge(metrics: Metrics) -> Diagnostic | None:
    accuracy = metrics.get("quality/judge_accuracy", math.inf)
    if accuracy >= LEAST_JUDGE_ACCURACY:
        return None
    return Diagnostic(
        Illness.POOR_JUDGE,
        {"quality/judge_accuracy": accuracy},
        f"the judge is too poor to compare by: it is right on {accuracy:.0%} of the test images, and FID, KID, "
        "coverage and classes go by its features",
    )


SIGNS: tuple[Callable[[Metrics], Diagnostic | None], ...] = (_fooled, _noise_lost, _poor_judge)
