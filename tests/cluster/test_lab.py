"""Parts of the lab that need neither root nor Ray: its files, its EC2, and what it says where it cannot be."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.lab import ec2, system
from cluster.lab.cluster_files import SET_UP, aws_file, on_prem_file
from cluster.lab.services import MOTO_SECONDS, ServiceError, free_port, listens, start
from cluster.lab.system import LabError
from cluster.lab.world import World

ON_PREM = on_prem_file(Path("/key"), "10.0.0.1", ["10.0.0.2"])


@pytest.mark.parametrize("config", [aws_file(), ON_PREM], ids=["aws", "on_prem"])
def test_a_file_of_the_lab_is_one_that_ray_takes(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))
    assert all(name in config for name in SET_UP), "what is missing comes from Ray's defaults"
    starts = [c for key in config if key.endswith("start_ray_commands") for c in config[key] if "ray start" in c]
    assert len(starts) == 2 and all("--object-store-memory=" in command for command in starts)


def test_the_file_for_aws_is_gpu_yaml_but_for_what_the_lab_needs() -> None:
    config = aws_file()
    head = config["available_node_types"][config["head_node_type"]]
    assert config["cluster_name"] == "aae-gpu" and config["auth"]["ssh_user"] == "ubuntu"
    assert head["resources"] == {"CPU": 0} and "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert config["provider"]["use_internal_ips"] is True
    assert all("SecurityGroupIds" not in node["node_config"] for node in config["available_node_types"].values())


@pytest.mark.parametrize(("fails", "codes"), [(0, 0), (1, 0), (9, 1)])
def test_a_start_that_failed_is_tried_again(fails: int, codes: int, tmp_path: Path) -> None:
    """With a stand-in for ray whose first starts fail."""
    (tmp_path / "ray").write_text(
        '#!/bin/sh\n[ "$1" = stop ] && exit 0\necho x >> "$0.starts"\n' + f'[ $(wc -l < "$0.starts") -gt {fails} ]\n'
    )
    (tmp_path / "ray").chmod(0o755)
    command = ON_PREM["worker_start_ray_commands"][-1].replace("ulimit -n 65536; ", "")
    done = subprocess.run(
        ["bash", "-c", f"export X=1 && ({command})"], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, timeout=60
    )
    assert done.returncode == codes
    assert len((tmp_path / "ray.starts").read_text().split()) == min(fails + 1, 5)


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("moto", reason="needs moto, the mock of AWS: pip install -e '.[test]'")
    port = free_port()
    environment = dict(os.environ) | {"AAE_LAB_NO_SPOT": str(tmp_path / "no-spot"), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "cluster.lab.moto_server", "-H", "127.0.0.1", "-p", str(port)]
    server = start("moto", command, tmp_path / "moto.log", environment, system.REPOSITORY)
    server.wait(lambda: listens("127.0.0.1", port), MOTO_SECONDS)
    yield f"http://127.0.0.1:{port}"
    server.kill()


def test_ec2_launches_all_that_is_asked_for_and_refuses_spot_when_told(aws: str, tmp_path: Path) -> None:
    ec2.prepare(aws)
    image = {"ImageId": "ami-1", "InstanceType": "g5.xlarge", "MinCount": 1, "MaxCount": 3}
    spot: Any = image | {"InstanceMarketOptions": {"MarketType": "spot"}}
    client = ec2.client("ec2", aws)
    client.run_instances(**spot)
    assert len(ec2.instances(client)) == 3  # moto itself launches MinCount
    (tmp_path / "no-spot").touch()
    with pytest.raises(Exception, match="InsufficientInstanceCapacity"):
        client.run_instances(**spot)
    client.run_instances(**image)
    types = client.describe_instance_types()["InstanceTypes"]
    in_file = {node["node_config"]["InstanceType"] for node in aws_file()["available_node_types"].values()}
    assert {kind["InstanceType"] for kind in types} == in_file
    assert len(ec2.instances(client)) == 6


def test_a_service_that_ends_or_hangs_is_told_with_its_log(tmp_path: Path) -> None:
    for code, words in (
        ("print('no way'); raise SystemExit(3)", "exit code 3"),
        ("import time; time.sleep(99)", "0.5"),
    ):
        service = start("thing", [sys.executable, "-c", code], tmp_path / "log", dict(os.environ))
        with pytest.raises(ServiceError, match=f"thing: .*{words}"):
            service.wait(lambda: False, 0.5 if "sleep" in code else 30)
        assert service.process.poll() is not None
    assert "no way" in (tmp_path / "log").read_text()


def test_what_the_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda program, path=None: None if program == "rsync" else f"/bin/{program}")
    assert system.missing() == "needs rsync: the package rsync"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert system.missing() == "needs root, for network namespaces"


def test_without_a_lab_a_command_says_how_to_make_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster.lab", "--folder", str(tmp_path), "nodes"],
        capture_output=True, text=True, timeout=60, cwd=system.REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "no lab is up" in done.stderr and "python -m cluster.lab up aws" in done.stderr
    World(tmp_path).down()  # nothing to do


def test_a_folder_with_files_in_it_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.lab.world.missing", lambda: None)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(LabError, match="is not empty"):
        World(tmp_path).up("aws")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_number_of_another_process_is_not_taken_for_the_lab(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text(str(os.getpid()))
    World(tmp_path).down()  # would end this test
    with pytest.raises(LabError, match="no lab is up"):
        _ = World(tmp_path).state
