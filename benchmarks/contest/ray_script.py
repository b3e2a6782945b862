"""Ray's documented pattern as a search: Ray Tune with Optuna on both objectives, a `TorchTrainer` for each trial.

python -m benchmarks.contest.ray_script STUDY FOLDER SECONDS SEED [KEY=VALUE]... trains the study's space until the time
is up. FOLDER/ended.jsonl gets a line for each trial that came to its end.
"""

import json
import logging
import os
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from aae_ray.datasets.dataset import load
from aae_ray.search.space import read_plan
from benchmarks import arms

ENDED = "ended.jsonl"


class Ended(tune.Callback):  # type: ignore[misc]
    """Writes down when a trial came to its end, in seconds since 1970, and what it had then."""

    def __init__(self, file: Path, objectives: list[str]) -> None:
        self.file, self.objectives = file, objectives

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        metrics = {name: trial.last_result[name] for name in self.objectives if name in trial.last_result}
        with self.file.open("a") as file:
            file.write(json.dumps({"time": time.time(), "metrics": metrics}) + "\n")


def main(study: str, folder: str, seconds: str, seed: str, *overrides: str) -> None:
    until = time.time() + float(seconds)
    plan = read_plan(study, overrides)
    load(plan.settings.data)
    objectives = list(plan.settings.study.objectives)
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # the divergence comes with the last epoch alone
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    ray.init(address="local", log_to_driver=False, logging_level=logging.ERROR, resources={arms.DRIVER: 1})
    search = OptunaSearch(
        space=dict(plan.space),
        metric=objectives,
        mode=plan.directions,
        sampler=optuna.samplers.TPESampler(seed=int(seed)),
    )
    tune.Tuner(
        tune.with_resources(
            partial(arms.documented_trial, base=plan.settings, folder=str(Path(folder, "train"))), {arms.DRIVER: 0.01}
        ),
        tune_config=tune.TuneConfig(
            search_alg=search, num_samples=-1, max_concurrent_trials=2, time_budget_s=until - time.time()
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=folder, callbacks=[Ended(Path(folder, ENDED), objectives)], verbose=0
        ),
    ).fit()
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
