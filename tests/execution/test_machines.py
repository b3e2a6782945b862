"""Machines on demand: what is read from Ray, what is asked of it, and what is told."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import yaml

from aae_ray.execution import market as module
from aae_ray.execution.market import Market, machines_now, market, markets_of, nodes_on_demand
from aae_ray.reporting.text import machine_hours, machines_line
from aae_ray.search.events import MachinesChanged
from aae_ray.search.market import Machines, OnDemandFallback
from aae_ray.settings import StudySettings

REPOSITORY = Path(__file__).parents[2]
CONTENT: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster/gpu.yaml").read_text())
for each in CONTENT["available_node_types"].values():
    each["resources"] = each["resources"] or {"CPU": 4, "GPU": 1}  # as Ray fills them in
GPU = StudySettings(resources_per_worker={"GPU": 1})


def test_the_cluster_s_file_says_which_machines_are_on_demand() -> None:
    assert markets_of(CONTENT) == {"gpu-spot": "spot", "gpu-on-demand": "on-demand"}
    assert nodes_on_demand(CONTENT, {"GPU": 1}) == [{"CPU": 4, "GPU": 1}] * 4
    assert markets_of({}) == {} and nodes_on_demand({}, {"GPU": 1}) == []
    cpus = {"labels": {"market": "on-demand"}, "max_workers": 4, "resources": {"CPU": 16}}
    kinds = {"cpu": cpus, **CONTENT["available_node_types"]}  # a kind of no use comes first in the file
    assert nodes_on_demand({**CONTENT, "available_node_types": kinds}, {"GPU": 1}) == [{"CPU": 4, "GPU": 1}] * 4


def test_machines_are_counted_as_ray_tells_them(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {
        "a": {"state": "CREATED", "bundles": {0: {"GPU": 1.0}}},
        "b": {"state": "PENDING", "bundles": {0: {"GPU": 1.0, "CPU": 1.0}, 1: {"GPU": 1.0}}},
        "c": {"state": "RESCHEDULING", "bundles": {0: {"GPU": 1.0}}},
        "d": {"state": "PENDING", "bundles": {0: {"CPU": 1.0}}},  # of another, or a gang's helper
        "e": {"state": "REMOVED", "bundles": {0: {"GPU": 1.0}}},
    }
    nodes = [
        {"Alive": True, "Labels": {"market": "spot", "ray.io/node-id": "1"}},
        {"Alive": False, "Labels": {"market": "spot"}},
        {"Alive": True, "Labels": {}},
        {"Alive": True},
    ]
    pending = [SimpleNamespace(ray_node_type_name=name) for name in ("gpu-spot", "gpu-on-demand", "head")]
    context = SimpleNamespace(gcs_address="10.0.0.1:6379")
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray.util, "placement_group_table", lambda: groups)
    monkeypatch.setattr(module, "get_cluster_status", lambda *_, timeout: SimpleNamespace(pending_nodes=pending))
    found = machines_now({"GPU": 1}, markets_of(CONTENT))
    assert found == Machines(3, {"spot": 1}, {"spot": 1, "on-demand": 1})


class Looks:
    """A market with a clock of its own, whose machines are given, and which records what it does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.seen = 0.0, Machines(2, {}, {})
        self.asked: list[int] = []
        self.told: list[MachinesChanged] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.market = Market(OnDemandFallback(600, 4), lambda: self.seen, self.asked.append, self.told.append)

    def at(self, now: float, machines: Machines | None = None) -> None:
        self.now, self.seen = now, machines or self.seen
        self.market.look()


def test_what_is_asked_for_is_asked_of_ray_at_each_look_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)
    for now in range(0, 700, 5):
        looks.at(float(now))
    for later in (800.0, 810.0):
        looks.at(later, Machines(0, {"on-demand": 2}, {}))
    assert looks.asked == [2] * 11 + [0]  # other jobs may have replaced it: Ray Train's and Data's do, every 20 s
    told = [(event.present, event.asked_on_demand) for event in looks.told]
    assert told == [({}, 2), ({"on-demand": 2}, 2), ({"on-demand": 2}, 0)]
    assert looks.told[0].waited == 600


def test_a_ray_that_does_not_answer_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)
    looks.at(0)

    def silent() -> Machines:
        raise TimeoutError

    looks.market.see = silent
    looks.at(5000)
    assert looks.asked == [] and looks.told == []


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """How many bundles Ray was asked for, each time; the cluster's file lies where `ray up` puts it."""
    asked: list[int] = []

    def request(*, bundles: list[dict[str, float]], bundle_label_selectors: list[dict[str, str]]) -> None:
        assert bundles == [{"GPU": 1}] * len(bundles)
        assert bundle_label_selectors == [{"market": "on-demand"}] * len(bundles)
        asked.append(len(bundles))

    monkeypatch.setattr(module, "request_resources", request)
    monkeypatch.setattr(module, "BOOTSTRAP", str(tmp_path / "bootstrap.yaml"))
    (tmp_path / "bootstrap.yaml").write_text(yaml.safe_dump(CONTENT))
    return asked


