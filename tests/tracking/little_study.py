"""A little study as MLflow should hold it, for tests of its records and of how they get there."""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from optuna.distributions import IntDistribution

from aae_ray.search import events
from aae_ray.search.journal import Journal
from aae_ray.search.outcomes import Reason
from aae_ray.search.space import Plan, record_plan
from aae_ray.settings import Settings, replace
from aae_ray.tracking import sender
from aae_ray.tracking.sender import Synced, Tracker

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


def sync(folder: Path, uri: str | None = None, seconds: float = PATIENCE) -> Synced:
    """What is left, as another process sends it."""
    with closing(Journal.open(folder)) as journal:
        return sender.send_pending(journal, uri, seconds)


DATA = events.DataRecord(name="digits", digest="d" * 32, shape=(1, 8, 8), classes=10, train=10, val=5, test=5)


class LittleStudy:
    """A study's journal, written by hand, and the tracker that follows it."""

    def __init__(self, folder: Path, uri: str, study_id: str = "s1", **settings: Any) -> None:
        values = {"tracking.experiment": EXPERIMENT} | {k.replace("__", "."): v for k, v in settings.items()}
        plan = Plan(replace(Settings(), values), {"model.latent_dim": IntDistribution(2, 8)})
        self.folder, self.now = folder, 1000.0
        self.journal = Journal.create(folder, lambda: self.now)
        self.tracker = Tracker(folder, self.journal.history, uri)
        started = events.StudyStarted(
            study_id=study_id, plan=record_plan(plan), data=DATA, versions={}, provenance={"version.mlflow": "3"},
            host="h", pid=1,
        )  # fmt: skip
        self.add(started)

    def add(self, *happened: events.Event, at: float | None = None) -> None:
        self.now = self.now if at is None else at
        self.journal.append(*happened)
        self.tracker.wake()

    def begin(self, number: int = 0, size: int = 3) -> None:
        self.add(events.Suggested(number=number, params={"model.latent_dim": size}))
        self.attempt(number, 1)

    def attempt(self, number: int, attempt: int, epoch: int = 0) -> None:
        self.add(events.AttemptStarted(number=number, attempt=attempt, epoch=epoch))

    def report(self, *history: dict[str, float], number: int = 0) -> None:
        self.add(
            events.Reported(
                number=number,
                epoch=int(history[-1]["epoch"]),
                history=history,
                checkpoint=None,
                training_seconds=0,
                evaluation_seconds=0,
            )  # fmt: skip
        )

    def write(self, epochs: int = 3) -> int:
        """A parent and a child with everything that can be recorded. Returns the number of records."""
        (self.folder / "picture.png").write_bytes(b"a picture")
        self.now = 1001.0
        self.begin()
        for epoch in range(1, epochs + 1):
            self.report({"epoch": float(epoch), "val/reconstruction_mse": 1 / epoch, "val/jsd_nats": 0.5})
        self.add(events.FileWritten(number=0, path="picture.png", folder="figures"))
        self.add(events.Ended(number=0, reason=Reason.COMPLETED), at=1010.0)
        self.add(events.StudyEnded(), at=1011.0)
        return len(self.journal.history)


def check_study(uri: str, epochs: int = 3) -> None:
    """That little study is in MLflow, entirely and once."""
    runs = runs_of(uri)
    assert runs.keys() == {"study-s1", "t0000-z3"}
    parent, child = runs["study-s1"], runs["t0000-z3"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["aae.trial_id"] == "t0000" and child.data.tags["aae.stop_reason"] == "completed"
    assert child.data.params["model.latent_dim"] == "3" and child.data.params["optim.beta2"] == "0.999"
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
