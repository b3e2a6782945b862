"""The live screen of a study on a terminal, and plain lines elsewhere."""

import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from aae_ray.reporting.console import is_ascii
from aae_ray.reporting.notebook import NotebookLive
from aae_ray.reporting.status import FRONT_ROWS, StudyStatus
from aae_ray.reporting.status_view import body
from aae_ray.reporting.text import ASCII, UNICODE, counted, describe, first_line, heading, machines_line
from aae_ray.search import events
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import Reason, RungVerdict, State
from aae_ray.search.owner import Owner
from aae_ray.search.space import Plan
from aae_ray.search.trial_record import TrialRecord

if TYPE_CHECKING:
    from aae_ray.datasets.dataset import Dataset

SILENCE = 60.0  # seconds: for longer a log does not keep quiet about a trial that goes on
NOTES = 3  # of the last ones, on the screen
REFRESHES = 4  # a second
SHOW_CURSOR = b"\x1b[?25h\n"


class Screen:
    """A sink of the study's events: redrawn in place on a terminal, a line per event in a log.

    On a terminal the cost of an event, and of drawing, does not grow with the number of trials.
    """

    def __init__(self, console: Console, folder: Path, plan: Plan, dataset: "Dataset | None" = None) -> None:
        self.console, self.folder, self.plan = console, folder, plan
        self.symbols = ASCII if is_ascii(console) else UNICODE
        self.title = self._title(dataset)
        self.ledger: Ledger | None = None  # from the first event on
        self.status = "starting Ray"
        self.notes: list[str] = []
        self.tracking: str | None = None  # what keeps MLflow from taking the records
        self.unsent = 0
        self.storage: str | None = None  # what keeps a study.folder that is elsewhere from taking what happens
        self.began = time.monotonic()
        self.mentioned: dict[int, float] = {}  # when a line last spoke of an open trial
        self.owner = Owner.this_process()
        self.live = self._live()

    def _live(self) -> Live | NotebookLive | None:
        if self.console.is_jupyter:
            return NotebookLive(self.render)
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            return None
        return Live(
            console=self.console,
            refresh_per_second=REFRESHES,
            get_renderable=self.render,
            transient=True,
            redirect_stdout=False,  # what libraries print belongs to the study's log
            redirect_stderr=False,
        )

    def __enter__(self) -> "Screen":
        if self.live:
            self.live.start()
        else:
            self._print(self.title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    # ----------------------------------------------------------------------------------------------------- what it gets

    def handle(self, event: events.Event, ledger: Ledger) -> None:
        """Take an event that the ledger has applied."""
        self.ledger = ledger
        match event:
            case events.StudyResumed():
                self._log(f"resumed, with {len(ledger.open)} of {counted(len(ledger.trials), 'trial')} open")
            case events.AttemptStarted():
                self.status = ""
                self._started(ledger.trials[event.number], event)
            case events.Reported() | events.Progressed():
                self._reported(ledger.trials[event.number])
            case events.AttemptFailed():
                then = "it is tried again" if event.retry else "it is not tried again"
                self._log_trial(
                    ledger.trials[event.number],
                    f"attempt {event.attempt} failed ({event.failure}): {first_line(event.message)}; {then}",
                )
            case events.Decided():
                if event.verdict is RungVerdict.PAUSE:
                    trial = ledger.trials[event.number]
                    self._log_trial(trial, f"paused at epoch {trial.epoch}  {self._values(trial)}  {self._count()}")
            case events.Exploited():
                donor = ledger.trials[event.donor].name
                self._log_trial(ledger.trials[event.number], f"takes over from {donor} at epoch {event.epoch}")
            case events.Ended():
                if event.reason is not Reason.PAUSED:  # told when it was paused
                    self._ended(ledger.trials[event.number])
            case events.Confirming():
                names = ", ".join(ledger.trials[number].name for number in event.numbers)
                self._log(f"confirming {names} on {counted(event.seeds, 'new seed')} each")
            case events.Measured() | events.Chosen():
                self._finalist(event, ledger)
            case events.Promoted():
                champion = "champion" if event.champion else "not the champion"
                self._log(f"registered as {event.name} version {event.version}, {champion}: {event.reason}")
            case events.Noted():
                self._log(f"note: {event.text}")
            case events.MachinesChanged():
                self._log(machines_line(event))
            case events.StudyStopped():
                left = ledger.unfinished
                why = f": {event.message}" if event.message else ""
                self._log(
                    f"stopped ({event.end}){why}"
                    + (f"; a resume goes on with {counted(left, 'open trial')}" if left else "")
                )
            case events.StudyEnded():
                self._log("ended" + (f": {event.message}" if event.message else ""))
            case _:
                pass

    def say(self, status: str) -> None:
        """What the study is doing when no trial is."""
        if status != self.status:
            self.status = status
            self._log(status)

    def place(self, where: str) -> None:
        """Where trials will run."""
        self.title += f"\non {where}"
        self._log(f"on {where}")

    def note(self, text: str) -> None:
        """Something to know that stops nothing. It stays on the screen; a log has it once."""
        if text not in self.notes:
            self.notes.append(text)
            self._log(f"note: {text}")

    def note_tracking(self, problem: str | None, unsent: int) -> None:
        """Whether MLflow takes the records. Asked often: a log has a line when that changes."""
        if problem != self.tracking:
            if problem is not None:
                self._log(f"MLflow: {problem}; {counted(unsent, 'record')} pending")
            else:
                self._log("MLflow takes records again")
        self.tracking, self.unsent = problem, unsent

    def note_storage(self, problem: str | None) -> None:
        """Whether a study.folder that is elsewhere takes what happens. Asked often: a log has a line when that changes,
        and none where what was refused differs."""
        if (problem is None) != (self.storage is None):
            self._log("study.folder takes what happens again" if problem is None else f"study.folder: {problem}")
        self.storage = problem

    def leave(self) -> None:
        """The process ends at once, perhaps in the middle of a write: the terminal gets back its cursor."""
        if self.live:
            with suppress(OSError, ValueError):
                os.write(self.console.file.fileno(), SHOW_CURSOR)

    def end(self, text: str) -> None:
        """The last words, from any thread, before the process ends in a hurry."""
        if self.live:
            self.live.stop()
        self.console.print(text, markup=False, soft_wrap=True)

    # ------------------------------------------------------------------------------------------------ lines of a log

    def _started(self, trial: TrialRecord, event: events.AttemptStarted) -> None:
        failed = bool(trial.failures) and trial.failures[-1].attempt == event.attempt - 1
        verb = "goes on" if event.epoch and not failed else "begins"
        again = f", attempt {event.attempt}" if failed else ""
        at = f" at epoch {event.epoch}" if event.epoch else ""
        self._log_trial(trial, f"{verb}{again}{at}: {describe(trial.params) or 'the settings as given'}")

    def _reported(self, trial: TrialRecord) -> None:
        """A line, though not for every report: how far a trial is that takes long."""
        silence = time.monotonic() - self.mentioned.get(trial.number, self.began)
        if trial.state is State.RUNNING and silence >= SILENCE:
            self._log_trial(trial, f"{_position(trial)}  {self._values(trial)}".rstrip())

    def _ended(self, trial: TrialRecord) -> None:
        reason = "" if trial.state is State.COMPLETE else f" ({trial.reason})"
        ended = f"{trial.state}{reason} after {counted(trial.epoch, 'epoch')}"
        parts = [ended, self._values(trial), self._count()]
        if trial.state is State.FAILED and trial.message:
            parts.append(first_line(trial.message))
        self._log_trial(trial, "  ".join(part for part in parts if part))
        self.mentioned.pop(trial.number, None)

    def _finalist(self, event: events.Measured | events.Chosen, ledger: Ledger) -> None:
        trial = ledger.trials[event.number]
        if isinstance(event, events.Chosen):
            self._log_trial(trial, f"is the best trial  {self._values(trial)}")
            return
        names = [name.replace("val/", "test/") for name in ledger.objectives]
        values = "  ".join(f"{name}={event.metrics[name]:.4f}" for name in names if name in event.metrics)
        self._log_trial(trial, f"on the test {ledger.noun}  {values}")

    def _count(self) -> str:
        assert self.ledger is not None
        return f"[{self.ledger.ended}/{self.ledger.current_plan.settings.study.budget.trials}]"

    def _values(self, trial: TrialRecord) -> str:
        assert self.ledger is not None
        metrics = self.ledger.judged(trial)
        return "  ".join(f"{name}={metrics[name]:.4f}" for name in self.ledger.objectives if name in metrics)

    def _log_trial(self, trial: TrialRecord, what: str) -> None:
        self.mentioned[trial.number] = time.monotonic()
        self._log(f"{trial.name} {what}")

    def _log(self, line: str) -> None:
        if not self.live or getattr(self.console.file, "broken", False):  # the terminal may have been closed
            self._print(f"[{time.monotonic() - self.began:6.1f} s] {line}")

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

    # -------------------------------------------------------------------------------------------------- the live screen

    def render(self) -> Group:
        """What the terminal shows now. Asked by a thread of its own while the study goes on, so all is read once."""
        tracking, storage, status_line, width = self.tracking, self.storage, self.status, self.console.width
        title, below = Text(self.title, style="bold"), [Text(status_line, style="cyan")] if status_line else []
        below += [Text(f"note: {note}", style="yellow") for note in self.notes[-NOTES:]]
        if tracking is not None:
            below.append(Text(f"MLflow: {tracking}; {counted(self.unsent, 'record')} pending", style="yellow"))
        if storage is not None:
            below.append(Text(f"study.folder: {storage}; tried again", style="yellow"))
        parts: list[RenderableType] = []
        if self.ledger is not None and self.ledger.started is not None:
            now = time.time()
            owner = replace(self.owner, heartbeat=now)
            status = StudyStatus.of(self.folder, self.ledger, owner, now, front=FRONT_ROWS)
            taken = sum(len(text.wrap(self.console, width)) for text in (title, *below))
            parts = body(status, width, is_ascii(self.console), max(self.console.height - taken - 1, 1))
        return Group(title, *parts, *below)

    def _title(self, dataset: "Dataset | None") -> str:
        settings = self.plan.settings
        goals = "  ".join(heading(name, self.symbols) for name in settings.study.objectives)
        sizes = ""
        if dataset is not None:
            sizes = f"{len(dataset.train)} / {len(dataset.val)} / {len(dataset.test)} {dataset.kind.noun}, "
        trials = f"{counted(settings.study.budget.trials, 'trial')} of {counted(settings.train.epochs, 'epoch')}"
        return f"{settings.study.name}: {settings.data.name}, {sizes}{trials}, {goals}"


def _position(trial: TrialRecord) -> str:
    """How far a trial is, inside a long epoch too."""
    if trial.batches is None:
        return f"at epoch {trial.epoch} of {trial.epochs}"
    done, batches = trial.batches
    return f"in epoch {trial.epoch + 1} of {trial.epochs}, batch {done} of {batches} ({done / batches:.0%})"
