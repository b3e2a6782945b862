"""The ledger: what became of each trial, as a fold over events."""

import math
from typing import Any

import pytest

from aae_ray.reporting.tables import cost_line, lost_line
from aae_ray.search import events
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import FailureClass, Reason, State, StudyEnd
from aae_ray.search.space import Plan, record_plan
from aae_ray.settings import Settings, replace
from tests.search.histories import History

MSE, JSD = "val/reconstruction_mse", "val/jsd_nats"
Seconds = tuple[float, float]


def new_ledger(**changes: Any) -> Ledger:
    settings = replace(Settings(), {key.replace("__", "."): value for key, value in changes.items()})
    data = events.DataRecord(name="digits", digest="d", shape=(1, 8, 8), classes=10, train=9, val=9, test=9)
    ledger = Ledger()
    ledger.apply(
        events.StudyStarted(
            time=0,
            study_id="s",
            plan=record_plan(Plan(settings, {})),
            data=data,
            versions={},
            provenance={},
            host="h",
            pid=1,
        )  # fmt: skip
    )
    return ledger


@pytest.fixture
def ledger() -> Ledger:
    return new_ledger()


def epoch(number: int, mse: float, jsd: float | None = None) -> dict[str, float]:
    return {"epoch": float(number), MSE: mse} | ({} if jsd is None else {JSD: jsd})


def begin(ledger: Ledger, number: int = 0, time: float = 1.0) -> None:
    ledger.apply(events.Suggested(time=time, number=number, params={}))
    attempt(ledger, number, time)


def attempt(ledger: Ledger, number: int = 0, time: float = 1.0) -> None:
    trial = ledger.trials[number]
    ledger.apply(events.AttemptStarted(time=time, number=number, attempt=trial.attempts + 1, epoch=trial.epoch))


def report(
    ledger: Ledger,
    *history: dict[str, float],
    number: int = 0,
    time: float = 2.0,
    seconds: tuple[float, float] = (0, 0),
) -> list[dict[str, float]]:
    event = events.Reported(
        time=time, number=number, epoch=int(history[-1]["epoch"]), history=history, checkpoint=f"at {time}",
        training_seconds=seconds[0], evaluation_seconds=seconds[1],
    )  # fmt: skip
    fresh = ledger.fresh(event)
    ledger.apply(event)
    return fresh


def end(ledger: Ledger, reason: Reason, number: int = 0, time: float = 3.0, message: str | None = None) -> None:
    ledger.apply(events.Ended(time=time, number=number, reason=reason, message=message))


def fail(ledger: Ledger, kind: FailureClass, number: int = 0, *, retry: bool, time: float = 3.0) -> None:
    ledger.apply(
        events.AttemptFailed(time=time, number=number, attempt=1, failure=kind, message="it broke", retry=retry)
    )


def finish(ledger: Ledger, number: int, mse: float, jsd: float) -> None:
    begin(ledger, number)
    report(ledger, epoch(1, mse, jsd), number=number)
    end(ledger, Reason.COMPLETED, number)


def test_every_epoch_is_taken_once_and_the_last_one_stands(ledger: Ledger) -> None:
    begin(ledger)
    first = [epoch(1, 0.5), epoch(2, 0.4), epoch(3, 0.6, 0.2)]
    assert report(ledger, *first) == first
    assert report(ledger, epoch(4, 0.3)) == [epoch(4, 0.3)]
    trial = ledger.trials[0]
    assert trial.name == "t0000" and trial.epoch == 4 and trial.metrics == epoch(4, 0.3)  # JSD was not measured there
    assert trial.best == {MSE: (0.3, 4), JSD: (0.2, 3)}


def test_a_retry_doubles_no_epoch(ledger: Ledger) -> None:
    begin(ledger)
    report(ledger, *(epoch(number, 1 / number) for number in range(1, 6)))
    fail(ledger, FailureClass.LOST_WORKER, retry=True)
    assert ledger.trials[0].state is State.WAITING and ledger.open.keys() == {0}
    attempt(ledger, time=9)
    assert ledger.trials[0].attempts == 2 and ledger.trials[0].started == 1.0
    # It restarts from the checkpoint of epoch 3, and reports 4 and 5 again.
    fresh = report(ledger, *(epoch(number, 1 / number) for number in range(4, 8)))
    assert [metrics["epoch"] for metrics in fresh] == [6, 7]
    assert report(ledger, *(epoch(number, 9.9) for number in range(1, 8))) == []
    assert ledger.trials[0].epoch == 7 and ledger.trials[0].best[MSE] == (1 / 7, 7)


