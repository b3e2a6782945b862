"""cluster/gpu.yaml: held to Ray's schema, EC2's API and rules of our own, then lived from up to down.

AWS is a mock on this machine, and ssh and rsync only record; so what runs on the nodes is tested as shell
commands, with stand-ins for uv and curl. Nothing here shows that the real AWS agrees.
"""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from aae_ray.execution.ray_cluster import possible_nodes, workers_on
from aae_ray.reading import build, read_overrides
from tests.cluster.laptop import REPOSITORY, Call, Life, Node, aws_client, laptop_environment, readme_commands

pytestmark = pytest.mark.timeout(900)  # the first test of them all types every command of the README

TEXT = (REPOSITORY / "cluster/gpu.yaml").read_text(encoding="utf-8")
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
PROVIDER_KEYS = {"type", "region", "availability_zone", "cache_stopped_nodes"}  # Ray lets any others pass
ANOTHER_RAY = re.compile(r"\bray(\[[^]]*\])?\s*[=<>~!]=|\bray-[^\s]*\.whl")

# --------------------------------------------------------------------------------------------------- the file


def rays_problems(config: Any) -> list[str]:
    """What Ray's own schema refuses."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(config))
    except Exception as error:  # jsonschema's, or ValueError: Ray wraps neither
        return [str(error)]
    return []


def ec2s_problems(config: Any) -> list[str]:
    """What RunInstances does not know: Ray hands a node_config on as it is."""
    botocore = pytest.importorskip("botocore.validate", reason="needs AWS's client: pip install -e '.[test]'")
    operation = aws_client("ec2", "http://127.0.0.1:9").meta.service_model.operation_model("RunInstances")
    counts = {"MinCount": 1, "MaxCount": 1}
    reports = [
        botocore.ParamValidator().validate({**node["node_config"], **counts}, operation.input_shape)
        for node in config["available_node_types"].values()
    ]
    return [report.generate_report() for report in reports if report.has_errors()]


def our_problems(config: Any) -> list[str]:
    """What Ray and EC2 let pass and we do not."""
    commands = {key: " ".join(config.get(key, [])) for key in COMMANDS}
    head_start, worker_start = commands["head_start_ray_commands"], commands["worker_start_ray_commands"]
    head_setup, worker_setup = commands["head_setup_commands"], commands["worker_setup_commands"]
    nodes = config["available_node_types"]
    head = nodes[config["head_node_type"]]
    workers = [node for node in nodes.values() if node is not head]
    node_configs = [node["node_config"] for node in nodes.values()]
    project = '--editable "$HOME/aae-ray[cluster]"'

    rules = {key: key in config for key in COMMANDS}
    rules |= {
        "provider keys": set(config["provider"]) <= PROVIDER_KEYS,
        "cache_stopped_nodes": config["provider"].get("cache_stopped_nodes") is False,
        "image": all("ImageId" in node for node in node_configs),
        "profile": all("IamInstanceProfile" in node for node in node_configs),
        "IMDSv2": all(
            node.get("MetadataOptions") == {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}
            for node in node_configs
        ),
        "no trial on the head": head["resources"] == {"CPU": 0} and head.get("max_workers") == 0,
        "head on demand": "InstanceMarketOptions" not in head["node_config"],
        "shutdown ends the head": head["node_config"].get("InstanceInitiatedShutdownBehavior") == "terminate",
        "workers on spot": all(
            node["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"} for node in workers
        ),
        "no worker without a study": all(node.get("min_workers", 0) == 0 for node in workers),
        "listens on loopback": "--dashboard-host=127.0.0.1" in head_start and "0.0.0.0" not in str(config),
        "autoscaler": "--autoscaling-config=~/ray_bootstrap_config.yaml" in head_start,
        "workers find the head": "--address=$RAY_HEAD_IP:6379" in worker_start,
        "token in the environment": "RAY_AUTH_MODE=token" in commands["setup_commands"],
        "token on the nodes": config["file_mounts"].get("~/.ray/auth_token") == "~/.ray/auth_token",
        "the project's Ray": all(project in setup for setup in (head_setup, worker_setup))
        and not any(ANOTHER_RAY.search(listed) for listed in commands.values()),
        "the head's versions": "pip freeze" in head_setup
        and "> ~/head-packages.txt" in head_setup
        and "--constraint ~/head-packages.txt" in worker_setup
        and "~/head-packages.txt" in config.get("cluster_synced_files", []),
    }
    return [rule for rule, kept in rules.items() if not kept]


Check = Callable[[Any], list[str]]
CHECKS: dict[str, Check] = {"ray": rays_problems, "ec2": ec2s_problems, "ours": our_problems}


@pytest.mark.parametrize("check", CHECKS)
def test_the_file_is_accepted(check: str) -> None:
    assert CHECKS[check](yaml.safe_load(TEXT)) == []


@pytest.mark.parametrize(
    ("check", "words", "right", "wrong"),
    [
        ("ray", "max_workerz", "max_workers: 4\nup", "max_workerz: 4\nup"),
        ("ray", "'5' is not of type", "idle_timeout_minutes: 5", 'idle_timeout_minutes: "5"'),
        ("ray", "head_node_type", "head_node_type: head", "head_node_type: chief"),
        ("ray", "0.5 is not of type", "{CPU: 0}", "{CPU: 0.5}"),
        ("ray", "ssh_usr", "ssh_user", "ssh_usr"),
        ("ray", "min_workers", "min_workers: 0", "min_workers: 9"),
        ("ec2", 'Unknown parameter in input: "InstanceTyp"', "InstanceType: g5", "InstanceTyp: g5"),
        ("ec2", "VolumeSize", "VolumeSize: 150", "VolumeSize: large"),
        ("ours", "provider keys", "availability_zone:", "availability_zones:"),
        ("ours", "cache_stopped_nodes", "cache_stopped_nodes: false", "cache_stopped_nodes: true"),
        ("ours", "cache_stopped_nodes", "  cache_stopped_nodes: false", ""),
        ("ours", "image", "      ImageId: *image\n", ""),
        ("ours", "profile", "      IamInstanceProfile: {Name: aae-ray-worker}\n", ""),
        ("ours", "profile", "      IamInstanceProfile: {Name: aae-ray-head}\n", ""),
        ("ours", "IMDSv2", "HttpTokens: required", "HttpTokens: optional"),
        ("ours", "no trial on the head", "{CPU: 0}", "{}"),
        ("ours", "no trial on the head", "    max_workers: 0\n", ""),
        ("ours", "head on demand", "InstanceType: m7i.xlarge", "InstanceMarketOptions: {MarketType: spot}"),
        ("ours", "shutdown ends the head", "Behavior: terminate", "Behavior: stop"),
        ("ours", "workers on spot", "      InstanceMarketOptions: {MarketType: spot}\n", ""),
        ("ours", "no worker without a study", "min_workers: 0", "min_workers: 1"),
        ("ours", "listens on loopback", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"),
        ("ours", "listens on loopback", " --dashboard-host=127.0.0.1", ""),
        ("ours", "autoscaler", " --autoscaling-config=~/ray_bootstrap_config.yaml", ""),
        ("ours", "workers find the head", " --address=$RAY_HEAD_IP:6379", ""),
        ("ours", "token in the environment", " RAY_AUTH_MODE=token", ""),
        ("ours", "token on the nodes", '  "~/.ray/auth_token": "~/.ray/auth_token"\n', ""),
        ("ours", "the project's Ray", "aae-ray[cluster]", "aae-ray"),
        ("ours", "the project's Ray", "  - chmod", "  - pip install ray[default]==2.40.0\n  - chmod"),
        ("ours", "the project's Ray", "  - chmod", "  - pip install https://x.org/ray-3.0.0.whl\n  - chmod"),
        ("ours", "the head's versions", "--constraint ~/head-packages.txt ", ""),
        ("ours", "the head's versions", 'cluster_synced_files: ["~/head-packages.txt"]', ""),
    ],
)
def test_a_mistake_is_found(check: str, words: str, right: str, wrong: str) -> None:
    assert right in TEXT, "the mistake cannot be made: the file has changed"
    problems = CHECKS[check](yaml.safe_load(TEXT.replace(right, wrong)))
    assert any(words in problem for problem in problems), problems


@pytest.mark.parametrize("key", COMMANDS)
def test_a_list_of_commands_that_is_left_to_rays_defaults_is_found(key: str) -> None:
    config = yaml.safe_load(TEXT)
    del config[key]
    assert key in our_problems(config)


def test_the_ray_that_judges_the_file_is_the_one_that_the_nodes_install() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (pin,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    assert pin.specifier.contains(version("ray")), f"installed is {version('ray')}, pyproject.toml says {pin}"
    assert "default" in pin.extras, "without its dashboard `ray job submit` fails"
    assert [Requirement(r).name for r in project["optional-dependencies"]["cluster"]] == ["boto3"]


# -------------------------------------------------------------------------------------------- from up to down


@pytest.mark.parametrize(
    "endpoint", ["https://ec2.us-west-2.amazonaws.com", "http://169.254.169.254", "http://10.0.0.1:5000", ""]
)
def test_no_command_runs_against_an_endpoint_on_another_machine(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        laptop_environment(tmp_path, endpoint)


def test_up_starts_a_head_on_demand(life: Life) -> None:
    tags = {tag["Key"]: tag["Value"] for tag in life.head["Tags"]}
    assert life.head["InstanceType"] == "m7i.xlarge"
    assert life.head["State"]["Name"] == "running"
    assert life.head.get("InstanceLifecycle") != "spot"
    assert life.head["IamInstanceProfile"]["Arn"].endswith("/aae-ray-head")
    assert life.head["KeyName"] == "ray-autoscaler_us-west-2"
    assert (tags["ray-cluster-name"], tags["ray-node-type"]) == ("aae-gpu", "head")
    assert tags["ray-node-status"] == "up-to-date"


def files(calls: list[Call]) -> dict[str, Call]:
    """What rsync was to send, by its place on the other machine."""
    return {call.arguments[-1].partition(":")[2]: call for call in calls if call.program == "rsync"}


def test_up_sends_the_repository_and_the_token(life: Life) -> None:
    targets = files(life.sent_to_head)
    repository = targets["~/aae-ray/"].arguments
    assert repository[-2] == "./"
    assert any(argument.endswith(".gitignore") for argument in repository), repository
    assert "~/.ray/auth_token" in targets
    assert len(life.token) >= 32


def test_up_starts_ray_with_a_token_a_private_dashboard_and_no_cpu_for_trials(life: Life) -> None:
    *before, start = [call.script for call in life.sent_to_head if call.program == "ssh"]
    for part in (
        "ray start --head --port=6379",
        "--autoscaling-config=~/ray_bootstrap_config.yaml",
        "--dashboard-host=127.0.0.1",
        "RAY_enable_autoscaler_v2=1",
        """RAY_OVERRIDE_RESOURCES='{"CPU":0}'""",
    ):
        assert part in start
    assert any("RAY_AUTH_MODE=token" in script for script in before)


def test_the_autoscaler_starts_a_worker_on_spot_that_joins_the_head(life: Life) -> None:
    assert life.worker["InstanceType"] == "g5.xlarge"
    assert life.worker["InstanceLifecycle"] == "spot"
    assert life.worker["IamInstanceProfile"]["Arn"].endswith("/aae-ray-worker")
    assert {"Key": "ray-node-status", "Value": "up-to-date"} in life.worker["Tags"]
    start = life.sent_to_worker[-1].script
    assert f"export RAY_HEAD_IP={life.head['PrivateIpAddress']};" in start
    assert "ray start --address=$RAY_HEAD_IP:6379" in start
    resources = re.search(r"RAY_OVERRIDE_RESOURCES='({.*?})'", start)
    assert resources and json.loads(resources[1]).items() >= {"CPU": 4, "GPU": 1}.items()
    received = {Path(place).name for place in files(life.sent_to_worker)}
    assert received == {"aae-ray", "auth_token", "head-packages.txt"}


def test_down_ends_every_machine(life: Life) -> None:
    assert life.states == ["terminated", "terminated"]


# ------------------------------------------------------------------------------ what the README tells to type


def test_the_commands_of_the_readme_reach_their_programs_on_the_head(life: Life, tmp_path: Path) -> None:
    node = Node(tmp_path)
    for call in life.exec_calls.values():
        node.sshd(call.remote)
    server, study = (node.home / "ran").read_text().splitlines()
    assert server == (
        f"mlflow server --host 127.0.0.1 --port 5000 --backend-store-uri sqlite:///{node.home}/mlflow.db "
        "--artifacts-destination s3://BUCKET/mlflow"
    )
    assert study == f"python -m aae_ray.tune {' '.join(studies()[0])}"


def studies() -> list[list[str]]:
    """The arguments of `aae_ray.tune` in the README's commands."""
    commands = [command.replace("\\\n", " ").partition("aae_ray.tune ")[2] for command in readme_commands()]
    return [command.rstrip("'").split() for command in commands if command]


