"""What a study leaves behind to be read: tables, plots, the best settings, the model card."""

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from rich.console import Console

from aae_ray.autoencoder.kinds import ImageKind
from aae_ray.evaluation.diagnostics import Illness
from aae_ray.evaluation.final_evaluation import FinalEvaluation
from aae_ray.evaluation.metrics import METRICS
from aae_ray.reporting import plots, tables
from aae_ray.reporting.analysis import SearchAnalysis
from aae_ray.reporting.cards import best_config, model_card, resolved, summary
from aae_ray.reporting.console import console_for
from aae_ray.reporting.text import (
    bullet,
    describe,
    duration,
    heading,
    interval,
    number,
    resume_command,
    shell_path,
    with_floor,
)
from aae_ray.search.events import Measured
from aae_ray.search.outcomes import FailureClass, Reason, State, StudyEnd
from aae_ray.search.sampler import optuna_study
from aae_ray.search.space import Plan, read_plan
from aae_ray.search.trial_record import TrialRecord
from aae_ray.settings import Settings, dotted_fields, replace, setting
from tests.search.histories import JSD, MSE, START, History

SEARCH_SPACES = Path(__file__).parents[2] / "search_spaces"

DIGITS = Path(__file__).parents[2] / "search_spaces" / "digits.yaml"

PARAMS: dict[str, Any] = {
    "model.latent_dim": 8,
    "model.prior": "swiss_roll",
    "model.posterior": "deterministic",
    "model.hidden": "256-128",
    "model.discriminator_hidden": "128-128",
    "optim.reconstruction_lr": 0.0012345678,
    "optim.discrimination_lr": 1e-4,
    "optim.regularization_lr": 0.01,
    "health.stop": True,
}


@pytest.fixture
def history() -> History:
    return History()


def finish(history: History, mse: float, jsd: float, se: float = 0.01, **params: Any) -> TrialRecord:
    changed = PARAMS | {key.replace("__", "."): value for key, value in params.items()}
    return history.finish(mse, jsd, changed, val__jsd_nats_se=se)


def printed(renderable: Any, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable)
    return stream.getvalue()


def test_a_table_of_metrics_has_every_name_number_and_unit_however_narrow() -> None:
    metrics = dict.fromkeys(METRICS, 0.0157412)
    for width in (80, 120, 200):
        lines = printed(tables.metrics_table("on the test images", metrics), width).splitlines()
        for name, value in metrics.items():
            (line,) = (line for line in lines if line.startswith(f"{name} "))
            assert f" {value:.4g} " in line and METRICS[name].unit in line


def test_what_explains_another_metric_is_told_after_it() -> None:
    """Whatever was computed first: "the same with as many real training images" means nothing before the score."""
    metrics = dict.fromkeys(("quality/parzen_anchor_nats", "quality/parzen_nats_se", "quality/parzen_nats"), 1.0)
    told = printed(tables.metrics_table("", metrics), 200)
    assert told.index("parzen_nats ") < told.index("parzen_nats_se ") < told.index("parzen_anchor_nats ")


# ------------------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0012345678, "0.001235"),
        (1e-4, "0.0001"),
        (12345.678, "1.235e+04"),
        (0.5, "0.5"),
        (3.0, "3"),
        (float("inf"), "inf"),
        (8, "8"),
        (True, "True"),
        (None, "None"),
        ("128-64", "128-64"),
    ],
)
def test_a_float_has_four_digits_and_the_rest_is_as_it_is(value: object, text: str) -> None:
    assert number(value) == text


def test_a_heading_has_an_arrow_towards_better() -> None:
    assert heading(MSE) == f"{MSE} \N{DOWNWARDS ARROW}"
    assert heading("val/code_std") == "val/code_std"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (61, "1 min 1 s"),
        (3599.7, "1 h 0 min"),
        (7380, "2 h 3 min"),
        (90000, "25 h 0 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("params", "text"),
    [
        (PARAMS, "swiss_roll-z8-deterministic"),
        ({"task": "vae", "model.latent_dim": 3}, "vae-z3"),
        ({"optim.beta2": 0.123456, "health.stop": True, "train.epochs": 3}, "beta2=0.1235-stop=True"),
        ({}, ""),
    ],
)
def test_a_trial_is_described_by_what_tells_most(params: dict[str, Any], text: str) -> None:
    assert describe(params) == text


