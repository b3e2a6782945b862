"""What many nodes ask of a study's own process and of Ray's head: python benchmarks/nodes.py --json nodes.json

Nodes of one GPU each, on this one machine: raylets of Ray's own, whose GPU is a number, and on which gangs of one train
on the CPU. A study of small trials runs there from its command to its end, as on a cluster, with its gangs on all
nodes. The machine's cores are shared by all of them, so trials last the longer the more nodes there are; what a trial
costs the driver, Ray's GCS and the head's raylet, in seconds of CPU, and what each of them holds, are as on many
machines.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the package is found from the root, by Ray's processes too
    sys.path.insert(0, str(Path(__file__).parents[1]))
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])

from ray.cluster_utils import Cluster

from aae_ray.search import events
from aae_ray.search.journal import read_events
from benchmarks.scale import driven, study_of

OBJECT_STORE_BYTES = 80_000_000  # of a node
TRIALS_PER_NODE = 6
STUDY = (
    "train.epochs=20",
    "train.device=cpu",
    "study.resources_per_worker={GPU: 1, CPU: 1}",
    "study.sampler.type=random",
    "study.pruner.grace_period=9",
    "study.constraints=[]",
    "study.finalists=best",
    "health.stop=false",
)


def cpu_seconds(pid: int) -> float:
    """Of a process so far, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    """That a process holds by itself."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


@contextmanager
def cluster_of(nodes: int) -> Iterator[Cluster]:
    """A head that trains nothing, and so many nodes."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=OBJECT_STORE_BYTES, wait=False)
        cluster.wait_for_nodes(timeout=30 + 10 * nodes)
        yield cluster
    finally:
        cluster.shutdown()


def measure(nodes: int, trials: int) -> dict[str, float]:
    """A study of so many trials on so many nodes."""
    began = time.perf_counter()
    with cluster_of(nodes) as cluster:
        up = time.perf_counter() - began
        head = {name: cluster.head_node.all_processes[name][0].process.pid for name in ("gcs_server", "raylet")}
        before = {name: cpu_seconds(pid) for name, pid in head.items()}
        driver = driven(__file__, trials, RAY_ADDRESS=cluster.address)
        result = {"nodes": nodes, "trials": trials, "seconds_to_bring_up": up, **driver}
        for name, pid in head.items():
            result[f"{name}_cpu_seconds"] = cpu_seconds(pid) - before[name]
            result[f"{name}_memory_mb"] = memory_mb(pid)
        return result


def drive(trials: int) -> None:
    """Run a study in this process, on the cluster at RAY_ADDRESS, and print what it took."""
    ledger = study_of(trials, STUDY)
    (journal,) = Path("runs").glob("*/journal.jsonl")
    told = [event for event in read_events(journal.parent) if isinstance(event, events.Reported)]
    print(json.dumps({
        "driver_cpu_seconds": time.process_time(),
        "driver_memory_mb": memory_mb(os.getpid()),
        "gangs_at_once": ledger.most_running,
        "reports": len(told),
        "search_seconds": told[-1].time - told[0].time,
    }))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--trials-per-node", type=int, default=TRIALS_PER_NODE)
    parser.add_argument("--driver", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.driver:
        drive(arguments.driver)
        return
    rows: list[dict[str, Any]] = []  # two of each number of nodes: a trial a node, then several
    for nodes in arguments.nodes:
        rows += [measure(nodes, trials) for trials in (nodes, nodes * arguments.trials_per_node)]
        few, many = rows[-2:]
        more = many["trials"] - few["trials"]
        for name in ("driver", "gcs_server", "raylet"):  # without the start and the end of a study, which both have
            key = f"{name}_cpu_seconds"
            many[f"{key}_per_trial"] = (many[key] - few[key]) / more
        print("  ".join(f"{name} {value:.4g}" for name, value in many.items()), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
