"""Which trials go on at a rung.

At each rung (`grace_period` epochs, then `reduction_factor` times the rung before) a trial is put in order among all
trials that have reached the rung: by non-dominated front, and within a front by what it adds to it, its exclusive
hypervolume up to the worst of the objectives (`choice.reference_point`), or its crowding distance where there are not
two objectives. Then, by `study.pruner.type`:

asha      Of n trials at the rung the first ceil(n / reduction_factor) go on. The others are paused with their
          checkpoints, and the best paused trial goes on as soon as it is among the first ceil(n / reduction_factor):
          before any new trial begins, those of the highest rung first.
median    Whoever is behind half of the trials at the rung is stopped.
pbt       Everybody is paused, and goes on when all have come as far, perhaps with another one's weights: `population`.
none      Everybody goes on.

A trial whose reconstructions are worse than the mean image is stopped at a rung, whatever else it is good at: codes of
an encoder that has learned nothing match their prior by themselves. Constraints are asked of those that were trained to
their end: at a rung nearly all violate them still, and would be put in order by that alone.

The first trial at a rung goes on at once: it has nobody to wait for. With one metric in place of the fronts this is
promotion-type ASHA (Li et al. 2020, algorithm 2) with ceil in place of floor. MO-ASHA (Schmucker et al. 2021; Syne
Tune's MOASHA) has the same fronts, fills the last one by an epsilon-net in place of the hypervolume, and stops for good
whom it does not let go on.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from aae_ray import settings
from aae_ray.evaluation.metrics import METRICS
from aae_ray.search.events import Decided
from aae_ray.search.objectives import Point, Queue, Ranks
from aae_ray.search.outcomes import RungVerdict
from aae_ray.training.health import worse_than_the_mean_image


class Rule(NamedTuple):
    """A type of pruner: a trial goes on while fewer than the share `kept` of the trials at its rung come before it."""

    kept: float | None  # of the trials at a rung; None: one in reduction_factor
    otherwise: RungVerdict
    asks_for_more_than_the_mean_image: bool = True
    population: bool = False  # all trials go on together


PRUNERS = {
    "asha": Rule(None, RungVerdict.PAUSE),
    "median": Rule(0.5, RungVerdict.STOP),
    "pbt": Rule(0.0, RungVerdict.PAUSE, asks_for_more_than_the_mean_image=False, population=True),
    "none": Rule(1.0, RungVerdict.STOP, asks_for_more_than_the_mean_image=False),
}


class Rung:
    """The trials that have reached a rung, and what was decided on each."""

    def __init__(self) -> None:
        self.ranks = Ranks()
        self.verdicts: dict[int, RungVerdict] = {}
        self.paused = Queue(self.ranks)

    def apply(self, decided: Decided) -> None:
        self.ranks.insert(decided.number, decided.values)
        self.verdicts[decided.number] = decided.verdict
        if decided.verdict is RungVerdict.PAUSE:
            self.paused.add(decided.number)
        else:
            self.paused.remove(decided.number)


@dataclass(frozen=True)
class Pruner:
    """The rule of a study. `worst` is the worst point of its objectives, where they have one."""

    study: settings.StudySettings
    worst: Point | None

    def decide(self, number: int, epoch: int, metrics: Mapping[str, float], rung: Rung | None) -> Decided:
        """The decision on a trial that has reached a rung, where others may have been before."""
        values = self._values(metrics)
        ranks = rung.ranks if rung else Ranks()
        ahead, reached = ranks.ahead(number, values, self.reference), len(ranks) + 1
        if worse_than_the_mean_image(metrics) and self.rule.asks_for_more_than_the_mean_image:
            verdict = RungVerdict.STOP
        else:
            verdict = RungVerdict.CONTINUE if ahead < self._places(reached) else self.rule.otherwise
        return Decided(number=number, rung=epoch, values=values, ahead=ahead, reached=reached, verdict=verdict)

    def promote(self, epoch: int, rung: Rung) -> Decided | None:
        """The decision that the best trial paused at a rung goes on, if later results have put it ahead."""
        if self.rule.population:
            return None
        number, reached = rung.paused.best(self.reference), len(rung.ranks)
        if number is None:
            return None
        values = rung.ranks.values[number]
        ahead = rung.ranks.ahead(number, values, self.reference)
        if ahead >= self._places(reached):
            return None
        return Decided(
            number=number, rung=epoch, values=values, ahead=ahead, reached=reached, verdict=RungVerdict.CONTINUE
        )

    @property
    def reference(self) -> Point | None:
        """Up to which hypervolumes are taken; None where a metric of its own decides, or an objective has no worst."""
        return self.worst if self.study.pruner.metric == "front" else None

    @property
    def rule(self) -> Rule:
        return PRUNERS[self.study.pruner.type]

    def _places(self, reached: int) -> int:
        """How many of the trials at a rung go on."""
        kept = self.rule.kept
        return math.ceil(reached / self.study.pruner.reduction_factor if kept is None else reached * kept)

    def _values(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """What a trial is compared by, smaller the better; infinite where it is missing, not finite, or of no worth."""
        names = self.study.objectives if self.study.pruner.metric == "front" else (self.study.pruner.metric,)
        if worse_than_the_mean_image(metrics):
            return (math.inf,) * len(names)
        values = [METRICS[name].sign * metrics.get(name, math.nan) for name in names]
        return tuple(value if math.isfinite(value) else math.inf for value in values)


def rungs(pruner: settings.Pruner, epochs: int) -> list[int]:
    """The epochs at which trials are measured in full, and compared, below the full budget."""
    if PRUNERS[pruner.type].population:
        return list(range(pruner.grace_period, epochs, pruner.grace_period))
    levels, rung = [], pruner.grace_period
    while rung < epochs:
        levels.append(rung)
        rung *= pruner.reduction_factor
    return levels