# ------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("width", [10, 20, 40, 80, 120, 160, 250])
def test_the_front_is_a_table_on_a_console_of_any_width(history: History, width: int) -> None:
    best = finish(history, 0.0123456, 0.3)
    finish(history, 0.02, 0.12345)
    finish(history, 0.5, 0.5)
    text = printed(tables.front_table(history.ledger, best, Console(width=width)), width)
    assert max(map(len, text.splitlines())) <= width
    if width >= 80:
        for part in ("t0000", "t0001", "0.0123", "0.3000", "0.0200", "0.1235", "Pareto front: 2 of 3 trials"):
            assert part in text
        assert "t0002" not in text
        assert ("settings" in text) == (width < 250)  # one column for all keys, or one for each
        assert [
            line for line in text.splitlines() if "\N{BLACK STAR}" in line and "t0000" in line and "t0001" not in line
        ]
    if width >= 120:  # no word is broken
        for part in ("swiss_roll", "deterministic", "256-128", "0.001235", "0.0001", "0.01", "True"):
            assert part in text


def test_an_empty_front_is_a_table_too(history: History) -> None:
    assert "Pareto front: 0 of 0 trials" in printed(tables.front_table(history.ledger, None, Console(width=80)), 80)


def test_a_log_gets_plain_lines_wide_enough_for_the_table_of_a_study_that_ships(history: History) -> None:
    best = finish(history, 0.0123456, 0.3)
    best.params = read_plan(str(DIGITS)).start[0] | PARAMS
    stream = io.StringIO()
    console = console_for(stream)
    assert not console.is_terminal and console.width >= 180
    console.print(tables.front_table(history.ledger, best, console), bullet("label", "text [not markup]"))
    text = stream.getvalue()
    assert "\x1b" not in text and "label       text [not markup]" in text
    for part in ("t0000", "0.0123", "swiss_roll", "deterministic", "256-128", "0.001235"):
        assert part in text


def test_the_outcome_counts_every_end_and_its_reason(history: History) -> None:
    finish(history, 0.1, 0.1)
    for reason in (Reason.PRUNED, Reason.PRUNED, Reason.BUDGET):
        history.end(history.begin(), reason)
    history.fail(history.begin(), FailureClass.BUG, "worker died")
    history.now += 3600 - (history.now - START)
    history.stop(StudyEnd.DISK)
    line = tables.outcome_line(history.ledger)
    ends = "1 complete, 2 stopped early, 1 failed, 1 unfinished (1 budget, 1 bug, 2 pruned)"
    assert line == f"5 trials in 1 h 0 min: {ends}"


@pytest.mark.parametrize("state", State)
def test_every_state_has_a_word_in_the_outcome(history: History, state: State) -> None:
    finish(history, 0.1, 0.1)
    history.ledger.counts = dict.fromkeys(State, 0) | {state: 7}
    assert f"7 {state}" in tables.outcome_line(history.ledger) and f"7 {state}" in summary(history.ledger)


def test_configurations_with_several_seeds_are_told_as_means_and_counted_once() -> None:
    history = History(study__seeds_per_trial=2)
    finish(history, 0.1, 0.2)
    finish(history, 0.3, 0.1)
    history.another_seed(0, 0.2, 0.2)
    ledger = history.ledger
    assert tables.outcome_line(ledger).startswith("2 configurations, 3 trials in ")
    assert summary(ledger).startswith("2 configurations, 3 trials: 3 complete")
    assert "Pareto front: 2 of 2 configurations" in printed(tables.front_table(ledger, None, Console()), 200)
    assert "| t0000 | 0.1500 ± " in summary(ledger)


def test_the_time_of_a_study_is_that_of_all_its_sessions_and_of_no_pause(history: History) -> None:
    history.now = START + 600
    history.stop()
    history.now += 86_400
    history.resume()
    history.now += 59  # a resume and a second go by
    assert "0 trials in 10 min 0 s" in tables.outcome_line(history.ledger)
    finish(history, 0.1, 0.1)
    history.stop()
    assert "1 trial in 11 min 10 s" in tables.outcome_line(history.ledger)


