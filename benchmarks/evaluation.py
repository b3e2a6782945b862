"""python benchmarks/evaluation.py: what share of a small trial's time goes into looking at held-out images."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when PyTorch is imported
if not __package__:  # run as a file: its neighbours are found from the root
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from rich.console import Console

from aae_ray.autoencoder.phases import TASKS
from aae_ray.datasets.dataset import Dataset, load
from aae_ray.evaluation.constants import Constants
from aae_ray.evaluation.figure_data import figure_data
from aae_ray.search.pruner import rungs
from aae_ray.search.space import read_plan
from aae_ray.settings import Settings, replace
from aae_ray.training import checkpoint
from aae_ray.training.loop import Training
from benchmarks.timing import (
    CALIBRATION_SECONDS,
    Row,
    Target,
    calibrate,
    drift,
    json_file,
    machine,
    print_rows,
    spread,
    write_json,
)

STUDY = Path(__file__).parents[1] / "search_spaces/digits.yaml"
EPOCHS = (27, 81, 243)  # of trials that end at each rung of the file, and of complete ones
TARGET = Target(0.1, at_least=False)


NEEDS: dict[str, dict[str, Any]] = {  # of tasks for which the defaults will not do
    "label_informed": {"model.prior": "mixture", "data.labels": 100},
    "semi_supervised": {"data.labels": 100},
    "semi_supervised_reduction": {"data.labels": 100},
}
POSTERIORS = {"vae": ("gaussian",)}  # of tasks that do not take both


def settings_for(posterior: str, epochs: int, task: str = "unsupervised") -> Settings:
    """The first start point of `search_spaces/digits.yaml`, with another posterior, budget and task."""
    plan = read_plan(str(STUDY))
    return replace(
        plan.settings,
        {
            **plan.start[0],
            "task": task,
            **NEEDS.get(task, {}),
            "model.posterior": posterior,
            "train.epochs": epochs,
            "train.device": "cpu",
            "health.stop": False,
        },
    )


def evaluation_share(settings: Settings, dataset: Dataset, constants: Constants) -> float:
    """Of the CPU seconds of a trial as a worker trains it, with reports at its rungs and at its end, those of held-out
    metrics and the data behind figures."""
    epochs = settings.train.epochs
    training = Training(settings, dataset, constants=constants)
    spent = 0.0

    def timed(measure: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*arguments: Any) -> Any:
            nonlocal spent
            start = time.process_time()
            try:
                return measure(*arguments)
            finally:
                spent += time.process_time() - start

        return measured

    for name in ("cheap", "costly"):
        setattr(training.evaluation, name, timed(getattr(training.evaluation, name)))
    start = time.process_time()
    for epoch in [*rungs(settings.study.pruner, epochs), epochs]:
        training.train(epoch)
        timed(figure_data)(training.evaluation)
        checkpoint.pack(training.state_dict())
    return spent / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/evaluation.py", description=__doc__)
    parser.add_argument("--trials", type=int, default=10, help="of each sort")
    parser.add_argument("--epochs", type=int, nargs="+", default=EPOCHS, help="of a trial")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=["unsupervised"], help="of a trial")
    parser.add_argument(
        "--calibration-seconds", type=float, default=CALIBRATION_SECONDS, help="of each operation, before and after"
    )
    parser.add_argument("--json", type=json_file, metavar="FILE", help="write the shares there")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    dataset = load(Settings().data)
    info, before = machine(), calibrate(arguments.calibration_seconds)
    rows, shares = [], {}
    for task, epochs in product(arguments.task, arguments.epochs):
        for posterior in POSTERIORS.get(task, ("deterministic", "gaussian")):
            found = []
            shared = Constants()
            for seed in range(arguments.trials + 1):  # the first measures what the others find
                settings = replace(settings_for(posterior, epochs, task), {"seed": seed})
                found.append(evaluation_share(settings, dataset, shared))
            key = f"{task}, {posterior}, {epochs} epochs"
            shares[key] = {"first": found[0], "others": spread(found[1:])._asdict()}
            rows.append(Row("evaluation_share", key, spread(found[1:]), TARGET))
    after = calibrate(arguments.calibration_seconds)
    print_rows(
        Console(highlight=False, width=120), "Evaluation's share of a trial on one thread", rows, drift(before, after)
    )
    write_json(
        arguments.json,
        {
            "evaluation_share": shares,
            "machine": info,
            "calibration": {"before": before, "after": after, "drift": drift(before, after)},
        },
    )


if __name__ == "__main__":
    main()
