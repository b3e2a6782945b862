"""A study's gauges as Ray exports them, read from its endpoint as Prometheus does."""

import json
import os
import subprocess
import sys

import pytest

from aae_ray.search.gauges import GAUGES

TELL = """
import json, re, sys, time, urllib.request
import ray
from aae_ray.execution.metrics import PREFIX, StudyMetrics
from aae_ray.execution.ray_cluster import ray_cluster
from aae_ray.search.gauges import Observed
from aae_ray.search.outcomes import FailureClass
from tests.search.histories import History

history = History(study__price_per_worker_hour=1.0)
history.finish(0.01, 0.02)
history.fail(history.begin(), FailureClass.PREEMPTED, retry=True)
with ray_cluster(verbose=False, stuck=print):
    StudyMetrics().tell(Observed(history.ledger, history.now, gangs=3))
    (node,) = ray.nodes()
    page = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline, found = time.monotonic() + 60, {}
    while len(found) < int(sys.argv[1]) and time.monotonic() < deadline:
        time.sleep(0.5)
        try:
            text = urllib.request.urlopen(page, timeout=5).read().decode()
        except OSError:
            continue
        lines = re.findall(rf"^{PREFIX}(aae_\\w+){{(.*)}} (\\S+)$", text, re.MULTILINE)
        found = {name: [labels, float(value)] for name, labels, value in lines}
print(json.dumps(found))
"""


@pytest.mark.slow
def test_ray_exports_every_gauge_with_its_labels() -> None:
    environment = {**os.environ, "RAY_metrics_report_interval_ms": "1000"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", TELL, str(len(GAUGES))], capture_output=True, text=True, timeout=200, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == {gauge.name for gauge in GAUGES}
    assert all('study="study-1"' in labels for labels, _ in found.values())
    assert found["aae_gangs"][1] == 3 and found["aae_front_trials"][1] == 1
    assert 'failure="preempted"' in found["aae_failed_attempts"][0]
