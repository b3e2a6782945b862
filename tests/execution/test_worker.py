"""A worker by itself: what it keeps from one trial to the next, and what it measures for a study that asks for it."""

import torch

from aae_ray.evaluation.judge import Judge
from aae_ray.execution.orders import Begin, Train, Trained
from aae_ray.execution.worker import Agreement, Worker
from aae_ray.settings import Settings, replace

FOREVER = 1e9


def trained(worker: Worker, settings: Settings) -> Trained:
    reply = worker.carry_out(Train(1, FOREVER, Begin(settings)))
    assert isinstance(reply, Trained)
    return reply


def test_samples_are_judged_where_the_study_decides_by_them(small_run: Settings, judge: Judge) -> None:
    worker = Worker(0, 1, torch.device("cpu"), Agreement(1, 60.0))
    assert "val/kid_local" not in trained(worker, small_run).interval.metrics
    for values in (
        {"study.objectives": ("val/reconstruction_mse", "val/kid_local")},
        {"study.pruner.metric": "val/kid_local"},
    ):
        assert trained(worker, replace(small_run, values)).interval.metrics["val/kid_local"] > 0


def test_constants_outlive_a_trial(small_run: Settings) -> None:
    worker = Worker(0, 1, torch.device("cpu"), Agreement(1, 60.0))
    trained(worker, small_run)
    kept = set(worker.constants._values)
    trained(worker, replace(small_run, {"seed": 1}))
    assert worker.training is not None and worker.training.evaluation.constants is worker.constants
    assert set(worker.constants._values) == kept
