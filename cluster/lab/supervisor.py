"""What runs in a lab: its network, its AWS, its MLflow server and its machines.

python -m cluster.lab.supervisor KIND FOLDER [--mlflow], within new namespaces; world.py starts it, below a first
process whose end takes every process, mount and link of the lab with it.
"""

import json
import os
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from cluster.lab import ec2
from cluster.lab.cluster_files import PROJECT, aws_file, on_prem_file
from cluster.lab.node import Machine, Spec
from cluster.lab.services import MOTO_SECONDS, MlflowServer, Postgres, ServiceError, listens, start
from cluster.lab.system import REPOSITORY, Covering, LabError, empty_folder, paths_in_use, run

BRIDGE = "aaelab"
LAPTOP = {"aws": "172.31.255.254", "on_prem": "10.77.0.1"}  # this end of the bridge: gateway, AWS and MLflow
ON_PREM = {"head": "10.77.0.2", "w1": "10.77.0.3", "w2": "10.77.0.4"}
AWS_PORT, POSTGRES_PORT, MLFLOW_PORT = 5600, 5432, 5000
POLL_SECONDS = 0.2  # between looks for requests
FOLLOW_SECONDS = 2.0  # between looks at EC2
START_SECONDS = 300  # that parts of Ray wait for each other: several nodes start at once on this machine's cores
FILE = "/tmp/cluster.yaml"  # in the lab: the cluster's file, with what the lab lays over it
ON_PREM_SCRIPT = ("env", f"AAE_RAY_CLUSTER={FILE}", "sh", "cluster/on_prem.sh")
UP = {"aws": ("ray", "up", FILE), "on_prem": (*ON_PREM_SCRIPT, "up")}  # the commands that bring a cluster up
NO_SPOT_FILE = "/tmp/no-spot"
REQUESTS = "requests"  # folder of what is asked of the supervisor, a file each
STATE = "state.json"


