"""What the platform's samplers and pruners are compared with: samplers as Optuna ships them, and peers' stopping rules.

A rule is asked when a trial has reached a rung, and knows what all trials had at all rungs: both objectives in units of
the reference point, smaller is better. The rules are written anew after papers, documentation and sources.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from aae_ray.search.ledger import Ledger
from aae_ray.search.objectives import Ranks, hypervolume
from aae_ray.search.sampler import Sampler, final_state, objective_values
from benchmarks.search_table import Point

WORST = 10.0  # of the reference: stands for what was not measured, where distances are taken


@dataclass
class Rungs:
    """What has been seen at the rungs so far."""

    factor: int  # one trial in so many goes on
    at: dict[int, dict[int, Point]] = field(default_factory=dict)  # rung -> trial -> objectives, in order of arrival
    ended: set[int] = field(default_factory=set)  # trials that are over, stopped ones among them

    def reached(self, number: int, rung: int, point: Point) -> None:
        self.at.setdefault(rung, {})[number] = point


Rule = Callable[[Rungs, int, int], bool]  # of a trial's number and the rung that it has just reached: is it stopped


def asha(rungs: Rungs, number: int, rung: int) -> bool:
    """Successive halving on one scalar, here the mean of both objectives: a trial goes on when it is among the best
    `n // factor` of the n that have been there, or the best of all. (Li et al. 2020, "A system for massively parallel
    hyperparameter tuning", as Optuna's `SuccessiveHalvingPruner` has it, which stops and never pauses.)"""
    scores = [sum(point) for point in rungs.at[rung].values()]
    own = sum(rungs.at[rung][number])
    return sum(score < own for score in scores) >= max(len(scores) // rungs.factor, 1)


def moasha(rungs: Rungs, number: int, rung: int) -> bool:
    """Syne Tune's `MOASHA`: the trials at a rung are ordered by non-dominated front, and within a front by an epsilon
    net; a trial is stopped when more than one in `factor` of all come before it; the first one goes on. (Schmucker et
    al. 2021, "Multi-objective asynchronous successive halving"; the net is that of Salinas et al. 2021.) Distances are
    taken in units of the reference point, which is kinder to it than those of the raw values. This is the rule as
    documented: the source ranks by `nondominated_sort`, which lists the trials in order, where places are meant."""
    numbers, points = list(rungs.at[rung]), np.minimum(list(rungs.at[rung].values()), WORST)
    front_of = pareto_ranks([tuple(point) for point in points])
    order: list[int] = []
    for front in sorted(set(front_of)):
        members = np.flatnonzero(np.array(front_of) == front)
        order += [numbers[index] for index in members[epsilon_net(points[members])]]
    return len(order) > 1 and order.index(number) / len(order) > 1 / rungs.factor


def multi_metric(rungs: Rungs, number: int, rung: int, startup_trials: int = 5) -> bool:
    """OptunaHub's `MultiMetricPruner` in its joint mode over Optuna's `MedianPruner` with its defaults: a trial is
    stopped when the best of its `joint_ranks` so far is worse than the median at this rung of the trials that are over;
    the first five are let through. (OptunaHub's registry, `pruners/multi_metric_pruner`, README and source of 2026.)"""
    over = rungs.ended & {each for points in rungs.at.values() for each in points}
    if len(over) < startup_trials:
        return False
    ranks = {level: joint_ranks(points, number) for level, points in rungs.at.items() if number in points}
    others = [rank for each, rank in ranks[rung].items() if each in over]
    return bool(others) and min(of[number] for of in ranks.values()) > median(others)


def joint_ranks(points: Mapping[int, Point], number: int) -> dict[int, float]:
    """What the joint mode takes for the values at a rung when it is asked about a trial: the front of each trial, 0 the
    best; of the trial's own front each is better by 0.5 to 0.1, in the order of what they add; and a trial on the first
    front has -1, so that it is never stopped."""
    numbers = [*sorted(points.keys() - {number}), number]
    values_N2 = np.minimum([points[each] for each in numbers], WORST)
    front_of = dict(zip(numbers, pareto_ranks([tuple(point) for point in values_N2]), strict=True))
    ranks = {each: float(front) for each, front in front_of.items()}
    alike = [index for index, each in enumerate(numbers) if front_of[each] == front_of[number]]
    if front_of[number] == 0:
        ranks[number] = -1.0
    elif len(alike) > 1:
        order = by_hypervolume(values_N2[alike])
        for index, better in zip(order, np.linspace(0.5, 0.1, len(alike)).tolist(), strict=True):
            ranks[numbers[alike[index]]] -= better
    return ranks


def pareto_ranks(points: Sequence[Point]) -> list[int]:
    """The non-dominated front of each point, 0 the best."""
    ranks = Ranks()
    for index, point in enumerate(points):
        ranks.insert(index, point)
    return [ranks.rank(point) for point in points]


def epsilon_net(points_N2: NDArray[np.float64]) -> list[int]:
    """Points in such an order that each is the farthest from those before it; the best first objective begins."""
    order = [int(points_N2[:, 0].argmin())]
    gaps_N = np.linalg.norm(points_N2 - points_N2[order[0]], axis=1)
    while len(order) < len(points_N2):
        gaps_N[order] = -1.0
        order.append(int(gaps_N.argmax()))
        gaps_N = np.minimum(gaps_N, np.linalg.norm(points_N2 - points_N2[order[-1]], axis=1))
    return order


def by_hypervolume(points_N2: NDArray[np.float64]) -> list[int]:
    """Points in such an order that each adds most hypervolume to those before it, up to a little beyond the worst of
    them; equal ones are next to each other."""
    worst_2 = points_N2.max(0)
    reference = tuple(np.maximum(1.1 * worst_2, 0.9 * worst_2).tolist())
    left, chosen = [tuple(point) for point in np.unique(points_N2, axis=0).tolist()], list[Point]()
    while left:
        chosen.append(max(left, key=lambda point: hypervolume([*chosen, point], reference)))
        left.remove(chosen[-1])
    return [index for point in chosen for index in np.flatnonzero((points_N2 == point).all(1)).tolist()]


# ----------------------------------------------------------------------------------------------------------- samplers


class OptunaSampler(Sampler):
    """A sampler as Optuna ships it, asked and told as Optuna's users do: the values of trials that came to their end,
    and of the others that they were pruned. It takes the place of the platform's own in a conductor."""

    def __init__(self, ledger: Ledger, sampler: BaseSampler) -> None:
        super().__init__(ledger)
        self.own = optuna.create_study(sampler=sampler, directions=["minimize"] * len(self.plan.directions))
        self.asked: dict[int, int] = {}  # our number of a trial that Optuna was not told of -> Optuna's

    def suggest(self, number: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
        self._tell()
        trial = self.own.ask(fixed_distributions=self.plan.space)
        self.asked[number] = trial.number
        return dict(trial.params), {}

    def _tell(self) -> None:
        """Tell Optuna of the trials that have ended since it was asked last."""
        ended = [self.ledger.trials[number] for number in self.asked if self.ledger.trials[number].reason is not None]
        for trial in ended:
            state = final_state(trial)
            values = objective_values(trial.metrics, self.plan) if state is TrialState.COMPLETE else None
            self.own.tell(self.asked.pop(trial.number), values, state=state)


# -------------------------------------------------------------------------------------------------------------- pairs


@dataclass(frozen=True)
class Pair:
    """A sampler with a pruner: of the platform, by its settings, or a rival's."""

    settings: Mapping[str, Any]
    sampler: Callable[[int], BaseSampler] | None = None  # of a seed; the platform's own when not given
    rule: Rule | None = None  # in place of the platform's pruner


def _rival(sampler: Callable[[int], BaseSampler], rule: Rule | None = None) -> Pair:
    return Pair({"study.pruner.type": "none"}, sampler, rule)


RIVALS: dict[str, Pair] = {
    "random": _rival(lambda seed: RandomSampler(seed=seed)),
    "optuna-tpe": _rival(lambda seed: TPESampler(seed=seed)),
    "optuna-nsga2": _rival(lambda seed: NSGAIISampler(seed=seed)),
    "scalar-asha": _rival(lambda seed: RandomSampler(seed=seed), asha),
    "syne-tune-moasha": _rival(lambda seed: RandomSampler(seed=seed), moasha),
    "optunahub-multi-metric": _rival(lambda seed: TPESampler(seed=seed), multi_metric),
}
