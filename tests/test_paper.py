"""The tables of the paper and README's table of tasks against the code."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from aae_ray.autoencoder.phases import TASKS
from aae_ray.errors import UserError
from aae_ray.evaluation.metrics import METRICS
from aae_ray.reporting.report import StudyReport
from aae_ray.search import events
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import StudyEnd
from aae_ray.search.space import read_plan, record_plan
from aae_ray.settings import replace, setting
from benchmarks import paper, paper_page
from tests.search.test_conductor import begin

ROOT = Path(__file__).parent.parent


def tasks_in_readme() -> dict[str, list[str]]:
    text = (ROOT / "README.md").read_text()
    table = text[text.index("| task |") :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_readme_has_a_row_for_every_task_in_the_order_of_the_code() -> None:
    assert list(tasks_in_readme()) == list(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_a_row_agrees_with_the_code_and_its_file(task: str) -> None:
    section, priors, posteriors, file, result = tasks_in_readme()[task]
    assert section == TASKS[task].section.partition(":")[0] and result
    path = ROOT / "search_spaces" / file.strip("`")
    plan = read_plan(str(path))
    searched = plan.space.get("task")
    assert plan.settings.task == task or (searched is not None and task in searched.choices)
    for told, key in ((priors, "model.prior"), (posteriors, "model.posterior")):
        space = plan.space.get(key)
        values = list(space.choices) if space is not None else [plan.settings.model_dump()["model"][key[6:]]]
        assert set(values) == set(re.split(r", ", told)), f"{file}: {key}"


LIKE_ALL = {  # appendix A: of every experiment on MNIST
    "model.posterior": "deterministic",
    "model.initialization": "normal",
    "optim.algorithm": "sgd",
    "optim.reconstruction_lr": 0.01,
    "optim.discrimination_lr": 0.1,
    "optim.regularization_lr": 0.1,
    "optim.reconstruction_momentum": 0.9,
    "optim.adversarial_momentum": 0.1,
    "train.batch_size": 100,
    "train.reconstruction_reduction": "half_sum",
    "train.label_noise": 0.0,
    "train.input_warp": 0.0,
}
WIDE = {"model.hidden": (1000, 1000), "model.discriminator_hidden": (1000, 1000), "model.normalization": "none"}
CLASSIFYING = {"optim.classification_lr": 0.1, "optim.classification_momentum": 0.9, "train.input_noise": 0.3}
GAUSSIAN = {"model.prior": "gaussian", "model.prior_scale": 1.0}
PRESETS: dict[str, dict[str, object]] = {  # what the paper says of each system; facts that it leaves out are not here
    "unsupervised": {**WIDE, "model.latent_dim": 8, "model.prior": "gaussian", "model.prior_scale": 5.0},
    "label_informed": {**WIDE, "model.latent_dim": 2, "model.prior": "mixture", "data.labels": 10_000.0},
    "supervised": {**WIDE, **GAUSSIAN, "model.latent_dim": 15},
    "semi_supervised": {**WIDE, **GAUSSIAN, **CLASSIFYING, "model.latent_dim": 10, "data.labels": 100.0},
    "clustering": {
        **GAUSSIAN,
        "model.hidden": (3000, 3000),
        "model.discriminator_hidden": (3000, 3000),
        "model.normalization": "batch",
        "model.latent_dim": 5,
        "model.clusters": 16,
        "train.input_dropout": 0.2,
    },
    "reduction": {**WIDE, **GAUSSIAN, "model.latent_dim": 2, "model.clusters": 20},
    "semi_supervised_reduction": {**WIDE, **GAUSSIAN, **CLASSIFYING, "model.latent_dim": 2, "data.labels": 1000.0},
}


@pytest.mark.parametrize("task", PRESETS)
def test_the_first_point_tried_is_the_papers(task: str) -> None:
    file = tasks_in_readme()[task][3].strip("`")
    plan = read_plan(str(ROOT / "search_spaces" / file))
    first = replace(plan.settings, plan.start[0])
    found = {key: setting(first, key) for key in LIKE_ALL | PRESETS[task]}
    assert found == LIKE_ALL | PRESETS[task]
    assert set(PRESETS) == set(TASKS) - {"vae", "wae_mmd"}, "the paper has neither of its own"


@pytest.mark.parametrize("name", paper_page.TABLES)
def test_every_table_has_a_study_that_can_run(name: str) -> None:
    table = paper_page.TABLES[name]
    plan = paper.plan_for(table, [3, 4], ["train.epochs=7"])
    assert table.metric in METRICS and plan.settings.train.epochs == 7 and plan.settings.study.finalists == "all"
    assert plan.start == ({"seed": 3}, {"seed": 4}) and list(plan.space) == ["seed"]
    assert plan.settings.study.budget.trials == 2 and not plan.settings.health.stop


@pytest.mark.parametrize("name", paper_page.COMPARISONS)
def test_the_sides_of_a_comparison_search_on_equal_terms(name: str) -> None:
    """As many trials for each side, the same data, epochs and networks; what one side has alone is searched there."""
    comparison = paper_page.COMPARISONS[name]
    plans = [paper.tuned(comparison, side, []) for side in comparison.sides]
    assert len({plan.settings.study.budget.trials for plan in plans}) == 1
    settled = {change.partition("=")[0] for sides in comparison.sides.values() for change in sides}
    shared = [
        {key: value for key, value in paper.shaping(plan.settings).items() if key not in settled} for plan in plans
    ]
    assert shared.count(shared[0]) == len(plans) > 1
    assert all(plan.space and plan.start and not settled & plan.space.keys() for plan in plans)
    again = paper.confirmed(plans[0], plans[0].start[0], [5, 6])
    assert again.start == ({"seed": 5}, {"seed": 6}) and not again.settings.study.constraints


@pytest.mark.parametrize("name", paper_page.COMPARISONS)
def test_a_comparison_is_measured_on_seeds_that_no_side_was_chosen_by(name: str) -> None:
    for side in paper_page.COMPARISONS[name].sides:
        plan = paper.tuned(paper_page.COMPARISONS[name], side, [])
        run = plan.settings
        trained = {run.seed + step for step in range(run.study.seeds_per_trial)}
        assert "seed" not in plan.space and not trained & set(paper.default_seeds(name))
    assert {tuple(paper.default_seeds(table)) for table in paper_page.TABLES} == {(0, 1, 2)}


def test_a_comparison_has_a_row_for_each_metric_and_no_blank() -> None:
    values = {key: [1.0, 3.0] for key in paper_page.COMPARED}
    sides = list(paper_page.COMPARISONS["adversarial_loss"].sides)
    found = {
        "command": "python benchmarks/paper.py adversarial_loss",
        "rows": {sides[0]: values, sides[1]: {**values, "test/kl_aggregate_nats": []}},
        "tuned": {side: {"trials": 24, "settings": {"train.epochs": 7}} for side in sides},
        "seeds": [0, 1],
        "hours": 0.5,
        "date": "2026-01-01",
        "machine": {"cores": 2, "processor": "a processor", "torch": "2.13.0"},
    }
    text = paper_page.page({"adversarial_loss": found})
    assert "| `test/reconstruction_mse` | 2 ± 1.4 | 2 ± 1.4 |" in text
    assert "| `test/kl_aggregate_nats` | 2 ± 1.4 | has none |" in text


def test_the_page_tells_means_and_what_was_not_run() -> None:
    found = {
        "metric": paper_page.ERROR,
        "command": "python benchmarks/paper.py semi_supervised_100",
        "tests": {"0": {paper_page.ERROR: 0.03}, "1": {paper_page.ERROR: 0.05}},
        "settings": {"train.epochs": 40, "task": "semi_supervised"},
        "hours": 1.25,
        "date": "2026-01-01",
        "machine": {"cores": 2, "processor": "a processor", "torch": "2.13.0"},
    }
    text = paper_page.page({"semi_supervised_100": found})
    assert "4.00 ± 1.41 (3.00, 5.00) | 0, 1 | 40 | 1.2 | 2026-01-01 |" in text
    assert text.count("not run") == len(paper_page.TABLES) - 1 + text.count("row that was not run")


def test_a_seed_without_a_score_is_told_and_breaks_no_page() -> None:
    """A Parzen score is refused where its window lies at the grid's edge."""
    found: dict[str, Any] = {
        "metric": paper_page.PARZEN,
        "command": "python benchmarks/paper.py likelihood",
        "tests": {"0": {paper_page.PARZEN: 300.0, "quality/coverage": 0.5}, "1": {"quality/coverage": 0.6}},
        "settings": {"train.epochs": 8},
        "hours": 1.0,
        "date": "2026-01-01",
        "machine": {"cores": 2, "processor": "a processor", "torch": "2.13.0"},
    }
    assert "| 300.00 (300.00) | 0, 1; 1 without a score | 8 |" in paper_page.page({"likelihood": found})
    del found["tests"]["0"][paper_page.PARZEN]
    assert "| no score | 0, 1; 2 without a score | 8 |" in paper_page.page({"likelihood": found})


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "paper").glob("*.json")), ids=lambda file: file.stem)
def test_the_command_beside_a_result_runs_the_settings_it_was_measured_with(file: Path) -> None:
    found = json.loads(file.read_text())
    given = [int(seed) for seed in found["command"].partition("--seeds")[2].split()]
    seeds = found["seeds"] if file.stem in paper_page.COMPARISONS else list(map(int, found["tests"]))
    assert sorted(given or paper.default_seeds(file.stem)) == sorted(seeds)
    if file.stem in paper_page.COMPARISONS:
        for side, kept in found["tuned"].items():
            plan = paper.tuned(paper_page.COMPARISONS[file.stem], side, [])
            settings = paper.shaping(paper.confirmed(plan, kept["params"], found["seeds"]).settings)
            assert {key: settings[key] for key in kept["settings"]} == kept["settings"], side
        return
    _, script, table, *arguments = found["command"].split()
    assert (script, table) == ("benchmarks/paper.py", file.stem)
    overrides = [argument for argument in arguments if "=" in argument]
    settings = paper.shaping(paper.plan_for(paper_page.TABLES[table], [0], overrides).settings)
    assert {key: settings[key] for key in found["settings"]} == found["settings"]