def test_what_failures_cost_is_what_has_to_be_done_again() -> None:
    history = History(study__workers_per_trial=2, study__price_per_worker_hour=1.8)
    number = history.begin()
    history.report(number, 3, 0.1, wait=30)
    history.report(number, 4, 0.1, wait=8, checkpoint=False)  # it could not be saved
    history.now += 12
    history.fail(number, FailureClass.PREEMPTED, retry=True)
    history.attempt(number)
    history.now += 5
    history.fail(number, FailureClass.PREEMPTED, retry=True)
    history.now += 1000  # nobody works
    history.attempt(number)
    history.now += 3
    history.fail(number, FailureClass.LOST_WORKER, retry=True)
    ledger = history.ledger
    lost = {kind: failures.lost_seconds for kind, failures in ledger.failures.items()}
    assert lost == {FailureClass.PREEMPTED: 2 * (8 + 12 + 5), FailureClass.LOST_WORKER: 2 * 3}
    assert ledger.lost_seconds == 56 and ledger.cost(ledger.lost_seconds) == pytest.approx(0.028)
    assert lost_line(ledger) == (
        "56 s (cost 0.03) of workers in failed attempts, since their last checkpoints: 2 preempted 50 s, "
        "1 lost_worker 6 s"
    )


def test_without_a_price_there_is_no_cost() -> None:
    history = History()
    history.finish(0.1, 0.2)
    assert lost_line(history.ledger) is None and cost_line(history.ledger) is None
    assert history.ledger.cost(3600) is None


@pytest.mark.parametrize("reason", [Reason.COMPLETED, Reason.PRUNED, Reason.BUG])
def test_a_trial_that_went_on_after_a_failure_keeps_no_message_of_it(ledger: Ledger, reason: Reason) -> None:
    begin(ledger)
    fail(ledger, FailureClass.LOST_WORKER, retry=True)
    attempt(ledger, time=4)
    report(ledger, epoch(1, 0.5, 0.5), time=5)
    end(ledger, reason, time=6)
    trial = ledger.trials[0]
    assert bool(trial.message) == (reason is Reason.BUG)
    assert [failed.message for failed in trial.failures] == ["it broke"]


def test_values_that_are_not_finite_are_never_the_best(ledger: Ledger) -> None:
    begin(ledger)
    report(ledger, epoch(1, math.nan), epoch(2, -math.inf), epoch(3, 0.5, math.nan))
    assert ledger.trials[0].best == {MSE: (0.5, 3)} and not ledger.measured(ledger.trials[0])


def test_the_first_of_equal_values_is_the_best(ledger: Ledger) -> None:
    begin(ledger)
    report(ledger, epoch(1, 0.5), epoch(2, 0.5))
    assert ledger.trials[0].best[MSE] == (0.5, 1)


def test_the_best_of_a_metric_to_maximise_is_its_largest() -> None:
    speed = "perf/images_per_second"
    ledger = new_ledger(study__objectives=(speed,))
    for number, value in enumerate((1.0, 3.0, 2.0)):
        begin(ledger, number)
        report(ledger, {"epoch": 1, speed: value}, {"epoch": 2, speed: value - 0.5}, number=number)
        end(ledger, Reason.COMPLETED, number)
    assert ledger.trials[1].best == {speed: (3.0, 1)}
    assert [trial.number for trial in ledger.front()] == [1] and ledger.values(ledger.trials[1]) == [-2.5]


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_its_state_and_those_of_the_study_are_taken_up_again(ledger: Ledger, reason: Reason) -> None:
    begin(ledger)
    report(ledger, epoch(1, 0.5, 0.5))
    end(ledger, reason, message="why")
    trial = ledger.trials[0]
    assert (trial.state, trial.reason, trial.message, trial.ended) == (reason.state, reason, "why", 3.0)
    assert not ledger.open and ledger.ended == 1 and ledger.reasons == {reason: 1}
    ledger.apply(events.StudyResumed(time=9, host="h", pid=2))
    paused = reason is Reason.PAUSED
    again = paused or reason in (Reason.USER, Reason.BUDGET, Reason.INTERRUPTED)
    assert trial.open == again and (trial.reason is None) == again
    assert ledger.count(State.PAUSED if paused else State.WAITING) == again
    assert list(ledger.paused) == [0] * paused and list(ledger.open) == [0] * (again and not paused)
    assert sum(ledger.counts.values()) == 1


