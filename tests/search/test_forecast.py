"""How long a study will take, by what its ended trials took, and what its hours went into."""

import random
from typing import Any

import pytest

from aae_ray.search import events
from aae_ray.search.forecast import Forecast, forecast
from aae_ray.search.ledger import RECENT
from aae_ray.search.outcomes import FailureClass, Reason, RungVerdict, StudyEnd
from tests.search.histories import History


def now(history: History) -> Forecast:
    return forecast(history.ledger, history.now)


def one_after_another(trials: int, seconds: float = 100.0, budget: int = 24, **settings: Any) -> History:
    """Trials of the same length each, a gang at a time."""
    history = History(study__budget__trials=budget, **settings)
    for _ in range(trials):
        history.finish(0.1, 0.2, wait=seconds, training=0.8 * seconds, evaluation=0.1 * seconds)
    return history


@pytest.mark.parametrize("ended", [0, 1, 2])
def test_nothing_is_forecast_from_fewer_than_three_trials(ended: int) -> None:
    of = now(one_after_another(ended))
    assert of.left is None and (of.trials_per_hour is None) == (ended == 0)


def test_trials_that_are_all_alike_are_forecast_to_the_second() -> None:
    of = now(one_after_another(4, budget=10))
    assert of.left is not None and of.left.low == pytest.approx(600) and of.left.high == pytest.approx(600)
    assert of.trials_per_hour == pytest.approx(36, rel=0.01)


def test_what_a_running_trial_has_done_need_not_be_done_again() -> None:
    history = one_after_another(4, budget=10)
    history.begin()
    history.now += 40
    left = now(history).left
    assert left is not None and left.low == pytest.approx(560)
    history.now += 400  # longer than any other: it counts as a whole one, and no more
    left = now(history).left
    assert left is not None and left.low == pytest.approx(500)


def test_two_gangs_take_half_the_time_and_the_last_trial_may_be_alone() -> None:
    history = History(study__budget__trials=10, study__concurrent_trials=2)
    for _ in range(2):
        pair = [history.begin(), history.begin()]
        history.report(pair[0], 27, 0.1, 0.2, wait=100)
        history.report(pair[1], 27, 0.1, 0.2, wait=0)
        for number in pair:
            history.end(number)
    left = now(history).left
    assert left is not None and left.low == pytest.approx(300) and left.high == pytest.approx(350)


def test_workers_of_a_gang_work_at_the_same_time() -> None:
    left = now(one_after_another(4, budget=10, study__workers_per_trial=4)).left
    assert left is not None and left.low == pytest.approx(600)


@pytest.mark.parametrize(("limit", "least", "most"), [(500.0, 0, 100), (300.0, 0, 0), (5000.0, 600, 600)])
def test_nothing_is_forecast_beyond_the_budget_of_time(limit: float, least: float, most: float) -> None:
    left = now(one_after_another(4, budget=10, study__budget__wall_clock=limit)).left
    assert left is not None and least <= left.low <= left.high <= most + 1


def test_a_study_that_has_all_its_trials_or_has_ended_has_no_time_left() -> None:
    assert now(one_after_another(4, budget=4)).left is None
    history = one_after_another(4, budget=10)
    history.stop(StudyEnd.USER)
    assert now(history).left is None
    history.now += 1000
    assert now(history).elapsed == pytest.approx(401)  # its clock stands still
    history.resume()
    history.now += 99
    assert now(history).elapsed == pytest.approx(501) and now(history).left is not None


@pytest.mark.parametrize("closed", [False, True])
def test_time_after_the_process_has_died_is_nobodys(closed: bool) -> None:
    history = History(study__budget__wall_clock=1000.0)
    number = history.begin()
    history.report(number, 3, 0.1, training=80, evaluation=10, wait=100)
    history.now += 50_000  # until somebody looks
    if closed:
        history.stop(StudyEnd.INTERRUPTED)
    history.resume()
    history.now += 19
    of = now(history)
    assert of.wall_clock.used == pytest.approx(100) and of.elapsed == pytest.approx(101 + 20)
    assert of.worker_time.waiting == pytest.approx(10)
    assert of.worker_hours.used == pytest.approx(100 / 3600)


