"""A mock of AWS, and the life of a cluster in it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from tests.cluster.aws_requests import read_requests
from tests.cluster.laptop import (
    REPOSITORY,
    SECONDS_FOR_A_COMMAND,
    Life,
    Machine,
    aws_client,
    head_machine,
    readme_commands,
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A cluster's whole life takes minutes."""
    for item in items:
        if "life" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


NEEDED_MOTO = Version("5.2.5")  # older ones break multipart uploads


@pytest.fixture(scope="session")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file in which the mock of AWS writes down what it was asked."""
    return tmp_path_factory.mktemp("moto") / "requests"


@pytest.fixture(scope="session")
def endpoint(record: Path) -> Iterator[str]:
    """Where a mock of AWS listens, on this machine."""
    moto = pytest.importorskip("moto", reason="needs moto, the mock of AWS: pip install -e '.[test]'")
    pytest.importorskip("boto3", reason="needs boto3, AWS's client: pip install -e '.[test]'")
    assert Version(moto.__version__) >= NEEDED_MOTO, f"moto is {moto.__version__}, needed is {NEEDED_MOTO}"
    root = record.parent
    log = root / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=output,
            stderr=output,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(root),
                "PYTHONUNBUFFERED": "1",
                "MOTO_ENABLE_RECORDING": "1",
                "MOTO_RECORDER_FILEPATH": str(record),
            },
        )
    try:
        deadline = time.monotonic() + SECONDS_FOR_A_COMMAND
        while not (listening := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
            waiting = server.poll() is None and time.monotonic() < deadline
            assert waiting, f"moto does not listen:\n{log.read_text()}"
            time.sleep(0.1)
        yield listening.group()
    finally:
        server.kill()  # it keeps nothing
        server.wait()


@pytest.fixture(scope="session")
def life(endpoint: str, record: Path, tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Types the README's commands on a new laptop, in a folder that holds only what they read."""
    checkout = tmp_path_factory.mktemp("checkout")
    shutil.copytree(REPOSITORY / "cluster", checkout / "cluster")
    shutil.copy(REPOSITORY / "pyproject.toml", checkout)

    def machines() -> list[dict[str, Any]]:
        reservations = aws_client("ec2", endpoint).describe_instances()["Reservations"]
        return [instance for reservation in reservations for instance in reservation["Instances"]]

    spot = {"RoleName": "AWSServiceRoleForEC2Spot", "AssumeRolePolicyDocument": "{}"}
    aws_client("iam", endpoint).create_role(**spot)  # as in an account that has had spot; the mock has another name
    laptop = Machine(tmp_path_factory.mktemp("laptop"), endpoint, "LAPTOP")
    printed = {}
    for command in readme_commands():
        if command.startswith("python -m aae_ray.cluster"):
            action = command.split()[3]
            printed[action] = laptop.run(command, checkout, key="OWNER" if action == "prepare" else None)
    before = [group["GroupName"] for group in groups(endpoint)]
    laptop.run("ray up cluster/gpu.yaml --yes", checkout)  # Ray's cache is in TMPDIR, which is new
    (head,) = machines()
    sent_to_head = laptop.calls()
    on_head = head_machine(tmp_path_factory.mktemp("head"), endpoint, laptop.sent)

    exec_calls, workers = {}, []
    start_worker = Path(__file__).with_name("start_worker.py")
    kinds = ("gpu-spot", "gpu-on-demand")
    on_the_head = [shlex.join([sys.executable, str(start_worker), kind, head["PrivateIpAddress"]]) for kind in kinds]
    with ThreadPoolExecutor(1) as pool:  # the head starts workers while the laptop goes on
        started = [pool.submit(on_head.run, command, on_head.home) for command in on_the_head]
        for command in readme_commands():
            if command.startswith("ray exec"):
                laptop.run(command, checkout)
                exec_calls[command] = laptop.calls()[-1]
        for each in started:
            each.result()
    described = {machine["InstanceId"]: machine for machine in machines()}
    head = described.pop(head["InstanceId"])
    workers = sorted(described.values(), key=lambda machine: machine.get("InstanceLifecycle") != "spot")
    assert [group["GroupName"] for group in groups(endpoint)] == before, "Ray made a security group of its own"

    on_head.run("sh aae-ray/cluster/run_and_end.sh python -c 'raise SystemExit(1)'", on_head.home)
    without_workers = [machine["State"]["Name"] for machine in machines()]
    laptop.run("ray down cluster/gpu.yaml --yes", checkout)
    return Life(
        config=json.loads((laptop.sent / "ray_bootstrap_config.yaml").read_text()),
        token=(laptop.sent / "auth_token").read_text(),
        head=head,
        sent_to_head=sent_to_head,
        workers=workers,
        sent_to_workers=[call for call in on_head.calls() if call.program != "sudo"],
        last_on_head=on_head.calls()[-1],
        exec_calls=exec_calls,
        printed=printed,
        groups=groups(endpoint),
        asked=read_requests(record),
        without_workers=without_workers,
        states=[machine["State"]["Name"] for machine in machines()],
    )


def groups(endpoint: str) -> list[dict[str, Any]]:
    """The security groups that there are, in EC2's words."""
    found: list[dict[str, Any]] = aws_client("ec2", endpoint).describe_security_groups()["SecurityGroups"]
    return found
