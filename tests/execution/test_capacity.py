"""What fits on the nodes of a cluster, and on those that an autoscaler may bring."""

from pathlib import Path

import pytest
import ray
import yaml
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

from aae_ray.errors import SettingsError, UserError
from aae_ray.execution import capacity
from aae_ray.execution.capacity import Room, gangs_that_fit, possible_nodes, reported_nodes, room_for, workers_on
from aae_ray.settings import Settings, replace


def settings_of(
    workers: int = 1, resources: dict[str, float] | None = None, trials: int = 100, concurrent: int | None = None
) -> Settings:
    return replace(
        Settings(),
        {
            "study.workers_per_trial": workers,
            "study.resources_per_worker": resources or {"CPU": 1},
            "study.budget.trials": trials,
            "study.concurrent_trials": concurrent,
        },
    )


@pytest.fixture
def holding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, float]]:
    """What Ray says the nodes hold; there is no autoscaler."""
    nodes: list[dict[str, float]] = []

    def alive() -> list[dict[str, object]]:
        return [{"Alive": True, "NodeID": str(number), "Resources": node} for number, node in enumerate(nodes)]

    monkeypatch.setattr(ray, "nodes", alive)
    monkeypatch.setattr("ray._private.state.state.get_draining_nodes", dict)
    monkeypatch.setattr(capacity, "BOOTSTRAP", str(tmp_path / "ray_bootstrap_config.yaml"))
    monkeypatch.setattr("ray._private.state.state.get_cluster_config", lambda: None)
    return nodes


def bootstrap(path: Path, **changes: object) -> Path:
    """What `ray up` leaves on the head: the cluster's file, with the machines' resources filled in."""
    config = {
        "max_workers": 4,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "max_workers": 0},
            "gpu-spot": {"resources": {"CPU": 4, "GPU": 1}, "min_workers": 0, "max_workers": 4},
        },
    }
    path.write_text(yaml.safe_dump(config | changes))
    return path


def test_without_an_autoscaler_there_is_nothing_to_grow_to(tmp_path: Path) -> None:
    assert possible_nodes(tmp_path / "none.yaml", {"GPU": 1}) == []


def test_an_autoscaler_may_grow_the_cluster_to_its_limits(tmp_path: Path) -> None:
    nodes = possible_nodes(bootstrap(tmp_path / "bootstrap.yaml"), {"GPU": 1})
    assert sorted(map(str, nodes)) == ["{'CPU': 0.0}"] + ["{'CPU': 4.0, 'GPU': 1.0}"] * 4


def test_no_more_machines_of_a_kind_than_the_cluster_has_in_all(tmp_path: Path) -> None:
    nodes = possible_nodes(bootstrap(tmp_path / "bootstrap.yaml", max_workers=2), {"GPU": 1})
    assert workers_on(nodes, {"GPU": 1}) == 2


TWO_KINDS = {
    "head": {"resources": {"CPU": 0}, "max_workers": 0},
    "cpu": {"resources": {"CPU": 16}, "max_workers": 4},
    "gpu": {"resources": {"CPU": 4, "GPU": 2}, "max_workers": 3},
}


@pytest.mark.parametrize("order", [list(TWO_KINDS), list(reversed(TWO_KINDS))])
def test_a_cluster_of_several_kinds_may_grow_to_the_mixture_of_most_use(
    holding: list[dict[str, float]], order: list[str], tmp_path: Path
) -> None:
    """Whichever kind comes first in the file: four machines in all, of seven."""
    types = {name: TWO_KINDS[name] for name in order}
    bootstrap(tmp_path / "ray_bootstrap_config.yaml", available_node_types=types)
    holding.append({"CPU": 0})
    expected: list[tuple[dict[str, float], int]] = [({"GPU": 1}, 6), ({"CPU": 4}, 16), ({"CPU": 4, "GPU": 1}, 3)]
    for needed, gangs in expected:
        assert gangs_that_fit(settings_of(1, needed)) == gangs
        assert room_for(settings_of(1, needed)) == Room(0, gangs)
    assert gangs_that_fit(settings_of(7, {"CPU": 2})) == 4  # of 32 workers
    with pytest.raises(UserError, match="the 5 nodes have GPU 0; GPU 2; GPU 2; GPU 2; GPU 0"):  # not four without any
        gangs_that_fit(settings_of(1, {"GPU": 4}))


