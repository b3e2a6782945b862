"""Which trial of a front is the best one: by references that are the same for every study of the data.

A front's own scale would choose by the front: of two points the first one, whatever they are. So each objective is
scaled between a `best` and a `worst` that stand in the table of metrics: a reconstruction error between 0 and that of
the mean image, a divergence between what equal distributions get (its floor) and what it can be at most (log 2).
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from aae_ray import settings
from aae_ray.evaluation.metrics import METRICS
from aae_ray.search.objectives import exclusive_hypervolumes

RULES = ("nearest_to_ideal", "first_objective", "hypervolume")  # of study.select, beside names of metrics
DIGITS = 9  # to which trials are equally near

Metrics = Mapping[str, float]


def scaled(name: str, metrics: Metrics) -> float:
    """A metric between its references: 0 is the best, 1 the worst, more is worse still; NaN where it is not measured.

    What is better than the best, as a divergence may be by chance, is 0. A metric without a worst, or whose worst was
    not measured, keeps its own unit.
    """
    metric = METRICS[name]
    distance = metric.sign * (metrics.get(name, math.nan) - metric.best.of(metrics))
    span = math.nan if metric.worst is None else abs(metric.worst.of(metrics) - metric.best.of(metrics))
    span = 1.0 if math.isnan(span) else span
    return max(distance / span, 0.0) if span and not math.isnan(distance) else distance


def reference_point(objectives: Sequence[str], metrics: Metrics) -> tuple[float, ...] | None:
    """The worst of every objective, smaller being better, as a trial has measured it; None where one has none, or has
    not been measured yet."""
    point = []
    for name in objectives:
        worst = METRICS[name].worst
        if worst is None or math.isnan(worst.of(metrics)):
            return None
        point.append(METRICS[name].sign * worst.of(metrics))
    return tuple(point)


def judged_by(objectives: Sequence[str], rule: str) -> set[str]:
    """The metrics that a choice looks at: what has to be known of a trial to take part in it."""
    names = {*objectives} if rule in RULES else {*objectives, rule}
    return names | references(names)


def references(names: Iterable[str]) -> set[str]:
    """The metrics that say what others can be at their best and worst: the mean image's error, floors of estimates."""
    limits = [limit for name in names for limit in (METRICS[name].best, METRICS[name].worst) if limit is not None]
    return {limit.measured for limit in limits if limit.measured is not None}


def compared(study: settings.StudySettings) -> set[str]:
    """The metrics by which a study's configurations are compared: those of its choice and of its constraints."""
    return judged_by(study.objectives, study.select) | {metric for metric, _, _ in study.bounds}


def means(seeds: Sequence[Metrics]) -> dict[str, float]:
    """Mean of each metric over seeds, of those that every seed has."""
    names = set(seeds[0]).intersection(*seeds[1:])
    return {name: sum(metrics[name] for metrics in seeds) / len(seeds) for name in names}


def select(front: Sequence[Metrics], objectives: Sequence[str], rule: str) -> int:
    """Index of the best of these trials of a front by the rule of `study.select`.

    nearest_to_ideal    the nearest to the best of all objectives, each scaled by its references; of equally near ones
                        the one with the smallest product
    first_objective     the best in the first objective; the next ones break ties
    hypervolume         the one that dominates most which no other one does, up to the worst of all objectives
    a metric's name     the best in it, among those of the front; the nearest to the ideal of equal ones

    Of trials that are equal by the rule the first one is chosen.
    """
    points = [[scaled(name, metrics) for name in objectives] for metrics in front]
    nearness = [(round(math.hypot(*point), DIGITS), math.prod(point)) for point in points]
    indices = range(len(front))
    if rule == "first_objective":
        return min(indices, key=lambda index: points[index])
    if rule == "hypervolume":
        volumes = exclusive_hypervolumes(points, [1.0] * len(objectives))
        return min(indices, key=lambda index: (-volumes[index], *nearness[index]))
    if rule == "nearest_to_ideal":
        return min(indices, key=lambda index: nearness[index])
    values = [METRICS[rule].sign * metrics.get(rule, math.nan) for metrics in front]
    return min(indices, key=lambda index: (_last(values[index]), *nearness[index]))


def in_order(front: Sequence[Metrics], objectives: Sequence[str], rule: str) -> list[int]:
    """Indices of these trials, the best one first: each is the best of those that are left."""
    left, order = list(range(len(front))), list[int]()
    while left:
        order.append(left.pop(select([front[index] for index in left], objectives, rule)))
    return order


def score(metrics: Metrics, objectives: Sequence[str], rule: str) -> float:
    """How good a trial is by itself by the rule of `study.select`, the less the better: what `select` compares, for
    means and errors over seeds. Of `hypervolume` it is what the trial leaves undominated."""
    points = [scaled(name, metrics) for name in objectives]
    if rule == "nearest_to_ideal":
        return math.hypot(*points)
    if rule == "first_objective":
        return points[0]
    if rule == "hypervolume":
        return 1.0 - math.prod(max(1.0 - value, 0.0) for value in points)
    return METRICS[rule].sign * metrics.get(rule, math.nan)


def _last(value: float) -> float:
    return value if math.isfinite(value) else math.inf
