"""Ray's start: what is refused before it, and what it listens on.

A cluster of another version is not started here, as one environment holds one Ray: its own check raises the error.
"""

import gc
import json
import os
import platform
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import ray
from ray._private import ray_constants
from ray._private.authentication.authentication_constants import TOKEN_AUTH_ENABLED_BUT_NO_TOKEN_FOUND_ERROR_MESSAGE
from ray._private.utils import check_version_info
from ray.exceptions import AuthenticationError

from aae_ray.errors import UserError
from aae_ray.execution import capacity
from aae_ray.execution import ray_cluster as cluster
from aae_ray.execution.ray_cluster import RayWatch, check_address, check_process_limit, check_temporary_folder


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What Ray was started with, on a machine where a cluster runs."""
    options: dict[str, object] = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(capacity, "read_ray_address", lambda: "10.0.0.1:6379")
    monkeypatch.setattr(cluster, "check_address", lambda address: None)
    monkeypatch.setattr(ray, "init", lambda **given: options.update(given))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return options


def test_the_cluster_that_runs_on_this_machine_is_joined(joined: dict[str, object]) -> None:
    with cluster.ray_cluster(verbose=False, stuck=print):
        pass
    assert "address" not in joined and "num_cpus" not in joined  # Ray finds it, and nothing of it is set anew
    runtime = joined["runtime_env"]
    assert isinstance(runtime, dict) and runtime["env_vars"].keys() == cluster.ENVIRONMENT.keys()


def test_nothing_is_collected_while_ray_shuts_down(joined: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference of Ray's that another thread lets go of meanwhile would end this process, with exit code 1."""
    collects: list[bool] = []
    monkeypatch.setattr(ray, "shutdown", lambda: collects.append(gc.isenabled()))
    with cluster.ray_cluster(verbose=False, stuck=print):
        pass
    assert collects == [False] and gc.isenabled()


