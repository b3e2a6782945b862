"""Optuna as a sampler over the ledger, and the copy of a study for Optuna's own tools."""

import math
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from aae_ray.search import events
from aae_ray.search.conductor import Conductor
from aae_ray.search.contract import Failure, Report, Suggestion
from aae_ray.search.distributions import Space
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import FailureClass, Reason, StudyEnd
from aae_ray.search.sampler import (
    COPY,
    SAMPLERS,
    Draw,
    OptunaCopy,
    QuasiMonteCarlo,
    Sampler,
    build_sampler,
    good_trials,
    measured_values,
    optuna_study,
    places,
    population_size,
)
from aae_ray.search.sampler import History as OptunaHistory
from aae_ray.search.space import Plan
from aae_ray.settings import dotted_fields
from aae_ray.settings.rules import SAMPLER_SETTINGS
from tests.search.histories import JSD, MSE, History
from tests.search.test_conductor import SPACE, begin, interval, plan_of, resume, run

GRID: Space = {
    "optim.reconstruction_lr": CategoricalDistribution([1e-4, 1e-3, 1e-2]),
    "model.latent_dim": IntDistribution(2, 6),
}
LR = "optim.beta2"
LINE: Space = {LR: FloatDistribution(0.0, 0.99)}  # a space of one dimension


def study_of(sampler: str, **changes: object) -> Plan:
    """A study with a sampler that learns early; a short one where a suggestion takes a second."""
    learning = {"study__sampler__n_startup_trials": 4} if "n_startup_trials" in taken(sampler) else {}
    trials = {"study__budget__trials": 6 if sampler == "gp" else 14}
    plan = plan_of(**{"study__sampler__type": sampler, **learning, **trials, **changes})
    return replace(plan, space=GRID if sampler == "grid" else SPACE)


def taken(sampler: str) -> set[str]:
    """The settings that a sampler takes, but for its seed."""
    return {name for name, types in SAMPLER_SETTINGS.items() if sampler in types}


def history_of(sampler: str, space: Space = LINE, **changes: object) -> History:
    settings = plan_of(study__sampler__type=sampler, study__budget__trials=5000, **changes).settings
    return History(Plan(settings, space))


def suggestions(ledger: Ledger, count: int = 20) -> list[float]:
    """What would be tried next, for as many numbers of the next trial."""
    drawn = [Sampler(ledger).suggest(len(ledger.trials) + more) for more in range(count)]
    return [float(each[0][LR]) for each in drawn if each is not None]


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
    assert copied.params == conductor.ledger.trials[0].params


def test_an_early_value_never_counts_as_a_final_one(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__objectives=(MSE,)))
    ended(conductor, Reason.PRUNED, {MSE: 0.01})
    copied = optuna_study(conductor.ledger)
    assert copied.trials[0].state is TrialState.PRUNED
    with pytest.raises(ValueError, match="No trials are completed"):
        _ = copied.best_trial


def test_start_points_come_first_and_are_completed_by_the_sampler(tmp_path: Path) -> None:
    plan = plan_of()
    start = ({"model.latent_dim": 4}, {"model.latent_dim": 2, "optim.reconstruction_lr": 0.003})
    conductor = begin(tmp_path, Plan(plan.settings, SPACE, start))
    run(conductor)
    first, second = (trial.params for trial in conductor.ledger.trials[:2])
    assert first["model.latent_dim"] == 4 and 1e-4 <= float(str(first["optim.reconstruction_lr"])) <= 1e-2
    assert second == start[1]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("objectives", [(MSE, JSD), (MSE,)])
def test_suggestions_follow_from_the_seed(tmp_path: Path, sampler: str, objectives: tuple[str, ...]) -> None:
    def params(name: str, seed: int) -> list[dict[str, object]]:
        (tmp_path / name).mkdir()
        conductor = begin(tmp_path / name, study_of(sampler, study__sampler__seed=seed, study__objectives=objectives))
        run(conductor)
        return [trial.params for trial in conductor.ledger.trials]

    assert params("a", 1) == params("b", 1) != params("c", 2)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_resumed_study_suggests_what_the_unbroken_one_would_have(tmp_path: Path, sampler: str) -> None:
    plan = study_of(sampler, study__pruner__type="none", train__epochs=2)
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole = begin(tmp_path / "whole", plan)
    run(whole)
    broken = begin(tmp_path / "broken", plan)
    while len(broken.ledger.trials) < len(whole.ledger.trials):  # its process ends after every few trials
        for _ in range(3):
            ended_as_run(broken)
        broken.journal.close()
        broken = resume(tmp_path / "broken")
    assert [trial.params for trial in broken.ledger.trials] == [trial.params for trial in whole.ledger.trials]