def test_the_head_counts_once_with_what_it_lends(tmp_path: Path) -> None:
    types = {"head": {"resources": {"CPU": 8}}, "worker": {"resources": {"CPU": 4}, "max_workers": 2}}
    nodes = possible_nodes(bootstrap(tmp_path / "bootstrap.yaml", available_node_types=types), {"CPU": 1})
    assert nodes == [{"CPU": 8}, {"CPU": 4}, {"CPU": 4}]


@pytest.mark.parametrize(
    "text",
    ["", "available_node_types:\n", "available_node_types: {a: {resources: , max_workers: 3}}\nmax_workers: 3\n"],
)
def test_a_file_that_says_nothing_adds_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "bootstrap.yaml").write_text(text)
    assert workers_on(possible_nodes(tmp_path / "bootstrap.yaml", {"CPU": 1}), {"CPU": 1}) == 0


@pytest.mark.parametrize(
    ("nodes", "needed", "expected"),
    [
        ([{"CPU": 2}, {"CPU": 2}], {"CPU": 3}, 0),  # four CPUs, and no place for a worker of three
        ([{"CPU": 2}, {"CPU": 2}], {"CPU": 1}, 4),
        ([{"CPU": 3}, {"CPU": 5}], {"CPU": 2}, 3),
        ([{"CPU": 8}, {"CPU": 1, "GPU": 2}], {"CPU": 1, "GPU": 1}, 1),
        ([{"CPU": 8, "GPU": 0.5}], {"GPU": 0.25}, 2),
        ([{"CPU": 1}], {"CPU": 0.1}, 10),  # 1 / 0.1 is a little less than 10 in floating point
        ([], {"CPU": 1}, 0),
    ],
)
def test_a_worker_is_on_one_node(nodes: list[dict[str, float]], needed: dict[str, float], expected: int) -> None:
    assert workers_on(nodes, needed) == expected


@pytest.mark.parametrize(
    ("nodes", "settings", "expected"),
    [
        ([{"CPU": 8}], settings_of(2), 4),
        ([{"CPU": 7}], settings_of(2), 3),
        ([{"CPU": 2}, {"CPU": 2}], settings_of(4), 1),  # a gang may span nodes
        ([{"CPU": 8, "GPU": 2}], settings_of(1, {"CPU": 1, "GPU": 1}), 2),
        ([{"CPU": 0.3}], settings_of(1, {"CPU": 0.1}), 3),
        ([{"CPU": 64}], settings_of(trials=5), 5),
        ([{"CPU": 64}], settings_of(concurrent=3), 3),
        ([{"CPU": 64}], replace(settings_of(trials=1), {"study.confirm.finalists": 2, "study.confirm.seeds": 3}), 6),
        ([{"CPU": 2}], settings_of(concurrent=3), 2),
    ],
)
def test_as_many_gangs_as_fit_are_wanted_and_are_of_use(
    holding: list[dict[str, float]], nodes: list[dict[str, float]], settings: Settings, expected: int
) -> None:
    holding.extend(nodes)
    assert gangs_that_fit(settings) == expected


def test_gangs_count_on_machines_that_the_autoscaler_may_start(holding: list[dict[str, float]], tmp_path: Path) -> None:
    holding.append({"CPU": 0})
    bootstrap(tmp_path / "ray_bootstrap_config.yaml")
    assert gangs_that_fit(settings_of(1, {"GPU": 1, "CPU": 4})) == 4


