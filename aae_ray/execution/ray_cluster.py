"""Ray: joined where a cluster runs on this machine, started here otherwise, without its chatter."""

import gc
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services
from ray._private.grpc_utils import init_grpc_channel
from ray.exceptions import AuthenticationError

from aae_ray.errors import UserError
from aae_ray.execution.capacity import Resources, joined_cluster, nodes_to_come
from aae_ray.search.owner import is_running
from aae_ray.secrets import redact

# Read by Ray when it is started or used; a value that the user has set wins.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # its default of 2 s delays the end of every gang
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "300",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "300",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # trials go on from their own checkpoints
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_maximum_startup_concurrency": "64",  # at three times as many starting processes it warns the user
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has the records
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours also tells apart who ended the study
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # costly metrics are absent between rungs
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
PROBE_SECONDS, MISSES = 2.0, 3  # between questions to the GCS of a cluster; unanswered ones, after which it is lost
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 8.0
START_SECONDS = 180.0  # Ray gives each of its processes 30 s and says so, but where its own code waits there is no end
SOCKET_NAME_BYTES = 107  # that Linux allows for the name of a socket; macOS allows 103
SOCKET_NAME = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # Ray's longest, below TMPDIR
THREADS = 500  # of Ray's processes and a study's own; two cores had 483 at a time, and a study hung with 400
HEAD = "node:__internal_head__"  # a resource that the head has
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what `ray job submit` tells the processes of a job
LOOPBACK = "127.0.0.1"
TOKEN = "~/.ray/auth_token"
VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")  # in Ray's error of a mismatch: the cluster's, then this process's


@contextmanager
def ray_cluster(*, verbose: bool, stuck: Callable[[str], None]) -> Iterator[None]:
    """Ray for as long as this lasts: the cluster that runs on this machine, else a local one that ends with all its
    processes and that listens on the loopback interface alone. Ray's messages reach the user only if `verbose`.

    Ray's own code may wait for ever for a process that hangs, and no exception or signal reaches it there: after
    START_SECONDS `stuck` is called with a sentence, in a thread of its own, which may end this process.

    Raises UserError when the cluster does not answer, is of another version or does not know the token, or when Ray
    cannot start here.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not verbose:
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one prints a table at any verbosity
        warnings.filterwarnings("ignore", module=r"ray\..*")
    options: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    address = os.environ.get("RAY_ADDRESS")
    if (joined := joined_cluster()) is not None:
        # Processes on the nodes of a cluster have the environment of their node, not of this process.
        options["runtime_env"] = {"env_vars": {name: os.environ[name] for name in ENVIRONMENT}}
        check_address(joined)
        start = _join
    else:
        check_temporary_folder()
        check_process_limit()
        start = _start_here
    try:
        start(options, stuck)
    except AuthenticationError:
        raise UserError(_told_of_token(address, found="none")) from None
    except ConnectionError as error:
        if AuthenticationError.__name__ in str(error.__cause__):  # the GCS refused it, which Ray puts into a text
            raise UserError(_told_of_token(address, found="another")) from None
        raise UserError(f"no Ray cluster answers at {_where(address)}: {str(error).splitlines()[0]}") from None
    except RuntimeError as error:
        versions = VERSIONS.findall(str(error)) if "Version mismatch" in str(error) else []
        if len(versions) != 2:
            raise
        (ray_there, python_there), (ray_here, python_here) = versions
        raise UserError(
            f"the Ray cluster at {_where(address)} is of another version: Ray {ray_there} with Python {python_there} "
            f"there, Ray {ray_here} with Python {python_here} here; run this command with the versions of the cluster, "
            "or stop the cluster"
        ) from None
    try:
        token = Path(TOKEN).expanduser()
        if token.exists():
            token.chmod(0o600)  # Ray writes it readable for everyone
        yield
    finally:
        _shut_down()


def _shut_down() -> None:
    """Shut Ray down while nothing is collected. Garbage holds references of Ray's, any thread that allocates may
    collect it, and Ray's own code ends the process without a word where one is let go of in mid-shutdown."""
    collects = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if collects:
            gc.enable()


def _join(options: dict[str, Any], stuck: Callable[[str], None]) -> None:
    """Join the cluster that runs on this machine."""
    told = (
        f"the Ray cluster at {_where(os.environ.get('RAY_ADDRESS'))} took no notice of this process for "
        f"{START_SECONDS:g} s; a process of Ray on this machine may hang: restart Ray and type the command again"
    )
    with _within(START_SECONDS, lambda: stuck(told)):
        ray.init(**options)


