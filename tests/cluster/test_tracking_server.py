"""cluster/mlflow: accounts and tokens, host names, files through the server, backup, restore and upgrade, as they are
documented there; and a study that loses nothing while its server is restarted."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from aae_ray.search.journal import read_events
from aae_ray.search.ledger import Ledger
from cluster.lab.services import (
    MLFLOW,
    MlflowServer,
    Postgres,
    ServiceError,
    free_port,
    missing_for_mlflow,
)
from tests.cluster.laptop import aws_client
from tests.study.commands import command

missing = missing_for_mlflow()
pytestmark = [
    pytest.mark.skipif(missing is not None, reason=str(missing)),
    pytest.mark.slow,  # a server with its own Postgres takes a minute on a busy machine
    pytest.mark.timeout(3000),
]
SECONDS_FOR_A_COMMAND = 180
STUDY_SECONDS = 700


@pytest.fixture(scope="module")
def s3(endpoint: str) -> dict[str, str]:
    """The environment in which S3 is reached."""
    for bucket in ("team", "backup"):
        place: Any = {"LocationConstraint": "us-west-2"}
        aws_client("s3", endpoint).create_bucket(Bucket=bucket, CreateBucketConfiguration=place)
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-west-2",
        "AWS_REGION": "us-west-2",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own folders are closed to the user postgres
    folder.chmod(0o755)
    server = Postgres(folder / "data", "127.0.0.1", free_port(), folder / "log")
    try:
        server.start()
        for name in ("mlflow", "mlflow_auth"):
            server.run("createdb", name)
        yield server
        server.stop()
    finally:
        if hasattr(server, "service"):
            server.service.kill()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server(postgres: Postgres, s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    log = tmp_path_factory.mktemp("server") / "mlflow.log"
    hosts = "127.0.0.1:*,mlflow.internal:*"
    mlflow = MlflowServer(postgres, "s3://team/mlflow", s3, "127.0.0.1", free_port(), log, hosts)
    mlflow.start()
    yield mlflow
    if mlflow.service is not None:
        mlflow.service.kill()


@pytest.fixture(scope="module")
def token(server: MlflowServer) -> str:
    return server.accounts("add", "studies")


def status(server: MlflowServer, **headers: str) -> int:
    """What the server answers to a request for an experiment."""
    address = f"{server.uri}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    try:
        with urlopen(Request(address, headers=headers), timeout=60) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def client(code: str, server: MlflowServer, token: str) -> str:
    """Run Python as a machine that has the server's address and a token, and nothing of S3."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    environment |= {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_TRACKING_TOKEN": token, "MLFLOW_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=SECONDS_FOR_A_COMMAND
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{server.log.read_text()[-3000:]}"
    return done.stdout.strip()


RECORD = """
import mlflow, pathlib, tempfile
mlflow.set_experiment({experiment!r})
with mlflow.start_run(run_name="one") as run, tempfile.TemporaryDirectory() as folder:
    mlflow.log_metric("loss", 0.5)
    picture = pathlib.Path(folder, "picture.png")
    picture.write_bytes(b"a picture")
    mlflow.log_artifact(str(picture))
    print(run.info.artifact_uri)
"""
READ = """
import mlflow
(run,) = mlflow.search_runs(experiment_names=[{experiment!r}], output_format="list")
path = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="picture.png")
print(run.info.run_name, run.data.metrics["loss"], open(path).read())
"""
EPOCHS_OF_RUNS = """
import json
from mlflow import MlflowClient
client = MlflowClient()
runs = client.search_runs([client.get_experiment_by_name({experiment!r}).experiment_id])
trials = [run for run in runs if "aae.trial_id" in run.data.tags]
assert len(runs) == len(trials) + 1 and {{run.info.status for run in runs}} == {{"FINISHED"}}, runs
history = lambda run: client.get_metric_history(run.info.run_id, "train/reconstruction_loss")
print(json.dumps({{run.data.tags["aae.trial_id"]: [point.step for point in history(run)] for run in trials}}))
"""


