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
    assert diagnose(WELL, Settings()) == () == diagnose({}, Settings())


@pytest.mark.parametrize(
    ("kind", "sign"),
    [
        (Illness.FOOLED, FOOLED),
        (Illness.NOISE_LOST, {"val/noise_use": 1e-7}),
        (Illness.POOR_JUDGE, {"quality/judge_accuracy": 0.5}),
    ],
)
def test_an_illness_is_named_with_the_metrics_that_show_it(kind: Illness, sign: dict[str, float]) -> None:
    (diagnostic,) = diagnose(WELL | sign, Settings())
    assert diagnostic.kind is kind and sign.items() <= diagnostic.evidence.items()
    assert diagnostic.evidence.items() <= (WELL | sign).items()


@pytest.mark.parametrize("unlike", [{"adv/discriminator_loss_nats": 0.6}, {"val/jsd_nats_se": 0.05}])
def test_a_discriminator_is_fooled_where_a_fresh_one_clearly_is_not(unlike: dict[str, float]) -> None:
    """One that tells codes apart is at work; a bound within its errors of the floor says nothing against the codes."""
    assert diagnose(WELL | FOOLED | unlike, Settings()) == ()


@pytest.mark.parametrize("name", WELL)
def test_what_is_not_a_number_is_no_illness(name: str) -> None:
    assert diagnose(dict.fromkeys(WELL, math.nan), Settings()) == ()
    assert diagnose(WELL | {name: math.nan}, Settings()) == ()
    if name != "val/jsd_nats" and name.startswith(("adv/", "val/jsd")):
        assert diagnose(WELL | FOOLED | {name: math.nan}, Settings()) == ()


def test_without_a_report_the_test_images_show_illnesses() -> None:
    """Of a checkpoint of an epoch without a report, the bound is known of the test images alone."""
    sign = {"val/noise_use": 1e-7}
    twins = {name.replace("val/", "test/"): value for name, value in (WELL | FOOLED | sign).items()}
    assert [diagnostic.kind for diagnostic in diagnose(twins, Settings())] == [Illness.FOOLED, Illness.NOISE_LOST]
    assert "test/jsd_nats 0.1700" in diagnose(twins, Settings())[0].text
    assert diagnose(twins | WELL, Settings()) == (), "the validation images go first"


def test_a_discriminator_is_fooled_by_the_codes_that_it_sees() -> None:
    """With noise on them, which is named; not of averaged weights, whose codes it has never seen."""
    noisy, averaged = (replace(Settings(), {f"train.{key}": 0.5}) for key in ("style_noise", "ema_decay"))
    (diagnostic,) = diagnose(WELL | FOOLED, noisy)
    assert "train.style_noise=0.5" in diagnostic.text and "discrimination_lr" not in diagnostic.text
    assert diagnose(WELL | FOOLED, averaged) == ()


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
