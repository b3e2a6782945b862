"""The order of trials that samplers learn from."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aae_ray.search.objectives import dominates, exclusive_hypervolumes
from aae_ray.search.outcomes import FailureClass, Reason, State
from aae_ray.search.ranking import Result, Standing, ranked, result_of
from tests.search.histories import JSD, MSE, History

OBJECTIVES = (MSE, JSD)

POINT = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4))


def numbers(*results: Result, careful: int = 99) -> list[int]:
    return [one.number for one in ranked(results, careful)]


def shown(number: int, epochs: int, *values: float, violation: float = 0.0) -> Result:
    standing = Standing.INFEASIBLE if violation else Standing.FEASIBLE
    return Result(number, standing, epochs, values, violation)


def test_the_order_goes_by_standing_then_epochs_then_front_then_number() -> None:
    assert numbers(
        Result(0, Standing.BAD),
        shown(1, 27, 0.1, 0.1, violation=0.5),
        shown(2, 3, 0.01, 0.01),
        shown(3, 27, 0.3, 0.3),
        shown(4, 27, 0.2, 0.2),
        shown(5, 27, 0.2, 0.2, violation=0.1),
        shown(6, 9, 0.05, 0.05),
        Result(7, Standing.BAD),
        shown(8, 27, 0.3, 0.3),
    ) == [4, 3, 8, 5, 1, 6, 2, 0, 7]


def test_within_a_front_the_trial_comes_first_that_dominates_most_alone() -> None:
    """One that is a little better in one objective and at the end of the scale in the other one comes last."""
    corner, knee, other = shown(0, 9, 0.00, 1.00), shown(1, 9, 0.02, 0.10), shown(2, 9, 0.50, 0.05)
    assert numbers(corner, knee, other, shown(3, 9, 1.0, 1.0))[0] == 1
    assert numbers(corner, knee, other, shown(3, 9, 1.0, 1.0), careful=0) == [0, 1, 2, 3]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30), st.randoms())
def test_nobody_comes_before_who_dominates_it(points: list[tuple[int, int]], luck: random.Random) -> None:
    results = [shown(number, 9, *point) for number, point in enumerate(points)]
    order = ranked(luck.sample(results, len(results)), careful=5)
    assert order == ranked(results, careful=5)
    assert not any(dominates(b.values, a.values) for a, b in itertools.combinations(order, 2))


@given(st.lists(POINT, max_size=8))
def test_exclusive_hypervolumes_are_those_that_cells_are_counted_for(points: list[tuple[int, int, int]]) -> None:
    front = [point for point in points if not any(dominates(other, point) for other in points)]
    dominated = {
        cell: [point for point in front if all(value <= at for value, at in zip(point, cell, strict=True))]
        for cell in itertools.product(range(5), repeat=3)
    }
    alone = [sum(by == [point] for by in dominated.values()) for point in front]
    assert exclusive_hypervolumes(front, (5, 5, 5)) == pytest.approx(alone)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_areas_are_volumes_of_height_one(points: list[tuple[int, int]]) -> None:
    front = [point for point in points if not any(dominates(other, point) for other in points)]
    lifted = [(*point, 0) for point in front]
    assert exclusive_hypervolumes(front, (10, 10)) == pytest.approx(exclusive_hypervolumes(lifted, (10, 10, 1)))


@pytest.mark.parametrize(
    ("reason", "standing"),
    [
        (Reason.PRUNED, Standing.FEASIBLE),
        (Reason.BUDGET, Standing.FEASIBLE),
        (Reason.COLLAPSED, Standing.BAD),
        (Reason.WORSE_THAN_MEAN, Standing.BAD),
        (FailureClass.DIVERGED, Standing.BAD),
        (FailureClass.OUT_OF_MEMORY, Standing.BAD),
        (FailureClass.BUG, Standing.BAD),
        (FailureClass.LOST_WORKER, None),
        (FailureClass.NOT_SAVED, None),
        (None, None),  # under way
    ],
)
def test_what_is_learnt_of_a_trial_depends_on_how_it_ended(
    reason: Reason | FailureClass | None, standing: Standing | None
) -> None:
    study = History()
    number = study.begin()
    study.report(number, 3, 0.2, 0.1)
    if isinstance(reason, FailureClass):
        study.fail(number, reason)
    elif reason is not None:
        study.end(number, reason)
    found = result_of(study.trial(number), study.trial(number).metrics, OBJECTIVES, ())
    assert (found and found.standing) == standing
    assert found is None or found.standing is Standing.BAD or (found.epochs, found.values) == (3, (0.2, 0.1))


def test_a_trial_that_waits_at_a_rung_has_shown_what_it_has_shown_there() -> None:
    study = History()
    number = study.begin()
    study.report(number, 3, 0.2, 0.1)
    waiting = study.trial(number)
    waiting.state = State.PAUSED
    assert result_of(waiting, waiting.metrics, OBJECTIVES, ()) == Result(number, Standing.FEASIBLE, 3, (0.2, 0.1), 0.0)


def test_a_trial_without_a_finite_objective_is_bad() -> None:
    study = History()
    number = study.begin()
    study.report(number, 3, 0.2, math.nan)
    trial = study.end(number, Reason.PRUNED)
    found = result_of(trial, trial.metrics, OBJECTIVES, ())
    assert found is not None and found.standing is Standing.BAD
