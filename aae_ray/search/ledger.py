"""What became of a study: a pure fold over its journal's events, and the only thing that is derived from them.

`Ledger.apply(event)` is the only mutation, and its cost does not grow with the number of trials but for the logarithm
of it. Screen, tables, sampler, pruner and MLflow read from here.
"""

import math
from collections.abc import Iterable, Sequence

from aae_ray.errors import UserError
from aae_ray.evaluation.metrics import METRICS
from aae_ray.search import events
from aae_ray.search.choice import compared, in_order, means, reference_point, references
from aae_ray.search.constraints import constrained, constraints_of, violation
from aae_ray.search.contract import Suggestion
from aae_ray.search.market import ON_DEMAND, SPOT, MachineHours
from aae_ray.search.objectives import Front
from aae_ray.search.outcomes import INCONCLUSIVE, FailureClass, Reason, RungVerdict, State, StudyEnd
from aae_ray.search.pruner import Pruner, Rung
from aae_ray.search.racing import Seeds, standard_errors
from aae_ray.search.space import Plan, plan_from
from aae_ray.search.trial_record import Failures, TrialRecord, WorkerTime
from aae_ray.settings import StudySettings, run_values

OF_OPEN_TRIALS = (
    events.AttemptStarted,
    events.Reported,
    events.Progressed,
    events.AttemptFailed,
    events.Ended,
)
RECENT = 24  # of the last trials that ended, so many are kept at hand


