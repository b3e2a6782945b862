"""A whole study whose folder is a URI: killed, gone on with from there alone, and read from there."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from aae_ray.search.journal import read_events
from aae_ray.search.ledger import Ledger
from tests.study.commands import command, run

FEW = (
    "study.budget.trials=3",
    "train.epochs=9",
    "health.stop=false",
    "study.finalists=best",
    "study.pruner.type=none",
    "tracking.register_model=false",
)


@pytest.mark.slow  # test_mirror.py and test_close_and_sync.py have the parts, without Ray
def test_a_study_elsewhere_survives_its_machine(
    tmp_path: Path, environment: dict[str, str], empty_database: Path
) -> None:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    there = tmp_path / "there"
    clean = {key: value for key, value in environment.items() if value}
    log = (tmp_path / "out.txt").open("w")
    study = subprocess.Popen(
        command("tune", *FEW, f"study.folder=file://{there}"),
        cwd=tmp_path, env=clean, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not any('"ended"' in text for text in segments(there)):
        assert study.poll() is None and time.monotonic() < deadline, (tmp_path / "out.txt").read_text()
        time.sleep(0.1)
    os.kill(study.pid, signal.SIGKILL)
    study.wait()
    (folder,) = there.iterdir()
    assert (folder / "owner.json").exists()
    shutil.rmtree(tmp_path / "runs")

    uri = f"file://{there}/{folder.name}"
    read = run(tmp_path, environment, "status", uri, "--json")
    assert folder.name in json.dumps(json.loads(read.stdout))
    shutil.rmtree(tmp_path / "runs")
    done = run(tmp_path, environment, "tune", "--resume", uri)
    assert "best trial" in done.stdout

    assert not (folder / "owner.json").exists() and not (folder / "tune").exists() and not (folder / "gangs").exists()
    for name in ("best_config.yaml", "study.log", "plots", "figures"):
        assert (folder / name).exists(), name
    assert not list(folder.rglob("*.partial-*"))
    here = tmp_path / "runs" / folder.name
    assert "".join(segments(there)) == (here / "journal.jsonl").read_text()
    ledger = Ledger.replay(read_events(here))
    assert len(ledger.complete()) == 3 and ledger.current_plan.settings.study.folder == f"file://{there}"
    front = {trial.name for trial in ledger.front()}
    assert {path.name for path in (folder / "trials").iterdir() if list(path.rglob("*.*"))} == front
    assert not [path for path in tmp_path.iterdir() if ":" in path.name]


def segments(there: Path) -> list[str]:
    return [path.read_text() for path in sorted(there.glob("*/journal/0*.jsonl"))]
