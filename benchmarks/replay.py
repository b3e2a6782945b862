"""Studies replayed on a table of learning curves: the real conductor, with workers whose clocks are simulated.

Two workers train for as long as the table says. Samplers and pruners see each trial with the luck of a seed, drawn with
the spread that the table's own seeds have. What a replay counts is epochs, and what the trials that came to their end
are worth without their luck: the hypervolume of their front.
"""

import math
from dataclasses import dataclass
from dataclasses import replace as with_fields
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from aae_ray.errors import UserError
from aae_ray.search import events
from aae_ray.search.conductor import Conductor, Continue
from aae_ray.search.contract import Report, Suggestion
from aae_ray.search.journal import Journal
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import Reason
from aae_ray.search.pruner import rungs
from aae_ray.search.space import Plan, record_plan
from aae_ray.settings import Settings, replace
from benchmarks.rivals import OptunaSampler, Pair, Rungs
from benchmarks.search_table import JSD, MSE, Curve, Point, Surrogate, Table, distance_from_ideal, hypervolume

WORKERS = 2
DATA = events.DataRecord(name="digits", digest="", shape=(1, 8, 8), classes=10, train=1, val=1, test=1)


class Step(NamedTuple):
    """A trial has come to its end."""

    epochs: int  # that all workers have trained
    seconds: float  # by the clock on the wall
    hypervolume: float  # of the trials that have come to their end so far
    nearest: float  # of them to the ideal


@dataclass(frozen=True)
class Trace:
    """What a replayed study had found, and when."""

    steps: tuple[Step, ...]
    target: float  # distance from the ideal
    most_epochs: int  # it was ended there
    trials: int

    @property
    def epochs_to_target(self) -> int:
        """Epochs spent until the target was reached; the most where it was not."""
        return next((step.epochs for step in self.steps if step.nearest <= self.target), self.most_epochs)

    @property
    def reached(self) -> bool:
        return bool(self.steps) and self.steps[-1].nearest <= self.target

    def hypervolume_at(self, epochs: int) -> float:
        """What had been found when so many epochs were spent."""
        return max((step.hypervolume for step in self.steps if step.epochs <= epochs), default=0.0)


class Forgetful(Journal):
    """A journal that is not read again: its events get their time, and are written nowhere."""

    def __init__(self, simulation: "Simulation") -> None:
        self.simulation = simulation

    def append(self, *happened: events.Event) -> list[events.Event]:
        return [event.model_copy(update={"time": self.simulation.now}) for event in happened]


@dataclass
class Running:
    """A worker's trial, on its way to the next report."""

    number: int
    curve: Curve
    epoch: int  # that it has reported

    def next_report(self, levels: tuple[int, ...]) -> int:
        """The epoch of its next report: at a rung or at the end, or where a health check ended it."""
        return min(next(level for level in levels if level > self.epoch), self.curve.epochs)


