"""The decisions of a study: what is tried next, who goes on, what a failure allows, when it ends.

It knows neither Ray nor MLflow. An executor asks `suggest`, says `started`, `reported` and `failed`, and does what it
is answered. Every decision is written to the journal before anything follows from it.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum

import numpy as np

from aae_ray.search import events
from aae_ray.search.contract import Failure, Progress, Report, Suggestion
from aae_ray.search.journal import Journal
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import RETRIES, FailureClass, Reason, RungVerdict, State, StudyEnd
from aae_ray.search.population import mutated, next_of_generation
from aae_ray.search.pruner import Rung, rungs
from aae_ray.search.racing import next_seed
from aae_ray.search.sampler import Sampler
from aae_ray.search.trial_record import TrialRecord
from aae_ray.secrets import redact
from aae_ray.training.health import worse_than_the_mean_image

logger = logging.getLogger(__name__)

NO_POINT_LEFT = "the space has no untried point left"
LAST_SHARE = 0.05  # of study.budget.wall_clock, which a trial may need more to come to its end
SAME_BUG = 3  # first trials that end in one and the same bug: the others would as well

Sink = Callable[[events.Event, Ledger], None]


class NoSuggestion(Enum):
    """Why there is no suggestion."""

    WAIT = "wait"  # for a gang that gets free, or for a trial that may have to be repeated
    DONE = "done"


@dataclass(frozen=True)
class Continue:
    """Train on."""


@dataclass(frozen=True)
class Stop:
    """The trial has ended."""

    reason: Reason


@dataclass(frozen=True)
class Pause:
    """The attempt is over: the trial waits at its rung, and is suggested again if later results put it ahead."""


@dataclass(frozen=True)
class Retry:
    """The trial will be suggested again."""


@dataclass(frozen=True)
class GiveUp:
    """The trial has ended in failure."""

    reason: Reason


class Conductor:
    """Runs one study over a journal. Its methods are called from one thread."""

    def __init__(
        self,
        journal: Journal,
        ledger: Ledger,
        gangs: int,
        sinks: Sequence[Sink] = (),
        clock: Callable[[], float] = time.time,
        uninterrupted: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`uninterrupted` holds back Ctrl-C: an event is in the journal and in the ledger, or in neither."""
        self.uninterrupted = uninterrupted
        self.journal, self.ledger, self.gangs, self.sinks, self.clock = journal, ledger, gangs, list(sinks), clock
        self.sampler = Sampler(ledger)
        self.no_more: StudyEnd | None = None  # why nothing new is suggested
        self.message: str | None = None
        self.exhausted = False  # whether every point of the space was tried
        self.race: tuple[object, int | None] = (None, None)  # what `_undecided` depends on, and its answer
        self.suggested: set[int] = set()  # handed out, and not ended
        for trial in list(ledger.open.values()):
            self._settle(trial)
        self.waiting = deque(trial.number for trial in ledger.trials if trial.state is State.WAITING)

    # ------------------------------------------------------------------------------------------------- the one rule

    def record(self, *happened: events.Event) -> None:
        """Write events to the journal, apply them to the ledger, hand them to the sinks.

        Raises JournalError when the journal cannot be written: nothing has happened then.
        """
        with self.uninterrupted():
            for event in self.journal.append(*happened):
                self.ledger.apply(event)
                for sink in self.sinks:
                    try:
                        sink(event, self.ledger)
                    except Exception:  # what is shown or recorded elsewhere must never cost a study
                        logger.exception("a sink failed on event %s", event.event)

    # ------------------------------------------------------------------------------------------- what an executor says

    def suggest(self) -> Suggestion | NoSuggestion:
        """The next attempt: a trial that waits, else one that is paused at a rung and may go on, else a new one.

        The trial counts as under way from now on.
        """
        if self.no_more is not None:
            return NoSuggestion.DONE
        if len(self.suggested) >= self.gangs:
            return NoSuggestion.WAIT
        budget = self.ledger.current_plan.settings.study.budget
        if budget.worker_hours is not None and self.ledger.worker_seconds >= 3600 * budget.worker_hours:
            return self._finish(StudyEnd.PLANNED, f"study.budget.worker_hours={budget.worker_hours:g} are used up")
        if self.waiting:
            trial = self.ledger.trials[self.waiting[0]]
            if trial.alone and self.suggested:
                return NoSuggestion.WAIT
            self.waiting.popleft()
        elif any(self.ledger.trials[number].alone for number in self.suggested):
            return NoSuggestion.WAIT
        elif not self._confirming and (promoted := self._promote()) is not None:
            trial = promoted
        elif not self._confirming and (replicate := self._replicate()) is not None:
            trial = replicate
        elif self._room_for_another:
            number = len(self.ledger.trials)
            drawn = self.sampler.suggest(self.ledger.configurations)
            if drawn is None:
                self.exhausted = True
                return self.suggest()
            self.record(events.Suggested(number=number, params=drawn[0], sampler_state=drawn[1]))
            trial = self.ledger.trials[number]
        elif self._to_confirm():
            if self.suggested:  # what is under way may change the front
                return NoSuggestion.WAIT
            self._choose_finalists()
            return self.suggest()
        elif (finalist := self._unconfirmed()) is not None:
            trial = self._with_new_seed(finalist)
        else:
            return self._finish(StudyEnd.PLANNED, NO_POINT_LEFT if self.exhausted else None)
        self.suggested.add(trial.number)
        return self.ledger.suggestion(trial)

    def started(self, number: int) -> None:
        """An attempt has its gang and trains."""
        trial = self.ledger.trials[number]
        suggestion = self.ledger.suggestion(trial)
        self.record(
            events.AttemptStarted(
                number=number, attempt=suggestion.attempt, epoch=suggestion.epoch, alone=suggestion.alone
            )
        )

    def reported(self, report: Report) -> Continue | Pause | Stop:
        """Take a report; whether the trial goes on."""
        trial = self.ledger.trials[report.number]
        if decided := self._decided(trial):
            return decided
        self.record(
            events.Reported(
                number=report.number,
                epoch=report.epoch,
                history=tuple(dict(metrics) for metrics in report.history),
                finished=report.finished,
                stop_reason=report.stop_reason,
                checkpoint=report.checkpoint,
                checkpoint_bytes=report.checkpoint_bytes,
                training_seconds=report.training_seconds,
                evaluation_seconds=report.evaluation_seconds,
            )
        )
        return self._after_report(trial) or Continue()

    def progressed(self, progress: Progress) -> Continue | Pause | Stop:
        """Take how far a long epoch is; whether the trial goes on."""
        if decided := self._decided(self.ledger.trials[progress.number]):
            return decided
        self.record(
            events.Progressed(
                number=progress.number, epoch=progress.epoch, done=progress.done, batches=progress.batches
            )
        )
        return Continue()

    def _decided(self, trial: TrialRecord) -> Pause | Stop | None:
        """What holds already of a trial that goes on saying something."""
        if trial.state is State.PAUSED:
            return Pause()
        return None if trial.open else Stop(trial.reason or Reason.PRUNED)

    def failed(self, failure: Failure) -> Retry | GiveUp:
        """Take the failure of an attempt; whether the trial is tried again from its last checkpoint."""
        trial = self.ledger.trials[failure.number]
        if not trial.open:
            return GiveUp(trial.reason or Reason.BUG)
        retry = trial.failed(failure.kind) < self._retries(failure.kind)
        self.record(
            events.AttemptFailed(
                number=failure.number,
                attempt=trial.attempt,
                failure=failure.kind,
                message=redact(failure.message),
                traceback=redact(failure.traceback),
                log_tail=redact(failure.log_tail),
                retry=retry,
            )
        )
        if retry:
            self.suggested.discard(failure.number)
            self.waiting.append(failure.number)
            return Retry()
        advice = RETRIES[failure.kind].advice
        self._end(trial, Reason(failure.kind), redact(failure.message) + (f"; {advice}" if advice else ""))
        self._consider_giving_up(trial)
        return GiveUp(Reason(failure.kind))

    def _retries(self, kind: FailureClass) -> int:
        study, most = self.ledger.current_plan.settings.study, RETRIES[kind].most
        match most:
            case "max_failures":
                return study.max_failures
            case "max_preemptions":
                return study.max_preemptions
            case _:
                return most

    def taken_back(self, number: int) -> None:
        """A suggestion was never begun: it is handed out again."""
        self.suggested.discard(number)
        self.waiting.appendleft(number)

    def retry_in_place(self, number: int) -> None:
        """The executor has not given up the place that a failed attempt waited for: the next one takes it."""
        self.waiting.remove(number)
        self.suggested.add(number)

    # ------------------------------------------------------------------------------------------------------ its end

    def stop(self, end: StudyEnd, message: str | None = None) -> None:
        """Stop before the planned end: open trials end with the study, and a resume takes them up again."""
        self.no_more, self.message = end, message
        if self.ledger.end is None:
            self.record(events.StudyStopped(end=end, message=message))
        self.suggested.clear()

    def out_of_time(self) -> None:
        """The budget's time is up: trials under way end with it, but for those that are about to come to their end, and
        do so before `LAST_SHARE` of it more is used up. Called until nothing is under way."""
        budget = self.ledger.current_plan.settings.study.budget
        if self.no_more is None:
            self.no_more, self.message = StudyEnd.PLANNED, "study.budget.wall_clock is used up"
            self.end_all({trial.number for trial in self.ledger.open.values() if self._about_to_end(trial)})
        elif self.ledger.wall_clock_used(self.clock()) > (1 + LAST_SHARE) * (budget.wall_clock or 0.0):
            self.end_all()

    def _about_to_end(self, trial: TrialRecord) -> bool:
        """Whether a trial that trains is past its last rung, and needs a small share of the budget's time for the rest,
        by how long it took so far."""
        study, left = trial.plan.settings.study, trial.epochs - trial.epoch
        wall_clock = self.ledger.current_plan.settings.study.budget.wall_clock
        to_be_decided = study.pruner.type != "none" and any(
            rung > trial.epoch for rung in rungs(study.pruner, trial.epochs)
        )
        if trial.state is not State.RUNNING or wall_clock is None or not trial.epoch or to_be_decided:
            return False
        return left * trial.worker_time.busy / trial.workers / trial.epoch <= LAST_SHARE * wall_clock

    @property
    def more_to_suggest(self) -> bool:
        """Whether there is something to do: a trial that is open or may go on, or room for another one."""
        if self.no_more is not None:
            return False
        if self.ledger.open or self._room_for_another:
            return True
        if self._confirming:
            return self._unconfirmed() is not None
        if self._undecided() is not None or self._to_confirm():
            return True
        if self.ledger.pruner.rule.population:
            return bool(self.ledger.paused)
        return self._promotable() is not None

    @property
    def _room_for_another(self) -> bool:
        """Whether the budget has room for another configuration, and the space a point that was not tried."""
        return not self.exhausted and self.ledger.configurations < self.ledger.current_plan.settings.study.budget.trials

    @property
    def gangs_needed(self) -> int:
        """Gangs that will have a trial: fewer than fit where a resumed study has few left."""
        ledger = self.ledger
        needed = len(ledger.open) + max(ledger.current_plan.settings.study.budget.trials - ledger.configurations, 0)
        if ledger.confirming is not None:
            needed += sum(ledger.confirming.seeds - count for count in self._confirmations(ledger.confirming).values())
        elif ledger.pruner.rule.population:
            needed += len(ledger.paused)
        elif (ledger.paused and self._promotable() is not None) or self._undecided() is not None or self._to_confirm():
            needed += 1
        return max(min(self.gangs, needed), 1)

    @property
    def _confirming(self) -> bool:
        """Whether the search is over, and its finalists are trained with new seeds."""
        return self.ledger.confirming is not None

    @property
    def time_left(self) -> float | None:
        """Seconds of study.budget.wall_clock that are left, earlier sessions counted; None without such a budget. The
        start of Ray and of the first gangs is not counted."""
        wall_clock = self.ledger.current_plan.settings.study.budget.wall_clock
        if wall_clock is None:
            return None
        return max(wall_clock - self.ledger.wall_clock_used(self.clock()), 0.0)

    def _after_report(self, trial: TrialRecord) -> Pause | Stop | None:
        """Whether a trial has ended with its last report, or does not go on at the rung that it has reached."""
        report = trial.last_report
        if report is None:
            return None
        if report.stop_reason is not None:
            return self._end(trial, report.stop_reason)
        if report.finished:
            return self._end(trial, Reason.COMPLETED if self.ledger.measured(trial) else Reason.DIVERGED)
        study = trial.plan.settings.study
        if study.pruner.type == "none" or report.epoch not in rungs(study.pruner, trial.epochs):
            return None
        if trial.replicate_of is not None:
            first = self.ledger.trials[trial.replicate_of]
            if first.state is State.COMPLETE or not self.ledger.pruner.races_at(report.epoch):
                return None  # nothing is decided by it at this rung
        rung = self.ledger.rungs.get(report.epoch)
        verdict = rung.verdicts.get(trial.number) if rung else None
        if verdict is None:
            decided = self._decide(trial, report.epoch, rung)
            self.record(decided)
            verdict = decided.verdict
        if verdict is RungVerdict.STOP:
            learned_nothing = worse_than_the_mean_image(trial.metrics)
            return self._end(trial, Reason.WORSE_THAN_MEAN if learned_nothing else Reason.PRUNED)
        if verdict is RungVerdict.PAUSE:
            self.suggested.discard(trial.number)
            return Pause()
        return None

    def _decide(self, trial: TrialRecord, epoch: int, rung: Rung | None) -> events.Decided:
        pruner = self.ledger.pruner
        if trial.replicate_of is None:
            return pruner.decide(trial.number, epoch, trial.metrics, rung)
        assert rung is not None, "a configuration is at a rung before its further seeds"
        first = self.ledger.trials[trial.replicate_of]
        return pruner.decide_seed(trial.number, first.number, epoch, trial.metrics, rung, farther=first.rung > epoch)

    def _promote(self) -> TrialRecord | None:
        """The best paused trial that later results have put ahead, of the highest rung first. It waits from now on."""
        if self.ledger.pruner.rule.population:
            return self._next_of_generation()
        decided = self._promotable()
        if decided is None:
            return None
        self.record(decided)
        return self.ledger.trials[decided.number]

    def _promotable(self) -> events.Decided | None:
        for epoch in sorted(self.ledger.rungs, reverse=True):
            decided = self.ledger.pruner.promote(epoch, self.ledger.rungs[epoch])
            if decided is not None:
                return decided
        return None

    def _next_of_generation(self) -> TrialRecord | None:
        """The next trial of a population of which all have come equally far; it may take over another one's weights."""
        ledger, pruner = self.ledger, self.ledger.pruner
        if not ledger.paused or self._room_for_another:
            return None
        epoch = min(trial.rung for trial in ledger.paused.values())
        rung = ledger.rungs[epoch]
        values = rung.ranks.values
        if any(number not in values for number in (*ledger.open, *ledger.paused)):
            return None
        waiting = [trial.number for trial in ledger.paused.values() if trial.rung == epoch]
        study = ledger.current_plan.settings.study
        random = np.random.default_rng((study.sampler.seed, epoch, len(waiting)))
        number, donor = next_of_generation(
            values, waiting, study.pruner, pruner.reference, lambda few: int(random.integers(few))
        )
        trial, happened = ledger.trials[number], list[events.Event]()
        source = None if donor is None else ledger.trials[donor]
        if source is not None and source.checkpoint is not None and source.checkpoint_epoch == epoch:
            params = mutated(source.params, trial.plan.space, study.pruner, random)
            happened.append(
                events.Exploited(
                    number=number, donor=source.number, epoch=epoch, checkpoint=source.checkpoint, params=params
                )
            )
        ahead, reached = rung.ranks.ahead(number, values[number], pruner.reference), len(values)
        verdict = RungVerdict.CONTINUE
        happened.append(
            events.Decided(
                number=number, rung=epoch, values=values[number], ahead=ahead, reached=reached, verdict=verdict
            )
        )
        self.record(*happened)
        return trial

    def _replicate(self) -> TrialRecord | None:
        """A configuration with another seed, where that can change its verdict: one that waits at an earlier rung, or a
        new one."""
        number = self._undecided()
        if number is None:
            return None
        first = self.ledger.trials[number]
        for replicate in first.replicates:
            trial = self.ledger.trials[replicate]
            if trial.state is State.PAUSED and (first.state is State.COMPLETE or trial.rung < first.rung):
                rung = self.ledger.rungs[trial.rung]
                self.record(self.ledger.pruner.let_seed_go_on(replicate, number, trial.rung, rung))
                return trial
        return self._with_new_seed(number)

    def _with_new_seed(self, number: int) -> TrialRecord:
        """A configuration as a new trial, with the next seed that it was not trained with."""
        first = self.ledger.trials[number]
        seed = first.plan.settings.seed + len(first.replicates) + 1
        params = {**first.params, "seed": seed}
        self.record(events.Suggested(number=len(self.ledger.trials), params=params, replicate_of=number))
        return self.ledger.trials[-1]

    def _to_confirm(self) -> bool:
        """Whether the finalists that are to be confirmed are not chosen yet."""
        wanted = self.ledger.current_plan.settings.study.confirm.finalists
        return wanted > 0 and self.ledger.confirming is None and bool(self.ledger.front_points.points)

    def _choose_finalists(self) -> None:
        study = self.ledger.current_plan.settings.study
        numbers = tuple(trial.number for trial in self.ledger.finalists(study))
        self.record(events.Confirming(numbers=numbers, seeds=study.confirm.seeds))

    def _unconfirmed(self) -> int | None:
        """The finalist with the fewest new seeds, the best one first, None where all have theirs."""
        confirming = self.ledger.confirming
        if confirming is None:
            return None
        begun = self._confirmations(confirming)
        number = min(begun, key=lambda each: begun[each], default=None)
        return number if number is not None and begun[number] < confirming.seeds else None

    def _undecided(self) -> int | None:
        """The configuration that another seed is for: of those that were trained to their end, then of the highest
        rung."""
        ledger = self.ledger
        if ledger.current_plan.settings.study.seeds_per_trial == 1:
            return None
        verdicts = tuple(len(rung.verdicts) for rung in ledger.rungs.values())
        depends_on = (len(ledger.trials), dict(ledger.reasons), dict(ledger.counts), verdicts)
        if self.race[0] != depends_on:
            self.race = depends_on, self._undecided_at_the_end()
            for epoch in sorted(ledger.rungs, reverse=True):
                if self.race[1] is None:
                    self.race = depends_on, self._undecided_at(epoch)
        return self.race[1]

    def _undecided_at_the_end(self) -> int | None:
        ledger, most = self.ledger, self.ledger.current_plan.settings.study.seeds_per_trial
        feasible = [trial for trial in ledger.complete() if not ledger.violation(trial)]
        return next_seed([ledger.seeds(trial) for trial in feasible], most)

    def _undecided_at(self, epoch: int) -> int | None:
        ledger, rung = self.ledger, self.ledger.rungs[epoch]
        most = ledger.current_plan.settings.study.seeds_per_trial
        seeds = {
            number: len(rung.values[number]) + ledger.seeds_on_their_way(ledger.trials[number], rung)
            for number in ledger.pruner.undecided(epoch, rung)
        }
        return min((number for number, count in seeds.items() if count < most), key=seeds.__getitem__, default=None)

    def _confirmations(self, confirming: events.Confirming) -> dict[int, int]:
        """How many new seeds of each finalist were begun."""
        return {number: len(self.ledger.confirmations(self.ledger.trials[number])) for number in confirming.numbers}

    def _settle(self, trial: TrialRecord) -> None:
        """Draw the conclusion that a crash came between: what was decided or reported last, and not followed."""
        failure = trial.failures[-1] if trial.failures else None
        if failure is not None and not failure.retry:
            self._end(trial, Reason(failure.failure), failure.message)
        else:
            self._after_report(trial)

    def _end(self, trial: TrialRecord, reason: Reason, message: str | None = None) -> Stop:
        self.record(events.Ended(number=trial.number, reason=reason, message=message))
        self.suggested.discard(trial.number)
        return Stop(reason)

    def _finish(self, end: StudyEnd, message: str | None) -> NoSuggestion:
        """Nothing new is begun; what is under way goes on to its end."""
        if self.suggested:
            return NoSuggestion.WAIT
        self.no_more, self.message = end, message
        self.end_all()
        return NoSuggestion.DONE

    def end_all(self, but: Set[int] = frozenset()) -> None:
        """The budget is used up: what is open ends with it, and what is paused, of which an extension may want some;
        `but` are numbers of trials that go on."""
        keep = self.ledger.current_plan.settings.study.keep != "best"
        reasons = dict.fromkeys(self.ledger.open.keys() - but, Reason.BUDGET)
        reasons |= dict.fromkeys(self.ledger.paused, Reason.PAUSED if keep else Reason.PRUNED)
        self.record(*(events.Ended(number=number, reason=reason) for number, reason in sorted(reasons.items())))
        self.suggested &= but

    def _consider_giving_up(self, failed: TrialRecord) -> None:
        """Stop a study in which all goes wrong."""
        bugs, most = self.ledger.first_failures, self.ledger.current_plan.settings.study.budget.failures_in_a_row
        if len(bugs) >= SAME_BUG and len(set(bugs[:SAME_BUG])) == 1:
            self.stop(StudyEnd.FAILURES, f"the first {SAME_BUG} trials ended in the same bug: {bugs[0]}")
        elif self.ledger.failures_in_a_row >= most:
            self.stop(
                StudyEnd.FAILURES,
                f"{most} trials failed in a row (study.budget.failures_in_a_row), the last one with: {failed.message}",
            )
