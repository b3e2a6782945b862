"""Plots of a study as one web page that needs nothing else: Optuna's own, and those of how its search went.

One page, as the library that draws them has five megabytes, and a page that MLflow shows among a run's artifacts can
load no file beside it.
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import optuna

from aae_ray.reporting.analysis import SearchAnalysis
from aae_ray.reporting.defaults import TOLERANCE, BackToDefault, Verdict
from aae_ray.reporting.importance import Importance
from aae_ray.reporting.text import counted, duration, number, unit_of
from aae_ray.search.contract import trial_name
from aae_ray.search.hypervolume import Progress
from aae_ray.search.space import Plan

OUTLINED = {"size": 10, "line": {"width": 1, "color": "dimgray"}}  # else the front's first trial is white on white
PLOTS = "plots.html"
PLOT_HEIGHT = 550  # pixels
STYLE = "body { font-family: system-ui, sans-serif; margin: 24px } h2 { font-size: 20px; margin: 32px 0 0 }"
CLEAR, UNCLEAR, LIMIT = "#1f5fa8", "#9aa4b2", "#c8442c"  # what is resolved, what is not, and a limit
VERDICTS = {Verdict.NO_LOSS: CLEAR, Verdict.LOSS: LIMIT, Verdict.NOT_RESOLVED: UNCLEAR}

logger = logging.getLogger(__name__)


def write_plots(study: optuna.Study, plan: Plan, analysis: SearchAnalysis, path: Path) -> Path | None:
    """Pareto front, parallel coordinates, hypervolume, importances and defaults, those that the trials allow, as a page
    at this path. None where there is nothing to see, or the page cannot be written.

    A plot that cannot be drawn costs no other one: it is left out, and the log says why.
    """
    parts: list[str] = []
    for name, draw in figures(study, plan, analysis).items():
        try:
            parts.append(_section(drawn(draw), name, with_library=not parts))
        except Exception:  # e.g. all trials equal: a plot must not cost a study
            logger.info("%s could not be drawn", name, exc_info=True)
    if not parts:
        return None
    title = f"<!doctype html><meta charset='utf-8'><title>{escape(plan.settings.study.name)}: plots</title>"
    try:
        path.write_text(f"{title}\n<style>{STYLE}</style>\n" + "\n".join(parts), encoding="utf-8")
    except OSError:
        logger.warning("%s could not be written", path, exc_info=True)
        return None
    return path


def drawn(draw: Callable[[], Sequence[Any]]) -> list[Any]:
    """The figures of a page, without Optuna's advice on its own defaults."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(draw())


def figures(study: optuna.Study, plan: Plan, analysis: SearchAnalysis) -> dict[str, Callable[[], Sequence[Any]]]:
    """The plots that these trials allow, by name, yet to be drawn: each one or more figures of Plotly's."""
    from optuna import visualization

    names = list(plan.settings.study.objectives)
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))

    def target(index: int) -> dict[str, Any]:
        return {"target": lambda trial: trial.values[index], "target_name": names[index]}

    def of_each(plot: Callable[..., Any]) -> Callable[[], Sequence[Any]]:
        return lambda: [plot(study, **target(index)) for index in range(len(names))]

    plots: dict[str, Callable[[], Sequence[Any]]] = {}
    if len(names) in (2, 3):
        plots["pareto_front"] = lambda: [
            visualization.plot_pareto_front(study, target_names=names).update_traces(marker=OUTLINED)
        ]
    else:
        plots["history"] = of_each(visualization.plot_optimization_history)
    if complete and plan.space:
        plots["parallel_coordinates"] = of_each(visualization.plot_parallel_coordinate)
    if any(point.trial is not None for point in analysis.progress):
        plots["hypervolume"] = lambda: [_hypervolume(analysis.progress)]
    if resolved := [found for found in analysis.importances if len(found.shares) > 1]:
        plots["importances"] = lambda: [_importances(found) for found in resolved]
    if judged := [found for found in analysis.defaults if found.losses]:
        plots["defaults"] = lambda: [_defaults(judged)]
    return plots


