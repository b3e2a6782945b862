"""Which trials go on at a rung.

At each rung (`grace_period` epochs, then `reduction_factor` times the rung before) a trial is put in order among all
trials that have reached the rung: by non-dominated front, and within a front by what it adds to it, its exclusive
hypervolume up to the worst of the objectives (`choice.reference_point`), or its crowding distance where there are not
two objectives. Then, by `study.pruner.type`:

asha      A trial goes on that is among the first ceil(n / reduction_factor) of the n that have come to the rung so
          far. The others are paused with their checkpoints, and the best paused trial goes on as soon as it is among
          them: before any new trial begins, those of the highest rung first. Who has gone on may fall behind later
          ones, so that in the end more than ceil(n / reduction_factor) have gone on.
median    Whoever is behind half of the trials at the rung is stopped.
pbt       Everybody is paused, and goes on when all have come as far, perhaps with another one's weights: `population`.
none      Everybody goes on.

A trial whose reconstructions are worse than the mean image is stopped at a rung, whatever else it is good at: codes of
an encoder that has learned nothing match their prior by themselves. Constraints are asked of those that were trained to
their end: at a rung nearly all violate them still, and would be put in order by that alone.

With `study.seeds_from_rung` the values at that rung and at later ones are means over the seeds of a configuration, and
whoever is there is paused until its verdict is sure: with its mean a standard error better or worse it would still be
among those that go on, or still among the others, or it has all its seeds (`racing`). A configuration of which one seed
is worse than the mean image, or was ended by a health check, stays where it is.

Else the first trial at a rung goes on at once: it has nobody to wait for. With one metric in place of the fronts this
is promotion-type ASHA (Li et al. 2020, algorithm 2) with ceil in place of floor.

The nearest rules of others have the same fronts, and ask of nobody to be better than the mean image. MO-ASHA (Schmucker
et al. 2021) fills the last front by an epsilon net or crowding distance; Syne Tune's MOASHA, by the net, stops for good
whom it does not let go on at once. OptunaHub's multi-metric pruner gives a trial's front at a step to a rule for one
metric; over Optuna's median it is `median` but within a front, and stops nobody on the first one. Tests hold all three
against each other on recorded curves.
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
from aae_ray.search.racing import Seeds, deviations, shifted
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
    """The configurations that have reached a rung, and what was decided on each of their trials."""

    def __init__(self) -> None:
        self.ranks = Ranks()  # of configurations, by the number of their first trial
        self.verdicts: dict[int, RungVerdict] = {}
        self.values: dict[int, dict[int, tuple[float, ...]]] = {}  # configuration -> trial -> what it had here
        self.paused = Queue(self.ranks)  # configurations

    def apply(self, decided: Decided, configuration: int) -> None:
        """Take a decision on a trial, which may be another seed of a configuration that has been here."""
        self.verdicts[decided.number] = decided.verdict
        if decided.number != configuration:
            self.take_seed(configuration, decided.number, decided.values)
            return
        self.values.setdefault(configuration, {}).setdefault(configuration, decided.values)
        self.ranks.insert(configuration, decided.values)
        if decided.verdict is RungVerdict.PAUSE:
            self.paused.add(configuration)
        else:
            self.paused.remove(configuration)

    def take_seed(self, configuration: int, number: int, values: tuple[float, ...]) -> None:
        """What another seed of a configuration had here, which moves its means."""
        of_seeds = self.values[configuration]
        if number in of_seeds:
            return
        of_seeds[number] = values
        self.ranks.move(configuration, self.seeds(configuration).means)
        waiting, self.paused = self.paused.numbers, Queue(self.ranks)
        for each in sorted(waiting):
            self.paused.add(each)

    def seeds(self, configuration: int) -> Seeds:
        """What the seeds of a configuration had here."""
        return Seeds(configuration, tuple(self.values[configuration].values()))

    @property
    def noise(self) -> tuple[float, ...] | None:
        """Standard deviation of each value over seeds, pooled; None before any configuration has two seeds here."""
        return deviations([seeds for seeds in map(self.seeds, self.values) if all(map(math.isfinite, seeds.means))])


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
            goes_on = ahead < self._places(reached) and not self.races_at(epoch)
            verdict = RungVerdict.CONTINUE if goes_on else self.rule.otherwise
        return Decided(number=number, rung=epoch, values=values, ahead=ahead, reached=reached, verdict=verdict)

    def decide_seed(
        self, number: int, configuration: int, epoch: int, metrics: Mapping[str, float], rung: Rung, farther: bool
    ) -> Decided:
        """The decision on another seed of a configuration that has been at the rung: it goes on where that has come
        farther, to a later rung, and never ahead of it."""
        verdict = RungVerdict.CONTINUE if farther else RungVerdict.PAUSE
        return self._seed_decided(number, configuration, epoch, self._values(metrics), rung, verdict)

    def let_seed_go_on(self, number: int, configuration: int, epoch: int, rung: Rung) -> Decided:
        """The decision that a paused seed goes on, as its configuration is asked for more."""
        values = rung.values[configuration][number]
        return self._seed_decided(number, configuration, epoch, values, rung, RungVerdict.CONTINUE)

    def _seed_decided(
        self,
        number: int,
        configuration: int,
        epoch: int,
        values: tuple[float, ...],
        rung: Rung,
        verdict: RungVerdict,
    ) -> Decided:
        ranks = rung.ranks
        ahead = ranks.ahead(configuration, ranks.values[configuration], self.reference)
        return Decided(number=number, rung=epoch, values=values, ahead=ahead, reached=len(ranks), verdict=verdict)

    def races_at(self, epoch: int) -> bool:
        """Whether configurations get further seeds at this rung."""
        first = self.study.seeds_from_rung
        return self.study.seeds_per_trial > 1 and first is not None and epoch >= first

    def undecided(self, epoch: int, rung: Rung) -> list[int]:
        """Configurations paused at a rung whose verdict other seeds may change, the best first."""
        if not self.races_at(epoch):
            return []
        found, places = [], self._places(len(rung.ranks))
        for place, number in enumerate(rung.ranks.order(self.reference)):
            if number not in rung.paused.numbers:
                continue
            if self._is_open(rung, number):
                found.append(number)
            elif place >= places:  # those behind it are farther off
                break
        return found

    def _is_open(self, rung: Rung, number: int) -> bool:
        """Whether a configuration with fewer than all its seeds may be on the other side of the line between those that
        go on and the others. Before any noise is known, whoever would go on gets a second seed."""
        seeds, noise, places = rung.seeds(number), rung.noise, self._places(len(rung.ranks))
        if len(seeds.values) >= self.study.seeds_per_trial or not all(map(math.isfinite, seeds.means)):
            return False
        inside = rung.ranks.ahead(number, seeds.means, self.reference) < places
        if noise is None:
            return inside
        others = Ranks()
        for each, values in rung.ranks.values.items():
            if each != number:
                others.insert(each, values)
        moved = shifted(seeds, noise, 1.0 if inside else -1.0)
        return (others.ahead(number, moved, self.reference) < places) is not inside

    def promote(self, epoch: int, rung: Rung) -> Decided | None:
        """The decision that the best configuration paused at a rung goes on, if later results have put it ahead and no
        other seed may change that."""
        if self.rule.population:
            return None
        number, reached = rung.paused.best(self.reference), len(rung.ranks)
        if number is None:
            return None
        values = rung.ranks.values[number]
        ahead = rung.ranks.ahead(number, values, self.reference)
        if ahead >= self._places(reached):
            return None
        if self.races_at(epoch) and (self._is_open(rung, number) or not all(map(math.isfinite, values))):
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
