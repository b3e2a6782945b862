"""Population based training: who takes over from whom, what changes, and that a resume changes nothing."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from aae_ray import settings
from aae_ray.errors import SettingsError
from aae_ray.search import events
from aae_ray.search.conductor import Conductor, Continue, NoSuggestion, Pause
from aae_ray.search.contract import Report, Suggestion
from aae_ray.search.journal import Journal
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import State
from aae_ray.search.population import Next, mutable, mutated, next_of_generation
from aae_ray.search.pruner import rungs
from aae_ray.search.space import Plan, read_plan
from aae_ray.settings import Settings, replace
from aae_ray.tracking.mapping import LogMetrics, MlflowMapping
from tests.search.test_conductor import begin, resume

SPACE = {
    "optim.reconstruction_lr": FloatDistribution(1e-4, 1e-2, log=True),
    "train.input_noise": FloatDistribution(0.0, 0.4),
    "model.latent_dim": IntDistribution(2, 16),
    "train.style_noise": CategoricalDistribution([0.0, 0.1]),
}
PBT = settings.Pruner(type="pbt", grace_period=9, quantile=0.25, mutation_factor=1.5)


def test_rungs_are_equally_far_apart() -> None:
    assert rungs(PBT, 40) == [9, 18, 27, 36] and rungs(PBT, 9) == []


def test_the_last_quarter_takes_over_from_the_first_before_the_others_go_on() -> None:
    values = {number: (float(number), float(number)) for number in range(8)}
    waiting, gone = set(values), []
    while waiting:
        gone.append(next_of_generation(values, waiting, PBT, None, lambda few: few - 1))
        waiting.discard(gone[-1].number)
    assert gone == [Next(6, 1), Next(7, 1), *(Next(number, None) for number in range(6))]


def test_of_few_trials_nobody_takes_over() -> None:
    assert next_of_generation({0: (1.0,), 1: (2.0,)}, [0, 1], PBT, None, lambda few: 0) == Next(0, None)


@pytest.mark.parametrize("seed", range(20))
def test_only_ranges_of_what_may_change_move_and_none_leaves_its_range(seed: int) -> None:
    assert mutable(SPACE) == ["optim.reconstruction_lr", "train.input_noise"]
    draw = random.Random(seed)
    donor = {
        "optim.reconstruction_lr": 10 ** draw.uniform(-4, -2),
        "train.input_noise": draw.uniform(0, 0.4),
        "model.latent_dim": 8,
        "train.style_noise": 0.1,
    }
    changed = mutated(donor, SPACE, PBT, np.random.default_rng(seed))
    for name, distribution in SPACE.items():
        if name not in mutable(SPACE):
            assert changed[name] == donor[name]
            continue
        assert isinstance(distribution, FloatDistribution)
        moved = [min(donor[name] * 1.5, distribution.high), max(donor[name] / 1.5, distribution.low)]
        assert min(abs(changed[name] - value) for value in moved) < 1e-12
    only = mutated(donor, SPACE, PBT.model_copy(update={"mutate": ("train.input_noise",)}), np.random.default_rng(seed))
    assert only["optim.reconstruction_lr"] == donor["optim.reconstruction_lr"]


def test_a_value_that_no_factor_moves_is_drawn_anew_by_the_same_seed() -> None:
    space = SPACE | {"train.style_noise": FloatDistribution(0.1, 0.9, step=0.4)}  # a factor of 1.5 is less than a step
    donor = {"optim.reconstruction_lr": 1e-4, "train.input_noise": 0.0, "train.style_noise": 0.1}
    drawn = [mutated(donor, space, PBT, np.random.default_rng(seed)) for seed in range(40)]
    noises = [each["train.input_noise"] for each in drawn]
    assert len(set(noises)) == 40 and 0 <= min(noises) < 0.1 and 0.3 < max(noises) <= 0.4
    assert {round(each["train.style_noise"], 9) for each in drawn} == {0.1, 0.5, 0.9}
    assert {round(each["optim.reconstruction_lr"] / 1e-4, 9) for each in drawn} == {1, 1.5}  # at the end of its range
    assert drawn == [mutated(donor, space, PBT, np.random.default_rng(seed)) for seed in range(40)]


# -------------------------------------------------------------------------------------------------------- a whole study


def plan() -> Plan:
    changes: dict[str, Any] = {
        "study.budget.trials": 8,
        "train.epochs": 27,
        "study.sampler.type": "random",
        "study.pruner.type": "pbt",
        "study.pruner.grace_period": 9,
    }
    return Plan(replace(Settings(), changes), SPACE)


def report(suggestion: Suggestion, epoch: int) -> Report:
    """Training that the learning rate decides, and no seed."""
    worth = abs(np.log10(suggestion.params["optim.reconstruction_lr"]) + 3)
    history = ({"epoch": float(epoch), "val/reconstruction_mse": worth / epoch, "val/jsd_nats": 0.1 * worth},)
    return Report(suggestion.number, epoch, history, finished=epoch == 27, checkpoint=f"{suggestion.name}/{epoch}")


def run(conductor: Conductor, stop_after: int | None = None) -> list[Suggestion]:
    given: list[Suggestion] = []
    while isinstance(suggestion := conductor.suggest(), Suggestion):
        given.append(suggestion)
        conductor.started(suggestion.number)
        answer = conductor.reported(report(suggestion, suggestion.epoch + 9))
        assert not isinstance(answer, Continue)
        if stop_after is not None and len(given) == stop_after:
            return given
    assert suggestion is NoSuggestion.DONE
    return given


def test_a_population_is_trained_generation_by_generation(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan())
    given = run(conductor)
    assert [one.epoch for one in given] == [0] * 8 + [9] * 8 + [18] * 8
    ledger = conductor.ledger
    assert [trial.state for trial in ledger.trials] == [State.COMPLETE] * 8
    exploited = [event for event in conductor.journal.history if isinstance(event, events.Exploited)]
    assert len(exploited) == 4  # two in each generation
    assert all(event.checkpoint == f"t{event.donor:04d}/{event.epoch}" for event in exploited)
    for event in exploited:
        first = next(one for one in given if one.number == event.number and one.epoch == event.epoch)
        assert first.checkpoint == event.checkpoint and dict(first.params) == event.params
        donor = next(one for one in reversed(given) if one.number == event.donor and one.epoch < event.epoch)
        assert event.params["model.latent_dim"] == donor.params["model.latent_dim"]
        assert event.params["optim.reconstruction_lr"] != donor.params["optim.reconstruction_lr"]
    assert any(trial.donors for trial in ledger.trials)


@pytest.mark.parametrize("after", [1, 5, 8, 9, 10, 17, 20])
def test_a_population_that_is_killed_goes_on_as_the_unbroken_one(tmp_path: Path, after: int) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    whole = run(begin(tmp_path / "whole", plan()))
    broken = begin(tmp_path / "broken", plan())
    first = run(broken, stop_after=after)
    broken.journal.close()
    rest = run(resume(tmp_path / "broken"))
    assert [(one.number, one.epoch, one.params) for one in first + rest] == [
        (one.number, one.epoch, one.params) for one in whole
    ]


def test_a_late_report_of_a_paused_member_changes_nothing(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan())
    (only,) = run(conductor, stop_after=1)
    assert conductor.reported(report(only, 18)) == Pause()


def test_mlflow_has_the_schedule_that_a_trial_went_through(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan())
    run(conductor)
    mapping = MlflowMapping()
    calls = [call for event in Journal.open(tmp_path).history for call in mapping.calls(event)]
    schedules = [
        call for call in calls if isinstance(call, LogMetrics) and "schedule/optim.reconstruction_lr" in call.metrics
    ]
    assert len(schedules) == 4 and {call.step for call in schedules} == {9, 18}
    assert Ledger.replay(Journal.open(tmp_path).history).trials[0].params == conductor.ledger.trials[0].params


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["study.pruner.mutate=[model.latent_dim]"], "study.pruner.mutate: model.latent_dim is not a searched range"),
        (["study.pruner.mutate=[optim.reconstruction_l]"], "Did you mean optim.reconstruction_lr"),
        (
            ["study.pruner.type=asha", "study.pruner.quantile=0.2"],
            "study.pruner.quantile is a setting of study.pruner.type pbt",
        ),
        (["study.seeds_per_trial=3"], "let study.seeds_per_trial be 1"),
    ],
)
def test_what_a_population_cannot_change_is_told_before_the_start(changes: list[str], told: str) -> None:
    with pytest.raises(SettingsError, match=told) as error:
        read_plan("digits", ["study.pruner.type=pbt", *changes])
    assert len(error.value.problems) == 1