def test_a_trial_that_was_taken_up_again_has_no_reason_in_the_outcome(history: History) -> None:
    history.begin()
    history.stop()
    assert "0 stopped early, 0 failed, 1 unfinished (1 user)" in tables.outcome_line(history.ledger)
    history.resume()
    assert tables.outcome_line(history.ledger).endswith("0 stopped early, 0 failed, 1 waiting")


def test_trials_of_an_extended_study_have_cells_for_what_either_space_searched() -> None:
    sizes, priors = IntDistribution(2, 9), CategoricalDistribution(["gaussian", "uniform"])
    first = Plan(replace(Settings(), {"model.prior": "mixture"}), {"model.latent_dim": sizes})
    then = Plan(replace(Settings(), {"model.latent_dim": 6}), {"model.prior": priors})
    history = History(first)
    history.finish(0.1, 0.2, {"model.latent_dim": 4})
    history.resume(then)
    history.finish(0.2, 0.1, {"model.prior": "uniform"})
    content = printed(tables.front_table(history.ledger, None, Console(width=200)), 200)
    assert "4  mixture" in content and "6  uniform" in content
    rows = [line for line in summary(history.ledger).splitlines() if line.startswith("| t0")]
    assert rows == ["| t0000 | 0.1000 | 0.2000 | 4 | mixture |", "| t0001 | 0.2000 | 0.1000 | 6 | uniform |"]


def test_a_setting_that_a_trial_was_not_asked_for_has_no_cell() -> None:
    priors, components = CategoricalDistribution(["mixture", "uniform"]), IntDistribution(2, 9)
    history = History(Plan(Settings(), {"model.prior": priors, "model.prior_components": components}))
    history.finish(0.1, 0.2, {"model.prior": "mixture", "model.prior_components": 5})
    history.finish(0.2, 0.1, {"model.prior": "uniform"})
    rows = [line for line in summary(history.ledger).splitlines() if line.startswith("| t0")]
    assert rows[1] == "| t0001 | 0.2000 | 0.1000 | uniform |  |"


def test_a_note_says_where_the_front_differs_by_noise_alone(history: History) -> None:
    assert tables.front_diagnostic(history.ledger) is None
    finish(history, 0.1, 0.300, se=0.01)
    assert tables.front_diagnostic(history.ledger) is None
    finish(history, 0.2, 0.295, se=0.01)
    diagnostic = tables.front_diagnostic(history.ledger)
    assert diagnostic is not None and diagnostic.kind is Illness.FRONT_WITHIN_NOISE
    assert "0.0050" in diagnostic.text and "0.0100" in diagnostic.text
    finish(history, 0.3, 0.1, se=0.01)
    assert tables.front_diagnostic(history.ledger) is None


def test_trials_that_were_not_measured_on_the_test_images_have_their_illnesses_told(history: History) -> None:
    fooled: dict[str, Any] = {"val__jsd_nats_se": 0.01, "val__jsd_nats_floor": 0.0}
    for loss in (math.log(2), math.log(2), 0.3):
        history.finish(0.1, 0.4, adv__discriminator_loss_nats=loss, **fooled)
    (sentence,) = tables.trial_diagnostics(history.ledger)
    assert sentence.startswith("t0000: the discriminator is fooled") and sentence.endswith("; t0001 alike")
    history.add(Measured(number=0, metrics={"test/reconstruction_mse": 0.1}, remarks=(), tags={}))
    (sentence,) = tables.trial_diagnostics(history.ledger)
    assert sentence.startswith("t0001: the discriminator is fooled") and "alike" not in sentence


def test_a_note_on_noise_compares_means_over_seeds() -> None:
    history = History(study__seeds_per_trial=2)
    finish(history, 0.1, 0.20, se=0.1)
    finish(history, 0.2, 0.10, se=0.1)
    assert tables.front_diagnostic(history.ledger) is not None
    for first, jsd in ((0, 0.2), (1, 0.1)):
        history.another_seed(first, 0.1 + 0.1 * first, jsd)
    assert tables.front_diagnostic(history.ledger) is None


# -------------------------------------------------------------------------------------------------------------- cards


