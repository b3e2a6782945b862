"""How many gangs fit into what the cluster holds, or may grow to."""

from pathlib import Path

import pytest
import ray
import yaml

from aae_ray.errors import UserError
from aae_ray.execution import ray_cluster as cluster
from aae_ray.execution.ray_cluster import gang_resources, gangs_that_fit, possible_resources
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
def joined(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What Ray was started with, on a machine where a cluster runs."""
    options: dict[str, object] = {}
    monkeypatch.setattr(cluster, "read_ray_address", lambda: "10.0.0.1:6379")
    monkeypatch.setattr(ray, "init", lambda **given: options.update(given))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return options


def test_the_cluster_that_runs_on_this_machine_is_joined(joined: dict[str, object]) -> None:
    with cluster.cluster(verbose=False):
        pass
    assert "address" not in joined and "num_cpus" not in joined  # Ray finds it, and nothing of it is set anew
    runtime = joined["runtime_env"]
    assert isinstance(runtime, dict) and runtime["env_vars"].keys() == cluster.ENVIRONMENT.keys()


def test_a_cluster_that_does_not_answer_is_a_sentence(
    joined: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance at 10.0.0.1:6379.\nmore")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    told = "no Ray cluster answers at the address that this machine remembers"
    with pytest.raises(UserError, match=told), cluster.cluster(verbose=False):
        pass


@pytest.fixture
def holding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, float]:
    """What Ray says the cluster holds; there is no autoscaler."""
    held: dict[str, float] = {}
    monkeypatch.setattr(ray, "cluster_resources", lambda: held)
    monkeypatch.setattr(cluster, "BOOTSTRAP", str(tmp_path / "ray_bootstrap_config.yaml"))
    return held


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


def test_a_gang_asks_for_what_all_its_workers_need() -> None:
    assert gang_resources(settings_of(3, {"CPU": 2, "GPU": 0.5})) == {"CPU": 6, "GPU": 1.5}


def test_without_an_autoscaler_what_is_there_is_what_there_is(tmp_path: Path) -> None:
    assert possible_resources({"CPU": 2, "memory": 1e9}, tmp_path / "none.yaml") == {"CPU": 2, "memory": 1e9}


def test_an_autoscaler_may_grow_the_cluster_to_its_limits(tmp_path: Path) -> None:
    file = bootstrap(tmp_path / "bootstrap.yaml")
    assert possible_resources({"CPU": 0, "memory": 1e9}, file) == {"CPU": 16, "GPU": 4, "memory": 1e9}
    assert possible_resources({"CPU": 20, "GPU": 2}, file) == {"CPU": 20, "GPU": 4}


def test_no_more_machines_of_a_kind_than_the_cluster_has_in_all(tmp_path: Path) -> None:
    assert possible_resources({}, bootstrap(tmp_path / "bootstrap.yaml", max_workers=2)) == {"CPU": 8, "GPU": 2}


def test_the_head_counts_once_with_what_it_lends(tmp_path: Path) -> None:
    types = {"head": {"resources": {"CPU": 8}}, "worker": {"resources": {"CPU": 4}, "max_workers": 2}}
    assert possible_resources({}, bootstrap(tmp_path / "bootstrap.yaml", available_node_types=types)) == {"CPU": 16}


@pytest.mark.parametrize(
    "text",
    ["", "available_node_types:\n", "available_node_types: {a: {resources: , max_workers: 3}}\nmax_workers: 3\n"],
)
def test_a_file_that_says_nothing_adds_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "bootstrap.yaml").write_text(text)
    assert possible_resources({"CPU": 2}, tmp_path / "bootstrap.yaml") == {"CPU": 2}


@pytest.mark.parametrize(
    ("held", "run", "expected"),
    [
        ({"CPU": 8}, settings_of(2), 4),
        ({"CPU": 7}, settings_of(2), 3),
        ({"CPU": 8, "GPU": 2}, settings_of(1, {"CPU": 1, "GPU": 1}), 2),
        ({"CPU": 1}, settings_of(1, {"CPU": 0.1}), 10),  # 1 / 0.1 is a little less than 10 in floating point
        ({"CPU": 0.3}, settings_of(1, {"CPU": 0.1}), 3),
        ({"CPU": 64}, settings_of(trials=5), 5),
        ({"CPU": 64}, settings_of(concurrent=3), 3),
        ({"CPU": 2}, settings_of(concurrent=3), 2),
    ],
)
def test_as_many_gangs_as_fit_are_wanted_and_are_of_use(
    holding: dict[str, float], held: dict[str, float], run: Settings, expected: int
) -> None:
    holding.update(held)
    assert gangs_that_fit(run) == expected


def test_gangs_count_on_machines_that_the_autoscaler_may_start(holding: dict[str, float], tmp_path: Path) -> None:
    holding["CPU"] = 0
    bootstrap(tmp_path / "ray_bootstrap_config.yaml")
    assert gangs_that_fit(settings_of(1, {"GPU": 1, "CPU": 4})) == 4


@pytest.mark.parametrize(
    ("run", "parts"),
    [
        (settings_of(3), ["study.workers_per_trial=3", "needs CPU 3 at once", "there is CPU 2"]),
        (settings_of(1, {"GPU": 1}), ["needs GPU 1 at once", "there is GPU 0"]),
        (
            settings_of(2, {"CPU": 0.5, "GPU": 0.25}),
            ["{'CPU': 0.5, 'GPU': 0.25}", "CPU 1, GPU 0.5 at once", "CPU 2, GPU 0"],
        ),
    ],
)
def test_a_gang_that_can_never_fit_is_a_sentence_not_a_wait_for_ever(
    holding: dict[str, float], run: Settings, parts: list[str]
) -> None:
    holding["CPU"] = 2
    with pytest.raises(UserError) as caught:
        gangs_that_fit(run)
    text = str(caught.value)
    assert (
        all(part in text for part in [*parts, "ask for fewer workers or less for each"]) and len(text.splitlines()) == 1
    )
