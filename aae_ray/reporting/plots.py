"""Optuna's plots of a study as self-contained web pages."""

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna

from aae_ray.search.space import Plan

OUTLINED = {"size": 10, "line": {"width": 1, "color": "dimgray"}}  # else the front's first trial is white on white
PLOT_HEIGHT = 550  # pixels
LEAST_IMPORTANT = 4  # complete trials from which importances can be estimated

logger = logging.getLogger(__name__)


def write_plots(study: optuna.Study, plan: Plan, folder: Path) -> list[Path]:
    """Pareto front, parallel coordinates and importances, those that the trials allow. Returns the pages written.

    A plot that cannot be drawn, or written, costs no other one: it is left out, and the log says why.
    """
    written = []
    for name, draw in _pages(study, plan).items():
        path = folder / name
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Optuna's advice on its own defaults
                page = _page(draw(), name.removesuffix(".html").replace("_", " "))
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(page, encoding="utf-8")
        except Exception as error:  # e.g. all trials equal, or no room on the disk: a plot must not cost a study
            level = logging.WARNING if isinstance(error, OSError) else logging.INFO
            logger.log(level, "%s could not be drawn", name, exc_info=True)
            continue
        written.append(path)
    return written


def _pages(study: optuna.Study, plan: Plan) -> dict[str, Callable[[], Sequence[Any]]]:
    """The figures of each page that these trials allow, yet to be drawn."""
    from optuna import visualization

    names = list(plan.settings.study.objectives)
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))

    def target(index: int) -> dict[str, Any]:
        return {"target": lambda trial: trial.values[index], "target_name": names[index]}

    def of_each(plot: Callable[..., Any]) -> Callable[[], Sequence[Any]]:
        return lambda: [plot(study, **target(index)) for index in range(len(names))]

    pages: dict[str, Callable[[], Sequence[Any]]] = {}
    if len(names) in (2, 3):
        pages["pareto_front.html"] = lambda: [
            visualization.plot_pareto_front(study, target_names=names).update_traces(marker=OUTLINED)
        ]
    else:
        pages["history.html"] = of_each(visualization.plot_optimization_history)
    if complete and plan.space:
        pages["parallel_coordinates.html"] = of_each(visualization.plot_parallel_coordinate)
    if len(complete) >= LEAST_IMPORTANT and len(plan.space) > 1:
        pages["importances.html"] = of_each(visualization.plot_param_importances)
    return pages


def _page(figures: Sequence[Any], title: str) -> str:
    parts = [
        figure.update_layout(height=PLOT_HEIGHT).to_html(full_html=False, include_plotlyjs=index == 0)
        for index, figure in enumerate(figures)
    ]
    return f"<!doctype html><meta charset='utf-8'><title>{title}</title>\n" + "\n".join(parts)
