"""A table of learning curves: what each configuration of a space did at every epoch, as the platform trained it.

It is made once from finished studies without a pruner, and kept as Parquet: a row for each configuration and seed, with
a list over epochs of each metric. A replay asks for configurations that nobody trained: `Surrogate` has learned them.

Shapes: `E` epochs, `N` configurations (in `Surrogate`, some of them), `P` inputs of the forest, `T` trees.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution, distribution_to_json, json_to_distribution
from optuna.samplers import RandomSampler
from scipy.stats import rankdata, spearmanr
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import KFold

from aae_ray.errors import UserError
from aae_ray.search import events
from aae_ray.search.distributions import Space
from aae_ray.search.journal import read_events
from aae_ray.search.ledger import Ledger
from aae_ray.search.objectives import Ranks
from aae_ray.search.outcomes import Reason
from aae_ray.search.trial_record import TrialRecord
from aae_ray.settings import RunSettings, Settings, dotted_fields, replace, setting

MSE, JSD, MEAN_IMAGE_MSE = "val/reconstruction_mse", "val/jsd_nats", "val/mean_image_mse"
KEPT = (MSE, JSD, MEAN_IMAGE_MSE, "val/jsd_nats_floor")  # what samplers, pruners and references are given
SHARED = (*dotted_fields(RunSettings), "study.objectives", "study.pruner.grace_period", "study.pruner.reduction_factor")
PLACES = ("data.path", "data.cache")  # where the data lay shapes no trial
PLAN = b"aae_ray.plan"  # of the file's own metadata
TOP = 0.02  # a search has found what there is with a configuration that is among this share of all

Floats = NDArray[np.float64]
Point = tuple[float, float]


# ---------------------------------------------------------------------------------------------------------- a curve


@dataclass(frozen=True)
class Curve:
    """One configuration, trained once. A metric is NaN at epochs at which it was not measured."""

    configuration: int
    params: Mapping[str, Any]  # without the seed
    seed: int
    metrics: Mapping[str, Floats]  # name -> (E,)
    seconds_E: Floats  # of training and evaluation
    stop_reason: Reason | None = None  # a health check ended it

    @property
    def epochs(self) -> int:
        return len(self.seconds_E)

    def at(self, epoch: int) -> dict[str, float]:
        """The metrics of an epoch, as a trial reports them."""
        measured = {name: float(values_E[epoch - 1]) for name, values_E in self.metrics.items()}
        return {"epoch": float(epoch)} | {name: value for name, value in measured.items() if not math.isnan(value)}


@dataclass(frozen=True)
class Table:
    """The curves of a space, with what all of them share. Smaller is better in both objectives."""

    settings: Settings
    space: Space
    curves: tuple[Curve, ...]

    @cached_property
    def by_configuration(self) -> list[list[Curve]]:
        """The curves of each configuration, one for each seed."""
        found: dict[int, list[Curve]] = {}
        for curve in self.curves:
            found.setdefault(curve.configuration, []).append(curve)
        return [found[number] for number in sorted(found)]

    @cached_property
    def reference(self) -> Point:
        """The worst that counts: the error of the mean image, and the divergence of distributions with no overlap."""
        return float(np.nanmax([np.nanmax(curve.metrics[MEAN_IMAGE_MSE]) for curve in self.curves])), math.log(2)

    @cached_property
    def measured_at(self) -> frozenset[int]:
        """The epochs at which every curve that reaches them has all objectives."""
        epochs = self.settings.train.epochs
        missing = {
            epoch
            for curve in self.curves
            for epoch in range(1, curve.epochs + 1)
            if not {MSE, JSD} <= curve.at(epoch).keys()
        }
        return frozenset(range(1, epochs + 1)) - missing

    def normalised(self, metrics: Mapping[str, float]) -> Point:
        """Both objectives in units of the reference point; infinite where one was not measured."""
        values = [metrics.get(name, math.nan) / worst for name, worst in zip((MSE, JSD), self.reference, strict=True)]
        mse, jsd = (value if math.isfinite(value) else math.inf for value in values)
        return mse, jsd

    @cached_property
    def spread_of_seeds(self) -> Point:
        """Standard deviation over seeds of the logarithm of the error and of the divergence, at the end of training;
        pooled over configurations, 0 where none has several seeds."""
        variances = []
        for curves in self.by_configuration:
            ends = [curve.at(curve.epochs) for curve in curves if curve.stop_reason is None]
            if len(ends) > 1:
                variances.append(np.var([(math.log(end[MSE]), end[JSD]) for end in ends], axis=0, ddof=1))
        mse, jsd = np.sqrt(np.mean(variances, axis=0)) if variances else (0.0, 0.0)
        return float(mse), float(jsd)


def hypervolume(points: Iterable[Point]) -> float:
    """The share of the unit square that points (smaller is better) dominate; 1 for a point at or below the origin.

    The bound on the divergence may lie a little below 0: that is chance, and counts as 0.
    """
    area, lowest = 0.0, 1.0
    for x, y in sorted((max(x, 0.0), max(y, 0.0)) for x, y in points if x < 1 and y < 1):
        area += (1 - x) * max(lowest - y, 0.0)
        lowest = min(lowest, y)
    return area


def distance_from_ideal(point: Point) -> float:
    """By which a study chooses, `study.select=nearest_to_ideal`."""
    return math.hypot(*(max(value, 0.0) for value in point))


# ------------------------------------------------------------------------------------------------------- from studies


def read_studies(folders: Sequence[Path]) -> tuple[Table, int]:
    """The table of finished studies, and how many of their trials are not in it: those that failed or were pruned.

    Raises UserError for no trials at all, and for studies whose trials share other settings or spaces.
    """
    ledgers = [(folder, *_replay(folder)) for folder in folders]
    _, first, _ = ledgers[0]
    settings, space = first.current_plan.settings, _without_seed(first.current_plan.space)
    numbers: dict[str, int] = {}
    curves: dict[tuple[int, int], Curve] = {}
    left_out = 0
    for folder, ledger, reports in ledgers:
        _check_alike(folder, ledger.current_plan.settings, _without_seed(ledger.current_plan.space), settings, space)
        for trial in ledger.trials:
            last = trial.last_report
            if trial.open or last is None or not (last.finished or last.stop_reason):
                left_out += 1
                continue
            params = _without_seed(trial.params)
            number = numbers.setdefault(json.dumps(params, sort_keys=True), len(numbers))
            curve = _curve(number, params, trial, reports[trial.number])
            curves.setdefault((number, curve.seed), curve)
    if not curves:
        raise UserError(f"{', '.join(map(str, folders))}: no trial was trained to its end")
    return Table(settings, space, tuple(curves[key] for key in sorted(curves))), left_out


def _replay(folder: Path) -> tuple[Ledger, dict[int, dict[int, tuple[dict[str, float], float]]]]:
    """A study's ledger, and by trial and epoch its metrics with the seconds that the epoch took."""
    ledger = Ledger()
    reports: dict[int, dict[int, tuple[dict[str, float], float]]] = {}
    for event in read_events(folder):
        if isinstance(event, events.Reported) and ledger.trials[event.number].open:
            seconds = (event.training_seconds + event.evaluation_seconds) / max(len(event.history), 1)
            for metrics in ledger.fresh(event):
                reports.setdefault(event.number, {})[int(metrics["epoch"])] = metrics, seconds
        ledger.apply(event)
    return ledger, reports


