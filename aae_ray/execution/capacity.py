"""What fits on the nodes that are there, and on those that an autoscaler may bring."""

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray._private.accelerators import get_accelerator_manager_for_resource, get_all_accelerator_resource_names
from ray._private.utils import get_num_cpus, read_ray_address

from aae_ray.errors import Kind, Problem, SettingsError, UserError, closest
from aae_ray.settings import Settings

BOOTSTRAP = "~/ray_bootstrap_config.yaml"  # the cluster's file, where `ray up` puts it on the head
FOUND_BY_RAY = {"memory", "object_store_memory"}  # on the machine, when it starts
MOST_NODES = 1000  # of a kind, where an autoscaler has no limit
LOOK_SECONDS = 2.0  # between two looks for machines that are still to join
Resources = Mapping[str, float]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Room:
    """Gangs for which a cluster has room at a time."""

    present: int  # on the nodes that are there
    wanted: int  # on those that may be there as well, and that the study has a use for


def gangs_that_fit(settings: Settings, tell: Callable[[str], None] = logger.info) -> int:
    """How many gangs run at a time. Raises UserError when not even one fits into the cluster.

    Of machines that are still to join nobody knows what they hold, where the cluster's file does not say it: as long
    as there is no place for a gang, they are waited for, study.start_timeout at most.
    """
    named = machines_of_unknown_resources(Path(BOOTSTRAP).expanduser())
    limit, told = settings.study.start_timeout, 0
    end = time.monotonic() + limit
    while True:
        present = present_nodes()
        try:
            return _gangs_on(present, nodes_to_come(settings.study.resources_per_worker), settings)
        except UserError as error:
            if len(present) >= named:
                raise
            if time.monotonic() >= end:
                text = f"{len(present)} of the {named} machines in the cluster's file have joined it"
                raise UserError(f"{text} within study.start_timeout={limit:g} s, and {error}") from None
        if len(present) != told:
            told = len(present)
            tell(f"{told} of {named} machines have joined the cluster; waiting for the others, {limit:g} s at most")
        time.sleep(LOOK_SECONDS)


def room_for(settings: Settings) -> Room:
    """The room that there is now. A cluster that has lost its last machine may get it back: one gang is wanted
    always."""
    study, needed = settings.study, settings.study.resources_per_worker
    present, most = (
        workers_on(held, needed) // study.workers_per_trial for held in (present_nodes(), nodes_to_come(needed))
    )
    return Room(present, max(_wanted(max(present, most), settings), 1))


def waiting_for_machines() -> bool:
    """Whether there is a group of workers, of anybody's, for which the cluster has no room yet."""
    try:
        return any(group["state"] == "PENDING" for group in ray.util.placement_group_table().values())
    except Exception:  # Ray is going down, which others tell
        return False


def joined_cluster() -> str | None:
    """The address of the cluster that a study joins: RAY_ADDRESS, or where `ray start` has left one on this machine;
    None where Ray is started for the study, as it is by RAY_ADDRESS=local."""
    address = os.environ.get("RAY_ADDRESS")
    if address == "local":
        return None
    return address or read_ray_address() or None


def _accelerators(name: str) -> int:
    """How many of a kind Ray will find on this machine."""
    manager = get_accelerator_manager_for_resource(name)
    return 0 if manager is None else manager.get_current_node_num_accelerators()


def check_resources(settings: Settings) -> None:
    """Raises SettingsError for resources that this machine does not have, where Ray is to be started on it. What a
    cluster has is known when it is joined."""
    if joined_cluster() is not None:
        return
    from torch import cuda

    held, gpus, problems = settings.study.resources_per_worker, cuda.device_count(), []
    if settings.train.device == "cuda" and (not gpus or not held.get("GPU")):
        reason = "ask for study.resources_per_worker.GPU=1" if gpus else "this machine has none that PyTorch sees"
        text = f"train.device is cuda, for which each worker needs a GPU; {reason}"
        problems.append(Problem(("train.device",), Kind.VALUE, "settings", text))
    node = {"CPU": float(get_num_cpus()), "GPU": float(gpus)}
    node |= {
        name: float(_accelerators(name)) for name in held if name in get_all_accelerator_resource_names() - {"GPU"}
    }
    for name in held.keys() - node.keys() - FOUND_BY_RAY:
        meant = closest(name, node)
        text = f"study.resources_per_worker: this machine has no {name}" + (f". Did you mean {meant}?" if meant else "")
        problems.append(Problem(("study.resources_per_worker",), Kind.VALUE, "settings", text))
    if not held.keys() - node.keys():
        try:
            _gangs_on([node], [], settings)
        except UserError as error:
            keys = ("study.workers_per_trial", "study.resources_per_worker")
            problems.append(Problem(keys, Kind.VALUE, "settings", str(error)))
    if problems:
        raise SettingsError(problems)


