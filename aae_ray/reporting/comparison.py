"""Studies side by side: their fronts, what their trials dominate, and the settings in which they differ."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aae_ray.errors import UserError
from aae_ray.evaluation.drawing import CLASS_COLOURS
from aae_ray.evaluation.metrics import METRICS
from aae_ray.reporting.console import is_ascii
from aae_ray.reporting.tables import ENDS, objective_value, outcome_counts
from aae_ray.reporting.text import ASCII, UNICODE, domain, duration, heading, number
from aae_ray.search import events
from aae_ray.search.hypervolume import Progress, Reference, progress, references
from aae_ray.search.ledger import Ledger
from aae_ray.search.objectives import Front
from aae_ray.search.outcomes import State
from aae_ray.search.trial_record import TrialRecord
from aae_ray.settings import flatten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NO_DIFFERENCE = ("study.name", "study.folder", "tracking.uri")  # settings that change nothing of what a study finds
COMMIT = "mlflow.source.git.commit"
LETTERS = "ABCDEFGHIJ"  # of the studies, in their order


@dataclass(frozen=True)
class ComparedStudy:
    """One of the studies."""

    letter: str
    ledger: Ledger
    progress: tuple[Progress, ...]  # the last one is where it stands

    @property
    def study_id(self) -> str:
        assert self.ledger.started is not None
        return self.ledger.started.study_id

    @property
    def best(self) -> TrialRecord | None:
        """The trial that the study chose, if it has come to that."""
        chosen = self.ledger.chosen
        return None if chosen is None else self.ledger.trials[chosen.number]


@dataclass(frozen=True)
class Comparison:
    """Studies with the same objectives."""

    studies: tuple[ComparedStudy, ...]
    same_data: bool  # and the same split of them: else values of one say nothing about those of another
    differences: Mapping[str, tuple[str, ...]]  # a value for each study, of what is not the same in all

    @property
    def objectives(self) -> Sequence[str]:
        return self.studies[0].ledger.objectives

    @property
    def joint_front(self) -> set[tuple[str, int]]:
        """Letter of the study and number of each trial that no trial of any of the studies dominates."""
        members = [(each, trial) for each in self.studies for trial in each.ledger.front()]
        members = [(each, trial) for each, trial in members if not each.ledger.violation(trial)]
        front = Front()
        for index, (each, trial) in enumerate(members):
            front.insert(index, each.ledger.values(trial))
        return {(members[index][0].letter, members[index][1].number) for index in front.members()}


def compare(histories: Sequence[Sequence[events.Event]], ledgers: Sequence[Ledger]) -> Comparison:
    """Hold studies against each other by their journals, and what these came to. Raises UserError for studies that do
    not compare."""
    if not 2 <= len(histories) <= len(LETTERS):
        raise UserError(f"give 2 to {len(LETTERS)} studies to compare, got {len(histories)}")
    ids = [ledger.started.study_id for ledger in ledgers if ledger.started]
    if twice := sorted({study_id for study_id in ids if ids.count(study_id) > 1}):
        raise UserError(f"{', '.join(twice)}: given twice; a study is compared with others")
    goals = {ids[index]: ", ".join(ledger.objectives) for index, ledger in enumerate(ledgers)}
    if len(set(goals.values())) > 1:
        lines = [f"  {study_id}: {those}" for study_id, those in goals.items()]
        raise UserError(
            "\n".join(["studies compare on the same objectives (study.objectives), and these have", *lines])
        )
    same = _same_data(ledgers)
    own = [references(ledger) for ledger in ledgers]
    measured = [its for its, ledger in zip(own, ledgers, strict=True) if any(trial.metrics for trial in ledger.trials)]
    shared = [_widest(each) for each in zip(*(measured or own), strict=True)]
    studies = (
        ComparedStudy(letter, ledger, tuple(progress(history, shared if same else its_own)))
        for letter, ledger, history, its_own in zip(LETTERS, ledgers, histories, own, strict=False)
    )
    return Comparison(tuple(studies), same, _differences(ledgers))


def _widest(of: Sequence[Reference]) -> Reference:
    """One that is fair to all: they differ where an objective's worst is that of the trials. A study that has measured
    nothing yet has none to speak of."""
    return Reference(max(each.worst for each in of), min(each.best for each in of))


def _same_data(ledgers: Sequence[Ledger]) -> bool:
    """Whether all have the same images in the same parts; of a study of an earlier release, which did not record its
    parts, whether they are drawn by the same settings."""
    records = [ledger.started.data for ledger in ledgers if ledger.started]
    if all(record.split for record in records):
        return len({(record.digest, record.split) for record in records}) == 1
    settings = [ledger.current_plan.settings.data for ledger in ledgers]
    drawn = {(data.split_seed, data.validation_fraction, data.test_fraction, data.split_column) for data in settings}
    return len({record.digest for record in records}) == 1 == len(drawn)


def _differences(ledgers: Sequence[Ledger]) -> dict[str, tuple[str, ...]]:
    described = [_described(ledger) for ledger in ledgers]
    keys = dict.fromkeys(key for each in described for key in each)
    rows = {key: tuple(each.get(key, "") for each in described) for key in keys if key not in NO_DIFFERENCE}
    return {key: row for key, row in rows.items() if len(set(row)) > 1}


def _described(ledger: Ledger) -> dict[str, str]:
    """Every setting of a study, searched ones by their distributions, its data, and the versions that it ran with."""
    plan, started = ledger.current_plan, ledger.started
    assert started is not None
    values = {key: "" if value is None else number(value) for key, value in flatten(plan.settings).items()}
    values |= {key: f"{plan.spec(key)['type']}: {domain(plan.spec(key))}" for key in plan.space}
    values |= {"data digest": started.data.digest[:12], "split digest": started.data.split[:12]}
    values |= {f"version of {package}": version for package, version in started.versions.items()}
    return values | {"commit": started.provenance.get(COMMIT, "")[:12]}


# ------------------------------------------------------------------------------------------------------- as it is shown


def names(comparison: Comparison) -> list[Text]:
    """A line for each study: its letter and its id, which is too long for a column."""
    return [Text.assemble((f"{each.letter}  ", "bold"), each.study_id) for each in comparison.studies]


def study_table(comparison: Comparison) -> Table:
    """A study a row: how much it has tried, what that brought."""
    table = _table("Studies")
    table.add_column("study")
    for head in ("trials", "complete", "failed", "front", "epochs", "time", "hypervolume"):
        table.add_column(head, justify="right", no_wrap=True)
    for each in comparison.studies:
        counts, last = outcome_counts(each.ledger), each.progress[-1]
        table.add_row(
            each.letter,
            str(len(each.ledger.trials)),
            str(counts[ENDS[State.COMPLETE]]),
            str(counts[ENDS[State.FAILED]]),
            str(len(each.ledger.front())),
            str(last.epochs),
            duration(last.seconds),
            f"{last.hypervolume:.3f}",
        )
    return table


def fronts_table(comparison: Comparison, console: Console) -> Table:
    """The front of each study; a star where no trial of the others dominates it either, and the best one in bold."""
    symbols = ASCII if is_ascii(console) else UNICODE
    table = _table(f"Fronts ({symbols.star}: on the front of all of them)" if comparison.same_data else "Fronts")
    table.add_column("")
    table.add_column("study")
    table.add_column("trial", no_wrap=True)
    for name in comparison.objectives:
        table.add_column(heading(name, symbols), justify="right", overflow="fold")
    joint = comparison.joint_front if comparison.same_data else set()
    for each in comparison.studies:
        for trial in each.ledger.front():
            values = (objective_value(each.ledger, trial, name) for name in comparison.objectives)
            star = symbols.star if (each.letter, trial.number) in joint else ""
            table.add_row(star, each.letter, trial.name, *values, style="bold" if trial is each.best else "")
    return table


def difference_table(comparison: Comparison) -> Table:
    """What is not the same in all studies, a setting a row."""
    table = _table("Settings that differ")
    table.add_column("setting", overflow="fold")
    for each in comparison.studies:
        table.add_column(each.letter, overflow="fold")
    for key, values in comparison.differences.items():
        table.add_row(key, *values)
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)


def draw(comparison: Comparison) -> bytes:
    """The fronts, and the hypervolume over the epochs that were spent, as PNG."""
    from matplotlib.figure import Figure

    fronts = len(comparison.objectives) > 1
    figure = Figure(figsize=(12 if fronts else 6.5, 4.8), layout="constrained")
    axes = figure.subplots(1, 2 if fronts else 1, squeeze=False)[0]
    if fronts:
        _draw_fronts(comparison, axes[0])
    _draw_progress(comparison, axes[-1])
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 2 if fronts else 1), frameon=False
    )
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


def _lines(comparison: Comparison) -> Iterator[tuple[ComparedStudy, str, float]]:
    """Each study with its colour and the width of its lines: the first ones show below those that run along them."""
    for index, (each, colour) in enumerate(zip(comparison.studies, CLASS_COLOURS, strict=False), start=1):
        yield each, colour, min(1.5 + 2.0 * (len(comparison.studies) - index), 6.0)


def _draw_fronts(comparison: Comparison, axes: "Axes") -> None:
    """In the first two objectives: a front as a staircase, and all complete trials in a lighter colour."""
    x_name, y_name = comparison.objectives[:2]
    steps: Any = "steps-post" if METRICS[x_name].sign > 0 else "steps-pre"  # the corners lie in what is dominated
    line = "-" if len(comparison.objectives) == 2 else ""
    for each, colour, width in _lines(comparison):
        points = {trial.number: each.ledger.judged(trial) for trial in each.ledger.complete()}
        axes.scatter(
            [metrics[x_name] for metrics in points.values()],
            [metrics[y_name] for metrics in points.values()],
            s=18, color=colour, alpha=0.3, linewidths=0,
        )  # fmt: skip
        front = sorted((points[trial.number][x_name], points[trial.number][y_name]) for trial in each.ledger.front())
        x, y = [point[0] for point in front], [point[1] for point in front]
        axes.plot(x, y, marker="o", color=colour, linewidth=width, drawstyle=steps, linestyle=line)
    axes.set(xlabel=heading(x_name), ylabel=heading(y_name), title="Fronts, and other complete trials")
    axes.grid(alpha=0.3)


def _draw_progress(comparison: Comparison, axes: "Axes") -> None:
    for each, colour, width in _lines(comparison):
        epochs = [0, *(point.epochs for point in each.progress)]
        volumes = [0.0, *(point.hypervolume for point in each.progress)]
        label = f"{each.letter}  {each.study_id}: {volumes[-1]:.3f}"
        axes.plot(epochs, volumes, drawstyle="steps-post", color=colour, linewidth=width, label=label)
    axes.set(
        xlabel="epochs, of all trials", ylabel="share of what there is to win", title="Hypervolume", ylim=(0, 1.02)
    )
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