def test_the_summary_is_a_markdown_table_of_the_front(history: History) -> None:
    finish(history, 0.2, 0.1)
    finish(history, 0.1, 0.2)
    finish(history, 0.3, 0.3)
    history.end(history.begin(), Reason.PRUNED)
    lines = summary(history.ledger).splitlines()
    assert lines[0] == "4 trials: 3 complete, 1 stopped early, 0 failed."
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and [row.split("|")[1].strip() for row in table] == [
        "trial",
        "---",
        "t0001",
        "t0000",
    ]
    assert "| 0.1000 | 0.2000 | 8 | swiss_roll |" in table[2]


def test_a_summary_of_nothing_is_text_too(history: History) -> None:
    assert summary(history.ledger).startswith("0 trials: 0 complete, 0 stopped early, 0 failed.")


def test_a_summary_says_why_a_study_stopped(history: History) -> None:
    history.stop(StudyEnd.DISK, "no room under /runs")
    assert "Stopped before its planned end: no room under /runs." in summary(history.ledger)


def test_the_card_says_what_the_decoder_is_and_how_good() -> None:
    run = replace(Settings(), {"model.prior": "mixture", "model.latent_dim": 4, "model.prior_scale": 2.5})
    card = model_card(
        "aae-digits-decoder",
        "aae-digits-encoder",
        TrialRecord(7, {}, Plan(run, {}), 0.0, 1, epoch=27),
        run,
        [],
        FinalEvaluation(
            {"test/reconstruction_mse": 0.01234, "test/jsd_nats": 0.2, "other": 1.0}, remarks=["few samples"]
        ),
        "digits-1",
        ImageKind((1, 8, 8)),
    )
    assert card.startswith("# aae-digits-decoder\n") and "Decoder and encoder of trial t0007 of study digits-1" in card
    assert "4-dimensional mixture prior of scale 2.5" in card and "for 27 epochs" in card
    assert (
        "| test/reconstruction_mse | 0.0123 |" in card
        and "| test/jsd_nats | 0.2000 | nats |" in card
        and "other" not in card
        and "\n* few samples\n" in card
    )


CHANGED = {
    "seed": 3,
    "study.objectives": ("val/nmi",),
    "task": "vae",
    "data.name": "mine",
    "data.path": "/somewhere/x.parquet",
    "data.image_column": "pixels",
    "data.split_seed": 2,
    "model.posterior": "gaussian",
    "model.hidden": "32-16",
    "model.channels": (4,),
    "model.noise_dim": 5,
    "optim.reconstruction_lr": 1e-5,
    "optim.lr_milestones": (0.01, 0.2),
    "optim.beta2": 1e-7,
    "train.dtype": "float64",
    "health.stop": False,
    "health.dead_logit_std": 1e-9,
    "study.name": "digits",
    "study.budget.trials": 99,
    "tracking.model_name": "m",
}


