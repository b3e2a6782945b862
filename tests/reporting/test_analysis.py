"""What a study says of its own search: which settings mattered, and which of the best trial's did not."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aae_ray.reporting.analysis import SearchAnalysis
from aae_ray.reporting.defaults import LEAST_TRIALS, TOLERANCE, BackToDefault, Verdict, back_to_defaults
from aae_ray.reporting.importance import importance
from aae_ray.reporting.report import search_lines
from aae_ray.reporting.standing import STANDING, Outcome, outcomes
from aae_ray.search import events
from aae_ray.search.outcomes import FailureClass, Reason, RungVerdict
from aae_ray.search.space import Plan, read_plan
from aae_ray.search.trial_record import TrialRecord
from tests.search.histories import MSE, History

RATE, PRIOR, WIDTHS, SIZE = "optim.reconstruction_lr", "model.prior", "model.hidden", "model.latent_dim"
SPACE = """
space:
  optim.reconstruction_lr: {type: float, low: 1e-4, high: 1e-1, log: true}
  model.prior: {type: categorical, choices: [gaussian, uniform]}
  model.hidden: {type: categorical, choices: [64-32, 128-64]}
  model.latent_dim: {type: int, low: 2, high: 32, log: true}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "study.yaml").write_text(SPACE)
    return read_plan(str(tmp_path / "study.yaml"))


def drawn(generator: np.random.Generator) -> dict[str, Any]:
    return {
        RATE: float(10 ** generator.uniform(-4, -1)),
        PRIOR: str(generator.choice(["gaussian", "uniform"])),
        WIDTHS: str(generator.choice(["64-32", "128-64"])),
        SIZE: int(generator.integers(2, 33)),
    }


def loss(params: dict[str, Any], generator: np.random.Generator) -> float:
    """The rate matters, best at 0.01 (its default is 0.001), and so does the prior; widths and size do not."""
    far = abs(math.log10(params[RATE] / 1e-2))
    return float(far + 0.8 * (params[PRIOR] == "gaussian") + 0.2 * generator.standard_normal())


def trials_of(plan: Plan, count: int, seed: int, *, noise: bool = False) -> tuple[list[TrialRecord], list[float]]:
    generator = np.random.default_rng(seed)
    trials = [TrialRecord(number, drawn(generator), plan, 0.0, 1) for number in range(count)]
    values = [float(generator.random()) if noise else loss(dict(trial.params), generator) for trial in trials]
    return trials, values


# ------------------------------------------------------------------------------------------------------------- places


def test_equal_trials_share_the_middle_of_their_places(plan: Plan) -> None:
    trials, _ = trials_of(plan, 4, 0)
    assert Outcome.of("x", trials, [3.0, 1.0, 3.0, 9.0]).places.tolist() == [0.5, 0.125, 0.5, 0.875]
    assert Outcome.of("x", [], []).places.size == 0


def test_a_stopped_trial_has_its_place_by_its_last_rung_and_a_sick_one_is_last() -> None:
    history = History(train__epochs=9)

    def at_rung(number: int, rung: int, values: tuple[float, float], stop: bool) -> None:
        verdict = RungVerdict.STOP if stop else RungVerdict.CONTINUE
        history.add(events.Decided(number=number, rung=rung, values=values, ahead=0, reached=1, verdict=verdict))

    first, second, third, sick, lost, open_one, interrupted = (history.begin() for _ in range(7))
    for number, values in ((first, (0.1, 0.1)), (second, (0.2, 0.2)), (third, (0.3, 0.3)), (sick, (0.0, 0.0))):
        at_rung(number, 1, values, stop=number == third)
    for number in (second, third):
        history.report(number, 1, 0.1, 0.1)
    history.end(third, Reason.PRUNED)
    history.report(second, 3, 0.1, 0.1)
    at_rung(first, 3, (0.1, 0.1), stop=False)
    at_rung(second, 3, (0.05, 0.2), stop=True)
    history.end(second, Reason.PRUNED)
    history.add(sign_of_illness(sick))
    history.end(sick, Reason.COLLAPSED)
    history.fail(lost, FailureClass.LOST_WORKER)
    history.report(first, 9, 0.1, 0.1)
    history.end(first)
    history.report(interrupted, 2, 0.1, 0.1)
    history.end(interrupted, Reason.BUDGET)
    standing = outcomes(history.ledger)[0]
    assert standing.name == STANDING and history.trial(open_one).open
    order = [
        trial.number for _, trial in sorted(zip(standing.places, standing.trials, strict=True), key=lambda p: p[0])
    ]
    assert order == [first, second, third, sick]


