"""What is tried next: a table of samplers, most of them Optuna's, over the ledger.

What is suggested is a function of the seed, the trial's number and the ledger, so a resumed study suggests what the
unbroken one would have: a study of Optuna's is made anew in memory for each suggestion. Of the trials so far it shows a
sampler what that one can learn from: one value each, their place in the order of `ranking` (tpe, nsga2); the objectives
and constraints of the complete ones (gp); or nothing. Those under way are RUNNING in it.

The copy for Optuna's own tools has the values as they were measured, means over seeds where there are several, and as
final states COMPLETE, PRUNED (stopped early) or FAIL.
"""

import copy
import itertools
import math
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from aae_ray import settings
from aae_ray.search.conditions import is_active, parents_first
from aae_ray.search.constraints import constraints_of
from aae_ray.search.distributions import Space, at_quantile
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import State
from aae_ray.search.points import LARGEST_GRID, fits, points, space_size
from aae_ray.search.ranking import UNDER_WAY, Standing, ranked, result, result_of
from aae_ray.search.space import Plan
from aae_ray.search.trial_record import TrialRecord
from aae_ray.settings.rules import largest_population

COPY = "optuna_journal.log"  # for Optuna's own tools, in the study's folder
FIXED = "fixed_params"  # how Optuna remembers a start point
TRIES = 20  # draws for one trial: a configuration that was tried is drawn again
USUAL_POPULATION = 50  # of Optuna's nsga2

# -------------------------------------------------------------------------------------------------- what it is shown


