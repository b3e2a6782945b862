"""Finalists are trained again on new seeds, and these decide who is the champion."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aae_ray.errors import SettingsError
from aae_ray.search import events
from aae_ray.search.choice import RULES, in_order, score, select
from aae_ray.search.conductor import Conductor
from aae_ray.search.constraints import Constraint
from aae_ray.search.contract import Failure, Report, Suggestion
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import FailureClass
from aae_ray.search.promotion import EVIDENCE, evidence_tags, policy_of, promote, weigh
from aae_ray.search.space import read_plan, record_plan
from aae_ray.settings import Settings, replace
from aae_ray.study.finalists import choose
from tests.search.histories import JSD, MSE
from tests.search.test_conductor import Crash, begin, outcome, plan_of, resume
from tests.search.test_racing import MEAN, run, worth

CONFIRMING = {"study__confirm__finalists": 2, "study__confirm__seeds": 3}


def confirmed(folder: Path, **changes: Any) -> Conductor:
    conductor = begin(folder, plan_of(**CONFIRMING | changes))
    run(conductor, 0.5)
    return conductor


def test_the_best_of_the_front_are_trained_again_when_the_search_is_over(tmp_path: Path) -> None:
    ledger = confirmed(tmp_path).ledger
    assert ledger.confirming is not None and len(ledger.confirming.numbers) == 2
    assert ledger.configurations == 8 and len(ledger.trials) == 8 + 2 * 3
    for number in ledger.confirming.numbers:
        trial = ledger.trials[number]
        assert [each.params["seed"] for each in ledger.confirmations(trial)] == [1, 2, 3]
        means = next(metrics for confirmed, metrics in ledger.confirmed() if confirmed is trial)
        values = [each.metrics[MSE] for each in ledger.confirmations(trial)]
        assert means[MSE] == pytest.approx(sum(values) / 3)  # without the seed that the choice has seen
    order = in_order([ledger.judged(trial) for trial in ledger.front()], ledger.objectives, "nearest_to_ideal")
    assert order[0] == select([ledger.judged(trial) for trial in ledger.front()], ledger.objectives, "nearest_to_ideal")


def test_the_best_trial_is_chosen_by_its_new_seeds(tmp_path: Path) -> None:
    ledger = confirmed(tmp_path).ledger
    best = choose(ledger, "nearest_to_ideal")
    scores = {
        trial.number: score(metrics, ledger.objectives, "nearest_to_ideal") for trial, metrics in ledger.confirmed()
    }
    assert best is not None and best.number == min(scores, key=lambda number: scores[number])


def test_a_study_that_is_killed_while_it_confirms_ends_as_the_unbroken_one(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    whole, luck = confirmed(tmp_path / "whole"), random.Random(0)
    conductor = begin(tmp_path / "broken", plan_of(**CONFIRMING))
    while True:
        left = luck.randint(1, 6)
        try:
            _run_so_many(conductor, left)
            break
        except Crash:
            conductor.journal.close()
            conductor = resume(tmp_path / "broken")
    assert outcome(conductor.ledger) == outcome(whole.ledger)
    assert sum(isinstance(event, events.Confirming) for event in conductor.journal.history) == 1


def _run_so_many(conductor: Conductor, trials: int) -> None:
    while isinstance(suggestion := conductor.suggest(), Suggestion):
        conductor.started(suggestion.number)
        if (trials := trials - 1) == 0:
            raise Crash
        metrics = (worth(suggestion, 0.5),)
        conductor.reported(Report(suggestion.number, 27, metrics, finished=True, checkpoint=f"{suggestion.name}/27"))


def test_a_study_that_goes_on_confirms_its_new_best_ones(tmp_path: Path) -> None:
    first = confirmed(tmp_path)
    first.record(events.StudyEnded())
    first.journal.close()
    conductor = resume(tmp_path)
    more = plan_of(**CONFIRMING | {"study__budget__trials": 12})
    conductor.record(events.StudyResumed(plan=record_plan(more), host="h", pid=3))
    assert conductor.ledger.confirming is not None  # as long as the search does not go on
    run(conductor, 0.5)
    ledger = conductor.ledger
    assert ledger.configurations == 12 and ledger.confirming is not None and ledger.confirmed_from >= 8 + 6 + 4
    assert all(len(ledger.evidence(ledger.trials[number])) == 3 for number in ledger.confirming.numbers)


def test_a_new_seed_that_diverges_is_the_worst_and_one_that_is_lost_says_nothing(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(**CONFIRMING | {"study__budget__trials": 1, "study__confirm__finalists": 1}))
    _run_until_confirming(conductor)
    suggestion = conductor.suggest()
    assert isinstance(suggestion, Suggestion) and suggestion.params["seed"] == 1
    conductor.started(suggestion.number)
    conductor.failed(Failure(suggestion.number, FailureClass.DIVERGED, "nan"))
    first = conductor.ledger.trials[0]
    (worst,) = conductor.ledger.evidence(first)
    assert (worst[MSE], worst[JSD]) == pytest.approx((0.5, math.log(2)))  # mean image, and log 2


def test_a_seed_that_diverges_before_its_first_report_is_held_by_the_references_of_its_configuration(
    tmp_path: Path,
) -> None:
    conductor = begin(tmp_path, plan_of(**CONFIRMING | {"study__budget__trials": 1, "study__confirm__finalists": 1}))
    _run_until_confirming(conductor)
    suggestion = conductor.suggest()
    assert isinstance(suggestion, Suggestion)
    conductor.started(suggestion.number)
    conductor.failed(Failure(suggestion.number, FailureClass.DIVERGED, "nan"))
    ledger = conductor.ledger
    (worst,) = ledger.evidence(ledger.trials[0])
    assert worst[MEAN] == 0.5  # without it the error of the mean image would be scaled by 1, and look half as bad
    assert score(worst, ledger.objectives, "first_objective") == pytest.approx(1.0)


STD = "val/code_std"
SHARP, NMI = "val/kid_local", "val/nmi"


def confirmed_as(folder: Path, seeds: dict[int, dict[int, dict[str, float]]], **changes: Any) -> Conductor:
    """A study of two trials of one front, whose seeds measure what is given by trial and seed."""
    conductor = begin(folder, plan_of(**CONFIRMING | {"study__budget__trials": 2} | changes))
    while isinstance(suggestion := conductor.suggest(), Suggestion):
        trial = conductor.ledger.trials[suggestion.number]
        first = trial.number if trial.replicate_of is None else trial.replicate_of
        point = {"epoch": 27.0, MSE: (0.05, 0.06)[first], JSD: (0.3, 0.2)[first], MEAN: 0.5}
        conductor.started(trial.number)
        measured = seeds[first].get(suggestion.params.get("seed", 0))
        if measured is None:
            conductor.failed(Failure(trial.number, FailureClass.DIVERGED, "nan"))
        else:
            report = Report(trial.number, 27, (point | measured,), finished=True, checkpoint=f"{trial.name}/27")
            conductor.reported(report)
    return conductor


@pytest.mark.parametrize("rule", [SHARP, NMI])
def test_a_metric_that_is_no_objective_is_chosen_by_over_new_seeds_as_well(tmp_path: Path, rule: str) -> None:
    lucky, good = ({SHARP: 0.01, NMI: 0.9}, {SHARP: 0.02, NMI: 0.8})
    usual = {SHARP: 0.4, NMI: 0.1}
    conductor = confirmed_as(
        tmp_path,
        {0: {0: lucky} | dict.fromkeys((1, 2, 3), usual), 1: dict.fromkeys(range(4), good)},
        study__select=rule,
    )
    ledger = conductor.ledger
    assert [metrics[rule] for _, metrics in ledger.confirmed()] == pytest.approx([usual[rule], good[rule]])
    best = choose(ledger, rule)
    assert best is not None and best.number == 1
    assert ledger.judged(ledger.trials[0])[rule] == pytest.approx((lucky[rule] + 3 * usual[rule]) / 4)


def test_a_seed_that_diverged_has_the_worst_of_a_metric_that_is_no_objective(tmp_path: Path) -> None:
    """Not what it had measured before: half a training of it could be chosen by that."""
    good, usual = {NMI: 0.8}, {NMI: 0.7}
    conductor = confirmed_as(
        tmp_path, {0: {0: good, 1: good, 2: good}, 1: dict.fromkeys(range(4), usual)}, study__select=NMI
    )
    ledger = conductor.ledger
    (_, first), (_, second) = ledger.confirmed()
    assert second[NMI] == pytest.approx(0.7) and first.get(NMI, 0.0) < 0.7
    best = choose(ledger, NMI)
    assert best is not None and best.number == 1


@pytest.mark.parametrize("bound", [f"{STD} >= 0.5", f"{MSE} <= 0.055"])
def test_finalists_keep_to_constraints_on_their_new_seeds(tmp_path: Path, bound: str) -> None:
    """The first one kept to the bound in the search, and on new seeds, where it is the best by the rule, no more."""
    kept, broken = {STD: 0.9}, {STD: 0.1, MSE: 0.3, JSD: 0.0}
    conductor = confirmed_as(
        tmp_path,
        {0: {0: kept} | dict.fromkeys((1, 2, 3), broken), 1: dict.fromkeys(range(4), kept | {MSE: 0.04, JSD: 0.6})},
        study__constraints=(bound,),
        study__select=JSD,
    )
    ledger = conductor.ledger
    numbers = [trial.number for trial, _ in ledger.confirmed()]
    best = choose(ledger, JSD)
    assert 0 in numbers and best is not None and best.number == 1


def test_constraints_are_held_against_the_means_of_new_seeds() -> None:
    """Of a metric that is no objective the search knows one seed, the one that was chosen by it."""
    bounds, lucky = (Constraint(STD, ">=", 0.5),), {STD: 0.9}
    study = replace(Settings(), {"study.objectives": OBJECTIVES, "study.constraints": [str(bounds[0])]}).study
    own = tags_of([each | lucky for each in GOOD]) | evidence_tags([each | {STD: 0.1} for each in GOOD], study)
    champion = tags_of(FAR) | evidence_tags([each | lucky for each in FAR], study)
    told = promote(champion, "1", own, [GOOD[0] | lucky], "nearest_to_ideal", bounds, EVIDENCE)
    assert not told.champion and "it violates val/code_std >= 0.5" in told.reason
    assert promote(own, "1", champion, [FAR[0] | lucky], "nearest_to_ideal", bounds, "better").champion


def _run_until_confirming(conductor: Conductor) -> None:
    suggestion = conductor.suggest()
    assert isinstance(suggestion, Suggestion)
    conductor.started(suggestion.number)
    conductor.reported(
        Report(suggestion.number, 27, (worth(suggestion, 0.0),), finished=True, checkpoint=f"{suggestion.name}/27")
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["study.confirm.finalists=2", "study.pruner.type=pbt"], "let study.confirm.finalists be 0, got 2"),
        (["study.confirm.finalists=1", "space.seed={type: int, low: 0, high: 9}"], "remove one of them"),
        (["study.confirm.finalists=1", "seed=4294967295"], "the largest is 4294967292"),
        (["study.confirm.seeds=1"], "at least 2"),
    ],
)
def test_what_cannot_be_confirmed_is_told_before_the_start(changes: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        read_plan("digits", changes)


# ------------------------------------------------------------------------------------------------------ the decision

OBJECTIVES = (MSE, JSD)
STUDY = replace(Settings(), {"study.objectives": OBJECTIVES}).study


def seeds(*points: tuple[float, float]) -> list[dict[str, float]]:
    return [{MSE: mse, JSD: jsd, MEAN: 0.07} for mse, jsd in points]


def tags_of(known: list[dict[str, float]], *, confirmed: bool = True) -> dict[str, str]:
    first = known[0]
    return {
        "data.digest": "d",
        "data.split": "s",
        "task": "unsupervised",
        "objectives": ",".join(OBJECTIVES),
        "objective_values": json.dumps([first[name] for name in OBJECTIVES]),
        "choice_metrics": json.dumps(first),
    } | (evidence_tags(known, STUDY) if confirmed else {})


GOOD = seeds((0.020, 0.10), (0.021, 0.11), (0.019, 0.10))
NEAR = seeds((0.021, 0.10), (0.019, 0.12), (0.022, 0.11))
FAR = seeds((0.050, 0.30), (0.052, 0.28), (0.049, 0.31))


def held(champion: list[dict[str, float]], own: list[dict[str, float]], **changes: Any) -> Any:
    champion_confirmed = changes.pop("champion_confirmed", True)
    own_confirmed = changes.pop("own_confirmed", True)
    champion_tags, own_tags = tags_of(champion, confirmed=champion_confirmed), tags_of(own, confirmed=own_confirmed)
    return promote(champion_tags, "1", own_tags | changes, [own[0]], "nearest_to_ideal", (), EVIDENCE)


def test_a_difference_above_two_standard_errors_moves_the_champion_and_a_smaller_one_does_not() -> None:
    better = held(FAR, GOOD)
    assert better.champion and better.evidence.holds and "3 new seeds against 3" in better.reason
    near = held(NEAR, GOOD)
    assert not near.champion and near.evidence.difference > 0 and "not by 2 standard errors" in near.reason
    worse = held(GOOD, FAR)
    assert not worse.champion and worse.evidence.difference < 0 and "not better than version 1" in worse.reason


def test_a_champion_that_nobody_confirmed_counts_with_its_one_seed() -> None:
    found = held(FAR, GOOD, champion_confirmed=False)
    assert found.champion and found.evidence.champion_seeds == 1
    assert found.evidence.standard_error > held(FAR, GOOD).evidence.standard_error * 0.5


def test_without_new_seeds_or_on_other_data_nothing_is_promoted() -> None:
    assert held(FAR, GOOD, own_confirmed=False).lacks_seeds
    other = held(FAR, GOOD, **{"data.digest": "e"})
    assert not other.champion and "other data" in other.reason
    assert not promote(tags_of(FAR), "1", tags_of(GOOD), GOOD, "nearest_to_ideal", (), "never").champion


def test_of_two_that_cannot_be_held_against_each_other_it_is_told_who_lacks_what() -> None:
    measured = [each | {NMI: 0.5} for each in GOOD]
    study = replace(Settings(), {"study.objectives": OBJECTIVES, "study.select": NMI}).study
    for champion, own, said in (
        (GOOD, measured, "version 1 has no finite val/nmi, by"),
        (measured, [*measured[1:], GOOD[0]], "it has no finite val/nmi, by"),
        (GOOD, GOOD, "it has no finite val/nmi and version 1 has no finite val/nmi, by"),
    ):
        tags = [tags_of(known) | evidence_tags(known, study) for known in (champion, own)]
        told = promote(tags[0], "1", tags[1], [own[0]], NMI, (), EVIDENCE)
        assert not told.champion and told.reason.startswith(said)


points = st.tuples(st.floats(0, 0.2), st.floats(0, 0.7))


@given(st.lists(points, min_size=2, max_size=6), st.lists(points, min_size=1, max_size=6), st.sampled_from(RULES))
def test_of_two_that_are_held_against_each_other_at_most_one_is_better(
    one: list[tuple[float, float]], other: list[tuple[float, float]], rule: str
) -> None:
    there = weigh(seeds(*one), seeds(*other), OBJECTIVES, rule)
    back = weigh(seeds(*other), seeds(*one), OBJECTIVES, rule)
    assert there is not None and back is not None and not (there.holds and back.holds)
    assert there.difference == pytest.approx(-back.difference)
    assert there.standard_error == pytest.approx(back.standard_error)


@given(points, points, st.sampled_from(RULES))
def test_a_score_prefers_whom_the_rule_selects(one: tuple[float, float], other: tuple[float, float], rule: str) -> None:
    """Of two where one is better in both objectives and none is beyond a reference."""
    low, high = (tuple(map(pick, zip(one, other, strict=True))) for pick in (min, max))
    (a,), (b,) = seeds(low), seeds(high)  # type: ignore[arg-type]
    assert score(a, OBJECTIVES, rule) <= score(b, OBJECTIVES, rule) or math.isclose(
        score(a, OBJECTIVES, rule), score(b, OBJECTIVES, rule)
    )


def test_the_policy_is_evidence_where_finalists_are_confirmed() -> None:
    assert policy_of(Settings()) == "better"
    assert policy_of(replace(Settings(), {"study.confirm.finalists": 1})) == "evidence"
    assert policy_of(replace(Settings(), {"study.confirm.finalists": 1, "tracking.promotion": "never"})) == "never"


def test_what_is_confirmed_follows_from_the_journal(tmp_path: Path) -> None:
    conductor = confirmed(tmp_path)
    again = Ledger.replay(conductor.journal.history)
    assert [m for _, m in again.confirmed()] == [m for _, m in conductor.ledger.confirmed()]
