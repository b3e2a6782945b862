"""What a study's own process costs as trials grow in number: python benchmarks/scale.py --json scale.json

The real conductor, journal, ledger, sampler, pruner, screen and sender to MLflow. In place of Ray there is a simulated
executor, whose trials are functions of their parameters and take no time, and in place of MLflow something that takes
every call at once. Seconds are of the process's CPU, all threads together; those of the sampler are a column apart.
Then a study of trials of about a second each with everything real: CPU of the driver for each trial.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the package is found from the root, by Ray's processes too
    sys.path.insert(0, str(Path(__file__).parents[1]))
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from rich.console import Console

from aae_ray.reporting.screen import Screen
from aae_ray.search import events
from aae_ray.search.conductor import Conductor, Continue, NoSuggestion
from aae_ray.search.contract import Report, Suggestion
from aae_ray.search.journal import Journal
from aae_ray.search.ledger import Ledger
from aae_ray.search.pruner import rungs
from aae_ray.search.space import Plan, read_plan, record_plan
from aae_ray.settings import Settings, replace
from aae_ray.study.study import start_study
from aae_ray.tracking.cursor import Cursor
from aae_ray.tracking.mapping import Call, CreateRun
from aae_ray.tracking.sender import Tracker
from aae_ray.tracking.writer import MlflowWriter

SPACE = {
    "optim.reconstruction_lr": FloatDistribution(1e-4, 1e-2, log=True),
    "optim.discrimination_lr": FloatDistribution(1e-4, 1e-2, log=True),
    "model.latent_dim": IntDistribution(2, 64, log=True),
    "model.prior": CategoricalDistribution(["gaussian", "uniform", "mixture", "swiss_roll"]),
}
GANGS, EPOCHS = 8, 27
REAL = ("train.epochs=40", "study.pruner.type=none", "health.stop=false", "study.finalists=best")  # about a second
REAL_BASE = 20  # trials of a short study, whose start and end are those of a long one


class Timed:
    """A function with the seconds that went into it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any) -> Any:
        began = time.thread_time()
        try:
            return self.function(*arguments)
        finally:
            self.seconds += time.thread_time() - began


class Discard(MlflowWriter):
    """An MLflow that takes every call at once."""

    def __init__(self, folder: Path, uri: str, experiment: str, cursor: Cursor) -> None:
        self.cursor = cursor

    def do(self, calls: Sequence[Call]) -> None:
        with self.cursor.lock:
            self.cursor.runs.update((call.run, f"{call.run:0>32}") for call in calls if isinstance(call, CreateRun))


def measure(trials: int, sampler: str) -> dict[str, float]:
    """Seconds per trial of the driver and of the sampler, and the growth of its memory, for so many trials."""
    changes = {"study.budget.trials": trials, "train.epochs": EPOCHS, "study.sampler.type": sampler}
    plan = Plan(replace(Settings(), changes), SPACE)
    data = events.DataRecord(name="digits", digest="d", shape=(1, 8, 8), classes=10, train=9, val=9, test=9)
    started = events.StudyStarted(
        study_id="scale", plan=record_plan(plan), data=data, versions={}, provenance={}, host="here", pid=1
    )
    with tempfile.TemporaryDirectory() as place, open(os.devnull, "w") as nowhere:
        folder, ledger = Path(place), Ledger()
        journal = Journal.create(folder)
        tracker = Tracker(folder, journal.history, "http://nowhere", Discard)
        for event in journal.append(started):
            ledger.apply(event)
        console = Console(file=nowhere, force_terminal=True, width=120)
        screen = Screen(console, folder, plan, None)
        conductor = Conductor(journal, ledger, GANGS, [screen.handle, lambda event, ledger: tracker.wake()])
        suggest = Timed(conductor.sampler.suggest)
        conductor.sampler.suggest = suggest  # type: ignore[method-assign, assignment]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began, began_cpu = time.perf_counter(), time.process_time()
        with screen:  # drawn in place four times a second, as on a terminal
            _execute(conductor, plan)
            unsent = tracker.close(600)
        seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        assert len(ledger.trials) == trials and not ledger.open and not unsent
        own = suggest.seconds
        return {
            "trials": trials,
            "driver_seconds_per_trial": (cpu - own) / trials,
            "sampler_seconds_per_trial": own / trials,
            "wall_seconds": seconds,
            "memory_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024,
            "journal_mb": (folder / "journal.jsonl").stat().st_size / 1e6,
        }


