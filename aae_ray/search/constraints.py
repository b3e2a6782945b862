"""Constraints on metrics: what a trial must fulfil to be chosen while there is one that does.

A trial that violates a constraint is worse than every one that violates none, and of two that do, the one with the
smaller violation is better (constrained domination, Deb 2000).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from aae_ray import settings
from aae_ray.errors import Kind, Problem, did_you_mean
from aae_ray.evaluation.metrics import METRICS
from aae_ray.reading import Entry

INFEASIBLE = 1e12  # beyond all values of a trial that is in good health
ROUNDING = 1e-9  # of a logarithm
OF_CLUSTERS: dict[str, Callable[[int], float]] = {  # the most that can be measured with so many clusters
    "val/clusters_used": float,
    "val/cluster_entropy_nats": math.log,
    "val/label_entropy_nats": math.log,
}


@dataclass(frozen=True)
class Constraint:
    """A bound on a metric."""

    metric: str
    op: str  # <= or >=
    bound: float

    def __str__(self) -> str:
        return f"{self.metric} {self.op} {self.bound:g}"

    def excess(self, metrics: Mapping[str, float]) -> float:
        """How far a trial lies beyond the bound, in the metric's unit; at most 0 where it keeps to it, and infinite
        where the metric is missing or not a number."""
        value = metrics.get(self.metric, math.nan)
        if math.isnan(value):
            return math.inf
        return value - self.bound if self.op == "<=" else self.bound - value


def constraints_of(study: settings.StudySettings) -> tuple[Constraint, ...]:
    """The constraints of a study."""
    return tuple(Constraint(*bound) for bound in study.bounds)


def parsed(texts: Iterable[str]) -> tuple[Constraint, ...]:
    """Constraints as study.constraints has them, a metric, `<=` or `>=`, and a number."""
    return constraints_of(settings.StudySettings(constraints=tuple(texts)))


def violation(constraints: Iterable[Constraint], metrics: Mapping[str, float]) -> float:
    """By how much a trial violates constraints, 0 where it fulfils them all: the sum of what it lies beyond each bound,
    as a share of the bound (of 1 for a bound of 0), so that metrics of different units add up."""
    return sum(max(constraint.excess(metrics), 0.0) / (abs(constraint.bound) or 1.0) for constraint in constraints)


def constrained(values: Sequence[float], beyond: float) -> tuple[float, ...]:
    """Values, smaller being better, as trials are compared by them: one that violates constraints is behind every one
    that violates none, whatever its values are, and before those that violate more."""
    return (INFEASIBLE * (1 + beyond),) * len(values) if beyond else tuple(values)


def constraint_problems(entry: Entry | None, clusters: int | None = None) -> list[Problem]:
    """What is wrong with the value of study.constraints beside its form: metrics that do not exist, and bounds that
    nobody can keep to, with at most so many clusters where all trials have some."""
    try:
        study = settings.StudySettings.model_validate({"constraints": entry.value if entry else ()})
    except ValueError:  # told as a wrong value of the key
        return []
    where, found = entry.where if entry else "", constraints_of(study)

    def problem(text: str) -> Problem:
        return Problem(("study.constraints",), Kind.VALUE, where, f"study.constraints: {text}")

    held_out = [name for name in METRICS if name.startswith("val/")]
    problems = [
        problem(f"{one.metric} is not a metric of held-out images.{did_you_mean(one.metric, held_out)}")
        for one in found
        if one.metric not in held_out
    ]
    for one in found:
        if one.metric not in held_out:
            continue
        (least, most), noise, given = METRICS[one.metric].limits, METRICS[one.metric].noise, ""
        if clusters is not None and one.metric in OF_CLUSTERS:
            most, given = OF_CLUSTERS[one.metric](clusters), f" with model.clusters of at most {clusters}"
        if one.op == "<=" and one.bound < least - noise:
            problems.append(problem(f"{one} cannot be met, as {one.metric} is never below {least:g}"))
        if one.op == ">=" and one.bound > most + noise + ROUNDING:
            problems.append(problem(f"{one} cannot be met, as {one.metric} is never above {most:.4g}{given}"))
    for upper in found:
        for lower in found:
            if (upper.metric, upper.op, lower.op) == (lower.metric, "<=", ">=") and lower.bound > upper.bound:
                problems.append(problem(f"{upper} and {lower} cannot be met together; remove one of them"))
    return problems