def test_complete_trials_stand_by_their_front_and_by_each_objective() -> None:
    history = History()
    for mse, jsd in ((0.1, 0.3), (0.2, 0.2), (0.3, 0.4)):
        history.finish(mse, jsd)
    standing, mse_outcome, jsd_outcome = outcomes(history.ledger)
    assert max(standing.places[:2]) < standing.places[2]  # the first two are on the front
    assert mse_outcome.name == MSE and np.argsort(mse_outcome.places).tolist() == [0, 1, 2]
    assert np.argsort(jsd_outcome.places).tolist() == [1, 0, 2]
    single = History(study__objectives="val/reconstruction_mse")
    single.finish(0.1)
    assert [outcome.name for outcome in outcomes(single.ledger)] == [STANDING]


def sign_of_illness(number: int) -> events.Event:
    return events.Reported(
        number=number,
        epoch=2,
        history=({"epoch": 2.0},),
        stop_reason=Reason.COLLAPSED,
        checkpoint=None,
        training_seconds=1.0,
        evaluation_seconds=0.0,
    )


# --------------------------------------------------------------------------------------------------------- importance


def test_what_matters_stands_out_and_the_rest_does_not(plan: Plan) -> None:
    found = importance(Outcome.of("x", *trials_of(plan, 120, 0)))
    assert list(found.standing_out) == [RATE, PRIOR] and found.trials == 120
    assert sum(found.shares.values()) == pytest.approx(1) and list(found.shares)[0] == RATE
    assert importance(Outcome.of("x", *trials_of(plan, 120, 0))) == found  # a function of the trials


def test_of_noise_nothing_stands_out(plan: Plan) -> None:
    outcomes_of_noise = [Outcome.of("x", *trials_of(plan, 24, seed, noise=True)) for seed in range(4)]
    assert sum(bool(importance(outcome).standing_out) for outcome in outcomes_of_noise) <= 1  # one in twenty


def test_few_trials_are_not_asked(plan: Plan) -> None:
    found = importance(Outcome.of("x", *trials_of(plan, 19, 0)))
    assert found.trials == 19 and found.shares == {} == found.standing_out


def test_a_setting_that_only_some_trials_have_is_no_error(plan: Plan) -> None:
    trials, values = trials_of(plan, 60, 1)
    for trial in trials:
        if trial.params[PRIOR] == "gaussian":
            del trial.params[SIZE]
    assert list(importance(Outcome.of("x", trials, values)).standing_out)[0] == RATE
    best = trials[int(np.argmin(values))]
    assert {found.key for found in back_to_defaults(best, [Outcome.of("x", trials, values)])} >= {RATE, PRIOR}


# ----------------------------------------------------------------------------------------------------------- defaults


def judged(plan: Plan, count: int, seed: int, **changed: Any) -> dict[str, BackToDefault]:
    """What is said of a best trial that has none of the defaults."""
    trials, values = trials_of(plan, count, seed)
    best = TrialRecord(0, {RATE: 1e-2, PRIOR: "uniform", WIDTHS: "64-32", SIZE: 24} | changed, plan, 0.0, 1)
    return {found.key: found for found in back_to_defaults(best, [Outcome.of("x", trials, values)])}


@pytest.mark.parametrize("seed", range(3))
def test_what_does_not_matter_could_go_back_and_what_matters_not(plan: Plan, seed: int) -> None:
    found = judged(plan, 250, seed)
    assert found[RATE].verdict is found[PRIOR].verdict is Verdict.LOSS
    assert found[WIDTHS].verdict is Verdict.NO_LOSS and found[WIDTHS].at_most < TOLERANCE
    assert found[SIZE].verdict is not Verdict.LOSS
    assert (found[RATE].value, found[RATE].default) == (1e-2, 1e-3)


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (19, 0), (40, 0), (40, 1), (60, 2)])
def test_few_trials_never_clear_what_matters(plan: Plan, count: int, seed: int) -> None:
    found = judged(plan, count, seed)
    assert Verdict.NO_LOSS not in (found[RATE].verdict, found[PRIOR].verdict)
    if count < 2 * LEAST_TRIALS:
        assert {result.verdict for result in found.values()} == {Verdict.NOT_RESOLVED}


