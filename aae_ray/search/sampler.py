"""Optuna under Ray Tune: suggests trials, and is told truthfully how each of them ended.

Ray's own OptunaSearch tells a pruned trial as complete with an early value, and leaves trials with a NaN running for
ever, which misleads the sampler; and it needs a non-empty space, which a single training run has not.
"""

import math
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from ray.tune.search import Searcher

from aae_ray import settings
from aae_ray.search.pruner import EPOCH
from aae_ray.search.space import Plan

JOURNAL = "optuna_journal.log"


def build_sampler(sampler: settings.Sampler) -> BaseSampler:
    if sampler.type == "nsga2":
        return NSGAIISampler(seed=sampler.seed)
    if sampler.type == "random":
        return RandomSampler(seed=sampler.seed)
    return TPESampler(seed=sampler.seed, multivariate=True, group=True, constant_liar=True)


def create_study(plan: Plan, study_id: str, folder: Path) -> optuna.Study:
    """A new Optuna study, journaled in the study's folder so that Optuna's own tools can read it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # grouped TPE, names of metrics
        study = optuna.create_study(
            study_name=study_id,
            storage=storage,
            sampler=build_sampler(plan.settings.study.sampler),
            directions=[f"{direction}imize" for direction in plan.directions],
        )
        study.set_metric_names(list(plan.settings.study.objectives))
    for point in plan.start:
        study.enqueue_trial(point)
    return study


class OptunaSearcher(Searcher):  # type: ignore[misc]
    """Ray Tune asks it for trials; final states are COMPLETE, PRUNED (stopped early) or FAIL, never left RUNNING."""

    def __init__(self, study: optuna.Study, plan: Plan) -> None:
        super().__init__(metric=list(plan.settings.study.objectives), mode=plan.directions)
        self.study = study
        self.space = plan.space
        self.objectives = plan.settings.study.objectives
        self.numbers: dict[str, int] = {}  # Tune's trial id -> Optuna's number
        self.open: dict[str, optuna.Trial] = {}
        self.reported: dict[str, int] = {}  # the last epoch that the sampler was told of

    def suggest(self, trial_id: str) -> dict[str, Any]:
        trial = self.study.ask(fixed_distributions=self.space)
        trial.set_user_attr("trial_id", trial_id)
        self.open[trial_id], self.numbers[trial_id] = trial, trial.number
        return dict(trial.params)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """With one objective the sampler also learns from pruned trials; Optuna takes no such reports with several."""
        value = float(result.get(self.objectives[0], math.nan))
        if len(self.objectives) > 1 or trial_id not in self.open or not math.isfinite(value):
            return
        if self.reported.get(trial_id) != result[EPOCH]:
            self.reported[trial_id] = int(result[EPOCH])
            self.open[trial_id].report(value, int(result[EPOCH]))

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna the end of a trial by our own protocol: the values at the end of its budget count."""
        if trial_id not in self.open:
            return
        self.on_trial_result(trial_id, result or {})  # Tune does not hand on the result that a scheduler stops
        trial = self.open.pop(trial_id)
        values = [float((result or {}).get(name, math.nan)) for name in self.objectives]
        state = final_state(result, error, values)
        self.study.tell(trial, values if state is TrialState.COMPLETE else None, state=state)

    def close(self, *, failed: bool = False) -> None:
        """Trials that Tune never told the end of were stopped early (time is up, Ctrl-C), or failed with the search."""
        for trial_id in list(self.open):
            self.on_trial_complete(trial_id, error=failed)

    def save(self, checkpoint_path: str) -> None:
        with open(checkpoint_path, "wb") as file:
            pickle.dump({"numbers": self.numbers}, file)

    def restore(self, checkpoint_path: str) -> None:
        with open(checkpoint_path, "rb") as file:
            self.__dict__.update(pickle.load(file))


def final_state(result: Mapping[str, Any] | None, error: bool, values: list[float]) -> TrialState:
    """COMPLETE: trained to the end, all objectives finite. FAIL: an error or a failure. PRUNED: stopped early."""
    if error or (result or {}).get("failed"):
        return TrialState.FAIL
    if result and result.get("finished"):
        return TrialState.COMPLETE if all(map(math.isfinite, values)) else TrialState.FAIL
    return TrialState.PRUNED