def _gangs_on(nodes: Sequence[Resources], possible: Sequence[Resources], settings: Settings) -> int:
    study = settings.study
    needed, workers = study.resources_per_worker, study.workers_per_trial
    fits = max(workers_on(held, needed) for held in (nodes, possible)) // workers
    if fits < 1:
        best = max((nodes, possible), key=lambda held: sum(sum(node.values()) for node in _of(held, needed)))
        wanted = ", ".join(f"{name} {amount:g}" for name, amount in needed.items())
        asked = ", ".join(f"study.resources_per_worker.{name}={amount:g}" for name, amount in needed.items())
        total = ", ".join(f"{name} {workers * amount:g}" for name, amount in needed.items())
        held = "; ".join(", ".join(f"{name} {node[name]:g}" for name in needed) for node in _of(best, needed))
        places = "the node has" if len(best) == 1 else f"the {len(best)} nodes have"
        raise UserError(
            f"study.workers_per_trial={workers} with {asked} "
            f"needs {wanted} on a node for each worker, {total} at once, and {places} {held or 'nothing'}; "
            "ask for fewer workers or less for each"
        )
    return _wanted(fits, settings)


def _wanted(fits: int, settings: Settings) -> int:
    """Of the gangs that fit, those that the study has a use for, in the search or after it."""
    study = settings.study
    at_once = max(study.budget.trials, study.confirm.finalists * study.confirm.seeds)
    return min(fits, at_once, study.concurrent_trials or fits)


def workers_on(nodes: Sequence[Resources], needed: Resources) -> int:
    """How many workers these nodes hold at a time. A worker is on one node; those of a gang may be on several."""
    return sum(min(math.floor(node.get(name, 0) / amount + 1e-9) for name, amount in needed.items()) for node in nodes)


def of_most_use(nodes: Sequence[Resources], needed: Resources) -> list[Resources]:
    """The nodes in an order: those first that hold most workers, and where none fits, that come closest to one."""

    def use(node: Resources) -> tuple[int, float]:
        return workers_on([node], needed), sum(min(node.get(name, 0) / amount, 1) for name, amount in needed.items())

    return sorted(nodes, key=use, reverse=True)


def _of(nodes: Sequence[Resources], needed: Resources) -> list[dict[str, float]]:
    return [{name: node.get(name, 0) for name in needed} for node in nodes]


def present_nodes() -> list[Resources]:
    """What each node of the cluster holds that takes work: not one that is about to be taken away, or left out."""
    going = ray._private.state.state.get_draining_nodes()
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in going]


def nodes_to_come(needed: Resources) -> list[Resources]:
    """The nodes that an autoscaler may bring the cluster to for workers that need so much: by the file that `ray up`
    leaves on the head, else by what the autoscaler has told Ray, as that of Kubernetes does."""
    bootstrap = Path(BOOTSTRAP).expanduser()
    return possible_nodes(bootstrap, needed) if bootstrap.exists() else reported_nodes(ray._private.state.state)


def reported_nodes(state: Any) -> list[Resources]:
    """The kinds of nodes that an autoscaler has told the GCS of, each as often as there may be one."""
    config = state.get_cluster_config()
    groups = [] if config is None else config.node_group_configs
    return [
        dict(group.resources)
        for group in groups
        for _ in range(MOST_NODES if group.max_count < 0 else min(group.max_count, MOST_NODES))
    ]


def _cluster_file(bootstrap: Path) -> dict[str, Any]:
    return (yaml.safe_load(bootstrap.read_text()) or {}) if bootstrap.exists() else {}


def machines_of_unknown_resources(bootstrap: Path) -> int:
    """How many machines a cluster's file names that are always there, the head among them, where it does not say what
    they hold: those of one's own. 0 where it says so, or where there is no file."""
    config = _cluster_file(bootstrap)
    kinds = [kind for kind in (config.get("available_node_types") or {}).values() if not kind.get("resources")]
    return 1 + sum(kind.get("min_workers", 0) for kind in kinds) if kinds else 0


def possible_nodes(bootstrap: Path, needed: Resources) -> list[Resources]:
    """The nodes that the cluster may grow to where an autoscaler has its file: as many of a kind as the kind allows,
    and of all kinds no more than the cluster does, which then has those of most use; the head once."""
    config = _cluster_file(bootstrap)
    head: list[Resources] = []
    workers: list[Resources] = []
    for name, node in (config.get("available_node_types") or {}).items():
        held = {resource: float(amount) for resource, amount in (node.get("resources") or {}).items()}
        if name == config.get("head_node_type"):
            head = [held]
        else:
            workers += [held] * node.get("max_workers", 0)
    return head + of_most_use(workers, needed)[: config.get("max_workers", 0)]