class Simulation:
    """One study of a pair, from its first suggestion until its epochs are spent."""

    def __init__(self, surrogate: Surrogate, pair: Pair, seed: int, budget: int, most: int) -> None:
        """It ends after so many epochs (`budget`) when it has reached the target by then, and after the most else."""
        table = surrogate.table
        settings = study_settings(table, pair, seed, most)
        self.surrogate, self.table, self.pair, self.seed = surrogate, table, pair, seed
        self.budget, self.most = budget, most
        self.levels = (*report_epochs(settings), settings.train.epochs)
        self.rungs = Rungs(settings.study.pruner.reduction_factor)
        self.now, self.spent = 0.0, 0  # seconds, epochs
        self.curves: dict[int, Curve] = {}  # of the trials, as sampler and pruner see them
        self.true_ends: dict[int, Point] = {}  # what each is worth in the end, without its luck
        self.steps: list[Step] = []
        self.found: list[Point] = []  # by trials that came to their end
        ledger, journal = Ledger(), Forgetful(self)
        started = events.StudyStarted(
            study_id="replay",
            plan=record_plan(Plan(settings, table.space)),
            data=DATA,
            versions={},
            provenance={},
            host="here",
            pid=1,
        )
        for event in journal.append(started):
            ledger.apply(event)
        self.conductor = Conductor(journal, ledger, WORKERS, clock=lambda: self.now)
        if pair.sampler is not None:
            self.conductor.sampler = OptunaSampler(ledger, pair.sampler(seed))

    def run(self) -> Trace:
        queue: list[tuple[float, int, Running]] = []
        order, target = count(), self.surrogate.top
        while self.spent < self.most:
            while isinstance(suggestion := self.conductor.suggest(), Suggestion):
                self.conductor.started(suggestion.number)
                running = Running(suggestion.number, self._curve(suggestion), suggestion.epoch)
                heappush(queue, (self._ready(running), next(order), running))
            if not queue or (self.spent >= self.budget and self.steps and self.steps[-1].nearest <= target):
                break
            self.now, _, running = heappop(queue)
            if self._report(running):
                heappush(queue, (self._ready(running), next(order), running))
        return Trace(tuple(self.steps), target, self.most, len(self.conductor.ledger.trials))

    def _curve(self, suggestion: Suggestion) -> Curve:
        """The curve behind a trial, the same whenever it goes on, with the luck of a seed."""
        if suggestion.number not in self.curves:
            curve = self.surrogate.curve(suggestion.params)
            luck = np.random.default_rng((self.seed, suggestion.number)).normal(size=2) * self.table.spread_of_seeds
            seen = {MSE: curve.metrics[MSE] * np.exp(luck[0]), JSD: curve.metrics[JSD] + luck[1]}
            self.true_ends[suggestion.number] = self.table.normalised(curve.at(curve.epochs))
            self.curves[suggestion.number] = with_fields(curve, metrics={**curve.metrics, **seen})
        return self.curves[suggestion.number]

    def _ready(self, running: Running) -> float:
        return self.now + float(running.curve.seconds_E[running.epoch : running.next_report(self.levels)].sum())

    def _report(self, running: Running) -> bool:
        """Report what a trial has trained; whether it goes on in the same place."""
        curve, number, before = running.curve, running.number, running.epoch
        running.epoch = epoch = running.next_report(self.levels)
        self.spent += epoch - before
        finished = epoch == self.levels[-1] and curve.stop_reason is None
        stop_reason = curve.stop_reason if epoch == curve.epochs else None
        if not finished and stop_reason is None:
            self.rungs.reached(number, epoch, self.table.normalised(curve.at(epoch)))
            if self.pair.rule is not None and self.pair.rule(self.rungs, number, epoch):
                stop_reason = Reason.PRUNED  # by the trial itself, as an objective of Optuna's does
        answer = self.conductor.reported(
            Report(
                number=number,
                epoch=epoch,
                history=tuple(curve.at(each) for each in range(before + 1, epoch + 1)),
                finished=finished,
                stop_reason=stop_reason,
                checkpoint=f"trials/{number}/{epoch}",
                training_seconds=float(curve.seconds_E[before:epoch].sum()),
            )
        )
        if finished:
            self.found.append(self.true_ends[number])
            nearest = min(map(distance_from_ideal, self.found))
            self.steps.append(Step(self.spent, self.now, hypervolume(self.found), nearest))
        if not self.conductor.ledger.trials[number].open:
            self.rungs.ended.add(number)
        return isinstance(answer, Continue)


def report_epochs(settings: Settings) -> list[int]:
    """The rungs: where all trials report, those of a study without a pruner as well."""
    return rungs(settings.study.pruner.model_copy(update={"type": "asha"}), settings.train.epochs)


def study_settings(table: Table, pair: Pair, seed: int, most: int) -> Settings:
    """The settings of a replayed study, with more trials than its epochs allow, so that it ends by its epochs alone.

    Raises UserError for settings that are wrong, and for rungs at which the table has not both objectives.
    """
    trials = math.ceil(most / table.settings.study.pruner.grace_period)
    limits = {"study.budget.trials": trials, "study.budget.failures_in_a_row": trials}
    changes = {**pair.settings, **limits, "study.sampler.seed": seed}
    try:
        settings = replace(table.settings, changes)
    except ValidationError as error:
        details = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise UserError("; ".join(details)) from None
    if set(report_epochs(settings)) - table.measured_at:
        pruner, measured = settings.study.pruner, ", ".join(map(str, sorted(table.measured_at)))
        raise UserError(
            f"study.pruner.grace_period={pruner.grace_period} and study.pruner.reduction_factor="
            f"{pruner.reduction_factor} need both objectives at epochs {', '.join(map(str, report_epochs(settings)))}, "
            f"and the table has them at {measured}"
        )
    return settings


def replay(surrogate: Surrogate, pair: Pair, seed: int, budget: int, most: int) -> Trace:
    """One study of a pair; a function of its arguments alone."""
    return Simulation(surrogate, pair, seed, budget, most).run()
