"""The benchmark of the search: its table of curves, the replay on it, the peers' rules, and the contest's parts."""

import json
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace as with_fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from optuna._hypervolume.hssp import _solve_hssp
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import MedianPruner, SuccessiveHalvingPruner
from optuna.trial import TrialState, create_trial
from PIL import Image
from sklearn.exceptions import ConvergenceWarning

from aae_ray.autoencoder.priors import Prior
from aae_ray.datasets.dataset import Dataset
from aae_ray.errors import UserError
from aae_ray.evaluation import divergence
from aae_ray.search import events
from aae_ray.search.objectives import hypervolume as volume
from aae_ray.search.outcomes import FailureClass, Reason, RungVerdict
from aae_ray.search.pruner import Pruner, Rung
from aae_ray.search.space import Plan, read_plan
from aae_ray.settings import Settings, replace, setting
from aae_ray.training.health import worse_than_the_mean_image
from aae_ray.training.loop import Training
from tests.search.histories import History

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks are not installed

from benchmarks import rivals, search
from benchmarks.contest import optuna_script, race
from benchmarks.contest.race import Contest, Found, Run
from benchmarks.contest.ray_script import ENDED
from benchmarks.replay import Simulation, Step, Trace, replay
from benchmarks.rivals import RIVALS, OptunaSampler, Pair, Rule, Rungs
from benchmarks.search_table import (
    JSD,
    MEAN_IMAGE_MSE,
    MSE,
    SHARED,
    Curve,
    Point,
    Surrogate,
    Table,
    best_configurations,
    hypervolume,
    read_studies,
    read_table,
    write_table,
)

EPOCHS, GRACE = 9, 3
RATE, PRIOR, WIDTHS = "optim.reconstruction_lr", "model.prior", "model.hidden"
SPACE = {
    RATE: FloatDistribution(1e-4, 1e-2, log=True),
    "model.latent_dim": IntDistribution(2, 16, log=True),
    PRIOR: CategoricalDistribution(["gaussian", "uniform"]),
    WIDTHS: CategoricalDistribution(["64-32", "128-64"]),
}
SETTINGS = replace(
    Settings(),
    {
        "train.epochs": EPOCHS,
        "study.pruner.type": "none",
        "study.pruner.grace_period": GRACE,
        "study.sampler.type": "random",
    },
)


