"""cluster/gpu.yaml: held to Ray's schema, EC2's API and rules of our own, then lived from up to down.

AWS is a mock on this machine, and ssh and rsync only record; so what runs on the nodes is tested as shell
commands, with stand-ins for uv and curl. Nothing here shows that the real AWS agrees.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from packaging.requirements import Requirement

from aae_ray.execution.capacity import possible_nodes, workers_on
from aae_ray.execution.cluster_schema import schema_problem
from aae_ray.provisioning.checks import PYTHON, lock_problems
from aae_ray.provisioning.cluster_file import ClusterFile
from aae_ray.provisioning.lock import read_lock
from aae_ray.provisioning.rules import COMMANDS, RULES, broken_rules
from aae_ray.reading import build, read_overrides
from tests.cluster.autoscaler_decisions import launches
from tests.cluster.laptop import BUCKET, REPOSITORY, Call, Life, Node, aws_client, laptop_environment, readme_commands

pytestmark = pytest.mark.timeout(900)  # the first test of them all types every command of the README

TEXT = (REPOSITORY / "cluster/gpu.yaml").read_text(encoding="utf-8")

# --------------------------------------------------------------------------------------------------- the file


def cluster_file(content: Any) -> ClusterFile:
    return ClusterFile(REPOSITORY / "cluster/gpu.yaml", content)


def rays_problems(content: Any) -> list[str]:
    """What Ray's own schema refuses."""
    problem = schema_problem(content)
    return [] if problem is None else [problem]


def ec2s_problems(content: Any) -> list[str]:
    """What RunInstances does not know: Ray hands a node_config on as it is."""
    botocore = pytest.importorskip("botocore.validate", reason="needs AWS's client: pip install -e '.[test]'")
    operation = aws_client("ec2", "http://127.0.0.1:9").meta.service_model.operation_model("RunInstances")
    counts = {"MinCount": 1, "MaxCount": 1}
    reports = [
        botocore.ParamValidator().validate({**node["node_config"], **counts}, operation.input_shape)
        for node in content["available_node_types"].values()
    ]
    return [report.generate_report() for report in reports if report.has_errors()]


def our_problems(content: Any) -> list[str]:
    """What Ray and EC2 let pass and we do not."""
    return [f"{key}: {text}" for key, text in broken_rules(cluster_file(content))]


Check = Callable[[Any], list[str]]
CHECKS: dict[str, Check] = {"ray": rays_problems, "ec2": ec2s_problems, "ours": our_problems}


@pytest.mark.parametrize("check", CHECKS)
def test_the_file_is_accepted(check: str) -> None:
    assert CHECKS[check](yaml.safe_load(TEXT)) == []


def test_there_is_one_dangerous_thing_less_for_each_rule() -> None:
    """Each rule is broken by a mistake below, so that none can be dropped without a word."""
    made = {words.partition(":")[0] for check, words, _, _ in MISTAKES if check == "ours"}
    assert {rule.key for rule in RULES if "aws" in rule.providers} - set(COMMANDS) == made