class Shown(FrozenTrial):  # type: ignore[misc]
    """A trial in a study that lives for one suggestion. Nothing changes it, so that it need not be copied deeply, which
    would take most of the time of a suggestion."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Shown":
        return copy.copy(self)


@dataclass(frozen=True)
class History:
    """The trials that a sampler is shown, with values for these directions."""

    directions: Sequence[str] = ("minimize",)
    trials: Sequence[Shown] = ()
    good: int = 0  # those among them of which something good can be learnt


def nothing(ledger: Ledger) -> History:
    """For a sampler that does not learn."""
    return History()


def places(ledger: Ledger) -> History:
    """Every trial that fits the space, with its place in the order of `ranking` as its only value."""
    assert ledger.started is not None
    plan, objectives, prior = ledger.current_plan, ledger.objectives, ledger.started.warm_start
    constraints = constraints_of(plan.settings.study)
    fitting: dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}  # params and the sampler's state
    results = []
    for number, earlier in enumerate(prior, start=-len(prior)):
        if fits(earlier.params, plan.space, plan.conditions):
            metrics = dict(zip(objectives, earlier.values, strict=True))
            known = [constraint for constraint in constraints if constraint.metric in metrics]
            results.append(result(number, plan.settings.train.epochs, metrics, objectives, known))
            fitting[number] = earlier.params, {}
    for trial in ledger.firsts():
        found = result_of(trial, ledger.judged(trial), objectives, constraints)
        if (found is not None or trial.state in UNDER_WAY) and fits(trial.params, plan.space, plan.conditions):
            results += [] if found is None else [found]
            fitting[trial.number] = trial.params, trial.sampler_state
    study = plan.settings.study
    order = ranked(results, max(good_trials(study.sampler.gamma, len(results)), population_size(study)))
    place = {one.number: index for index, one in enumerate(order)}
    trials = [
        _shown(plan.space, params, [float(place[number])] if number in place else None, state)
        for number, (params, state) in fitting.items()
    ]
    return History(trials=trials, good=sum(one.standing is not Standing.BAD for one in order))


def measured_values(ledger: Ledger) -> History:
    """The complete trials that fit the space with their objectives and constraints, and those under way."""
    assert ledger.started is not None
    plan, objectives = ledger.current_plan, ledger.objectives
    constraints = constraints_of(plan.settings.study)
    trials = []
    for earlier in ledger.started.warm_start:
        if fits(earlier.params, plan.space, plan.conditions):
            metrics = dict(zip(objectives, earlier.values, strict=True))
            excess = {str(constraint): constraint.excess(metrics) for constraint in constraints}
            trials.append(_shown(plan.space, earlier.params, earlier.values, {}, excess))
    for trial in ledger.firsts():
        complete = trial.state is State.COMPLETE
        if (complete or trial.state in UNDER_WAY) and fits(trial.params, plan.space, plan.conditions):
            metrics = ledger.judged(trial)
            values = [metrics[name] for name in objectives] if complete else None
            excess = {str(one): one.excess(metrics) for one in constraints} if complete else {}
            trials.append(_shown(plan.space, trial.params, values, trial.sampler_state, excess))
    # A model of a constraint needs its value: a trial without one says nothing.
    trials = [trial for trial in trials if all(map(math.isfinite, trial.constraints.values()))]
    return History([f"{direction}imize" for direction in plan.directions], trials)


def _shown(
    space: Space,
    params: Mapping[str, Any],
    values: Sequence[float] | None,
    sampler_state: Mapping[str, Any],
    excess: Mapping[str, float] | None = None,
) -> Shown:
    """A trial that has ended with these values; one without values is under way."""
    shown = Shown(
        number=-1,  # as Optuna numbers the trials of a study
        trial_id=-1,
        state=TrialState.RUNNING if values is None else TrialState.COMPLETE,
        value=None,
        values=values,
        datetime_start=datetime.now(),
        datetime_complete=None if values is None else datetime.now(),
        params=dict(params),
        distributions={name: space[name] for name in params},
        user_attrs={},
        system_attrs=dict(sampler_state),
        intermediate_values={},
    )
    for constraint, beyond in (excess or {}).items():
        shown.set_constraint(constraint, beyond)
    return shown


# --------------------------------------------------------------------------------------------------- table of samplers


@dataclass(frozen=True)
class Draw:
    """All that one draw of parameters depends on."""

    study: settings.StudySettings
    space: Space
    history: History
    seed: int  # of this draw alone
    study_seed: int  # the same for all draws of a study
    index: int  # of the trial, earlier studies' trials counted
    attempt: int  # draws for this trial that gave what was tried


@dataclass(frozen=True)
class SamplerType:
    """A row of the table."""

    build: Callable[[Draw], BaseSampler]
    history: Callable[[Ledger], History] = nothing
    draws: int = TRIES  # before the points that were not tried are gone through
    keeps_state: bool = False  # whether it needs to find again what it noted with a trial


class QuasiMonteCarlo(BaseSampler):  # type: ignore[misc]
    """One point of a low-discrepancy sequence, its coordinates as quantiles of the distributions.

    Optuna's own sampler counts the points in its storage; here the point follows from the trial's index. A point that
    was tried before, as it may happen where a space has few, is moved at random (modulo 1, Cranley and Patterson 1976).
    """

    def __init__(self, draw: Draw) -> None:
        from scipy.stats import qmc  # its import takes a while

        sampler, names = draw.study.sampler, sorted(draw.space)
        kind = qmc.Sobol if sampler.qmc_type == "sobol" else qmc.Halton
        engine = kind(len(names), scramble=sampler.scramble, seed=draw.study_seed)
        if draw.index:  # by no points, Sobol's engine cannot go
            engine.fast_forward(draw.index)
        point = engine.random(1)[0]
        if draw.attempt:
            point = (point + np.random.default_rng(draw.seed).random(len(names))) % 1.0
        self.quantiles = dict(zip(names, point.tolist(), strict=True))

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Space:
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return at_quantile(param_distribution, self.quantiles[param_name])


def good_trials(gamma: float, ended: int) -> int:
    """How many of so many trials are good ones by `study.sampler.gamma`."""
    return min(int(gamma), ended) if gamma >= 1 else math.ceil(gamma * ended)


def population_size(study: settings.StudySettings) -> int:
    """The population of nsga2."""
    largest = largest_population(study.budget.trials)
    return study.sampler.population_size or min(largest, USUAL_POPULATION)


def _tpe(draw: Draw) -> BaseSampler:
    sampler = draw.study.sampler
    return TPESampler(
        seed=draw.seed,
        n_startup_trials=sampler.n_startup_trials,
        n_ei_candidates=sampler.n_ei_candidates,
        gamma=lambda ended: min(good_trials(sampler.gamma, ended), draw.history.good),
        multivariate=sampler.multivariate,
        group=sampler.group,
        constant_liar=sampler.constant_liar,
    )


def _gp(draw: Draw) -> BaseSampler:
    startup = draw.study.sampler.n_startup_trials
    return GPSampler(seed=draw.seed, n_startup_trials=startup, warn_independent_sampling=False)


SAMPLERS: dict[str, SamplerType] = {
    "tpe": SamplerType(_tpe, places),
    "gp": SamplerType(_gp, measured_values),
    "nsga2": SamplerType(
        lambda draw: NSGAIISampler(seed=draw.seed, population_size=population_size(draw.study)),
        places,
        keeps_state=True,  # a trial's generation
    ),
    "random": SamplerType(lambda draw: RandomSampler(seed=draw.seed)),
    "qmc": SamplerType(QuasiMonteCarlo),
    "grid": SamplerType(lambda draw: RandomSampler(seed=draw.seed), draws=0),
}


def build_sampler(draw: Draw) -> BaseSampler:
    """The sampler of `study.sampler.type` for one draw."""
    with warnings.catch_warnings():
        # Grouped TPE is experimental, and gamma is to go with Optuna 6, in which this project's version is not.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return SAMPLERS[draw.study.sampler.type].build(draw)


class Sampler:
    """Suggests configurations, none of them twice."""

    def __init__(self, ledger: Ledger) -> None:
        assert ledger.started is not None
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # once: it goes through all loggers of the process
        self.ledger, self.plan = ledger, ledger.current_plan
        self.tried: set[tuple[Any, ...]] = set()  # configurations that were suggested
        self.seen = 0  # trials that are among these
        self.passed = 0  # points of a space that is gone through, all of which were tried
        # A study that learns from others draws what they have not: with their seed it would repeat their first trials.
        prior = ledger.started.warm_start
        self.entropy = [zlib.crc32("\n".join(earlier.source for earlier in prior).encode())] if prior else []
        self.tried |= {self.key(earlier.params) for earlier in prior if earlier.same_settings}
        self.earlier = len(prior)

    def suggest(self, number: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Parameters of the configuration of this number, and what the sampler keeps with it; None when all were
        tried."""
        plan, kind = self.plan, SAMPLERS[self.plan.settings.study.sampler.type]
        if not plan.space:
            return {}, {}
        self.tried |= {self.key(trial.params) for trial in self.ledger.trials[self.seen :]}
        self.seen = len(self.ledger.trials)
        start = plan.start[number] if number < len(plan.start) else {}
        history = kind.history(self.ledger)
        study = _study_of(history)
        for attempt in range(kind.draws + 1):
            fixed: Mapping[str, Any] | None = start if attempt == 0 else {}
            if attempt == kind.draws:  # of a few points, the last ones are hardly ever drawn
                fixed = self._untried(start if attempt == 0 else {})
            if fixed is None:
                return None
            draw = Draw(
                study=plan.settings.study,
                space=plan.space,
                history=history,
                seed=self._seed(number, attempt),
                study_seed=self._seed(),
                index=self.earlier + number,
                attempt=attempt,
            )
            study.sampler = build_sampler(draw)
            if fixed:
                study.enqueue_trial(dict(fixed))
            trial = study.ask()
            params = _suggest(trial, plan)
            if self.key(params) not in self.tried:
                self.tried.add(self.key(params))
                state = study.get_trials(deepcopy=False)[trial.number].system_attrs if kind.keeps_state else {}
                return params, {key: value for key, value in state.items() if key != FIXED}
            study.tell(trial, state=TrialState.FAIL)
        return None

    def key(self, params: Mapping[str, Any]) -> tuple[Any, ...]:
        """A configuration, its seed included where that is searched."""
        return tuple(sorted((name, repr(value)) for name, value in params.items()))

    def _seed(self, *of: int) -> int:
        """A seed for these counters, in this study."""
        entropy = (self.plan.settings.study.sampler.seed, *of, *self.entropy)
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _untried(self, start: Mapping[str, Any]) -> dict[str, Any] | None:
        """The next point of a space that is not continuous, one with the values of a start point if there is any."""
        plan = self.plan
        size = space_size(plan.space, plan.conditions)
        listed = size is not None and size <= LARGEST_GRID
        every = self._shuffled if listed else points(plan.space, plan.conditions)
        left = itertools.islice(every, self.passed, None)
        first = None
        for point in left:
            if self.key(point) not in self.tried:
                first = point
                break
            self.passed += 1
        if first is None or start.items() <= first.items():
            return first
        wanted = (point for point in left if start.items() <= point.items() and self.key(point) not in self.tried)
        return next(wanted, first)

    @cached_property
    def _shuffled(self) -> Sequence[dict[str, Any]]:
        """The points of a space in an order of the study's own: the first of them are from all over the space."""
        every = list(points(self.plan.space, self.plan.conditions))
        order = np.random.default_rng(self._seed()).permutation(len(every))
        return [every[index] for index in order]


