"""A little study as MLflow should hold it, for tests of its records and of how they get there."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aae_ray.tracking.sender import STUDY, Tracker

EXPERIMENT = "aae/digits"
PATIENCE = 60.0  # seconds that a busy machine may need


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.02)


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def runs_of(uri: str) -> dict[str, Any]:
    """All runs by name; two of one name are one too many."""
    client = client_of(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    assert len({run.info.run_name for run in runs}) == len(runs), [run.info.run_name for run in runs]
    return {run.info.run_name: run for run in runs}


def steps_of(uri: str, run: Any, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client_of(uri).get_metric_history(run.info.run_id, metric)]


def write_study(tracker: Tracker, folder: Path, epochs: int = 3) -> int:
    """A little study: a parent and a child with everything that can be recorded. Returns the number of records."""
    picture = folder / "picture.png"
    picture.write_bytes(b"a picture")
    before = len(tracker.spool.lines)
    tracker.create_run(STUDY, "study-s1", {"aae.study_id": "s1", "aae.run_kind": "study"}, 1000.0)
    tracker.create_run(
        "t0000", "t0000-small", {"aae.study_id": "s1", "aae.trial_id": "ab12", "aae.run_kind": "trial"}, 1001.0
    )
    tracker.log_params("t0000", {"model.latent_dim": 3, "data.path": None})
    tracker.log_dataset("t0000", "digits", "d" * 32, "train", {"train": 10})
    for epoch in range(1, epochs + 1):
        tracker.log_metrics("t0000", {"val/reconstruction_mse": 1 / epoch}, epoch)
    tracker.set_tags("t0000", {"aae.stop_reason": "completed"})
    tracker.log_artifact("t0000", picture, "figures")
    tracker.end_run("t0000", "FINISHED", 1010.0)
    tracker.end_run(STUDY, "FINISHED", 1011.0)
    return len(tracker.spool.lines) - before


def check_study(uri: str, epochs: int = 3) -> None:
    """That little study is in MLflow, entirely and once."""
    runs = runs_of(uri)
    assert runs.keys() == {"study-s1", "t0000-small"}
    parent, child = runs["study-s1"], runs["t0000-small"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["aae.trial_id"] == "ab12" and child.data.tags["aae.stop_reason"] == "completed"
    assert child.data.params == {"model.latent_dim": "3"}
    assert steps_of(uri, child, "val/reconstruction_mse") == [(epoch, 1 / epoch) for epoch in range(1, epochs + 1)]
    assert [(run.info.status, run.info.start_time, run.info.end_time) for run in (parent, child)] == [
        ("FINISHED", 1_000_000, 1_011_000),
        ("FINISHED", 1_001_000, 1_010_000),
    ]
    (used,) = child.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest, used.tags[0].value) == ("digits", "d" * 32, "train")
    assert [file.path for file in client_of(uri).list_artifacts(child.info.run_id, "figures")] == [
        "figures/picture.png"
    ]
