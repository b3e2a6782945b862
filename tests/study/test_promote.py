"""A champion by evidence, the whole way: two studies, a version on trial, new seeds of its best trial, and back."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from aae_ray.search import events
from aae_ray.search.journal import read_events
from tests.study.commands import run

DECODER, ENCODER = "aae-digits-decoder", "aae-digits-encoder"
SHORT = ("study.budget.trials=2", "study.constraints=[]", "train.batch_size=100", "health.stop=false")
SEEDS = 2
PATIENCE = 560  # seconds for a study of two trials on a busy machine


@pytest.mark.slow
@pytest.mark.timeout(4 * PATIENCE)
def test_new_seeds_move_the_champion_and_a_rollback_moves_it_back(tmp_path: Path, environment: dict[str, str]) -> None:
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db", registry_uri=f"sqlite:///{tmp_path}/mlflow.db")

    def champions() -> list[str]:
        return [str(client.get_model_version_by_alias(name, "champion").version) for name in (DECODER, ENCODER)]

    run(tmp_path, environment, "tune", *SHORT, "study.name=weak", "train.epochs=1", timeout=PATIENCE)
    own = ("study.name=good", "train.epochs=12", "tracking.promotion=evidence")
    told = run(tmp_path, environment, "tune", *SHORT, *own, timeout=PATIENCE).stdout
    assert "version 2, not the champion (it has no two new seeds" in told and champions() == ["1", "1"]
    (folder,) = tmp_path.glob("runs/good-*")
    assert "kept at version 1: it has no two new seeds" in (folder / "report.html").read_text()
    (command,) = (line.split("aae_ray.promote ")[1] for line in told.splitlines() if "aae_ray.promote" in line)
    assert command == f"{DECODER} --version 2"

    confirm = (*command.split(), "--seeds", str(SEEDS))
    done = run(tmp_path, environment, "promote", *confirm, timeout=PATIENCE)
    assert f"{SEEDS} new seeds" in done.stdout and "Traceback" not in done.stdout + done.stderr
    assert "version 2, champion (better than version 1 by" in done.stdout and champions() == ["2", "2"]
    tags = client.get_model_version(DECODER, "2").tags
    difference, error = (float(tags[f"promotion.{name}"]) for name in ("difference", "standard_error"))
    assert tags["promotion"] == "promoted" and difference > 2 * error > 0
    assert len(json.loads(tags["evidence"])) == SEEDS and tags["promotion.champion_seeds"] == "1"
    last: Any = [event for event in read_events(folder) if isinstance(event, events.Promoted)][-1]
    assert (last.against, last.difference, last.standard_error) == (1, difference, error)
    page = (folder / "report.html").read_text()
    assert "moved from version 1 to version 2" in page and f"{difference:.4g} ({SEEDS} new seeds against 1)" in page

    again = run(tmp_path, environment, "promote", *confirm).stdout
    assert "is confirmed already" in again and "it is the champion already" in again
    assert "it is the champion already" in run(tmp_path, environment, "promote", DECODER).stdout
    back = run(tmp_path, environment, "promote", DECODER, "--rollback").stdout
    assert "version 1 is the champion again" in back and champions() == ["1", "1"]
    assert client.get_model_version(DECODER, "2").tags["promotion"] == "refused"