def _study_of(history: History) -> optuna.Study:
    """A study of Optuna's with these trials, in memory."""
    study = optuna.create_study(directions=list(history.directions))
    study.add_trials(history.trials)
    return study


def _suggest(trial: Trial, plan: Plan) -> dict[str, Any]:
    """The parameters of a trial, one after the other, those that are active with the ones before."""
    params: dict[str, Any] = {}
    for name in parents_first(plan.space, plan.conditions):
        distribution = plan.space[name]
        if not is_active(name, params, plan.conditions):
            continue
        if isinstance(distribution, CategoricalDistribution):
            params[name] = trial.suggest_categorical(name, distribution.choices)
            continue
        suggest = trial.suggest_int if isinstance(distribution, IntDistribution) else trial.suggest_float
        params[name] = suggest(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    return params


# ------------------------------------------------------------------------------------------------ Optuna's own tools


def new_study(plan: Plan, name: str, storage: JournalStorage | None = None) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # names of metrics
        study = optuna.create_study(
            study_name=name, storage=storage, directions=[f"{direction}imize" for direction in plan.directions]
        )
        study.set_metric_names(list(plan.settings.study.objectives))
    return study


def optuna_study(ledger: Ledger) -> optuna.Study:
    """The ended trials as a study in memory, for Optuna's plots."""
    assert ledger.started is not None
    study = new_study(ledger.current_plan, ledger.started.study_id)
    study.add_trials([_recorded(trial, ledger) for trial in ledger.firsts() if not trial.open])
    return study


def final_state(trial: TrialRecord) -> TrialState:
    """COMPLETE: trained to the end, all objectives finite. FAIL: a failure. PRUNED: stopped early."""
    if trial.state is State.FAILED:
        return TrialState.FAIL
    return TrialState.COMPLETE if trial.state is State.COMPLETE else TrialState.PRUNED


def objective_values(metrics: Mapping[str, float], plan: Plan) -> list[float]:
    return [float(metrics.get(name, math.nan)) for name in plan.settings.study.objectives]


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
        """Add trials that have ended. Raises OSError when the file cannot be written.

        Optuna changes no trial that has ended: where means over seeds still move, who is complete comes in at the end.
        """
        moving = ledger.current_plan.settings.study.seeds_per_trial > 1 and ledger.end is None
        for trial in trials:
            wait = moving and trial.state is State.COMPLETE
            if trial.number not in self.written and trial.replicate_of is None and not wait:
                self.study.add_trial(_recorded(trial, ledger))
                self.written.add(trial.number)


def _recorded(trial: TrialRecord, ledger: Ledger) -> FrozenTrial:
    """An ended trial as it was: with the distributions that it was drawn from, within which its parameters lie even
    where the space has changed, with the values that it is judged by, and its times."""
    plan, state, metrics = trial.plan, final_state(trial), ledger.judged(trial)
    complete = state is TrialState.COMPLETE
    excess = {str(one): one.excess(metrics) for one in constraints_of(plan.settings.study)}
    frozen = create_trial(
        state=state,
        params=dict(trial.params),
        distributions={name: plan.space[name] for name in trial.params},
        values=objective_values(metrics, plan) if complete else None,
        intermediate_values={} if complete or len(plan.directions) > 1 else dict(trial.intermediate_values),
        user_attrs={"trial": trial.name},
        system_attrs=dict(trial.sampler_state),
        constraints=excess if complete else None,
    )
    if trial.started is not None and trial.ended is not None:
        frozen.datetime_start = datetime.fromtimestamp(trial.started)
        frozen.datetime_complete = datetime.fromtimestamp(trial.ended)
    return frozen
