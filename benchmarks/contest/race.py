"""The contest: searches side by side in time, judged alike by what they have found at each second since the command.

A trial counts from the moment when it has come to its end. Its objectives are those of the platform's own protocol: the
platform and Ray's pattern measure them as they train, and of the script's trials they are computed afterwards, from the
codes, images and prior samples that each has left.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from aae_ray.datasets.dataset import Dataset, load
from aae_ray.evaluation.divergence import jsd_bound
from aae_ray.evaluation.held_out import PROTOCOL_SEED
from aae_ray.search import events
from aae_ray.search.journal import read_events
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import State
from aae_ray.search.space import read_plan
from benchmarks.contest import optuna_script
from benchmarks.contest.ray_script import ENDED
from benchmarks.search_table import JSD, MSE, Point, hypervolume
from benchmarks.timing import interleave, spread

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "search_spaces" / "digits.yaml"
OURS, SCRIPT, DOCUMENTED = "aae_ray.tune", "Optuna and PyTorch", "Ray's documented pattern"
PATIENCE = 60  # seconds in which a search that was told to stop may do so
GRID = 1.0  # seconds, of the curve of medians


class Found(NamedTuple):
    """A trial that came to its end."""

    seconds: float  # since the command
    point: Point  # both objectives in units of the reference


@dataclass(frozen=True)
class Run:
    """What one search found in its time, in the order of the ends."""

    found: tuple[Found, ...]

    def hypervolume_at(self, seconds: float) -> float:
        return hypervolume(each.point for each in self.found if each.seconds <= seconds)

    def curve(self) -> list[tuple[float, float]]:
        """Seconds and hypervolume whenever it grew."""
        steps: list[tuple[float, float]] = []
        for each in self.found:
            volume = self.hypervolume_at(each.seconds)
            if volume > (steps[-1][1] if steps else 0.0):
                steps.append((each.seconds, volume))
        return steps

    def seconds_to(self, volume: float) -> float:
        """Seconds until it had found as much; infinite where it did not."""
        return next((seconds for seconds, found in self.curve() if found >= volume), float("inf"))


@dataclass(frozen=True)
class Contest:
    """What all searches of a contest are given."""

    folder: Path
    seconds: float
    overrides: Sequence[str]  # of the study's file, for the searches that read it
    dataset: Dataset
    reference: Point

    @classmethod
    def prepare(cls, folder: Path, seconds: float, overrides: Sequence[str]) -> "Contest":
        """The data are prepared once, before anything is timed; the script gets them as two arrays."""
        overrides = [f"data.cache={folder / 'cache'}", *overrides]
        dataset = load(read_plan(str(STUDY), overrides).settings.data)
        contest = cls(folder, seconds, overrides, dataset, (mean_image_mse(dataset), float(np.log(2))))
        np.savez(contest.digits, train=pixels(dataset, dataset.train), val=pixels(dataset, dataset.val))
        return contest

    @property
    def digits(self) -> Path:
        return self.folder / "digits.npz"

    def normalised(self, metrics: Mapping[str, float]) -> Point:
        return metrics[MSE] / self.reference[0], metrics[JSD] / self.reference[1]

    def run(self, command: Sequence[str], folder: Path, read: Callable[[Path, float], list[Found]]) -> Run:
        """A command as a user types it, in a folder of its own; what it has found when its time is up."""
        environment = {
            name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_RUN_ID")
        }
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
        folder.mkdir(parents=True)
        with (folder / "output.txt").open("w") as output:
            began = time.time()
            process = subprocess.Popen(
                [sys.executable, *command], cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                failed = process.wait(self.seconds) != 0
            except subprocess.TimeoutExpired:
                failed = False
                end(process)
        if failed:
            text = (folder / "output.txt").read_text()[-2000:]
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{text}")
        found = sorted(each for each in read(folder, began) if each.seconds <= self.seconds)
        return Run(tuple(found))

    # ------------------------------------------------------------------------------------------------------ the arms

    def ours(self, seed: int) -> Run:
        command = ["-m", "aae_ray.tune", str(STUDY), f"study.sampler.seed={seed}", "study.folder=runs", *self.overrides]
        return self.run(command, self.folder / f"ours-{seed}", self.read_journal)

    def script(self, seed: int) -> Run:
        command = [optuna_script.__file__, str(self.digits), ".", str(self.seconds), str(seed)]
        return self.run(command, self.folder / f"script-{seed}", self.read_trials)

    def documented(self, seed: int) -> Run:
        epochs = f"train.epochs={optuna_script.EPOCHS}"
        module, place = "benchmarks.contest.ray_script", self.folder / f"documented-{seed}"
        command = ["-m", module, str(STUDY), str(place), str(self.seconds), str(seed), epochs, *self.overrides]
        return self.run(command, place, self.read_ended)

    def read_journal(self, folder: Path, began: float) -> list[Found]:
        found, ledger = [], Ledger()
        for journal in folder.glob("runs/*/journal.jsonl"):
            for event in read_events(journal.parent):
                ledger.apply(event)
                if isinstance(event, events.Ended) and ledger.trials[event.number].state is State.COMPLETE:
                    metrics = ledger.trials[event.number].metrics
                    found.append(Found(event.time - began, self.normalised(metrics)))
        return found

    def read_trials(self, folder: Path, began: float) -> list[Found]:
        return [
            Found(file.stat().st_mtime - began, self.normalised(judge(file, self.dataset)))
            for file in folder.glob("trial-*.npz")
        ]

    def read_ended(self, folder: Path, began: float) -> list[Found]:
        file = folder / ENDED
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        whole = [line for line in lines if {MSE, JSD} <= line["metrics"].keys()]
        return [Found(line["time"] - began, self.normalised(line["metrics"])) for line in whole]


ARMS: dict[str, Callable[[Contest, int], Run]] = {
    OURS: Contest.ours,
    SCRIPT: Contest.script,
    DOCUMENTED: Contest.documented,
}


def pixels(dataset: Dataset, rows_N: np.ndarray) -> np.ndarray:
    """Images as rows of numbers from 0 to 1."""
    return np.asarray(dataset.images_NCHW[rows_N].reshape(len(rows_N), -1), dtype=np.float32) / 255


def mean_image_mse(dataset: Dataset) -> float:
    """The error per pixel of always predicting the mean training image, on the validation images."""
    mean_D = pixels(dataset, dataset.train).mean(0)
    return float(np.square(pixels(dataset, dataset.val) - mean_D).mean())


def judge(file: Path, dataset: Dataset) -> dict[str, float]:
    """The platform's measures of a trial of the script, on what it has left: codes and images of the validation images
    in their order, and draws of its prior."""
    left = np.load(file)

    def draw_prior(count: int, seed: int) -> Tensor:
        return torch.from_numpy(left["prior"][:count])

    bound = jsd_bound(torch.from_numpy(left["codes"]), draw_prior, seed=PROTOCOL_SEED)
    return {MSE: float(np.square(left["images"] - pixels(dataset, dataset.val)).mean()), JSD: bound.nats}


def end(process: subprocess.Popen[bytes]) -> None:
    """End a search whose time is up as Ctrl-C does, and where that takes too long, at once."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# ------------------------------------------------------------------------------------------------------------ results


