"""A whole study whose folder is a URI: killed, gone on with from there alone, and read from there."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import FileSelector, FileSystem

from aae_ray.search.journal import read_events
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import StudyEnd
from tests.cluster.conftest import endpoint as endpoint
from tests.cluster.conftest import record as record
from tests.cluster.laptop import aws_client
from tests.study.commands import command, run
from tests.study.gate import DENIED, EXPIRED, Gate, gate_before

FEW = (
    "study.budget.trials=3",
    "train.epochs=9",
    "health.stop=false",
    "study.finalists=best",
    "study.pruner.type=none",
    "tracking.register_model=false",
)


LONG = ("study.concurrent_trials=1", "train.epochs=81")  # enough for the storage to be away in the middle of it


class Place:
    """Where studies are, looked at without the platform's own store."""

    def __init__(self, uri: str, workers: int) -> None:
        self.uri, self.workers = uri, workers
        self.system, self.root = FileSystem.from_uri(uri)

    def below(self, name: str) -> str:
        place, mark, query = self.uri.partition("?")
        return f"{place}/{name}{mark}{query}"

    def files(self) -> list[str]:
        selector = FileSelector(self.root, recursive=True, allow_not_found=True)
        return sorted(info.path[len(self.root) + 1 :] for info in self.system.get_file_info(selector) if info.is_file)

    def segments(self) -> list[str]:
        return [self._read(name).decode() for name in self.files() if "/journal/0" in name]

    def _read(self, name: str) -> bytes:
        with self.system.open_input_stream(f"{self.root}/{name}") as file:
            return bytes(file.read())


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A folder, or a bucket of a mock of AWS."""
    if request.param == "file":
        return Place(f"file://{tmp_path / 'there'}", workers=1)
    address: str = request.getfixturevalue("endpoint")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    region: Any = {"LocationConstraint": "us-west-2"}
    aws_client("s3", address).create_bucket(Bucket="whole", CreateBucketConfiguration=region)
    options = f"region=us-west-2&endpoint_override={address.removeprefix('http://')}&scheme=http"
    return Place(f"s3://whole/all?{options}", workers=2)


@pytest.mark.slow  # test_mirror.py and test_close_and_sync.py have the parts, without Ray
def test_a_study_elsewhere_survives_its_machine(
    tmp_path: Path, place: Place, environment: dict[str, str], empty_database: Path
) -> None:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    environment |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    clean = {key: value for key, value in environment.items() if value}
    log = (tmp_path / "out.txt").open("w")
    study = subprocess.Popen(
        command("tune", *FEW, f"study.folder={place.uri}", f"study.workers_per_trial={place.workers}"),
        cwd=tmp_path, env=clean, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not any('"ended"' in text for text in place.segments()):
        assert study.poll() is None and time.monotonic() < deadline, (tmp_path / "out.txt").read_text()
        time.sleep(0.1)
    os.kill(study.pid, signal.SIGKILL)
    study.wait()
    (name,) = {file.partition("/")[0] for file in place.files()}
    assert f"{name}/owner.json" in place.files()
    shutil.rmtree(tmp_path / "runs")

    uri = place.below(name)
    read = run(tmp_path, environment, "status", uri, "--json")
    assert name in json.dumps(json.loads(read.stdout))
    shutil.rmtree(tmp_path / "runs")
    done = run(tmp_path, environment, "tune", "--resume", uri)
    assert "best trial" in done.stdout

    files = [file.removeprefix(f"{name}/") for file in place.files()]
    assert {"best_config.yaml", "study.log", "plots.html", "report.html"} <= set(files)
    folders = {file.partition("/")[0] for file in files if "/" in file}
    assert {"figures", "journal", "trials"} <= folders and not {"tune", "gangs"} & folders
    assert "owner.json" not in files and not [file for file in files if ".partial-" in file]
    here = tmp_path / "runs" / name
    assert "".join(place.segments()) == (here / "journal.jsonl").read_text()
    ledger = Ledger.replay(read_events(here))
    assert len(ledger.complete()) == 3 and ledger.current_plan.settings.study.folder == place.uri
    front = {trial.name for trial in ledger.front()}
    assert {file.split("/")[1] for file in files if file.startswith("trials/")} == front
    assert not [path for path in tmp_path.iterdir() if ":" in path.name]


@pytest.fixture
def gate(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Before a mock of AWS with a bucket named guarded."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    region: Any = {"LocationConstraint": "us-west-2"}
    with suppress(aws_client("s3", endpoint).exceptions.BucketAlreadyOwnedByYou):
        aws_client("s3", endpoint).create_bucket(Bucket="guarded", CreateBucketConfiguration=region)
    with gate_before(endpoint.removeprefix("http://")) as gate:
        yield gate


class Running:
    """A study in a process of its own, with its folder behind the gate."""

    def __init__(self, folder: Path, environment: dict[str, str], gate: Gate, *own: str) -> None:
        options = f"region=us-west-2&endpoint_override={gate.address}&scheme=http"
        self.place = Place(f"s3://guarded/{folder.name}?{options}", workers=1)
        self.output = folder / "out.txt"
        clean = {key: value for key, value in environment.items() if value}
        with self.output.open("w") as log:
            self.process = subprocess.Popen(
                command("tune", *FEW, *LONG, f"study.folder={self.place.uri}", *own),
                cwd=folder, env=clean, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def wait_until(self, written: str, seconds: float = 120) -> None:
        """Until something stands in the journal that is elsewhere."""
        deadline = time.monotonic() + seconds
        while not any(written in text for text in self.place.segments()):
            assert self.process.poll() is None and time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.1)

    def ended(self, seconds: float = 120) -> tuple[int, str]:
        return self.process.wait(seconds), self.output.read_text()


@pytest.fixture
def first_trial_ended(
    tmp_path: Path, gate: Gate, environment: dict[str, str], empty_database: Path
) -> Callable[..., Running]:
    """Starts a study, and waits until it has a trial behind it."""
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    environment |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    def start(*own: str) -> Running:
        study = Running(tmp_path, environment, gate, *own)
        study.wait_until('"ended"')
        return study

    return start


@pytest.mark.slow
def test_credentials_that_expire_stop_a_study_which_goes_on_with_new_ones(
    tmp_path: Path, gate: Gate, environment: dict[str, str], first_trial_ended: Callable[..., Running]
) -> None:
    study = first_trial_ended("study.storage_timeout=5")
    gate.close(EXPIRED)
    began = time.monotonic()
    code, told = study.ended()
    assert code == 1 and time.monotonic() - began < 60
    assert "took nothing for study.storage_timeout=5 s (ExpiredToken: The provided token has expired." in told
    assert "aae_ray.tune --resume" in told and "Traceback" not in told
    (here,) = (tmp_path / "runs").iterdir()
    assert Ledger.replay(read_events(here)).end is StudyEnd.STORAGE

    refused = run(tmp_path, environment, "tune", "--resume", str(here), code=2)
    assert "ExpiredToken: The provided token has expired." in refused.stdout + refused.stderr
    gate.open()
    done = run(tmp_path, environment, "tune", "--resume", str(here))
    assert "best trial" in done.stdout
    ledger = Ledger.replay(read_events(here))
    assert len(ledger.complete()) == 3 and not ledger.failures
    assert "".join(study.place.segments()) == (here / "journal.jsonl").read_text()


@pytest.mark.slow
def test_a_storage_that_refuses_for_a_while_costs_no_trial(
    tmp_path: Path, gate: Gate, first_trial_ended: Callable[..., Running]
) -> None:
    study = first_trial_ended("study.budget.trials=5")
    gate.close(DENIED)
    time.sleep(10)
    assert gate.refused > 3
    gate.open()
    code, told = study.ended()
    assert code == 0 and told.count("study.folder: Access Denied") == 1 and "takes what happens again" in told
    (here,) = (tmp_path / "runs").iterdir()
    ledger = Ledger.replay(read_events(here))
    assert len(ledger.complete()) == 5 and not ledger.failures