def test_failure_classes_are_reasons() -> None:
    assert {Reason(kind).state for kind in FailureClass} == {State.FAILED}
    assert Reason("out_of_memory") is Reason.OUT_OF_MEMORY and FailureClass("hung") is FailureClass.HUNG


def test_trials_that_a_dead_process_left_open_wait_again(ledger: Ledger) -> None:
    begin(ledger)
    report(ledger, epoch(1, 0.5, 0.5), time=11, seconds=(4, 1))
    ledger.apply(events.StudyResumed(time=1000, host="h", pid=2))
    trial = ledger.trials[0]
    assert trial.state is State.WAITING and trial.checkpoint == "at 11"
    assert (
        trial.worker_time.waiting == 5
    )  # from its start at 1 until it was last heard of at 11; not the night behind it


def test_a_study_that_stops_takes_its_open_trials_with_it(ledger: Ledger) -> None:
    begin(ledger)
    finish(ledger, 1, 0.1, 0.1)
    ledger.apply(events.StudyStopped(time=5, end=StudyEnd.DISK, message="full"))
    assert ledger.end is StudyEnd.DISK and not ledger.open
    assert [trial.reason for trial in ledger.trials] == [Reason.INTERRUPTED, Reason.COMPLETED]


def test_hours_are_told_apart(ledger: Ledger) -> None:
    begin(ledger, time=10)
    report(ledger, epoch(1, 0.5, 0.5), time=20, seconds=(6, 2))
    end(ledger, Reason.COMPLETED, time=21)
    spent = ledger.trials[0].worker_time
    assert (spent.training, spent.evaluation, spent.waiting) == (6, 2, 3)
    assert ledger.worker_seconds == 11 and ledger.ended_seconds == [1, 11, 121]


def test_hours_count_every_worker_of_a_gang() -> None:
    ledger = new_ledger(study__workers_per_trial=2)
    begin(ledger, time=10)
    report(ledger, epoch(1, 0.5, 0.5), time=20, seconds=(6, 2))
    end(ledger, Reason.COMPLETED, time=21)
    assert ledger.worker_seconds == 22


def test_the_front_holds_complete_trials_that_no_other_dominates_best_first_objective_first(ledger: Ledger) -> None:
    for number, (mse, jsd) in enumerate([(0.3, 0.1), (0.1, 0.3), (0.3, 0.3), (0.2, 0.2)]):
        finish(ledger, number, mse, jsd)
    begin(ledger, 4)
    report(ledger, epoch(1, 0.0, 0.0), number=4)  # better than all, and stopped
    end(ledger, Reason.PRUNED, 4)
    begin(ledger, 5)
    report(ledger, epoch(1, 0.0, 0.0), number=5)  # and this one still runs
    assert [trial.number for trial in ledger.front()] == [1, 3, 0]
    assert [trial.number for trial in ledger.complete()] == [0, 1, 2, 3]
    assert {state: count for state, count in ledger.counts.items() if count} == {
        State.RUNNING: 1, State.COMPLETE: 4, State.STOPPED: 1,
    }  # fmt: skip
    best = ledger.best_of(1)
    assert best is not None and best.number == 0


def test_equal_trials_are_on_the_front_together(ledger: Ledger) -> None:
    finish(ledger, 0, 0.1, 0.1)
    finish(ledger, 1, 0.1, 0.1)
    assert len(ledger.front()) == 2


def test_the_value_at_the_end_of_the_budget_counts_not_the_best_on_the_way(ledger: Ledger) -> None:
    begin(ledger)
    report(ledger, epoch(1, 0.1, 0.1), epoch(2, 0.4, 0.4))
    end(ledger, Reason.COMPLETED)
    assert ledger.values(ledger.trials[0]) == [0.4, 0.4]
    assert ledger.trials[0].best == {MSE: (0.1, 1), JSD: (0.1, 1)}


def test_an_empty_ledger_has_an_empty_front(ledger: Ledger) -> None:
    assert ledger.front() == [] and ledger.complete() == [] and ledger.best_of(0) is None
