"""What monitoring is told of a study, and the Grafana dashboard that asks for it."""

import json
import re
from pathlib import Path

import pytest

from aae_ray.search.events import MachinesChanged, StudyEnded
from aae_ray.search.gauges import GAUGES, STUDY, Observed, samples
from aae_ray.search.outcomes import FailureClass, Reason
from tests.search.histories import History

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana" / "aae_ray.json"
PREFIX = "ray_"  # of all that Ray exports; tests/execution/test_study_metrics.py reads it from Ray itself


def told(history: History, **given: int) -> dict[str, float]:
    observed = Observed(history.ledger, history.now, **{"gangs": 2, **given})
    found = {}
    for sample in samples(observed):
        assert sample.labels[STUDY] == "study-1" and set(sample.labels) <= {STUDY, sample.gauge.label}
        label = next((value for key, value in sample.labels.items() if key != STUDY), None)
        found[sample.gauge.name + (f"/{label}" if label else "")] = sample.value
    return found


def test_a_study_as_numbers() -> None:
    history = History(study__workers_per_trial=2, study__price_per_worker_hour=3.0)
    history.finish(0.01, 0.02, training=1500, evaluation=300, wait=1800)
    number = history.begin()
    history.report(number, 3, 0.1, training=30, evaluation=6, wait=36)
    history.now += 18
    history.fail(number, FailureClass.PREEMPTED, retry=True)
    history.end(history.begin(), Reason.PRUNED)
    numbers = told(history, gangs=4, unsent=7, refused=1)
    states = {"waiting": 1, "running": 0, "paused": 0, "complete": 1, "stopped": 1, "failed": 0}
    assert {name: numbers[f"aae_trials/{name}"] for name in states} == states
    assert numbers["aae_trials_planned"] == 24 and numbers["aae_front_trials"] == 1 and numbers["aae_gangs"] == 4
    assert 0.5 < numbers["aae_hypervolume"] < 1
    hours = [numbers[f"aae_worker_hours/{activity}"] for activity in ("training", "evaluation", "waiting")]
    assert hours == pytest.approx([2 * 1530 / 3600, 2 * 306 / 3600, 2 * 18 / 3600])
    assert numbers["aae_cost"] == pytest.approx(3.0 * sum(hours))
    assert numbers["aae_lost_worker_hours/preempted"] == pytest.approx(2 * 18 / 3600)
    assert numbers["aae_failed_attempts/preempted"] == 1
    assert (numbers["aae_unsent_records"], numbers["aae_refused_records"]) == (7, 1)
    assert numbers["aae_updated_seconds"] == history.now


def test_machines_are_told_by_market_and_with_what_they_cost() -> None:
    history = History(study__cluster__price_per_spot_hour=0.2, study__cluster__price_per_on_demand_hour=0.6)
    history.add(MachinesChanged(present={"spot": 2}, asked_on_demand=0))
    history.now += 1800 - 1
    history.add(MachinesChanged(present={"spot": 1, "on-demand": 1}, asked_on_demand=1))
    history.now += 3600 - 1
    history.add(StudyEnded())
    assert history.ledger.machine_cost == pytest.approx(2 * 0.2 + 0.6)
    numbers = told(history)
    hours = [numbers[f"aae_machine_hours/{market}"] for market in ("spot", "on-demand")]
    assert hours == pytest.approx([2.0, 1.0]) and numbers["aae_machine_cost"] == pytest.approx(1.0)


def test_no_cost_of_machines_is_told_where_a_price_is_missing() -> None:
    history = History(study__cluster__price_per_spot_hour=0.2)
    history.add(MachinesChanged(present={"spot": 2, "on-demand": 1}, asked_on_demand=1))
    history.add(StudyEnded())
    assert history.ledger.machine_cost is None and "aae_machine_cost" not in told(history)


def test_a_study_that_has_only_begun_has_numbers_too() -> None:
    numbers = told(History())
    assert numbers["aae_hypervolume"] == 0 and numbers["aae_trials/running"] == 0 and "aae_cost" not in numbers


def test_the_hypervolume_is_that_of_trials_that_fulfil_the_constraints() -> None:
    history = History(study__constraints=["val/reconstruction_mse <= 0.001"])
    history.finish(0.01, 0.02)
    assert told(history)["aae_hypervolume"] == 0


def test_the_dashboard_asks_for_what_there_is_and_for_all_of_it() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    variables = [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    gauges = {PREFIX + gauge.name: gauge for gauge in GAUGES}
    asked = set()
    for query in [*queries, *variables]:
        assert query.count("(") == query.count(")") and query.count("{") == query.count("}")
        names = set(re.findall(rf"\b{PREFIX}\w+", query))
        assert names and names <= gauges.keys(), query
        asked |= names
        labels = {label for name in names if (label := gauges[name].label)} | {STUDY}
        used = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in re.split(r",\s*", group)}
        used |= set(re.findall(r"(\w+)=~?\"", query))
        assert used <= labels, query
    assert asked == gauges.keys()


def test_each_panel_of_the_dashboard_has_its_place() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    covered: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not covered & cells, panel["title"]
        covered |= cells
        legends = {word for target in panel["targets"] for word in re.findall(r"{{(\w+)}}", target["legendFormat"])}
        grouped = " ".join(target["expr"] for target in panel["targets"])
        assert all(word in grouped for word in legends), panel["title"]
