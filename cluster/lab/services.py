"""Servers that a cluster leans on: a mock of AWS, Postgres, and the team's MLflow server on both."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

MLFLOW = Path(__file__).parents[1] / "mlflow"
ANSWER_SECONDS = 2.0
POSTGRES_SECONDS = 60.0
MLFLOW_SECONDS = (
    400.0  # its imports, twice, and the migrations of a new database, on a machine that does other things as well
)
MOTO_SECONDS = 120.0
STOP_SECONDS = 30.0


class ServiceError(RuntimeError):
    """A server did not start, or did not end; the text has the end of its log."""


@dataclass
class Service:
    """A server in the background, with its log. `stop` asks it to end, `kill` does not ask."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def wait(self, ready: Callable[[], bool], seconds: float) -> None:
        """Until it is ready. Raises ServiceError, and ends the server, if it ends first or needs longer."""
        deadline = time.monotonic() + seconds
        while not ready():
            code = self.process.poll()
            if code is None and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            self.kill()
            what = f"not ready after {seconds:g} s" if code is None else f"ended with exit code {code}"
            raise ServiceError(f"{self.name}: {what}; the end of {self.log}:\n{tail(self.log)}")

    def stop(self, seconds: float = STOP_SECONDS, by: signal.Signals = signal.SIGTERM) -> None:
        """Raises ServiceError when it has not ended after so long; then it is killed."""
        if self.process.poll() is None:
            self.process.send_signal(by)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ServiceError(f"{self.name} did not end within {seconds:g} s:\n{tail(self.log)}") from None
        finally:
            self.kill()

    def kill(self) -> None:
        """End the server and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start(
    name: str, command: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path | None = None
) -> Service:
    """Start a server in a session of its own, its output at the end of a log."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
    return Service(name, process, log)


def tail(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which nothing listens at the moment."""
    with socket.socket() as asked:
        asked.bind((host, 0))
        return int(asked.getsockname()[1])


def listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


# -------------------------------------------------------------------------------------------------------- Postgres


def postgres_program(name: str) -> str | None:
    """The path of a program of Postgres' server, which Debian and Ubuntu keep off the PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda place: float(place.parent.name))
    return shutil.which(name) or next((str(p / name) for p in reversed(places) if (p / name).exists()), None)


def missing_for_postgres() -> str | None:
    """What this machine lacks for a Postgres server of one's own; None if nothing."""
    for name in ("initdb", "postgres"):
        if postgres_program(name) is None:
            return f"needs {name}: the package postgresql"
    for name in ("createdb", "pg_dump", "pg_restore"):
        if shutil.which(name) is None:
            return f"needs {name}: the package postgresql-client"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "needs setpriv (util-linux), as Postgres refuses to run as root"
    if os.geteuid() == 0 and not _has_user("postgres"):
        return "needs a user postgres, as Postgres refuses to run as root"
    return None


def _has_user(name: str) -> bool:
    import pwd

    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


@dataclass
class Postgres:
    """A Postgres server of one's own in a new folder, with a password, on one address."""

    folder: Path  # made here; its owner is the user who runs the server
    host: str
    port: int
    log: Path
    password: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    service: Service = field(init=False, repr=False)

    USER = "mlflow"

    @property
    def environment(self) -> dict[str, str]:
        """What libpq's clients need, in its own variables."""
        return {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": self.USER,
            "PGPASSWORD": self.password,
            "PGCONNECT_TIMEOUT": "10",
        }

    def start(self) -> None:
        """Make the cluster of databases and start its server. Raises ServiceError when it does not answer."""
        self.folder.mkdir(mode=0o700)
        secret = self.folder.with_name(f"{self.folder.name}.password")
        secret.touch(mode=0o600)
        secret.write_text(self.password)
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
            shutil.chown(secret, "postgres", "postgres")
        made = subprocess.run(
            [*self._as_user(), str(postgres_program("initdb")), "--pgdata", str(self.folder), "--username", self.USER,
             "--auth", "scram-sha-256", "--pwfile", str(secret), "--encoding", "UTF8", "--no-sync"],
            cwd="/", capture_output=True, text=True, timeout=POSTGRES_SECONDS,
        )  # fmt: skip
        secret.unlink()
        if made.returncode != 0:
            raise ServiceError(f"initdb: exit code {made.returncode}\n{made.stdout}\n{made.stderr}")
        command = [
            *self._as_user(), str(postgres_program("postgres")), "-D", str(self.folder), "-p", str(self.port),
            "-k", "", "-c", f"listen_addresses={self.host}", "-c", "fsync=off", "-c", "max_connections=60",
        ]  # fmt: skip
        self.service = start("postgres", command, self.log, {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}, Path("/"))
        self.service.wait(self._answers, POSTGRES_SECONDS)

    def stop(self) -> None:
        self.service.stop(by=signal.SIGINT)  # at once, and in order

    def run(self, *command: str) -> None:
        """Run one of its clients, such as createdb."""
        subprocess.run(command, env=os.environ | self.environment, check=True, timeout=POSTGRES_SECONDS)

    def _answers(self) -> bool:
        asked = subprocess.run(
            ["psql", "--command", "select 1", "postgres"],
            env=os.environ | self.environment,
            capture_output=True,
            timeout=POSTGRES_SECONDS,
        )
        return asked.returncode == 0

    @staticmethod
    def _as_user() -> list[str]:
        if os.geteuid() != 0:
            return []
        return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]