def test_a_cluster_that_does_not_answer_is_a_sentence(
    joined: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance at 10.0.0.1:6379.\nmore")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    told = "no Ray cluster answers at the address that this machine remembers"
    with pytest.raises(UserError, match=told), cluster.ray_cluster(verbose=False, stuck=print):
        pass


def test_a_cluster_of_another_version_is_a_sentence(joined: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:  # in Ray's own words
        check_version_info({"ray_version": "2.50.1", "python_version": "3.10.4"}, "node 10.0.0.2")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(UserError) as caught, cluster.ray_cluster(verbose=False, stuck=print):
        pass
    here = f"Ray {ray.__version__} with Python {platform.python_version()} here"
    assert str(caught.value) == (
        f"the Ray cluster at 10.0.0.1:6379 is of another version: Ray 2.50.1 with Python 3.10.4 there, {here}; "
        "run this command with the versions of the cluster, or stop the cluster"
    )


def no_token() -> None:
    """In Ray's own words, before anything is asked of the cluster."""
    raise AuthenticationError(TOKEN_AUTH_ENABLED_BUT_NO_TOKEN_FOUND_ERROR_MESSAGE)


def refused_token() -> None:
    """As Ray does after its attempts: the reason is a text in an error behind the one that it raises."""
    refused = AuthenticationError("RPC error: InvalidAuthToken: Authentication token is missing or incorrect")
    attempt = "".join(traceback.format_exception(refused))
    failed = RuntimeError(f"Failed to connect to GCS. Last connection error: {attempt}")
    raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379") from failed


@pytest.mark.parametrize(
    ("init", "variables", "place", "wrong"),
    [
        (no_token, {}, "~/.ray/auth_token", "~/.ray/auth_token holds none"),
        (no_token, {"RAY_AUTH_TOKEN_PATH": "/t"}, "/t (RAY_AUTH_TOKEN_PATH)", "/t (RAY_AUTH_TOKEN_PATH) holds none"),
        (refused_token, {}, "~/.ray/auth_token", "~/.ray/auth_token holds another"),
        (refused_token, {"RAY_AUTH_TOKEN": "x"}, "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN holds another"),
        (
            refused_token,
            {"RAY_AUTH_MODE": "disabled"},
            "~/.ray/auth_token",
            "RAY_AUTH_MODE is not token here; set RAY_AUTH_MODE=token",
        ),
    ],
)
def test_a_cluster_without_its_token_is_a_sentence(
    joined: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    init: Callable[[], None],
    variables: dict[str, str],
    place: str,
    wrong: str,
) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: init())
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_MODE": "token", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught, cluster.ray_cluster(verbose=False, stuck=print):
        pass
    assert str(caught.value) == (
        f"the Ray cluster at 10.0.0.1:6379 needs its token, and {wrong}; put what the cluster's head "
        f"has in its ~/.ray/auth_token into {place}"
    )


def test_a_token_that_a_cluster_refuses_is_told_as_ray_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own code against a server that answers as the GCS of a cluster with another token does."""

    class Refusing(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, _: object) -> grpc.RpcMethodHandler:
            told = "InvalidAuthToken: Authentication token is missing or incorrect"
            return grpc.unary_unary_rpc_method_handler(
                lambda _, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, told)
            )

    server = grpc.server(ThreadPoolExecutor(1), handlers=(Refusing(),))
    port = server.add_insecure_port("0.0.0.0:0")  # Ray takes this machine's own address for a loopback one
    server.start()
    monkeypatch.setattr(ray_constants, "NUM_REDIS_GET_RETRIES", 1)  # seconds
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    try:
        with (
            pytest.raises(UserError, match=f"cluster at 127.0.0.1:{port} needs its token"),
            cluster.ray_cluster(verbose=False, stuck=print),
        ):
            pass
    finally:
        server.stop(None)


def test_other_errors_of_a_cluster_are_rays_own(joined: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(RuntimeError, match="^no room$"), cluster.ray_cluster(verbose=False, stuck=print):
        pass


def test_a_dead_address_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    start = time.monotonic()
    with (
        pytest.raises(UserError, match=f"no Ray cluster answers at {address}"),
        cluster.ray_cluster(verbose=False, stuck=print),
    ):
        pass
    assert time.monotonic() - start < 15


def test_an_address_that_answers_and_those_that_are_rays_own_pass() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        check_address(f"127.0.0.1:{port}")
    finally:
        server.stop(None)
    check_address("auto")
    check_address(None)
    with pytest.raises(UserError, match="^RAY_ADDRESS=ray://host:10001: a study .* node of the cluster"):
        check_address("ray://host:10001")


def test_an_address_at_which_something_else_listens_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=f"no Ray cluster answers at {address}.*: what listens there"):
            check_address(address)


def test_a_folder_for_temporary_files_may_be_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/" + "long" * 10)
    with pytest.raises(UserError, match="TMPDIR is too long for Ray"):
        check_temporary_folder()
    monkeypatch.setenv("TMPDIR", "/tmp/short")
    check_temporary_folder()


LISTENING = """
import os, ray
from pathlib import Path
from aae_ray.execution.ray_cluster import RayWatch, ray_cluster

def sockets():
    found = {}
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found[fields[9]] = fields[1].split(":")[0]
    return found

before = sockets()
with ray_cluster(verbose=False, stuck=print):
    ray.get(ray.remote(lambda: 1).remote())
    new = {inode: host for inode, host in sockets().items() if inode not in before}
    print(len(new), *sorted(set(new.values())))
    watch = RayWatch()
    pids = watch.pids
    assert watch.lost() is None
    print(*(Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids.values()))
    assert list(pids) == ["raylet", "gcs_server"]
print(os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"))
"""


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("8:pids:/docker/abc", "pids/docker/abc"),
        ("8:pids:/docker/abc", "pids/docker"),  # a limit holds for all below it
        ("0::/", ""),
        ("0::/kubepods/pod/a", "kubepods/pod/a"),
    ],
)
@pytest.mark.parametrize(("limit", "refused"), [("max", False), ("4096", False), ("519", True), ("520", False)])
def test_a_limit_of_processes_that_ray_needs_is_told(
    line: str, place: str, limit: str, refused: bool, tmp_path: Path
) -> None:
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / "pids.max").write_text(f"{limit}\n")
    (tmp_path / place / "pids.current").write_text("20\n")
    groups = tmp_path / "cgroup"
    groups.write_text(f"9:name=systemd:/\n{line}\n4:memory:/x\n")
    with pytest.raises(UserError, match="519 processes and threads, and has 20") if refused else nullcontext():
        check_process_limit(groups, tmp_path)
    check_process_limit(tmp_path / "none", tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_local_ray_listens_on_the_loopback_interface_alone() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", LISTENING], capture_output=True, text=True, timeout=120, env=environment
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 3, done.stdout + done.stderr
    count, *hosts = lines[0].split()
    assert int(count) > 8
    assert set(hosts) <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, and the same mapped into IPv6
    assert lines[1:] == ["raylet gcs_server", "None"]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RayWatch, dict[str, socket.socket]]]:
    """A watch over a cluster that was joined, its GCS, and the raylet of this node."""
    parts = {part: socket.create_server(("127.0.0.1", 0)) for part in ("gcs_server", "raylet")}
    ports = {part: server.getsockname()[1] for part, server in parts.items()}
    context = SimpleNamespace(gcs_address=f"127.0.0.1:{ports['gcs_server']}", get_node_id=lambda: "here")
    nodes = [
        {"NodeID": "elsewhere", "NodeManagerAddress": "192.0.2.1", "NodeManagerPort": 1},
        {"NodeID": "here", "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": ports["raylet"]},
    ]
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    monkeypatch.setattr("aae_ray.execution.ray_cluster.PROBE_SECONDS", 0.05)
    yield RayWatch(), parts
    for server in parts.values():
        server.close()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            Exception("The current node timed out during startup. This could happen because some of the raylet failed"),
            r"^Ray's processes did not come up in time on this machine, which has \d+ .*type the command again. "
            r"Ray's logs are in /\S+/ray/session_latest/logs$",
        ),
        (
            RuntimeError("Failed to start GCS. Last 0 lines of error files:\nand a page more"),
            r"^Ray could not be started on this machine: Failed to start GCS. Last 0 lines of error files:; Ray's logs",
        ),
        (ConnectionError(), "^Ray could not be started on this machine: ConnectionError; Ray's logs are in"),
    ],
)
def test_a_ray_that_does_not_come_up_here_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    """As on a machine that is overloaded: Ray gives its own processes 30 seconds."""

    def init(**given: object) -> None:
        raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(capacity, "read_ray_address", lambda: None)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match=told), cluster.ray_cluster(verbose=False, stuck=print):
        pass


@pytest.mark.parametrize("part", ["gcs_server", "raylet"])
def test_a_part_of_a_cluster_that_was_joined_is_lost_when_it_does_not_answer_for_long(
    watched: tuple[RayWatch, dict[str, socket.socket]], part: str
) -> None:
    watch, parts = watched
    for _ in range(4):
        time.sleep(0.06)
        assert watch.lost() is None
    parts[part].close()
    heard = []
    for _ in range(3):
        time.sleep(0.06)
        heard.append(watch.lost())
    assert heard == [None, None, part]


HEAD_NODE = {"NodeID": "a", "Alive": True, "Resources": {"CPU": 2.0, "node:__internal_head__": 1.0}}
WORKER_NODE = {"NodeID": "b", "Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}
GONE_NODE = {"NodeID": "c", "Alive": False, "Resources": {"CPU": 4.0, "GPU": 1.0}}


@pytest.mark.parametrize(
    ("own", "here", "job", "to_come", "told"),
    [
        ({"raylet": 7}, "a", None, 0, "this machine, with 6 CPU, 1 GPU"),
        ({}, "a", None, 0, "the Ray cluster at 10.0.0.1:6379, from its head: 2 nodes with 6 CPU, 1 GPU"),
        (
            {}, "b", "raysubmit_1", 5,
            "the Ray cluster at 10.0.0.1:6379, as job raysubmit_1 on one of its nodes: 2 nodes with 6 CPU, 1 GPU, "
            "and may grow to 5 by its autoscaler",
        ),
    ],
    ids=["a laptop", "the head", "a job"],
)  # fmt: skip
def test_a_study_says_where_it_runs(
    own: dict[str, int], here: str, job: str | None, to_come: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(gcs_address="10.0.0.1:6379", get_node_id=lambda: here)
    monkeypatch.setattr(ray, "nodes", lambda: [HEAD_NODE, WORKER_NODE, GONE_NODE])
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(cluster, "own_processes", lambda: own)
    monkeypatch.setattr(cluster, "nodes_to_come", lambda needed: [{}] * to_come)
    if job is None:
        monkeypatch.delenv(cluster.JOB_CONFIG, raising=False)
    else:  # as Ray's own job manager has it
        monkeypatch.setenv(cluster.JOB_CONFIG, json.dumps({"metadata": {"job_submission_id": job}}))
    assert cluster.whereabouts({"CPU": 1.0}) == told
