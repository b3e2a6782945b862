"""The table of a study's trials."""

import math
from pathlib import Path

import pandas
import pytest

from aae_ray.reporting.trial_table import CSV, PARQUET, trial_table, write_trial_table
from aae_ray.search import events
from aae_ray.search.journal import read_events
from aae_ray.search.outcomes import FailureClass
from aae_ray.search.store import read_ledger
from tests.search.histories import JSD, MSE, START, History


def a_study() -> History:
    """A complete trial with two seeds, a worse one, a failed one, and one that has not begun."""
    history = History()
    best = history.finish(0.02, 0.01, {"model.hidden": "128-64", "optim.beta2": 0.9}).number
    history.finish(0.05, 0.30, {"model.hidden": 256, "optim.beta2": 1}, adv__code_std=math.nan)
    history.fail(history.begin({"model.hidden": 64}), FailureClass.BUG, "a worker, the second, broke")
    history.another_seed(best, 0.04, 0.03)
    history.suggest({"model.hidden": 32})
    history.add(
        events.Measured(number=best, metrics={"test/reconstruction_mse": 0.021}, remarks=(), tags={"aae.judge": "none"})
    )
    history.add(events.Chosen(number=best, registration=None))
    return history


def test_a_row_says_what_became_of_its_trial() -> None:
    history = a_study()
    table = trial_table(history.ledger).to_pandas()
    assert list(table["name"]) == ["t0000", "t0001", "t0002", "t0003", "t0004"]
    assert list(table["state"]) == ["complete", "complete", "failed", "complete", "waiting"]
    assert list(table["reason"][:3]) == ["completed", "completed", "bug"] and table["reason"].isna()[4]
    assert list(table["on_front"]) == [True, False, False, False, False] == list(table["chosen"])
    assert list(table["model.hidden"]) == ["128-64", "256", "64", "128-64", "32"]  # widths of several kinds are text
    assert list(table["optim.beta2"][:3]) == [0.9, 1.0, 0.999]  # what applied where it was not searched
    assert list(table["seed"]) == [0, 0, 0, 1, 0] and table["replicate_of"][3] == 0
    best = table.iloc[0]
    assert (best[MSE], best[JSD], best["test/reconstruction_mse"]) == (0.02, 0.01, 0.021)
    assert best[f"seeds/mean/{MSE}"] == pytest.approx(0.03) and best["seeds/count"] == 2
    assert best[f"seeds/se/{MSE}"] == pytest.approx(0.01) and math.isnan(table[f"seeds/mean/{MSE}"][1])
    assert best["epochs"] == 27 and best["worker_seconds"] == pytest.approx(10.0)
    assert best["started"].timestamp() == pytest.approx(START + 1) and str(best["ended"].tz) == "UTC"


def test_both_files_say_the_same_and_nothing_else_is_left_there(tmp_path: Path) -> None:
    write_trial_table(a_study().ledger, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {PARQUET, CSV}
    columns, text = pandas.read_parquet(tmp_path / PARQUET), pandas.read_csv(tmp_path / CSV)
    assert list(columns) == list(text) and len(columns) == len(text) == 5
    assert text["message"][2] == "a worker, the second, broke"
    for name in (MSE, "optim.beta2", "worker_seconds", "number"):
        pandas.testing.assert_series_equal(columns[name], text[name], check_dtype=False)


def test_the_table_follows_from_the_journal_alone(tmp_path: Path) -> None:
    history = a_study()
    study = history.write(tmp_path / "study-1")
    write_trial_table(history.ledger, tmp_path)
    write_trial_table(read_ledger(study, read_events(study)), study)
    for name in (PARQUET, CSV):
        assert (study / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_study_without_trials_has_a_table_without_rows(tmp_path: Path) -> None:
    write_trial_table(History().ledger, tmp_path)
    table = pandas.read_parquet(tmp_path / PARQUET)
    assert len(table) == 0 and {"name", "state", MSE, JSD} <= set(table)
