"""A machine that can reach nothing: AWS is a mock beside it, and ssh and rsync are recorded, not run."""

import ipaddress
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.cluster.aws_requests import Request

REPOSITORY = Path(__file__).parents[2]
REGION = "us-west-2"
SECONDS_FOR_A_COMMAND = 240  # a few seconds, on a machine that is not busy otherwise

# Stands in for ssh, rsync and sudo: writes down its arguments, keeps a copy of a file sent, connects to nothing.
RECORDER = """
import json, os, shutil, sys
folder, program, *arguments = sys.argv[1:]
with open(os.path.join(folder, "calls.jsonl"), "a") as file:
    print(json.dumps([program, *arguments]), file=file)
if program == "rsync" and os.path.isfile(arguments[-2]):
    shutil.copy(arguments[-2], os.path.join(folder, os.path.basename(arguments[-1])))
"""


def laptop_environment(root: Path, endpoint: str, key: str = "LAPTOP") -> dict[str, str]:
    """All that a command sees: nothing of the caller's environment, so none of its accounts and keys.

    `key` is the access key by which the mock's record tells who asked.

    Raises ValueError unless the endpoint is a loopback address. What turns to another machine all the same
    meets a proxy that is not there.
    """
    if not ipaddress.ip_address(urlsplit(endpoint).hostname or "").is_loopback:
        raise ValueError(f"{endpoint} is not on this machine; `ray up` there would spend money")
    folders = {"HOME": root / "home", "TMPDIR": root / "tmp", "RAY_TMPDIR": root / "ray"}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    return {name: str(folder) for name, folder in folders.items()} | {
        "PATH": os.pathsep.join([str(root / "bin"), str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "AWS_ENDPOINT_URL": endpoint,
        "PYTHONPATH": str(REPOSITORY),
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
    }


@dataclass(frozen=True)
class Call:
    """One call of ssh, rsync or sudo."""

    program: str
    arguments: list[str]

    @property
    def remote(self) -> str:
        """What sshd gives to the shell on the other machine: all that follows the address."""
        address = next(n for n, argument in enumerate(self.arguments) if argument.startswith("ubuntu@"))
        return " ".join(self.arguments[address + 1 :])

    @property
    def script(self) -> str:
        """The script that Ray wraps into `bash --login -c -i '...'`."""
        return shlex.split(self.remote)[-1]


class Machine:
    """A user's laptop, or the head: its own home, AWS at the endpoint, ssh and rsync that only record."""

    def __init__(self, root: Path, endpoint: str, key: str) -> None:
        self.environment = laptop_environment(root, endpoint, key)
        self.home = root / "home"
        self.sent = root / "sent"
        self.sent.mkdir()
        (root / "bin").mkdir()
        recorder = root / "recorder.py"
        recorder.write_text(RECORDER)
        for program in ("ssh", "rsync", "sudo"):
            stand_in = root / "bin" / program
            record = shlex.join([sys.executable, "-IS", str(recorder), str(self.sent), program])
            stand_in.write_text(f'#!/bin/sh\nexec {record} "$@"\n')
            stand_in.chmod(0o755)
            found = shutil.which(program, path=self.environment["PATH"])
            assert found == str(stand_in), f"the real {program} would run: {found}"

    def calls(self) -> list[Call]:
        """Every call of ssh, rsync and sudo so far."""
        record = self.sent / "calls.jsonl"
        lines = record.read_text().splitlines() if record.exists() else []
        return [Call(program, arguments) for program, *arguments in map(json.loads, lines)]

    def run(self, command: str, folder: Path, key: str | None = None) -> str:
        """Run a shell command, by another access key if one is given; returns what it printed. On failure, all that
        was said and sent is in the AssertionError."""
        started = subprocess.Popen(
            ["/bin/bash", "-c", command],
            env=self.environment if key is None else {**self.environment, "AWS_ACCESS_KEY_ID": key},
            cwd=folder,
            start_new_session=True,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            output, _ = started.communicate(timeout=SECONDS_FOR_A_COMMAND)
            failure = f"exit code {started.returncode}" if started.returncode else ""
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, 9)  # the shell and all that it started
            output, _ = started.communicate()
            failure = f"not done after {SECONDS_FOR_A_COMMAND} s"
        sent = "\n".join(f"{call.program} {shlex.join(call.arguments)}" for call in self.calls())
        assert not failure, f"{command}: {failure}\n{output}\nsent so far:\n{sent}"
        return str(output)


def head_machine(root: Path, endpoint: str, received: Path) -> Machine:
    """The head after its set-up: the files that the laptop sent, and those that the set-up makes."""
    head = Machine(root, endpoint, "HEAD")
    (head.home / ".ray").mkdir()
    shutil.copytree(REPOSITORY / "cluster", head.home / "aae-ray/cluster")
    shutil.copy(received / "auth_token", head.home / ".ray/auth_token")
    for name in ("ray_bootstrap_config.yaml", "ray_bootstrap_key.pem"):
        shutil.copy(received / name, head.home / name)
    return head


CURL = "#!/bin/sh\necho 'mkdir -p ~/.local/bin && cp {stand_ins}/uv ~/.local/bin/uv'\n"
UV = """#!/bin/sh
echo "$@" >> ~/uv-calls
case "$1 $2" in
  "venv --python") mkdir -p ~/venv/bin && cp "$0" ~/venv/bin/python ;;
  "pip freeze") echo ray==1.2.3 ;;
esac
"""
TMUX = '#!/bin/sh\nshift 2\nexec "$@"\n'  # new -d COMMAND
PROGRAM = '#!/bin/sh\necho "$(basename "$0") $@" >> ~/ran\n'


class Node:
    """A new machine's home, with stand-ins for programs; runs what sshd would be told to run."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        stand_ins = root / "stand-ins"
        for folder in (self.home / ".ray", stand_ins, self.home / "aae-ray"):
            folder.mkdir(parents=True)
        (self.home / "aae-ray/cluster").symlink_to(REPOSITORY / "cluster")
        (self.home / ".ray/auth_token").write_text("a token")
        (self.home / ".ray/auth_token").chmod(0o644)
        # As on Ubuntu: nothing below the first line counts for a shell that is not interactive.
        guard = "case $- in *i*) ;; *) return ;; esac\n"
        (self.home / ".bashrc").write_text(f"{guard}PATH={stand_ins}:/usr/bin:/bin\n")
        programs = {"uv": UV, "tmux": TMUX, **dict.fromkeys(("mlflow", "python", "ray", "sudo"), PROGRAM)}
        for name, text in {**programs, "curl": CURL.format(stand_ins=stand_ins)}.items():
            (stand_ins / name).write_text(text)
            (stand_ins / name).chmod(0o755)
        assert self.shell("command -v curl") == str(stand_ins / "curl"), "the real curl would run"

    def sshd(self, command: str, **environment: str) -> str:
        done = subprocess.run(
            ["/bin/bash", "-c", command],
            env={"HOME": str(self.home), **environment},
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
            timeout=30,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def shell(self, command: str, **environment: str) -> str:
        """Run a command as `ray exec` does."""
        return self.sshd(f"bash --login -c -i {shlex.quote(f'source ~/.bashrc; {command}')}", **environment)

    def set_up(self, calls: list[Call]) -> list[str]:
        """Run the recorded commands up to Ray's start; returns their calls of uv, home as /home/ubuntu."""
        (self.home / "uv-calls").write_text("")
        for call in calls:
            if call.program == "ssh" and not re.search(r"\bray st(op|art)\b", call.script):
                self.sshd(call.remote)
        return (self.home / "uv-calls").read_text().replace(str(self.home), "/home/ubuntu").splitlines()


def aws_client(service: str, endpoint: str) -> Any:
    """A client of boto3 that asks nobody but the endpoint, whatever the environment says."""
    import boto3

    return boto3.client(
        service,
        region_name=REGION,
        endpoint_url=endpoint,
        aws_access_key_id="TEST",
        aws_secret_access_key="testing",
    )


BUCKET = "bucket-of-a-team"


def readme_commands() -> list[str]:
    """The commands for AWS in the shell blocks of cluster/README.md, as typed with a bucket: some go over several
    lines."""
    text = (REPOSITORY / "cluster/README.md").read_text(encoding="utf-8").replace("BUCKET", BUCKET)
    text = text.partition("## Your own machines")[0]
    blocks = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    return re.findall(r"(?:.*\\\n)*.*\S.*", blocks)


@dataclass(frozen=True, repr=False)
class Life:
    """A cluster from `ray up` to `ray down`: what AWS then held, and what was sent to its machines.

    `head` and `workers` describe the machines, in EC2's words, when all were up, the one on spot first; `states` tells
    what became of them, `without_workers` before `ray down`, when `run_and_end.sh` had ended a study.
    `config` and `token` are what the head was given.
    `exec_calls` has the call that each `ray exec` of the README made, `printed` what each command of this project said.
    `asked` are the requests that AWS got.
    """

    config: dict[str, Any]
    token: str
    head: dict[str, Any]
    sent_to_head: list[Call]
    workers: list[dict[str, Any]]
    sent_to_workers: list[Call]
    exec_calls: dict[str, Call]
    printed: dict[str, str]
    last_on_head: Call
    groups: list[dict[str, Any]]
    asked: list[Request]
    without_workers: list[str]
    states: list[str]