def ended_as_run(conductor: Conductor) -> None:
    """One trial, as `run` has it."""
    suggestion = conductor.suggest()
    if isinstance(suggestion, Suggestion):
        conductor.started(suggestion.number)
        conductor.reported(interval(suggestion, 0, conductor.ledger.current_plan.settings))


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 40), ("gp", 16)])
def test_a_sampler_learns(sampler: str, trials: int) -> None:
    """Of the later trials more than a third lie in the best fifth of the space."""
    history = history_of(sampler, study__objectives=(MSE,))
    tool = Sampler(history.ledger)
    for number in range(trials):
        drawn = tool.suggest(number)
        assert drawn is not None
        history.begin(*drawn)
        history.report(number, 27, abs(drawn[0][LR] - 0.7))
        history.end(number)
    later = [abs(float(str(trial.params[LR])) - 0.7) < 0.1 for trial in history.ledger.trials[12:]]
    assert sum(later) > len(later) / 3


def test_generations_come_and_go_where_all_trials_are_stopped_early(tmp_path: Path) -> None:
    history = History(plan_of(study__sampler__type="nsga2", study__budget__trials=25))
    tool = Sampler(history.ledger)
    for number in range(25):
        drawn = tool.suggest(number)
        assert drawn is not None
        history.begin(*drawn)
        history.report(number, 3, float(drawn[0]["model.latent_dim"]), 0.1)
        history.end(number, Reason.PRUNED)
    generations = [next(iter(trial.sampler_state.values())) for trial in history.ledger.trials]
    assert generations == sorted([0, 1, 2, 3, 4] * 5)
    sizes = [float(str(trial.params["model.latent_dim"])) for trial in history.ledger.trials]
    assert sum(sizes[15:]) < sum(sizes[:10])  # who is good has children


# ------------------------------------------------------------------------------------- what the samplers are told


def halved(history: History, lr: float, epochs: int, value: float, reason: Reason = Reason.PRUNED) -> None:
    """A trial of this rate that ends after so many epochs with (value, value) as its objectives."""
    number = history.begin({LR: lr})
    history.report(number, epochs, value, value)
    history.end(number, reason)


def test_of_a_hundred_trials_with_three_complete_ones_the_good_ones_are_those_that_came_far() -> None:
    """The first trials are stopped at the first rung, where nothing is good: Optuna takes the earliest pruned trials
    for good ones once the complete ones are too few."""
    history = history_of("tpe")
    for number in range(100):
        if number in (40, 60, 80):
            halved(history, 0.9 + number / 1000, 27, 0.1, Reason.COMPLETED)
        elif number % 10 == 5:
            halved(history, 0.8 + number / 1000, 9, 0.2 + number / 1000)
        else:
            halved(history, number / 200, 3, 0.5)
    shown = places(history.ledger)
    good = sorted(shown.trials, key=lambda trial: trial.value)[: good_trials(0.1, 100)]
    assert [trial.params[LR] for trial in good[:3]] == pytest.approx([0.94, 0.96, 0.98])
    assert [trial.params[LR] for trial in good[3:]] == [pytest.approx(0.8 + n / 1000) for n in range(5, 75, 10)]
    assert sum(lr > 0.75 for lr in suggestions(history.ledger)) > 15


@pytest.mark.parametrize("end", [FailureClass.DIVERGED, FailureClass.OUT_OF_MEMORY, Reason.COLLAPSED])
def test_where_trials_fail_nothing_is_tried_again(end: FailureClass | Reason) -> None:
    history = history_of("tpe")
    for number in range(30):
        if number % 2:
            halved(history, number / 62, 27, 0.3, Reason.COMPLETED)
        else:
            lr = 0.6 + number / 100
            failing = history.begin({LR: lr})
            history.report(failing, 1, 0.01, 0.0)
            history.fail(failing, end) if isinstance(end, FailureClass) else history.end(failing, end)
    assert sum(lr > 0.6 for lr in suggestions(history.ledger)) < 4


