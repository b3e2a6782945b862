"""Optuna as a sampler over the ledger, and the copy of a study for Optuna's own tools."""

import math
import time
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from aae_ray.search import events
from aae_ray.search.conductor import Conductor
from aae_ray.search.contract import Failure, Report, Suggestion
from aae_ray.search.outcomes import FailureClass, Reason, StudyEnd
from aae_ray.search.sampler import COPY, OptunaCopy, Sampler, build_sampler, optuna_study
from aae_ray.search.space import Plan
from aae_ray.settings import Sampler as SamplerSettings
from tests.search.test_conductor import SPACE, begin, plan_of, run

MSE, JSD = "val/reconstruction_mse", "val/jsd_nats"


def ended(conductor: Conductor, reason: Reason | None, values: dict[str, float], epochs: int = 3) -> int:
    """One trial that ends so; None: trained to the end of its budget."""
    suggestion = conductor.suggest()
    assert isinstance(suggestion, Suggestion)
    conductor.started(suggestion.number)
    history = tuple({"epoch": float(epoch), **values} for epoch in range(1, epochs + 1))
    if reason is not None and reason.value in set(FailureClass) and reason is not Reason.DIVERGED:
        conductor.failed(Failure(suggestion.number, FailureClass(reason.value), "it broke"))
    elif reason is Reason.USER:
        conductor.reported(Report(suggestion.number, 2, history[:2]))
        conductor.stop(StudyEnd.USER)
    else:
        stop = None if reason is Reason.COMPLETED else reason
        conductor.reported(Report(suggestion.number, epochs, history, finished=stop is None, stop_reason=stop))
    return suggestion.number


@pytest.mark.parametrize("objectives", [(MSE, JSD), (MSE,)])
@pytest.mark.parametrize(
    ("reason", "values", "state"),
    [
        (Reason.COMPLETED, {MSE: 0.5, JSD: 0.1}, TrialState.COMPLETE),
        (Reason.COMPLETED, {MSE: math.nan, JSD: math.nan}, TrialState.FAIL),
        (Reason.DIVERGED, {MSE: math.nan}, TrialState.FAIL),
        (Reason.COLLAPSED, {MSE: 0.5, JSD: 0.1}, TrialState.PRUNED),
        (Reason.BUG, {}, TrialState.FAIL),
        (Reason.USER, {MSE: 0.5, JSD: 0.1}, TrialState.PRUNED),
    ],
)
def test_every_end_has_its_state(
    tmp_path: Path, objectives: tuple[str, ...], reason: Reason, values: dict[str, float], state: TrialState
) -> None:
    conductor = begin(tmp_path, plan_of(study__objectives=objectives, train__epochs=3))
    number = ended(conductor, reason, values)
    (copied,) = optuna_study(conductor.ledger).trials
    assert copied.state is state and copied.number == number
    assert (copied.values is not None) == (state is TrialState.COMPLETE)
    if reason is not Reason.USER:  # of what the user stopped the sampler learns nothing yet: it may go on
        assert conductor.sampler.study.trials[-1].state is state
    rebuilt = Sampler(conductor.ledger).study.trials[-1]
    assert rebuilt.state is state and rebuilt.params == conductor.ledger.trials[0].params


def test_an_early_value_never_counts_as_a_final_one(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__objectives=(MSE,)))
    ended(conductor, Reason.PRUNED, {MSE: 0.01})
    assert conductor.sampler.study.trials[0].state is TrialState.PRUNED
    with pytest.raises(ValueError, match="No trials are completed"):
        _ = conductor.sampler.study.best_trial


def test_with_one_objective_the_sampler_learns_from_pruned_trials_what_they_reported(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__objectives=(MSE,)))
    ended(conductor, Reason.PRUNED, {MSE: 0.25})
    told, rebuilt = conductor.sampler.study.trials[0], Sampler(conductor.ledger).study.trials[0]
    assert told.intermediate_values == rebuilt.intermediate_values == {3: 0.25}


def test_start_points_come_first_and_are_completed_by_the_sampler(tmp_path: Path) -> None:
    plan = plan_of()
    start = ({"model.latent_dim": 4}, {"model.latent_dim": 2, "optim.reconstruction_lr": 0.003})
    conductor = begin(tmp_path, Plan(plan.settings, SPACE, start))
    run(conductor)
    first, second = (trial.params for trial in conductor.ledger.trials[:2])
    assert first["model.latent_dim"] == 4 and 1e-4 <= float(str(first["optim.reconstruction_lr"])) <= 1e-2
    assert second == start[1]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
@pytest.mark.parametrize("objectives", [(MSE, JSD), (MSE,)])
def test_suggestions_follow_from_the_seed(tmp_path: Path, sampler: str, objectives: tuple[str, ...]) -> None:
    def params(name: str, seed: int) -> list[dict[str, object]]:
        (tmp_path / name).mkdir()
        plan = plan_of(study__sampler__type=sampler, study__sampler__seed=seed, study__objectives=objectives)
        conductor = begin(tmp_path / name, plan)
        run(conductor)
        return [trial.params for trial in conductor.ledger.trials]

    assert params("a", 1) == params("b", 1) != params("c", 2)


