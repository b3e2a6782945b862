"""Machines that are up already: a head and two nodes, brought to a cluster over real SSH; no node runs it as root."""

from collections.abc import Iterator

import pytest

from cluster.lab.node import user_id_is_taken
from cluster.lab.supervisor import ON_PREM, ON_PREM_SCRIPT
from cluster.lab.system import missing
from cluster.lab.world import World
from tests.cluster.lab_study import JOIN_SECONDS, HeadStudy, active_nodes, check_complete, ray_up, until

reason = missing() or user_id_is_taken()
pytestmark = [
    pytest.mark.skipif(reason is not None, reason=str(reason)),
    pytest.mark.slow,
    pytest.mark.timeout(7200),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    lab = World(tmp_path_factory.mktemp("on-prem"))
    lab.up("on_prem")
    try:
        ray_up(lab)
        until("three nodes", lambda: active_nodes(lab) == 3, JOIN_SECONDS, lab)
        yield lab
    finally:
        lab.down()


def test_nothing_runs_as_root_on_a_node(world: World) -> None:
    for address in ON_PREM.values():
        who = world.ssh(address, "ps -eo user:20,comm | grep -E 'raylet|gcs_server' | grep -v grep", seconds=60).stdout
        assert who and {line.split()[0] for line in who.splitlines()} == {"ubuntu"}


def test_a_machine_without_the_token_joins_nothing(world: World) -> None:
    start = "env -u RAY_AUTH_MODE HOME=/tmp RAY_AUTH_MODE={mode} ray start --address=10.77.0.2:6379 --num-cpus=1"
    for mode in ("disabled", "token"):  # nothing is sent; there is no token at HOME
        command = f"timeout 100 {start.format(mode=mode)} 2>&1; echo code $?"
        said = world.ssh(ON_PREM["w1"], command, seconds=180).stdout
        assert "code 0" not in said, said
        assert any(word in said.lower() for word in ("unauthenticated", "token")), said
    assert active_nodes(world) == 3


def test_a_gang_of_two_workers_trains_on_two_nodes(world: World) -> None:
    study = HeadStudy(
        world, "/run/shared/studies", "study.name=gang", "study.workers_per_trial=2", "study.budget.trials=2",
        "train.epochs=9",
    )  # fmt: skip
    try:
        study.wait(1500)
    finally:
        study.kill()
    check_complete(study.events("journal.jsonl"), trials=2, epochs=9)


def test_down_leaves_no_process_of_ray(world: World) -> None:
    world.run(*ON_PREM_SCRIPT, "down", "--yes", seconds=480)
    for address in ON_PREM.values():
        assert "raylet" not in world.ssh(address, "ps -eo comm", seconds=60).stdout
