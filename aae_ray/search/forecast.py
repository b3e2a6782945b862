"""How fast a study goes, when it will be done, and what its hours went into. Pure: a ledger and the time, no more."""

import math
from dataclasses import dataclass

from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import Reason, State
from aae_ray.search.trial_record import TrialRecord, WorkerTime

LEAST_ENDED = 3  # trials that must have ended before anything is said of the rest
DEVIATIONS = 2.0  # standard deviations on either side of what is expected: 95% of the time


@dataclass(frozen=True)
class Interval:
    """Seconds, from the least to the most that is likely."""

    low: float
    high: float


@dataclass(frozen=True)
class Use:
    """How much of a budget is used. No limit: None."""

    used: float
    limit: float | None


@dataclass(frozen=True)
class Forecast:
    """What a ledger says of a study's time."""

    elapsed: float  # seconds that the study has been running, all sessions
    trials_per_hour: float | None  # trials that ended, over that time
    left: Interval | None  # seconds until the study ends; None where too little is known, or nothing is left
    worker_time: WorkerTime  # seconds of workers, with those of the attempts under way
    stopped_early: float  # of these, seconds of trials that the pruner or a health check stopped, or that are paused
    failed: dict[str, float]  # and of failed trials, by the class of failure
    trials: Use
    wall_clock: Use  # seconds
    worker_hours: Use


def forecast(ledger: Ledger, now: float) -> Forecast:
    """The forecast at a time, which for a study that does not run any more is that of its last event.

    The cost grows with the open and paused trials, and not with those that have ended. The study may go on meanwhile,
    in another thread: what may be taken away is read once.
    """
    study = ledger.current_plan.settings.study
    elapsed, started = ledger.active_seconds, ledger.session_started
    if started is not None:
        elapsed += max(now - started, 0.0)
    worker_time = WorkerTime(ledger.worker_time.training, ledger.worker_time.evaluation, ledger.worker_time.waiting)
    for trial in list(ledger.open.values()):
        worker_time.waiting += _waiting(trial, now)
    worker_seconds = worker_time.busy + worker_time.waiting
    by_state: dict[State, dict[str, float]] = {State.STOPPED: {}, State.FAILED: {}, State.COMPLETE: {}}
    for reason, seconds in list(ledger.seconds_by_reason.items()):
        by_state[reason.state][reason.value] = seconds
    wall_clock = Use(ledger.wall_clock_used(now), study.budget.wall_clock)
    worker_hours = Use(worker_seconds / 3600, study.budget.worker_hours)
    return Forecast(
        elapsed=elapsed,
        trials_per_hour=3600 * ledger.ended_seconds[0] / elapsed if ledger.ended_seconds[0] and elapsed else None,
        left=None if ledger.end is not None else _left(ledger, now, wall_clock, worker_hours),
        worker_time=worker_time,
        stopped_early=sum(by_state[State.STOPPED].values()) + _paused(ledger),
        failed=by_state[State.FAILED],
        trials=Use(ledger.ended, study.budget.trials),
        wall_clock=wall_clock,
        worker_hours=worker_hours,
    )


def _paused(ledger: Ledger) -> float:
    """Worker seconds of trials that wait at a rung, or ended there with their study. A population goes on as one."""
    if ledger.pruner.rule.population:
        return 0.0
    return ledger.paused_seconds


def _seeds_to_come(ledger: Ledger) -> int:
    """Further seeds that study.seeds_per_trial asks for as far as is known, of those that the front has now, and new
    ones of the finalists."""
    study = ledger.current_plan.settings.study
    most, confirm = study.seeds_per_trial, study.confirm
    front = [trial for trial in ledger.front() if not ledger.violation(trial)] if most > 1 else []
    further = sum(max(most - 1 - len(trial.replicates), 0) for trial in front)
    if ledger.confirming is None:
        return further + confirm.finalists * confirm.seeds
    finalists = [ledger.trials[number] for number in ledger.confirming.numbers]
    return further + sum(max(ledger.confirming.seeds - len(ledger.confirmations(trial)), 0) for trial in finalists)


def _waiting(trial: TrialRecord, now: float) -> float:
    """Worker seconds that the attempt under way has held so far, and not reported as busy."""
    started = trial.attempt_started
    if started is None:
        return 0.0
    held = max(now - started, 0.0) * trial.workers
    return max(held - (trial.worker_time.busy - trial.busy_before), 0.0)


def _left(ledger: Ledger, now: float, wall_clock: Use, worker_hours: Use) -> Interval | None:
    """Time left: what the remaining trials will take of workers, as the ended ones did, over the gangs at a time.

    Further seeds are trained to the end, and take as long as the complete trials.
    """
    count, total, squares = ledger.ended_seconds
    study = ledger.current_plan.settings.study
    under_way = [trial.replicate_of is None for trial in list(ledger.open.values())]
    configurations = max(study.budget.trials - ledger.ended, sum(under_way))
    seeds = len(under_way) - sum(under_way) + _seeds_to_come(ledger)
    remaining = configurations + seeds
    if count < LEAST_ENDED or remaining == 0:
        return None
    mean = total / count
    variance = max(squares - total * mean, 0.0) / (count - 1)
    held = [
        trial.worker_time.busy + trial.worker_time.waiting + _waiting(trial, now)
        for trial in list(ledger.open.values())
    ]
    complete = ledger.seconds_by_reason.get(Reason.COMPLETED, 0.0) / max(ledger.count(State.COMPLETE), 1)
    expected = configurations * mean + seeds * complete - sum(min(seconds, mean) for seconds in held)
    # Of the remaining trials themselves, and of the mean that is known from a few.
    spread = DEVIATIONS * math.sqrt(remaining * variance + remaining**2 * variance / count)
    gangs = min(study.concurrent_trials or ledger.most_running or 1, remaining)
    rate = gangs * study.workers_per_trial  # worker seconds a second
    low, high = max(expected - spread, 0.0) / rate, (expected + spread) / rate
    if gangs > 1:  # the last trials do not end all at once
        high += mean / study.workers_per_trial * (gangs - 1) / gangs
    limits = []
    if wall_clock.limit is not None:
        limits.append(max(wall_clock.limit - wall_clock.used, 0.0))
    if worker_hours.limit is not None:
        limits.append(max(worker_hours.limit - worker_hours.used, 0.0) * 3600 / rate)
    return Interval(min([low, *limits]), min([high, *limits]))