@pytest.mark.parametrize("changes", [{}, CHANGED])
def test_the_best_settings_are_a_file_that_trains_them_again(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = replace(Settings(), changes)
    path = best_config(run, tmp_path / "best_config.yaml")
    plan = read_plan(str(path))
    assert plan.space == {} and plan.start == ()
    for key in dotted_fields():
        if not key.startswith(("study.", "tracking.")):
            assert setting(plan.settings, key) == setting(run, key), key
    assert plan.settings.study.objectives == run.study.objectives
    assert plan.settings.tracking.model_name == run.tracking.model_name
    assert plan.settings.study.name == f"{run.study.name}-best" and plan.settings.study.budget.trials == 24
    assert "python -m aae_ray.train best_config.yaml" in path.read_text()


def test_the_resolved_study_is_yaml_with_every_setting(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "space:\n  model.hidden: {type: categorical, choices: [[8, 4], 16]}\n"
        "  optim.beta2: {type: float, low: 0.1, high: 0.5}\n"
        "start: [{model.hidden: 16, optim.beta2: 0.2}]\n"
    )
    plan = read_plan(str(file), ["study.resources_per_worker.GPU=1"])
    values = yaml.safe_load(resolved(plan))
    assert values.keys() == {"study", "run", "space", "start"}
    assert {f"study.{key}" for key in values["study"]} | values["run"].keys() | values[
        "space"
    ].keys() == dotted_fields().keys()
    assert values["start"] == [{"model.hidden": "16", "optim.beta2": 0.2}] and values["study"][
        "resources_per_worker"
    ] == {"GPU": 1.0}
    again = tmp_path / "again.yaml"
    again.write_text(resolved(plan))
    assert read_plan(str(again)) == plan


@pytest.mark.parametrize("path", sorted(SEARCH_SPACES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_resolved_study_is_a_file_of_the_same_study(path: Path, tmp_path: Path) -> None:
    plan = read_plan(str(path))
    again = tmp_path / "again.yaml"
    again.write_text(resolved(plan))
    assert read_plan(str(again)) == plan


def test_the_resolved_study_has_no_password_of_an_address() -> None:
    plan = Plan(replace(Settings(), {"tracking.uri": "https://ann:secret@mlflow.example/path"}), {})
    written = resolved(plan)
    assert "secret" not in written and "ann:" not in written
    assert yaml.safe_load(written)["run"]["tracking.uri"] == "https://mlflow.example/path"


# -------------------------------------------------------------------------------------------------------------- plots

PLOTTED = """
study: {objectives: [%s]}
space:
  model.latent_dim: {type: int, low: 2, high: 16, log: true}
  model.prior: {type: categorical, choices: [gaussian, uniform]}
  model.noise_dim: {type: categorical, choices: [null, 4]}
  health.stop: {type: categorical, choices: [true, false]}
  optim.reconstruction_lr: {type: float, low: 1e-4, high: 1e-2, log: true}
"""


def searched(
    folder: Path, objectives: Sequence[str], complete: int, *, space: bool = True, equal: bool = False
) -> tuple[optuna.Study, Plan, SearchAnalysis]:
    """A study with trials of every kind of end."""
    text = PLOTTED % ", ".join(objectives)
    (folder / "study.yaml").write_text(text if space else text.partition("space:")[0])
    plan = read_plan(str(folder / "study.yaml"))
    history, generator = History(plan), np.random.default_rng(0)
    for index in range(complete):
        params = {key: _any_value(distribution, generator) for key, distribution in plan.space.items()}
        mse, jsd = (1.0, 1.0) if equal else (0.1 / (index + 1), 0.1 * (index + 1))
        history.finish(mse, jsd, params, val__scaled_sliced_wasserstein=mse, val__mean_image_mse=0.2)
    params = {key: _any_value(distribution, generator) for key, distribution in plan.space.items()}
    history.fail(history.begin(params), FailureClass.BUG)
    history.end(history.begin(params), Reason.PRUNED)
    history.begin(params)
    front = history.ledger.front()
    analysis = SearchAnalysis.of(history.ledger, history.events, front[0] if front else None)
    return optuna_study(history.ledger), plan, analysis


def _any_value(distribution: BaseDistribution, generator: np.random.Generator) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[generator.integers(len(distribution.choices))]
    return type(distribution.low)(generator.uniform(distribution.low, distribution.high))


def plots_of(page: Path | None) -> list[str]:
    """The names of the plots of a page that needs nothing from anywhere, with the library of its plots in it once."""
    assert page is not None
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and "Plotly.newPlot(" in text
    assert not re.search(r"<(script|link|img|iframe)\b[^>]*\b(src|href)\s*=", text)
    assert len(re.findall(r"\* plotly\.js v", text)) == 1
    return re.findall(r"<section id='(\w+)'>", text)


@pytest.mark.parametrize(
    ("objectives", "first"),
    [
        ((MSE, JSD), "pareto_front"),
        ((MSE,), "history"),
        ((MSE, JSD, "val/scaled_sliced_wasserstein"), "pareto_front"),
    ],
)
def test_plots_are_one_web_page_that_needs_nothing_else(
    tmp_path: Path, objectives: Sequence[str], first: str, recwarn: pytest.WarningsRecorder
) -> None:
    page = plots.write_plots(*searched(tmp_path, objectives, complete=6), tmp_path / plots.PLOTS)
    assert not list(recwarn)  # a warning would stand in the report on the console
    assert plots_of(page) == [first, "parallel_coordinates", "hypervolume"]
    text = (tmp_path / plots.PLOTS).read_text()
    assert all(name in text.replace("\\u002f", "/") for name in objectives)


def test_enough_trials_have_plots_of_what_mattered_and_of_the_defaults(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    page = plots.write_plots(*searched(tmp_path, (MSE,), complete=40), tmp_path / plots.PLOTS)
    assert not list(recwarn)
    assert plots_of(page)[-2:] == ["importances", "defaults"]
    for section in (tmp_path / plots.PLOTS).read_text().split("<section ")[-2:]:
        assert re.search(r'"(model|optim)\.[a-z_]+[: \w.]*\W', section.rpartition("Plotly.newPlot(")[2])


@pytest.mark.parametrize("objectives", [(MSE, JSD), (MSE,)])
@pytest.mark.parametrize("complete", [0, 1, 2])
def test_few_trials_make_fewer_plots_and_no_error(tmp_path: Path, objectives: Sequence[str], complete: int) -> None:
    names = plots_of(plots.write_plots(*searched(tmp_path, objectives, complete), tmp_path / plots.PLOTS))
    assert not {"importances", "defaults"} & set(names)
    assert ("parallel_coordinates" in names) == ("hypervolume" in names) == (complete > 0)


def test_trials_that_are_all_equal_make_no_error(tmp_path: Path) -> None:
    page = plots.write_plots(*searched(tmp_path, (MSE,), 24, equal=True), tmp_path / plots.PLOTS)
    assert {"history", "hypervolume", "importances"} <= set(plots_of(page))


def test_a_single_training_run_has_plots_without_a_space(tmp_path: Path) -> None:
    page = plots.write_plots(*searched(tmp_path, (MSE, JSD), 1, space=False), tmp_path / plots.PLOTS)
    assert plots_of(page) == ["pareto_front", "hypervolume"]


def test_a_plot_that_fails_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = searched(tmp_path, (MSE, JSD), complete=6)

    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("no plot")

    monkeypatch.setattr(optuna.visualization, "plot_pareto_front", broken)  # the first, which brings the library
    assert plots_of(plots.write_plots(*made, tmp_path / plots.PLOTS)) == ["parallel_coordinates", "hypervolume"]


def test_a_page_that_cannot_be_written_costs_the_plots_alone(tmp_path: Path) -> None:
    made = searched(tmp_path, (MSE, JSD), complete=1)
    assert plots.write_plots(*made, tmp_path / "nowhere" / plots.PLOTS) is None


# -------------------------------------------------------------------------------------------------------------- paths


def test_a_path_is_written_as_one_would_type_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shell_path(tmp_path / "runs" / "digits-1") == "runs/digits-1"
    assert shell_path(Path("/usr/lib")) == "/usr/lib"


@pytest.mark.parametrize("name", ["my runs", "it's", "a$b", "a&b"])
def test_a_path_that_is_printed_can_be_pasted_into_a_shell(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shlex
    import subprocess

    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / name, Path("/elsewhere") / name):
        printed_path = shell_path(path)
        done = subprocess.run(["sh", "-c", f"printf %s {printed_path}"], capture_output=True, text=True, check=False)
        assert done.stdout in (name, str(path)) and shlex.split(printed_path) == [done.stdout]


def test_a_study_is_resumed_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resume_command(tmp_path / "runs" / "a b") == "python -m aae_ray.tune --resume 'runs/a b'"


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (480, 780, "8 to 13 min"),
        (30, 600, "30 s to 10 min"),
        (600, 610, "10 min"),
        (7200, 36000, "2 to 10 h"),
        (0, 0, "0 s"),
        (80000, 400000, "22 h to 5 d"),
    ],
)
def test_a_range_of_time_has_one_unit_where_it_can(low: float, high: float, text: str) -> None:
    assert interval(low, high) == text


def test_a_metric_stands_beside_what_a_perfect_match_gets() -> None:
    metrics = {"test/jsd_nats": 0.2, "test/jsd_nats_floor": 0.05, "quality/parzen_nats": 3.0}
    metrics["quality/parzen_anchor_nats"] = 4.0
    assert with_floor("test/jsd_nats", metrics) == "test/jsd_nats 0.2 (floor 0.05)"
    assert with_floor("quality/parzen_nats", metrics) == "quality/parzen_nats 3 (real images 4)"
