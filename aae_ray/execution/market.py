"""Machines on spot and on demand: which a cluster has, and how those on demand are asked for."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_status

from aae_ray.execution.capacity import BOOTSTRAP, of_most_use, workers_on
from aae_ray.search.events import MachinesChanged
from aae_ray.search.market import ON_DEMAND, Machines, OnDemandFallback
from aae_ray.settings import StudySettings

logger = logging.getLogger(__name__)
LABEL = "market"  # of node types in a cluster's file
LOOK_SECONDS = 10.0
ANSWER_SECONDS = 5  # of the GCS


def markets_of(content: Mapping[str, Any]) -> dict[str, str]:
    """The market of each node type in a cluster's file that has one."""
    kinds = content.get("available_node_types") or {}
    return {name: labels[LABEL] for name, kind in kinds.items() if LABEL in (labels := kind.get("labels") or {})}


def nodes_on_demand(content: Mapping[str, Any], needed: Mapping[str, float]) -> list[Mapping[str, float]]:
    """The resources of each machine on demand that a cluster's file allows at a time, those of most use first."""
    kinds, markets = content.get("available_node_types") or {}, markets_of(content)
    nodes = [
        kind.get("resources") or {}
        for name, kind in kinds.items()
        if markets.get(name) == ON_DEMAND
        for _ in range(kind.get("max_workers", 0))
    ]
    return of_most_use(nodes, needed)[: content.get("max_workers", 0)]


class Market:
    """Looks at the machines of a cluster now and then, and asks for some on demand where spot cannot be had."""

    def __init__(
        self,
        fallback: OnDemandFallback,
        see: Callable[[], Machines],
        request: Callable[[int], None],
        record: Callable[[MachinesChanged], None],
    ) -> None:
        """`see` may raise where Ray does not answer; nothing is decided then. `record` gets every change of what is
        there or asked for."""
        self.fallback, self.see, self.request, self.record = fallback, see, request, record
        self.looked = -LOOK_SECONDS
        self.told: tuple[dict[str, int], int] = ({}, 0)

    def look(self) -> None:
        """Called several times a second."""
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return
        self.looked = now
        try:
            machines = self.see()
            waited = self.fallback.waited(now)
            changed = self.fallback.look(now, machines) is not None
            if changed or self.fallback.asked:  # again each time, as other jobs on the cluster may replace it by theirs
                self.request(self.fallback.asked)
        except Exception:  # Ray is going down, or busy, which others tell: its errors here are of no common type
            logger.warning("the machines of the cluster could not be looked at", exc_info=True)
            return
        present = {market: count for market, count in machines.present.items() if count}
        if (present, self.fallback.asked) != self.told:
            self.told = (present, self.fallback.asked)
            self.record(MachinesChanged(present=present, asked_on_demand=self.fallback.asked, waited=waited))


@contextmanager
def market(
    study: StudySettings, poll: Callable[[], None], record: Callable[[MachinesChanged], None]
) -> Iterator[Callable[[], None]]:
    """`poll`, which is called several times a second while trials run, with a look at the machines where the cluster's
    file has some on demand beside others. What was asked for is asked for no longer afterwards, nor is it at the
    start, where an earlier driver may have died with its request."""
    path = Path(BOOTSTRAP).expanduser()
    content = (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}
    needed, markets = study.resources_per_worker, markets_of(content)
    nodes, after = nodes_on_demand(content, needed), study.cluster.on_demand_after
    most = workers_on(nodes, needed)
    if after is None or not most or len(set(markets.values())) < 2:
        yield poll
        return

    def request(workers: int) -> None:
        request_resources(bundles=[dict(needed)] * workers, bundle_label_selectors=[{LABEL: ON_DEMAND}] * workers)

    request(0)
    try:
        fallback = OnDemandFallback(after, most, workers_on(nodes[:1], needed))
        machines = Market(fallback, lambda: machines_now(needed, markets), request, record)

        def poll_and_look() -> None:
            poll()
            machines.look()

        yield poll_and_look
    finally:
        with suppress(Exception):  # Ray is gone, and the request with it
            request(0)


def machines_now(needed: Mapping[str, float], markets: Mapping[str, str]) -> Machines:
    """The machines of the cluster that has been joined."""
    groups = ray.util.placement_group_table().values()
    waiting = sum(
        1
        for group in groups
        if group["state"] in ("PENDING", "RESCHEDULING")
        for bundle in group["bundles"].values()
        if all(bundle.get(name, 0) >= amount for name, amount in needed.items())
    )
    present = Counter(
        node["Labels"][LABEL] for node in ray.nodes() if node["Alive"] and LABEL in (node.get("Labels") or {})
    )
    status = get_cluster_status(ray.get_runtime_context().gcs_address, timeout=ANSWER_SECONDS)
    coming = Counter(
        markets[node.ray_node_type_name] for node in status.pending_nodes if node.ray_node_type_name in markets
    )
    return Machines(waiting, dict(present), dict(coming))
