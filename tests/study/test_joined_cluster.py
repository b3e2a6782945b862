"""Studies on a cluster that they have joined, and which loses a node or all of them."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray import NodeID
from ray.cluster_utils import Cluster

from aae_ray.search.outcomes import FailureClass, StudyEnd
from tests.study.commands import run
from tests.study.test_faults import trains
from tests.study.test_resume import SMALL, check_whole, ledger_of, resume
from tests.study.test_study import client_of, processes, start, trial_runs, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc"),
]

EPOCHS = 800


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without CPUs, on which no trial fits, and two nodes of one CPU."""
    monkeypatch.setenv("AAE_TEST_MARK", str(tmp_path))  # for the processes of its nodes
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, node_id=NodeID.from_random().hex())
        yield cluster
    finally:
        cluster.shutdown()


def node_of(cluster: Cluster, pid: int) -> Any:
    """The node that has started a process."""
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    (node,) = [
        node
        for node in cluster.worker_nodes
        if any(each.process.pid == parent for each in node.all_processes["raylet"])
    ]
    return node


def nodes_of(cluster: Cluster) -> int:
    return sum(node["Alive"] for node in cluster.global_state.node_table())


@contextmanager
def blind_node(cluster: Cluster, environment: dict[str, str], folder: Path) -> Iterator[None]:
    """One of one CPU more, from which a folder cannot be seen. Needs root."""
    start_ray = f"exec {Path(sys.executable).with_name('ray')} start --address={cluster.address} --num-cpus=1 --block"
    node = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"mount -t tmpfs none {folder} && {start_ray}"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        node.terminate()
        node.wait(30)


def ray(*arguments: str) -> None:
    subprocess.run([str(Path(sys.executable).with_name("ray")), *arguments], check=True, capture_output=True)


def test_a_trial_of_a_drained_node_goes_on_elsewhere(
    tmp_path: Path, environment: dict[str, str], cluster: Cluster
) -> None:
    joined = environment | {"RAY_ADDRESS": cluster.address}
    study = start(tmp_path, joined, *SMALL, "study.budget.trials=1", f"train.epochs={EPOCHS}")
    log = tmp_path / "out.txt"
    wait_for(lambda: trains(tmp_path))
    (pid,) = processes(tmp_path, "Trainable")
    node = node_of(cluster, pid)
    ray(
        "drain-node", "--address", cluster.address, "--node-id", node.node_id,
        "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the spot instance goes",
        "--deadline-remaining-seconds", "5",
    )  # fmt: skip
    time.sleep(2)
    cluster.remove_node(node, allow_graceful=False)
    assert study.wait(timeout=250) == 0, log.read_text()
    (trial,) = ledger_of(tmp_path).trials
    assert [failure.failure for failure in trial.failures] == [FailureClass.PREEMPTED], log.read_text()
    cluster.shutdown()
    check_whole(tmp_path, trials=1, epochs=EPOCHS)


def start_on_one_node(folder: Path, environment: dict[str, str], cluster: Cluster, *own: str) -> subprocess.Popen[str]:
    """A study that has as many gangs as fit, and begins with the one of a single node."""
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    wait_for(lambda: nodes_of(cluster) == 2)
    joined = environment | {"RAY_ADDRESS": cluster.address}
    study = start(folder, joined, *SMALL, "study.concurrent_trials=null", *own)
    wait_for(lambda: trains(folder))
    return study


