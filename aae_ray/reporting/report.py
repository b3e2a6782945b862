"""What a study says of itself: the tables at its end, and Optuna's plots as web pages."""

import logging
import os
import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aae_ray.evaluation.metrics import METRICS
from aae_ray.search.ledger import Ledger, TrialRecord
from aae_ray.search.space import Plan

ARROWS = {"min": "\N{DOWNWARDS ARROW}", "max": "\N{UPWARDS ARROW}"}


def number(value: Any) -> str:
    """Four significant digits for a float, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def heading(metric: str) -> str:
    """A metric with the direction that is better: `val/jsd_nats` and an arrow down."""
    return f"{metric} {ARROWS.get(str(METRICS[metric].direction), '')}".strip()


def describe(params: dict[str, Any]) -> str:
    """The most telling values of a trial, for its name: prior, size of the code, posterior; else its first ones."""
    parts = []
    for key, form in (
        ("task", "{}"),
        ("model.prior", "{}"),
        ("model.latent_dim", "z{}"),
        ("model.posterior", "{}"),
    ):
        if key in params:
            parts.append(form.format(params[key]))
    parts = parts or [f"{key.rpartition('.')[2]}={number(value)}" for key, value in list(params.items())[:2]]
    return "-".join(parts[:3])


LONG_NAME = 14  # letters of a column's head
UNLIMITED = 10_000  # letters of a line


def front_table(ledger: Ledger, best: TrialRecord | None, console: Console) -> Table:
    """The Pareto front, a trial a row, the best one marked. What was searched has a column for each key where the
    console is wide enough, and one column for all of it elsewhere."""
    keys = list(ledger.front()[0].params) if ledger.front() else []

    def cells(params: Mapping[str, Any]) -> list[str]:
        return [number(params[key]) for key in keys]

    def words(params: Mapping[str, Any]) -> list[str]:
        return [" ".join(f"{_short(key)}={number(params[key])}" for key in keys)]

    wide = _front_table(ledger, best, [_in_two_lines(_short(key)) for key in keys], "right", cells)
    needed = console.measure(wide, options=console.options.update(width=UNLIMITED)).maximum
    return wide if needed <= console.width else _front_table(ledger, best, ["settings"], "left", words)


def _front_table(
    ledger: Ledger,
    best: TrialRecord | None,
    heads: Sequence[str],
    justify: Literal["left", "right"],
    told: Callable[[Mapping[str, Any]], list[str]],
) -> Table:
    front = ledger.front()
    table = Table(
        title=f"Pareto front: {len(front)} of {len(ledger.trials)} trials",
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=None,
        pad_edge=False,
    )
    table.add_column("")
    table.add_column("trial", no_wrap=True)
    for name in ledger.objectives:
        table.add_column(heading(name), justify="right", no_wrap=True)
    for head in heads:
        table.add_column(head, justify=justify, overflow="fold")
    for record in front:
        table.add_row(
            "\N{BLACK STAR}" if record is best else "",
            record.name,
            *(f"{record.metrics[name]:.4f}" for name in ledger.objectives),
            *told(record.params),
            style="bold green" if record is best else "",
        )
    return table


def _short(key: str) -> str:
    return key.removeprefix("model.").removeprefix("optim.")


def _in_two_lines(name: str) -> str:
    """A long name breaks after its last underscore."""
    head, underscore, tail = name.rpartition("_")
    return f"{head}{underscore}\n{tail}" if underscore and len(name) > LONG_NAME else name


def metrics_table(title: str, metrics: Mapping[str, float]) -> Table:
    """Metrics with their units and what they mean, a line each."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("what it is", overflow="ellipsis", no_wrap=True)
    for name, value in metrics.items():
        metric = METRICS[name]
        table.add_row(name, f"{value:.4g}", metric.unit, metric.meaning)
    return table


