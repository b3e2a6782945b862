"""Asynchronous successive halving on several objectives: which trials go on at a rung.

The rule: at each rung (`grace_period` epochs, then `reduction_factor` times the rung before) a trial is ranked among
all trials that have reached the rung, by non-dominated front. It is stopped when as many trials as one in
`reduction_factor` of them lie on better fronts. So a trial on the first front is never stopped; nor is anyone before
`reduction_factor` trials have been there. With one metric instead of the front this is ordinary ASHA (Li et al. 2020).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from aae_ray import settings
from aae_ray.evaluation.metrics import METRICS
from aae_ray.search.objectives import fronts

EPOCH = "epoch"  # the key of a result that counts the epochs


def rungs(pruner: settings.Pruner, epochs: int) -> list[int]:
    """The epochs at which trials are compared, below the full budget."""
    if pruner.type == "none":
        return []
    found, rung = [], pruner.grace_period
    while rung < epochs:
        found.append(rung)
        rung *= pruner.reduction_factor
    return found


class FrontPruner(FIFOScheduler):  # type: ignore[misc]
    """The rule above as a Ray Tune scheduler. A result without a finite value of a metric counts as infinitely bad."""

    def __init__(self, study: settings.Study, epochs: int) -> None:
        super().__init__()
        metrics = study.objectives if study.pruner.metric == "front" else (study.pruner.metric,)
        self.signs = {name: -1.0 if METRICS[name].direction == "max" else 1.0 for name in metrics}
        self.factor = study.pruner.reduction_factor
        self.reached: dict[int, dict[str, list[float]]] = {rung: {} for rung in rungs(study.pruner, epochs)}

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        rung = self.reached.get(int(result[EPOCH]))
        if rung is None:
            return str(TrialScheduler.CONTINUE)
        rung[trial.trial_id] = self._values(result)
        keep = self.passes(trial.trial_id, rung)
        return str(TrialScheduler.CONTINUE if keep else TrialScheduler.STOP)

    def passes(self, trial_id: str, rung: Mapping[str, Sequence[float]]) -> bool:
        """Whether a trial goes on, given the values of all trials that have reached the rung."""
        if len(rung) < self.factor:
            return True
        ranks = dict(zip(rung, fronts(list(rung.values())), strict=True))
        better = sum(rank < ranks[trial_id] for rank in ranks.values())
        return better < math.ceil(len(rung) / self.factor)

    def _values(self, result: Mapping[str, Any]) -> list[float]:
        values = [sign * float(result.get(name, math.nan)) for name, sign in self.signs.items()]
        return [value if math.isfinite(value) else math.inf for value in values]