def test_the_sampler_is_the_one_that_was_asked_for() -> None:
    kinds = {"tpe": TPESampler, "nsga2": NSGAIISampler, "random": RandomSampler}
    for name, kind in kinds.items():
        assert type(build_sampler(SamplerSettings(type=name), 0)) is kind


def test_an_empty_space_suggests_nothing_and_still_has_its_trials(tmp_path: Path) -> None:
    conductor = begin(tmp_path, Plan(plan_of(study__budget__trials=2).settings, {}))
    run(conductor)
    assert [trial.params for trial in conductor.ledger.trials] == [{}, {}]


def test_trials_of_a_space_that_has_changed_are_kept_and_not_learnt_from(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__budget__trials=6))
    run(conductor)
    narrow = {**SPACE, "model.latent_dim": CategoricalDistribution([4, 8])}
    from aae_ray.search.space import record_plan

    plan = Plan(plan_of(study__budget__trials=9).settings, narrow)
    conductor.record(events.StudyEnded(), events.StudyResumed(plan=record_plan(plan), host="h", pid=2))
    again = Conductor(conductor.journal, conductor.ledger, 1, clock=conductor.clock)
    fitting = [trial for trial in conductor.ledger.trials if trial.params["model.latent_dim"] != 2]
    assert 0 < len(again.sampler.study.trials) == len(fitting) < 6
    run(again)
    assert len(again.ledger.trials) == 9
    assert all(trial.params["model.latent_dim"] in (4, 8) for trial in again.ledger.trials[6:])
    assert len(optuna_study(again.ledger).trials) == 9


def test_a_warm_start_learns_from_the_trials_that_fit(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of())
    started = conductor.ledger.started
    assert started is not None
    prior = (
        events.PriorTrial(
            params={"optim.reconstruction_lr": 1e-3, "model.latent_dim": 4}, values=(0.5, 0.1), source="a/t0000"
        ),
        events.PriorTrial(params={"model.latent_dim": 4}, values=(0.4, 0.1), source="a/t0001"),
    )
    conductor.ledger.started = started.model_copy(update={"warm_start": prior})
    sampler = Sampler(conductor.ledger)
    assert [trial.user_attrs["source"] for trial in sampler.study.trials] == ["a/t0000"]
    assert sampler.suggest(0) is not None and sampler.numbers == {0: 1}


def test_what_an_earlier_study_has_trained_is_not_trained_again(tmp_path: Path) -> None:
    space = {"model.latent_dim": CategoricalDistribution([2, 4])}
    conductor = begin(tmp_path, Plan(plan_of().settings, space))
    started = conductor.ledger.started
    assert started is not None
    prior = events.PriorTrial(params={"model.latent_dim": 4}, values=(0.4, 0.1), source="a/t0", same_settings=True)
    conductor.ledger.started = started.model_copy(update={"warm_start": (prior,)})
    sampler = Sampler(conductor.ledger)
    drawn = sampler.suggest(0)
    assert drawn is not None and drawn[0] == {"model.latent_dim": 2} and sampler.suggest(1) is None


def test_optunas_own_tools_can_read_the_copy_in_which_nothing_runs(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__budget__trials=4), gangs=2)
    ended(conductor, Reason.PRUNED, {MSE: 0.5, JSD: 0.1})
    copy = OptunaCopy(tmp_path, conductor.ledger)
    number = ended(conductor, Reason.COLLAPSED, {MSE: 0.5, JSD: 0.1})
    copy.add(conductor.ledger, [conductor.ledger.trials[number]] * 2)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / COPY)))
    (summary,) = optuna.get_all_study_summaries(storage)
    study = optuna.load_study(study_name=summary.study_name, storage=storage)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED] * 2
    assert study.metric_names == [MSE, JSD] and study.trials[0].user_attrs == {"trial": "t0000"}


def test_a_lock_that_a_killed_process_has_left_holds_up_no_copy(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__budget__trials=4), gangs=2)
    ended(conductor, Reason.PRUNED, {MSE: 0.5, JSD: 0.1})
    (tmp_path / f"{COPY}.lock").symlink_to(tmp_path / "moved" / COPY)  # Optuna's own lock waits for ever here
    began = time.monotonic()
    OptunaCopy(tmp_path, conductor.ledger)
    assert time.monotonic() - began < 5 and (tmp_path / COPY).stat().st_size


def test_the_private_parts_of_optuna_that_are_used_are_those_of_this_version() -> None:
    assert optuna.__version__.startswith("5.")
    study = optuna.create_study()
    trial = study.ask({"a": FloatDistribution(0, 1), "b": IntDistribution(0, 3)})
    assert study._storage.get_trial(trial._trial_id).number == trial.number
    assert study._storage.get_trial_id_from_study_id_trial_number(study._study_id, trial.number) == trial._trial_id