def _curve(
    number: int, params: Mapping[str, Any], trial: TrialRecord, reports: Mapping[int, tuple[dict[str, float], float]]
) -> Curve:
    epochs = [reports[epoch] for epoch in sorted(reports)]
    assert trial.last_report is not None and sorted(reports) == list(range(1, len(reports) + 1)), trial.name
    return Curve(
        configuration=number,
        params=params,
        seed=int(str(trial.params.get("seed", trial.plan.settings.seed))),
        metrics={name: np.array([metrics.get(name, math.nan) for metrics, _ in epochs]) for name in KEPT},
        seconds_E=np.array([seconds for _, seconds in epochs]),
        stop_reason=trial.last_report.stop_reason,
    )


def _without_seed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "seed"}


def _check_alike(folder: Path, settings: Settings, space: Space, others: Settings, other_space: Space) -> None:
    keys = [key for key in SHARED if key not in ("seed", *PLACES) and key not in space]
    different = [key for key in keys if setting(settings, key) != setting(others, key)]
    different += [f"space.{name}" for name in {*space, *other_space} if space.get(name) != other_space.get(name)]
    if different:
        raise UserError(f"{folder} is of other settings than the first study: {', '.join(sorted(different))}")
    if settings.study.objectives != (MSE, JSD):
        raise UserError(f"{folder}: study.objectives must be [{MSE}, {JSD}], got {list(settings.study.objectives)}")