class Ledger:
    """All that follows from the events so far."""

    def __init__(self) -> None:
        self.started: events.StudyStarted | None = None
        self.resumed: events.StudyResumed | None = None  # the last one
        self.trials: list[TrialRecord] = []
        self.configurations = 0  # trials that are not replicates of another one
        self.open: dict[int, TrialRecord] = {}  # wait for a gang, or have one
        self.paused: dict[int, TrialRecord] = {}  # at a rung
        self.paused_seconds = 0.0  # worker seconds of trials that are paused, or ended so with their study
        self.borrowed: dict[int, str] = {}  # checkpoints of other trials that trials will go on from
        self.front_points = Front()
        self.rungs: dict[int, Rung] = {}
        self.worst_seen: list[float] = []  # of each objective among complete trials
        self.reference: tuple[float, ...] | None = None  # the worst of the objectives, once a trial has measured it
        self.counts: dict[State, int] = dict.fromkeys(State, 0)
        self.reasons: dict[Reason, int] = {}
        self.failures_in_a_row = 0
        self.first_failures: list[str] = []  # messages of bugs, as long as no trial ended otherwise
        self.ended_seconds: list[float] = [0.0, 0.0, 0.0]  # count, sum, sum of squares of ended trials' worker seconds
        self.seconds_by_reason: dict[Reason, float] = {}  # worker seconds of trials that ended for good
        self.worker_time = WorkerTime()  # of all trials
        self.failures: dict[FailureClass, Failures] = {}  # of attempts
        self.recent: dict[int, TrialRecord] = {}  # the last trials that ended, in the order of their ends
        self.best_trials: dict[int, TrialRecord] = {}  # index of an objective -> the complete trial that is best in it
        self.most_running = 0  # trials at a time, in this session
        self.end: StudyEnd | None = None  # None while the study goes on
        self.end_message: str | None = None
        self.notes: list[str] = []
        self.machines = MachineHours()  # of a cluster that has them on spot and on demand
        self.confirming: events.Confirming | None = None  # of the configurations that there are now
        self.confirmed_from = 0  # the first trial after that event
        self.chosen: events.Chosen | None = None
        self.promoted: events.Promoted | None = None
        self.active_seconds = 0.0  # of earlier sessions
        self.session_started: float | None = None
        self.trial_seconds = 0.0  # of earlier sessions, each from the first trial on that began in it
        self.trials_since: float | None = None
        self.last_time = 0.0
        self.plan: Plan | None = None

    @classmethod
    def replay(cls, history: Iterable[events.Event]) -> "Ledger":
        ledger = cls()
        for event in history:
            ledger.apply(event)
        return ledger

    # ------------------------------------------------------------------------------------------------------ the fold

    def apply(self, event: events.Event) -> None:
        """Take one event into account."""
        before, self.last_time = self.last_time, max(self.last_time, event.time)
        if isinstance(event, OF_OPEN_TRIALS) and not self.trials[event.number].open:
            return  # it came when its trial had ended with the study
        match event:
            case events.StudyStarted():
                self.started, self.plan = event, plan_from(event.plan)
                self.session_started = event.time
            case events.StudyResumed():
                self._resume(event, before)
            case events.Suggested():
                assert self.plan is not None and event.number == len(self.trials), "trials are numbered in order"
                workers = self.plan.settings.study.workers_per_trial
                first = None if event.replicate_of is None else self.trials[event.replicate_of]
                trial = TrialRecord(
                    event.number,
                    dict(event.params),
                    self.plan if first is None else first.plan,  # a resume may have changed it
                    event.time,
                    workers,
                    dict(event.sampler_state),
                    event.replicate_of,
                )
                if first is None:
                    self.configurations += 1
                    self.confirming = None  # the search goes on
                else:
                    first.replicates.append(event.number)
                self.trials.append(trial)
                self.open[trial.number] = trial
                self.counts[State.WAITING] += 1
            case events.AttemptStarted():
                trial = self.trials[event.number]
                self._move(trial, State.RUNNING)
                self.trials_since = self.trials_since or event.time
                trial.attempts = event.attempt
                trial.workers = self.current_plan.settings.study.workers_per_trial  # a resume may have changed it
                trial.started = trial.started or event.time
                trial.attempt_started = trial.heard = trial.saved = event.time
                trial.busy_before = trial.worker_time.busy
                self.most_running = max(self.most_running, self.counts[State.RUNNING])
            case events.Reported():
                self._report(self.trials[event.number], event)
            case events.Progressed():
                trial = self.trials[event.number]
                trial.heard, trial.batches = event.time, (event.done, event.batches)
            case events.Decided():
                self._decide(self.trials[event.number], event)
            case events.Exploited():
                trial = self.trials[event.number]
                trial.params, trial.donors = dict(event.params), [*trial.donors, (event.epoch, event.donor)]
                trial.checkpoint, trial.checkpoint_epoch = event.checkpoint, event.epoch
                trial.checkpoint_bytes = self.trials[event.donor].checkpoint_bytes
                self.borrowed[trial.number] = event.checkpoint
            case events.AttemptFailed():
                trial = self.trials[event.number]
                trial.failures.append(event)
                trial.attempts = event.attempt
                failures = self.failures.setdefault(event.failure, Failures())
                failures.count, failures.last = failures.count + 1, event
                if trial.attempt_started is not None and trial.saved is not None:
                    failures.lost_seconds += max(event.time - trial.saved, 0.0) * trial.workers
                self._close_attempt(trial, event.time)
                trial.message = event.message
                trial.alone = trial.alone or (event.failure is FailureClass.OUT_OF_MEMORY and _shares_a_device(trial))
                if event.retry:
                    self._move(trial, State.WAITING)
            case events.Ended():
                self._end(self.trials[event.number], event.time, event.reason, event.message)
            case events.Confirming():
                self.confirming, self.confirmed_from = event, len(self.trials)
            case events.Measured():
                self.trials[event.number].test = event
            case events.Chosen():
                self.chosen, self.promoted = event, None
            case events.Promoted():
                self.promoted = event
            case events.Noted():
                self.notes.append(event.text)
            case events.MachinesChanged():
                self.machines.change(event.time, event.present)
            case events.StudyStopped():
                self.machines.close(event.time)
                reason = Reason.USER if event.end is StudyEnd.USER else Reason.INTERRUPTED
                lost = event.end is StudyEnd.INTERRUPTED  # its process ended some time ago: nobody worked since
                for trial in [*self.open.values(), *self.paused.values()]:
                    if lost and trial.heard is not None:
                        self._close_attempt(trial, trial.heard)
                    self._end(trial, event.time, Reason.PAUSED if trial.state is State.PAUSED else reason, None)
                self._close_session(event.end, event.message, before if lost else event.time)
            case events.StudyEnded():
                self.machines.close(event.time)
                self._close_session(StudyEnd.PLANNED, event.message, event.time)
            case events.FileWritten():
                if event.number is not None:
                    self.trials[event.number].files.add(event.path)
            case events.Evaluated():
                pass

    def _resume(self, event: events.StudyResumed, before: float) -> None:
        self.machines.close(before)
        if self.session_started is not None:  # its process exited unexpectedly, after its last event
            self._count_session(before)
        self.resumed, self.end, self.end_message, self.most_running = event, None, None, 0
        self.session_started, self.failures_in_a_row, self.first_failures = event.time, 0, []
        if event.plan is not None:
            before_plan, self.plan = self.current_plan, plan_from(event.plan)
            if self.plan.settings.study.confirm != before_plan.settings.study.confirm:
                self.confirming = None
        for trial in self.trials:
            if trial.number in self.open:  # its process exited unexpectedly
                self._close_attempt(trial, trial.heard or event.time)
                self._move(trial, State.WAITING)
            elif trial.reason is not None and trial.reason.resumable:
                self.reasons[trial.reason] -= 1
                paused = trial.reason is Reason.PAUSED
                trial.reason, trial.ended = None, None
                self._move(trial, State.PAUSED if paused else State.WAITING)
                (self.paused if paused else self.open)[trial.number] = trial
                self.recent.pop(trial.number, None)
        if event.plan is not None:  # constraints may have changed
            self._rank_anew()

    def _decide(self, trial: TrialRecord, event: events.Decided) -> None:
        first = trial.number if trial.replicate_of is None else trial.replicate_of
        self.rungs.setdefault(event.rung, Rung()).apply(event, first)
        trial.rung = event.rung
        self.failures_in_a_row, self.first_failures = 0, []  # it trains as it should, however far it goes
        if event.verdict is RungVerdict.PAUSE:
            self._close_attempt(trial, event.time)
            self._move(trial, State.PAUSED)
            self.paused[trial.number] = self.open.pop(trial.number)
            self._count_seconds(trial, 1)
            self.paused_seconds += trial.worker_time.held
        elif trial.state is State.PAUSED:
            self._count_seconds(trial, -1)
            self.paused_seconds -= trial.worker_time.held
            self._move(trial, State.WAITING)
            self.open[trial.number] = self.paused.pop(trial.number)

    def _report(self, trial: TrialRecord, event: events.Reported) -> None:
        workers = trial.workers
        trial.worker_time.training += event.training_seconds * workers
        trial.worker_time.evaluation += event.evaluation_seconds * workers
        self.worker_time.training += event.training_seconds * workers
        self.worker_time.evaluation += event.evaluation_seconds * workers
        trial.heard, trial.last_report, trial.batches = event.time, event, None
        for metrics in self.fresh(event):
            for name, sign in zip(self.objectives, self.signs, strict=True):
                value = metrics.get(name, math.nan)
                if math.isfinite(value) and (name not in trial.best or sign * value < sign * trial.best[name][0]):
                    trial.best[name] = (value, int(metrics["epoch"]))
            trial.epoch, trial.metrics = int(metrics["epoch"]), dict(metrics)
        first = trial.metrics.get(self.objectives[0], math.nan)
        if math.isfinite(first):
            trial.intermediate_values[trial.epoch] = first
        if self.reference is None:
            self.reference = reference_point(self.objectives, trial.metrics)
        if event.checkpoint is not None:
            trial.checkpoint, trial.checkpoint_epoch = event.checkpoint, event.epoch
            trial.checkpoint_bytes, trial.saved = event.checkpoint_bytes, event.time
            self.borrowed.pop(trial.number, None)

    @property
    def lost_seconds(self) -> float:
        """Seconds of workers that failed attempts had spent since their last saved state."""
        return sum(failures.lost_seconds for failures in list(self.failures.values()))

    @property
    def noun(self) -> str:
        """What the examples of the study's data are called."""
        return "images" if self.started is None else self.started.data.noun

    def cost(self, worker_seconds: float) -> float | None:
        """What so many seconds of workers cost; None where study.price_per_worker_hour is not given."""
        price = self.current_plan.settings.study.price_per_worker_hour
        return None if price is None else worker_seconds / 3600 * price

    @property
    def machine_cost(self) -> float | None:
        """What the hours of machines cost; None where study.cluster lacks the price of a market that was used."""
        cluster = self.current_plan.settings.study.cluster
        prices = {SPOT: cluster.price_per_spot_hour, ON_DEMAND: cluster.price_per_on_demand_hour}
        used = [(amount, prices.get(market)) for market, amount in self.machines.hours.items() if amount]
        costs = [amount * price for amount, price in used if price is not None]
        return sum(costs) if used and len(costs) == len(used) else None

    def fresh(self, event: events.Reported) -> list[dict[str, float]]:
        """The epochs of a report that the trial has not reported before. Ask before the event is applied."""
        return [metrics for metrics in event.history if metrics["epoch"] > self.trials[event.number].epoch]

    def _end(self, trial: TrialRecord, time: float, reason: Reason, message: str | None) -> None:
        self._close_attempt(trial, time)
        if trial.message is not None and reason.state is not State.FAILED:
            trial.message = ""  # of an attempt that was repeated; empty, as MLflow keeps a tag until it gets another
        trial.ended, trial.reason, trial.message = time, reason, message or trial.message
        if trial.state is State.PAUSED and reason is not Reason.PAUSED:
            self._count_seconds(trial, -1)
            self.paused_seconds -= trial.worker_time.held
            self.rungs[trial.rung].paused.remove(trial.number)
        self.open.pop(trial.number, None)
        self.paused.pop(trial.number, None)
        self._move(trial, reason.state)
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        self.recent[trial.number] = trial
        if len(self.recent) > RECENT:
            del self.recent[next(iter(self.recent))]
        if reason.resumable:
            return
        self.borrowed.pop(trial.number, None)
        seconds = trial.worker_time.held
        self.seconds_by_reason[reason] = self.seconds_by_reason.get(reason, 0.0) + seconds
        self._count_seconds(trial, 1)
        if trial.state is State.FAILED:
            self.failures_in_a_row += 1
            if reason is Reason.BUG and self.counts[State.COMPLETE] + self.counts[State.STOPPED] == 0:
                self.first_failures.append(trial.message or "")
        else:
            self.failures_in_a_row, self.first_failures = 0, []
        if trial.state is State.COMPLETE:
            own = self._seed_values(trial)
            self.worst_seen = [max(pair) for pair in zip(self.worst_seen or own, own, strict=True)]
        if trial.replicate_of is not None:
            if reason is not Reason.COMPLETED and reason not in INCONCLUSIVE:
                self._take_bad_seed(trial, self.trials[trial.replicate_of])
            self._rank_anew()
        elif trial.state is State.COMPLETE:
            self.front_points.insert(trial.number, self._constrained(trial))
            self._consider_best(trial, self.best_trials)

    def _take_bad_seed(self, trial: TrialRecord, first: TrialRecord) -> None:
        """A seed diverged, or was ended by a health check, on its way to where its configuration waits."""
        rung = self.rungs.get(first.rung)
        if rung is not None and first.state is not State.COMPLETE and self.pruner.races_at(first.rung):
            rung.take_seed(first.number, trial.number, (math.inf,) * len(rung.ranks.values[first.number]))

    def _consider_best(self, trial: TrialRecord, best: dict[int, TrialRecord]) -> None:
        for index, value in enumerate(self._constrained(trial)):
            known = best.get(index)
            if known is None or value < self._constrained(known)[index]:
                best[index] = trial

    def _rank_anew(self) -> None:
        """After another seed of a configuration, whose means have moved, or under other constraints."""
        complete, best = self.complete(), dict[int, TrialRecord]()
        self.front_points.replace_all({trial.number: self._constrained(trial) for trial in complete})
        for trial in complete:
            self._consider_best(trial, best)
        self.best_trials = best  # at once, as the screen reads it

    def _count_seconds(self, trial: TrialRecord, sign: int) -> None:
        """What a trial that has ended, or waits at a rung, says of how long trials take; taken back with -1."""
        seconds = trial.worker_time.held
        self.ended_seconds = [
            total + sign * more for total, more in zip(self.ended_seconds, (1, seconds, seconds**2), strict=True)
        ]

    def _close_attempt(self, trial: TrialRecord, time: float) -> None:
        if trial.attempt_started is not None:
            held = max(time - trial.attempt_started, 0.0) * trial.workers
            waited = max(held - (trial.worker_time.busy - trial.busy_before), 0.0)
            trial.worker_time.waiting += waited
            self.worker_time.waiting += waited
            trial.attempt_started = None
        trial.batches = None

    def _move(self, trial: TrialRecord, state: State) -> None:
        self.counts[trial.state] -= 1
        self.counts[state] += 1
        trial.state = state

    def _close_session(self, end: StudyEnd, message: str | None, time: float) -> None:
        self.end, self.end_message = end, message
        if self.session_started is not None:
            self._count_session(time)

    def _count_session(self, end: float) -> None:
        """A session is over, at this time as far as is known."""
        assert self.session_started is not None
        self.active_seconds += max(end - self.session_started, 0.0)
        self.trial_seconds += 0.0 if self.trials_since is None else max(end - self.trials_since, 0.0)
        self.session_started = self.trials_since = None

    def wall_clock_used(self, now: float) -> float:
        """Seconds of study.budget.wall_clock that are used up: of each session those from its first trial on."""
        since = self.trials_since  # read once, as another thread may show the study while it goes on
        return self.trial_seconds + (0.0 if since is None else max(now - since, 0.0))

    # -------------------------------------------------------------------------------------------------- what is asked

    @property
    def current_plan(self) -> Plan:
        """The study's plan. Raises UserError where the journal is not that of a study."""
        if self.plan is None:
            raise UserError("it is the record of an evaluation, not of a study")
        return self.plan

    @property
    def worker_seconds(self) -> float:
        """For how long workers were held by trials, all workers together."""
        return self.worker_time.held

    @property
    def pruner(self) -> Pruner:
        """The rule at the rungs."""
        return Pruner(self.current_plan.settings.study, self.reference)

    @property
    def objectives(self) -> Sequence[str]:
        return self.current_plan.settings.study.objectives

    @property
    def signs(self) -> list[float]:
        """1 for each objective that is minimised, -1 for each that is maximised."""
        return [METRICS[name].sign for name in self.objectives]

    def count(self, state: State) -> int:
        return self.counts[state]

    @property
    def unfinished(self) -> int:
        """Trials that ended with their study, which a resume takes up again."""
        resumable = (count for reason, count in list(self.reasons.items()) if reason.resumable)
        return sum(resumable) - self.reasons.get(Reason.PAUSED, 0)

    @property
    def ended(self) -> int:
        """Configurations that need no more work, unless later results put one that is paused ahead."""
        open_ones = sum(trial.replicate_of is None for trial in list(self.open.values()))
        waiting = len(self.paused) if self.pruner.rule.population else 0
        return self.configurations - open_ones - waiting

    def values(self, trial: TrialRecord) -> list[float]:
        """Objective values of a complete trial, in the order of the objectives, smaller the better: means over the
        seeds of its configuration that have come to an end."""
        return list(self.seeds(trial).means)

    def seeds(self, trial: TrialRecord) -> Seeds:
        """What the seeds of a complete trial's configuration came to. One that diverged, or was stopped by a health
        check, counts as the worst that its objectives can be; one that the machine has lost, or that waits at a rung,
        says nothing."""
        replicates = [self.trials[number] for number in trial.replicates]
        values = tuple(self._seed_values(each) for each in _conclusive([trial, *replicates]))
        return Seeds(trial.number, values, len(self._under_way(replicates)))

    def _under_way(self, replicates: Iterable[TrialRecord]) -> list[TrialRecord]:
        """Those that train, or will: a seed that waits at a rung does so until it is asked for."""
        return [each for each in replicates if each.state in (State.WAITING, State.RUNNING)]

    def seeds_on_their_way(self, trial: TrialRecord, rung: Rung) -> int:
        """How many further seeds of a configuration will come to a rung."""
        replicates = (self.trials[number] for number in trial.replicates)
        return sum(each.number not in rung.verdicts for each in self._under_way(replicates))

    def _seed_values(self, trial: TrialRecord) -> tuple[float, ...]:
        if trial.state is not State.COMPLETE:
            return self.reference or tuple(self.worst_seen)
        return tuple(
            sign * trial.metrics.get(name, math.inf) for name, sign in zip(self.objectives, self.signs, strict=True)
        )

    def _constrained(self, trial: TrialRecord) -> tuple[float, ...]:
        return constrained(self.values(trial), self.violation(trial))

    def violation(self, trial: TrialRecord) -> float:
        """By how much a trial violates study.constraints, 0 where it fulfils them all."""
        return violation(constraints_of(self.current_plan.settings.study), self.judged(trial))

    def judged(self, trial: TrialRecord) -> dict[str, float]:
        """The metrics that a trial is judged by: its own, with means over the seeds of a complete configuration."""
        if not trial.replicates or trial.state is not State.COMPLETE:
            return trial.metrics
        replicates = [self.trials[number] for number in trial.replicates]
        return self._with_means(trial, [self._counted(each, trial) for each in _conclusive([trial, *replicates])])

    def _with_means(self, trial: TrialRecord, seeds: Sequence[dict[str, float]]) -> dict[str, float]:
        """A configuration's metrics, means over these seeds where configurations are compared by them. What one of the
        seeds has not is not known of the configuration either."""
        names, found = compared(self.current_plan.settings.study), means(seeds)
        rest = {name: value for name, value in trial.metrics.items() if name not in names}
        return rest | {name: value for name, value in found.items() if name in names}

    def _counted(self, seed: TrialRecord, first: TrialRecord) -> dict[str, float]:
        """The metrics that a seed of a configuration counts with. One that diverged, or was stopped by a health check,
        gets the worst of all that configurations are compared by, and nothing where there is no worst; references that
        it had no time to measure are those of the first seed."""
        objectives = {
            name: sign * value
            for name, sign, value in zip(self.objectives, self.signs, self._seed_values(seed), strict=True)
        }
        if seed.state is State.COMPLETE:
            return seed.metrics | objectives
        names = compared(self.current_plan.settings.study)
        limits = references(names)
        known = {name: first.metrics[name] for name in limits if name in first.metrics} | seed.metrics
        worst = {name: limit.of(known) for name in names - limits if (limit := METRICS[name].worst) is not None}
        return {name: value for name, value in known.items() if name not in names - limits} | worst | objectives

    def standard_errors(self, trial: TrialRecord) -> dict[str, float]:
        """Of the means over seeds of each objective; empty for a single seed."""
        return dict(zip(self.objectives, standard_errors(self.seeds(trial)), strict=False))

    def confirmations(self, trial: TrialRecord) -> list[TrialRecord]:
        """The trials that confirm a finalist: of its configuration, with seeds that no choice has seen."""
        if self.confirming is None or trial.number not in self.confirming.numbers:
            return []
        return [self.trials[number] for number in trial.replicates if number >= self.confirmed_from]

    def evidence(self, trial: TrialRecord) -> list[dict[str, float]]:
        """The metrics of each new seed of a finalist that has come to an end. One that diverged, or was stopped by a
        health check, counts as the worst; one that the machine has lost says nothing."""
        return [self._counted(each, trial) for each in _conclusive(self.confirmations(trial))]

    def confirmed(self) -> list[tuple[TrialRecord, dict[str, float]]]:
        """The finalists of which new seeds are known, each with its metrics: means over those seeds of all that
        configurations are compared by."""
        numbers = self.confirming.numbers if self.confirming is not None else ()
        finalists = [self.trials[number] for number in numbers]
        return [(trial, self._with_means(trial, seeds)) for trial in finalists if (seeds := self.evidence(trial))]

    def measured(self, trial: TrialRecord) -> bool:
        """Whether every objective of the trial's last epoch is a finite number."""
        return all(math.isfinite(trial.metrics.get(name, math.nan)) for name in self.objectives)

    def firsts(self) -> list[TrialRecord]:
        """The trials that are not another seed of an earlier one."""
        return [trial for trial in self.trials if trial.replicate_of is None]

    def complete(self) -> list[TrialRecord]:
        """The configurations that were trained to their end."""
        return [trial for trial in self.firsts() if trial.state is State.COMPLETE]

    def front(self) -> list[TrialRecord]:
        """The complete trials that no other one dominates, best first objective first, one of each configuration.

        While none fulfils the constraints, those that violate them least.
        """
        return [self.trials[number] for number in self.front_points.members()]

    def finalists(self, study: StudySettings) -> list[TrialRecord]:
        """The trials of the front that are to be confirmed, `study.confirm.finalists` at most, the best one first."""
        front = self.front()
        order = in_order([self.judged(trial) for trial in front], study.objectives, study.select)
        return [front[index] for index in order[: study.confirm.finalists]]

    def best_of(self, objective: int) -> TrialRecord | None:
        """The complete trial with the best value of one objective, the first of equal ones."""
        return self.best_trials.get(objective)

    def suggestion(self, trial: TrialRecord) -> Suggestion:
        """The trial's next attempt, on from its last checkpoint."""
        return Suggestion(
            number=trial.number,
            attempt=trial.attempt,
            params=dict(trial.params),
            settings=run_values(trial.plan.settings),
            epoch=trial.checkpoint_epoch,
            checkpoint=trial.checkpoint,
            alone=trial.alone,
        )


def _conclusive(seeds: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Those that have ended and say something of their configuration."""
    return [each for each in seeds if each.reason is not None and each.reason not in INCONCLUSIVE]


def _shares_a_device(trial: TrialRecord) -> bool:
    """Whether other trials may take memory from this one: not where each of its workers has a GPU for itself."""
    gpus = trial.plan.settings.study.resources_per_worker.get("GPU", 0)
    return not gpus or gpus % 1 != 0
