"""The tables and lines at the end of a study."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from aae_ray.evaluation.diagnostics import Diagnostic, Illness, diagnose
from aae_ray.evaluation.metrics import METRICS
from aae_ray.reporting.console import is_ascii
from aae_ray.reporting.text import ASCII, UNICODE, Symbols, counted, duration, heading, number
from aae_ray.search.forecast import forecast
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import Reason, State
from aae_ray.search.trial_record import TrialRecord
from aae_ray.settings import flatten, replace

LONG_NAME = 14  # letters of a column's head
UNLIMITED = 10_000  # letters of a line
ENDS = {State.COMPLETE: "complete", State.STOPPED: "stopped early", State.FAILED: "failed"}
UNFINISHED = "unfinished"


def front_table(ledger: Ledger, best: TrialRecord | None, console: Console) -> Table:
    """The Pareto front, a trial a row, the best one marked. What was searched has a column for each key where the
    console is wide enough, and one column for all of it elsewhere."""
    keys, symbols = searched_keys(ledger), ASCII if is_ascii(console) else UNICODE

    def cells(values: Mapping[str, Any]) -> list[str]:
        return [number(values[key]) if key in values else "" for key in keys]

    def one_cell(values: Mapping[str, Any]) -> list[str]:
        return [" ".join(f"{short(key)}={number(values[key])}" for key in keys if key in values)]

    wide = _front_table(ledger, best, [_in_two_lines(short(key)) for key in keys], "right", cells, symbols)
    needed = console.measure(wide, options=console.options.update(width=UNLIMITED)).maximum
    return wide if needed <= console.width else _front_table(ledger, best, ["settings"], "left", one_cell, symbols)


def _front_table(
    ledger: Ledger,
    best: TrialRecord | None,
    heads: Sequence[str],
    justify: Literal["left", "right"],
    cells: Callable[[Mapping[str, Any]], list[str]],
    symbols: Symbols,
) -> Table:
    front, noun = ledger.front(), "trial" if ledger.configurations == len(ledger.trials) else "configuration"
    table = Table(
        title=f"Pareto front: {len(front)} of {counted(ledger.configurations, noun)}",
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=None,
        pad_edge=False,
    )
    table.add_column("")
    table.add_column("trial", no_wrap=True)
    for name in ledger.objectives:
        table.add_column(heading(name, symbols), justify="right", no_wrap=True)
    for head in heads:
        table.add_column(head, justify=justify, overflow="fold")
    for trial in front:
        table.add_row(
            symbols.star if trial is best else "",
            trial.name,
            *(objective_value(ledger, trial, name) for name in ledger.objectives),
            *cells(values_of(trial, searched_keys(ledger))),
            style="bold green" if trial is best else "",
        )
    return table


def objective_value(ledger: Ledger, trial: TrialRecord, name: str) -> str:
    """An objective of a complete trial, with its standard error where it is a mean over seeds."""
    error = ledger.standard_errors(trial).get(name)
    return f"{ledger.judged(trial)[name]:.4f}" + ("" if error is None else f" ± {error:.4f}")


def short(key: str) -> str:
    """A searched key without what most of them begin with."""
    return key.removeprefix("model.").removeprefix("optim.")


def _in_two_lines(name: str) -> str:
    """A long name breaks after its last underscore."""
    head, underscore, tail = name.rpartition("_")
    return f"{head}{underscore}\n{tail}" if underscore and len(name) > LONG_NAME else name


def metrics_table(title: str, metrics: Mapping[str, float]) -> Table:
    """Metrics with their units and what they mean, a line each, in the order in which one explains another."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("what it is")  # wraps where the others leave too little: of columns that may not, Rich cuts all
    for name, metric in METRICS.items():
        if name in metrics:
            table.add_row(name, f"{metrics[name]:.4g}", metric.unit, metric.meaning)
    return table


def outcome_line(ledger: Ledger) -> str:
    """How many trials ended how in all sessions and their time, and why the others did not complete."""
    seconds = forecast(ledger, ledger.last_time).elapsed
    counts = {reason: count for reason, count in ledger.reasons.items() if count and reason is not Reason.COMPLETED}
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    ends = ", ".join(f"{count} {what}" for what, count in outcome_counts(ledger).items())
    line = f"{trials_text(ledger)} in {duration(seconds)}: {ends}"
    return line + (f" ({reasons})" if reasons else "")