def drawn(count: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    return [
        {
            RATE: float(10 ** random.uniform(-4, -2)),
            "model.latent_dim": int(random.integers(2, 17)),
            PRIOR: ["gaussian", "uniform"][random.integers(2)],
            WIDTHS: ["64-32", "128-64"][random.integers(2)],
        }
        for _ in range(count)
    ]


def metrics(params: Mapping[str, Any], epoch: int) -> dict[str, float]:
    """A made-up response: large rates reconstruct better and match worse, and one prior is harder to match."""
    speed = (math.log10(params[RATE]) + 4) / 2
    found = {"epoch": float(epoch), MSE: 0.06 - 0.05 * speed * epoch / EPOCHS, MEAN_IMAGE_MSE: 0.07}
    if epoch in (GRACE, EPOCHS):
        found[JSD] = (0.5 * speed + 0.1 * (params[PRIOR] == "uniform")) * (2 - epoch / EPOCHS)
    return found


def report(study: History, number: int, first: int, last: int, **more: Any) -> None:
    params = study.trial(number).params
    study.add(
        events.Reported(
            number=number,
            epoch=last,
            history=tuple(metrics(params, epoch) for epoch in range(first, last + 1)),
            checkpoint=f"trials/{number}/{last}",
            training_seconds=float(last - first + 1),
            evaluation_seconds=0.5 * (last - first + 1),
            **more,
        )
    )


def train(study: History, params: Mapping[str, Any]) -> int:
    """A trial from its suggestion to its end."""
    number = study.begin(params)
    report(study, number, 1, GRACE)
    report(study, number, GRACE + 1, EPOCHS, finished=True)
    study.end(number)
    return number


def finished_study(points: Sequence[Mapping[str, Any]]) -> History:
    study = History(Plan(SETTINGS, SPACE))
    for params in points:
        train(study, params)
    return study


def cut(curve: Curve, epochs: int) -> Curve:
    """A curve that a health check ended after so many epochs."""
    seen = {name: values_E[:epochs] for name, values_E in curve.metrics.items()}
    return with_fields(curve, metrics=seen, seconds_E=curve.seconds_E[:epochs], stop_reason=Reason.SATURATED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a study of forty trials."""
    return finished_study(drawn(40)).write(tmp_path_factory.mktemp("studies") / "random")


@pytest.fixture(scope="module")
def table(folder: Path) -> Table:
    return read_studies([folder])[0]


@pytest.fixture(scope="module")
def surrogate(table: Table) -> Surrogate:
    return Surrogate(table)


# ----------------------------------------------------------------------------------------------------------- the table


def test_a_study_becomes_a_curve_for_each_trial_that_came_to_an_end(tmp_path: Path) -> None:
    one, two, three, four = drawn(4)
    study = History(Plan(SETTINGS, SPACE))
    train(study, one)
    stopped = study.begin(two)
    report(study, stopped, 1, 2, stop_reason=Reason.SATURATED)
    study.end(stopped, Reason.SATURATED)
    failed = study.begin(three)
    report(study, failed, 1, GRACE)
    study.fail(failed, FailureClass.BUG)
    retried = study.begin(four)
    report(study, retried, 1, 5)
    study.fail(retried, FailureClass.LOST_WORKER, retry=True)
    study.attempt(retried)
    report(study, retried, 4, EPOCHS, finished=True)
    study.end(retried)

    table, left_out = read_studies([study.write(tmp_path / "study")])
    assert left_out == 1
    assert [(curve.params, curve.epochs, curve.stop_reason) for curve in table.curves] == [
        (one, EPOCHS, None),
        (two, 2, Reason.SATURATED),
        (four, EPOCHS, None),
    ]
    first = table.curves[0]
    assert [first.at(epoch) for epoch in range(1, EPOCHS + 1)] == [metrics(one, e) for e in range(1, EPOCHS + 1)]
    assert first.seconds_E.tolist() == [1.5] * EPOCHS
    assert table.measured_at == {GRACE, EPOCHS}
    assert table.reference == pytest.approx((0.07, math.log(2)))


def test_further_seeds_stand_beside_the_first(tmp_path: Path, folder: Path) -> None:
    one = drawn(1)[0]
    study = History(Plan(SETTINGS, {**SPACE, "seed": CategoricalDistribution([1, 2])}))
    for seed in (1, 2):
        train(study, {**one, "seed": seed})
    table, _ = read_studies([folder, study.write(tmp_path / "seeds")])
    assert len(table.by_configuration) == 40 and table.space == SPACE
    assert [(curve.params, curve.seed) for curve in table.by_configuration[0]] == [(one, 0), (one, 1), (one, 2)]


def test_studies_of_other_settings_are_refused(tmp_path: Path, folder: Path) -> None:
    study = History(Plan(replace(SETTINGS, {"train.batch_size": 7}), {**SPACE, RATE: FloatDistribution(1e-3, 1e-2)}))
    train(study, drawn(1)[0])
    with pytest.raises(UserError, match=rf"space\.{RATE}, train\.batch_size"):
        read_studies([folder, study.write(tmp_path / "other")])


def test_a_study_without_an_end_is_refused(tmp_path: Path) -> None:
    study = History(Plan(SETTINGS, SPACE))
    study.begin(drawn(1)[0])
    with pytest.raises(UserError, match="no trial was trained to its end"):
        read_studies([study.write(tmp_path / "study")])


def test_a_table_is_kept_as_parquet(tmp_path: Path, table: Table) -> None:
    write_table(table, tmp_path / "table.parquet")
    again = read_table(tmp_path / "table.parquet")
    assert again.space == table.space
    assert all(setting(again.settings, key) == setting(table.settings, key) for key in SHARED)
    for one, other in zip(table.curves, again.curves, strict=True):
        assert (one.configuration, one.params, one.seed, one.stop_reason) == (
            other.configuration,
            other.params,
            other.seed,
            other.stop_reason,
        )
        np.testing.assert_allclose(one.seconds_E, other.seconds_E)
        for name, values_E in one.metrics.items():
            np.testing.assert_allclose(values_E, other.metrics[name], rtol=1e-6)
    assert again.measured_at == table.measured_at


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.parquet").write_text("curves")
    with pytest.raises(UserError, match="is not a table of learning curves"):
        read_table(tmp_path / "table.parquet")


@given(st.lists(st.tuples(st.integers(-2, 12), st.integers(-2, 12)), max_size=8))
def test_hypervolume_counts_the_cells_that_are_dominated(points: list[tuple[int, int]]) -> None:
    cells = sum(any(x <= i and y <= j for x, y in points) for i in range(10) for j in range(10))
    assert hypervolume([(x / 10, y / 10) for x, y in points]) == pytest.approx(cells / 100)


def test_the_surrogate_has_learned_the_curves(surrogate: Surrogate) -> None:
    """The made-up objectives follow rules: configurations that were held out are told in the right order."""
    mse, jsd = surrogate.rank_correlation(folds=4)
    assert mse > 0.85 and jsd > 0.8
    assert len(surrogate.rows) == 40  # the forest of the whole table is back
    for params in drawn(40):
        curve = surrogate.curve(params)
        assert curve.at(EPOCHS)[MSE] == pytest.approx(metrics(params, EPOCHS)[MSE], abs=0.01)
        assert curve.at(2).keys() == metrics(params, 2).keys() and curve.seconds_E.tolist() == pytest.approx([1.5] * 9)


def test_the_surrogate_takes_the_mean_of_seeds(table: Table) -> None:
    """A configuration that was lucky once, and unlucky once, is what it was without luck."""
    lucky = [curve for curve in table.curves for _ in range(2)]
    curves = []
    for index, curve in enumerate(lucky):
        gap = 0.01 if index % 2 else -0.01
        seen = {MSE: curve.metrics[MSE] * math.exp(3 * gap), JSD: curve.metrics[JSD] + gap}
        curves.append(with_fields(curve, seed=index % 2, metrics={**curve.metrics, **seen}))
    noisy = with_fields(table, curves=tuple(curves))
    assert noisy.spread_of_seeds == pytest.approx((0.03 * math.sqrt(2), 0.01 * math.sqrt(2)))
    assert sum(table.spread_of_seeds) == 0
    same, once = Surrogate(noisy), Surrogate(table)
    params = drawn(1)[0]
    assert same.curve(params).at(EPOCHS) == pytest.approx(once.curve(params).at(EPOCHS), rel=1e-3)


def test_what_health_ended_ends_near_it(table: Table) -> None:
    """Every configuration of one prior was ended at epoch 4: so is what is like them, and nothing else."""
    ill = tuple(cut(curve, 4) if curve.params[PRIOR] == "uniform" else curve for curve in table.curves)
    surrogate = Surrogate(with_fields(table, curves=ill))
    for params in drawn(60)[40:]:
        curve = surrogate.curve(params)
        expected = (4, Reason.SATURATED) if params[PRIOR] == "uniform" else (EPOCHS, None)
        assert (curve.epochs, curve.stop_reason, curve.params) == (*expected, params)


def test_the_best_configurations_are_those_of_the_first_fronts(table: Table) -> None:
    ends = {id(curve.params): table.normalised(curve.at(EPOCHS)) for curve in table.curves}
    best = best_configurations(table, 40)
    ranks = [rivals.pareto_ranks(list(ends.values()))[list(ends).index(id(params))] for params in best]
    assert ranks == sorted(ranks) and ranks[0] == 0


def test_seeds_are_a_study_that_the_platform_reads(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_main("seeds", str(folder), "--best", "3", "--seeds", "2")
    printed = capsys.readouterr().out
    (tmp_path / "seeds.yaml").write_text(printed)
    plan = read_plan(str(tmp_path / "seeds.yaml"))
    assert [point["seed"] for point in plan.start] == [1, 2] * 3
    assert plan.settings.study.budget.trials == 6 and plan.settings.study.pruner.type == "none"
    assert plan.settings.train == SETTINGS.train
    assert {name: plan.space[name] for name in SPACE} == SPACE
    assert yaml.safe_load(printed)["study"]["name"] == "study-seeds"


# --------------------------------------------------------------------------------------------------------- the replay


def run_main(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["search", *arguments])
        search.main()


@pytest.mark.slow
def test_a_replay_is_a_function_of_its_seed(surrogate: Surrogate) -> None:
    for name in (*RIVALS, "ours", "random+asha"):
        pair = search.pair_of(name)
        pair = with_fields(pair, settings={**pair.settings, "study.pruner.grace_period": GRACE})
        one, again, other = (replay(surrogate, pair, seed, 5 * EPOCHS, 5 * EPOCHS) for seed in (0, 0, 1))
        assert one == again and one != other, name
        volumes = [step.hypervolume for step in one.steps]
        assert volumes == sorted(volumes) and volumes[-1] <= 1, name


def test_two_workers_train_at_a_time_and_all_epochs_count(surrogate: Surrogate) -> None:
    simulation = Simulation(surrogate, RIVALS["random"], 0, budget=0, most=6 * EPOCHS)
    simulation.run()
    trials = simulation.conductor.ledger.trials
    assert simulation.spent == sum(trial.epoch for trial in trials) == 6 * EPOCHS
    assert simulation.now == 1.5 * 6 * EPOCHS / 2
    # Both stand at the rung when the first of them comes to its end.
    ends = [epochs for pair in range(3) for epochs in ((2 * pair + 1) * EPOCHS + GRACE, (2 * pair + 2) * EPOCHS)]
    assert [step.epochs for step in simulation.steps] == ends


def test_optuna_s_samplers_learn_from_the_trials_that_ended(surrogate: Surrogate) -> None:
    for name in ("optuna-tpe", "optunahub-multi-metric"):
        simulation = Simulation(surrogate, RIVALS[name], 0, budget=20 * EPOCHS, most=20 * EPOCHS)
        simulation.run()
        sampler = simulation.conductor.sampler
        assert isinstance(sampler, OptunaSampler)
        told = sampler.own.get_trials()
        trials = simulation.conductor.ledger.trials
        ended = [trial for trial in trials if trial.reason in (Reason.COMPLETED, Reason.PRUNED)]
        assert len([each for each in told if each.state.is_finished()]) >= len(ended) - 2 > 10, name
        for trial, each in zip(trials, told, strict=False):
            assert not each.values or each.values == [trial.metrics[MSE], trial.metrics[JSD]]
        random = Simulation(surrogate, RIVALS["random"], 0, budget=20 * EPOCHS, most=20 * EPOCHS)
        random.run()
        assert [t.params for t in trials][15:20] != [t.params for t in random.conductor.ledger.trials][15:20], name


def test_a_stopped_trial_frees_its_worker(surrogate: Surrogate) -> None:
    unpruned = replay(surrogate, RIVALS["random"], 0, 8 * EPOCHS, 8 * EPOCHS)
    for name in ("scalar-asha", "syne-tune-moasha"):
        pruned = replay(surrogate, RIVALS[name], 0, 8 * EPOCHS, 8 * EPOCHS)
        assert pruned.trials > unpruned.trials and len(pruned.steps) < len(unpruned.steps), name


def test_a_replay_ends_at_the_target_when_its_budget_is_spent(surrogate: Surrogate) -> None:
    trace = replay(surrogate, RIVALS["random"], 0, 2 * EPOCHS, 1000 * EPOCHS)
    assert trace.reached and trace.steps[-1].epochs < 1000 * EPOCHS
    assert trace.epochs_to_target == trace.steps[-1].epochs
    short = with_fields(trace, steps=trace.steps[:1], most_epochs=77)
    assert not short.reached and short.epochs_to_target == 77
    assert [step.nearest for step in trace.steps] == sorted((step.nearest for step in trace.steps), reverse=True)
    assert trace.hypervolume_at(0) == 0 and trace.hypervolume_at(10**6) == trace.steps[-1].hypervolume


def test_a_curve_that_health_ended_ends_the_trial(table: Table) -> None:
    ill = with_fields(table, curves=tuple(cut(curve, 4) for curve in table.curves[1:]) + table.curves[:1])
    simulation = Simulation(Surrogate(ill), RIVALS["random"], 0, budget=0, most=5 * EPOCHS)
    simulation.run()
    ended = [trial for trial in simulation.conductor.ledger.trials if not trial.open]
    assert ended and all((trial.reason, trial.epoch) == (Reason.SATURATED, 4) for trial in ended)
    assert not simulation.steps


@pytest.mark.slow
def test_no_pair_is_ended_by_trials_that_diverge(table: Table) -> None:
    ill = tuple(with_fields(cut(curve, 4), stop_reason=Reason.DIVERGED) for curve in table.curves[1:])
    simulation = Simulation(Surrogate(with_fields(table, curves=(*ill, table.curves[0]))), RIVALS["random"], 0, 0, 90)
    simulation.run()
    assert simulation.spent >= 90 and simulation.conductor.ledger.end is None


@pytest.mark.slow
def test_luck_is_seen_by_the_search_and_not_counted(table: Table) -> None:
    worse = ({**curve.metrics, MSE: 1.2 * curve.metrics[MSE]} for curve in table.curves)
    second = [with_fields(curve, seed=1, metrics=seen) for curve, seen in zip(table.curves, worse, strict=True)]
    curves = [*table.curves, *second]
    simulation = Simulation(Surrogate(with_fields(table, curves=tuple(curves))), RIVALS["random"], 0, 0, 4 * EPOCHS)
    simulation.run()
    complete = [trial for trial in simulation.conductor.ledger.trials if not trial.open]
    assert len(complete) == len(simulation.found)
    for trial, point in zip(complete, simulation.found, strict=True):
        clean = simulation.surrogate.curve(trial.params)
        assert point == simulation.table.normalised(clean.at(EPOCHS))
        assert trial.metrics[MSE] != clean.at(EPOCHS)[MSE]


def test_rungs_that_the_table_does_not_have_are_told(surrogate: Surrogate) -> None:
    pair = Pair({"study.pruner.grace_period": 2})
    with pytest.raises(UserError, match=r"grace_period=2 .* at epochs 2, 6, and the table has them at 3, 9"):
        replay(surrogate, pair, 0, EPOCHS, EPOCHS)


@pytest.mark.parametrize(("name", "wrong"), [("tpe", "SAMPLER\\+PRUNER"), ("guess+none", "study.sampler.type")])
def test_a_pair_that_does_not_exist_is_told(surrogate: Surrogate, name: str, wrong: str) -> None:
    with pytest.raises(UserError, match=wrong):
        replay(surrogate, search.pair_of(name), 0, EPOCHS, EPOCHS)


@pytest.mark.slow
def test_replays_write_their_keys(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, written = tmp_path / "table.parquet", tmp_path / "replay.json"
    run_main("table", str(folder), "--file", str(file))
    assert "40 curves of 40 configurations" in capsys.readouterr().out
    flags = ["--seeds", "2", "--budget", "4", "--most", "8", "--jobs", "1", "--json", str(written)]
    run_main("replay", "--file", str(file), "--pairs", "random+asha", "scalar-asha", *flags)
    found = json.loads(written.read_text())
    assert set(found["pairs"]) == {"random", "random+asha", "scalar-asha"}
    for row in found["pairs"].values():
        assert 0 < row["epochs_to_top_2_percent"]["median"] <= 8 * EPOCHS
        assert 0 < row["hypervolume_at_budget"]["low"] <= row["hypervolume_at_budget"]["high"] <= 1
    assert found["pairs"]["random"]["ratio_to_random"]["median"] == 1
    assert "random / pair" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------- the rivals


def test_the_summary_counts_what_did_not_reach_with_all_its_epochs() -> None:
    def trace(epochs: int, nearest: float) -> Trace:
        return Trace((Step(epochs, 1.0, 1 - nearest, nearest),), target=0.5, most_epochs=100, trials=3)

    row = search.summary([trace(10, 0.4), trace(20, 0.4), trace(30, 0.9)], [trace(40, 0.5)] * 3, budget=15)
    assert row["epochs_to_top_2_percent"]["median"] == 20 and row["reached"] == pytest.approx(2 / 3)
    assert row["ratio_to_random"] == {"median": 2, "low": 0.4, "high": 4}
    assert row["hypervolume_at_budget"]["median"] == 0


def seen(*arrivals: Point, factor: int = 3) -> Rungs:
    rungs = Rungs(factor)
    for number, point in enumerate(arrivals):
        rungs.reached(number, GRACE, point)
    return rungs


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_asha_stops_whom_optuna_s_successive_halving_stops(scores: list[int]) -> None:
    pruner = SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    study = optuna.create_study(pruner=pruner)
    rungs = Rungs(3)
    for number, score in enumerate(scores):
        trial = study.ask()
        trial.report(float(score), step=1)
        rungs.reached(number, 1, (score / 2, score / 2))
        assert rivals.asha(rungs, number, 1) == trial.should_prune()


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), max_size=12),
    st.integers(0, 3),
)
def test_multi_metric_stops_whom_optuna_s_median_of_pareto_ranks_stops(
    values: list[tuple[int, int, int, int]], running: int
) -> None:
    """The last trials still run, and the very last one is asked about, at its second rung."""
    values = [*values, (2, 2, 2, 2)]
    rungs = Rungs(3)
    for number, (a, b, c, d) in enumerate(values):
        rungs.reached(number, 3, (a, b))
        rungs.reached(number, 9, (c, d))
    own = len(values) - 1
    rungs.ended = set(range(max(own - running, 0)))
    ranks = {rung: rivals.joint_ranks(rungs.at[rung], own) for rung in (3, 9)}

    study = optuna.create_study(pruner=MedianPruner())
    for number in rungs.ended:
        each = {rung: ranks[rung][number] for rung in (3, 9)}
        study.add_trial(create_trial(state=TrialState.COMPLETE, value=0.0, intermediate_values=each))
    trial = study.ask()
    for rung in (3, 9):
        trial.report(ranks[rung][own], step=rung)
    assert rivals.multi_metric(rungs, own, 9) == trial.should_prune()


def test_joint_ranks_are_fronts_and_within_the_trial_s_own_an_order() -> None:
    front, second, third = (
        {0: (0.0, 1.0), 1: (1.0, 0.0)},
        {2: (1.0, 4.0), 3: (2.0, 2.0), 4: (2.2, 1.9), 5: (3.9, 1.0)},
        6,
    )
    points = front | second | {third: (5.0, 5.0)}
    plain = dict.fromkeys(front, 0.0) | dict.fromkeys(second, 1.0) | {third: 2.0}
    assert rivals.joint_ranks(points, third) == plain
    for own in front:
        assert rivals.joint_ranks(points, own) == plain | {own: -1.0}
    # The middle adds most, then what is left above and below it, and last the one next to it.
    order = {3: 1 - 0.5, 2: 1 - 0.5 + 0.4 / 3, 5: 1 - 0.1 - 0.4 / 3, 4: 1 - 0.1}
    for own in second:
        assert rivals.joint_ranks(points, own) == pytest.approx(plain | order)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=12, unique=True))
def test_points_are_ordered_as_optuna_selects_them_by_hypervolume(points: list[tuple[int, int]]) -> None:
    """As OptunaHub's pruner does, by the selector for one point less than there are."""
    front = np.array(sorted(p for p, rank in zip(points, rivals.pareto_ranks(points), strict=True) if not rank), float)
    worst_2 = front.max(0)
    selected = _solve_hssp(
        front, np.arange(len(front)), max(len(front) - 1, 1), np.maximum(1.1 * worst_2, 0.9 * worst_2)
    )
    order = rivals.by_hypervolume(front)
    assert order[: len(selected)] == selected.tolist() and sorted(order) == list(range(len(front)))


def test_moasha_takes_the_first_front_first_and_spreads_within_it() -> None:
    front = [(0.0, 0.9), (0.1, 0.8), (0.9, 0.0), (0.5, 0.4)]
    points = np.array(front)
    assert rivals.epsilon_net(points) == [0, 2, 3, 1]  # the best first objective, its farthest, the one between
    rungs = seen(*front, (0.95, 0.95), (1.0, 1.0))
    stopped = [number for number in range(6) if rivals.moasha(rungs, number, GRACE)]
    assert stopped == [1, 4, 5]  # of six, those on places 3, 4 and 5: above a third
    assert not rivals.moasha(seen((1.0, 1.0)), 0, GRACE)  # the first one goes on
    assert rivals.moasha(seen((0.1, 0.1), (math.inf, math.inf)), 1, GRACE)


def test_pareto_ranks_are_those_of_fronts() -> None:
    assert rivals.pareto_ranks([(0, 2), (1, 1), (1, 2), (0, 2), (3, 3)]) == [0, 0, 1, 0, 2]


# ----------------------------------------------------------------- the platform's pruner beside theirs, recorded curves


@cache
def recorded() -> Table:
    return read_table(search.TABLE)


def test_the_table_that_ships_has_what_the_replays_need() -> None:
    assert search.TABLE.stat().st_size < 2e6 and len(recorded().by_configuration) >= 300
    whole = [curve for curve in recorded().curves if curve.stop_reason is None]
    assert {curve.epochs for curve in whole} == {recorded().settings.train.epochs} and len(whole) >= 300
    assert recorded().measured_at >= {3, 9, 27, 81, recorded().settings.train.epochs}
    seeds = {str(curves[0].params): {curve.seed for curve in curves} for curves in recorded().by_configuration}
    assert all(len(seeds[str(params)]) >= 3 for params in best_configurations(recorded(), 30))


class Answer(NamedTuple):
    """What is said of a trial that has come to a rung."""

    decided: events.Decided
    stopped: bool  # by the rival's rule
    others: list[int]  # fronts of those that have been there
    front: int  # its own


class Arrivals:
    """Recorded configurations come to a rung one after the other; whoever may go on later does at once. Those that are
    not `honest`, worse than the mean image, come only where it is asked for."""

    def __init__(self, rung: int, rule: Rule, kind: str, metric: str, honest: bool) -> None:
        table = recorded()
        study = replace(table.settings, {"study.pruner.type": kind, "study.pruner.metric": metric}).study
        self.pruner, self.rung, seen = Pruner(study, table.reference), Rung(), Rungs(study.pruner.reduction_factor)
        curves = (curves[0] for curves in table.by_configuration[:200] if curves[0].epochs >= rung)
        self.metrics = [curve.at(rung) for curve in curves]
        self.metrics = [each for each in self.metrics if not (honest and worse_than_the_mean_image(each))]
        self.answers: list[Answer] = []
        self.promoted: list[int] = []
        for number, measured in enumerate(self.metrics):
            decided = self.pruner.decide(number, rung, measured, self.rung)
            self.rung.apply(decided, number)
            mse, jsd = table.normalised(measured)
            seen.reached(number, rung, (mse, jsd if metric == "front" else mse))
            *others, front = rivals.pareto_ranks(list(seen.at[rung].values()))
            self.answers.append(Answer(decided, rule(seen, number, rung), others, front))
            seen.ended.add(number)
            while (later := self.pruner.promote(rung, self.rung)) is not None:
                self.rung.apply(later, later.number)
                self.promoted.append(later.number)
        assert len(self.answers) > 100

    @property
    def gone_on(self) -> set[int]:
        return {number for number, verdict in self.rung.verdicts.items() if verdict is RungVerdict.CONTINUE}


@cache
def arrivals(
    rung: int, rule: Rule = rivals.moasha, kind: str = "asha", metric: str = "front", honest: bool = True
) -> Arrivals:
    return Arrivals(rung, rule, kind, metric, honest)


def test_on_one_objective_moasha_lets_the_same_trials_go_on_at_once() -> None:
    """But for the one at the very edge, which it takes where their number divides by the factor."""
    for decided, stopped, *_ in arrivals(9, metric=MSE).answers:
        edge = 3 * decided.ahead == decided.reached
        assert (decided.verdict is RungVerdict.CONTINUE) == (not stopped and not edge)


@pytest.mark.parametrize("rung", [9, 27])
def test_moasha_differs_only_on_the_front_that_is_cut(rung: int) -> None:
    differ = 0
    for decided, stopped, others, front in arrivals(rung).answers:
        better, alike = sum(other < front for other in others), 1 + others.count(front)
        goes_on = decided.verdict is RungVerdict.CONTINUE
        if 3 * (better + alike) <= decided.reached:  # the whole front is among the first third
            assert goes_on and not stopped
        elif 3 * better > decided.reached:  # or none of it
            assert not goes_on and stopped
        else:
            differ += goes_on is stopped
    assert differ > 0


@pytest.mark.parametrize("rung", [9, 27])
def test_of_a_front_those_go_on_that_add_most_by_themselves(rung: int) -> None:
    """Where MO-ASHA takes an epsilon net."""
    points = [(measured[MSE], measured[JSD]) for measured in arrivals(rung).metrics]
    for decided, _, others, front in arrivals(rung).answers:
        alike = [number for number, other in enumerate([*others, front]) if other == front]
        rest = {own: [points[number] for number in alike if number != own] for own in alike}
        left = {own: volume(without, recorded().reference) for own, without in rest.items()}
        more = sum(left[number] < left[decided.number] - 1e-12 for number in alike)
        assert decided.ahead == sum(other < front for other in others) + more


@pytest.mark.parametrize("rung", [9, 27])
def test_who_is_paused_may_still_go_on_where_moasha_has_stopped_it(rung: int) -> None:
    found = arrivals(rung)
    order = found.rung.ranks.order(recorded().reference)
    first = set(order[: math.ceil(len(order) / 3)])
    assert first <= found.gone_on
    assert sum(found.answers[number].stopped for number in first) > 0
    assert sum(found.answers[number].stopped for number in found.promoted) > 5


@pytest.mark.parametrize("rung", [9, 27])
def test_multi_metric_is_the_median_rule_by_front(rung: int) -> None:
    stopped = []
    for decided, stops, others, front in arrivals(rung, rivals.multi_metric, "median").answers[5:]:
        better, alike = sum(other < front for other in others), others.count(front)
        if 2 * better > len(others):
            assert decided.verdict is RungVerdict.STOP and stops
        elif 2 * (better + alike) < len(others):
            assert decided.verdict is RungVerdict.CONTINUE and not stops
        stopped += [front] if stops else []
    assert min(stopped) > 0 and len(stopped) > 20  # whom nobody dominates it never stops


@pytest.mark.parametrize("rule", [rivals.moasha, rivals.multi_metric])
def test_theirs_let_trials_go_on_that_are_worse_than_the_mean_image(rule: Rule) -> None:
    found = arrivals(9, rule, honest=False)
    worse = {number for number, measured in enumerate(found.metrics) if worse_than_the_mean_image(measured)}
    assert {found.rung.verdicts[number] for number in worse} == {RungVerdict.STOP}
    assert sum(not found.answers[number].stopped for number in worse) > 5


# --------------------------------------------------------------------------------------------------------- the contest


@pytest.fixture
def contest(tmp_path: Path, digits: Dataset) -> Contest:
    return Contest(tmp_path, 1.0, (), digits, (race.mean_image_mse(digits), math.log(2)))


@pytest.fixture(scope="module")
def script_trial(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> tuple[optuna.Trial, float, Path]:
    """A trial of the script that has trained for an epoch, its reconstruction error as the script has it, and what it
    has left."""
    folder = tmp_path_factory.mktemp("script")
    train, val = (torch.from_numpy(race.pixels(digits, rows)) for rows in (digits.train, digits.val))
    torch.manual_seed(0)
    trial = optuna.create_study(directions=["minimize"] * 2).ask()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        patch.setattr(optuna_script, "EPOCHS", 1)
        mse, _ = optuna_script.objective(trial, train, val, folder)
    return trial, mse, folder / "trial-0.npz"


def test_the_script_searches_the_space_of_the_study(script_trial: tuple[optuna.Trial, float, Path]) -> None:
    assert script_trial[0].distributions == read_plan(str(race.STUDY)).space


def test_a_trial_of_the_script_is_judged_by_what_it_left(
    script_trial: tuple[optuna.Trial, float, Path], tmp_path: Path, digits: Dataset
) -> None:
    _, mse, file = script_trial
    assert race.judge(file, digits)[MSE] == pytest.approx(mse, rel=1e-4)
    left = dict(np.load(file))
    for codes, low, high in ((left["prior"][-len(digits.val) :], -0.05, 0.05), (left["codes"] + 50, 0.6, 0.7)):
        np.savez(tmp_path / "trial-1.npz", **{**left, "codes": codes})
        assert low < race.judge(tmp_path / "trial-1.npz", digits)[JSD] < high


@pytest.mark.parametrize("name", ["gaussian", "uniform", "mixture", "swiss_roll"])
def test_the_script_draws_from_the_platform_s_priors(name: str) -> None:
    torch.manual_seed(0)
    z_NZ = optuna_script.sample_prior(name, 20_000, 3)
    ours_NZ = Prior(name, 3).sample(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(z_NZ.std(0), ours_NZ.std(0), rtol=0.03, atol=0)
    distance = divergence.sliced_wasserstein(z_NZ, ours_NZ, 1.0, seed=0)
    assert distance < 2 * divergence.sliced_wasserstein(ours_NZ[:10_000], ours_NZ[10_000:], 1.0, seed=0)


def test_the_reference_is_that_of_the_metrics(digits: Dataset, small_run: Settings) -> None:
    measured = Training(small_run, digits).evaluation.cheap("val")[MEAN_IMAGE_MSE]
    assert race.mean_image_mse(digits) == pytest.approx(measured, rel=1e-5)


def test_what_a_study_found_is_read_from_its_journal(contest: Contest) -> None:
    points = drawn(2)
    study = finished_study(points)
    stopped = study.begin(points[0])
    report(study, stopped, 1, GRACE)
    study.end(stopped, Reason.PRUNED)
    study.write(contest.folder / "runs" / "study-1")
    found = contest.read_journal(contest.folder, began=study.events[0].time)
    assert [each.point for each in found] == [contest.normalised(metrics(params, EPOCHS)) for params in points]
    ends = [event.time for event in study.events if isinstance(event, events.Ended)]
    assert [each.seconds for each in found] == [end - study.events[0].time for end in ends[:2]]


def test_what_ray_s_pattern_found_is_read_from_its_lines(contest: Contest) -> None:
    whole, lost = {MSE: contest.reference[0] / 2, JSD: math.log(2) / 4}, {MSE: 0.01}
    lines = [{"time": 103.0, "metrics": whole}, {"time": 104.0, "metrics": lost}]
    (contest.folder / ENDED).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert contest.read_ended(contest.folder, began=100.0) == [Found(3.0, (0.5, 0.25))]


def test_a_search_is_ended_when_its_time_is_up(contest: Contest) -> None:
    def read(folder: Path, began: float) -> list[Found]:
        assert (folder / "interrupted").exists()
        return [Found(1.5, (0.1, 0.1)), Found(0.9, (0.2, 0.2)), Found(0.5, (0.3, 0.3))]

    waits = "import pathlib, time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: pathlib.Path('interrupted').touch()"
    run = contest.run(["-c", waits], contest.folder / "run", read)
    assert [found.seconds for found in run.found] == [0.5, 0.9]  # what came after its time does not count


def test_a_search_that_fails_says_why(contest: Contest) -> None:
    patient = with_fields(contest, seconds=30.0)
    with pytest.raises(SystemExit, match="ended with 1:\n(.|\n)*no such thing"):
        patient.run(["-c", "raise ValueError('no such thing')"], contest.folder / "run", lambda folder, began: [])


def test_a_contest_is_judged_in_pairs_of_seeds(tmp_path: Path) -> None:
    ours = [Run((Found(10, (0.5, 0.5)), Found(20, (0.6, 0.6)), Found(30, (0.2, 0.2)))), Run((Found(5, (0.5, 0.5)),))]
    script = [Run((Found(40, (0.5, 0.4)),)), Run((Found(50, (0.4, 0.5)),))]
    slow = [Run(()), Run((Found(90, (0.5, 0.5)),))]
    assert ours[0].curve() == [(10, 0.25), (30, pytest.approx(0.64))]
    found = race.results({race.OURS: ours, race.SCRIPT: script, race.DOCUMENTED: slow}, 100.0)
    assert found["against"][race.SCRIPT]["gain"]["median"] == pytest.approx((0.64 - 0.3 + 0.25 - 0.3) / 2)
    assert found["against"][race.SCRIPT]["seconds_to_reach"]["median"] == (30 + 100) / 2  # the second never had as much
    assert found["against"][race.SCRIPT]["reached"] == 0.5
    assert found["against"][race.DOCUMENTED]["seconds_to_reach"]["high"] == 10  # of nothing: its first trial
    race.draw(found["curves"], 100.0, tmp_path / "search.png")
    with Image.open(tmp_path / "search.png") as picture:
        assert picture.width > 900


@pytest.mark.slow
def test_the_contest_writes_its_keys(tmp_path: Path) -> None:
    written, figure = tmp_path / "contest.json", tmp_path / "search.png"
    flags = ["--seconds", "150", "--seeds", "1", "--calibration-seconds", "0.2", "--figure", str(figure)]
    run_main("contest", *flags, "--json", str(written))
    found = json.loads(written.read_text())
    assert set(found["hypervolume"]) == {race.OURS, race.SCRIPT, race.DOCUMENTED}
    assert all(0 < row["median"] < 1 for row in found["hypervolume"].values())
    assert figure.exists()
