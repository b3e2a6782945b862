"""A lab from outside: bring it up, run commands in it, take machines away, bring it down."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from cluster.lab.node import USER, user_id_is_taken
from cluster.lab.services import tail
from cluster.lab.supervisor import REQUESTS, STATE
from cluster.lab.system import REPOSITORY, LabError, missing

Kind = Literal["aws", "on_prem"]
UP_SECONDS = 900.0  # namespaces take seconds; a new MLflow server on a busy machine takes minutes
REQUEST_SECONDS = 500.0
LOG = "lab.log"
UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc")
# bash takes care of processes that lost their parents, as a first process must.
FIRST = '"$0" -m cluster.lab.supervisor "$@" & wait $!'


class World:
    """A lab, by the folder that holds its state and its logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def up(self, kind: Kind, with_mlflow: bool = False) -> None:
        """Bring up network, AWS, MLflow and, on premise, the machines; the cluster itself comes by `ray up`.

        Raises LabError where there is a lab already, where there can be none, or when it is not up in time.
        """
        reason = missing() or user_id_is_taken()
        if reason is not None:
            raise LabError(f"no lab on this machine: it {reason}" if reason.startswith("needs") else reason)
        if self._first() is not None:
            raise LabError(f"a lab is up already in {self.folder}; python -m cluster.lab down ends it")
        self.folder.mkdir(parents=True, exist_ok=True)
        if any(self.folder.iterdir()):
            raise LabError(f"{self.folder} is not empty; remove it, or give another --folder")
        command = [*UNSHARE, "bash", "-c", FIRST, sys.executable, kind, str(self.folder)]
        with (self.folder / LOG).open("wb") as log:
            outer = subprocess.Popen(
                [*command, *(["--mlflow"] if with_mlflow else [])],
                cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=dict(os.environ) | {"PYTHONPATH": _with_repository(), "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        (self.folder / "pid").write_text(str(outer.pid))
        deadline = time.monotonic() + UP_SECONDS
        while not (self.folder / STATE).exists():
            if outer.poll() is not None or time.monotonic() > deadline:
                self.down()
                raise LabError(f"the lab did not come up:\n{self.logs()}")
            time.sleep(0.2)

    def down(self) -> None:
        """End it, with all that is in it. Does nothing where none is up."""
        outer = self._outer()
        if outer is not None:
            os.kill(outer, signal.SIGKILL)  # whose child, the first process of the lab, ends with it
            with suppress(ChildProcessError):
                os.waitpid(outer, 0)  # where it is a child of this process

    @property
    def state(self) -> dict[str, Any]:
        """Raises LabError where no lab is up."""
        self._require_up()
        state: dict[str, Any] = json.loads((self.folder / STATE).read_text())
        return state

    def _require_up(self) -> None:
        if self._first() is None:
            raise LabError(f"no lab is up in {self.folder}; python -m cluster.lab up aws makes one")

    def command(self, *command: str, environment: dict[str, str] | None = None) -> list[str]:
        """The command line that runs a command on the lab's laptop."""
        variables = self.state["environment"] | (environment or {})
        return [
            "nsenter", "--target", str(self._first()), "--net", "--mount", "--pid", f"--wdns={REPOSITORY}", "--",
            "env", "--ignore-environment", *(f"{name}={value}" for name, value in variables.items()), *command,
        ]  # fmt: skip

    def run(
        self, *command: str, seconds: float, environment: dict[str, str] | None = None, check: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command on the laptop. Raises LabError when it fails or needs longer; it has what was said."""
        line = " ".join(command)
        try:
            done = subprocess.run(
                self.command(*command, environment=environment),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            said = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout
            raise LabError(f"{line}: not done after {seconds:g} s\n{said}\n{self.logs()}") from None
        if check and done.returncode != 0:
            raise LabError(f"{line}: exit code {done.returncode}\n{done.stdout}\n{self.logs()}")
        return done

    def ask(self, what: str, name: str = "") -> dict[str, Any]:
        """Have the supervisor do something, such as `unplug` a machine. Raises LabError with why if it cannot."""
        self._require_up()
        request = self.folder / REQUESTS / f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.json"
        request.with_suffix(".new").write_text(json.dumps({"what": what, "name": name}))
        request.with_suffix(".new").rename(request)
        deadline = time.monotonic() + REQUEST_SECONDS
        while not request.with_suffix(".answer").exists():
            if self._first() is None or time.monotonic() > deadline:
                raise LabError(f"{what} {name}: no answer\n{self.logs()}")
            time.sleep(0.1)
        answer: dict[str, Any] = json.loads(request.with_suffix(".answer").read_text())
        if "error" in answer:
            raise LabError(answer["error"])
        return answer

    def python(self, code: str, seconds: float = 120.0) -> Any:
        """What a Python program prints as JSON, run on the laptop: there AWS can be asked."""
        return json.loads(self.run(sys.executable, "-c", code, seconds=seconds).stdout)

    def instances(self) -> list[dict[str, str]]:
        """Of each instance that AWS knows: id, type in the cluster's file, state, market, address, machine's name."""
        found: list[dict[str, str]] = self.ask("instances")["instances"]
        return found

    def terminate(self, instance: str) -> None:
        """AWS takes an instance away, without notice."""
        self.ask("terminate", instance)

    def warn(self, address: str, seconds: int) -> None:
        """Ray hears that a node will be taken away after so long, as by a notice of the cloud's."""
        why = f"--reason DRAIN_NODE_REASON_PREEMPTION --reason-message notice --deadline-remaining-seconds {seconds}"
        self.ssh(address, f"ray drain-node {why}", seconds=180.0)

    def ssh(self, address: str, command: str, seconds: float) -> "subprocess.CompletedProcess[str]":
        """Run a command on a machine, with the environment that its user has."""
        options = ("-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes")
        there = f"bash -c {shlex.quote(f'source ~/.bashrc; {command}')}"
        return self.run("ssh", *options, "-i", self.state["key"], f"{USER}@{address}", there, seconds=seconds)

    def logs(self, lines: int = 30) -> str:
        """The ends of all logs."""
        logs = sorted(self.folder.glob("*.log")) + sorted(self.folder.glob("*/*.log"))
        return "\n".join(f"--- {log}\n{tail(log, lines)}" for log in logs)

    def _outer(self) -> int | None:
        """The process outside whose end is the lab's."""
        try:
            pid = int((self.folder / "pid").read_text())
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if str(self.folder).encode() in line else None  # a number may have been given away again

    def _first(self) -> int | None:
        """The first process of the lab, by its number outside."""
        outer = self._outer()
        if outer is None:
            return None
        try:
            children = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
        except OSError:
            return None
        return int(children[0]) if children else None


def _with_repository() -> str:
    """PYTHONPATH with this repository first, as what is imported here."""
    entries = [str(REPOSITORY), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.pathsep.join(dict.fromkeys(entries))