def test_where_all_trials_are_bad_none_of_them_counts_as_good() -> None:
    history = history_of("tpe")
    for number in range(12):
        failing = history.begin({LR: number / 100})
        history.fail(failing, FailureClass.DIVERGED)
    assert places(history.ledger).good == 0
    assert sum(lr < 0.12 for lr in suggestions(history.ledger)) < 2


def test_a_trial_that_a_machine_has_lost_is_not_told_and_one_under_way_is_running() -> None:
    history = history_of("tpe")
    halved(history, 0.1, 27, 0.1, Reason.COMPLETED)
    lost = history.begin({LR: 0.2})
    history.fail(lost, FailureClass.LOST_WORKER)
    history.begin({LR: 0.3})
    history.suggest({LR: 0.4})
    told = [(trial.params[LR], trial.state) for trial in places(history.ledger).trials]
    assert told == [(0.1, TrialState.COMPLETE), (0.3, TrialState.RUNNING), (0.4, TrialState.RUNNING)]


def test_who_violates_a_constraint_is_behind_all_who_do_not() -> None:
    history = history_of("tpe", study__constraints=("val/reconstruction_mse <= 0.3",))
    halved(history, 0.1, 27, 0.31, Reason.COMPLETED)
    halved(history, 0.2, 27, 0.29, Reason.COMPLETED)
    halved(history, 0.3, 3, 0.5)  # whose constraint is not asked for yet
    assert [trial.value for trial in places(history.ledger).trials] == [1.0, 0.0, 2.0]


def test_the_gaussian_process_is_told_the_complete_trials_with_their_constraints() -> None:
    constraint = "val/reconstruction_mse <= 0.3"
    history = history_of("gp", study__constraints=(constraint, "val/code_std >= 0.5"))
    for mse, std in ((0.1, 0.6), (0.5, 0.1), (0.2, math.nan)):
        number = history.begin({LR: mse})
        history.report(number, 27, mse, 0.0, val__code_std=std)
        history.end(number)
    halved(history, 0.9, 3, 0.2)
    told = measured_values(history.ledger).trials
    assert [trial.values for trial in told] == [[0.1, 0.0], [0.5, 0.0]]
    assert [trial.constraints[constraint] for trial in told] == pytest.approx([-0.2, 0.2])
    assert [trial.constraints["val/code_std >= 0.5"] for trial in told] == pytest.approx([-0.1, 0.4])


def test_the_gaussian_process_keeps_to_the_constraints() -> None:
    """Both objectives are best at 0, where the constraint is violated."""
    history = history_of("gp", study__constraints=("val/code_std >= 0.4",))
    for number in range(12):
        lr = number / 12
        history.begin({LR: lr})
        history.report(number, 27, lr, lr**2, val__code_std=lr)
        history.end(number)
    drawn = suggestions(history.ledger, 3)
    assert all(0.25 < lr < 0.75 for lr in drawn), drawn


def test_a_suggestion_after_a_thousand_trials_takes_no_longer_than_a_trial() -> None:
    history, luck = history_of("tpe"), random.Random(0)
    for _ in range(1000):
        halved(history, luck.random() * 0.99, luck.choice([3, 3, 3, 3, 9, 27]), luck.random())
    began = time.process_time()
    suggestions(history.ledger, 1)
    assert time.process_time() - began < 2


# ------------------------------------------------------------------------------------------------ the table of samplers


def draw_of(sampler: str, **changes: object) -> Draw:
    study = study_of(sampler, **changes).settings.study
    return Draw(study, SPACE, OptunaHistory(), seed=0, study_seed=0, index=0, attempt=0)


def test_the_sampler_is_the_one_that_was_asked_for() -> None:
    kinds = {
        "tpe": TPESampler,
        "gp": GPSampler,
        "nsga2": NSGAIISampler,
        "random": RandomSampler,
        "qmc": QuasiMonteCarlo,
        "grid": RandomSampler,
    }
    assert kinds.keys() == SAMPLERS.keys() == set(get_args(dotted_fields()["study.sampler.type"].annotation))
    for name, kind in kinds.items():
        assert type(build_sampler(draw_of(name))) is kind


