"""Ray: joined where a cluster runs on this machine, started here otherwise, without its chatter."""

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import yaml
from ray._private.utils import read_ray_address

from aae_ray.errors import UserError
from aae_ray.settings import Settings

# Read by Ray when it is started or used; a value that the user has set wins.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # its default of 2 s delays the end of every gang
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "300",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "300",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # trials restart from Tune's checkpoints
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_maximum_startup_concurrency": "64",  # at three times as many starting processes it warns the user
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has the records
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours also tells apart who ended the study
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # costly metrics are absent between rungs
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
BOOTSTRAP = "~/ray_bootstrap_config.yaml"  # the cluster's file, where `ray up` puts it on the head


@contextmanager
def cluster(*, verbose: bool) -> Iterator[None]:
    """Ray for as long as this lasts: the cluster that runs on this machine, else a local one that ends with all its
    processes. Ray's messages reach the user only if `verbose`."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not verbose:
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one prints a table at any verbosity
        warnings.filterwarnings("ignore", module=r"ray\..*")
    options: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    if os.environ.get("RAY_ADDRESS") or read_ray_address():
        # Processes on the nodes of a cluster have the environment of their node, not of this process.
        options["runtime_env"] = {"env_vars": {name: os.environ[name] for name in ENVIRONMENT}}
    try:
        ray.init(**options)
    except ConnectionError as error:
        place = os.environ.get("RAY_ADDRESS") or "the address that this machine remembers (forget it with `ray stop`)"
        raise UserError(f"no Ray cluster answers at {place}: {str(error).splitlines()[0]}") from None
    try:
        token = Path("~/.ray/auth_token").expanduser()
        if token.exists():
            token.chmod(0o600)  # Ray writes it readable for everyone
        yield
    finally:
        ray.shutdown()


def send_log_to(path: Path) -> None:
    """What Ray's libraries log in this process goes to a file."""
    logger = logging.getLogger("ray")
    logger.handlers = [logging.FileHandler(path, delay=True)]
    logger.propagate = False


def gangs_that_fit(run: Settings) -> int:
    """How many gangs run at a time. Raises UserError when not even one fits into the cluster."""
    need = gang_resources(run)
    have = possible_resources(ray.cluster_resources(), Path(BOOTSTRAP).expanduser())
    fits = min(math.floor(have.get(name, 0) / amount + 1e-9) for name, amount in need.items())
    if fits < 1:
        wanted = ", ".join(f"{name} {amount:g}" for name, amount in need.items())
        held = ", ".join(f"{name} {have.get(name, 0):g}" for name in need)
        raise UserError(
            f"study.workers_per_trial={run.study.workers_per_trial} with study.resources_per_worker="
            f"{ {name: float(f'{amount:g}') for name, amount in run.study.resources_per_worker.items()} } "
            f"needs {wanted} at once, and there is {held}; ask for fewer workers or less for each"
        )
    return min(fits, run.study.budget.trials, run.study.concurrent_trials or fits)


def gang_resources(run: Settings) -> dict[str, float]:
    """What all workers of a gang ask for together."""
    return {name: run.study.workers_per_trial * amount for name, amount in run.study.resources_per_worker.items()}


def possible_resources(present: Mapping[str, float], bootstrap: Path) -> dict[str, float]:
    """What the cluster holds, or may grow to where an autoscaler has its file."""
    have = dict(present)
    if bootstrap.exists():
        config: dict[str, Any] = yaml.safe_load(bootstrap.read_text()) or {}
        total: dict[str, float] = {}
        for name, node in (config.get("available_node_types") or {}).items():
            nodes = (
                1
                if name == config.get("head_node_type")
                else min(node.get("max_workers", 0), config.get("max_workers", 0))
            )
            for resource, amount in (node.get("resources") or {}).items():
                total[resource] = total.get(resource, 0) + nodes * float(amount)
        have |= {name: max(amount, have.get(name, 0)) for name, amount in total.items()}
    return have
