"""The nodes of a cluster that a study is about to use: whether each sees the study's folder, its GPUs, the same data.

A trial runs on any of them. What one of them lacks would otherwise be found out by its trials, one after the other.
"""

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from aae_ray.datasets.dataset import load
from aae_ray.datasets.remote import reason_of
from aae_ray.errors import UserError
from aae_ray.execution.capacity import Resources, workers_on
from aae_ray.execution.failures import describe
from aae_ray.search.outcomes import FailureClass
from aae_ray.search.owner import OWNER
from aae_ray.search.store import is_remote, store_at
from aae_ray.secrets import redact
from aae_ray.settings import Data, Settings

SEEN_SECONDS = 10.0  # until a network file system shows on one node what was written on another
MOST_TOLD = 5  # nodes
BETTER_FOLDER = "give one that all nodes see under the same path, such as NFS, or a URI such as s3://BUCKET/studies"
# Kinds of file systems, as Linux names them, on a disk or in the memory of one machine.
OF_ONE_MACHINE = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "overlay", "aufs", "tmpfs", "ramfs"}
MOUNTS = Path("/proc/self/mountinfo")

logger = logging.getLogger(__name__)


def check_nodes(folder: str, digest: str, settings: Settings) -> int:
    """Ask every node that may train, but this one, for the study's folder, for a GPU that PyTorch sees where the study
    trains on GPUs, and for the data. Returns how many there are.

    They prepare the data meanwhile, each for itself. `folder` is the study's, as every node knows it, in which this
    process is written down as the owner. Raises UserError with the nodes that lack something, by name.
    """
    here = ray.get_runtime_context().get_node_id()
    needed = settings.study.resources_per_worker
    others = [
        node
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here and workers_on([node["Resources"]], needed)
    ]
    owner = store_at(folder).read_bytes(OWNER)
    asked = [(_name(node), _ask(node["NodeID"], folder, owner, settings, digest)) for node in others]
    found = _answers(asked, settings.study.start_timeout)
    if found:
        raise UserError(refusal(found, len(others)))
    return len(others)


def check_nodes_to_come(
    folder: str, needed: Resources, present: Sequence[Resources], to_come: Sequence[Resources], mounts: Path = MOUNTS
) -> None:
    """Raises UserError where an autoscaler may bring nodes that train, none of them is there to be asked, and the
    study's folder is on a disk of this machine: they would be paid for trials that fail, one node after the other."""
    if is_remote(folder) or workers_on(to_come, needed) <= workers_on(present, needed):
        return
    kind = file_system(Path(folder).resolve(), mounts)
    if kind in OF_ONE_MACHINE:
        raise UserError(
            f"study.folder {folder} is on a disk of this machine ({kind}), which nodes that the cluster's autoscaler "
            f"brings do not see; {BETTER_FOLDER}. If they do see it, have one of them there at the start"
        )


def file_system(folder: Path, mounts: Path = MOUNTS) -> str | None:
    """The kind of the file system that a folder is on; None where the system does not tell."""
    found: tuple[int, str] | None = None
    try:
        lines = mounts.read_text().splitlines()
    except OSError:  # not Linux
        return None
    for line in lines:
        before, _, behind = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])
        if folder.is_relative_to(point) and (found is None or len(point) >= found[0]):  # the last one covers others
            found = len(point), behind.split()[0]
    return None if found is None else found[1]


def leave_out(node: str, why: str) -> bool:
    """Have Ray place nothing more on a node, by its id, and let it go when it is idle; an autoscaler may bring another.
    Whether Ray does so: never on this process' own node."""
    context = ray.get_runtime_context()
    if node == context.get_node_id():
        return False
    try:
        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # the other one is for nodes that are idle
        accepted, refused = ray._raylet.GcsClient(address=context.gcs_address).drain_node(node, reason, why, 0)
    except Exception:  # Ray is going down, which others tell: its errors here are of no common type
        logger.warning("node %s could not be left out", node, exc_info=True)
        return False
    if not accepted:
        logger.warning("node %s could not be left out: %s", node, refused)
    return bool(accepted)


