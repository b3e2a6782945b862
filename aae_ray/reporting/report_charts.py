"""The charts of the report's page: the front, parallel coordinates, importances, hypervolume."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from aae_ray.reporting import svg, text
from aae_ray.reporting.analysis import SearchAnalysis
from aae_ray.search.contract import trial_name
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import State
from aae_ray.search.trial_record import TrialRecord

MOST_LINES = 250  # of parallel coordinates, the best ones
MOST_PAIRS = 3  # of objectives that have a chart
DRAWN = ("early", "complete", "front", "best")  # styles of trials in the order of drawing, the last on top


@dataclass(frozen=True)
class Bar:
    """A share of a whole; `limit` is marked on it, where there is one."""

    label: str
    share: float
    value: str
    limit: float | None = None
    style: str = ""


def _styles(ledger: Ledger, best: TrialRecord | None) -> dict[int, str]:
    """How each trial is drawn, by its number."""
    styles = {trial.number: "complete" if trial.state is State.COMPLETE else "early" for trial in ledger.trials}
    styles |= {trial.number: "front" for trial in ledger.front()}
    return styles | ({best.number: "best"} if best else {})


def fronts(ledger: Ledger, best: TrialRecord | None) -> list[str]:
    """A scatter of the complete trials for each pair of objectives; for a single one over the number of the trial."""
    complete, styles = ledger.complete(), _styles(ledger, best)
    if not complete:
        return []
    values = {trial.number: ledger.judged(trial) for trial in complete}
    drawn = sorted(complete, key=lambda trial: DRAWN.index(styles[trial.number]))
    charts = []
    pairs: list[tuple[str | None, str]] = list(combinations(ledger.objectives, 2))
    for first, second in pairs[:MOST_PAIRS] or [(None, ledger.objectives[0])]:
        marks = [
            svg.Mark(
                float(trial.number) if first is None else values[trial.number][first],
                values[trial.number][second],
                f"{trial.name}: " + ", ".join(f"{name} {values[trial.number][name]:.4f}" for name in ledger.objectives),
                styles[trial.number],
            )
            for trial in drawn
        ]
        x = svg.Axis.around("trial" if first is None else text.heading(first), [mark.x for mark in marks])
        charts.append(svg.scatter(marks, x, svg.Axis.around(text.heading(second), [mark.y for mark in marks])))
    return charts


def parallel(ledger: Ledger, best: TrialRecord | None) -> str:
    """The searched settings and objectives of the trials that have measured these; of many the best."""
    plan, styles = ledger.current_plan, _styles(ledger, best)
    shown = [trial for trial in ledger.firsts() if ledger.measured(trial)]
    if not plan.space or not shown:
        return ""
    ranked = sorted(shown, key=lambda trial: DRAWN.index(styles[trial.number]))[-MOST_LINES:]
    columns: dict[str, list[Any]] = {key: [trial.params.get(key) for trial in ranked] for key in plan.space}
    axes = [_axis(key, plan.spec(key), values) for key, values in columns.items()]
    for name in ledger.objectives:
        columns[name] = [ledger.judged(trial)[name] for trial in ranked]
        axes.append(svg.Axis.around(text.heading(name), columns[name]))
    plain = [
        [text.number(value) if axis.choices and value is not None else value for value in values]
        for axis, values in zip(axes, columns.values(), strict=True)
    ]
    lines = [
        (f"{trial.name}: {text.describe(trial.params)}", styles[trial.number], row)
        for trial, row in zip(ranked, zip(*plain, strict=True), strict=True)
    ]
    return svg.parallel(lines, axes)


def _axis(key: str, spec: Mapping[str, Any], values: Sequence[Any]) -> svg.Axis:
    """From end to end of what is searched, and of what was before an extension."""
    known = [value for value in values if value is not None]
    if "choices" in spec:
        choices = dict.fromkeys(map(text.number, [*spec["choices"], *known]))
        return svg.Axis(key, choices=tuple(choices))
    numbers = [spec["low"], spec["high"], *known]
    return svg.Axis(key, min(numbers), max(numbers), log=spec.get("log", False), whole=spec["type"] == "int")


def importances(analysis: SearchAnalysis | None) -> list[tuple[str, list[Bar]]]:
    """For each outcome a bar for each setting, as long as its share, and a mark where chance comes to."""
    found = [] if analysis is None else [each for each in analysis.importances if len(each.shares) > 1]
    return [
        (
            f"{each.outcome}, {each.trials} trials",
            [
                Bar(key, share, f"{share:.0%}", each.chance[key], "clear" if key in each.standing_out else "unclear")
                for key, share in each.shares.items()
            ],
        )
        for each in found
    ]


def progress(analysis: SearchAnalysis | None) -> list[str]:
    """The hypervolume over the epochs and over the time that were spent."""
    points = [] if analysis is None else analysis.progress
    if not any(point.trial is not None for point in points):
        return []
    unit, size = text.unit_of(points[-1].seconds)
    spent = {
        "epochs, of all trials": [float(point.epochs) for point in points],
        f"{unit} of the study": [point.seconds / size for point in points],
    }
    charts, y = [], svg.Axis("hypervolume", 0.0, 1.0)
    for title, at in spent.items():
        before, marks = 0.0, []
        for x, point in zip(at, points, strict=True):
            better = point.trial is not None and point.hypervolume > before
            said = f"{trial_name(point.trial)}: {point.hypervolume:.4f}" if point.trial is not None and better else ""
            marks.append(svg.Mark(x, point.hypervolume, said))
            before = point.hypervolume
        charts.append(svg.steps(marks, svg.Axis(title, 0.0, max(at[-1], 1e-9)), y))
    return charts