def test_where_the_hours_went() -> None:
    history = History(study__workers_per_trial=2)
    history.finish(0.1, 0.2, training=60, evaluation=10, wait=100)
    number = history.begin()
    history.report(number, 3, 0.1, training=20, evaluation=5, wait=30)
    history.end(number, Reason.PRUNED)
    number = history.begin()
    history.report(number, 3, 0.1, training=20, evaluation=5, wait=30)
    history.end(number, Reason.COLLAPSED)
    number = history.begin()
    history.now += 15
    history.fail(number, FailureClass.LOST_WORKER, retry=True)
    history.attempt(number)
    history.now += 5
    history.fail(number, FailureClass.BUG)
    history.begin()
    history.now += 7
    of = now(history)
    assert of.worker_time.training == 200 and of.worker_time.evaluation == 40
    assert of.worker_time.waiting == pytest.approx(2 * (30 + 5 + 5 + 15 + 5 + 7))
    assert of.stopped_early == 120 and of.failed == {"bug": 40}
    assert of.worker_hours.used == pytest.approx((of.worker_time.busy + of.worker_time.waiting) / 3600)
    assert (of.trials.used, of.trials.limit) == (4, 24) and of.worker_hours.limit is None


def test_a_trial_that_ends_with_its_study_is_neither_stopped_early_nor_twice_in_the_hours() -> None:
    history = History()
    number = history.begin()
    history.report(number, 3, 0.1, training=20, evaluation=5, wait=30)
    history.stop(StudyEnd.USER)
    assert now(history).stopped_early == 0
    history.resume()
    history.attempt(number)
    history.report(number, 27, 0.1, 0.2, training=20, evaluation=5, wait=30)
    history.end(number)
    of = now(history)
    assert of.stopped_early == 0 and of.worker_time.training == 40 and of.worker_time.waiting == pytest.approx(10)


@pytest.mark.parametrize("end", [None, StudyEnd.PLANNED, StudyEnd.USER])
def test_what_paused_trials_took_is_told_whether_the_study_goes_on_or_has_ended(end: StudyEnd | None) -> None:
    history = History()
    number = history.begin()
    history.report(number, 3, 0.1, training=20, evaluation=5, wait=30)
    history.pause(number)
    if end is StudyEnd.PLANNED:
        history.end(number, Reason.PAUSED)
        history.add(events.StudyEnded())
    elif end is not None:
        history.stop(end)
    assert now(history).stopped_early == pytest.approx(30)
    if end is not None:
        history.resume()
    history.pause(number, RungVerdict.CONTINUE)
    assert now(history).stopped_early == 0


def test_seeds_to_come_are_forecast_as_far_as_the_front_asks_for_them() -> None:
    history = one_after_another(3, budget=3, study__seeds_per_trial=3)  # all equal: each is on the front
    history.finish(0.2, 0.3, wait=100)
    left = now(history).left
    assert left is not None and left.low == pytest.approx(600)
    history.another_seed(0, 0.2, 0.3)  # no longer on the front
    history.another_seed(1, 0.1, 0.2)
    few = now(history).left
    assert few is not None and few.high < left.low


def test_new_seeds_of_finalists_are_forecast() -> None:
    history = one_after_another(3, budget=3, study__confirm__finalists=1, study__confirm__seeds=2)
    left = now(history).left
    assert left is not None and left.low == pytest.approx(200)
    history.add(events.Confirming(numbers=(0,), seeds=2))
    history.another_seed(0, 0.2, 0.3)
    one = now(history).left
    assert one is not None and one.high < left.low


