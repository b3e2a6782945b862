"""Where a study stands: what `python -m aae_ray.status` prints, and what the live screen shows.

Made from the journal's ledger and the owner of the study's lock, and nothing else.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from aae_ray.reporting.text import (
    ASCII,
    UNICODE,
    Symbols,
    describe,
    duration,
    first_line,
    heading,
    interval,
    short_duration,
)
from aae_ray.search.forecast import Forecast, forecast
from aae_ray.search.journal import Owner
from aae_ray.search.ledger import Ledger, TrialRecord
from aae_ray.search.outcomes import RETRIES, FailureClass, State, StudyEnd

ROWS = 12  # trials in the table that have ended; those that run come before them
OPEN_ROWS = 16  # and of these so many
FRONT_ROWS = 5  # trials of the front
BAR = 24  # characters
NARROW = 110  # characters of a line; where there are fewer, heads break and bars are half as long
LEAST_SETTINGS = 8  # letters that are worth a column
BRIEF = 3  # notes and kinds of failures on the live screen
STYLES: dict[str, str] = {
    State.RUNNING: "cyan",
    State.WAITING: "blue",
    State.COMPLETE: "green",
    State.STOPPED: "yellow",
    State.FAILED: "red",
}
STUDY_STYLES = {"running": "cyan", "ended": "green", "stopped": "yellow", "dead": "red"}


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
    attempts: int
    values: Mapping[str, float]  # the objectives at its last epoch, those that were measured
    params: Mapping[str, Any]

    @classmethod
    def of(cls, trial: TrialRecord, ledger: Ledger) -> "TrialStatus":
        metrics, reason = trial.metrics, trial.reason  # read once: the study may go on meanwhile
        values = {name: metrics[name] for name in ledger.objectives if name in metrics}
        return cls(
            trial.number,
            trial.name,
            trial.state,
            None if reason is None else reason.value,
            trial.message or None,
            trial.epoch,
            trial.epochs,
            trial.attempts,
            values,
            trial.params,
        )

    @property
    def state_text(self) -> str:
        """How it stands, with the reason for an early end, or the attempt where it is not the first."""
        if self.state in (State.STOPPED, State.FAILED) and self.reason is not None:
            return f"{self.state}: {self.reason}"
        if self.state is State.RUNNING and self.attempts > 1:
            return f"{self.state}, attempt {self.attempts}"
        return str(self.state)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "state": str(self.state),
            "reason": self.reason,
            "message": self.message,
            "epoch": self.epoch,
            "epochs": self.epochs,
            "attempts": self.attempts,
            "values": {name: _finite(value) for name, value in self.values.items()},
            "params": {key: _finite(value) for key, value in self.params.items()},
        }


@dataclass(frozen=True)
class FailureStatus:
    """Attempts that failed in one way."""

    kind: FailureClass
    count: int
    message: str  # of the last of them
    trial: str
    advice: str

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "message": self.message, "trial": self.trial, "advice": self.advice}


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
    counts: Mapping[State, int]
    front_size: int
    front: tuple[TrialStatus, ...]  # best first objective first
    best: tuple[TrialStatus, ...]  # for each objective, where a trial is complete
    trials: tuple[TrialStatus, ...]  # those that are open, then the last ones that ended, newest first
    forecast: Forecast
    failures: tuple[FailureStatus, ...]
    notes: tuple[str, ...]
    chosen: str | None  # the best trial, when the study has chosen it
    registered: Mapping[str, Any] | None  # name, version, champion, reason

    @classmethod
    def of(
        cls, folder: Path, ledger: Ledger, owner: Owner | None, now: float, *, front: int | None = None
    ) -> "StudyStatus":
        """The status of a study that has begun; with `front`, only so many trials of the front are listed.

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
        return cls(
            study_id=started.study_id,
            name=plan.settings.study.name,
            folder=str(folder),
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
            counts=dict(ledger.counts),
            front_size=len(members),
            front=tuple(TrialStatus.of(trial, ledger) for trial in listed),
            best=tuple(TrialStatus.of(trial, ledger) for trial in best),
            trials=tuple(TrialStatus.of(trial, ledger) for trial in _latest(ledger)),
            forecast=forecast(ledger, now if running else ledger.last_time),
            failures=_failures(ledger),
            notes=tuple(ledger.notes[-ROWS:]),
            chosen=ledger.trials[ledger.chosen.number].name if ledger.chosen else None,
            registered=promoted.model_dump(include={"name", "version", "champion", "reason"}) if promoted else None,
        )

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
            "objectives": list(self.objectives),
            "front": [trial.to_json() for trial in self.front],
            "best": {name: trial.to_json() for name, trial in zip(self.objectives, self.best, strict=False)},
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
            },
            "failures": {str(failure.kind): failure.to_json() for failure in self.failures},
            "notes": list(self.notes),
        }

    # ------------------------------------------------------------------------------------------------- for the console

    def render(self, width: int, ascii: bool = False) -> RenderableType:
        """All of it for people, on a console of this width."""
        title = Text.assemble((self.study_id, "bold"), "  ", (self.folder, "dim"))
        return Group(title, self.standing(), *self.body(width, ascii))

    def body(self, width: int, ascii: bool = False, rows: int | None = None) -> list[RenderableType]:
        """What stands below the title: progress, best trials, the table, hours and failures.

        With a limit of rows it is for a live screen, where long lines are cut.
        """
        symbols = ASCII if ascii else UNICODE
        lines = [self._progress(symbols, BAR if width >= NARROW else BAR // 2), self._pace(symbols)]
        lines += self._best(symbols)
        tail = [self._hours()] if self.forecast.worker_time.busy + self.forecast.worker_time.waiting > 0 else []
        tail += self._failures()[: None if rows is None else BRIEF]
        tail += [Text.assemble(("note  ", "yellow"), note) for note in self.notes[-BRIEF:]]
        for line in [*lines, *tail] if rows is not None else []:
            line.no_wrap, line.overflow = True, symbols.overflow
        if not self.trials:
            return [*lines, *tail]
        return [*lines, "", self._table(symbols, width, self.trials[:rows]), "", *tail]

    def standing(self) -> Text:
        """Whether it runs, where, and why not."""
        where = f"process {self.pid} on {self.host}"
        match self.state:
            case "running":
                beat = f", last heartbeat {short_duration(self.heartbeat_age or 0)} ago"
                detail = where + (beat if (self.heartbeat_age or 0) > 20 else "")
            case "dead":
                seen = f", last seen {short_duration(self.heartbeat_age)} ago" if self.heartbeat_age else ""
                detail = f"{where} exited unexpectedly{seen}; its trials wait for a resume"
            case "stopped":
                detail = ": ".join(part for part in (self.why, self.message) if part)
            case _:
                detail = self.message or "as planned"
        line = Text.assemble((self.state, f"bold {STUDY_STYLES[self.state]}"), "  ", detail)
        if self.registered is not None:
            made, champion = self.registered, "champion" if self.registered["champion"] else "not the champion"
            line.append(f"  registered as {made['name']} version {made['version']}, {champion}")
        return line

    def counts_text(self) -> str:
        """The states of the trials, without those that say nothing."""
        shown = (State.RUNNING, State.COMPLETE, State.STOPPED, State.FAILED, State.WAITING)
        counts = [(state, self.counts.get(state, 0)) for state in shown]
        return "  ".join(f"{count} {state}" for state, count in counts if count or state is not State.WAITING)

    def _progress(self, symbols: Symbols, size: int) -> Text:
        done, budget = int(self.forecast.trials.used), int(self.forecast.trials.limit or 0)
        filled = min(size, round(size * done / max(budget, 1)))
        bar = ((symbols.filled * filled, "green"), (symbols.empty * (size - filled), "dim"))
        return Text.assemble(*bar, f"  {done}/{budget}  {self.counts_text()}")

    def _pace(self, symbols: Symbols) -> Text:
        of = self.forecast
        clock = duration(of.elapsed)
        if of.wall_clock.limit is not None:
            clock += f" of {duration(of.wall_clock.limit)}"
        parts = [clock]
        if of.trials_per_hour is not None:
            parts.append(f"{of.trials_per_hour:.3g} trials/h")
        if of.left is not None and self.state == "running":
            parts.append(f"about {interval(of.left.low, of.left.high)} left")
        if of.worker_hours.limit is not None:
            parts.append(f"{of.worker_hours.used:.2g} of {of.worker_hours.limit:g} worker-hours")
        return Text(f" {symbols.dot} ".join(parts))

    def _best(self, symbols: Symbols) -> list[Text]:
        if not self.front_size:
            return []
        lines = [Text(f"front: {self.front_size} {'trial' if self.front_size == 1 else 'trials'}")]
        if self.chosen:
            lines[0].append(f", the best one is {self.chosen}", "bold green")
        longest = max(len(heading(name, symbols)) for name in self.objectives)
        for name, trial in zip(self.objectives, self.best, strict=False):
            head = heading(name, symbols).ljust(longest)
            lines.append(Text.assemble("best ", (head, "bold"), f"  {trial.values[name]:.4f}  {trial.name}"))
        return lines

    def _table(self, symbols: Symbols, width: int, trials: Sequence[TrialStatus]) -> Table:
        heads = ["trial", "state", "epoch", *(heading(name, symbols) for name in self.objectives)]
        if width < NARROW:
            heads = [head.replace("/", "/\n") for head in heads]
        cells = [
            [
                trial.name,
                trial.state_text,
                f"{trial.epoch}/{trial.epochs}",
                *(f"{trial.values[name]:.4f}" if name in trial.values else "" for name in self.objectives),
            ]
            for trial in trials
        ]
        sizes = [
            max(max(map(len, head.split("\n"))), *(len(row[index]) for row in cells))
            for index, head in enumerate(heads)
        ]
        room = width - sum(size + 2 for size in sizes)
        table = Table(box=None, pad_edge=False, header_style="dim")
        for head, size in zip(heads, sizes, strict=True):
            short = head in ("trial", "epoch")  # the last to be cut
            justify: Literal["left", "right"] = "left" if head in ("trial", "state") else "right"
            table.add_column(
                head, no_wrap=True, overflow=symbols.overflow, justify=justify, min_width=size if short else None
            )
        if room >= LEAST_SETTINGS:
            table.add_column("settings", no_wrap=True, overflow=symbols.overflow, max_width=room)
        on_front = {trial.number for trial in self.front}
        for trial, (name, state, *rest) in zip(trials, cells, strict=True):
            settings = [escape(describe(trial.params))] if room >= LEAST_SETTINGS else []
            style = "bold" if trial.number in on_front else ""
            table.add_row(name, Text(state, style=STYLES[trial.state]), *rest, *settings, style=style)
        return table

    def _hours(self) -> Text:
        hours, of = self.forecast.worker_time, self.forecast
        total = hours.busy + hours.waiting
        parts = {"training": hours.training, "evaluation": hours.evaluation, "waiting": hours.waiting}
        shares = ", ".join(f"{name} {_share(seconds, total)}" for name, seconds in parts.items())
        lost = {"stopped early": of.stopped_early} | {f"failed ({kind})": value for kind, value in of.failed.items()}
        ends = "".join(f"; {name} {_share(seconds, total)}" for name, seconds in lost.items() if seconds > 0)
        return Text.assemble(("hours ", "bold"), f"{_hours_text(total)} of workers: {shares}{ends}")

    def _failures(self) -> list[Text]:
        return [
            Text.assemble(
                (f"{failure.count} {failure.kind}", "red"),
                f"  {failure.trial}: {failure.message}" + (f" ({failure.advice})" if failure.advice else ""),
            )
            for failure in self.failures
        ]


def listing(studies: Sequence[StudyStatus], unreadable: Mapping[str, str], ascii: bool = False) -> RenderableType:
    """All studies, a line each, in the order given; then those that cannot be read, and why not."""
    symbols = ASCII if ascii else UNICODE
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("study", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("trials", no_wrap=True, justify="right")
    table.add_column("started", no_wrap=True)
    table.add_column("best", overflow="fold")
    for study in studies:
        best = "  ".join(
            f"{heading(name, symbols)} {trial.values[name]:.4f}"
            for name, trial in zip(study.objectives, study.best, strict=False)
        )
        table.add_row(
            study.study_id,
            Text(study.state + (f": {study.why}" if study.why else ""), style=STUDY_STYLES[study.state]),
            f"{study.forecast.trials.used:.0f}/{study.forecast.trials.limit or 0:.0f}",
            f"{datetime.fromtimestamp(study.started):%Y-%m-%d %H:%M}",
            best,
        )
    broken = [Text.assemble((f"{name}  ", "red"), reason) for name, reason in unreadable.items()]
    return Group(*([table] if studies else []), *broken)


def current(folder: Path, ledger: Ledger, owner: Owner | None) -> StudyStatus:
    """The status now, with the whole front."""
    return StudyStatus.of(folder, ledger, owner, time.time())


def _state(end: StudyEnd | None, alive: bool) -> str:
    if end is None:
        return "running" if alive else "dead"
    return "ended" if end is StudyEnd.PLANNED else "stopped"


def _latest(ledger: Ledger) -> list[TrialRecord]:
    """The open trials, those that run first, then the last ones that ended."""
    unended, ended = list(ledger.open.values()), list(ledger.recent.values())  # at once: the study may go on meanwhile
    running = (trial for trial in unended if trial.state is State.RUNNING)
    waiting = (trial for trial in unended if trial.state is State.WAITING)
    return [*islice(chain(running, waiting), OPEN_ROWS), *islice(reversed(ended), ROWS)]


def _failures(ledger: Ledger) -> tuple[FailureStatus, ...]:
    """The most frequent first."""
    ranked = sorted(ledger.failures.items(), key=lambda item: (-item[1].count, item[0]))
    return tuple(
        FailureStatus(
            kind,
            failures.count,
            first_line(failures.last.message),
            ledger.trials[failures.last.number].name,
            RETRIES[kind].advice,
        )
        for kind, failures in ranked
        if failures.last is not None
    )


def _share(seconds: float, total: float) -> str:
    return f"{seconds / total:.0%}" if total else "0%"


def _hours_text(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else duration(seconds)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