class Lab:
    """What the supervisor holds. `folder` is the lab's, seen inside and outside."""

    def __init__(self, kind: str, folder: Path, with_mlflow: bool) -> None:
        self.kind, self.folder, self.with_mlflow = kind, folder, with_mlflow
        self.laptop = LAPTOP[kind]
        self.endpoint = f"http://{self.laptop}:{AWS_PORT}"
        self.home = Path("/tmp/laptop/home")
        self.key = self.home / ".ssh" / ("ray-autoscaler_us-west-2.pem" if kind == "aws" else "id_ed25519")
        self.mlflow: MlflowServer | None = None
        self.token = ""
        self.follower: ec2.Follower | None = None
        self.machines: dict[str, Machine] = {}

    def log(self, text: str) -> None:
        print(f"{time.strftime('%T')} {text}", flush=True)

    def cover(self) -> None:
        """A world of one's own. No packet leaves it: what is sent elsewhere is answered with `no route`."""
        with Covering(paths_in_use(self.folder)):
            empty_folder("/tmp", "1777")
            empty_folder("/run", "755")
            empty_folder("/dev/shm", "1777")
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "addr", "add", f"{self.laptop}/{ec2.PREFIX if self.kind == 'aws' else 24}", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        run("ip", "route", "add", "unreachable", "default")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        names = Path("/tmp/resolv.conf")
        names.write_text("nameserver 127.0.0.1\n")
        run("mount", "--bind", names, "/etc/resolv.conf")
        for folder in (self.home / ".ssh", Path("/tmp/laptop/tmp"), Path("/tmp/laptop/ray"), Path("/tmp/shared")):
            folder.mkdir(parents=True)
        Path("/tmp/shared").chmod(0o777)

    def start_services(self) -> None:
        command = [sys.executable, "-m", "cluster.lab.moto_server", "-H", self.laptop, "-p", str(AWS_PORT)]
        environment = dict(os.environ) | {"AAE_LAB_NO_SPOT": NO_SPOT_FILE, "HOME": str(self.home)}
        moto = start("moto", command, self.folder / "moto.log", environment, REPOSITORY)
        moto.wait(lambda: listens(self.laptop, AWS_PORT), MOTO_SECONDS)
        ec2.prepare(self.endpoint)
        self.log(f"AWS answers at {self.endpoint}")
        if self.with_mlflow:
            self._start_mlflow()

    def _start_mlflow(self) -> None:
        place = Path("/tmp/postgres")
        place.mkdir(mode=0o755)
        postgres = Postgres(place / "data", "127.0.0.1", POSTGRES_PORT, self.folder / "postgres.log")
        postgres.start()
        for name in ("mlflow", "mlflow_auth"):
            postgres.run("createdb", name)
        s3 = ec2.CREDENTIALS | {"AWS_ENDPOINT_URL": self.endpoint, "MLFLOW_S3_ENDPOINT_URL": self.endpoint}
        artifacts = f"s3://{ec2.BUCKET}/mlflow"
        self.mlflow = MlflowServer(postgres, artifacts, s3, self.laptop, MLFLOW_PORT, self.folder / "mlflow.log")
        self.mlflow.start()
        self.token = self.mlflow.accounts("add", "studies")
        self.log(f"MLflow answers at {self.mlflow.uri}")

    @property
    def laptop_environment(self) -> dict[str, str]:
        """All that a command sees which is typed on the laptop."""
        return {
            "HOME": str(self.home),
            "TMPDIR": "/tmp/laptop/tmp",
            "RAY_TMPDIR": "/tmp/laptop/ray",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/sbin", "/usr/bin", "/sbin", "/bin"]),
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "LANG": "C.UTF-8",
            "TERM": os.environ.get("TERM", "dumb"),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "AWS_ENDPOINT_URL": self.endpoint,
            **ec2.CREDENTIALS,
            **self.mlflow_environment,
        }

    @property
    def mlflow_environment(self) -> dict[str, str]:
        if self.mlflow is None:
            return {}
        return {"MLFLOW_TRACKING_URI": self.mlflow.uri, "MLFLOW_TRACKING_TOKEN": self.token}

    def spec_of(self, name: str, address: str, public: str) -> Spec:
        """A machine on which everything is installed, and which has the credentials that a role would give it."""
        imported = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
        extra = [entry for entry in imported if Path(entry).resolve() != REPOSITORY]
        variables = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
            "PYTHONPATH": os.pathsep.join([PROJECT.replace("~", "/home/ubuntu"), *extra]),
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_agent_register_timeout_ms": str(1000 * START_SECONDS),
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": str(START_SECONDS),
            "OMP_NUM_THREADS": "1",
            "AWS_ENDPOINT_URL": self.endpoint,
            **ec2.CREDENTIALS,
            **self.mlflow_environment,
        }
        names = {ip: other for other, ip in ON_PREM.items()} if self.kind == "on_prem" else {}
        bashrc = "".join(f"export {key}='{value}'\n" for key, value in variables.items())
        return Spec(name, address, BRIDGE, self.laptop, public, bashrc, names, "/tmp/shared")

    def boot_on_prem(self) -> None:
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        for name, ip in ON_PREM.items():
            public = self.key.with_suffix(".pub").read_text()
            machine = self.machines[name] = Machine(self.spec_of(name, f"{ip}/24", public), self.folder / name)
            machine.boot()
            self.log(f"{name} is up at {ip}")

    def prepare_laptop(self) -> None:
        """A token, and the cluster's file."""
        token = self.home / ".ray/auth_token"
        token.parent.mkdir(mode=0o700)
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        workers = [ip for name, ip in ON_PREM.items() if name != "head"]
        made = aws_file() if self.kind == "aws" else on_prem_file(self.key, ON_PREM["head"], workers)
        Path(FILE).write_text(yaml.safe_dump(made, sort_keys=False))

    def serve(self) -> None:
        """Until the lab is brought down. Requests are files in a folder, as no port needs to be known for them."""
        requests = self.folder / REQUESTS
        requests.mkdir()
        state = {
            "kind": self.kind,
            "environment": self.laptop_environment,
            "endpoint": self.endpoint,
            "key": str(self.key),
            "mlflow": self.mlflow.uri if self.mlflow is not None else None,
        }
        partial = self.folder / f"{STATE}.partial"
        partial.touch(mode=0o600)
        partial.write_text(json.dumps(state))
        partial.rename(self.folder / STATE)
        if self.kind == "aws":
            self.follower = ec2.Follower(self.endpoint, self.key, self.folder, self.spec_of, self.log)
        followed = 0.0
        while True:
            if self.follower is not None and time.monotonic() - followed > FOLLOW_SECONDS:
                self.follower.step()
                followed = time.monotonic()
            for request in sorted(requests.glob("*.json")):
                answer: Any
                try:
                    answer = self.answer(**json.loads(request.read_text()))
                except (LabError, ServiceError) as error:
                    answer = {"error": str(error)}
                request.with_suffix(".partial").write_text(json.dumps(answer or {}))
                request.with_suffix(".partial").rename(request.with_suffix(".answer"))
                request.unlink()
            time.sleep(POLL_SECONDS)

    def answer(self, what: str, name: str = "") -> dict[str, Any] | None:
        """Raises LabError for what cannot be done."""
        if what == "instances" and self.follower is not None:
            return {"instances": self.follower.listed()}
        self.log(f"asked: {what} {name}")
        if what == "stop" and name == "mlflow" and self.mlflow is not None:
            self.mlflow.stop()
        elif what == "start" and name == "mlflow" and self.mlflow is not None:
            self.mlflow.start()
        elif what == "terminate" and self.follower is not None:
            self.follower.ec2.terminate_instances(InstanceIds=[name])
        elif what == "unplug" and name in self.machines:
            self.machines[name].pull_the_plug()
        elif what == "boot" and name in self.machines:
            self.machines[name].boot()
        else:
            raise LabError(f"cannot {what} {name}: there is {', '.join(self.machines) or 'no machine of that kind'}")
        return None


def main(kind: str, folder: str, *options: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    lab = Lab(kind, Path(folder), "--mlflow" in options)
    lab.cover()
    lab.start_services()
    lab.prepare_laptop()
    if kind == "on_prem":
        lab.boot_on_prem()
    lab.serve()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (LabError, ServiceError) as error:
        print(f"{time.strftime('%T')} {error}", flush=True)
        raise SystemExit(1) from None
