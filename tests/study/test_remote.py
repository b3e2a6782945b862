"""A whole study whose folder is a URI: killed, gone on with from there alone, and read from there."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import FileSelector, FileSystem

from aae_ray.search.journal import read_events
from aae_ray.search.ledger import Ledger
from tests.cluster.conftest import endpoint as endpoint
from tests.cluster.conftest import record as record
from tests.cluster.laptop import aws_client
from tests.study.commands import command, run

FEW = (
    "study.budget.trials=3",
    "train.epochs=9",
    "health.stop=false",
    "study.finalists=best",
    "study.pruner.type=none",
    "tracking.register_model=false",
)


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