def documented(title: str) -> list[str]:
    """The blocks of commands in README.md below the sentence that begins so."""
    text = (MLFLOW / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Back up, restore, upgrade")[2]
    before, found, after = section.partition(title)
    assert found, f"README.md has no {title!r}"
    block = re.search(r"```sh\n(.*?)```", after, re.DOTALL)
    assert block
    return block[1].splitlines()


def type_in(lines: list[str], folder: Path, server: MlflowServer) -> None:
    """Run commands of README.md as the operator of the server."""
    text = "\n".join(line for line in lines if not line.startswith("pip "))
    text = text.replace("s3://BUCKET", "s3://team").replace("s3://BACKUP", "s3://backup")
    done = subprocess.run(
        ["/bin/bash", "-e", "-c", text],
        env=server.environment, cwd=folder, capture_output=True, text=True, timeout=SECONDS_FOR_A_COMMAND,
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def test_backup_restore_and_upgrade_are_ten_lines() -> None:
    blocks = [documented(title) for title in ("A backup needs no pause", "Restore, with", "Upgrade: back up")]
    assert sum(map(len, blocks)) <= 10


def test_a_token_lets_in_and_nothing_else_does(server: MlflowServer, token: str) -> None:
    assert re.fullmatch(r"studies\.[A-Za-z0-9_-]{43}", token)
    assert status(server) == 401
    assert status(server, Authorization=f"Bearer {token}") == 200
    for wrong in (token[:-1], "studies.", ".", "nobody.secret", "admin.secret", "studies", ""):
        assert status(server, Authorization=f"Bearer {wrong}") == 401, wrong
    for scheme in ("Digest username=studies", "Basic", "Basic ???", "Negotiate abc"):
        assert status(server, Authorization=scheme) == 401, scheme


def test_a_renewed_token_replaces_the_old_one_and_a_removed_account_is_out(server: MlflowServer) -> None:
    old = server.accounts("add", "to.renew")  # a dot in a name ends it not
    assert status(server, Authorization=f"Bearer {old}") == 200
    new = server.accounts("renew", "to.renew")
    assert status(server, Authorization=f"Bearer {new}") == 200
    assert status(server, Authorization=f"Bearer {old}") == 401
    server.accounts("remove", "to.renew")
    assert status(server, Authorization=f"Bearer {new}") == 401


def test_a_mistake_with_accounts_is_a_sentence(server: MlflowServer, token: str) -> None:
    for arguments, words in ((("add", "a:b"), "is no name of an account"), (("add", "studies"), "did not add studies")):
        with pytest.raises(ServiceError, match=words) as refused:
            server.accounts(*arguments)
        assert "exit code 2" in str(refused.value) and "Traceback" not in str(refused.value)


def test_only_names_that_are_allowed_reach_the_server(server: MlflowServer, token: str) -> None:
    let_in = {"Authorization": f"Bearer {token}"}
    assert status(server, Host="mlflow.internal:5000", **let_in) == 200
    assert status(server, Host="elsewhere.example.org", **let_in) == 403


def test_a_client_with_an_address_and_a_token_stores_files_on_s3(
    server: MlflowServer, token: str, endpoint: str
) -> None:
    where = client(RECORD.format(experiment="files"), server, token)
    assert where.startswith("mlflow-artifacts:/")
    assert client(READ.format(experiment="files"), server, token) == "one 0.5 a picture"
    stored = aws_client("s3", endpoint).list_objects_v2(Bucket="team", Prefix="mlflow/")["Contents"]
    assert any(item["Key"].endswith("artifacts/picture.png") for item in stored)


def test_another_account_reads_and_changes_nothing(server: MlflowServer, token: str) -> None:
    client(RECORD.format(experiment="mine"), server, token)
    other = server.accounts("add", "colleague")
    assert client(READ.format(experiment="mine"), server, other) == "one 0.5 a picture"
    intrude = "import mlflow\nmlflow.set_experiment('mine')\ntry: mlflow.start_run()\nexcept Exception as e: print(e)"
    assert "Permission denied" in client(intrude, server, other)


def test_what_was_backed_up_is_there_after_a_restore(
    server: MlflowServer, token: str, endpoint: str, tmp_path: Path
) -> None:
    client(RECORD.format(experiment="kept"), server, token)
    type_in(documented("A backup needs no pause"), tmp_path, server)

    server.stop()
    for name in ("mlflow", "mlflow_auth"):
        server.postgres.run("dropdb", name)
    files = aws_client("s3", endpoint)
    for item in files.list_objects_v2(Bucket="team")["Contents"]:
        files.delete_object(Bucket="team", Key=item["Key"])

    type_in(documented("Restore, with"), tmp_path, server)
    server.start()
    assert client(READ.format(experiment="kept"), server, token) == "one 0.5 a picture"


def test_older_tables_are_refused_until_they_are_upgraded(server: MlflowServer, token: str, tmp_path: Path) -> None:
    """The migrations of MLflow, stopped two revisions before the last, make tables as an older MLflow has them."""
    older = (
        "import sqlalchemy\nfrom alembic import command\nfrom alembic.script import ScriptDirectory\n"
        "from mlflow.store.db.utils import InitialBase, _get_alembic_config\n"
        "url = 'postgresql+psycopg:///older'\nengine = sqlalchemy.create_engine(url)\n"
        "InitialBase.metadata.create_all(engine)\nconfig = _get_alembic_config(url)\n"
        "newest = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]\n"
        "command.upgrade(config, newest[2])\n"
    )
    server.postgres.run("createdb", "older")
    subprocess.run(
        [sys.executable, "-c", older], env=server.environment, check=True, timeout=SECONDS_FOR_A_COMMAND, cwd=tmp_path
    )
    server.stop()
    for old, new in (("mlflow", "newer"), ("older", "mlflow")):
        server.postgres.run("psql", "--quiet", "--command", f"alter database {old} rename to {new}", "postgres")
    with pytest.raises(ServiceError, match="its tables are of revision .* says how to upgrade"):
        server.start()
    type_in(documented("Upgrade: back up"), tmp_path, server)
    server.start()
    client(RECORD.format(experiment="upgraded"), server, token)
    assert client(READ.format(experiment="upgraded"), server, token) == "one 0.5 a picture"
    server.stop()
    server.postgres.run("dropdb", "mlflow")
    server.postgres.run("psql", "--quiet", "--command", "alter database newer rename to mlflow", "postgres")
    server.start()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"PGHOST": ""}, "PGHOST is not set"),
        ({"MLFLOW_AUTH_ADMIN_PASSWORD": ""}, "MLFLOW_AUTH_ADMIN_PASSWORD is not set"),
        ({"MLFLOW_SERVER_ALLOWED_HOSTS": ""}, "MLFLOW_SERVER_ALLOWED_HOSTS is not set"),
        ({"MLFLOW_ARTIFACTS_DESTINATION": "/var/mlflow"}, "is no place on S3; give s3://BUCKET/mlflow"),
    ],
)
def test_a_server_that_lacks_a_setting_says_which(server: MlflowServer, changed: dict[str, str], words: str) -> None:
    done = subprocess.run(
        [str(MLFLOW / "server.sh")], env=server.environment | changed, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2 and words in done.stderr


@pytest.mark.timeout(3000)
def test_a_study_loses_nothing_while_its_server_is_restarted(
    server: MlflowServer, token: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Stopped when the first trial has reported, and started again before the study ends."""
    environment |= {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_TRACKING_TOKEN": token}
    said = (tmp_path / "said.txt").open("w+")
    study = subprocess.Popen(
        command(
            "tune", "study.name=restarted", "tracking.experiment=restarted", "study.budget.trials=4", "train.epochs=81",
            "study.pruner.type=none", "study.finalists=best", "health.stop=false", "study.concurrent_trials=1",
        ),
        cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
    )  # fmt: skip

    def journal() -> str:
        paths = list(tmp_path.glob("runs/*/journal.jsonl"))
        return paths[0].read_text() if paths else ""

    def waited_for(what: str) -> None:
        deadline = time.monotonic() + STUDY_SECONDS
        while what not in journal():
            assert study.poll() is None and time.monotonic() < deadline, Path(said.name).read_text()
            time.sleep(0.1)

    try:
        waited_for('"reported"')
        server.stop()
        waited_for('"ended"')  # a whole trial has come to its end without the server
        assert "study_ended" not in journal()
        server.start()
        assert study.wait(STUDY_SECONDS) == 0, Path(said.name).read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(study.pid, signal.SIGKILL)
    (folder,) = tmp_path.glob("runs/*")
    ledger = Ledger.replay(read_events(folder))
    told = client(EPOCHS_OF_RUNS.format(experiment="restarted"), server, token)
    assert json.loads(told) == {trial.name: list(range(1, 82)) for trial in ledger.complete()}
    assert len(ledger.complete()) == 4
