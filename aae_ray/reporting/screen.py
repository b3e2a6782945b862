"""The live screen of a study on a terminal, and plain lines elsewhere."""

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aae_ray.reporting.report import describe, duration, heading
from aae_ray.search.ledger import Ledger, State, TrialRecord
from aae_ray.search.space import Plan

ROWS = 12  # trials on the screen: those that run, then the latest
BAR = 24  # characters
SILENCE = 60.0  # seconds: for longer a log does not keep quiet about a trial that goes on
STYLES: dict[State, str] = {"running": "cyan", "complete": "green", "stopped": "yellow", "failed": "red"}


class Screen:
    """Shows the ledger: redrawn in place on a terminal, a line per event in a log."""

    def __init__(self, console: Console, ledger: Ledger, plan: Plan, title: str) -> None:
        self.console, self.ledger, self.plan, self.title = console, ledger, plan, title
        self.status = "starting Ray"
        self.began = time.monotonic()
        self.first_end: float | None = None
        self.told: dict[str, float] = {}  # when a line last spoke of a trial
        self.live = (
            Live(console=console, refresh_per_second=4, get_renderable=self.render, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> "Screen":
        if self.live:
            self.live.start()
        else:
            self.console.print(self.title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def say(self, status: str) -> None:
        """What the study is doing when no trial is."""
        self.status = status
        if not self.live:
            self.console.print(f"[{self._clock()}] {status}", markup=False)

    def trial_began(self, record: TrialRecord) -> None:
        self.status = ""
        if not self.live:
            again = f", attempt {record.attempts}" if record.attempts > 1 else ""
            self._tell(record, f"begins{again}: {describe(record.params) or 'the settings as given'}")

    def trial_reported(self, record: TrialRecord) -> None:
        """A line in a log, though not for every report: how far a trial is that takes long."""
        silence = time.monotonic() - self.told.get(record.name, self.began)
        if not self.live and record.state == "running" and silence >= SILENCE:
            self._tell(record, f"at epoch {record.epoch} of {self.plan.settings.train.epochs}  {self._values(record)}")

    def trial_ended(self, record: TrialRecord) -> None:
        self.first_end = self.first_end or time.monotonic()
        if not self.live:
            reason = "" if record.state == "complete" else f" ({record.stop_reason})"
            done = sum(r.ended is not None for r in self.ledger.records)
            count = f"[{done}/{self.plan.settings.study.budget.trials}]"
            self._tell(record, f"{record.state}{reason} after {record.epoch} epochs  {self._values(record)}  {count}")

    def _tell(self, record: TrialRecord, what: str) -> None:
        self.told[record.name] = time.monotonic()
        self.console.print(f"[{self._clock()}] {record.name} {what}", markup=False)

    def _values(self, record: TrialRecord) -> str:
        return "  ".join(
            f"{name}={record.metrics[name]:.4f}" for name in self.ledger.objectives if name in record.metrics
        )

    def render(self) -> Group:
        return Group(
            Text(self.title, style="bold"),
            self._progress(),
            Text(self.status, style="cyan"),
            *self._best(),
            self._table(),
        )

    def _progress(self) -> Text:
        trials = self.ledger.records
        budget = self.plan.settings.study.budget.trials
        done = sum(record.ended is not None for record in trials)
        counts = "  ".join(f"{self.ledger.count(state)} {state}" for state in STYLES)
        filled = min(BAR, round(BAR * done / budget))
        bar = (("━" * filled, "green"), ("━" * (BAR - filled), "dim"))
        return Text.assemble(*bar, f"  {done}/{budget}  {counts}  {self._pace(done, budget)}")

    def _pace(self, done: int, budget: int) -> str:
        elapsed = time.monotonic() - self.began
        if self.first_end is None or not 2 <= done < budget or time.monotonic() <= self.first_end:
            return duration(elapsed)
        rate = (done - 1) / (time.monotonic() - self.first_end)
        return f"{duration(elapsed)}  {60 * rate:.0f} trials/min  about {duration((budget - done) / rate)} left"

    def _best(self) -> list[Text]:
        complete = self.ledger.complete()
        if not complete:
            return []
        front = len(self.ledger.front())
        lines = [Text(f"front: {front} {'trial' if front == 1 else 'trials'}")]
        for index, name in enumerate(self.ledger.objectives):
            best = min(complete, key=lambda record: self.ledger.values(record)[index])
            lines.append(Text.assemble("best ", (heading(name), "bold"), f"  {best.metrics[name]:.4f}  {best.name}"))
        return lines

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("trial", "state", "epoch"):
            table.add_column(column, no_wrap=True, justify="right" if column == "epoch" else "left")
        for name in self.ledger.objectives:
            table.add_column(heading(name), justify="right", no_wrap=True)
        table.add_column("what", no_wrap=True, overflow="ellipsis")
        trials = sorted(self.ledger.records, key=lambda record: (record.ended is not None, -record.number))
        for record in trials[:ROWS]:
            values = [
                f"{record.metrics[name]:.4f}" if name in record.metrics else "" for name in self.ledger.objectives
            ]
            state = record.state if record.state in ("running", "complete") else f"{record.state}: {record.stop_reason}"
            table.add_row(
                record.name,
                Text(state, style=STYLES[record.state]),
                f"{record.epoch}/{self.plan.settings.train.epochs}",
                *values,
                describe(record.params),
            )
        return table

    def _clock(self) -> str:
        return f"{time.monotonic() - self.began:6.1f} s"
