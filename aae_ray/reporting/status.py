"""Where a study stands. Made from the journal's ledger and the owner of the study's lock, and nothing else."""

import math
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from aae_ray.reporting.text import RESUME, first_line, shell_path
from aae_ray.search.contract import trial_name
from aae_ray.search.forecast import Forecast, forecast
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import RETRIES, FailureClass, State, StudyEnd
from aae_ray.search.owner import Owner
from aae_ray.search.trial_record import TrialRecord
from aae_ray.secrets import redact

ROWS = 12  # trials in the table that are paused or have ended; those that run come before them
OPEN_ROWS = 16  # and of these so many
FRONT_ROWS = 5  # trials of the front


@dataclass(frozen=True)
class TrialStatus:
    """One trial, as a row of a table has it."""

    number: int
    name: str
    state: State
    reason: str | None  # why it ended
    message: str | None
    epoch: int
    epochs: int  # its budget
    batches: tuple[int, int] | None  # done, and of all of the epoch under way, where it takes long
    attempts: int
    retries: int  # of these, how many followed a failure; the others go on after a pause, or with their study
    replicate_of: str | None  # the trial of the same configuration with the first seed
    values: Mapping[str, float]  # the objectives that were measured: those at its last epoch, or their means over seeds
    params: Mapping[str, Any]

    @classmethod
    def of(cls, trial: TrialRecord, ledger: Ledger) -> "TrialStatus":
        metrics, reason = ledger.judged(trial), trial.reason  # read once: the study may go on meanwhile
        values = {name: metrics[name] for name in ledger.objectives if name in metrics}
        return cls(
            trial.number,
            trial.name,
            trial.state,
            None if reason is None else reason.value,
            trial.message or None,
            trial.epoch,
            trial.epochs,
            trial.batches,
            trial.attempts,
            sum(failure.retry for failure in list(trial.failures)),
            None if trial.replicate_of is None else trial_name(trial.replicate_of),
            values,
            trial.params,
        )

    @property
    def state_text(self) -> str:
        """How it stands, with the reason for an early end, or the attempt where one has failed."""
        if self.state in (State.STOPPED, State.FAILED) and self.reason is not None:
            return f"{self.state}: {self.reason}"
        if self.state is State.RUNNING and self.retries:
            return f"{self.state}, attempt {self.attempts}"
        return str(self.state)

    @property
    def epoch_text(self) -> str:
        """Epochs trained, of all; inside a long one with its share, cut to two places: 3.99 is not 4."""
        share = "" if self.batches is None else f".{100 * self.batches[0] // self.batches[1]:02d}"
        return f"{self.epoch}{share}/{self.epochs}"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "state": str(self.state),
            "reason": self.reason,
            "message": self.message,
            "epoch": self.epoch,
            "epochs": self.epochs,
            "batches": None if self.batches is None else {"done": self.batches[0], "of": self.batches[1]},
            "attempts": self.attempts,
            "retries": self.retries,
            "replicate_of": self.replicate_of,
            "values": {name: _finite(value) for name, value in self.values.items()},
            "params": {key: _finite(value) for key, value in self.params.items()},
        }


@dataclass(frozen=True)
class FailureStatus:
    """Attempts that failed in one way."""

    kind: FailureClass
    count: int
    lost_seconds: float  # of workers, since the last saved state of each
    message: str  # of the last of them
    trial: str
    advice: str

    def to_json(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "lost_worker_seconds": self.lost_seconds,
            "message": self.message,
            "trial": self.trial,
            "advice": self.advice,
        }


