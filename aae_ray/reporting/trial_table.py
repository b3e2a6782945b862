"""The trials of a study as one table, a row each, for pandas, a spreadsheet or any other program.

It follows from the study's ledger alone, so that it can be made again at any time, with the same bytes.
"""

import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import csv, parquet

from aae_ray.reporting.tables import values_of
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import State
from aae_ray.search.store import PARTIAL
from aae_ray.search.trial_record import TrialRecord

PARQUET, CSV = "trials.parquet", "trials.csv"  # in the study's folder
SEED = "seed"  # a setting that every trial has, searched or not
TIMES = pyarrow.timestamp("us", tz="UTC")


def trial_table(ledger: Ledger) -> pyarrow.Table:
    """A row for each trial, in the order of their numbers.

    number, name, state, reason, message   as in `python -m aae_ray.status`
    on_front, chosen                       whether no other configuration dominates it; whether it is the best trial
    replicate_of                           the trial of the same configuration with the first seed
    seed, and each searched setting        under their dotted keys
    val/..., adv/..., ...                  metrics of the last epoch, and on the test images of those that were measured
    seeds/...                              of configurations with several seeds: means, standard errors and their number
    epochs, worker_seconds                 trained; for which workers were held, all of them together
    started, ended                         in UTC
    """
    trials = ledger.trials
    front = {trial.number for trial in ledger.front()}
    chosen = None if ledger.chosen is None else ledger.chosen.number
    columns: dict[str, Any] = {
        "number": pyarrow.array([trial.number for trial in trials], pyarrow.int64()),
        "name": _text(trial.name for trial in trials),
        "state": _text(trial.state.value for trial in trials),
        "reason": _text(trial.reason and trial.reason.value for trial in trials),
        "message": _text(trial.message or None for trial in trials),
        "on_front": pyarrow.array([trial.number in front for trial in trials], pyarrow.bool_()),
        "chosen": pyarrow.array([trial.number == chosen for trial in trials], pyarrow.bool_()),
        "replicate_of": pyarrow.array([trial.replicate_of for trial in trials], pyarrow.int64()),
        SEED: pyarrow.array([trial.params.get(SEED, trial.plan.settings.seed) for trial in trials], pyarrow.int64()),
    }
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params if key != SEED))
    settings = [values_of(trial, keys) for trial in trials]
    columns |= {key: _plain([values.get(key) for values in settings]) for key in keys}
    measured = [_metrics(ledger, trial) for trial in trials]
    names = dict.fromkeys([*ledger.objectives, *(name for metrics in measured for name in metrics)])
    columns |= {name: pyarrow.array([each.get(name) for each in measured], pyarrow.float64()) for name in names}
    columns |= {
        "epochs": pyarrow.array([trial.epoch for trial in trials], pyarrow.int64()),
        "worker_seconds": pyarrow.array([trial.worker_time.held for trial in trials], pyarrow.float64()),
        "started": _times(trial.started for trial in trials),
        "ended": _times(trial.ended for trial in trials),
    }
    return pyarrow.table(columns)


def write_trial_table(ledger: Ledger, folder: Path) -> None:
    """Write the table as Parquet and as CSV; each file is the whole one, or still the one before. Raises OSError."""
    table = trial_table(ledger)
    for name, write in ((PARQUET, parquet.write_table), (CSV, _write_csv)):
        partial = folder / f"{name}{PARTIAL}{uuid.uuid4().hex[:8]}"
        try:
            write(table, partial)
            partial.replace(folder / name)
        finally:
            partial.unlink(missing_ok=True)


def _write_csv(table: pyarrow.Table, path: Path) -> None:
    csv.write_csv(table, path, csv.WriteOptions(quoting_style="needed"))


def _metrics(ledger: Ledger, trial: TrialRecord) -> dict[str, float]:
    """What was measured of a trial at its end, and of its configuration over seeds."""
    metrics = {name: value for name, value in trial.metrics.items() if name != "epoch"}
    metrics |= trial.test.metrics if trial.test is not None else {}
    if trial.replicates and trial.state is State.COMPLETE:
        judged, errors = ledger.judged(trial), ledger.standard_errors(trial)
        metrics |= {f"seeds/mean/{name}": judged[name] for name in ledger.objectives}
        metrics |= {f"seeds/se/{name}": error for name, error in errors.items()}
        metrics["seeds/count"] = float(len(ledger.seeds(trial).values))
    return metrics


def _plain(values: Sequence[Any]) -> pyarrow.Array:
    """Values of one setting: numbers, or truth values, or text; text for those of several kinds, such as widths."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int} or kinds == {bool} or kinds == {str}:
        return pyarrow.array(values)
    if kinds <= {int, float}:
        return pyarrow.array(values, pyarrow.float64())
    return _text(None if value is None else str(value) for value in values)


def _text(values: Iterable[str | None]) -> pyarrow.Array:
    return pyarrow.array(list(values), pyarrow.string())


def _times(seconds: Iterable[float | None]) -> pyarrow.Array:
    return pyarrow.array([None if each is None else datetime.fromtimestamp(each, UTC) for each in seconds], TIMES)