def test_the_study_in_the_readme_gets_gpus_from_machines_still_to_come(life: Life, tmp_path: Path) -> None:
    by_exec, by_job = studies()
    assert by_exec == by_job
    space, *overrides = by_exec
    assert (REPOSITORY / Path(space).relative_to("aae-ray")).is_file(), f"there is no {space}"
    settings = build(read_overrides(overrides))
    assert settings.study.folder == "s3://BUCKET/studies"  # which all nodes see
    assert settings.study.resources_per_worker == {"GPU": 1}
    assert settings.train.device == "cuda"
    bootstrap = tmp_path / "ray_bootstrap_config.yaml"
    bootstrap.write_text(json.dumps(life.config))
    assert workers_on(possible_nodes(bootstrap), {"GPU": 1}) == 4


# --------------------------------------------------------------------------------------------- on a bare node


def test_the_head_is_set_up_and_may_be_set_up_again(life: Life, tmp_path: Path) -> None:
    node = Node(tmp_path)
    packages = [
        "pip install --python /home/ubuntu/venv/bin/python --editable /home/ubuntu/aae-ray[cluster]",
        '-c import torch; assert torch.version.cuda, "this PyTorch was built without CUDA"',
        "pip freeze --python /home/ubuntu/venv/bin/python --exclude-editable",
    ]
    assert node.set_up(life.sent_to_head) == ["venv --python 3.11 /home/ubuntu/venv", *packages]
    bashrc = (node.home / ".bashrc").read_text()
    assert node.set_up(life.sent_to_head) == packages
    assert (node.home / ".bashrc").read_text() == bashrc

    assert (node.home / "head-packages.txt").read_text() == "ray==1.2.3\n"
    assert (node.home / ".ray").stat().st_mode & 0o777 == 0o700
    assert (node.home / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
    seen = "echo $RAY_AUTH_MODE $MLFLOW_TRACKING_URI; command -v python"
    python = node.home / "venv/bin/python"
    assert node.shell(seen) == f"token sqlite:///{node.home}/mlflow.db\n{python}"
    assert node.shell(seen, MLFLOW_TRACKING_URI="http://a.b") == f"token http://a.b\n{python}"


def test_a_worker_is_set_up_with_the_head_s_packages(life: Life, tmp_path: Path) -> None:
    venv, *installs = Node(tmp_path).set_up(life.sent_to_worker)
    assert venv == "venv --python 3.11 /home/ubuntu/venv"
    # A set: Ray sends the set-up twice to a worker, for it merges the lists on the laptop and on the head.
    packages = "--constraint /home/ubuntu/head-packages.txt --editable /home/ubuntu/aae-ray[cluster]"
    assert set(installs) == {f"pip install --python /home/ubuntu/venv/bin/python {packages}"}


@pytest.mark.parametrize("cuda", ["13.0", None])
def test_the_set_up_refuses_a_pytorch_without_cuda(cuda: str | None, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(f"class version:\n    cuda = {cuda!r}\n")
    (command,) = (c for c in yaml.safe_load(TEXT)["head_setup_commands"] if "torch.version.cuda" in c)
    command = command.replace("~/venv/bin/python", shlex.quote(sys.executable))
    done = subprocess.run(
        ["/bin/bash", "-c", command],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode == 0) == (cuda is not None), done.stderr
    assert ("this PyTorch was built without CUDA" in done.stderr) == (cuda is None)
