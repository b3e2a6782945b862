"""What a study leaves behind to be read: tables, plots, the best settings, the model card."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from rich.console import Console

from aae_ray.evaluation.final_evaluation import FinalEvaluation
from aae_ray.reporting import report
from aae_ray.reporting.cards import best_config, model_card, resolved, summary
from aae_ray.search.ledger import BUDGET, Ledger, TrialRecord
from aae_ray.search.sampler import OptunaSearcher, create_study
from aae_ray.search.space import Plan, read_plan
from aae_ray.settings import Settings, dotted_fields, replace, setting
from aae_ray.study.study import Outcome, next_commands

SEARCH_SPACES = Path(__file__).parents[2] / "search_spaces"

MSE, JSD = "val/reconstruction_mse", "val/jsd_nats"
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
def ledger() -> Ledger:
    return Ledger(Plan(Settings(), {}))


def finish(ledger: Ledger, mse: float, jsd: float, se: float = 0.01, **params: Any) -> TrialRecord:
    name = f"x{len(ledger.trials)}"
    ledger.begin(name, PARAMS | {key.replace("__", "."): value for key, value in params.items()})
    metrics = {"epoch": 27.0, MSE: mse, JSD: jsd, "val/jsd_nats_se": se}
    ledger.report(name, {"history": [metrics], "finished": True})
    return ledger.end(name)


def printed(renderable: Any, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable)
    return stream.getvalue()


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
    assert report.number(value) == text


def test_a_heading_has_an_arrow_towards_better() -> None:
    assert report.heading(MSE) == f"{MSE} \N{DOWNWARDS ARROW}"
    assert report.heading("val/code_std") == "val/code_std"


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
    assert report.duration(seconds) == text


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
    assert report.describe(params) == text


# ------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("width", [10, 20, 40, 80, 120, 160, 250])
def test_the_front_is_a_table_on_a_console_of_any_width(ledger: Ledger, width: int) -> None:
    best = finish(ledger, 0.0123456, 0.3)
    finish(ledger, 0.02, 0.12345)
    finish(ledger, 0.5, 0.5)
    text = printed(report.front_table(ledger, best, Console(width=width)), width)
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


def test_an_empty_front_is_a_table_too(ledger: Ledger) -> None:
    assert "Pareto front: 0 of 0 trials" in printed(report.front_table(ledger, None, Console(width=80)), 80)


def test_a_log_gets_plain_lines_wide_enough_for_the_table_of_a_study_that_ships(ledger: Ledger) -> None:
    best = finish(ledger, 0.0123456, 0.3)
    best.params = {key: PARAMS[key] for key in read_plan(str(DIGITS)).space}
    stream = io.StringIO()
    console = report.console_for(stream)
    assert not console.is_terminal and console.width >= 180
    console.print(report.front_table(ledger, best, console), report.bullet("label", "text [not markup]"))
    text = stream.getvalue()
    assert "\x1b" not in text and "label       text [not markup]" in text
    for part in ("t0000", "0.0123", "swiss_roll", "deterministic", "256-128", "0.001235"):
        assert part in text


def test_the_outcome_counts_every_end_and_its_reason(ledger: Ledger) -> None:
    finish(ledger, 0.1, 0.1)
    for name, reason in (("a", "pruned"), ("b", "pruned"), ("c", BUDGET)):
        ledger.begin(name, {})
        ledger.end(name, reason)
    ledger.begin("d", {})
    ledger.end("d", failed=True, message="worker died")
    line = report.outcome_line(ledger, 61)
    assert line == "5 trials in 1 min 1 s: 1 complete, 3 stopped early, 1 failed (1 budget, 1 error, 2 pruned)"


def test_noise_is_told_where_the_front_differs_by_no_more(ledger: Ledger) -> None:
    assert report.noise_warning(ledger) is None
    finish(ledger, 0.1, 0.300, se=0.01)
    assert report.noise_warning(ledger) is None
    finish(ledger, 0.2, 0.295, se=0.01)
    warning = report.noise_warning(ledger)
    assert warning is not None and "0.0050" in warning and "0.0100" in warning
    finish(ledger, 0.3, 0.1, se=0.01)
    assert report.noise_warning(ledger) is None


# -------------------------------------------------------------------------------------------------------------- cards


def test_the_summary_is_a_markdown_table_of_the_front(ledger: Ledger) -> None:
    finish(ledger, 0.2, 0.1)
    finish(ledger, 0.1, 0.2)
    finish(ledger, 0.3, 0.3)
    ledger.begin("gone", {})
    ledger.end("gone")
    lines = summary(ledger).splitlines()
    assert lines[0] == "4 trials: 3 complete, 1 stopped, 0 failed."
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and [row.split("|")[1].strip() for row in table] == [
        "trial",
        "---",
        "t0001",
        "t0000",
    ]
    assert "| 0.1000 | 0.2000 | 8 | swiss_roll |" in table[2]


def test_a_summary_of_nothing_is_text_too(ledger: Ledger) -> None:
    assert summary(ledger).startswith("0 trials: 0 complete, 0 stopped, 0 failed.")


def test_the_card_tells_what_the_decoder_is_and_how_good() -> None:
    run = replace(Settings(), {"model.prior": "mixture", "model.latent_dim": 4, "model.prior_scale": 2.5})
    card = model_card(
        "aae-digits-decoder",
        TrialRecord(7, "ab", {}, epoch=27),
        run,
        0,
        FinalEvaluation(
            {"test/reconstruction_mse": 0.01234, "test/jsd_nats": 0.2, "other": 1.0}, remarks=["no praise"]
        ),
        "digits-1",
    )
    assert card.startswith("# aae-digits-decoder\n") and "Decoder of trial t0007 of study digits-1" in card
    assert "4-dimensional mixture prior of scale 2.5" in card and "for 27 epochs" in card
    assert (
        "| test/reconstruction_mse | 0.0123 |" in card
        and "| test/jsd_nats | 0.2000 | nats |" in card
        and "other" not in card
        and "\n* no praise\n" in card
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
    told = yaml.safe_load(resolved(plan))
    assert told.keys() == {"study", "run", "space", "start"}
    assert {f"study.{key}" for key in told["study"]} | told["run"].keys() | told[
        "space"
    ].keys() == dotted_fields().keys()
    assert told["start"] == [{"model.hidden": "16", "optim.beta2": 0.2}] and told["study"]["resources_per_worker"] == {
        "GPU": 1.0
    }
    again = tmp_path / "again.yaml"
    again.write_text(resolved(plan))
    assert read_plan(str(again)) == plan


@pytest.mark.parametrize("path", sorted(SEARCH_SPACES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_resolved_study_is_a_file_of_the_same_study(path: Path, tmp_path: Path) -> None:
    plan = read_plan(str(path))
    again = tmp_path / "again.yaml"
    again.write_text(resolved(plan))
    assert read_plan(str(again)) == plan


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
) -> tuple[optuna.Study, Plan]:
    """A study with trials of every kind of end."""
    text = PLOTTED % ", ".join(objectives)
    (folder / "study.yaml").write_text(text if space else text.partition("space:")[0])
    plan = read_plan(str(folder / "study.yaml"))
    searcher = OptunaSearcher(create_study(plan, "plotted", folder), plan)
    for index in range(complete + 3):
        searcher.suggest(str(index))
        values = {
            name: 1.0 if equal else 0.1 * (index + 1) ** (1 if place % 2 else -1)
            for place, name in enumerate(objectives)
        }
        result = {
            "epoch": 27 if index < complete else 3,
            "finished": index < complete,
            "failed": index == complete,
            **values,
        }
        searcher.on_trial_result(str(index), result)
        if index <= complete + 1:
            searcher.on_trial_complete(str(index), result)
    searcher.close()
    return searcher.study, plan


def check_page(page: Path) -> None:
    """A web page that needs nothing from anywhere, with the library of its plots in it once."""
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and "Plotly.newPlot(" in text
    assert not re.search(r"<(script|link|img|iframe)\b[^>]*\b(src|href)\s*=", text)
    assert len(re.findall(r"\* plotly\.js v", text)) == 1


@pytest.mark.parametrize(
    ("objectives", "first"),
    [
        ((MSE, JSD), "pareto_front.html"),
        ((MSE,), "history.html"),
        ((MSE, JSD, "val/sliced_wasserstein"), "pareto_front.html"),
    ],
)
def test_plots_are_web_pages_that_need_nothing_else(
    tmp_path: Path, objectives: Sequence[str], first: str, recwarn: pytest.WarningsRecorder
) -> None:
    study, plan = searched(tmp_path, objectives, complete=6)
    pages = report.write_plots(study, plan, tmp_path / "plots")
    assert not list(recwarn)  # a warning would stand in the report on the console
    assert [page.name for page in pages] == [first, "parallel_coordinates.html", "importances.html"]
    for page in pages:
        check_page(page)
    front = pages[0].read_text()
    assert all(name in front.replace("\\u002f", "/") for name in objectives)


@pytest.mark.parametrize("objectives", [(MSE, JSD), (MSE,)])
@pytest.mark.parametrize("complete", [0, 1, 2])
def test_few_trials_make_fewer_plots_and_no_error(tmp_path: Path, objectives: Sequence[str], complete: int) -> None:
    study, plan = searched(tmp_path, objectives, complete)
    names = [page.name for page in report.write_plots(study, plan, tmp_path / "plots")]
    assert "importances.html" not in names and ("parallel_coordinates.html" in names) == (complete > 0)


def test_trials_that_are_all_equal_make_no_error(tmp_path: Path) -> None:
    study, plan = searched(tmp_path, (MSE, JSD), 6, equal=True)
    assert "pareto_front.html" in [page.name for page in report.write_plots(study, plan, tmp_path / "plots")]


def test_a_single_training_run_has_plots_without_a_space(tmp_path: Path) -> None:
    study, plan = searched(tmp_path, (MSE, JSD), 1, space=False)
    assert [page.name for page in report.write_plots(study, plan, tmp_path / "plots")] == ["pareto_front.html"]


# -------------------------------------------------------------------------------------------------------------- paths


def test_a_path_is_told_as_one_would_type_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert report.shell_path(tmp_path / "runs" / "digits-1") == "runs/digits-1"
    assert report.shell_path(Path("/usr/lib")) == "/usr/lib"


@pytest.mark.parametrize("name", ["my runs", "it's", "a$b", "a&b"])
def test_a_path_that_is_told_can_be_pasted_into_a_shell(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shlex
    import subprocess

    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / name, Path("/elsewhere") / name):
        told = report.shell_path(path)
        done = subprocess.run(["sh", "-c", f"printf %s {told}"], capture_output=True, text=True, check=False)
        assert done.stdout in (name, str(path)) and shlex.split(told) == [done.stdout]


# ------------------------------------------------------------------------------------------------- what to type next


@pytest.mark.parametrize(("champion", "version"), [(True, ""), (False, " --version 2")])
def test_the_images_that_are_offered_are_those_of_the_decoder_that_was_registered(
    tmp_path: Path, champion: bool, version: str
) -> None:
    made = {"name": "my decoder", "version": 2, "champion": champion, "reason": ""}
    outcome = Outcome(tmp_path, Ledger(Plan(Settings(), {})), None, made, False, True, {})
    (told,) = [text for label, text in next_commands(outcome, "http://host") if label == "images"]
    assert told.startswith(
        f"python -m aae_ray.generate 'my decoder' --count 64 --out samples.png{version} --tracking-uri"
    )
