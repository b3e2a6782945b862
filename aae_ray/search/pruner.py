"""Asynchronous successive halving on several objectives: which trials go on at a rung.

The rule: at each rung (`grace_period` epochs, then `reduction_factor` times the rung before) a trial is ranked among
all trials that have reached the rung, by non-dominated front. It is stopped when as many trials as one in
`reduction_factor` of them lie on better fronts. So a trial on the first front is never stopped; nor is anyone before
`reduction_factor` trials have been there. With one metric instead of the front this is ordinary ASHA (Li et al. 2020).
"""

import math
from collections.abc import Mapping

from aae_ray import settings
from aae_ray.evaluation.metrics import METRICS
from aae_ray.search.events import Decided
from aae_ray.search.objectives import Ranks


def rungs(pruner: settings.Pruner, epochs: int) -> list[int]:
    """The epochs at which trials are measured in full, and compared, below the full budget."""
    levels, rung = [], pruner.grace_period
    while rung < epochs:
        levels.append(rung)
        rung *= pruner.reduction_factor
    return levels


def judged_values(study: settings.StudySettings, metrics: Mapping[str, float]) -> tuple[float, ...]:
    """What a trial is compared by, smaller the better; infinite where it is missing or not finite."""
    names = study.objectives if study.pruner.metric == "front" else (study.pruner.metric,)
    values = [METRICS[name].sign * metrics.get(name, math.nan) for name in names]
    return tuple(value if math.isfinite(value) else math.inf for value in values)


def decide(number: int, rung: int, values: tuple[float, ...], others: Ranks | None, factor: int) -> Decided:
    """The decision on a trial that has reached a rung, where `others` have been before."""
    reached = 1 + (len(others) if others else 0)
    better = others.better(values) if others else 0
    stop = reached >= factor and better >= math.ceil(reached / factor)
    return Decided(number=number, rung=rung, values=values, better=better, reached=reached, stop=stop)