def _execute(conductor: Conductor, plan: Plan) -> None:
    """Gangs that take turns, a report each."""
    levels = [*rungs(plan.settings.study.pruner, EPOCHS), EPOCHS]
    running: list[tuple[Suggestion, int]] = []
    while True:
        while isinstance(suggestion := conductor.suggest(), Suggestion):
            conductor.started(suggestion.number)
            running.append((suggestion, 0))
        if suggestion is NoSuggestion.DONE:
            return
        suggestion, level = running.pop(0)
        luck = random.Random(repr(sorted(suggestion.params.items())))
        base, other, low = luck.random(), luck.random(), levels[level - 1] if level else 0
        history = tuple(
            {"epoch": float(epoch), "val/reconstruction_mse": base + 1 / epoch, "val/jsd_nats": other + 1 / epoch}
            for epoch in range(low + 1, levels[level] + 1)
        )
        report = Report(
            suggestion.number, levels[level], history, finished=levels[level] == EPOCHS, checkpoint="trials/t/epoch_1"
        )
        if isinstance(conductor.reported(report), Continue):
            running.append((suggestion, level + 1))


def driven(program: str, trials: int, **environment: str) -> dict[str, float]:
    """What a program prints that runs a study of so many trials in a process, and a folder, of its own."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, program, "--driver", str(trials)],
            cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"the study ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return dict(json.loads(done.stdout.splitlines()[-1]))


def study_of(trials: int, settings: Sequence[str]) -> Ledger:
    """Run a study of the digits in this process, with all that a user's has but a terminal that is seen."""
    plan = read_plan(str(Path(__file__).parents[1] / "search_spaces" / "digits.yaml"), [
        *settings, f"study.budget.trials={trials}", "study.budget.wall_clock=2h",
    ])  # fmt: skip
    with open(os.devnull, "w") as nowhere:
        ledger = start_study(plan, Console(file=nowhere, force_terminal=True, width=120)).ledger
    assert ledger.ended == trials, ledger.reasons
    return ledger


def drive(trials: int) -> None:
    """Run a study in this process and print what it took."""
    began = time.perf_counter()
    hours = study_of(trials, REAL).worker_time
    print(json.dumps({
        "trials": trials, "cpu_seconds": time.process_time(), "wall_seconds": time.perf_counter() - began,
        "training_seconds_per_trial": hours.training / trials,
    }))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--sampler", default="random", help="its time is a column apart; tpe takes hours at 10,000")
    parser.add_argument("--real-trials", type=int, default=300, help="of about a second each, on real Ray; 0 for none")
    parser.add_argument("--driver", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.driver:
        drive(arguments.driver)
        return
    measure(50, arguments.sampler)  # imports and caches
    rows = [measure(trials, arguments.sampler) for trials in arguments.trials]
    for row in rows:
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
    result: dict[str, Any] = {"sampler": arguments.sampler, "rows": rows}
    if len(rows) > 1:
        last, before = rows[-1], rows[-2]
        result["growth"] = last["driver_seconds_per_trial"] / before["driver_seconds_per_trial"]
        result["memory_mb"] = last["memory_mb"]
        print(f"growth {result['growth']:.3f} from {before['trials']} to {last['trials']} trials")
    if arguments.real_trials:
        short, long = driven(__file__, REAL_BASE), driven(__file__, arguments.real_trials)
        each = (long["cpu_seconds"] - short["cpu_seconds"]) / (long["trials"] - short["trials"])
        result |= {"real": [short, long], "real_driver_cpu_seconds_per_trial": each}
        print(f"real Ray and MLflow: {each:.3f} CPU seconds of the driver for each of {arguments.real_trials} trials")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