def _start_here(options: dict[str, Any], stuck: Callable[[str], None]) -> None:
    """Start Ray on this machine. Raises UserError where it does not come up."""
    started: list[subprocess.Popen[bytes]] = []

    def give_up() -> None:
        for process in started:  # one that hangs does not notice that this process ends
            process.kill()
        stuck(_late())

    try:
        with _own_session(started), _within(START_SECONDS, give_up):
            _start_on_loopback(options)
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if "timed out" in reason.lower():
            raise UserError(_late()) from error
        raise UserError(f"Ray could not be started on this machine: {redact(reason)}; {_logs()}") from error


@contextmanager
def _within(seconds: float, late: Callable[[], None]) -> Iterator[None]:
    """Call `late`, in a thread of its own, where this lasts longer."""
    timer = threading.Timer(seconds, late)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _late() -> str:
    return (
        f"Ray's processes did not come up in time on this machine, which {_load()}; wait until it is less busy, or end "
        f"other programs, and type the command again. {_logs()}"
    )


def _logs() -> str:
    return f"Ray's logs are in {_temporary_folder()}/ray/session_latest/logs"


def _load() -> str:
    """How busy this machine is."""
    cores = os.cpu_count() or 1
    try:
        waiting = os.getloadavg()[0]
    except OSError:
        return f"has {cores} cores"
    return f"has {waiting:.0f} processes at work or waiting for one of its {cores} cores"


def _start_on_loopback(options: dict[str, Any]) -> None:
    """Start Ray with a node on 127.0.0.1: every server of Ray then listens there, and on no other interface.

    Ray replaces a loopback address by that of the network unless it takes the platform for one without clusters, as it
    does Windows and macOS by itself; in this process the switch has been read already.
    """
    switch = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    before = os.environ.get(switch), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[switch], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # for the workers of a gang among each other
    try:
        ray.init(**options, _node_ip_address=LOOPBACK)
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before[1]
        if before[0] is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before[0]


@contextmanager
def _own_session(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Ray's processes, which are added to the list, get a session of their own: a signal to the group of this process,
    as of a closed terminal, must not take them away while the study is being closed. They end with this process all the
    same, as Linux tells them."""

    class Popen(services.ConsolePopen):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **given: Any) -> None:
            super().__init__(*arguments, start_new_session=sys.platform == "linux", **given)
            processes.append(self)

    before, services.ConsolePopen = services.ConsolePopen, Popen
    try:
        yield
    finally:
        services.ConsolePopen = before


def _where(address: str | None) -> str:
    return address or "the address that this machine remembers (forget it with `ray stop`)"


def _told_of_token(address: str | None, found: str) -> str:
    """What to do where Ray has found no token of a cluster, or another."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    place = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else f"{path} (RAY_AUTH_TOKEN_PATH)" if path else TOKEN
    wrong = f"{place} holds {found}"
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":  # none was shown
        wrong = "RAY_AUTH_MODE is not token here; set RAY_AUTH_MODE=token"
    return (
        f"the Ray cluster at {_where(address)} needs its token, and {wrong}; put what the cluster's "
        f"head has in its {TOKEN} into {place}"
    )


def check_address(address: str | None) -> None:
    """Raises UserError when no Ray answers at a cluster's address: Ray itself would try for minutes."""
    if (address or "").startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS={address}: a study needs Ray's processes beside it and does not run through Ray Client; run "
            "this command on a node of the cluster, with RAY_ADDRESS=auto or unset"
        )
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdigit():
        return  # `auto` is Ray's to understand
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        if _speaks_grpc(f"{host}:{port}"):
            return
        reason = f"what listens there did not answer as Ray does within {ANSWER_SECONDS:g} s"
    except OSError as error:
        reason = error.strerror or str(error) or "no answer"
    told = address if os.environ.get("RAY_ADDRESS") else f"{address}, {_where(None)}"
    raise UserError(f"no Ray cluster answers at {told}: {reason}")


def _speaks_grpc(place: str) -> bool:
    """Whether a server answers there in Ray's protocol: it may be another one, or a cluster's that hangs."""
    answered = threading.Event()
    channel = init_grpc_channel(place, options=[("grpc.enable_http_proxy", 0)])
    try:
        channel.subscribe(lambda state: answered.set() if state.name == "READY" else None, try_to_connect=True)
        return answered.wait(ANSWER_SECONDS)
    finally:
        channel.close()