@dataclass(frozen=True)
class StudyStatus:
    """A study at one time."""

    study_id: str
    name: str
    folder: str
    state: str  # running; stopped, ended; or dead: its process exited unexpectedly
    why: str | None  # why it stopped
    message: str | None
    alive: bool  # whether a process owns it; also while a study that has ended still sends its records
    host: str
    pid: int
    heartbeat_age: float | None  # seconds
    started: float  # seconds since 1970
    at: float  # when this was so
    objectives: tuple[str, ...]
    configurations: int  # trials without further seeds of earlier ones
    counts: Mapping[State, int]
    front_size: int
    front: tuple[TrialStatus, ...]  # best first objective first
    best: tuple[TrialStatus, ...]  # for each objective, where a trial is complete
    trials: tuple[TrialStatus, ...]  # that are under way, then the last ones that paused or ended, newest first
    forecast: Forecast
    failures: tuple[FailureStatus, ...]
    cost: float | None  # of the time of workers so far; None where their price is not known
    notes: tuple[str, ...]
    confirming: tuple[str, ...]  # finalists that are trained again on new seeds
    chosen: str | None  # the best trial, when the study has chosen it
    registered: Mapping[str, Any] | None  # name, version, champion, reason
    last_event: float  # when it was written
    unfinished: int  # trials that ended with the study, and count among the stopped ones
    copy: str | None  # where the folder is elsewhere, the copy on this machine that was read
    unsent: int | None  # events that MLflow does not have, of a study that does not run; None if that is not known
    refused: int  # records that MLflow has refused

    @classmethod
    def of(
        cls,
        folder: Path,
        ledger: Ledger,
        owner: Owner | None,
        now: float,
        *,
        front: int | None = None,
        uri: str | None = None,
        left_to_send: tuple[int, int] | None = None,
    ) -> "StudyStatus":
        """The status of a study that has begun; with `front`, only so many trials of the front are listed.

        With `uri` it lives there, and the folder is a copy. `left_to_send` are the events that MLflow does not have,
        and the records that it has refused.
        With a limit, the cost does not grow with the number of trials. Raises UserError for an evaluation's record.
        """
        plan, started = ledger.current_plan, ledger.started
        assert started is not None, "a plan comes with the start of its study"
        end, promoted = ledger.end, ledger.promoted  # read once: the study may go on meanwhile
        alive = owner is not None and owner.alive
        running = alive and end is None
        session = ledger.resumed or started
        members = ledger.front_points.members()
        listed = [ledger.trials[number] for number in (members if front is None else members[:front])]
        best = [trial for index in range(len(ledger.objectives)) if (trial := ledger.best_of(index)) is not None]
        ahead = forecast(ledger, now if running else ledger.last_time)
        return cls(
            study_id=started.study_id,
            name=plan.settings.study.name,
            folder=str(folder) if uri is None else redact(uri),
            state=_state(end, alive),
            why=None if end in (None, StudyEnd.PLANNED) else str(end),
            message=ledger.end_message,
            alive=alive,
            host=owner.host if owner else session.host,
            pid=owner.pid if owner else session.pid,
            heartbeat_age=max(now - owner.heartbeat, 0.0) if owner else None,
            started=started.time,
            at=now,
            objectives=tuple(ledger.objectives),
            configurations=ledger.configurations,
            counts=dict(ledger.counts),
            front_size=len(members),
            front=tuple(TrialStatus.of(trial, ledger) for trial in listed),
            best=tuple(TrialStatus.of(trial, ledger) for trial in best),
            trials=tuple(TrialStatus.of(trial, ledger) for trial in _latest(ledger)),
            forecast=ahead,
            failures=_failures(ledger),
            cost=ledger.cost(ahead.worker_time.held),
            notes=tuple(ledger.notes[-ROWS:]),
            confirming=tuple(ledger.trials[number].name for number in _confirming(ledger)),
            chosen=ledger.trials[ledger.chosen.number].name if ledger.chosen else None,
            registered=promoted.model_dump(include={"name", "version", "champion", "reason"}) if promoted else None,
            last_event=ledger.last_time,
            unfinished=ledger.unfinished,
            copy=None if uri is None else str(folder),
            unsent=None if left_to_send is None or alive else left_to_send[0],  # on their way while it runs
            refused=0 if left_to_send is None else left_to_send[1],
        )

    @property
    def resumable(self) -> bool:
        """Whether a resume goes on with it: it has stopped before its planned end, and nobody owns it."""
        return self.state in ("dead", "stopped") and not self.alive

    @property
    def lost_seconds(self) -> float:
        """Seconds of workers that failed attempts had spent since their last saved state."""
        return sum(failure.lost_seconds for failure in self.failures)

    @property
    def address(self) -> str:
        """The study's folder as a command takes it."""
        return shell_path(Path(self.folder)) if self.copy is None else shlex.quote(self.folder)

    def to_json(self) -> dict[str, Any]:
        """Plain values under keys that stay. Times in seconds; what is not known, or not finite, is None."""
        left, hours = self.forecast.left, self.forecast.worker_time
        budget = {
            name: {"used": use.used, "limit": use.limit}
            for name, use in (
                ("trials", self.forecast.trials),
                ("wall_clock_seconds", self.forecast.wall_clock),
                ("worker_hours", self.forecast.worker_hours),
            )
        }
        return {
            "study_id": self.study_id,
            "name": self.name,
            "folder": self.folder,
            "state": self.state,
            "why": self.why,
            "message": self.message,
            "owner": {
                "alive": self.alive,
                "host": self.host,
                "pid": self.pid,
                "heartbeat_age_seconds": self.heartbeat_age,
            },
            "started": self.started,
            "at": self.at,
            "elapsed_seconds": self.forecast.elapsed,
            "trials": {str(state): self.counts.get(state, 0) for state in State},
            "configurations": self.configurations,
            "objectives": list(self.objectives),
            "front": [trial.to_json() for trial in self.front],
            "best": {name: trial.to_json() for name, trial in zip(self.objectives, self.best, strict=False)},
            "confirming": list(self.confirming),
            "chosen": self.chosen,
            "registered": dict(self.registered) if self.registered else None,
            "latest": [trial.to_json() for trial in self.trials],
            "trials_per_hour": self.forecast.trials_per_hour,
            "seconds_left": None if left is None else {"low": left.low, "high": left.high},
            "budget": budget,
            "worker_seconds": {
                "training": hours.training,
                "evaluation": hours.evaluation,
                "waiting": hours.waiting,
                "stopped_early": self.forecast.stopped_early,
                "failed": dict(self.forecast.failed),
                "lost": self.lost_seconds,
            },
            "cost": self.cost,
            "failures": {str(failure.kind): failure.to_json() for failure in self.failures},
            "notes": list(self.notes),
            "last_event": self.last_event,
            "unfinished": self.unfinished,
            "copy": self.copy,
            "mlflow": {"unsent": self.unsent, "refused": self.refused},
            "resume": f"{RESUME} {self.address}" if self.resumable else None,
        }