# ---------------------------------------------------------------------------------------------------------- MLflow


def missing_for_mlflow() -> str | None:
    """What this machine lacks for the team's MLflow server; None if nothing."""
    import importlib.util

    packages = {"psycopg": "psycopg[binary]", "flask_wtf": "mlflow[auth]", "boto3": "boto3"}
    for module, package in packages.items():
        if importlib.util.find_spec(module) is None:
            return f"needs {package}: pip install -r cluster/mlflow/requirements.txt"
    return missing_for_postgres()


@dataclass
class MlflowServer:
    """cluster/mlflow/server.sh on a Postgres server, with artifacts on S3."""

    postgres: Postgres
    artifacts: str  # s3://BUCKET/PREFIX
    s3: Mapping[str, str]  # the environment in which S3 is reached
    host: str
    port: int
    log: Path
    allowed_hosts: str = "127.0.0.1:*,172.31.*,10.*"
    admin_password: str = field(default_factory=lambda: secrets.token_urlsafe(16), repr=False)
    secret_key: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    service: Service | None = field(default=None, repr=False)

    @property
    def uri(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What server.sh asks for."""
        own = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]), "LANG": "C.UTF-8"}
        own |= {name: os.environ[name] for name in ("HOME", "PYTHONPATH", "TMPDIR") if name in os.environ}
        own |= {
            "MLFLOW_ARTIFACTS_DESTINATION": self.artifacts,
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.admin_password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.secret_key,
            "MLFLOW_SERVER_ALLOWED_HOSTS": self.allowed_hosts,
            "MLFLOW_HOST": self.host,
            "MLFLOW_PORT": str(self.port),
            "MLFLOW_WORKERS": "1",
        }
        return own | self.postgres.environment | dict(self.s3)

    def start(self) -> None:
        """Raises ServiceError when it does not answer in time."""
        self.service = start("mlflow", [str(MLFLOW / "server.sh")], self.log, self.environment)
        self.service.wait(self.answers, MLFLOW_SECONDS)

    def answers(self) -> bool:
        try:
            urlopen(f"{self.uri}/health", timeout=ANSWER_SECONDS).close()
        except HTTPError:
            return True
        except OSError:
            return False
        return True

    def stop(self) -> None:
        if self.service is not None:
            self.service.stop()
            self.service = None

    def accounts(self, *arguments: str) -> str:
        """What accounts.py prints: of `add NAME` the token. Raises ServiceError with what it says on stderr."""
        environment = self.environment | {"MLFLOW_TRACKING_URI": self.uri}
        command = [sys.executable, str(MLFLOW / "accounts.py"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=MLFLOW_SECONDS)
        if done.returncode != 0:
            raise ServiceError(f"exit code {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()