def test_a_setting_at_its_default_is_not_asked(plan: Plan) -> None:
    assert WIDTHS not in judged(plan, 24, 0, **{WIDTHS: "128-64"})


def test_a_value_that_never_came_alone_is_not_resolved(plan: Plan) -> None:
    trials, values = trials_of(plan, 200, 0)
    for trial in trials:  # widths tell nothing that the prior does not tell
        trial.params[WIDTHS] = "64-32" if trial.params[PRIOR] == "uniform" else "128-64"
    best = TrialRecord(0, {WIDTHS: "64-32"}, plan, 0.0, 1)
    (found,) = back_to_defaults(best, [Outcome.of("x", trials, values)])
    assert found.verdict is Verdict.NOT_RESOLVED


def test_a_loss_in_one_outcome_is_a_loss(plan: Plan) -> None:
    trials, values = trials_of(plan, 250, 0)
    widths = [value + 5.0 * (trial.params[WIDTHS] == "128-64") for trial, value in zip(trials, values, strict=True)]
    best = TrialRecord(0, {WIDTHS: "64-32"}, plan, 0.0, 1)
    (found,) = back_to_defaults(best, [Outcome.of("x", trials, values), Outcome.of("y", trials, widths)])
    assert found.verdict is Verdict.LOSS and [loss.outcome for loss in found.losses] == ["x", "y"]


@pytest.mark.parametrize(
    ("key", "spec"),
    [
        ("train.input_noise", "{type: float, low: 1e-3, high: 1, log: true}"),  # 0, which has no logarithm
        ("model.noise_dim", "{type: int, low: 2, high: 60}"),  # none
        ("optim.reconstruction_lr", "{type: float, low: 5e-3, high: 1e-2}"),
    ],
)
def test_a_default_outside_of_what_is_searched_is_not_resolved(tmp_path: Path, key: str, spec: str) -> None:
    (tmp_path / "study.yaml").write_text(f"space: {{{key}: {spec}}}\n")
    plan = read_plan(str(tmp_path / "study.yaml"))
    low, high = plan.space[key].low, plan.space[key].high
    values = [low + type(low)((high - low) * index / 59) for index in range(60)]
    trials = [TrialRecord(number, {key: value}, plan, 0.0, 1) for number, value in enumerate(values)]
    (found,) = back_to_defaults(trials[30], [Outcome.of("x", trials, values)])
    assert found.verdict is Verdict.NOT_RESOLVED and found.losses == ()


# --------------------------------------------------------------------------------------------------------- the report


def studied(plan: Plan, count: int) -> History:
    """A study without a pruner, whose trials are as good as `loss` says, in either objective."""
    history, generator = History(plan), np.random.default_rng(0)
    for _ in range(count):
        params = drawn(generator)
        value = loss(params, generator)
        history.finish(0.02 + 0.01 * value, 0.1 + 0.1 * value, params, wait=1.0, val__mean_image_mse=0.08)
    return history


def lines_of(history: History) -> list[str]:
    front = history.ledger.front()
    return [
        line.plain
        for line in search_lines(SearchAnalysis.of(history.ledger, history.events, front[0] if front else None))
    ]


def test_the_report_says_what_the_trials_can_tell(plan: Plan) -> None:
    lines = lines_of(studied(plan, 120))
    text = "\n".join(lines)
    assert lines[0].startswith("hypervolume") and " of 1 after 120 epochs (2 min 1 s), 90% of that after " in lines[0]
    assert f"importance  best quarter of 120 trials by {STANDING}: {RATE}" in text and PRIOR in text
    assert "defaults" in text and f"would lose: {RATE} 0.001" in text


def test_the_report_of_few_trials_claims_nothing(plan: Plan) -> None:
    lines = lines_of(studied(plan, 3))
    assert lines[1:] == [
        f"importance  not resolved by fewer than 20 trials: {STANDING} (3), {MSE} (3), val/jsd_nats (3)"
    ]
    assert lines_of(History(plan)) == []


def test_one_configuration_has_no_importance(plan: Plan) -> None:
    history = History()
    history.finish(0.02, 0.1, {}, val__mean_image_mse=0.08)
    assert [line.partition(" ")[0] for line in lines_of(history)] == ["hypervolume"]
