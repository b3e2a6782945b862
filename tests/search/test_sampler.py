"""Optuna is told truthfully how each trial ended, whatever Ray Tune calls."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray import cloudpickle

from aae_ray.search.sampler import JOURNAL, OptunaSearcher, build_sampler, create_study
from aae_ray.search.space import Plan, read_plan

MSE, JSD = "val/reconstruction_mse", "val/jsd_nats"

SPACE = """
study: {objectives: [%s], sampler: {type: %s, seed: %d}}
space:
  model.latent_dim: {type: int, low: 2, high: 16, log: true}
  model.prior: {type: categorical, choices: [gaussian, uniform]}
  model.hidden: {type: categorical, choices: [64-32, 128-64]}
  optim.reconstruction_lr: {type: float, low: 1e-4, high: 1e-2, log: true}
start:
  - {model.latent_dim: 5, model.prior: uniform, model.hidden: [128, 64], optim.reconstruction_lr: 1e-3}
  - {model.latent_dim: 9}
"""

MakeSearcher = Callable[..., OptunaSearcher]


@pytest.fixture
def make(tmp_path: Path) -> MakeSearcher:
    made: list[Path] = []

    def build(
        objectives: str = f"{MSE}, {JSD}", sampler: str = "tpe", seed: int = 0, *, space: bool = True
    ) -> OptunaSearcher:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(folder)
        file = folder / "study.yaml"
        text = SPACE % (objectives, sampler, seed)
        file.write_text(text if space else text.partition("space:")[0])
        plan: Plan = read_plan(str(file))
        return OptunaSearcher(create_study(plan, f"study-{len(made)}", folder), plan)

    return build


def at(epoch: int, mse: float | None = None, jsd: float | None = None, **said: Any) -> dict[str, Any]:
    values = {name: value for name, value in ((MSE, mse), (JSD, jsd)) if value is not None}
    return {"epoch": epoch, "finished": False, "failed": False, **values, **said}


def only_trial(searcher: OptunaSearcher) -> optuna.trial.FrozenTrial:
    (trial,) = [trial for trial in searcher.study.get_trials() if trial.state is not TrialState.WAITING]
    return trial


# ------------------------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize(
    ("result", "error", "state"),
    [
        (at(27, 0.1, 0.2, finished=True), False, TrialState.COMPLETE),
        (at(3, 0.1, 0.2), False, TrialState.PRUNED),  # the pruner stopped it
        (at(3, 0.1, 0.2, stop_reason="code_collapse"), False, TrialState.PRUNED),
        (None, False, TrialState.PRUNED),  # stopped before its first result
        (at(27, 0.1, 0.2, finished=True), True, TrialState.FAIL),
        (None, True, TrialState.FAIL),
        (at(3, 0.1, 0.2, failed=True), False, TrialState.FAIL),
        (at(27, math.nan, 0.2, finished=True), False, TrialState.FAIL),
        (at(27, 0.1, math.inf, finished=True), False, TrialState.FAIL),
        (at(27, -math.inf, 0.2, finished=True), False, TrialState.FAIL),
        (at(27, 0.1, None, finished=True), False, TrialState.FAIL),  # an objective was not measured
        (at(3, math.nan, math.nan), False, TrialState.PRUNED),
    ],
)
def test_every_end_has_its_state(
    make: MakeSearcher, result: dict[str, Any] | None, error: bool, state: TrialState
) -> None:
    searcher = make()
    searcher.suggest("a")
    searcher.on_trial_complete("a", result, error)
    trial = only_trial(searcher)
    assert trial.state is state
    assert trial.values == ([0.1, 0.2] if state is TrialState.COMPLETE else None)
    assert not searcher.open


@pytest.mark.parametrize("objectives", [f"{MSE}, {JSD}", MSE])
def test_what_tune_never_ended_was_stopped_early(make: MakeSearcher, objectives: str) -> None:
    """Ctrl-C or time is up: no trial stays RUNNING for ever, in memory or in the journal."""
    searcher = make(objectives)
    for name in ("done", "reported", "fresh"):
        searcher.suggest(name)
    searcher.on_trial_complete("done", at(27, 0.1, 0.2, finished=True))
    searcher.on_trial_result("reported", at(3, 0.3, 0.4))
    searcher.close()
    searcher.close()
    read_again = optuna.load_study(study_name=searcher.study.study_name, storage=searcher.study._storage)
    assert [trial.state for trial in read_again.get_trials()] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.PRUNED,
    ]


def test_trials_of_a_search_that_failed_have_failed(make: MakeSearcher) -> None:
    searcher = make(MSE)
    searcher.suggest("reported")
    searcher.on_trial_result("reported", at(3, 0.3, 0.4))
    searcher.close(failed=True)
    assert only_trial(searcher).state is TrialState.FAIL


def test_an_end_is_told_once_and_unknown_trials_are_none_of_ours(make: MakeSearcher) -> None:
    searcher = make()
    searcher.suggest("a")
    searcher.on_trial_complete("a", at(27, 0.1, 0.2, finished=True))
    searcher.on_trial_complete("a", None, error=True)
    searcher.on_trial_complete("b", at(27, 0.1, 0.2, finished=True))
    searcher.on_trial_result("b", at(3, 0.1, 0.2))
    assert only_trial(searcher).state is TrialState.COMPLETE


def test_an_early_value_never_counts_as_a_final_one(make: MakeSearcher) -> None:
    searcher = make()
    searcher.suggest("pruned")
    searcher.on_trial_result("pruned", at(3, 0.001, 0.001))
    searcher.on_trial_complete("pruned", at(3, 0.001, 0.001))
    searcher.suggest("done")
    searcher.on_trial_complete("done", at(27, 0.1, 0.2, finished=True))
    assert [trial.user_attrs["trial_id"] for trial in searcher.study.best_trials] == ["done"]


# ------------------------------------------------------------------------------------------------------ intermediates


def test_one_objective_reports_its_values_on_the_way(make: MakeSearcher) -> None:
    searcher = make(MSE)
    searcher.suggest("a")
    for result in (at(3, 0.5), at(5, math.nan), at(7), at(9, 0.3)):
        searcher.on_trial_result("a", result)
    searcher.on_trial_complete("a", at(9, 0.3))
    trial = only_trial(searcher)
    assert trial.state is TrialState.PRUNED and trial.intermediate_values == {3: 0.5, 9: 0.3}


def test_a_pruned_trial_of_one_objective_may_have_reported_nothing(make: MakeSearcher) -> None:
    searcher = make(MSE)
    searcher.suggest("a")
    searcher.on_trial_complete("a", at(9, math.nan))
    assert only_trial(searcher).state is TrialState.PRUNED


def test_several_objectives_report_nothing_on_the_way(make: MakeSearcher) -> None:
    searcher = make()
    searcher.suggest("a")
    searcher.on_trial_result("a", at(3, 0.5, 0.5))
    assert only_trial(searcher).intermediate_values == {}


# -------------------------------------------------------------------------------------------------------- suggestions


def test_start_points_come_first_and_are_completed_by_the_sampler(make: MakeSearcher) -> None:
    searcher = make()
    assert searcher.suggest("a") == {
        "model.latent_dim": 5,
        "model.prior": "uniform",
        "model.hidden": "128-64",
        "optim.reconstruction_lr": 1e-3,
    }
    second = searcher.suggest("b")
    assert second["model.latent_dim"] == 9 and second.keys() == searcher.space.keys()
    assert [trial.user_attrs for trial in searcher.study.get_trials()] == [{"trial_id": "a"}, {"trial_id": "b"}]
    assert searcher.numbers == {"a": 0, "b": 1}


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
@pytest.mark.parametrize("objectives", [f"{MSE}, {JSD}", MSE])
def test_suggestions_follow_from_the_seed(make: MakeSearcher, sampler: str, objectives: str) -> None:
    def walk(seed: int) -> list[dict[str, Any]]:
        searcher, points = make(objectives, sampler, seed), []
        for index in range(15):
            point = searcher.suggest(f"t{index}")
            assert all(
                point[key] in distribution.choices
                for key, distribution in searcher.space.items()
                if hasattr(distribution, "choices")
            )
            assert 2 <= point["model.latent_dim"] <= 16 and 1e-4 <= point["optim.reconstruction_lr"] <= 1e-2
            lr = 1e3 * point["optim.reconstruction_lr"]
            searcher.on_trial_complete(
                f"t{index}", at(27, abs(lr - 3), 1 / point["model.latent_dim"], finished=index % 3 > 0)
            )
            points.append(point)
        return points

    first = walk(1)
    assert walk(1) == first
    assert walk(2)[2:] != first[2:]


def test_the_sampler_is_the_one_that_was_asked_for(make: MakeSearcher) -> None:
    kinds = {
        "tpe": optuna.samplers.TPESampler,
        "nsga2": optuna.samplers.NSGAIISampler,
        "random": optuna.samplers.RandomSampler,
    }
    for name, kind in kinds.items():
        searcher = make(sampler=name)
        assert type(searcher.study.sampler) is kind
        assert type(build_sampler(read_plan(None, [f"study.sampler.type={name}"]).settings.study.sampler)) is kind


def test_an_empty_space_suggests_nothing_and_still_has_a_trial(make: MakeSearcher) -> None:
    searcher = make(space=False)
    assert searcher.suggest("a") == {}
    searcher.on_trial_complete("a", at(27, 0.1, 0.2, finished=True))
    assert only_trial(searcher).state is TrialState.COMPLETE


def test_objectives_and_directions_are_told_to_tune_and_to_optuna(make: MakeSearcher) -> None:
    searcher = make()
    assert searcher.metric == [MSE, JSD] and searcher.mode == ["min", "min"]
    assert searcher.study.metric_names == [MSE, JSD]
    assert searcher.study.directions == [optuna.study.StudyDirection.MINIMIZE] * 2


def test_creating_a_study_and_asking_it_says_nothing_on_the_console(
    make: MakeSearcher, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    searcher = make()
    searcher.suggest("a")
    searcher.on_trial_complete("a", at(27, 0.1, 0.2, finished=True))
    searcher.suggest("b")
    searcher.close()
    assert capfd.readouterr() == ("", "") and not list(recwarn)


# ---------------------------------------------------------------------------------------------------- kept and carried


def test_optunas_own_tools_can_read_the_journal(make: MakeSearcher, tmp_path: Path) -> None:
    searcher = make()
    searcher.suggest("a")
    searcher.on_trial_complete("a", at(27, 0.1, 0.2, finished=True))
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "0" / JOURNAL)))
    study = optuna.load_study(study_name="study-1", storage=storage)
    assert study.get_trials()[0].params == searcher.study.get_trials()[0].params
    assert study.get_trials()[0].values == [0.1, 0.2] and study.metric_names == [MSE, JSD]


def test_the_numbers_of_trials_are_saved_and_restored(make: MakeSearcher, tmp_path: Path) -> None:
    searcher = make()
    searcher.suggest("a")
    searcher.suggest("b")
    searcher.save(str(tmp_path / "saved.pkl"))
    other = make()
    other.restore(str(tmp_path / "saved.pkl"))
    assert other.numbers == {"a": 0, "b": 1} and other.study.study_name == "study-2"


def test_tune_saves_and_restores_it_by_folder(make: MakeSearcher, tmp_path: Path) -> None:
    searcher = make()
    searcher.suggest("a")
    searcher.save_to_dir(str(tmp_path), "now")
    other = make()
    other.restore_from_dir(str(tmp_path))
    assert other.numbers == {"a": 0}


def test_tune_can_pickle_it_and_the_copy_goes_on(make: MakeSearcher) -> None:
    """Tune writes itself, searcher included, into the experiment's folder."""
    searcher = make()
    searcher.suggest("a")
    copy = cloudpickle.loads(cloudpickle.dumps(searcher))
    copy.on_trial_complete("a", at(27, 0.1, 0.2, finished=True))
    assert only_trial(copy).state is TrialState.COMPLETE
