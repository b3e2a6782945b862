"""Hosts as they are: a study begins and ends on each of them, or a sentence says what to do.

A host is made of namespaces of Linux, which take root: a name that means nothing, no IPv6, little shared memory.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.study.commands import command
from tests.study.test_study import optuna_states, processes, wait_for

pytestmark = [pytest.mark.slow]

DEAD = "http://127.0.0.1:9"  # where nobody listens
TINY = ("study.budget.trials=2", "train.epochs=2", "health.stop=false")
GANG = (*TINY, "study.workers_per_trial=2", "study.concurrent_trials=1")


def host(folder: Path, set_up: str, *unshared: str) -> list[str]:
    """What runs a command on a host of its own, which these shell commands set up. Skips where none can be made."""
    unshare = ["unshare", "--fork", *(f"--{each}" for each in unshared)]
    if subprocess.run([*unshare, "sh", "-c", set_up], cwd=folder, capture_output=True).returncode:
        pytest.skip(f"needs namespaces of Linux ({', '.join(unshared)}), which this user cannot have")
    return [*unshare, "sh", "-c", f'{set_up} && exec "$@"', "sh"]


def ended_well(folder: Path, done: "subprocess.CompletedProcess[str]") -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert "aae-digits-decoder version 1, champion" in done.stdout and not done.stderr, done.stderr
    assert optuna_states(folder) == ["COMPLETE", "COMPLETE"]


def study_on(
    before: list[str], folder: Path, environment: dict[str, str], settings: tuple[str, ...] = TINY, **more: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*before, *command("tune", *settings)],
        cwd=folder,
        env={**environment, "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db", **more},
        capture_output=True,
        text=True,
        timeout=280,
    )


HANGS = """
import os, runpy, signal, sys, threading
from ray._private import services
from aae_ray.execution import ray_cluster

ray_cluster.START_SECONDS = 10.0

class Popen(services.ConsolePopen):
    def __init__(self, command, *arguments, **given):
        super().__init__(command, *arguments, **given)
        if "gcs_server" in command[0]:
            threading.Timer(1.0, os.kill, (self.pid, signal.SIGSTOP)).start()

services.ConsolePopen = Popen
sys.argv = ["tune", *sys.argv[1:]]
runpy.run_module("aae_ray.tune", run_name="__main__")
"""


def test_a_process_of_ray_that_hangs_is_not_waited_for_without_end(tmp_path: Path, environment: dict[str, str]) -> None:
    """Ray's own code would wait for its GCS, deaf to Ctrl-C."""
    done = subprocess.run(
        [sys.executable, "-c", HANGS, *TINY],
        cwd=tmp_path, env=environment | {"AAE_TEST_MARK": str(tmp_path)}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 2 and "Ray's processes did not come up in time" in done.stdout, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr and not any((tmp_path / "runs").iterdir())
    wait_for(lambda: not processes(tmp_path, ""))


HOSTS = {
    "a name of no address": ("hostname no-such-host-anywhere", ("uts",)),
    "the name of a loopback address": (  # Debian's habit
        "hostname laptop && printf '127.0.0.1 localhost\\n127.0.1.1 laptop\\n' > hosts "
        "&& mount --bind hosts /etc/hosts",
        ("uts", "mount"),
    ),
    "no network and no IPv6": ("sysctl -q -w net.ipv6.conf.all.disable_ipv6=1; ip link set lo up", ("net",)),
}


@pytest.mark.parametrize("settings", [TINY, GANG], ids=["gangs of one", "a gang of two"])
@pytest.mark.parametrize("name", HOSTS)
def test_a_study_runs_whatever_the_host_is_called(
    name: str, settings: tuple[str, ...], tmp_path: Path, environment: dict[str, str]
) -> None:
    set_up, unshared = HOSTS[name]
    ended_well(tmp_path, study_on(host(tmp_path, set_up, *unshared), tmp_path, environment, settings))


def test_a_proxy_that_does_not_answer_is_not_asked_for_what_is_here(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "grpc_proxy"), DEAD)
    ended_well(tmp_path, study_on([], tmp_path, environment | proxies))


@contextmanager
def container(controller: str, **limits: int) -> Iterator[list[str]]:
    """What runs a command under a control group's limits, as a container has them. Skips where none can be made."""
    group = Path("/sys/fs/cgroup") / controller / f"aae-{os.getpid()}"
    try:
        group.mkdir()
        for name, limit in limits.items():
            (group / f"{controller}.{name}").write_text(str(limit))
    except OSError:
        pytest.skip(f"needs control groups of version 1 and the right to make one for {controller}")
    try:
        yield ["sh", "-c", f'echo $$ > {shlex.quote(str(group))}/cgroup.procs && exec "$@"', "sh"]
    finally:
        deadline = time.monotonic() + 60
        while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.5)
        group.rmdir()


def test_a_container_with_the_time_of_one_core(tmp_path: Path, environment: dict[str, str]) -> None:
    """As `docker run --cpus=1` has it; Ray sees more."""
    with container("cpu", cfs_period_us=100_000, cfs_quota_us=100_000) as before:
        ended_well(tmp_path, study_on(before, tmp_path, environment))


def test_a_container_that_may_have_few_processes(tmp_path: Path, environment: dict[str, str]) -> None:
    """Ray would wait for ever for a worker that it cannot start."""
    began = time.monotonic()
    with container("pids", max=400) as before:
        done = study_on(before, tmp_path, environment)
    assert done.returncode == 2 and "this container may have 400 processes and threads" in done.stderr, done.stderr
    assert time.monotonic() - began < 60 and "Traceback" not in done.stderr and not any((tmp_path / "runs").iterdir())


def test_the_temporary_folder_of_another_user_s_ray(environment: dict[str, str]) -> None:
    """What somebody else left in /tmp/ray is not ours to write to: here by a user who is not root."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root, to be another user")
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to others
        folder = Path(place)
        os.chown(folder, 65534, 65534)
        own = environment | {"HOME": place}
        if subprocess.run([*nobody, *command("status")], cwd=folder, env=own, capture_output=True).returncode:
            pytest.skip("another user cannot read the packages")
        before = host(folder, "mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray && chmod 755 /tmp/ray", "mount")
        done = study_on([*before, *nobody], folder, own)
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        if done.returncode:
            assert done.returncode == 2 and "/tmp/ray" in done.stderr, done.stderr
        else:
            ended_well(folder, done)
