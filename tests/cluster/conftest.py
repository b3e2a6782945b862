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

from tests.cluster.laptop import (
    REPOSITORY,
    SECONDS_FOR_A_COMMAND,
    Life,
    Machine,
    aws_client,
    head_machine,
    readme_commands,
)

NEEDED_MOTO = Version("5.2.5")  # older ones break multipart uploads


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a mock of AWS listens, on this machine."""
    moto = pytest.importorskip("moto", reason="needs moto, the mock of AWS: pip install -e '.[test]'")
    pytest.importorskip("boto3", reason="needs boto3, AWS's client: pip install -e '.[test]'")
    assert Version(moto.__version__) >= NEEDED_MOTO, f"moto is {moto.__version__}, needed is {NEEDED_MOTO}"
    root = tmp_path_factory.mktemp("moto")
    log = root / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=output,
            stderr=output,
            env={"PATH": os.environ["PATH"], "HOME": str(root), "PYTHONUNBUFFERED": "1"},
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
def life(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Types the README's commands on a new laptop, in a folder that holds only what they read."""
    checkout = tmp_path_factory.mktemp("checkout")
    shutil.copytree(REPOSITORY / "cluster", checkout / "cluster")
    for profile in ("aae-ray-head", "aae-ray-worker"):
        aws_client("iam", endpoint).create_instance_profile(InstanceProfileName=profile)

    def machines() -> list[dict[str, Any]]:
        reservations = aws_client("ec2", endpoint).describe_instances()["Reservations"]
        return [instance for reservation in reservations for instance in reservation["Instances"]]

    laptop = Machine(tmp_path_factory.mktemp("laptop"), endpoint)
    laptop.run("RAY_AUTH_MODE=token ray get-auth-token --generate", checkout)
    laptop.run("ray up cluster/gpu.yaml --yes", checkout)  # Ray's cache is in TMPDIR, which is new
    (head,) = machines()
    sent_to_head = laptop.calls()
    on_head = head_machine(tmp_path_factory.mktemp("head"), endpoint, laptop.sent)

    exec_calls = {}
    start_worker = Path(__file__).with_name("start_worker.py")
    on_the_head = shlex.join([sys.executable, str(start_worker), "gpu-spot", head["PrivateIpAddress"]])
    with ThreadPoolExecutor(1) as pool:  # the head starts a worker while the laptop goes on
        started = pool.submit(on_head.run, on_the_head, on_head.home)
        for command in readme_commands():
            if command.startswith("ray exec"):
                laptop.run(command, checkout)
                exec_calls[command] = laptop.calls()[-1]
        started.result()
    described = {machine["InstanceId"]: machine for machine in machines()}
    head = described.pop(head["InstanceId"])
    (worker,) = described.values()

    laptop.run("ray down cluster/gpu.yaml --yes", checkout)
    return Life(
        config=json.loads((laptop.sent / "ray_bootstrap_config.yaml").read_text()),
        token=(laptop.sent / "auth_token").read_text(),
        head=head,
        sent_to_head=sent_to_head,
        worker=worker,
        sent_to_worker=on_head.calls(),
        exec_calls=exec_calls,
        states=[machine["State"]["Name"] for machine in machines()],
    )
