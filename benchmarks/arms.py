"""Four ways to run the same trials: the platform's gangs, a plain Trainable, Ray's documented pattern, a loop.

All train the same configurations with the same `Training`, its evaluation included, and keep the trained state.
"""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import ray.train
import ray.train.torch
from optuna.distributions import FloatDistribution, IntDistribution
from ray import tune
from ray.actor import ActorHandle
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search import Searcher

from aae_ray.datasets.dataset import Dataset, load
from aae_ray.execution import gang, tune_adapter
from aae_ray.execution.failures import Failed
from aae_ray.execution.orders import Train, Trained
from aae_ray.execution.trial import Trial, trainable
from aae_ray.execution.tune_adapter import Executor
from aae_ray.execution.worker import Worker
from aae_ray.search import events
from aae_ray.search.conductor import Conductor
from aae_ray.search.contract import Progress, Report, from_result
from aae_ray.search.journal import Journal
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import State
from aae_ray.search.space import Plan, record_plan
from aae_ray.settings import Settings, replace
from aae_ray.training import checkpoint
from aae_ray.training.loop import Training

Point = dict[str, Any]
DRIVER = "TRAIN_DRIVER_RESOURCE"  # what a trial's own process asks for, under the name that Ray's documentation uses
SPACE = {
    "optim.reconstruction_lr": FloatDistribution(1e-4, 1e-2, log=True),
    "optim.discrimination_lr": FloatDistribution(1e-4, 1e-2, log=True),
    "optim.regularization_lr": FloatDistribution(1e-4, 1e-2, log=True),
    "model.latent_dim": IntDistribution(2, 16),
}  # the points of all arms lie in it
CLOCK = "clock/"  # prefix of the seconds among a trial's results


class Fixed(Searcher):  # type: ignore[misc]
    """Suggests the same points in the same order to every arm."""

    def __init__(self, points: Sequence[Point]) -> None:
        super().__init__(metric="epoch", mode="max")
        self.points = list(points)

    def suggest(self, trial_id: str) -> Point | str:
        return self.points.pop(0) if self.points else str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass


class Ends(tune.Callback):  # type: ignore[misc]
    """When the run began and when each trial ended, with its last results, in the order of the ends."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.at: list[float] = []
        self.results: list[dict[str, Any]] = []

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.at.append(time.monotonic())
        self.results.append(dict(trial.last_result))


# ------------------------------------------------------------------------------------------------- the platform's gangs


class TimedWorker(Worker):
    """Keeps how long the last order took, for the trial in whose process it runs."""

    seconds: ClassVar[float] = 0.0

    def carry_out(self, order: Train) -> Trained | Failed | None:
        start = time.monotonic()
        try:
            return super().carry_out(order)
        finally:
            TimedWorker.seconds = time.monotonic() - start


class TimedTrial(Trial):
    """The platform's trial with clocks: on its worker, and on what its process does."""

    def setup(
        self,
        config: dict[str, Any],
        settings: Settings,
        folder: str,
        hub: ActorHandle | None,
        digest: str | None = None,
    ) -> None:
        gang.Worker = TimedWorker  # type: ignore[attr-defined]
        self.seconds: dict[str, float] = {}
        super().setup(config, settings, folder, hub, digest)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        start = time.monotonic()
        done: bool = super().reset_config(new_config)
        self.seconds[f"{CLOCK}reset"] = time.monotonic() - start
        return done

    def step(self) -> dict[str, Any]:
        start = time.monotonic()
        result: dict[str, Any] = super().step()
        report = from_result(result)
        if isinstance(report, Progress):
            return result
        assert isinstance(report, Report), report
        self.seconds[f"{CLOCK}step"] = time.monotonic() - start
        self.seconds[f"{CLOCK}worker"] = TimedWorker.seconds
        self.seconds[f"{CLOCK}training"] = report.training_seconds + report.evaluation_seconds
        return result | self.seconds | {"epoch": report.epoch}

    def _write(self, trained: Trained) -> str | None:
        start = time.monotonic()
        written: str | None = super()._write(trained)
        self.seconds[f"{CLOCK}save"] = time.monotonic() - start
        return written