def check_temporary_folder() -> None:
    """Raises UserError when the name of the folder for temporary files leaves no room for those of Ray's sockets."""
    folder = _temporary_folder()
    limit = SOCKET_NAME_BYTES if sys.platform == "linux" else 103
    room = limit - len(SOCKET_NAME)
    if len(os.fsencode(folder)) > room:
        raise UserError(
            f"TMPDIR is too long for Ray, which puts sockets there: {len(os.fsencode(folder))} bytes, and at most "
            f"{room} are possible: {folder}; set TMPDIR to a shorter folder, such as /tmp"
        )


def check_process_limit(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> None:
    """Raises UserError when a control group, as of a container, leaves no room for the threads of Ray's processes: Ray
    would wait for ever for a worker that it cannot start."""
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:  # not Linux
        return
    for _, controllers, name in lines:
        if controllers not in ("", "pids"):  # that of version 2 has no name
            continue
        group = root / controllers / name.lstrip("/")
        for place in (group, *group.parents):
            try:
                limit, current = (int((place / f"pids.{each}").read_text()) for each in ("max", "current"))
            except (OSError, ValueError):  # no limit, or not this kind of folder
                continue
            if limit - current < THREADS:
                raise UserError(
                    f"this container may have {limit} processes and threads, and has {current}; Ray and a study need "
                    f"{THREADS} more: raise its limit, such as docker run --pids-limit={current + 4 * THREADS}"
                )


def _temporary_folder() -> str:
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"


def own_processes() -> dict[str, int]:
    """By name, the processes without which the local Ray that this process started is no more; none where it joined a
    cluster."""
    node = ray._private.worker._global_node
    kinds = (ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER)
    processes = node.all_processes if node is not None else {}
    return {kind: started[0].process.pid for kind in kinds if (started := processes.get(kind))}


class RayWatch:
    """Whether Ray still lives: Ray's own code ends this process some time after its raylet or GCS has died.

    Of a Ray that this process started it looks at the processes, of a cluster that it joined at the addresses of the
    GCS and of this node's raylet.
    """

    def __init__(self) -> None:
        self.pids = own_processes()
        self.addresses = {} if self.pids else _addresses()
        self.misses, self.asked = dict.fromkeys(self.addresses, 0), time.monotonic()

    def lost(self) -> str | None:
        """The part of Ray that has ended. Asked often. A part of a cluster is lost when it does not answer thrice."""
        if self.pids:
            return next((kind for kind, pid in self.pids.items() if not is_running(pid)), None)
        if time.monotonic() - self.asked < PROBE_SECONDS:
            return None
        for kind, (host, port) in self.addresses.items():
            try:
                socket.create_connection((host, port), PROBE_SECONDS).close()
                self.misses[kind] = 0
            except OSError:
                self.misses[kind] += 1
        self.asked = time.monotonic()
        return next((kind for kind, misses in self.misses.items() if misses >= MISSES), None)


def _addresses() -> dict[str, tuple[str, int]]:
    """Where the parts of a cluster listen without which this process is cut off from it."""
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    found = {ray_constants.PROCESS_TYPE_GCS_SERVER: (host.strip("[]"), int(port))}
    for node in ray.nodes():
        if node["NodeID"] == context.get_node_id():
            found[ray_constants.PROCESS_TYPE_RAYLET] = (node["NodeManagerAddress"], node["NodeManagerPort"])
    return found


def whereabouts(needed: Resources) -> str:
    """Where trials will run, whose workers need so much: on a Ray of this process, or on a cluster that it has joined,
    from which of its nodes."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    held = ", ".join(
        f"{total:g} {name}"
        for name in ("CPU", "GPU")
        if (total := sum(node["Resources"].get(name, 0) for node in nodes))
    )
    if own_processes():
        return f"this machine, with {held}"
    here, context = ray.get_runtime_context().get_node_id(), ray.get_runtime_context()
    on_head = any(HEAD in node["Resources"] for node in nodes if node["NodeID"] == here)
    place = "its head" if on_head else "one of its nodes"
    job = json.loads(os.environ.get(JOB_CONFIG, "{}")).get("metadata", {}).get("job_submission_id")
    how = f"as job {job} on {place}" if job else f"from {place}"
    more = len(nodes_to_come(needed))
    grows = f", and may grow to {more} by its autoscaler" if more > len(nodes) else ""
    count = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    return f"the Ray cluster at {context.gcs_address}, {how}: {count} with {held or 'no CPU'}{grows}"


# ------------------------------------------------------------------------------------------------------- what fits