MISTAKES = [
    ("ray", "max_workerz", "max_workers: 4\nup", "max_workerz: 4\nup"),
    ("ray", "'5' is not of type", "idle_timeout_minutes: 5", 'idle_timeout_minutes: "5"'),
    ("ray", "head_node_type", "head_node_type: head", "head_node_type: chief"),
    ("ray", "0.5 is not of type", "{CPU: 0}", "{CPU: 0.5}"),
    ("ray", "ssh_usr", "ssh_user", "ssh_usr"),
    ("ray", "min_workers", "min_workers: 0", "min_workers: 9"),
    ("ec2", 'Unknown parameter in input: "InstanceTyp"', "InstanceType: g5", "InstanceTyp: g5"),
    ("ec2", "VolumeSize", "VolumeSize: 150", "VolumeSize: large"),
    ("ours", "provider: provider.availability_zones", "availability_zone:", "availability_zones:"),
    ("ours", "provider.region:", "  region: us-west-2\n", ""),
    ("ours", "provider.cache_stopped_nodes:", "cache_stopped_nodes: false", "cache_stopped_nodes: true"),
    ("ours", "provider.cache_stopped_nodes:", "  cache_stopped_nodes: false", ""),
    ("ours", "node_config.ImageId: gpu-spot", "      ImageId: *image\n", ""),
    ("ours", "node_config.IamInstanceProfile: gpu-on", "      IamInstanceProfile: {Name: aae-ray-worker}\n", ""),
    ("ours", "node_config.IamInstanceProfile: head", "      IamInstanceProfile: {Name: aae-ray-head}\n", ""),
    ("ours", "node_config.MetadataOptions: head", "HttpTokens: required", "HttpTokens: optional"),
    ("ours", "node_config.BlockDeviceMappings: head", "DeleteOnTermination: true", "DeleteOnTermination: false"),
    ("ours", "head.resources:", "{CPU: 0}", "{}"),
    ("ours", "head.max_workers:", "    max_workers: 0\n", ""),
    (
        "ours",
        "head.InstanceMarketOptions:",
        "m7i.xlarge",
        "m7i.xlarge\n      InstanceMarketOptions: {MarketType: spot}",
    ),
    ("ours", "head.InstanceInitiatedShutdownBehavior:", "Behavior: terminate", "Behavior: stop"),
    ("ours", "worker.min_workers: gpu-spot", "min_workers: 0", "min_workers: 1"),
    ("ours", "worker.market:", "    labels: {market: on-demand}\n", ""),
    ("ours", "worker.priority:", "priority: 10", "priority: 0"),
    ("ours", "dashboard:", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"),
    ("ours", "dashboard:", " --dashboard-host=127.0.0.1", ""),
    ("ours", "autoscaler:", " --autoscaling-config=~/ray_bootstrap_config.yaml", ""),
    ("ours", "head_address:", " --address=$RAY_HEAD_IP:6379", ""),
    ("ours", "token:", " RAY_AUTH_MODE=token", ""),
    ("ours", "token_file:", '  "~/.ray/auth_token": "~/.ray/auth_token"\n', ""),
    ("ours", "lock:", " --require-hashes", ""),
    ("ours", "lock:", "cluster/requirements.txt", "other.txt"),
    ("ours", "another_ray:", "  - chmod", "  - pip install ray[default]==2.40.0\n  - chmod"),
    ("ours", "another_ray:", "  - chmod", "  - pip install https://x.org/ray-3.0.0.whl\n  - chmod"),
]


@pytest.mark.parametrize(("check", "words", "right", "wrong"), MISTAKES)
def test_a_mistake_is_found(check: str, words: str, right: str, wrong: str) -> None:
    assert right in TEXT, "the mistake cannot be made: the file has changed"
    problems = CHECKS[check](yaml.safe_load(TEXT.replace(right, wrong)))
    assert any(words in problem for problem in problems), problems


@pytest.mark.parametrize("key", COMMANDS)
def test_a_list_of_commands_that_is_left_to_rays_defaults_is_found(key: str) -> None:
    content = yaml.safe_load(TEXT)
    del content[key]
    assert any(problem.startswith(f"{key}: ") for problem in our_problems(content))


def test_the_ray_that_judges_the_file_is_the_one_that_the_nodes_install() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (pin,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    assert pin.specifier.contains(version("ray")), f"installed is {version('ray')}, pyproject.toml says {pin}"
    assert "default" in pin.extras, "without its dashboard `ray job submit` fails"
    lock = read_lock(REPOSITORY / "cluster/requirements.txt")
    assert lock.versions["ray"] == version("ray")
    assert lock_problems(lock, REPOSITORY / "pyproject.toml") == []


def test_ray_asks_for_on_demand_only_by_its_label() -> None:
    """Ray's own scheduler: what waits goes to spot, and never further; a request with the label starts the other type,
    on which what waits is then placed. Never are there more machines than the file allows."""
    content = yaml.safe_load(TEXT)
    assert launches(content, waiting=2, on_demand=0) == {"gpu-spot": 2}
    assert launches(content, waiting=9, on_demand=0) == {"gpu-spot": 4}
    assert launches(content, waiting=2, on_demand=2) == {"gpu-on-demand": 2}
    assert launches(content, waiting=4, on_demand=1) == {"gpu-on-demand": 1, "gpu-spot": 3}


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


def test_nobody_is_let_in_but_by_ssh_from_one_address(life: Life) -> None:
    used = {group["GroupId"] for machine in (life.head, *life.workers) for group in machine["SecurityGroups"]}
    (group,) = (group for group in life.groups if group["GroupId"] in used)
    assert group["GroupName"] == "aae-ray"
    open_to = [
        (rule["IpProtocol"], rule.get("FromPort"), [source["CidrIp"] for source in rule["IpRanges"]])
        for rule in group["IpPermissions"]
        if rule["IpRanges"] or rule["Ipv6Ranges"]
    ]
    assert open_to == [("tcp", 22, ["203.0.113.7/32"])]


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


@pytest.mark.parametrize(("number", "market"), [(0, "spot"), (1, "on-demand")])
def test_the_autoscaler_starts_workers_that_join_the_head(number: int, market: str, life: Life) -> None:
    worker = life.workers[number]
    assert worker["InstanceType"] == "g5.xlarge"
    assert worker.get("InstanceLifecycle", "on-demand") == market
    assert worker["IamInstanceProfile"]["Arn"].endswith("/aae-ray-worker")
    assert {"Key": "ray-node-status", "Value": "up-to-date"} in worker["Tags"]
    start = sent_to(worker, life)[-1].script
    assert f"export RAY_HEAD_IP={life.head['PrivateIpAddress']};" in start
    assert "ray start --address=$RAY_HEAD_IP:6379" in start
    assert f"""export RAY_OVERRIDE_LABELS='{{"market":"{market}"}}'""" in start  # what a study asks for by name
    resources = re.search(r"RAY_OVERRIDE_RESOURCES='({.*?})'", start)
    assert resources and json.loads(resources[1]).items() >= {"CPU": 4, "GPU": 1}.items()
    received = {Path(place).name for place in files(sent_to(worker, life))}
    assert received == {"aae-ray", "auth_token"}


def sent_to(worker: dict[str, Any], life: Life) -> list[Call]:
    """What the head sent to one of its workers."""
    return [call for call in life.sent_to_workers if f"ubuntu@{worker['PrivateIpAddress']}" in " ".join(call.arguments)]


def test_a_study_s_end_ends_the_workers_and_then_the_head(life: Life) -> None:
    """Ray's own `ray exec --stop` would leave the workers: it calls a command that Ray 2.60 has no more."""
    assert life.without_workers.count("running") == 1
    assert life.without_workers.count("terminated") == 2
    assert (life.last_on_head.program, life.last_on_head.arguments) == ("sudo", ["shutdown", "-h", "now"])


@pytest.mark.parametrize(
    ("code", "calls"),
    [
        (0, ["ray down", "sudo shutdown"]),
        (1, ["ray down", "sudo shutdown"]),
        (130, ["ray down", "sudo shutdown"]),
        (2, []),
    ],
)
def test_only_a_mistake_leaves_the_cluster_up(code: int, calls: list[str], tmp_path: Path) -> None:
    done = end_with(f"exit {code}", tmp_path)
    assert [" ".join(line.split()[:2]) for line in (tmp_path / "ran").read_text().splitlines()] == calls
    assert ("the cluster stays up" in done.stdout) == (code == 2)


def test_the_cluster_ends_after_ctrl_c_as_well(tmp_path: Path) -> None:
    """The terminal sends it to the study and to the script; the study closes its books first."""
    done = end_with("trap 'echo closed >> ran; exit 130' INT; kill -INT $PPID; kill -INT $$; sleep 20", tmp_path)
    assert done.returncode == 0
    ran = [" ".join(line.split()[:2]) for line in (tmp_path / "ran").read_text().splitlines()]
    assert ran == ["closed", "ray down", "sudo shutdown"]


def test_workers_that_cannot_be_ended_keep_their_head(tmp_path: Path) -> None:
    """A head that went first would leave them to cost with nobody to end them."""
    done = end_with("true", tmp_path, ray="exit 1")
    assert (tmp_path / "ran").read_text().split().count("down") == 4
    assert "sudo" not in (tmp_path / "ran").read_text()
    assert "the head stays up" in done.stdout


def end_with(command: str, folder: Path, ray: str = "exit 0") -> subprocess.CompletedProcess[str]:
    """Run a shell command by cluster/run_and_end.sh, with stand-ins that record in the file `ran`."""
    for name, body in {"ray": ray, "sudo": "exit 0", "sleep": "exit 0" if "sleep" not in command else ""}.items():
        if body:
            stand_in = folder / name
            stand_in.write_text(f'#!/bin/sh\n[ {name} = sleep ] || echo {name} "$@" >> ran\n{body}\n')
            stand_in.chmod(0o755)
    (folder / "ran").touch()
    return subprocess.run(
        ["/bin/sh", str(REPOSITORY / "cluster/run_and_end.sh"), "/bin/bash", "-c", command],
        env={"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder), "SHELL": "/bin/true"},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


class Metadata(BaseHTTPRequestHandler):
    """What AWS tells a machine of itself: here that it will be taken away, when it has been asked three times."""

    asked: ClassVar[list[str | None]] = []

    def do_PUT(self) -> None:
        self.answer(200 if self.path == "/latest/api/token" else 404, "a token")

    def do_GET(self) -> None:
        assert self.path == "/latest/meta-data/spot/instance-action"
        self.asked.append(self.headers["X-aws-ec2-metadata-token"])
        self.answer(404 if len(self.asked) < 3 else 200, '{"action": "terminate"}')

    def answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def test_the_notice_that_a_spot_machine_will_be_taken_away_reaches_ray(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl, with which the script asks AWS")
    ray = tmp_path / "ray"
    ray.write_text('#!/bin/sh\nfor each; do echo "$each"; done\n')
    ray.chmod(0o755)
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run(
            ["/bin/sh", REPOSITORY / "cluster/watch_spot.sh", f"http://127.0.0.1:{server.server_port}", "0.1"],
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        server.shutdown()
    assert Metadata.asked == ["a token"] * 3 and done.returncode == 0, done.stderr
    command, *options = done.stdout.splitlines()
    assert command == "drain-node" and '{"action": "terminate"}' in options
    from ray.scripts.scripts import drain_node

    known = {name: option for option in drain_node.params for name in option.opts}
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert given.keys() <= known.keys() and given["--reason"] in known["--reason"].type.choices
    assert 0 < int(given["--deadline-remaining-seconds"]) < 120


def test_down_ends_every_machine(life: Life) -> None:
    assert life.states == ["terminated"] * 3


def test_prepare_and_check_say_what_they_made_and_found(life: Life) -> None:
    made = [line.split(maxsplit=1) for line in life.printed["prepare"].splitlines()]
    assert [(how, what.split()[0]) for how, what in made] == [
        ("made", "token"),
        ("made", "bucket"),
        ("made", "role"),
        ("made", "role"),
        ("there", "role"),
        ("made", "security"),
        ("next", "python"),
    ]
    assert "missing: " not in life.printed["check"]
    assert life.printed["check"].splitlines()[-1].split(maxsplit=1) == ["ready", "ray up cluster/gpu.yaml"]


# ------------------------------------------------------------------------------ what the README tells to type


def test_the_commands_of_the_readme_reach_their_programs_on_the_head(life: Life, tmp_path: Path) -> None:
    node = Node(tmp_path)
    for call in life.exec_calls.values():
        node.sshd(call.remote)
    study, end, off, server, beside_it = (node.home / "ran").read_text().splitlines()
    assert server == (
        f"mlflow server --host 127.0.0.1 --port 5000 --backend-store-uri sqlite:///{node.home}/mlflow.db "
        f"--artifacts-destination s3://{BUCKET}/mlflow"
    )
    assert study == beside_it == f"python -m aae_ray.tune {' '.join(studies()[0])}"
    assert (end, off) == (
        f"ray down {node.home}/ray_bootstrap_config.yaml --yes --workers-only",
        "sudo shutdown -h now",
    )


def studies() -> list[list[str]]:
    """The arguments of `aae_ray.tune` in the README's commands."""
    commands = [command.replace("\\\n", " ").partition("aae_ray.tune ")[2] for command in readme_commands()]
    return [command.rstrip("'").split() for command in commands if command]


def test_the_study_in_the_readme_gets_gpus_from_machines_still_to_come(life: Life, tmp_path: Path) -> None:
    by_exec, beside_mlflow, by_job = studies()
    assert by_exec == beside_mlflow == by_job
    space, *overrides = by_exec
    assert (REPOSITORY / Path(space).relative_to("aae-ray")).is_file(), f"there is no {space}"
    settings = build(read_overrides(overrides))
    assert settings.study.folder == f"s3://{BUCKET}/studies"  # which all nodes see
    assert settings.study.resources_per_worker == {"GPU": 1}
    assert settings.train.device == "cuda"
    bootstrap = tmp_path / "ray_bootstrap_config.yaml"
    bootstrap.write_text(json.dumps(life.config))
    nodes = possible_nodes(bootstrap, {"GPU": 1})
    assert workers_on(nodes, {"GPU": 1}) == 4  # of eight that the two types have, the cluster's


# --------------------------------------------------------------------------------------------- on a bare node


INSTALLS = [
    "pip install --python /home/ubuntu/venv/bin/python --require-hashes --requirement "
    "/home/ubuntu/aae-ray/cluster/requirements.txt",
    "pip install --python /home/ubuntu/venv/bin/python --no-deps --no-build-isolation --editable /home/ubuntu/aae-ray",
]


def test_the_head_is_set_up_and_may_be_set_up_again(life: Life, tmp_path: Path) -> None:
    node = Node(tmp_path)
    packages = [*INSTALLS, '-c import torch; assert torch.version.cuda, "this PyTorch was built without CUDA"']
    assert node.set_up(life.sent_to_head) == ["venv --python 3.11.18 /home/ubuntu/venv", *packages]
    bashrc = (node.home / ".bashrc").read_text()
    assert node.set_up(life.sent_to_head) == packages
    assert (node.home / ".bashrc").read_text() == bashrc

    assert (node.home / ".ray").stat().st_mode & 0o777 == 0o700
    assert (node.home / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
    seen = "echo $RAY_AUTH_MODE $MLFLOW_TRACKING_URI; command -v python"
    python = node.home / "venv/bin/python"
    assert node.shell(seen) == f"token sqlite:///{node.home}/mlflow.db\n{python}"
    assert node.shell(seen, MLFLOW_TRACKING_URI="http://a.b") == f"token http://a.b\n{python}"


@pytest.mark.parametrize("number", [0, 1])
def test_a_worker_is_set_up_as_the_head_is(number: int, life: Life, tmp_path: Path) -> None:
    """Ray sends the set-up twice to a worker, for it merges the lists on the laptop and on the head."""
    venv, *installs = Node(tmp_path).set_up(sent_to(life.workers[number], life))
    assert venv == "venv --python 3.11.18 /home/ubuntu/venv"
    assert installs == INSTALLS * 2


def test_all_machines_get_one_python_to_the_patch_whatever_they_have() -> None:
    """`uv venv --python 3.11` takes a 3.11 of the machine where there is one, and Ray refuses a worker of another."""
    (python,) = PYTHON.findall(TEXT)
    assert re.fullmatch(r"3\.\d+\.\d+", python)


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
