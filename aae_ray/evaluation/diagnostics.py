"""Illnesses that a trained model's metrics show, of which training does not end.

`training.health` ends trials that learn nothing more. What is named here goes on, and must not be taken for a good fit.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from aae_ray.settings import RunSettings

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


def diagnose(metrics: Metrics, settings: RunSettings) -> tuple[Diagnostic, ...]:
    """The illnesses that a model has by the metrics of its last report and of its final evaluation, as far as known.

    What is not known of the validation images is looked up of the test images. A metric that is not a number shows
    none: a diverged model has another name.
    """
    found = (sign(metrics, settings) for sign in SIGNS)
    return tuple(diagnostic for diagnostic in found if diagnostic is not None)


def _of_a_part(metrics: Metrics, *names: str) -> dict[str, float] | None:
    """These metrics of the validation images, else those of the test images, under their whole names."""
    whole = ([f"{part}/{name}" for name in names] for part in ("val", "test"))
    return next(({name: metrics[name] for name in some} for some in whole if metrics.keys() >= set(some)), None)


def _fooled(metrics: Metrics, settings: RunSettings) -> Diagnostic | None:
    """The trial's discriminator takes codes for prior samples, and a fresh one does not: its rate is too high, most
    often, and the encoder is led nowhere. Its logits vary, so that it does not count as dead.

    Of averaged weights nothing is said: the discriminator has not seen their codes.
    """
    loss = metrics.get("adv/discriminator_loss_nats", math.nan)
    bounds = _of_a_part(metrics, "jsd_nats", "jsd_nats_se", "jsd_nats_floor")
    if bounds is None or settings.train.ema_decay:
        return None
    (name, bound), (_, error), (_, floor) = bounds.items()
    if not (abs(loss - math.log(2)) <= FOOLED_NATS and bound - floor > CLEARLY * error):
        return None
    noise = settings.train.style_noise
    advice = f"it sees them with train.style_noise={noise:g}, lower that" if noise else "lower optim.discrimination_lr"
    return Diagnostic(
        Illness.FOOLED,
        {"adv/discriminator_loss_nats": loss, **bounds},
        f"the discriminator is fooled (loss {loss:.4f}, log 2 is {math.log(2):.4f}) while codes are off their prior: "
        f"{name} {bound:.4f}, floor {floor:.4f}, standard error {error:.4f}; {advice}",
    )


def _noise_lost(metrics: Metrics, settings: RunSettings) -> Diagnostic | None:
    """A stochastic posterior that has become deterministic, as the authors of the Wasserstein autoencoder saw too
    (Rubenstein, Schoelkopf and Tolstikhin 2018)."""
    known = _of_a_part(metrics, "noise_use")
    if known is None or not (share := next(iter(known.values()))) < LEAST_NOISE_USE:
        return None
    return Diagnostic(
        Illness.NOISE_LOST,
        known,
        f"the posterior has lost its noise: {share:.1e} of the codes' variance, and the model is deterministic in all "
        "but name",
    )


def _poor_judge(metrics: Metrics, settings: RunSettings) -> Diagnostic | None:
    accuracy = metrics.get("quality/judge_accuracy", math.nan)
    if not accuracy < LEAST_JUDGE_ACCURACY:
        return None
    return Diagnostic(
        Illness.POOR_JUDGE,
        {"quality/judge_accuracy": accuracy},
        f"the judge is too poor to compare by: it is right on {accuracy:.0%} of the test images, and FID, KID, "
        "coverage and classes go by its features",
    )


SIGNS: tuple[Callable[[Metrics, RunSettings], Diagnostic | None], ...] = (_fooled, _noise_lost, _poor_judge)
