"""Illnesses are named where they show, as data, and nowhere else."""

import math

import pytest

from aae_ray.datasets.dataset import Dataset
from aae_ray.evaluation.diagnostics import Illness, diagnose
from aae_ray.evaluation.final_evaluation import evaluate_model, final_evaluation_tags
from aae_ray.evaluation.judge import Judge
from aae_ray.settings import Settings, replace
from aae_ray.training.loop import Training

WELL = {
    "adv/discriminator_loss_nats": math.log(2) - 1e-3,
    "val/jsd_nats": 0.01,
    "val/jsd_nats_se": 0.008,
    "val/jsd_nats_floor": -0.002,
    "val/noise_use": 0.1,
    "quality/judge_accuracy": 0.98,
}
FOOLED = {"val/jsd_nats": 0.17}


def test_a_model_that_is_well_has_no_illness() -> None:
    assert diagnose(WELL) == () == diagnose({})


@pytest.mark.parametrize(
    ("kind", "sign"),
    [
        (Illness.FOOLED, FOOLED),
        (Illness.NOISE_LOST, {"val/noise_use": 1e-7}),
        (Illness.POOR_JUDGE, {"quality/judge_accuracy": 0.5}),
    ],
)
def test_an_illness_is_named_with_the_metrics_that_show_it(kind: Illness, sign: dict[str, float]) -> None:
    (diagnostic,) = diagnose(WELL | sign)
    assert diagnostic.kind is kind and sign.items() <= diagnostic.evidence.items()
    assert diagnostic.evidence.items() <= (WELL | sign).items()


@pytest.mark.parametrize("unlike", [{"adv/discriminator_loss_nats": 0.6}, {"val/jsd_nats_se": 0.05}])
def test_a_discriminator_is_fooled_where_a_fresh_one_clearly_is_not(unlike: dict[str, float]) -> None:
    """One that tells codes apart is at work; a bound within its errors of the floor says nothing against the codes."""
    assert diagnose(WELL | FOOLED | unlike) == ()


def test_the_final_evaluation_names_illnesses(small_run: Settings, digits: Dataset, judge: Judge) -> None:
    """A Gaussian posterior whose variance is next to nothing."""
    training = Training(replace(small_run, {"model.posterior": "gaussian"}), digits)
    for parameter in training.model.networks["style_head"].parameters():
        parameter.data[3:] = 0  # of the logarithms of the variance
        if parameter.dim() == 1:
            parameter.data[3:] = -20
    metrics = training.evaluation.cheap("val") | training.evaluation.costly("val")
    result = evaluate_model(training.evaluation, judge, metrics)
    assert [diagnostic.kind for diagnostic in result.diagnostics] == [Illness.NOISE_LOST]
    assert result.diagnostics[0].text in result.remarks
    assert final_evaluation_tags(result, judge)["aae.diagnostics"] == "posterior_noise_lost"