def test_a_study_grows_with_its_cluster_and_outlives_a_node_that_is_lost_without_notice(
    tmp_path: Path, environment: dict[str, str], cluster: Cluster
) -> None:
    settings, log = ("study.budget.trials=2", f"train.epochs={EPOCHS}"), tmp_path / "out.txt"
    study = start_on_one_node(tmp_path, environment, cluster, *settings)
    (first,) = processes(tmp_path, "Trainable")
    cluster.add_node(num_cpus=1, node_id=NodeID.from_random().hex())
    wait_for(lambda: ledger_of(tmp_path).most_running == 2, seconds=300)
    cluster.remove_node(node_of(cluster, first), allow_graceful=False)
    assert study.wait(timeout=400) == 0, log.read_text()
    ledger = ledger_of(tmp_path)
    failures = [failure.failure for trial in ledger.trials for failure in trial.failures]
    assert failures == [FailureClass.PREEMPTED], log.read_text()
    assert ledger.lost_seconds > 0 and "1 preempted" in log.read_text()
    assert "room for 2 gangs" in log.read_text()
    cluster.shutdown()
    check_whole(tmp_path, trials=2, epochs=EPOCHS)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, for a disk of its own")
def test_a_folder_that_a_node_does_not_see_is_refused_before_the_study_starts(
    tmp_path: Path, environment: dict[str, str], cluster: Cluster
) -> None:
    (tmp_path / "runs").mkdir()
    joined = environment | {"RAY_ADDRESS": cluster.address}
    with blind_node(cluster, joined, tmp_path / "runs"):
        wait_for(lambda: nodes_of(cluster) == 4)
        began = time.monotonic()
        done = run(tmp_path, joined, "tune", *SMALL, code=2)
        assert time.monotonic() - began < 120
    assert "1 of the 3 other nodes of the cluster cannot train this study" in done.stderr, done.stderr
    assert f"it does not see study.folder {tmp_path}/runs/digits-" in done.stderr and "s3://BUCKET" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not any((tmp_path / "runs").iterdir())  # nothing has begun


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, for a disk of its own")
def test_a_node_that_joins_later_and_lacks_the_folder_gets_one_trial_and_no_more(
    tmp_path: Path, environment: dict[str, str], cluster: Cluster
) -> None:
    settings, log = ("study.budget.trials=4", f"train.epochs={EPOCHS // 4}"), tmp_path / "out.txt"
    study = start_on_one_node(tmp_path, environment, cluster, *settings)
    with blind_node(cluster, environment, tmp_path / "runs"):
        wait_for(lambda: "a node gets no more trials" in log.read_text(), seconds=200)
        assert study.wait(timeout=300) == 0, log.read_text()
        wait_for(lambda: nodes_of(cluster) == 2)  # it had nothing to do any more, and went
    ledger = ledger_of(tmp_path)
    failures = [failure.failure for trial in ledger.trials for failure in trial.failures]
    assert failures == [FailureClass.BAD_NODE], log.read_text()
    (note,) = ledger.notes
    assert f"does not see study.folder {tmp_path}/runs/digits-" in note
    cluster.shutdown()
    check_whole(tmp_path, trials=4, epochs=EPOCHS // 4)


@pytest.mark.parametrize("part", ["gcs_server", "raylet"])
def test_a_cluster_that_is_gone_ends_the_study_in_order(
    tmp_path: Path, environment: dict[str, str], cluster: Cluster, part: str
) -> None:
    """Its GCS, or the raylet of the node that the study itself runs on."""
    joined = environment | {"RAY_ADDRESS": cluster.address}
    study = start(tmp_path, joined, *SMALL, "study.budget.trials=2", f"train.epochs={EPOCHS}")
    log = tmp_path / "out.txt"
    wait_for(lambda: trains(tmp_path))
    (process,) = cluster.head_node.all_processes[part]
    process.process.kill()
    killed = time.monotonic()
    assert study.wait(timeout=60) == 1, log.read_text()
    assert time.monotonic() - killed < 30
    text = log.read_text()
    assert "Traceback" not in text and f"Ray's {part} has ended" in text, text
    assert "--resume runs/digits-" in text.splitlines()[-1], text
    assert ledger_of(tmp_path).end is StudyEnd.RAY
    parent, children = trial_runs(client_of(tmp_path), "aae/digits")
    assert "RUNNING" not in {each.info.status for each in (parent, *children)}
    cluster.shutdown()
    resume(tmp_path, environment)  # on a Ray of its own
    check_whole(tmp_path, trials=2, epochs=EPOCHS)
