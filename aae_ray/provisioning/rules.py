"""What Ray's schema and EC2 let pass in a cluster file, and this project does not: a row each."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aae_ray.provisioning.cluster_file import ON_DEMAND, ClusterFile, NodeType, mapping
from aae_ray.provisioning.lock import NAME as LOCK_NAME

COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
ANOTHER_RAY = re.compile(r"\bray(\[[^]]*\])?\s*[=<>~!]=|\bray-[^\s]*\.whl")
INSTALL = re.compile(r"pip install .*(-r|--requirement) \S*" + re.escape(LOCK_NAME))
DASHBOARD = re.compile(r"--dashboard-host[= ](\S+)")
PROVIDER_KEYS = {  # Ray lets any others pass
    "aws": {"type", "region", "availability_zone", "cache_stopped_nodes", "security_group", "use_internal_ips"},
    "local": {"type", "head_ip", "worker_ips", "external_head_ip", "use_internal_ips"},
}


@dataclass(frozen=True)
class Rule:
    """What must hold of a cluster file: `broken` gives the parts that break it, the empty text for the file itself."""

    key: str
    broken: Callable[[ClusterFile], list[str]]
    text: str  # where it is broken; `{part}` stands for a part
    providers: tuple[str, ...] = ("aws", "local")


def broken_rules(file: ClusterFile) -> list[tuple[str, str]]:
    """The key and a sentence for each rule that a file breaks."""
    kind = file.provider["type"]
    return [
        (rule.key, rule.text.format(part=part))
        for rule in RULES
        if kind in rule.providers
        for part in rule.broken(file)
    ]


def commands(file: ClusterFile, *keys: str) -> str:
    """The commands under some keys, or under all, a line each."""
    found = [file.content.get(key) or [] for key in keys or COMMANDS]
    return "\n".join(str(command) for listed in found for command in listed)


def _unless(holds: Callable[[ClusterFile], bool]) -> Callable[[ClusterFile], list[str]]:
    return lambda file: [] if holds(file) else [""]


def _kinds(holds: Callable[[NodeType], bool]) -> Callable[[ClusterFile], list[str]]:
    return lambda file: [kind.name for kind in file.node_types if not holds(kind)]


def _workers(holds: Callable[[Mapping[str, Any]], bool]) -> Callable[[ClusterFile], list[str]]:
    def broken(file: ClusterFile) -> list[str]:
        kinds = file.content.get("available_node_types") or {}
        return [name for name, kind in kinds.items() if name != file.content.get("head_node_type") and not holds(kind)]

    return broken


def _head_kind(file: ClusterFile) -> Mapping[str, Any]:
    kind = (file.content.get("available_node_types") or {}).get(file.content.get("head_node_type"))
    return kind if isinstance(kind, Mapping) else {}


def _mounts_the_token(file: ClusterFile) -> bool:
    mounts = file.content.get("file_mounts") or {}
    return any(str(place).rstrip("/").endswith((".ray", ".ray/auth_token")) for place in mounts)


def _one_of_each_market(file: ClusterFile) -> bool:
    """Whether for each kind on spot there is one on demand of the same machine, with a label by which it is asked."""
    kinds = file.content.get("available_node_types") or {}
    labelled = {
        kind.instance_type
        for kind in file.node_types[1:]
        if kind.market == ON_DEMAND and (kinds[kind.name].get("labels") or {}).get("market") == ON_DEMAND
    }
    return all(kind.instance_type in labelled for kind in file.node_types[1:] if kind.market != ON_DEMAND)


def _spot_comes_first(file: ClusterFile) -> bool:
    kinds = file.content.get("available_node_types") or {}
    priorities: dict[bool, list[float]] = {True: [], False: []}
    for kind in file.node_types[1:]:
        priorities[kind.market == ON_DEMAND].append(kinds[kind.name].get("priority", 0))
    return not all(priorities.values()) or min(priorities[False]) > max(priorities[True])


RULES: tuple[Rule, ...] = (
    *(
        Rule(
            key,
            _unless(lambda file, key=key: key in file.content),  # type: ignore[misc]
            f"{key} is missing, and Ray's default for it installs a nightly Ray or opens the dashboard; give a list, "
            "[] if there are none",
        )
        for key in COMMANDS
    ),
    Rule(
        "provider",
        lambda file: sorted(set(file.provider) - PROVIDER_KEYS[file.provider["type"]]),
        "provider.{part} is no setting of this provider, and Ray would ignore it",
    ),
    Rule(
        "provider.cache_stopped_nodes",
        _unless(lambda file: file.provider.get("cache_stopped_nodes") is False),
        "provider.cache_stopped_nodes must be false: by default `ray down` only stops machines, and their disks go on "
        "costing",
        ("aws",),
    ),
    Rule(
        "provider.region",
        _unless(lambda file: bool(file.region)),
        "provider.region is missing; give one such as us-west-2",
        ("aws",),
    ),
    Rule(
        "provider.worker_ips",
        _unless(lambda file: isinstance(file.provider.get("worker_ips", []), list)),
        "provider.worker_ips must be a list of the workers' addresses, such as [10.0.0.2, 10.0.0.3]",
        ("local",),
    ),
    Rule(
        "node_config.ImageId",
        _kinds(lambda kind: "ImageId" in kind.node_config),
        "{part}: node_config.ImageId is missing, and Ray's default is an Ubuntu of 2018",
        ("aws",),
    ),
    Rule(
        "node_config.IamInstanceProfile",
        _kinds(lambda kind: kind.profile is not None),
        "{part}: node_config.IamInstanceProfile is missing: a worker without it cannot reach the bucket, and a head "
        "gets one of Ray's that may do anything with EC2 and S3",
        ("aws",),
    ),
    Rule(
        "node_config.MetadataOptions",
        _kinds(lambda kind: mapping(kind.node_config, "MetadataOptions").get("HttpTokens") == "required"),
        "{part}: node_config.MetadataOptions must have HttpTokens: required (IMDSv2); without it a request that a "
        "program on the machine is made to send gives away the machine's keys",
        ("aws",),
    ),
    Rule(
        "node_config.BlockDeviceMappings",
        _kinds(lambda kind: all(mapping(disk, "Ebs").get("DeleteOnTermination") is not False for disk in kind.disks)),
        "{part}: a disk with DeleteOnTermination: false costs money after its machine has gone",
        ("aws",),
    ),
    Rule(
        "head.resources",
        _unless(lambda file: (_head_kind(file).get("resources") or {}).get("CPU") == 0),
        "the head's resources must be {{CPU: 0}}: a trial there can take the machine down that must not die",
        ("aws",),
    ),
    Rule(
        "head.max_workers",
        _unless(lambda file: _head_kind(file).get("max_workers") == 0),
        "the head's max_workers must be 0, or the autoscaler may start a second head",
        ("aws",),
    ),
    Rule(
        "head.InstanceMarketOptions",
        _unless(lambda file: file.head.market == ON_DEMAND),
        "the head must be on demand: when a spot head is taken away, the study ends",
        ("aws",),
    ),
    Rule(
        "head.InstanceInitiatedShutdownBehavior",
        _unless(lambda file: file.head.node_config.get("InstanceInitiatedShutdownBehavior") == "terminate"),
        "the head's InstanceInitiatedShutdownBehavior must be terminate, or its disk goes on costing after a shutdown",
        ("aws",),
    ),
    Rule(
        "worker.min_workers",
        _workers(lambda kind: kind.get("min_workers", 0) == 0),
        "{part}: min_workers must be 0: others cost money while no study runs",
        ("aws",),
    ),
    Rule(
        "worker.market",
        _unless(_one_of_each_market),
        "a worker type on spot needs one on demand beside it, of the same InstanceType and with labels: {{market: "
        "on-demand}}: Ray itself asks for spot for ever",
        ("aws",),
    ),
    Rule(
        "worker.priority",
        _unless(_spot_comes_first),
        "worker types on spot need a higher priority than those on demand, which otherwise are started first",
        ("aws",),
    ),
    Rule(
        "dashboard",
        _unless(lambda file: DASHBOARD.findall(commands(file, "head_start_ray_commands")) == ["127.0.0.1"]),
        "head_start_ray_commands must have --dashboard-host=127.0.0.1, once: who reaches the dashboard runs code",
    ),
    Rule(
        "autoscaler",
        _unless(
            lambda file: "--autoscaling-config=~/ray_bootstrap_config.yaml" in commands(file, "head_start_ray_commands")
        ),
        "head_start_ray_commands must have --autoscaling-config=~/ray_bootstrap_config.yaml, or no worker ever starts",
    ),
    Rule(
        "head_address",
        _unless(lambda file: "--address=$RAY_HEAD_IP:6379" in commands(file, "worker_start_ray_commands")),
        "worker_start_ray_commands must have --address=$RAY_HEAD_IP:6379, or workers find no head",
    ),
    Rule(
        "token",
        _unless(lambda file: "RAY_AUTH_MODE=token" in commands(file, "setup_commands")),
        "setup_commands must export RAY_AUTH_MODE=token in ~/.bashrc: without it a node takes orders from anyone who "
        "reaches it",
    ),
    Rule(
        "token_file",
        _unless(_mounts_the_token),
        "file_mounts must bring ~/.ray/auth_token to the nodes, without which they cannot join",
    ),
    Rule(
        "lock",
        _unless(
            lambda file: any(
                INSTALL.search(line) and "--require-hashes" in line
                for line in commands(file, "setup_commands").splitlines()
            )
        ),
        f"setup_commands must install cluster/{LOCK_NAME} with --require-hashes: nodes that start on another day "
        "otherwise get other versions, and cannot join",
    ),
    Rule(
        "another_ray",
        _unless(lambda file: ANOTHER_RAY.search(commands(file)) is None),
        f"the commands install a Ray of their own; the one of cluster/{LOCK_NAME} is that of the head and the workers",
    ),
)
