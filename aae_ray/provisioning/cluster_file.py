"""A cluster file as typed records: what Ray's cluster launcher will ask a provider for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from aae_ray.errors import UserError

PROVIDERS = ("aws", "local")  # that can be checked
ON_DEMAND, SPOT = "on-demand", "spot"


def mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """What is under a key; nothing where that is no mapping, as Ray lets anything pass in `provider` and
    `node_config`."""
    value = content.get(key)
    return value if isinstance(value, Mapping) else {}


@dataclass(frozen=True)
class NodeType:
    """A kind of machine: how many of it there may be, and what EC2 is told of it."""

    name: str
    most: int
    node_config: Mapping[str, Any]  # of RunInstances

    @property
    def instance_type(self) -> str:
        return str(self.node_config.get("InstanceType", ""))

    @property
    def market(self) -> str:
        return SPOT if mapping(self.node_config, "InstanceMarketOptions").get("MarketType") == "spot" else ON_DEMAND

    @property
    def profile(self) -> str | None:
        """The name of its instance profile."""
        profile = mapping(self.node_config, "IamInstanceProfile")
        return str(profile.get("Name") or profile.get("Arn") or "").rpartition("/")[2] or None

    @property
    def security_groups(self) -> list[str]:
        """Those that it states, by id."""
        groups = self.node_config.get("SecurityGroupIds")
        return [str(group) for group in groups] if isinstance(groups, list) else []

    @property
    def disks(self) -> list[Mapping[str, Any]]:
        """What EC2 is told of each."""
        disks = self.node_config.get("BlockDeviceMappings")
        return [mapping({"disk": disk}, "disk") for disk in disks] if isinstance(disks, list) else []


@dataclass(frozen=True)
class ClusterFile:
    """A file for `ray up`. `content` is what Ray reads in it; the rest is what checks ask for, out of that."""

    path: Path
    content: Mapping[str, Any]

    @property
    def provider(self) -> Mapping[str, Any]:
        return mapping(self.content, "provider")

    @property
    def region(self) -> str:
        return str(self.provider.get("region", ""))

    @property
    def zones(self) -> tuple[str, ...]:
        """Availability zones; empty where any will do."""
        names = str(self.provider.get("availability_zone") or "").split(",")
        return tuple(name.strip() for name in names if name.strip())

    @property
    def node_types(self) -> tuple[NodeType, ...]:
        """All kinds of machines, the head's first."""
        head, kinds = self.content.get("head_node_type"), []
        in_all = self.content.get("max_workers", 2)  # Ray's default
        for name, kind in mapping(self.content, "available_node_types").items():
            kind = kind if isinstance(kind, Mapping) else {}
            most = 1 if name == head else min(kind.get("max_workers", in_all), in_all)
            kinds.append(NodeType(str(name), most, mapping(kind, "node_config")))
        return tuple(sorted(kinds, key=lambda kind: kind.name != head))

    @property
    def head(self) -> NodeType:
        return next(iter(self.node_types), NodeType("head", 1, {}))

    @property
    def security_group(self) -> str:
        """The name of the group that Ray gives to machines whose configuration names none."""
        group = mapping(self.provider, "security_group").get("GroupName")
        return str(group or f"ray-autoscaler-{self.content.get('cluster_name')}")

    @property
    def hosts(self) -> tuple[str, ...]:
        """Addresses of the machines of the provider `local`, the head's first."""
        workers = self.provider.get("worker_ips")
        workers = workers if isinstance(workers, list) else []
        return tuple(str(host) for host in (self.provider.get("head_ip"), *workers) if host)


def read_cluster_file(path: Path) -> ClusterFile:
    """Read a cluster file as Ray does.

    Raises UserError when it cannot be read, is not for `ray up`, or is for a provider that this project has no file
    for.
    """
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    content = documents[0] if documents else None
    if not isinstance(content, Mapping):
        raise UserError(f"{path} has no keys; a cluster file is like cluster/gpu.yaml")
    if "apiVersion" in content:
        raise UserError(
            f"{path} is for Kubernetes ({content.get('kind', 'no kind')}), not for `ray up`: `kubectl apply "
            f"--dry-run=server -f {path}` checks it, and needs KubeRay in the cluster"
        )
    if len(documents) > 1:
        raise UserError(f"{path} has {len(documents)} documents, parted by ---; Ray reads a file of one")
    kind = mapping(content, "provider").get("type")
    if kind is None:
        raise UserError(f"{path}: provider.type is missing; a cluster file is like cluster/gpu.yaml")
    if kind not in PROVIDERS:
        raise UserError(
            f"{path}: provider.type is {kind}; this command knows {' and '.join(PROVIDERS)}, as in cluster/gpu.yaml "
            f"and cluster/on_prem.yaml. Ray may know {kind}, but nothing of it is checked here"
        )
    return ClusterFile(path, content)