def refusal(found: Sequence[tuple[str, str]], asked: int) -> str:
    """What is wrong, with the nodes where it is: nodes with the same problem are told together."""
    nodes: dict[str, list[str]] = {}
    for node, problem in found:
        nodes.setdefault(problem, []).append(node)
    lines = [f"{len(found)} of the {asked} other nodes of the cluster cannot train this study:"]
    for problem, names in nodes.items():
        more = f" and {len(names) - MOST_TOLD} more" if len(names) > MOST_TOLD else ""
        lines.append(f"  {', '.join(names[:MOST_TOLD])}{more}: {problem}")
    return "\n".join(lines)


def _name(node: Mapping[str, Any]) -> str:
    name, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
    return f"{name} ({address})" if name != address else name


def _ask(node: str, folder: str, owner: bytes, settings: Settings, digest: str) -> ray.ObjectRef:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": there}
    return ray.remote(**options)(problem_here).remote(folder, owner, settings, digest)


def _answers(asked: Sequence[tuple[str, ray.ObjectRef]], timeout: float) -> list[tuple[str, str]]:
    """The problem of each node that has one, with its name, which several nodes of one machine share."""
    deadline, found = time.monotonic() + timeout, []
    for name, answer in asked:
        try:
            problem = ray.get(answer, timeout=max(deadline - time.monotonic(), 0.1))
        except GetTimeoutError:
            problem = f"it has not answered within study.start_timeout={timeout:g} s"
        except RayError as error:
            failed = describe(error)
            if failed.kind is FailureClass.PREEMPTED:  # it is gone, and keeps nobody from training elsewhere
                continue
            problem = f"it cannot run this project: {redact(failed.message)}"
        if problem is not None:
            found.append((name, problem))
    return found


def problem_here(folder: str, owner: bytes, settings: Settings, digest: str) -> str | None:
    """What keeps this node from training a study, which `owner` owns and whose data have this digest."""
    gpu = gpu_problem() if settings.device == "cuda" else None
    return folder_problem(folder, owner) or gpu or data_problem(settings.data, digest)


def folder_problem(folder: str, owner: bytes, seconds: float = SEEN_SECONDS) -> str | None:
    """A sentence when this node does not see a study's folder."""
    shown, store = redact(folder), store_at(folder)
    deadline, error = time.monotonic() + seconds, None
    while True:
        try:
            if store.read_bytes(OWNER) == owner:
                return None
        except OSError as caught:
            error = caught
            if is_remote(folder) and not isinstance(caught, FileNotFoundError):
                return f"study.folder {shown} cannot be read: {redact(reason_of(caught))}"
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    what = "does not see" if error is not None or not Path(folder).is_dir() else "has another folder at"
    return f"it {what} study.folder {shown}; {BETTER_FOLDER}"


def gpu_problem() -> str | None:
    """A sentence when PyTorch sees no GPU on this node.

    It is asked in a process of its own: Ray hides GPUs from one that holds none.
    """
    visible = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    asked = "import torch; print(torch.cuda.is_available(), torch.__version__, torch.version.cuda or 'none')"
    done = subprocess.run([sys.executable, "-c", asked], env=visible, capture_output=True, text=True)
    seen, version, cuda = done.stdout.split() if done.returncode == 0 else ("False", "that fails to import", "none")
    if seen == "True":
        return None
    return (
        f"it has a GPU for Ray and none for PyTorch {version} (built for CUDA: {cuda}); install a build that fits the "
        "node's driver, or set train.device=cpu"
    )


def data_problem(data: Data, digest: str) -> str | None:
    """A sentence when this node has no data, or other ones."""
    try:
        dataset = load(data)
    except UserError as error:
        return str(error)
    if dataset.digest == digest:
        return None
    return f"it has other data: data.name {data.name} has digest {dataset.digest} there, the study's {digest}"