def current(folder: Path, ledger: Ledger, owner: Owner | None, **options: Any) -> StudyStatus:
    """The status now, with the whole front; `options` are those of `StudyStatus.of`."""
    return StudyStatus.of(folder, ledger, owner, time.time(), **options)


def _state(end: StudyEnd | None, alive: bool) -> str:
    if end is None:
        return "running" if alive else "dead"
    return "ended" if end is StudyEnd.PLANNED else "stopped"


def _latest(ledger: Ledger) -> list[TrialRecord]:
    """The trials under way, those that run first, then the last ones that paused or ended, newest first."""
    unended, ended = list(ledger.open.values()), list(ledger.recent.values())  # at once: the study may go on meanwhile
    resting = [*reversed(ended), *islice(reversed(list(ledger.paused.values())), ROWS)]
    resting.sort(key=lambda trial: trial.ended or trial.heard or 0.0, reverse=True)
    running = (trial for trial in unended if trial.state is State.RUNNING)
    others = (trial for trial in unended if trial.state is not State.RUNNING)
    return [*islice(chain(running, others), OPEN_ROWS), *resting[:ROWS]]


def _confirming(ledger: Ledger) -> tuple[int, ...]:
    """Finalists that are being confirmed: a study that has ended has done with it."""
    confirming, end = ledger.confirming, ledger.end  # read once: the study may go on meanwhile
    if confirming is None or end is not None:
        return ()
    trials = (ledger.trials[number] for number in confirming.numbers)
    return tuple(trial.number for trial in trials if len(ledger.evidence(trial)) < confirming.seeds)


def _failures(ledger: Ledger) -> tuple[FailureStatus, ...]:
    """The most frequent first."""
    ranked = sorted(ledger.failures.items(), key=lambda item: (-item[1].count, item[0]))
    return tuple(
        FailureStatus(
            kind,
            failures.count,
            failures.lost_seconds,
            first_line(failures.last.message),
            ledger.trials[failures.last.number].name,
            RETRIES[kind].advice,
        )
        for kind, failures in ranked
        if failures.last is not None
    )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