class TimedExecutor(Executor):
    """The platform's executor, which tells `ends` of each trial that is over."""

    def __init__(self, ends: Ends, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.ends = ends

    def result(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        over = super().result(trial_id, result)
        if over:
            self.ends.at.append(time.monotonic())
            self.ends.results.append(dict(result))
        return over


def run_study(base: Settings, points: Sequence[Point], slots: int, folder: Path) -> Ends:
    """The points as the start points of a study: the real conductor, sampler and journal over Ray Tune, as a study has
    them; without its screen, its figures and MLflow."""
    study = folder / f"study-{time.monotonic_ns()}"
    study.mkdir(parents=True)
    changes = {"study.budget.trials": len(points), "study.sampler.type": "random"}
    plan = Plan(replace(base, changes), SPACE, tuple(points))
    started = events.StudyStarted(
        study_id=study.name,
        plan=record_plan(plan),
        data=events.DataRecord.of(load(base.data)),
        versions={},
        provenance={},
        host="here",
        pid=os.getpid(),
    )
    journal, ledger = Journal.create(study), Ledger()
    for event in journal.append(started):
        ledger.apply(event)
    conductor, ends = Conductor(journal, ledger, slots), Ends()
    with (
        patch.object(tune_adapter, "trainable", partial(trainable, kind=TimedTrial)),
        patch.object(tune_adapter, "Executor", partial(TimedExecutor, ends)),
        patch.dict(os.environ),  # what the search sets for Tune is for this arm alone
    ):
        tune_adapter.search(conductor, str(study), lambda: None)
    journal.close()
    if wrong := [trial for trial in ledger.trials if trial.state is not State.COMPLETE]:
        raise RuntimeError(f"{len(wrong)} trials were not trained to their end, the first with: {wrong[0].message}")
    if [trial.params for trial in ledger.trials] != list(points):
        raise RuntimeError("the study tried other points than the other arms")
    return ends


# -------------------------------------------------------------------------------------------------- a plain Trainable


class PlainTrial(tune.Trainable):  # type: ignore[misc]
    """The training in the trial's own process: what `reuse_actors` alone gives for trials of one worker."""

    def setup(self, config: Point, base: Settings) -> None:
        self.base, self.dataset = base, load(base.data)
        self.reset_config(config)

    def reset_config(self, new_config: Point) -> bool:
        self.training = Training(replace(self.base, new_config), self.dataset)
        return True

    def step(self) -> dict[str, Any]:
        return self.training.train().metrics | {"done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        checkpoint.save(self.training.state_dict(), checkpoint_dir)


# ------------------------------------------------------------------------------------------- Ray's documented pattern


def train_worker(config: dict[str, Any]) -> None:
    """Runs in a worker of a TorchTrainer: metrics after each epoch, the state after the last."""
    run: Settings = config["run"]
    training = Training(run, load(run.data))
    for _ in range(run.train.epochs - 1):
        ray.train.report(training.train(at_most_seconds=0).metrics)
    metrics = training.train().metrics
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(training.state_dict(), folder)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def documented_trial(config: Point, base: Settings, folder: str) -> None:
    """Ray's documentation, "Hyperparameter Tuning with Ray Tune": a Tune function starts a TorchTrainer per trial."""
    ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"run": replace(base, config)},
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(
            name=f"train-{tune.get_context().get_trial_id()}", storage_path=folder, callbacks=[TuneReportCallback()]
        ),
    ).fit()


# ------------------------------------------------------------------------------------------------------------ running


def plain(base: Settings) -> Any:
    return tune.with_resources(tune.with_parameters(PlainTrial, base=base), {"CPU": 1})


def documented(base: Settings, folder: Path) -> Any:
    return tune.with_resources(tune.with_parameters(documented_trial, base=base, folder=str(folder)), {DRIVER: 0.01})


def run_tune(trainable: Any, points: Sequence[Point], slots: int, folder: Path, *, reuse: bool) -> Ends:
    """Run the points through Ray Tune, `slots` at a time. A class that is reused also saves its state at the end."""
    ends = Ends()
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=Fixed(points), num_samples=len(points), max_concurrent_trials=slots, reuse_actors=reuse
        ),
        run_config=tune.RunConfig(
            name=f"run-{time.monotonic_ns()}",
            storage_path=str(folder),
            callbacks=[ends],
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=int(reuse), num_to_keep=1),
        ),
    )
    results = tuner.fit()
    if results.errors:
        raise RuntimeError(f"{len(results.errors)} trials failed, the first with: {results.errors[0]}")
    return ends


def run_serially(points: Sequence[Point], base: Settings, dataset: Dataset) -> list[float]:
    """The same trials one after the other in this process; returns the seconds of each."""
    seconds = []
    for point in points:
        start = time.perf_counter()
        Training(replace(base, point), dataset).train()
        seconds.append(time.perf_counter() - start)
    return seconds