@pytest.mark.parametrize("seed", range(30))
def test_properties(seed: int) -> None:
    """Whatever happens: no interval upside down, none beyond the budget, no second lost or counted twice."""
    source = random.Random(seed)
    limit = source.choice([None, 2000.0, 100_000.0])
    workers = source.choice([1, 2])
    history = History(study__budget__trials=40, study__budget__wall_clock=limit, study__workers_per_trial=workers)
    for _ in range(source.randrange(150)):
        running = [trial.number for trial in history.ledger.open.values() if trial.attempt_started is not None]
        waiting = [trial.number for trial in history.ledger.open.values() if trial.attempt_started is None]
        what = source.choice(["begin", "report", "report", "end", "fail", "stop"])
        if waiting:
            history.attempt(waiting[0])
        elif what == "begin" and len(running) < 3:
            history.begin()
        elif what == "stop" and source.random() < 0.2:
            history.stop(StudyEnd.USER)
            history.now += source.uniform(0, 1000)
            history.resume()
        elif running:
            number = source.choice(running)
            if what == "report":
                wait = source.uniform(1, 100)
                epoch = history.trial(number).epoch + 1
                history.report(number, epoch, 0.1, 0.2, wait=wait, training=wait / 5, evaluation=wait / 9)
            elif what == "fail":
                history.fail(number, source.choice(list(FailureClass)), retry=source.random() < 0.5)
            elif what == "end" and history.trial(number).epoch:
                history.end(number, source.choice([Reason.COMPLETED, Reason.PRUNED]))
        of = now(history)
        if of.left is not None:
            assert 0 <= of.left.low <= of.left.high
            assert limit is None or of.left.high <= max(limit - of.wall_clock.used, 0) + 1e-6
        trials = history.ledger.trials
        total = sum(trial.worker_time.busy + trial.worker_time.waiting for trial in trials)
        assert history.ledger.worker_seconds == pytest.approx(total)
        assert of.worker_time.busy + of.worker_time.waiting >= history.ledger.worker_seconds - 1e-6
        ended = of.stopped_early + sum(of.failed.values())
        assert ended <= of.worker_time.busy + of.worker_time.waiting + 1e-6


def test_the_time_that_was_forecast_is_the_time_that_it_takes() -> None:
    """Over many studies whose trials differ, the end lies within the interval nearly always."""
    within = 0
    for seed in range(200):
        source = random.Random(seed)
        lengths = [source.choice([30.0, 100.0]) * source.uniform(0.8, 1.2) for _ in range(30)]
        history = History(study__budget__trials=30)
        for length in lengths[:10]:
            history.finish(0.1, 0.2, wait=length, training=length, evaluation=0)
        left = now(history).left
        assert left is not None
        within += left.low <= sum(lengths[10:]) <= left.high
    assert within >= 180


@pytest.mark.parametrize("seed", range(10))
def test_what_the_ledger_keeps_at_hand_is_what_a_look_at_all_trials_finds(seed: int) -> None:
    source = random.Random(seed)
    history, ends = History(study__budget__trials=200), []
    for _ in range(60):
        number = history.begin()
        history.report(number, 27, source.randrange(9) / 9, source.randrange(9) / 9)
        if source.random() < 0.3:
            history.fail(number, source.choice(list(FailureClass)), f"message {number}", retry=True)
            history.attempt(number)
        history.end(number, source.choice([Reason.COMPLETED, Reason.COMPLETED, Reason.PRUNED, Reason.USER]))
        ends.append(number)
    history.resume()
    ledger = history.ledger
    complete = ledger.complete()
    for index in range(2):
        best = ledger.best_of(index)
        assert best is not None and best in complete
        assert ledger.values(best)[index] == min(ledger.values(trial)[index] for trial in complete)
    lasting = [number for number in ends[-RECENT:] if not ledger.trials[number].open]
    assert list(ledger.recent) == lasting and len(ledger.recent) <= RECENT
    failures = [failure for trial in ledger.trials for failure in trial.failures]
    for kind, kept in ledger.failures.items():
        of_kind = [failure for failure in failures if failure.failure is kind]
        assert kept.count == len(of_kind) and kept.last == of_kind[-1]
    assert sum(kept.count for kept in ledger.failures.values()) == len(failures)
    front = sorted(ledger.front_points.points.items(), key=lambda item: (item[1], item[0]))
    assert [trial.number for trial in ledger.front()] == [number for number, _ in front]
