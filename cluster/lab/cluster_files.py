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
    """cluster/on_prem.yaml with the lab's machines, of one CPU each, and its Python in place of an installation."""
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster/on_prem.yaml").read_text())
    config["provider"] |= {"head_ip": head, "worker_ips": workers}
    config["auth"]["ssh_private_key"] = str(key)
    config["min_workers"] = config["max_workers"] = len(workers)
    starts = config["worker_start_ray_commands"]
    config["worker_start_ray_commands"] = [f"{each} --num-cpus=1" if "ray start" in each else each for each in starts]
    config = _of_the_lab(config)
    config["setup_commands"] += ["mkdir -p ~/venv/bin && ln -sf $(command -v ray) ~/venv/bin/ray"]  # for on_prem.sh
    return config


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
