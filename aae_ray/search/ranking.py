"""The order of a study's trials by what they have shown so far, from which samplers learn what is good.

Most trials of a study are stopped early, so that Optuna has no final values of them, and with several objectives no
other ones either. Here every trial that is not under way has a place among all others, the best one first, by

1. its standing: last is one that was bad;
2. the epochs that it has reached, more before fewer: who was let go on at a rung is better than who was not;
3. by how much it violates constraints (Deb 2000), which are asked of those alone that were trained to their end;
4. its non-dominated front among those that ended after as many epochs;
5. within a front, the hypervolume that it alone dominates, the largest first;
6. its number.

Bad are trials that a health check ended, that diverged, ran out of memory or into a bug, and those without a finite
value of each objective. Of what became of a trial through no fault of its parameters (a lost worker, a full disk)
nothing is learnt.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from aae_ray.evaluation.metrics import METRICS
from aae_ray.search.constraints import Constraint, violation
from aae_ray.search.objectives import Point, Ranks, exclusive_hypervolumes
from aae_ray.search.outcomes import OF_THE_MACHINE, Reason, State
from aae_ray.search.trial_record import TrialRecord

UNDER_WAY = (State.WAITING, State.RUNNING)
WITHOUT_FAULT = (Reason.COMPLETED, Reason.PRUNED, Reason.PAUSED, Reason.BUDGET, Reason.USER, Reason.INTERRUPTED)
MARGIN = 0.1  # the reference point lies beyond the worst values, by this share of their range


class Standing(IntEnum):
    """What a trial is worth before its values are looked at, the best first."""

    FEASIBLE = 0
    INFEASIBLE = 1
    BAD = 2


@dataclass(frozen=True)
class Result:
    """What a trial has shown."""

    number: int  # of equal trials the lower one comes first
    standing: Standing
    epochs: int = 0
    values: tuple[float, ...] = ()  # of the objectives after so many epochs, smaller the better
    violation: float = 0.0


def result_of(
    trial: TrialRecord, metrics: Mapping[str, float], objectives: Sequence[str], constraints: Sequence[Constraint]
) -> Result | None:
    """What a trial has shown, by these metrics; None while it is under way, and where it failed through no fault of its
    parameters."""
    if trial.state in UNDER_WAY or trial.reason in OF_THE_MACHINE:
        return None
    if trial.reason is not None and trial.reason not in WITHOUT_FAULT:
        return Result(trial.number, Standing.BAD)
    asked = constraints if trial.state is State.COMPLETE else ()
    return result(trial.number, trial.epoch, metrics, objectives, asked)


def result(
    number: int,
    epochs: int,
    metrics: Mapping[str, float],
    objectives: Sequence[str],
    constraints: Sequence[Constraint],
) -> Result:
    """What a trial with these metrics after so many epochs has shown."""
    values = tuple(METRICS[name].sign * metrics.get(name, math.nan) for name in objectives)
    if not all(map(math.isfinite, values)):
        return Result(number, Standing.BAD)
    beyond = violation(constraints, metrics)
    return Result(number, Standing.INFEASIBLE if beyond else Standing.FEASIBLE, epochs, values, beyond)


def ranked(results: Iterable[Result], careful: int) -> list[Result]:
    """The results, the best first. Step 5 of the order is left out for fronts that begin after `careful` results: of
    those nobody asks more than that they are no good."""
    bad: list[Result] = []
    alike: dict[tuple[float, ...], list[Result]] = {}  # by steps 1 to 3
    for one in results:
        if one.standing is Standing.BAD:
            bad.append(one)
        else:
            alike.setdefault((-one.epochs, one.violation), []).append(one)
    order: list[Result] = []
    for _, block in sorted(alike.items()):
        order += _by_front(block, careful - len(order))
    return order + sorted(bad, key=lambda one: one.number)


def _by_front(results: Sequence[Result], careful: int) -> list[Result]:
    """Steps 4 to 6 of the order, among results that are alike in the others."""
    ranks = Ranks()
    for one in results:
        ranks.insert(one.number, one.values)
    fronts: dict[int, list[Result]] = {}
    for one in results:
        fronts.setdefault(ranks.rank(one.values), []).append(one)
    reference = _reference([one.values for one in results])
    order: list[Result] = []
    for _, front in sorted(fronts.items()):
        shares = [0.0] * len(front)
        if len(order) < careful:
            shares = exclusive_hypervolumes([one.values for one in front], reference)
        order += [
            one for _, one in sorted(zip(shares, front, strict=True), key=lambda pair: (-pair[0], pair[1].number))
        ]
    return order


def _reference(points: Sequence[Point]) -> tuple[float, ...]:
    """A point that lies beyond all of these in every objective, so that each of them dominates something."""
    columns = list(zip(*points, strict=True))
    return tuple(max(column) + MARGIN * ((max(column) - min(column)) or 1.0) for column in columns)