def test_the_page_in_the_repository_is_what_its_results_say() -> None:
    kept = {file.stem: json.loads(file.read_text()) for file in (ROOT / "docs" / "paper").glob("*.json")}
    assert (ROOT / "docs" / "paper.md").read_text() == paper_page.page(kept)


def test_the_study_beside_the_clusters_ends_with_the_settings_of_their_row() -> None:
    plan = read_plan(str(ROOT / "docs" / "paper" / "clustering_16_study.yaml"))
    found = json.loads((ROOT / "docs" / "paper" / "clustering_16.json").read_text())
    assert {point["seed"] for point in plan.start} == {0, 1, 2} and len(plan.start) == plan.settings.study.budget.trials
    settings = paper.shaping(replace(plan.settings, plan.start[-1]))
    assert {key: settings[key] for key in found["settings"]} == found["settings"]


@pytest.mark.parametrize(
    ("interrupted", "measured", "told"),
    [
        (False, ["0", "1"], None),
        (True, ["0", "1"], "the study was interrupted"),
        (False, ["0"], "t0001 was not measured"),
    ],
)
def test_a_row_is_of_all_its_seeds(tmp_path: Path, interrupted: bool, measured: list[str], told: str | None) -> None:
    table = paper_page.TABLES["clustering_16"]
    plan = paper.plan_for(table, [0, 1], [])
    data = events.DataRecord(name="mnist", digest="d", shape=(1, 28, 28), classes=10, train=9, val=9, test=9)
    started = events.StudyStarted(
        study_id="s", plan=record_plan(plan), data=data, versions={}, provenance={}, host="h", pid=1
    )
    ledger = Ledger.replay([started])
    for seed in (0, 1):
        ledger.apply(events.Suggested(number=seed, params={"seed": seed}))
        if str(seed) in measured:
            ledger.apply(events.Measured(number=seed, metrics={paper_page.ERROR: 0.2}, remarks=(), tags={}))
    ledger.apply(events.StudyStopped(end=StudyEnd.USER) if interrupted else events.StudyEnded())
    outcome = StudyReport(tmp_path, ledger, "sqlite:///mlflow.db", None, 0, [], None)
    if told is None:
        assert list(paper.result(table, plan, outcome, "")["tests"]) == ["0", "1"]
        return
    with pytest.raises(UserError, match=told):
        paper.result(table, plan, outcome, "")


def test_a_row_goes_on_with_its_own_study_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, gone_on = paper_page.TABLES["clustering_30"], []
    monkeypatch.setattr(paper, "resume_study", lambda name, *_: gone_on.append(name))
    plan = paper.plan_for(table, [0, 1], ["train.epochs=60"])
    begin(tmp_path, plan).journal.close()
    for other in (
        paper.plan_for(table, [0, 1], ["train.epochs=61"]),
        paper.plan_for(table, [0, 2], ["train.epochs=60"]),
    ):
        with pytest.raises(UserError, match="has other settings or seeds than this row"):
            paper.resumed(str(tmp_path), other)
    assert gone_on == []
    paper.resumed(str(tmp_path), paper.plan_for(table, [0, 1], ["train.epochs=60", "data.path=elsewhere"]))
    assert gone_on == [str(tmp_path)]