def test_a_node_that_is_about_to_go_has_no_room(
    holding: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that its cloud takes back, or that was left out: Ray places nothing there any more."""
    holding += [{"CPU": 2}, {"CPU": 2}]
    monkeypatch.setattr("ray._private.state.state.get_draining_nodes", lambda: {"1": 0})
    assert room_for(settings_of(1, {"CPU": 2})) == Room(1, 1)


OF_ONES_OWN = {
    "max_workers": 2,
    "head_node_type": "local.cluster.node",
    "available_node_types": {"local.cluster.node": {"resources": {}, "min_workers": 2, "max_workers": 2}},
}  # what Ray makes of a file with two addresses of workers


def test_machines_of_ones_own_are_waited_for_until_a_gang_fits(
    holding: list[dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap(tmp_path / "ray_bootstrap_config.yaml", **OF_ONES_OWN)
    joining, told = [{"CPU": 2.0}, {"CPU": 2.0}], list[str]()
    monkeypatch.setattr("time.sleep", lambda seconds: holding.append(joining.pop()))
    holding.append({"CPU": 0.0})
    assert gangs_that_fit(settings_of(2, {"CPU": 2}), told.append) == 1 and not joining
    assert [line.partition(";")[0] for line in told] == [
        "1 of 3 machines have joined the cluster",
        "2 of 3 machines have joined the cluster",
    ]
    with pytest.raises(UserError, match="the 3 nodes have CPU 0; CPU 2; CPU 2"):  # all are there
        gangs_that_fit(settings_of(3, {"CPU": 2}))


def test_machines_of_ones_own_are_not_waited_for_without_need_or_for_ever(
    holding: list[dict[str, float]], tmp_path: Path
) -> None:
    bootstrap(tmp_path / "ray_bootstrap_config.yaml", **OF_ONES_OWN)
    holding += [{"CPU": 0.0}, {"CPU": 2.0}]
    assert gangs_that_fit(settings_of(1, {"CPU": 2})) == 1
    short = replace(settings_of(2, {"CPU": 2}), {"study.start_timeout": 0.01})
    with pytest.raises(UserError, match=r"2 of the 3 machines .* within study.start_timeout=0.01 s, and study.workers"):
        gangs_that_fit(short)


def test_the_room_of_a_cluster_changes_with_it(holding: list[dict[str, float]], tmp_path: Path) -> None:
    settings = settings_of(2, {"GPU": 1, "CPU": 2})
    assert room_for(settings) == Room(0, 1)  # all machines are gone, and may come back
    holding += [{"CPU": 8, "GPU": 4}]
    assert room_for(settings) == Room(2, 2)
    bootstrap(tmp_path / "ray_bootstrap_config.yaml")
    holding.clear()
    assert room_for(settings) == Room(0, 2)


def test_what_the_autoscaler_of_kubernetes_tells_ray_counts_as_well(
    holding: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ClusterConfig(
        node_group_configs=[
            NodeGroupConfig(name="head", resources={"CPU": 0}, max_count=0),
            NodeGroupConfig(name="gpu", resources={"CPU": 4, "GPU": 1}, max_count=3),
        ]
    )
    monkeypatch.setattr("ray._private.state.state.get_cluster_config", lambda: config)
    holding.append({"CPU": 0})
    assert gangs_that_fit(settings_of(1, {"GPU": 1, "CPU": 4})) == 3
    with pytest.raises(UserError, match="needs GPU 2 on a node for each worker"):  # three GPUs in all, on three nodes
        gangs_that_fit(settings_of(1, {"GPU": 2}))
    config.node_group_configs[1].max_count = -1
    assert len(reported_nodes(ray._private.state.state)) == capacity.MOST_NODES


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (settings_of(5), ["study.workers_per_trial=5", "needs CPU 1 on a node", "the 2 nodes have CPU 2; CPU 2"]),
        (settings_of(1, {"CPU": 3}), ["needs CPU 3 on a node for each worker", "CPU 2; CPU 2"]),
        (settings_of(1, {"GPU": 1}), ["needs GPU 1 on a node", "GPU 0; GPU 0"]),
    ],
)
def test_a_gang_that_can_never_fit_is_a_sentence_not_a_wait_for_ever(
    holding: list[dict[str, float]], settings: Settings, parts: list[str]
) -> None:
    holding.extend([{"CPU": 2}, {"CPU": 2}])
    with pytest.raises(UserError) as caught:
        gangs_that_fit(settings)
    text = str(caught.value)
    assert all(part in text for part in [*parts, "ask for fewer workers or less for each"]), text
    assert len(text.splitlines()) == 1


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster on this machine, which has no GPU."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(capacity, "read_ray_address", lambda: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


@pytest.mark.parametrize("address", [None, "local"])
def test_what_this_machine_does_not_have_is_told_before_the_start(
    alone: None, monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    """RAY_ADDRESS=local starts Ray here as well."""
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert capacity.joined_cluster() is None
    for changes, told in (
        ({"train.device": "cuda"}, "train.device is cuda, .* this machine has none that PyTorch sees"),
        ({"study.resources_per_worker": {"CPU": 500}}, "needs CPU 500 on a node"),
        ({"study.resources_per_worker": {"TPU": 1}}, "needs TPU 1 on a node"),
        ({"study.resources_per_worker": {"GPUs": 1}}, "has no GPUs. Did you mean GPU"),
    ):
        with pytest.raises(SettingsError, match=told):
            capacity.check_resources(replace(Settings(), changes))


def test_what_a_cluster_has_is_known_when_it_is_joined(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "read_ray_address", lambda: "10.0.0.1:6379")
    assert capacity.joined_cluster() == "10.0.0.1:6379"
    capacity.check_resources(replace(Settings(), {"study.resources_per_worker": {"TPU": 1}}))
