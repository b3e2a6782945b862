"""Optuna as a sampler: rebuilt in memory from the ledger, told truthfully how each trial ended.

What is suggested is a function of the seed, the trial's number and the trials before it, so a resumed study suggests
what the unbroken one would have. Final states are COMPLETE, PRUNED (stopped early) or FAIL.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from aae_ray import settings
from aae_ray.search.distributions import Space
from aae_ray.search.events import PriorTrial
from aae_ray.search.ledger import Ledger, TrialRecord
from aae_ray.search.outcomes import State
from aae_ray.search.points import fits, points
from aae_ray.search.space import Plan

COPY = "optuna_journal.log"  # for Optuna's own tools, in the study's folder
FIXED = "fixed_params"  # how Optuna remembers a start point
TRIES = 20  # draws for one trial: a configuration that was tried is drawn again


def build_sampler(sampler: settings.Sampler, seed: int) -> BaseSampler:
    if sampler.type == "nsga2":
        return NSGAIISampler(seed=seed)
    if sampler.type == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # grouped TPE
        return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def new_study(plan: Plan, name: str, storage: JournalStorage | None = None) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # names of metrics
        study = optuna.create_study(
            study_name=name, storage=storage, directions=[f"{direction}imize" for direction in plan.directions]
        )
        study.set_metric_names(list(plan.settings.study.objectives))
    return study


class Sampler:
    """Suggests configurations, and learns from every trial of the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        assert ledger.started is not None
        self.plan = ledger.current_plan
        self.study = new_study(self.plan, ledger.started.study_id)
        self.numbers: dict[int, int] = {}  # our number of a trial -> Optuna's
        self.added = 0
        self.tried: set[tuple[Any, ...]] = set()  # configurations that were suggested
        for prior in ledger.started.warm_start:
            self._add_prior(prior)
        for trial in ledger.trials:
            self._add(trial)

    def suggest(self, number: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Parameters for the trial of this number, and what Optuna keeps with it; None when all were tried."""
        start = self.plan.start
        for attempt in range(TRIES + 1):
            seed = np.random.SeedSequence((self.plan.settings.study.sampler.seed, number, attempt))
            self.study.sampler = build_sampler(self.plan.settings.study.sampler, int(seed.generate_state(1)[0]))
            if attempt == 0 and number < len(start):
                self.study.enqueue_trial(start[number])
            if attempt == TRIES:  # of a few points, the last ones are hardly ever drawn
                untried = next((point for point in points(self.plan.space) if self.key(point) not in self.tried), None)
                if untried is None:
                    return None
                self.study.enqueue_trial(untried)
            trial = self.study.ask(fixed_distributions=self.plan.space)
            self.added += 1
            if self.key(trial.params) not in self.tried or not self.plan.space:
                self.tried.add(self.key(trial.params))
                self.numbers[number] = trial.number
                kept = self.study._storage.get_trial(trial._trial_id).system_attrs
                return dict(trial.params), {key: value for key, value in kept.items() if key != FIXED}
            self.study.tell(trial.number, state=TrialState.FAIL)
        return None

    def ended(self, trial: TrialRecord) -> None:
        """Learn how a trial ended."""
        if trial.number not in self.numbers:
            return
        number, state = self.numbers[trial.number], final_state(trial)
        if len(self.plan.directions) == 1 and state is TrialState.PRUNED:
            # With one objective the sampler also learns from pruned trials; Optuna takes no such reports with several.
            storage = self.study._storage
            trial_id = storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)
            for epoch, value in trial.intermediate_values.items():
                storage.set_trial_intermediate_value(trial_id, epoch, value)
        values = objective_values(trial, self.plan) if state is TrialState.COMPLETE else None
        self.study.tell(number, values, state=state)

    def key(self, params: Mapping[str, Any]) -> tuple[Any, ...]:
        """A configuration, its seed included where that is searched."""
        return tuple(sorted((name, repr(value)) for name, value in params.items()))

    def _add(self, trial: TrialRecord) -> None:
        self.tried.add(self.key(trial.params))
        if not fits(trial.params, self.plan.space):  # of a space that has changed since
            return
        self.study.add_trial(frozen_trial(trial, self.plan))
        self.numbers[trial.number] = self.added
        self.added += 1

    def _add_prior(self, prior: PriorTrial) -> None:
        if prior.same_settings:
            self.tried.add(self.key(prior.params))
        if fits(prior.params, self.plan.space):
            self.added += 1
            self.study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    params=dict(prior.params),
                    distributions=dict(self.plan.space),
                    values=list(prior.values),
                    user_attrs={"source": prior.source},
                )
            )


def optuna_study(ledger: Ledger) -> optuna.Study:
    """The ended trials as a study in memory, for Optuna's plots."""
    assert ledger.started is not None
    study = new_study(ledger.current_plan, ledger.started.study_id)
    study.add_trials([_dated(trial) for trial in ledger.trials if not trial.open])
    return study


def final_state(trial: TrialRecord) -> TrialState:
    """COMPLETE: trained to the end, all objectives finite. FAIL: a failure. PRUNED: stopped early."""
    if trial.state is State.FAILED:
        return TrialState.FAIL
    return TrialState.COMPLETE if trial.state is State.COMPLETE else TrialState.PRUNED


def objective_values(trial: TrialRecord, plan: Plan) -> list[float]:
    return [float(trial.metrics.get(name, math.nan)) for name in plan.settings.study.objectives]


def frozen_trial(trial: TrialRecord, plan: Plan) -> FrozenTrial:
    """A trial as Optuna keeps it; one that is open is RUNNING."""
    state = TrialState.RUNNING if trial.open else final_state(trial)
    single = len(plan.directions) == 1
    return create_trial(
        state=state,
        params=dict(trial.params),
        distributions=_distributions(trial.params, plan.space, trial.plan.space),
        values=objective_values(trial, plan) if state is TrialState.COMPLETE else None,
        intermediate_values=dict(trial.intermediate_values) if single and state is TrialState.PRUNED else {},
        user_attrs={"trial": trial.name},
        system_attrs=dict(trial.sampler_state),
    )


def _distributions(params: Mapping[str, Any], *spaces: Space) -> Space:
    return {name: next(space[name] for space in spaces if name in space) for name in params}


# ------------------------------------------------------------------------------------------------ Optuna's own tools


class NoLock:
    """The owner of a study is the only one that writes its copy. Optuna's own lock outlives a process that is killed,
    and who waits for it waits half a minute, or for ever where the folder has moved."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        """Nothing was taken."""


class OptunaCopy:
    """The ended trials in Optuna's own journal format, for optuna-dashboard. A copy: nothing reads from it here."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        """Write the copy anew: trials that had ended with their study may have gone on since."""
        assert ledger.started is not None
        path = folder / COPY
        path.unlink(missing_ok=True)
        storage = JournalStorage(JournalFileBackend(str(path), NoLock()))
        self.study = new_study(ledger.current_plan, ledger.started.study_id, storage)
        self.written: set[int] = set()
        self.add(ledger, [trial for trial in ledger.trials if not trial.open])

    def add(self, ledger: Ledger, trials: Sequence[TrialRecord]) -> None:
        """Add trials that have ended. Raises OSError when the file cannot be written."""
        for trial in trials:
            if trial.number not in self.written:
                self.study.add_trial(_dated(trial))
                self.written.add(trial.number)


def _dated(trial: TrialRecord) -> FrozenTrial:
    """With the distributions that it was drawn from; parameters lie within these even where the space has changed."""
    frozen = frozen_trial(trial, trial.plan)
    if trial.started is not None and trial.ended is not None:
        frozen.datetime_start = datetime.fromtimestamp(trial.started)
        frozen.datetime_complete = datetime.fromtimestamp(trial.ended)
    return frozen