@pytest.mark.parametrize("setting", [name for name in SAMPLER_SETTINGS if name != "group"])  # conditions
def test_a_setting_of_the_sampler_changes_what_is_drawn_by_the_types_that_take_it(setting: str) -> None:
    other: dict[str, object] = {
        "n_startup_trials": 40,
        "n_ei_candidates": 2,
        "gamma": 8,
        "multivariate": True,
        "group": True,
        "constant_liar": False,
        "population_size": 5,
        "qmc_type": "halton",
        "scramble": False,
    }
    changes: dict[str, object] = {f"study__sampler__{setting}": other[setting]}
    for sampler in SAMPLER_SETTINGS[setting]:
        drawn = []
        for given in ({}, changes):
            history = history_of(sampler, SPACE, **given)
            luck = random.Random(0)
            tool = Sampler(history.ledger)
            for number in range(14):
                drawn_now = tool.suggest(number)
                assert drawn_now is not None
                history.begin(*drawn_now)
                if number < 11:
                    history.report(number, 27, luck.random(), luck.random())
                    history.end(number)
            drawn.append([trial.params for trial in history.ledger.trials])
        assert drawn[0] != drawn[1], (setting, sampler)


def test_a_population_is_at_most_a_fifth_of_the_budget() -> None:
    for trials, size in ((24, 4), (8, 2), (1000, 50)):
        assert population_size(plan_of(study__budget__trials=trials).settings.study) == size
    given = plan_of(
        study__sampler__type="nsga2", study__budget__trials=15, study__sampler__population_size=3
    ).settings.study
    assert population_size(given) == 3


@pytest.mark.parametrize(("gamma", "ended", "good"), [(0.1, 24, 3), (0.25, 24, 6), (5, 24, 5), (5, 3, 3), (0.1, 0, 0)])
def test_gamma_is_a_number_of_trials_or_a_fraction_of_them(gamma: float, ended: int, good: int) -> None:
    assert good_trials(gamma, ended) == good


@pytest.mark.parametrize(("kind", "start"), [("sobol", 0), ("sobol", 8), ("halton", 0)])
def test_a_sequence_fills_the_space_evenly(kind: str, start: int) -> None:
    history = history_of("qmc", study__sampler__qmc_type=kind)
    sampler = Sampler(history.ledger)
    drawn = [sampler.suggest(number) for number in range(start, start + 8)]
    eighths = {int(each[0][LR] / 0.99 * 8) for each in drawn if each is not None}
    assert len(eighths) == 8


def test_a_grid_is_gone_through_once_and_ends(tmp_path: Path) -> None:
    plan = replace(study_of("grid", study__budget__trials=99), start=({"model.latent_dim": 5},))
    conductor = begin(tmp_path, plan)
    run(conductor)
    tried = [tuple(trial.params.items()) for trial in conductor.ledger.trials]
    assert len(tried) == len(set(tried)) == 15 and dict(tried[0])["model.latent_dim"] == 5
    assert len({dict(point)["model.latent_dim"] for point in tried[:6]}) > 2  # not one side after the other
    assert conductor.message == "the space has no untried point left"