def best_configurations(table: Table, count: int) -> list[Mapping[str, Any]]:
    """The parameters of the configurations that a study would go on with: those on better fronts first, and within a
    front those that dominate more of the unit square."""
    ends = [(one[0], table.normalised(one[0].at(one[0].epochs))) for one in table.by_configuration]
    complete = [(curve, point) for curve, point in ends if curve.stop_reason is None and max(point) < 1]
    ranks = Ranks()
    for curve, point in complete:
        ranks.insert(curve.configuration, point)

    def order(of: tuple[Curve, Point]) -> tuple[int, float]:
        return ranks.rank(of[1]), -hypervolume([of[1]])

    return [curve.params for curve, _ in sorted(complete, key=order)[:count]]


# ------------------------------------------------------------------------------------------------------------ Parquet


def write_table(table: Table, path: Path) -> None:
    """Keep a table as Parquet, with what its curves share in the metadata of the schema."""
    shared = {key: setting(table.settings, key) for key in SHARED if key not in PLACES}
    space = {name: distribution_to_json(distribution) for name, distribution in table.space.items()}
    columns: dict[str, Any] = {
        "configuration": pa.array([curve.configuration for curve in table.curves], pa.int32()),
        "seed": pa.array([curve.seed for curve in table.curves], pa.int64()),
        "stop_reason": pa.array([curve.stop_reason for curve in table.curves], pa.string()),
        "seconds": pa.array([curve.seconds_E for curve in table.curves], pa.list_(pa.float32())),
    }
    columns |= {f"params/{name}": pa.array([curve.params.get(name) for curve in table.curves]) for name in table.space}
    for name in KEPT:
        lists = [[None if math.isnan(value) else value for value in curve.metrics[name]] for curve in table.curves]
        columns[name] = pa.array(lists, pa.list_(pa.float32()))
    plan = json.dumps({"settings": shared, "space": space}).encode()
    pq.write_table(pa.table(columns).replace_schema_metadata({PLAN: plan}), path, compression="zstd")


