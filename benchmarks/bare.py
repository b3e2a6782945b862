"""The least that trains an epoch on Ray: Ray itself, and one TorchTrainer with one worker. `benchmarks.start` runs it.

python -m benchmarks.bare STUDY FOLDER [KEY=VALUE]... writes to FOLDER/trained when the worker had its epoch reported.
"""

import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch

from aae_ray.datasets.dataset import load
from aae_ray.search.space import read_plan
from aae_ray.settings import Settings, replace
from aae_ray.training import checkpoint
from aae_ray.training.loop import Training

TRAINED = "trained"  # the file with the time, in seconds since 1970


def train_worker(config: dict[str, Any]) -> None:
    """Runs in the worker: an epoch, its evaluation included, and its state as a checkpoint, as a trial reports them."""
    run: Settings = config["run"]
    training = Training(run, load(run.data))
    metrics = training.train(until_epoch=1).metrics
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(training.state_dict(), folder)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
    Path(config["folder"], TRAINED).write_text(repr(time.time()))


def main(study: str, folder: str, *overrides: str) -> None:
    plan = read_plan(study, overrides)
    run = replace(plan.settings, plan.start[0])  # the first trial of the study
    ray.init(address="local", log_to_driver=False, logging_level=logging.ERROR)
    ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"run": run, "folder": folder},
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(name="bare", storage_path=folder),
    ).fit()
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
