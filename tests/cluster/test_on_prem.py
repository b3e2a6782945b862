"""cluster/on_prem.yaml and on_prem.sh, with ssh and rsync that only record."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from aae_ray.execution.cluster_schema import schema_problem
from aae_ray.provisioning import on_prem
from aae_ray.provisioning.cluster_file import ClusterFile, read_cluster_file
from aae_ray.provisioning.findings import State
from aae_ray.provisioning.rules import COMMANDS, broken_rules
from tests.cluster.laptop import REPOSITORY, laptop_environment

FILE = REPOSITORY / "cluster/on_prem.yaml"
SETUP = ("setup_commands", "initialization_commands", "worker_start_ray_commands")


def test_the_file_keeps_rays_schema_and_our_rules() -> None:
    file = read_cluster_file(FILE)
    assert schema_problem(file.content) is None
    assert broken_rules(file) == []


def test_machines_are_set_up_as_those_of_aws_are() -> None:
    here, aws = (yaml.safe_load((REPOSITORY / "cluster" / name).read_text()) for name in ("on_prem.yaml", "gpu.yaml"))
    starts = aws["worker_start_ray_commands"]
    (watcher,) = [command for command in starts if "watch_spot.sh" in command]
    starts.remove(watcher)  # nobody takes these machines away
    assert {key: here[key] for key in SETUP} == {key: aws[key] for key in SETUP}
    assert set(COMMANDS) <= set(here)
    assert "--num-cpus=0" in here["head_start_ray_commands"][-1], "a trial could take the head down"
    provider = here["provider"]
    assert here["min_workers"] == here["max_workers"] == len(provider["worker_ips"]), "a machine would stand idle"


@pytest.mark.parametrize("field", ["available_node_types", "head_node"])
def test_what_the_provider_refuses_is_told(field: str) -> None:
    content = {**yaml.safe_load(FILE.read_text()), field: {"x": {"node_config": {}, "resources": {}}}}
    assert schema_problem(content)


# --------------------------------------------------------------------------------------------------------- the wrapper


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder with the file of a cluster, and stand-ins for ssh and ray that record."""
    (tmp_path / "cluster").mkdir()
    content = yaml.safe_load(FILE.read_text())
    content["provider"] |= {"head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2", "10.0.0.3"]}
    (tmp_path / "cluster/on_prem.yaml").write_text(yaml.safe_dump(content))
    shutil.copy(REPOSITORY / "cluster/on_prem.sh", tmp_path / "cluster")
    (tmp_path / "bin").mkdir()
    for name, body in {
        "ray": 'echo "ray v2=$RAY_UP_enable_autoscaler_v2 auth=$RAY_AUTH_MODE $*" >> ran',
        "ssh": 'cat > /dev/null; echo "ssh $*" >> ran; case "$*" in *"$DEAD"*) exit 255;; esac',
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def wrap(machine: Path, *arguments: str, dead: str = "nobody") -> tuple[int, list[str], str]:
    """Run the wrapper: its exit code, what was run, and what it said on stderr."""
    environment = laptop_environment(machine, "http://127.0.0.1:9")
    environment |= {"DEAD": dead, "PATH": f"{machine / 'bin'}:{environment['PATH']}"}
    assert shutil.which("ssh", path=environment["PATH"]) == str(machine / "bin/ssh"), "the real ssh would run"
    done = subprocess.run(
        ["/bin/sh", "cluster/on_prem.sh", *arguments],
        env=environment,
        cwd=machine,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    ran = machine / "ran"
    return done.returncode, ran.read_text().splitlines() if ran.exists() else [], done.stderr


def test_up_has_the_autoscaler_that_knows_its_head(machine: Path) -> None:
    code, ran, _ = wrap(machine, "up", "--yes")
    assert (code, ran) == (0, ["ray v2=0 auth=token up cluster/on_prem.yaml --yes"])


def test_down_stops_the_workers_first(machine: Path) -> None:
    code, ran, _ = wrap(machine, "down", "--yes")
    key = Path(machine / "home/.ssh/id_ed25519")
    ssh = f"ssh -o BatchMode=yes -o ConnectTimeout=10 -o StrictHostKeyChecking=accept-new -i {key}"
    stop = [f"{ssh} ubuntu@10.0.0.{n} ~/venv/bin/ray stop" for n in (2, 3)]
    assert (code, ran) == (0, [*stop, "ray v2=0 auth=token down cluster/on_prem.yaml --yes"])


def test_a_worker_that_does_not_answer_is_told_and_the_others_are_stopped(machine: Path) -> None:
    code, ran, said = wrap(machine, "down", "--yes", dead="10.0.0.2")
    assert code == 1
    assert [line.split()[0] for line in ran] == ["ssh", "ssh", "ray"]
    assert "no answer from a worker" in said and "10.0.0.2" in said


def test_other_actions_are_passed_on_or_refused(machine: Path) -> None:
    code, ran, _ = wrap(machine, "exec", "echo one two")
    assert (code, ran) == (0, ["ray v2=0 auth=token exec cluster/on_prem.yaml echo one two"])
    code, ran, said = wrap(machine, "stop")
    assert code == 2 and len(ran) == 1
    assert "expected up, down" in said


def test_ray_up_sets_up_the_head_through_ssh(tmp_path: Path) -> None:
    """Ray's own launcher, with ssh and rsync that record: it asks nothing, and starts the older autoscaler."""
    from tests.cluster.laptop import Machine

    laptop = Machine(tmp_path, "http://127.0.0.1:9", "LAPTOP")
    checkout = tmp_path / "checkout"
    (checkout / "cluster").mkdir(parents=True)
    content = yaml.safe_load(FILE.read_text())
    content["provider"] |= {"head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2", "10.0.0.3"]}
    (checkout / "cluster/on_prem.yaml").write_text(yaml.safe_dump(content))
    shutil.copy(REPOSITORY / "cluster/on_prem.sh", checkout / "cluster")
    for secret in (".ssh/id_ed25519", ".ray/auth_token"):
        path = laptop.home / secret
        path.parent.mkdir(exist_ok=True)
        path.write_text("x" * 64)
        path.chmod(0o600)
    laptop.run("sh cluster/on_prem.sh up --yes --no-config-cache", checkout)
    *before, start = [call for call in laptop.calls() if call.program == "ssh"]
    assert {argument for call in before for argument in call.arguments if "@" in argument} == {"ubuntu@10.0.0.1"}
    assert "ray start --head --port=6379 --num-cpus=0" in start.script
    assert "RAY_enable_autoscaler_v2=1" not in start.script
    bootstrap: dict[str, Any] = json.loads((laptop.sent / "ray_bootstrap_config.yaml").read_text())
    assert bootstrap["provider"]["worker_ips"] == ["10.0.0.2", "10.0.0.3"]


def test_the_readme_tells_to_use_the_wrapper() -> None:
    section = (REPOSITORY / "cluster/README.md").read_text().partition("## Your own machines")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    assert "cluster/on_prem.sh up" in block and "cluster/on_prem.sh down" in block
    assert "ray up" not in block and "ray down" not in block


# ----------------------------------------------------------------------------------------------------------- the check


def hosts(tmp_path: Path, **changes: Any) -> ClusterFile:
    content = yaml.safe_load(FILE.read_text())
    content["provider"] |= {"head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]}
    content["auth"]["ssh_private_key"] = str(tmp_path / "key")
    (tmp_path / "key").touch()
    return ClusterFile(FILE, {**content, **changes})


def test_each_machine_is_asked_by_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(
        """#!/bin/sh
case "$*" in
  *@10.0.0.1*) exit 0 ;;
  *@10.0.0.2*) echo "ubuntu@10.0.0.2: Permission denied (publickey)." >&2; exit 255 ;;
  *@10.0.0.3*) exit 1 ;;
  *) exec sleep 60 ;;
esac
"""
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(on_prem, "ANSWER_SECONDS", 5)
    provider = {"type": "local", "head_ip": "10.0.0.1", "worker_ips": [f"10.0.0.{n}" for n in (2, 3, 4)]}
    findings = on_prem.check_hosts(hosts(tmp_path, provider=provider))
    assert [finding.state for finding in findings] == [State.OK, *[State.MISSING] * 3]
    assert [finding.text.partition(": ")[2] for finding in findings] == [
        "ssh as ubuntu",
        "ssh as ubuntu fails: ubuntu@10.0.0.2: Permission denied (publickey).",
        "rsync or curl is not there; install both",
        "ssh did not answer within 5 s",
    ]


def test_a_file_that_nobody_has_filled_in_is_told(tmp_path: Path) -> None:
    (finding,) = on_prem.check_hosts(read_cluster_file(FILE))
    assert "192.0.2.10, 192.0.2.11, 192.0.2.12 stand for your machines" in finding.text
    (finding,) = on_prem.check_hosts(hosts(tmp_path, auth={"ssh_user": "me", "ssh_private_key": "/nowhere"}))
    assert "auth.ssh_private_key /nowhere is not there" in finding.text
    (finding,) = on_prem.check_hosts(hosts(tmp_path, provider={"type": "local"}))
    assert "name no machine" in finding.text