def race(contest: Contest, seeds: int) -> dict[str, list[Run]]:
    """The runs of each arm, one for each seed. The arms take turns, every second round in reverse order."""

    def of(arm: Callable[[Contest, int], Run]) -> Callable[[], Run]:
        numbers = count()
        return lambda: arm(contest, next(numbers))

    return interleave({name: of(arm) for name, arm in ARMS.items()}, seeds)


def results(runs: Mapping[str, Sequence[Run]], seconds: float) -> dict[str, Any]:
    """The keys: what each ended with, how far ours is ahead, and how soon it had what the others end with.

    A search that never had as much counts with all its time.
    """
    ends = {name: [run.hypervolume_at(seconds) for run in some] for name, some in runs.items()}
    found: dict[str, Any] = {
        "hypervolume": {name: spread(values)._asdict() for name, values in ends.items()},
        "trials": {name: median([len(run.found) for run in some]) for name, some in runs.items()},
        "against": {},
        "curves": {name: [run.curve() for run in some] for name, some in runs.items()},
        "seconds": seconds,
    }
    for name in ends.keys() - {OURS}:
        gains = [ours - theirs for ours, theirs in zip(ends[OURS], ends[name], strict=True)]
        reached = [run.seconds_to(end) for run, end in zip(runs[OURS], ends[name], strict=True)]
        found["against"][name] = {
            "gain": spread(gains)._asdict(),
            "seconds_to_reach": spread([min(each, seconds) for each in reached])._asdict(),
            "reached": sum(each <= seconds for each in reached) / len(reached),
        }
    return found


def draw(curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]], seconds: float, path: Path) -> None:
    """The hypervolume of each search over time: a thin line for each seed, and their median."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    grid = np.arange(0, seconds + GRID, GRID)
    for (name, some), colour in zip(curves.items(), ("#0077bb", "#ee7733", "#888888"), strict=True):
        lines = [
            [max((volume for at, volume in curve if at <= second), default=0.0) for second in grid] for curve in some
        ]
        for line in lines:
            axes.step(grid, line, where="post", color=colour, linewidth=0.7, alpha=0.35)
        axes.step(grid, np.median(lines, axis=0), where="post", color=colour, linewidth=2.4, label=name)
    axes.set_xlabel("time since the command (s)")
    axes.set_ylabel("hypervolume of the front (of at most 1)")
    axes.set_xlim(0, seconds)
    axes.set_ylim(-0.01, 1)  # a search that has found nothing yet is seen too
    axes.set_title(
        "Search of the digits on two cores: thin lines are seeds, thick ones their median", fontsize=10, loc="left"
    )
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path)
