"""The project's cluster files, with what only the lab needs laid over them."""

from pathlib import Path
from typing import Any

import yaml

from cluster.lab.system import REPOSITORY

OBJECT_STORE_BYTES = 100_000_000
IDLE_MINUTES = 0.5
MOST_WORKERS = 2
TRIES = 5
SET_UP = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
PROJECT = "~/aae-ray"


def aws_file() -> dict[str, Any]:
    """cluster/gpu.yaml with private addresses, a short patience with idle nodes, small object stores, the lab's
    Python in place of an installation, and the security group that Ray makes."""
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster/gpu.yaml").read_text())
    config["provider"]["use_internal_ips"] = True
    config["idle_timeout_minutes"] = IDLE_MINUTES
    config["max_workers"] = MOST_WORKERS
    for name, node in config["available_node_types"].items():
        node["node_config"].pop("SecurityGroupIds", None)
        if name != config["head_node_type"]:
            node["max_workers"] = MOST_WORKERS
    return _of_the_lab(config)


def on_prem_file(key: Path, head: str, workers: list[str]) -> dict[str, Any]:
    """Machines that are up already, for Ray's provider `local`."""
    start = "ulimit -n 65536; ray start"
    config = {
        "cluster_name": "aae-on-prem",
        "provider": {"type": "local", "head_ip": head, "worker_ips": workers},
        "auth": {"ssh_user": "ubuntu", "ssh_private_key": str(key)},
        "file_mounts": {PROJECT: ".", "~/.ray/auth_token": "~/.ray/auth_token"},
        "rsync_filter": [".gitignore"],
        "head_start_ray_commands": [
            "ray stop",
            f"{start} --head --port=6379 --num-cpus=0 --autoscaling-config=~/ray_bootstrap_config.yaml "
            "--dashboard-host=127.0.0.1",
        ],
        "worker_start_ray_commands": ["ray stop", f"{start} --address=$RAY_HEAD_IP:6379 --num-cpus=1"],
    }
    return _of_the_lab(config)


def _of_the_lab(config: dict[str, Any]) -> dict[str, Any]:
    for name in SET_UP:
        config[name] = []
    config["setup_commands"] = ["chmod 700 ~/.ray && chmod 600 ~/.ray/auth_token"]
    config.pop("cluster_synced_files", None)
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        config[name] = [_patient(command) if "ray start" in command else command for command in config[name]]
    return config


def _patient(start: str) -> str:
    """A start that is tried again: Ray gives a raylet 30 s to register, too few where several nodes share two cores."""
    command = f"{start} --object-store-memory={OBJECT_STORE_BYTES}"
    return f"for n in $(seq {TRIES}); do ({command}) && exit 0; ray stop --force; done; false"
