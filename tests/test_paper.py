"""The tables of the paper and README's table of tasks against the code."""

import json
import re
from pathlib import Path

import pytest

from aae_ray.autoencoder.phases import TASKS
from aae_ray.study.space import read_plan
from aae_ray.training.metrics import METRICS
from benchmarks import paper

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
    section, priors, posteriors, file, _ = tasks_in_readme()[task]
    assert section in TASKS[task].section or TASKS[task].section.startswith(section)
    path = ROOT / "search_spaces" / file.strip("`")
    plan = read_plan(str(path))
    searched = plan.space.get("task")
    assert plan.settings.task == task or (searched is not None and task in searched.choices)
    for told, key in ((priors, "model.prior"), (posteriors, "model.posterior")):
        space = plan.space.get(key)
        values = list(space.choices) if space is not None else [plan.settings.model_dump()["model"][key[6:]]]
        assert set(values) <= set(re.split(r", ", told)), f"{file}: {key}"
    assert plan.start or not plan.space, "the first point tried is the paper's"


@pytest.mark.parametrize("name", paper.TABLES)
def test_every_table_has_a_study_that_can_run(name: str) -> None:
    table = paper.TABLES[name]
    plan = paper.plan_for(table, [3, 4], ["train.epochs=7"])
    assert table.metric in METRICS and plan.settings.train.epochs == 7 and plan.settings.study.finalists == "all"
    assert plan.start == ({"seed": 3}, {"seed": 4}) and list(plan.space) == ["seed"]
    assert plan.settings.study.budget.trials == 2 and not plan.settings.health.stop


def test_the_page_tells_means_and_what_was_not_run() -> None:
    found = {
        "metric": paper.ERROR,
        "tests": {"0": {paper.ERROR: 0.03}, "1": {paper.ERROR: 0.05}},
        "settings": {"train.epochs": 40, "task": "semi_supervised"},
        "hours": 1.25,
        "date": "2026-01-01",
        "machine": {"cores": 2, "processor": "a processor", "torch": "2.13.0"},
    }
    text = paper.page({"semi_supervised_100": found})
    assert "4.00 ± 1.41 (3.00, 5.00) | 0, 1 | 40 | 1.2 | 2026-01-01 |" in text
    assert text.count("not run") == len(paper.TABLES) - 1 + text.count("row that was not run")


def test_the_page_in_the_repository_is_what_its_results_say() -> None:
    kept = {file.stem: json.loads(file.read_text()) for file in (ROOT / "docs" / "paper").glob("*.json")}
    results = {name: kept[name] for name in paper.TABLES if name in kept}
    assert (ROOT / "docs" / "paper.md").read_text() == paper.page(results, kept.get(paper.COMPARISON))
