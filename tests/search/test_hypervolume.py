"""How far a study has come, over its epochs and its time, from its events alone."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aae_ray.search.hypervolume import Reference, dominated_share, progress, references
from aae_ray.search.outcomes import FailureClass, Reason
from tests.search.histories import History

BOX = [Reference(1.0, 0.0), Reference(2.0, 0.0)]
POINT = st.tuples(st.floats(-0.5, 1.5), st.floats(-0.5, 2.5))


@pytest.mark.parametrize(
    ("points", "share"),
    [
        ([], 0.0),
        ([(0.0, 0.0)], 1.0),
        ([(0.5, 1.0)], 0.25),
        ([(0.5, 1.0), (0.25, 1.5)], 0.25 + 0.25 * 0.25),
        ([(0.5, 1.0), (0.6, 1.2)], 0.25),  # dominated
        ([(0.5, 2.0)], 0.0),  # no better than the reference
        ([(2.0, 0.0)], 0.0),
        ([(0.5, -1.0)], 0.5),  # a bound below 0 is no better than 0
    ],
)
def test_the_share_of_what_there_is_to_win(points: list[tuple[float, float]], share: float) -> None:
    assert dominated_share(points, BOX) == pytest.approx(share)


@given(st.lists(POINT, max_size=8), POINT)
def test_another_trial_never_makes_it_smaller(points: list[tuple[float, float]], more: tuple[float, float]) -> None:
    before = dominated_share(points, BOX)
    assert 0 <= before <= dominated_share([*points, more], BOX) + 1e-12 <= 1 + 1e-9


def test_one_objective_is_a_length() -> None:
    assert dominated_share([(0.3,), (0.2,)], [Reference(1.0, 0.0)]) == pytest.approx(0.8)


def test_references_are_fixed_where_the_metric_has_them() -> None:
    history = History(study__objectives="val/reconstruction_mse,val/jsd_nats,val/nmi,val/kl_aggregate_nats")
    assert references(history.ledger)[0] == Reference(1.0, 0.0)  # of pixels in [0, 1], before a trial has measured it
    for mse, distance in ((0.02, 0.5), (0.03, 0.25)):
        history.finish(mse, 0.1, val__nmi=0.5, val__kl_aggregate_nats=distance, val__mean_image_mse=0.08)
    assert references(history.ledger) == [
        Reference(0.08, 0.0),
        Reference(math.log(2), 0.0),
        Reference(0.0, -1.0),  # more is better: the sign is that of `Ledger.values`
        Reference(0.5, 0.0),  # a divergence has no largest value: the trials' own
    ]


def made() -> History:
    """Two complete trials, one that was pruned, and one that lost two epochs to a failure before it was complete."""
    history = History(train__epochs=4)
    first = history.begin()  # at 1 s
    history.history(first, [{"epoch": 2.0, "val/mean_image_mse": 0.1}])
    history.report(first, 4, 0.05, 0.5 * math.log(2), val__mean_image_mse=0.1)
    history.end(first)  # at 21 s, after 2 reported epochs
    pruned = history.begin()
    history.report(pruned, 2, 0.01, 0.0)
    history.end(pruned, Reason.PRUNED)
    last = history.begin()
    history.report(last, 1, 0.04, 0.4, checkpoint=False)
    history.fail(last, FailureClass.LOST_WORKER, retry=True)
    history.attempt(last)
    history.history(last, [{"epoch": 1.0}, {"epoch": 4.0, "val/reconstruction_mse": 0.025, "val/jsd_nats": 0.0}])
    history.end(last)
    return history


def test_the_curve_is_that_of_the_complete_trials_over_all_that_was_spent() -> None:
    history = made()
    curve = progress(history.events, references(history.ledger))
    assert [(point.trial, point.epochs, point.seconds) for point in curve] == [(0, 2, 21), (2, 6, 51), (None, 6, 51)]
    assert [point.hypervolume for point in curve] == pytest.approx([0.25, 0.75, 0.75])


def test_a_pause_between_sessions_is_no_time_of_the_study() -> None:
    history = made()
    history.stop()
    history.now += 86_400
    history.resume()
    history.finish(0.02, 0.0)
    *_, last, _ = progress(history.events, references(history.ledger))
    assert last.seconds == 51 + 11  # of the first session, and of the second one
    assert last.hypervolume == pytest.approx(0.8)


def test_a_study_without_a_complete_trial_has_won_nothing() -> None:
    history = History()
    history.begin()
    assert [point.hypervolume for point in progress(history.events, references(history.ledger))] == [0.0]
    assert progress([], []) == []


def test_a_trial_that_violates_a_constraint_adds_nothing_and_so_is_never_taken_back() -> None:
    history = History(study__constraints=["val/jsd_nats <= 0.1"])
    for mse, jsd in ((0.01, 0.3), (0.03, 0.05), (0.02, 0.05)):
        history.finish(mse, jsd, val__mean_image_mse=0.08)
    volumes = [point.hypervolume for point in progress(history.events, references(history.ledger))]
    assert volumes[0] == 0 and volumes == sorted(volumes) and volumes[-1] > volumes[1] > 0