def outcome_line(ledger: Ledger, seconds: float) -> str:
    """How many trials ended how, and why the others did not finish."""
    reasons: dict[str, int] = {}
    for record in ledger.records:
        if record.state != "complete" and record.stop_reason:
            reasons[record.stop_reason] = reasons.get(record.stop_reason, 0) + 1
    told = f" ({', '.join(f'{count} {reason}' for reason, count in sorted(reasons.items()))})" if reasons else ""
    return (
        f"{len(ledger.trials)} trials in {duration(seconds)}: {ledger.count('complete')} complete, "
        f"{ledger.count('stopped')} stopped early, {ledger.count('failed')} failed{told}"
    )


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def noise_warning(ledger: Ledger) -> str | None:
    """A sentence when trials on the front differ in the JSD bound by at most two standard errors."""
    values = [
        (r.metrics["val/jsd_nats"], r.metrics["val/jsd_nats_se"])
        for r in ledger.front()
        if "val/jsd_nats_se" in r.metrics
    ]
    if len(values) < 2 or "val/jsd_nats" not in ledger.objectives:
        return None
    spread = max(value for value, _ in values) - min(value for value, _ in values)
    error = max(se for _, se in values)
    if spread > 2 * error:
        return None
    return (
        f"the trials on the front differ in val/jsd_nats by {spread:.4f}, "
        f"within two of its standard errors ({error:.4f} each)"
    )


def console_for(stream: Any = None) -> Console:
    """Colour and width on a terminal; plain lines, wide enough for every table, in a log."""
    console = Console(file=stream, highlight=False, soft_wrap=False)
    return (
        console
        if console.is_terminal
        else Console(file=stream, highlight=False, width=max(180, console.width), no_color=True)
    )


def with_floor(name: str, metrics: Mapping[str, float]) -> str:
    """A metric's value, and beside it what a perfect match, or real images, would get, where that was measured."""
    stem, _, unit = name.rpartition("_")
    beside = {"floor": f"{name}_floor", "real images": f"{stem}_anchor_{unit}"}
    told = [f"{what} {number(metrics[other])}" for what, other in beside.items() if other in metrics]
    return f"{name} {number(metrics[name])}" + (f" ({', '.join(told)})" if told else "")


def bullet(label: str, text: str) -> Text:
    return Text.assemble((f"{label:<12}", "bold"), text)


# ------------------------------------------------------------------------------------------------------------- plots


OUTLINED = {"size": 10, "line": {"width": 1, "color": "dimgray"}}  # else the front's first trial is white on white
PLOT_HEIGHT = 550  # pixels


def write_plots(study: optuna.Study, plan: Plan, folder: Path) -> list[Path]:
    """Pareto front, parallel coordinates and importances as self-contained web pages; those that the trials allow."""
    from optuna import visualization as plots

    names = list(plan.settings.study.objectives)
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    pages: dict[str, Callable[[], Sequence[Any]]] = {}
    if len(names) in (2, 3):
        pages["pareto_front.html"] = lambda: [
            plots.plot_pareto_front(study, target_names=names).update_traces(marker=OUTLINED)
        ]
    else:
        pages["history.html"] = lambda: [plots.plot_optimization_history(study, **target(i)) for i in range(len(names))]

    def target(index: int) -> dict[str, Any]:
        return {"target": lambda trial: trial.values[index], "target_name": names[index]}

    if complete and plan.space:
        pages["parallel_coordinates.html"] = lambda: [
            plots.plot_parallel_coordinate(study, **target(i)) for i in range(len(names))
        ]
    if len(complete) > 3 and len(plan.space) > 1:
        pages["importances.html"] = lambda: [
            plots.plot_param_importances(study, **target(i)) for i in range(len(names))
        ]
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in pages.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Optuna's advice on its own defaults
                figures = draw()
        except Exception:  # e.g. all trials equal: there is no importance to speak of; a plot must not cost a study
            logging.getLogger(__name__).info("%s could not be drawn", name, exc_info=True)
            continue
        path = folder / name
        path.write_text(_page(figures, name.removesuffix(".html").replace("_", " ")), encoding="utf-8")
        written.append(path)
    return written


def _page(figures: Sequence[Any], title: str) -> str:
    parts = [
        figure.update_layout(height=PLOT_HEIGHT).to_html(full_html=False, include_plotlyjs=index == 0)
        for index, figure in enumerate(figures)
    ]
    return f"<!doctype html><meta charset='utf-8'><title>{title}</title>\n" + "\n".join(parts)


def shell_path(path: Path) -> str:
    """A path as one would type it: relative when it lies below this folder."""
    text = os.path.relpath(path)
    return shlex.quote(str(path) if text.startswith("..") else text)
