"""Each sign of failing training ends a trial under its name, after the grace period, when it lasts."""

import math

import pytest

from aae_ray.settings import Settings, replace
from aae_ray.training.health import health_stop_reason

WELL = {
    "adv/discriminator_loss_nats": 0.5,
    "adv/logit_std": 1.0,
    "val/code_std": 0.9,
    "val/reconstruction_mse": 0.02,
    "val/mean_image_mse": 0.07,
}
ILL = [
    ("discriminator_saturated", {"adv/discriminator_loss_nats": 0.001}),
    ("discriminator_dead", {"adv/logit_std": 1e-6}),
    ("discriminator_dead", {"adv/label_logit_std": 1e-6}),
    ("code_collapse", {"val/code_std": 1e-3}),
    ("cluster_collapse", {"val/cluster_entropy_nats": 0.6}),
    ("worse_than_mean_image", {"val/reconstruction_mse": 0.08}),
]
RUN = replace(Settings(), {"train.epochs": 10, "health.grace_fraction": 0.3, "health.patience": 2})


@pytest.mark.parametrize(("reason", "sign"), ILL)
def test_a_lasting_sign_after_the_grace_period_ends_a_trial(reason: str, sign: dict[str, float]) -> None:
    assert health_stop_reason([WELL] * 3 + [WELL | sign] * 2, RUN) == reason


@pytest.mark.parametrize(("reason", "sign"), ILL)
def test_a_sign_in_the_grace_period_or_of_one_epoch_does_not(reason: str, sign: dict[str, float]) -> None:
    assert health_stop_reason([WELL | sign] * 4, RUN) is None
    assert health_stop_reason([WELL] * 6 + [WELL | sign], RUN) is None
    assert health_stop_reason([WELL] * 6 + [WELL | sign, WELL, WELL | sign], RUN) is None


@pytest.mark.parametrize(("reason", "sign"), ILL)
def test_health_stops_can_be_switched_off(reason: str, sign: dict[str, float]) -> None:
    assert health_stop_reason([WELL | sign] * 9, replace(RUN, {"health.stop": False})) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_divergence_ends_a_trial_at_once_and_always(value: float) -> None:
    for settings in (RUN, replace(RUN, {"health.stop": False})):
        assert health_stop_reason([WELL | {"val/code_std": value}], settings) == "diverged"


def test_a_task_without_discriminator_is_judged_by_what_it_has() -> None:
    vae = {name: value for name, value in WELL.items() if not name.startswith("adv/")}
    assert health_stop_reason([vae] * 9, RUN) is None


@pytest.mark.parametrize(
    ("values", "entropy", "reason"),
    [
        ({"model.clusters": 3, "model.label_prior": [0.8, 0.1, 0.1]}, 0.639, None),  # as p(y) asks for
        ({"model.clusters": 3, "model.label_prior": [8, 1, 1]}, 0.3, "cluster_collapse"),
        ({"model.clusters": 2}, 0.6, None),  # 0.69 at most
        ({"model.clusters": 16}, 0.6, "cluster_collapse"),
    ],
)
def test_clusters_are_as_uneven_as_their_prior(values: dict[str, object], entropy: float, reason: str | None) -> None:
    settings = replace(RUN, {"task": "clustering"} | values)
    assert health_stop_reason([WELL | {"val/cluster_entropy_nats": entropy}] * 9, settings) == reason