def read_table(path: Path) -> Table:
    """A table that `write_table` kept. Raises UserError for a file that is none."""
    try:
        file = pq.read_table(path)
        plan = json.loads(file.schema.metadata[PLAN])
    except (OSError, pa.ArrowInvalid, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a table of learning curves: {error}") from None
    space = {name: json_to_distribution(text) for name, text in plan["space"].items()}
    curves = []
    for row in file.to_pylist():
        params = {name: row[f"params/{name}"] for name in space if row[f"params/{name}"] is not None}
        metrics = {name: np.array(row[name], dtype=np.float64) for name in KEPT}
        reason = None if row["stop_reason"] is None else Reason(row["stop_reason"])
        curves.append(Curve(row["configuration"], params, row["seed"], metrics, np.array(row["seconds"]), reason))
    return Table(replace(Settings(), plan["settings"]), space, tuple(curves))


# ---------------------------------------------------------------------------------------------------- what is between


class Surrogate:
    """The curve of any configuration of the space, from those of a table.

    A random forest learns the ranks of both objectives at the end of training. Its weights for a configuration are the
    shares of its rows in the leaves that the configuration falls into, mean over trees (Meinshausen 2006, "Quantile
    regression forests"), and the curve is the mean of the rows' curves under these weights, further seeds of a row
    included in equal parts. So a configuration that was lucky with its seed does not stay the best of all. Where rows
    that a health check ended weigh more than the others, the curve is that of the heaviest of them.
    """

    TREES = 100
    DRAWS = 2000

    def __init__(self, table: Table) -> None:
        self.table, self.space = table, table.space
        rows = table.by_configuration
        self.curves = [_mean_of_seeds(curves) for curves in rows]
        self.inputs_NP = np.array([self._inputs(curve.params) for curve in self.curves])
        ends = [table.normalised(curve.at(curve.epochs)) for curve in self.curves]
        self.ranks_N2 = np.column_stack([rankdata(column) for column in zip(*ends, strict=True)])
        self.stopped_N = np.array([curve.stop_reason is not None for curve in self.curves])
        if self.stopped_N.all():
            raise UserError("a health check has ended every trial of the table")
        whole = [curve for curve in self.curves if curve.stop_reason is None]
        self.metrics = {name: np.array([curve.metrics[name] for curve in whole]) for name in KEPT}
        self.seconds_NE = np.array([curve.seconds_E for curve in whole])
        self._fit(np.arange(len(rows)))

    def curve(self, params: Mapping[str, Any]) -> Curve:
        weights_N = self._weights(self._inputs(params))
        if weights_N[self.stopped_N].sum() > 0.5:
            heaviest = self.curves[int(np.where(self.stopped_N, weights_N, -1.0).argmax())]
            return dataclasses.replace(heaviest, params=params)
        weights_N = weights_N[~self.stopped_N] / weights_N[~self.stopped_N].sum()
        metrics = {name: weights_N @ values_NE for name, values_NE in self.metrics.items()}
        return Curve(int(weights_N.argmax()), params, self.table.settings.seed, metrics, weights_N @ self.seconds_NE)

    @cached_property
    def top(self) -> float:
        """How near to the ideal the best 2 % of random configurations come: of fifty one is as near, on average."""
        study = optuna.create_study(sampler=RandomSampler(seed=0), directions=["minimize"] * 2)
        curves = [self.curve(study.ask(self.space).params) for _ in range(self.DRAWS)]
        distances = [
            distance_from_ideal(self.table.normalised(each.at(each.epochs))) if each.stop_reason is None else math.inf
            for each in curves
        ]
        return float(np.quantile(distances, TOP, method="lower"))

    def rank_correlation(self, folds: int = 10) -> Point:
        """Spearman's rank correlation of each objective at the end with what is learned from the other folds."""
        found: list[tuple[int, Point]] = []
        for rest, held_out in KFold(folds, shuffle=True, random_state=0).split(self.inputs_NP):
            self._fit(rest)
            for row in held_out:
                curve = self.curve(self.curves[row].params)
                found.append((row, self.table.normalised(curve.at(curve.epochs))))
        self._fit(np.arange(len(self.curves)))
        predicted = [point for _, point in sorted(found)]
        mse, jsd = (float(spearmanr(self.ranks_N2[:, k], [each[k] for each in predicted]).statistic) for k in range(2))
        return mse, jsd

    def _fit(self, rows: NDArray[np.intp]) -> None:
        """Learn from these rows alone."""
        self.rows = rows
        self.forest = RandomForestRegressor(self.TREES, max_features=0.5, random_state=0)
        self.forest.fit(self.inputs_NP[rows], self.ranks_N2[rows])
        self.leaves_NT = self._leaves(self.inputs_NP[rows])

    def _weights(self, inputs_P: Floats) -> Floats:
        """The weight of every row, (N,); they sum to 1."""
        shared_NT = self.leaves_NT == self._leaves(inputs_P[None])
        weights_N = np.zeros(len(self.curves))
        weights_N[self.rows] = (shared_NT / shared_NT.sum(0)).mean(1)
        return weights_N

    def _leaves(self, inputs_NP: Floats) -> NDArray[np.int64]:
        """The leaf of each configuration in each tree, (N, T), without the threads that the forest starts for it."""
        inputs_32 = inputs_NP.astype(np.float32)
        return np.column_stack([tree.apply(inputs_32, check_input=False) for tree in self.forest.estimators_])

    def _inputs(self, params: Mapping[str, Any]) -> Floats:
        """Numbers on the scale that is searched, from 0 to 1; choices one-hot; -1 and zeros for what has no value."""
        inputs: list[float] = []
        for name, distribution in self.space.items():
            value = params.get(name)
            if isinstance(distribution, CategoricalDistribution):
                inputs += [float(value == choice) for choice in distribution.choices]
            elif value is None:
                inputs.append(-1.0)
            else:
                scale = math.log if distribution.log else float
                low, high = scale(distribution.low), scale(distribution.high)
                inputs.append((scale(value) - low) / (high - low or 1.0))
        return np.array(inputs)


def _mean_of_seeds(curves: Sequence[Curve]) -> Curve:
    """One curve for a configuration: the mean over the seeds with which it came to its end, if it did with most."""
    whole = [curve for curve in curves if curve.stop_reason is None]
    if 2 * len(whole) < len(curves) or not whole:
        return next(curve for curve in curves if curve.stop_reason is not None)
    metrics = {name: np.mean([curve.metrics[name] for curve in whole], axis=0) for name in KEPT}
    return dataclasses.replace(whole[0], metrics=metrics, seconds_E=np.mean([each.seconds_E for each in whole], axis=0))
