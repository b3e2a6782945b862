"""What a study's own process costs as trials grow in number: python benchmarks/scale.py --json scale.json

The real conductor, journal, ledger, sampler, pruner, screen and mapping to MLflow's calls, with a simulated executor in
place of Ray: trials are functions of their parameters, and take no time. The sampler's own time is a column apart.
"""

import argparse
import io
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from rich.console import Console

from aae_ray.reporting.screen import Screen
from aae_ray.search import events
from aae_ray.search.conductor import Conductor, Continue, Nothing
from aae_ray.search.contract import Report, Suggestion
from aae_ray.search.journal import Journal
from aae_ray.search.ledger import Ledger
from aae_ray.search.pruner import rungs
from aae_ray.search.space import Plan, record_plan
from aae_ray.settings import Settings, replace
from aae_ray.tracking.sink import MlflowMapping

SPACE = {
    "optim.reconstruction_lr": FloatDistribution(1e-4, 1e-2, log=True),
    "optim.discrimination_lr": FloatDistribution(1e-4, 1e-2, log=True),
    "model.latent_dim": IntDistribution(2, 64, log=True),
    "model.prior": CategoricalDistribution(["gaussian", "uniform", "mixture", "swiss_roll"]),
}
GANGS, EPOCHS = 8, 27
SCREEN_SECONDS = 0.25  # the screen is drawn as often as on a terminal


class Timed:
    """A function with the seconds that went into it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return self.function(*arguments)
        finally:
            self.seconds += time.perf_counter() - began


def measure(trials: int, sampler: str) -> dict[str, float]:
    """Seconds per trial of the driver and of the sampler, and the growth of its memory, for so many trials."""
    changes = {"study.budget.trials": trials, "train.epochs": EPOCHS, "study.sampler.type": sampler}
    plan = Plan(replace(Settings(), changes), SPACE)
    data = events.DataRecord(name="digits", digest="d", shape=(1, 8, 8), classes=10, train=9, val=9, test=9)
    started = events.StudyStarted(
        study_id="scale", plan=record_plan(plan), data=data, versions={}, provenance={}, host="here", pid=1
    )
    with tempfile.TemporaryDirectory() as place:
        folder, ledger = Path(place), Ledger()
        journal = Journal.create(folder)
        mapping = MlflowMapping()
        for event in journal.append(started):
            mapping.calls(event)
            ledger.apply(event)
        console = Console(file=io.StringIO(), force_terminal=True, width=120)
        screen = Screen(console, folder, plan, None)

        def map_to_mlflow(event: events.Event, ledger: Ledger) -> None:
            mapping.calls(event)

        conductor = Conductor(journal, ledger, GANGS, [screen.handle, map_to_mlflow])
        suggest, ended = Timed(conductor.sampler.suggest), Timed(conductor.sampler.ended)
        conductor.sampler.suggest, conductor.sampler.ended = suggest, ended  # type: ignore[method-assign, assignment]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began, drawn = time.perf_counter(), 0.0
        _execute(conductor, plan, lambda: None)
        seconds = time.perf_counter() - began
        for _ in range(40):
            started_drawing = time.perf_counter()
            console.print(screen.render())
            drawn += time.perf_counter() - started_drawing
        assert len(ledger.trials) == trials and not ledger.open
        own = suggest.seconds + ended.seconds
        return {
            "trials": trials,
            "driver_seconds_per_trial": (seconds - own) / trials,
            "sampler_seconds_per_trial": own / trials,
            "screen_seconds_per_drawing": drawn / 40,
            "memory_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024,
            "journal_mb": (folder / "journal.jsonl").stat().st_size / 1e6,
        }


def _execute(conductor: Conductor, plan: Plan, draw: Callable[[], None]) -> None:
    """Gangs that take turns, a report each."""
    levels = [*rungs(plan.settings.study.pruner, EPOCHS), EPOCHS]
    running: list[tuple[Suggestion, int]] = []
    while True:
        while isinstance(suggestion := conductor.suggest(), Suggestion):
            conductor.started(suggestion.number)
            running.append((suggestion, 0))
        if suggestion is Nothing.DONE:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--sampler", default="random", help="its time is a column apart; tpe takes hours at 10,000")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
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
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
