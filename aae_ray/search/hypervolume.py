"""How far a study has come: the hypervolume of its front, over the epochs and the time that it has spent.

The hypervolume of a front is the volume that its points dominate, up to a point of reference that is worse than all of
them (Zitzler and Thiele 1999). Here each objective is scaled first, so that 0 is its fixed reference, what a model that
knows nothing gets, and 1 the best value that it can have: the volume is a share of what there is to win, and does not
depend on the other trials where the metric has a reference of its own.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aae_ray.evaluation.metrics import METRICS
from aae_ray.search import events
from aae_ray.search.ledger import Ledger
from aae_ray.search.objectives import hypervolume
from aae_ray.search.outcomes import State
from aae_ray.search.trial_record import TrialRecord


@dataclass(frozen=True)
class Reference:
    """Between what an objective's values are measured; smaller is better, as in `Ledger.values`."""

    worst: float
    best: float


@dataclass(frozen=True)
class Progress:
    """Where a study stood when a trial had completed, or at its last event."""

    trial: int | None  # None at the last event
    epochs: int  # that all trials had trained, those lost to a failure and trained again counted each time
    seconds: float  # that the study had been running, all sessions
    hypervolume: float  # in [0, 1]


def references(ledger: Ledger) -> list[Reference]:
    """For each objective the value of a model that knows nothing, and the best one that there is, by the table of
    metrics. One that has no worst there has the worst among the complete trials."""
    return [_reference(ledger, index, name) for index, name in enumerate(ledger.objectives)]


def _reference(ledger: Ledger, index: int, name: str) -> Reference:
    metric = METRICS[name]
    best = metric.sign * metric.best.value  # a floor is a trial's own
    if metric.worst is not None:
        measured = (metric.worst.of(trial.metrics) for trial in ledger.trials if trial.metrics)
        worst = next((value for value in measured if not math.isnan(value)), metric.worst.value)
        if not math.isnan(worst):
            return Reference(metric.sign * worst, best)
    return Reference(max((ledger.values(trial)[index] for trial in ledger.complete()), default=best), best)


def dominated_share(points: Iterable[Sequence[float]], of: Sequence[Reference]) -> float:
    """The share of the volume between the references that these points dominate: 0 for none, 1 for the ideal.

    A point that is worse than a reference dominates nothing; beyond the best value there is nothing more to win.
    """
    scaled = [[_scaled(value, reference) for value, reference in zip(point, of, strict=True)] for point in points]
    return hypervolume(scaled, [1.0] * len(of))


def _scaled(value: float, reference: Reference) -> float:
    """0 for the best value and better ones, 1 for the worst one and worse ones."""
    span = reference.worst - reference.best
    return min(max((value - reference.best) / span, 0.0), 1.0) if span > 0 else 1.0


def progress(history: Iterable[events.Event], of: Sequence[Reference]) -> list[Progress]:
    """The hypervolume of the front at each trial that completed, and at the last event: a function of the history.

    A trial that violates constraints adds nothing, also while no other one is complete.
    """
    ledger, epochs, volume, points = Ledger(), 0, 0.0, []
    for event in history:
        if isinstance(event, events.Reported):
            epochs += len(event.history)
        ledger.apply(event)
        if isinstance(event, events.Ended) and (trial := ledger.trials[event.number]).state is State.COMPLETE:
            feasible = (member for member in ledger.front() if not ledger.violation(member))
            volume = dominated_share((ledger.values(member) for member in feasible), of)
            points.append(_point(ledger, trial, epochs, volume))
    return [*points, _point(ledger, None, epochs, volume)] if ledger.started else points


def _point(ledger: Ledger, trial: TrialRecord | None, epochs: int, volume: float) -> Progress:
    seconds = ledger.active_seconds
    if ledger.session_started is not None:
        seconds += max(ledger.last_time - ledger.session_started, 0.0)
    return Progress(None if trial is None else trial.number, epochs, seconds, volume)