def _hypervolume(points: Sequence[Progress]) -> Any:
    """The hypervolume as steps, over the epochs and over the time that were spent."""
    from plotly import graph_objects
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    reached = [0.0, *(point.hypervolume for point in points)]
    better = [index for index in range(1, len(reached)) if reached[index] > reached[index - 1]]
    unit, size = unit_of(points[-1].seconds)
    axes = {
        "epochs, of all trials": [0.0, *(float(point.epochs) for point in points)],
        f"{unit} of the study": [0.0, *(point.seconds / size for point in points)],
    }
    for column, (title, spent) in enumerate(axes.items(), start=1):
        steps = graph_objects.Scatter(
            x=spent, y=reached, mode="lines", line={"shape": "hv", "color": CLEAR, "width": 2}, hoverinfo="skip"
        )
        trials = graph_objects.Scatter(
            x=[spent[index] for index in better],
            y=[reached[index] for index in better],
            mode="markers",
            marker={"size": 8, "color": CLEAR},
            text=[_reached(points[index - 1]) for index in better],
            hovertemplate="%{text}<extra></extra>",
        )
        figure.add_traces([steps, trials], rows=1, cols=column)
        figure.update_xaxes(title=title, range=[0, 1.02 * max(spent[-1], 1e-9)], row=1, col=column)
    figure.update_yaxes(title="share of what there is to win", row=1, col=1)
    figure.update_yaxes(range=[0, 1.02])
    return figure.update_layout(
        title="Hypervolume of the front of complete trials; a dot is a trial that adds to it", showlegend=False
    )


def _reached(point: Progress) -> str:
    name = "" if point.trial is None else f"{trial_name(point.trial)}: "
    return f"{name}{point.hypervolume:.4f} after {counted(point.epochs, 'epoch')}, {duration(point.seconds)}"


def _importances(found: Importance) -> Any:
    """A bar for each setting, and a mark up to where chance alone comes."""
    from plotly import graph_objects

    keys = list(reversed(found.shares))  # the first one on top
    bars = graph_objects.Bar(
        x=[found.shares[key] for key in keys],
        y=keys,
        orientation="h",
        marker={"color": [CLEAR if key in found.standing_out else UNCLEAR for key in keys]},
        text=[f"{found.shares[key]:.0%}" for key in keys],
        textposition="auto",
        textangle=0,
        name="share of all importance",
        showlegend=False,
    )
    limits = graph_objects.Scatter(
        x=[found.chance[key] for key in keys],
        y=keys,
        mode="markers",
        marker={"symbol": "line-ns", "size": 18, "line": {"width": 2, "color": LIMIT}},
        name="as far as chance comes, in 95% of permutations",
    )
    figure = graph_objects.Figure([bars, limits])
    figure.update_xaxes(title="PED-ANOVA importance, share", rangemode="tozero", tickformat=".0%")
    return figure.update_layout(
        title=f"What it takes to be among the best quarter by {found.outcome} ({found.trials} trials)",
        legend={"orientation": "h", "y": 1.08},
        yaxis={"automargin": True},
    )


def _defaults(judged: Sequence[BackToDefault]) -> Any:
    """For each setting of the best trial the places that its default would lose, in the outcome where that is most."""
    from plotly import graph_objects

    figure = graph_objects.Figure()
    for verdict, colour in VERDICTS.items():
        shown = [(found, max(found.losses, key=lambda loss: loss.high)) for found in judged if found.verdict is verdict]
        if not shown:
            continue
        middles = [(loss.low + loss.high) / 2 for _, loss in shown]
        reach = [(loss.high - loss.low) / 2 for _, loss in shown]
        figure.add_scatter(
            x=middles,
            y=[
                f"{found.key}: {number(found.value)} \N{RIGHTWARDS ARROW} {number(found.default)}" for found, _ in shown
            ],
            error_x={"type": "data", "array": reach, "thickness": 2},
            mode="markers",
            marker={"size": 9, "color": colour},
            name=verdict.value,
            text=[f"{loss.outcome}: {loss.default_trials} against {loss.value_trials} trials" for _, loss in shown],
            hovertemplate="%{text}<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": "dimgray", "width": 1})
    figure.add_vline(x=TOLERANCE, line={"color": LIMIT, "dash": "dash", "width": 1})
    figure.update_xaxes(title="places lost, share of all, on average over the trials; each bound with 95% confidence")
    return figure.update_layout(
        title="What the best trial's settings would lose at their defaults; up to the dashed line it is no loss",
        showlegend=True,
        xaxis={"tickformat": ".0%"},
        yaxis={"automargin": True, "autorange": "reversed"},
    )


def _section(figures: Sequence[Any], name: str, *, with_library: bool) -> str:
    """A plot's part of the page; the first one brings the library."""
    parts = [
        figure.update_layout(height=PLOT_HEIGHT).to_html(full_html=False, include_plotlyjs=with_library and index == 0)
        for index, figure in enumerate(figures)
    ]
    return f"<section id='{name}'><h2>{name.replace('_', ' ')}</h2>\n" + "\n".join(parts) + "</section>"