def lost_line(ledger: Ledger) -> str | None:
    """The time of workers that failed attempts had spent since their last saved state; None where nothing was lost."""
    if not ledger.lost_seconds:
        return None
    kinds = sorted(ledger.failures.items(), key=lambda item: (-item[1].lost_seconds, item[0]))
    parts = [f"{failures.count} {kind} {duration(failures.lost_seconds)}" for kind, failures in kinds]
    total = with_cost(duration(ledger.lost_seconds), ledger.cost(ledger.lost_seconds))
    return f"{total} of workers in failed attempts, since their last checkpoints: {', '.join(parts)}"


def cost_line(ledger: Ledger) -> str | None:
    """What the time of all workers came to; None without study.price_per_worker_hour."""
    seconds = forecast(ledger, ledger.last_time).worker_time.held
    cost, price = ledger.cost(seconds), ledger.current_plan.settings.study.price_per_worker_hour
    if cost is None:
        return None
    hours = f"{seconds / 3600:.3g} worker-hours at study.price_per_worker_hour={price:g}"
    return f"{cost:.2f}: {hours}, without the machines' start and idle time"


def with_cost(told: str, cost: float | None) -> str:
    """A time with what it cost, where that is known."""
    return told if cost is None else f"{told} (cost {cost:.2f})"


def trials_text(ledger: Ledger) -> str:
    """How many trials there are, and of how many configurations where some have several seeds."""
    trials = counted(len(ledger.trials), "trial")
    same = ledger.configurations == len(ledger.trials)
    return trials if same else f"{counted(ledger.configurations, 'configuration')}, {trials}"


def outcome_counts(ledger: Ledger) -> dict[str, int]:
    """How many trials stand how: the ends that a trial can have, and of the other states those that there are.

    A trial that ended with its study was not stopped for what it was: a resume takes it up again.
    """
    counts = {ENDS.get(state, str(state)): ledger.count(state) for state in State}
    counts[ENDS[State.STOPPED]] -= ledger.unfinished
    counts[UNFINISHED] = ledger.unfinished
    return {what: counts[what] for what in ENDS.values()} | {
        what: count for what, count in counts.items() if count and what not in ENDS.values()
    }


def values_of(trial: TrialRecord, keys: Iterable[str]) -> dict[str, Any]:
    """The values that a trial had under these keys, where it had one: what it was given, or what was fixed when it was
    suggested, before or after its study was extended."""
    fixed = flatten(trial.plan.settings)
    return {
        key: trial.params[key] if key in trial.params else fixed[key]
        for key in keys
        if key in trial.params or key not in trial.plan.space
    }


def searched_keys(ledger: Ledger) -> list[str]:
    """The keys that the trials on the front were given, of all of them: an extended study has searched others."""
    return list(dict.fromkeys(key for trial in ledger.front() for key in trial.params))


def trial_diagnostics(ledger: Ledger) -> list[str]:
    """A sentence for each illness of trials that came to their end; those that were measured on the test images say it
    themselves."""
    found: dict[Illness, list[tuple[TrialRecord, Diagnostic]]] = {}
    for trial in ledger.trials:
        if trial.state is State.COMPLETE and trial.test is None:
            for diagnostic in diagnose(trial.metrics, replace(trial.plan.settings, trial.params)):
                found.setdefault(diagnostic.kind, []).append((trial, diagnostic))
    sentences = []
    for (first, diagnostic), *others in found.values():
        alike = f"; {', '.join(trial.name for trial, _ in others)} alike" if others else ""
        sentences.append(f"{first.name}: {diagnostic.text}{alike}")
    return sentences


def front_diagnostic(ledger: Ledger) -> Diagnostic | None:
    """What there is to say when trials on the front differ in the JSD bound by at most two standard errors: of the mean
    over seeds, of one seed that over its held-out examples."""
    if "val/jsd_nats" not in ledger.objectives:
        return None
    values = [
        (
            ledger.judged(trial)["val/jsd_nats"],
            ledger.standard_errors(trial).get("val/jsd_nats", trial.metrics["val/jsd_nats_se"]),
        )
        for trial in ledger.front()
        if "val/jsd_nats_se" in trial.metrics
    ]
    if len(values) < 2:
        return None
    spread = max(value for value, _ in values) - min(value for value, _ in values)
    error = max(se for _, se in values)
    if spread > 2 * error:
        return None
    return Diagnostic(
        Illness.FRONT_WITHIN_NOISE,
        {"val/jsd_nats_se": error},
        f"the trials on the front differ in val/jsd_nats by {spread:.4f}, "
        f"within two of its standard errors ({error:.4f} each)",
    )