def test_no_request_outlives_its_study(requests: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray keeps a request for ever, also that of a driver that has died, and the machines with it."""
    now, polled = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "machines_now", lambda *_: Machines(3, {}, {}))
    with pytest.raises(KeyboardInterrupt), market(GPU, lambda: polled.append(1), lambda _: None) as poll:
        for now[0] in (0.0, 300.0, 601.0):
            poll()
        raise KeyboardInterrupt
    assert requests == [0, 3, 0]
    assert len(polled) == 3


@pytest.mark.parametrize("case", ["laptop", "off", "one market", "too large"])
def test_where_there_is_no_choice_nothing_is_looked_at(case: str, requests: list[int], tmp_path: Path) -> None:
    study, content, path = GPU, dict(CONTENT), tmp_path / "bootstrap.yaml"
    if case == "off":
        study = StudySettings.model_validate({**GPU.model_dump(), "cluster": {"on_demand_after": None}})
    if case == "too large":
        study = StudySettings(resources_per_worker={"GPU": 8})
    if case == "one market":
        kinds = {name: kind for name, kind in CONTENT["available_node_types"].items() if name != "gpu-spot"}
        content = {**CONTENT, "available_node_types": kinds}
    path.write_text(yaml.safe_dump(content))
    if case == "laptop":
        path.unlink()

    def poll() -> None:
        pass

    with market(study, poll, lambda _: None) as returned:
        assert returned is poll
    assert requests == []


def test_it_is_told_in_words() -> None:
    asked = MachinesChanged(present={"spot": 2}, asked_on_demand=1, waited=600)
    assert machines_line(asked) == (
        "machines: 2 on spot; 1 worker is to have a machine on demand, as none came on spot for 10 min 0 s"
    )
    assert machines_line(MachinesChanged(present={}, asked_on_demand=0)) == "machines: none"
    assert machine_hours({"spot": 2.5, "on-demand": 0.25}) == "0.25 h on-demand, 2.5 h spot"
    assert machine_hours({}) == ""


@pytest.mark.slow
def test_a_ray_itself_tells_its_machines_and_takes_the_request(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A node with the label, one worker that has it and one that waits; and what the autoscaler of today, which
    `ray up` starts, then reads. What it would launch for that is in tests/cluster/test_gpu_yaml.py."""
    code = """
        import ray, time

        ray.init(num_cpus=1, labels={"market": "spot"}, include_dashboard=False, logging_level="ERROR")
        from ray._raylet import GcsClient
        from ray.autoscaler.v2.sdk import get_cluster_resource_state

        from aae_ray.execution import market
        from aae_ray.settings import StudySettings

        def asked():
            state = get_cluster_resource_state(GcsClient(ray.get_runtime_context().gcs_address))
            return [
                (each.count, [str(c.label_key) + "=" + ",".join(c.label_values) for s in each.request.label_selectors
                              for c in s.label_constraints])
                for constraint in state.cluster_resource_constraints for each in constraint.resource_requests
            ]

        has_it, waits = (ray.util.placement_group([{"CPU": 1}]) for _ in range(2))
        ray.get(has_it.ready(), timeout=60)
        while waits.id.hex() not in ray.util.placement_group_table():
            time.sleep(0.1)
        print(market.machines_now({"CPU": 1}, {}))
        market.LOOK_SECONDS = 0
        study = StudySettings.model_validate({"cluster": {"on_demand_after": 0.01}})
        with market.market(study, lambda: None, lambda event: print(event.asked_on_demand)) as poll:
            poll()
            time.sleep(0.1)
            poll()
            print(asked())
        print(asked())
        ray.shutdown()
    """
    home = tmp_path_factory.mktemp("home")
    kinds = {
        "head": {"resources": {"CPU": 0}},
        "a": {"labels": {"market": "spot"}, "resources": {"CPU": 1}, "max_workers": 2},
        "b": {"labels": {"market": "on-demand"}, "resources": {"CPU": 1}, "max_workers": 2},
    }
    content = {"head_node_type": "head", "max_workers": 2, "available_node_types": kinds}
    (home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "HOME": str(home), "RAY_enable_autoscaler_v2": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    if "timed out during startup" in done.stderr:
        pytest.skip("this machine is too busy to start a Ray within the 30 s that Ray gives itself")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "Machines(waiting=1, present={'spot': 1}, coming={})",
        "0",
        "1",
        "[(1, ['market=on-demand'])]",
        "[]",
    ]
