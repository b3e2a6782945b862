"""A worker by itself: what it keeps from one trial to the next, and what it measures for a study that asks for it."""

import pytest
import torch

from aae_ray.evaluation.judge import Judge
from aae_ray.execution.failures import Failed
from aae_ray.execution.orders import Begin, Progress, Train, Trained
from aae_ray.execution.worker import Agreement, Worker
from aae_ray.search.outcomes import FailureClass
from aae_ray.settings import Settings, replace
from aae_ray.training.progress import EpochProgress

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


def test_the_first_worker_tells_how_far_an_epoch_is(small_run: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpochProgress.__init__, "__defaults__", (-1.0,))  # seconds: at every batch
    monkeypatch.setattr("aae_ray.training.progress.TELL_SHARE", 0.0)
    told: list[Progress] = []
    for rank in (0, 1):
        worker = Worker(rank, 1, torch.device("cpu"), Agreement(1, 60.0), told.append)
        worker.carry_out(Train(2, FOREVER, Begin(small_run)))
    steps = told[0].batches
    assert told == [Progress(epoch, done, steps) for epoch in (0, 1) for done in range(1, steps)]


def test_constants_outlive_a_trial(small_run: Settings) -> None:
    worker = Worker(0, 1, torch.device("cpu"), Agreement(1, 60.0))
    trained(worker, small_run)
    kept = set(worker.constants._values)
    trained(worker, replace(small_run, {"seed": 1}))
    assert worker.training is not None and worker.training.evaluation.constants is worker.constants
    assert set(worker.constants._values) == kept


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_pytorch_does_not_see_is_not_replaced_by_the_cpu_unless_that_was_asked(small_run: Settings) -> None:
    worker = Worker(0, 1, torch.device("cpu"), Agreement(1, 60.0))
    gpu = replace(small_run, {"study.resources_per_worker": {"CPU": 1, "GPU": 1}})
    failed = worker.carry_out(Train(1, FOREVER, Begin(gpu)))
    assert isinstance(failed, Failed) and failed.kind is FailureClass.BAD_NODE
    assert "has a GPU for Ray and none for PyTorch" in failed.message
    assert trained(worker, replace(gpu, {"train.device": "cpu"})).interval.epoch == 1
