"""A node that is taken away, as a cloud does with spot instances: its trial goes on elsewhere."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from aae_ray.search.outcomes import FailureClass
from tests.study.test_resume import SMALL, check_whole, ledger_of
from tests.study.test_study import start, wait_for

SECONDS = 5  # of notice

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two nodes for a worker each, and a head for the rest."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def test_a_trial_whose_node_is_drained_goes_on_on_another_one(
    tmp_path: Path, environment: dict[str, str], cluster: Cluster
) -> None:
    joined = environment | {"RAY_ADDRESS": cluster.address}
    study = start(tmp_path, joined, *SMALL, "study.budget.trials=1", "train.epochs=600")
    log = tmp_path / "out.txt"
    try:
        wait_for(lambda: "begins" in log.read_text())
        wait_for(lambda: ledger_of(tmp_path).trials[0].checkpoint is not None)
        actors = list_actors(address=cluster.address)
        (node,) = {a.node_id for a in actors if a.state == "ALIVE" and "Trainable" in a.class_name}
        notice = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken away"]
        drain = ["drain-node", "--address", cluster.address, "--node-id", node, *notice]
        subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *drain, "--deadline-remaining-seconds", str(SECONDS)],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        time.sleep(SECONDS)
        for each in cluster.worker_nodes:
            if each.node_id == node:
                cluster.remove_node(each, allow_graceful=False)
                break
        assert study.wait(timeout=300) == 0, log.read_text()
    finally:
        if study.poll() is None:
            os.killpg(study.pid, 9)
            study.wait()
    (trial,) = ledger_of(tmp_path).trials
    assert [failure.failure for failure in trial.failures] == [FailureClass.PREEMPTED], log.read_text()
    check_whole(tmp_path, trials=1, epochs=600)
