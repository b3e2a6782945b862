"""The status of a study as people read it: on the live screen, and from `python -m aae_ray.status`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from aae_ray.reporting.status import StudyStatus, TrialStatus
from aae_ray.reporting.tables import UNFINISHED, with_cost
from aae_ray.reporting.text import (
    ASCII,
    RESUME,
    SYNC,
    UNICODE,
    Symbols,
    counted,
    describe,
    duration,
    heading,
    interval,
    short_duration,
)
from aae_ray.search.outcomes import State

BAR = 24  # characters
NARROW = 110  # characters of a line; where there are fewer, heads break and bars are half as long
LEAST_SETTINGS = 8  # letters that are worth a column
LEAST_ROWS = 4  # of the table, on however low a screen
FIRST_HEADS = ("trial", "state", "epoch")
BRIEF = 3  # notes and kinds of failures on the live screen
ALWAYS = (State.RUNNING, State.COMPLETE, State.STOPPED, State.FAILED)  # counted also where there are none
STYLES: dict[str, str] = {  # blue for a state in which nothing happens
    State.RUNNING: "cyan",
    State.COMPLETE: "green",
    State.STOPPED: "yellow",
    State.FAILED: "red",
}
STUDY_STYLES = {"running": "cyan", "ended": "green", "stopped": "yellow", "dead": "red"}


def render(status: StudyStatus, width: int, ascii: bool = False) -> RenderableType:
    """All of it for people, on a console of this width."""
    title = Text.assemble((status.study_id, "bold"), "  ", (status.folder, "dim"))
    return Group(title, *_copy(status), _standing(status), *body(status, width, ascii))


def body(status: StudyStatus, width: int, ascii: bool = False, height: int | None = None) -> list[RenderableType]:
    """What stands below the title: progress, best trials, the table, hours and failures.

    With a height, in lines, it is for a live screen, where long lines are cut and the table has the room that is left.
    """
    symbols = ASCII if ascii else UNICODE
    columns = Columns.of(status, symbols, width, status.trials[:height])
    lines = [_progress(status, symbols, BAR if width >= NARROW else BAR // 2), _pace(status, symbols)]
    if status.confirming:
        lines.append(Text(f"confirming {', '.join(status.confirming)} on new seeds", style="cyan"))
    lines += _best(status, symbols, columns) or columns.legend
    tail = [_hours(status)] if status.forecast.worker_time.busy + status.forecast.worker_time.waiting > 0 else []
    tail += _failures(status)[: None if height is None else BRIEF]
    tail += [Text.assemble(("note  ", "yellow"), note) for note in status.notes[-BRIEF:]]
    for line in [*lines, *tail] if height is not None else []:
        line.no_wrap, line.overflow = True, symbols.overflow
    if not status.trials:
        return [*lines, *tail]
    rows = height and max(height - len(lines) - len(tail) - 2 - columns.height, LEAST_ROWS)
    return [*lines, "", _table(status, symbols, columns, width, status.trials[:rows]), "", *tail]


def _copy(status: StudyStatus) -> list[Text]:
    """Of a study that lives elsewhere: what was read, and how old it is."""
    if status.copy is None:
        return []
    age = f", last event {short_duration(max(status.at - status.last_event, 0.0))} ago"
    return [Text(f"read from what is stored there, copied to {status.copy}{age}", style="dim")]


def left_to_do(status: StudyStatus) -> list[Text]:
    """What is left to do about a study that does not run: lines with the commands that do it, not to be broken."""
    lines = []
    if status.resumable:
        lines.append(Text.assemble(("resume  ", "bold"), f"{RESUME} {status.address}"))
    if status.unsent:
        pending = f"{counted(status.unsent, 'record')} pending: {SYNC} {status.address}"
        lines.append(Text.assemble(("MLflow  ", "bold"), pending))
    if status.refused:
        lines.append(Text.assemble(("MLflow  ", "bold"), f"has refused {counted(status.refused, 'record')}"))
    return lines


def _standing(status: StudyStatus) -> Text:
    """Whether it runs, where, and why not."""
    where = f"process {status.pid} on {status.host}"
    match status.state:
        case "running":
            beat = f", last heartbeat {short_duration(status.heartbeat_age or 0)} ago"
            detail = where + (beat if (status.heartbeat_age or 0) > 20 else "")
        case "dead":
            seen = f", last seen {short_duration(status.heartbeat_age)} ago" if status.heartbeat_age else ""
            detail = f"{where} exited unexpectedly{seen}; its trials wait for a resume"
        case "stopped":
            detail = ": ".join(part for part in (status.why, status.message) if part)
        case _:
            detail = status.message or "as planned"
    line = Text.assemble((status.state, f"bold {STUDY_STYLES[status.state]}"), "  ", detail)
    if status.registered is not None:
        made, champion = status.registered, "champion" if status.registered["champion"] else "not the champion"
        line.append(f"  registered as {made['name']} version {made['version']}, {champion}")
    return line


def _counts_text(status: StudyStatus) -> str:
    """The states of the trials, of all but the first ones only those that there are."""
    counts = {str(state): status.counts.get(state, 0) for state in dict.fromkeys((*ALWAYS, *State))}
    counts[State.STOPPED] -= status.unfinished
    counts[UNFINISHED] = status.unfinished
    return "  ".join(f"{count} {state}" for state, count in counts.items() if count or state in ALWAYS)


def _progress(status: StudyStatus, symbols: Symbols, size: int) -> Text:
    done, budget = int(status.forecast.trials.used), int(status.forecast.trials.limit or 0)
    filled = min(size, round(size * done / max(budget, 1)))
    bar = ((symbols.filled * filled, "green"), (symbols.empty * (size - filled), "dim"))
    noun = "" if status.configurations == sum(status.counts.values()) else " configurations"
    return Text.assemble(*bar, f"  {done}/{budget}{noun}  {_counts_text(status)}")


def _pace(status: StudyStatus, symbols: Symbols) -> Text:
    of = status.forecast
    clock = duration(of.elapsed)
    if of.wall_clock.limit is not None:
        clock = f"{duration(of.wall_clock.used)} of {duration(of.wall_clock.limit)}"
    parts = [clock]
    if of.trials_per_hour is not None:
        parts.append(f"{of.trials_per_hour:.3g} trials/h")
    if of.left is not None and status.state == "running":
        parts.append(f"about {interval(of.left.low, of.left.high)} left")
    if of.worker_hours.limit is not None:
        parts.append(f"{of.worker_hours.used:.2g} of {of.worker_hours.limit:g} worker-hours")
    return Text(f" {symbols.dot} ".join(parts))


def _best(status: StudyStatus, symbols: Symbols, columns: "Columns") -> list[Text]:
    if not status.front_size:
        return []
    lines = [Text(f"front: {counted(status.front_size, 'trial')}")]
    if status.chosen:
        lines[0].append(f", the best one is {status.chosen}", "bold green")
    heads = [line.plain for line in columns.legend] or [heading(name, symbols) for name in status.objectives]
    longest = max(map(len, heads))
    for name, head, trial in zip(status.objectives, heads, status.best, strict=False):
        head = head.ljust(longest)
        lines.append(Text.assemble("best ", (head, "bold"), f"  {trial.values[name]:.4f}  {trial.name}"))
    return lines


def _cells(status: StudyStatus, trial: TrialStatus) -> list[str]:
    values = (f"{trial.values[name]:.4f}" if name in trial.values else "" for name in status.objectives)
    return [trial.name, trial.state_text, trial.epoch_text, *values]


@dataclass(frozen=True)
class Columns:
    """Heads that leave room for every cell, and how wide each column is."""

    heads: list[str]
    sizes: list[int]
    legend: list[Text]  # which objectives are meant, where there is room for their numbers alone; else empty

    @property
    def height(self) -> int:
        return max(head.count("\n") + 1 for head in self.heads)

    @classmethod
    def of(cls, status: StudyStatus, symbols: Symbols, width: int, trials: Sequence[TrialStatus]) -> "Columns":
        """Heads are broken behind / and then behind _ until the line has room for them."""
        names = [heading(name, symbols) for name in status.objectives]
        cells = [_cells(status, trial) for trial in trials]
        slashed = [name.replace("/", "/\n") for name in names]
        numbers = [str(number) for number in range(1, len(names) + 1)]
        ways = (names, slashed, [name.replace("_", "_\n") for name in slashed], numbers)
        for own in ways[width < NARROW :]:
            heads = [*FIRST_HEADS, *own]
            sizes = [
                max([*map(len, head.split("\n")), *(len(row[index]) for row in cells)])
                for index, head in enumerate(heads)
            ]
            if sum(size + 2 for size in sizes) - 2 <= width:
                break
        legend = [Text(f"{number}  {name}") for number, name in zip(numbers, names, strict=True) if own is numbers]
        return cls(heads, sizes, legend)


def _table(status: StudyStatus, symbols: Symbols, columns: Columns, width: int, trials: Sequence[TrialStatus]) -> Table:
    room = width - sum(size + 2 for size in columns.sizes)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head, size in zip(columns.heads, columns.sizes, strict=True):
        short = head in ("trial", "epoch")  # the last to be cut
        justify: Literal["left", "right"] = "left" if head in ("trial", "state") else "right"
        table.add_column(
            head, no_wrap=True, overflow=symbols.overflow, justify=justify, min_width=size if short else None
        )
    if room >= LEAST_SETTINGS:
        table.add_column("settings", no_wrap=True, overflow=symbols.overflow, max_width=room)
    on_front = {trial.number for trial in status.front}
    for trial in trials:
        name, state, *rest = _cells(status, trial)
        settings = [escape(describe(trial.params))] if room >= LEAST_SETTINGS else []
        style = "bold" if trial.number in on_front else ""
        table.add_row(name, Text(state, style=STYLES.get(trial.state, "blue")), *rest, *settings, style=style)
    return table


def _hours(status: StudyStatus) -> Text:
    hours, of = status.forecast.worker_time, status.forecast
    total = hours.busy + hours.waiting
    parts = {"training": hours.training, "evaluation": hours.evaluation, "waiting": hours.waiting}
    shares = ", ".join(f"{name} {_share(seconds, total)}" for name, seconds in parts.items())
    lost = {"stopped early": of.stopped_early} | {f"failed ({kind})": value for kind, value in of.failed.items()}
    ends = "".join(f"; {name} {_share(seconds, total)}" for name, seconds in lost.items() if seconds > 0)
    again = f"; to be done again {_share(status.lost_seconds, total)}" if status.lost_seconds > 0 else ""
    told = with_cost(_hours_text(total), status.cost)
    return Text.assemble(("hours ", "bold"), f"{told} of workers: {shares}{ends}{again}")


def _failures(status: StudyStatus) -> list[Text]:
    return [
        Text.assemble(
            (f"{failure.count} {failure.kind}", "red"),
            f"  {failure.trial}: {failure.message}" + (f" ({failure.advice})" if failure.advice else ""),
        )
        for failure in status.failures
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


def _share(seconds: float, total: float) -> str:
    return f"{seconds / total:.0%}" if total else "0%"


def _hours_text(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else duration(seconds)