@pytest.mark.parametrize("listed", [True, False])
def test_the_next_point_of_a_grid_is_found_without_a_look_at_all_before_it(
    monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    class Counting(Sampler):
        looks = 0

        def key(self, params: Mapping[str, Any]) -> tuple[Any, ...]:
            self.looks += 1
            return super().key(params)

    if not listed:
        monkeypatch.setattr("aae_ray.search.sampler.LARGEST_GRID", 3)
    history = History(Plan(plan_of().settings, {"model.latent_dim": IntDistribution(2, 201)}))
    sampler = Counting(history.ledger)
    found = []
    while (point := sampler._untried({})) is not None:
        found.append(point["model.latent_dim"])
        sampler.tried.add(sampler.key(point))
    assert sorted(found) == list(range(2, 202)) and sampler.looks <= 4 * len(found)


def test_a_space_of_too_many_points_to_list_ends_with_them_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aae_ray.search.sampler.LARGEST_GRID", 3)
    conductor = begin(tmp_path, study_of("grid", study__budget__trials=99))
    run(conductor)
    assert len({str(trial.params) for trial in conductor.ledger.trials}) == len(conductor.ledger.trials) == 15


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
    assert 0 < len(places(again.ledger).trials) == len(fitting) < 6
    run(again)
    assert len(again.ledger.trials) == 9
    assert all(trial.params["model.latent_dim"] in (4, 8) for trial in again.ledger.trials[6:])
    assert len(optuna_study(again.ledger).trials) == 9


def test_a_warm_start_learns_from_the_trials_that_fit(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__sampler__type="tpe"))
    started = conductor.ledger.started
    assert started is not None
    prior = (
        events.PriorTrial(
            params={"optim.reconstruction_lr": 1e-3, "model.latent_dim": 4}, values=(0.5, 0.1), source="a/t0000"
        ),
        events.PriorTrial(params={"model.latent_dim": 4}, values=(0.4, 0.1), source="a/t0001"),
    )
    conductor.ledger.started = started.model_copy(update={"warm_start": prior})
    for shown, values in ((places, [0.0]), (measured_values, [0.5, 0.1])):
        (told,) = shown(conductor.ledger).trials
        assert told.values == values and told.params == prior[0].params


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_warm_start_does_not_repeat_the_earlier_studys_draws(tmp_path: Path, sampler: str) -> None:
    """Trials that were stopped are not handed on: with the same seed they would be drawn again."""
    conductor = begin(tmp_path, replace(study_of(sampler), space=GRID if sampler == "grid" else LINE))
    tool = Sampler(conductor.ledger)
    drawn = [tool.suggest(number) for number in range(4)]
    earlier = [each[0] for each in drawn if each is not None]
    started = conductor.ledger.started
    assert started is not None
    prior = tuple(
        events.PriorTrial(params=params, values=(0.4, 0.1), source=f"a/t{index}", same_settings=True)
        for index, params in enumerate(earlier[:2])
    )
    conductor.ledger.started = started.model_copy(update={"warm_start": prior})
    warm = Sampler(conductor.ledger)
    for number in range(4):
        new = warm.suggest(number)
        assert new is not None and (sampler == "grid" or new[0] not in earlier)


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


def test_the_copy_gets_means_over_seeds_when_they_move_no_more(tmp_path: Path) -> None:
    history = History(study__seeds_per_trial=2)
    history.finish(0.1, 0.2, {})
    history.end(history.begin({}), Reason.PRUNED)
    copy = OptunaCopy(tmp_path, history.ledger)
    assert [trial.user_attrs["trial"] for trial in copy.study.trials] == ["t0001"]
    history.another_seed(0, 0.3, 0.2)
    history.add(events.StudyEnded())
    copy.add(history.ledger, history.ledger.trials)
    assert [trial.user_attrs["trial"] for trial in copy.study.trials] == ["t0001", "t0000"]
    assert copy.study.trials[1].values == pytest.approx([0.2, 0.2])


def test_a_study_of_an_objective_that_has_no_direction_any_more_can_be_looked_at() -> None:
    history = History(study__objectives=("val/reconstruction_mse", "val/cluster_entropy_nats"))
    history.finish(0.1, params={}, val__cluster_entropy_nats=1.0)
    history.finish(0.2, params={}, val__cluster_entropy_nats=2.0)
    study = optuna_study(history.ledger)
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert len(study.best_trials) == len(history.ledger.front()) == 2


def test_the_copy_says_which_constraints_a_trial_keeps_to(tmp_path: Path) -> None:
    constraint = "val/reconstruction_mse <= 0.3"
    conductor = begin(tmp_path, plan_of(study__constraints=(constraint,), train__epochs=3))
    ended(conductor, Reason.COMPLETED, {MSE: 0.5, JSD: 0.1})
    (copied,) = optuna_study(conductor.ledger).trials
    assert copied.constraints == {constraint: pytest.approx(0.2)}


def test_a_lock_that_a_killed_process_has_left_holds_up_no_copy(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__budget__trials=4), gangs=2)
    ended(conductor, Reason.PRUNED, {MSE: 0.5, JSD: 0.1})
    (tmp_path / f"{COPY}.lock").symlink_to(tmp_path / "moved" / COPY)  # Optuna's own lock waits for ever here
    began = time.monotonic()
    OptunaCopy(tmp_path, conductor.ledger)
    assert time.monotonic() - began < 5 and (tmp_path / COPY).stat().st_size
