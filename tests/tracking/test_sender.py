"""MLflow gets what a study has to say, once and in order; nothing that it refuses stops a study."""

import json
from pathlib import Path
from typing import Any

import pytest

from aae_ray.datasets.dataset import Dataset
from aae_ray.errors import UserError
from aae_ray.search.ledger import Ledger
from aae_ray.search.space import Plan, read_plan
from aae_ray.tracking.address import artifact_location, tracking_uri
from aae_ray.tracking.sender import CURSOR, SPOOL, STUDY, Spool, Tracker, replay, together
from aae_ray.tracking.sink import Records
from tests.tracking.little_study import (
    EXPERIMENT,
    PATIENCE,
    check_study,
    client_of,
    runs_of,
    steps_of,
    wait_until,
    write_study,
)

# ------------------------------------------------------------------------------------------------------ the address


def test_an_address_as_given_wins_over_the_environment_and_that_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri(None) == "http://tracking:5000"
    assert tracking_uri("https://other") == "https://other"
    assert tracking_uri("sqlite:///mine.db") == f"sqlite:///{tmp_path}/mine.db"
    assert tracking_uri(f"sqlite:///{tmp_path}/mine.db") == f"sqlite:///{tmp_path}/mine.db"
    for uri in (
        "databricks",
        "databricks://profile",
        "postgresql+psycopg2://user@host/db",
        "http://[::1]:5000",
        "https://user:secret@host/mlflow",
    ):
        assert tracking_uri(uri) == uri


def test_a_bad_address_of_the_environment_is_named_after_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI './mlruns' is not a server"):
        tracking_uri(None)


@pytest.mark.parametrize(
    "uri",
    [
        "mlruns",
        "./mlruns",
        "file:///tmp/mlruns",
        "ftp://host/x",
        "localhost:5000",
        "127.0.0.1:5000",
        "C:\\x.db",
        "http://[",
        "http://",
    ],
)
def test_an_address_that_mlflow_cannot_write_to_is_a_sentence(uri: str) -> None:
    with pytest.raises(
        UserError, match=r"is not a server or database of MLflow; give http\(s\)://host:port or sqlite:///file\.db"
    ):
        tracking_uri(uri)


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite://mine.db", "sqlite:mine.db"])
def test_an_sqlite_address_without_a_file_is_a_sentence(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="sqlite"):
        tracking_uri(uri)


def test_a_database_must_be_a_file_in_a_folder_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"there is no folder {tmp_path}/nowhere"):
        tracking_uri(f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    with pytest.raises(UserError, match="folder"):
        tracking_uri(f"sqlite:///{tmp_path}")


@pytest.mark.parametrize("name", ["a b", "ü", "a#b", "50%", "a%20b"])
def test_the_database_lies_where_its_folder_is_whatever_the_folder_is_called(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = tracking_uri(None)
    assert uri == f"sqlite:///{folder}/mlflow.db"
    assert artifact_location(uri, EXPERIMENT) == (folder / "mlartifacts" / "aae-digits").as_uri()


def test_artifacts_of_a_server_are_its_own_business() -> None:
    assert artifact_location("http://tracking:5000", EXPERIMENT) is None


# ---------------------------------------------------------------------------------------------- what a study records

STUDY_FILE = """
study: {name: digits, budget: {trials: 3}}
run: {train.epochs: 3}
space:
  model.latent_dim: {type: int, low: 2, high: 8}
"""


def shown(epoch: int, mse: float, jsd: float | None = None) -> dict[str, float]:
    return {"epoch": float(epoch), "val/reconstruction_mse": mse} | ({} if jsd is None else {"val/jsd_nats": jsd})


def tell(ledger: Ledger, records: Records, trial_id: str, *history: dict[str, float], **said: Any) -> None:
    for metrics in ledger.report(trial_id, {"history": list(history), **said}):
        records.trial_epoch(ledger.trials[trial_id], metrics)


@pytest.fixture
def plan(tmp_path: Path, cache: Path) -> Plan:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY_FILE)
    return read_plan(str(file), [f"data.cache={cache}"])


def test_a_study_is_a_parent_with_a_child_for_every_trial(
    database: str, tmp_path: Path, plan: Plan, digits: Dataset
) -> None:
    tracker, ledger = Tracker(tmp_path, database, EXPERIMENT), Ledger(plan)
    records = Records(tracker, plan, "digits-1", digits)
    page = tmp_path / "pareto_front.html"
    page.write_text("a plot")

    records.study_began()
    for trial_id, size in (("aa", 3), ("bb", 4), ("cc", 5)):
        records.trial_began(ledger.begin(trial_id, {"model.latent_dim": size}))
    tell(ledger, records, "aa", shown(1, 0.5), shown(2, float("nan"), 0.3), shown(3, 0.6, 0.2), finished=True)
    records.trial_picture(ledger.trials["aa"], page)
    records.trial_ended(ledger.end("aa"), ledger)
    tell(ledger, records, "bb", shown(1, 0.7))
    records.trial_began(ledger.begin("bb", {"model.latent_dim": 4}))  # its worker died, and it begins again
    tell(ledger, records, "bb", shown(1, 0.7), shown(2, 0.65), stop_reason="code_collapse")
    records.trial_ended(ledger.end("bb"), ledger)
    records.trial_ended(ledger.end("cc", failed=True, message="the worker died"), ledger)
    records.plots([page])
    records.study_ended(ledger, "FINISHED")
    assert tracker.close(PATIENCE) == 0 and tracker.dropped == []

    runs = runs_of(database)
    assert runs.keys() == {"study-digits-1", "t0000-z3", "t0001-z4", "t0002-z5"}
    parent = runs["study-digits-1"]
    assert parent.info.run_id == tracker.run_id(STUDY) and parent.info.status == "FINISHED" and parent.info.end_time
    assert parent.data.tags["aae.study_id"] == "digits-1" and parent.data.tags["aae.run_kind"] == "study"
    assert parent.data.tags["aae.data_digest"] == digits.digest and parent.data.tags["version.mlflow"]
    assert (
        parent.data.params["space.model.latent_dim"].startswith("IntDistribution(")
        and "model.latent_dim" not in parent.data.params
    )
    assert parent.data.params["study.budget.trials"] == "3" and parent.data.params["train.epochs"] == "3"
    assert "| t0000 | 0.6000 | 0.2000 | 3 |" in parent.data.tags["mlflow.note.content"]
    assert [file.path for file in client_of(database).list_artifacts(parent.info.run_id, "plots")] == [
        "plots/pareto_front.html"
    ]
    assert steps_of(database, parent, "study/trials_complete") == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert steps_of(database, parent, "study/trials_failed") == [(1, 0.0), (2, 0.0), (3, 1.0)]
    assert steps_of(database, parent, "study/best_reconstruction_mse") == [(1, 0.6), (2, 0.6), (3, 0.6)]

    child = runs["t0000-z3"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["aae.trial_id"] == "aa" and child.data.tags["aae.stop_reason"] == "completed"
    assert child.data.params["model.latent_dim"] == "3" and child.data.params["optim.beta2"] == "0.999"
    assert not [key for key in child.data.params if key.startswith(("study.", "tracking."))]
    assert steps_of(database, child, "val/reconstruction_mse") == [(1, 0.5), (3, 0.6)]  # NaN is not recorded
    assert steps_of(database, child, "val/jsd_nats") == [(2, 0.3), (3, 0.2)]
    assert child.data.metrics["best/val/reconstruction_mse"] == 0.5 and child.data.metrics["best/epoch"] == 1
    assert [file.path for file in client_of(database).list_artifacts(child.info.run_id, "figures")] == [
        "figures/pareto_front.html"
    ]
    (used,) = child.inputs.dataset_inputs
    assert used.dataset.digest == digits.digest and json.loads(used.dataset.profile)["train"] == len(digits.train)

    retried = runs["t0001-z4"]
    assert retried.data.tags["aae.attempt"] == "2" and retried.data.tags["aae.stop_reason"] == "code_collapse"
    assert steps_of(database, retried, "val/reconstruction_mse") == [(1, 0.7), (2, 0.65)]  # the first epoch once
    assert [runs[name].info.status for name in ("t0000-z3", "t0001-z4", "t0002-z5")] == ["FINISHED", "KILLED", "FAILED"]
    assert runs["t0002-z5"].data.tags["aae.message"] == "the worker died"
    place = client_of(database).get_experiment_by_name(EXPERIMENT).artifact_location
    assert place == artifact_location(database, EXPERIMENT)


# ------------------------------------------------------------------------------------------------- once, and in order


def test_a_replay_tells_what_is_refused_and_does_not_count_it_as_sent(database: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, database, EXPERIMENT)
    tracker.create_run(STUDY, "study-s1", {"aae.study_id": "s1", "aae.run_kind": "study"}, 1.0)
    tracker.log_artifact(STUDY, tmp_path / "nothing.png")
    assert tracker.close(PATIENCE) == 0
    (tmp_path / CURSOR).unlink()
    sent, left, refused = replay(tmp_path)
    assert (sent, left) == (2, 0) and [text.partition(":")[0] for text in refused] == ["artifact"]


def test_what_is_sent_twice_is_there_once(database: str, tmp_path: Path) -> None:
    """The note of how far it came is lost, or older than the last request: all is sent again and nothing doubles."""
    tracker = Tracker(tmp_path, database, EXPERIMENT)
    written = write_study(tracker, tmp_path)
    assert tracker.close(PATIENCE) == 0 and tracker.dropped == []
    check_study(database)
    (tmp_path / CURSOR).unlink()
    assert replay(tmp_path) == (written + 1, 0, [])  # and the line that names the server
    check_study(database)
    cursor = json.loads((tmp_path / CURSOR).read_text())
    (tmp_path / CURSOR).write_text(json.dumps(cursor | {"sent": 4}))
    assert replay(tmp_path) == (written + 1 - 4, 0, [])
    check_study(database)
    assert replay(tmp_path) == (0, 0, [])


def test_two_studies_share_an_experiment_and_a_deleted_one_comes_back(database: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        tracker = Tracker(folder, database, EXPERIMENT)
        tracker.create_run(STUDY, f"study-{name}", {"aae.study_id": name, "aae.run_kind": "study"}, 1.0)
        assert tracker.close(PATIENCE) == 0
        client_of(database).delete_experiment(tracker.results["experiment_id"])
    (tmp_path / "one" / CURSOR).unlink()
    replay(tmp_path / "one")
    assert runs_of(database).keys() == {"study-one", "study-two"}


def test_values_that_are_too_long_for_mlflow_are_cut_and_none_is_left_out(database: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, database, EXPERIMENT)
    tracker.create_run(STUDY, "long", {"aae.study_id": "x", "aae.run_kind": "study", "nothing": None}, 1.0)
    tracker.log_params(STUDY, {f"p{index}": "x" * 7000 for index in range(130)} | {"none": None, "empty": ""})
    tracker.set_tags(STUDY, {"long": "ü" * 9000})
    assert tracker.close(PATIENCE) == 0 and tracker.dropped == []
    run = runs_of(database)["long"]
    assert len(run.data.params) == 131 and {len(run.data.params[f"p{index}"]) for index in range(130)} == {6000}
    assert run.data.tags["long"] == "ü" * 8000 and "nothing" not in run.data.tags and run.data.params["empty"] == ""


def test_a_record_that_mlflow_refuses_for_good_is_told_and_the_others_go_on(database: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, database, EXPERIMENT)
    tracker.create_run(STUDY, "study-s1", {"aae.study_id": "s1", "aae.run_kind": "study"}, 1.0)
    tracker.log_params(STUDY, {"a": 1})
    tracker.log_params(STUDY, {"a": 2})  # params never change
    tracker.log_artifact(STUDY, tmp_path / "gone.png")
    tracker.log_metrics("nobody", {"m": 1.0}, 1)  # a run that was never created
    tracker.log_metrics(STUDY, {"m": 1.0}, 1)
    assert tracker.close(PATIENCE) == 0 and tracker.problem is None
    assert [text.partition(":")[0] for text in tracker.dropped] == ["params", "artifact", "metrics"]
    assert all(len(text.splitlines()) == 1 for text in tracker.dropped)
    run = runs_of(database)["study-s1"]
    assert run.data.params == {"a": "1"} and run.data.metrics == {"m": 1.0}


def test_metrics_that_stand_together_are_one_request() -> None:
    def metrics(run: str, step: int, count: int = 1) -> str:
        return json.dumps({"do": "metrics", "run": run, "metrics": {f"m{n}": 1.0 for n in range(count)}, "step": step})

    def steps(*texts: str) -> list[int]:
        return [line["step"] for line in together(texts)]

    tags = json.dumps({"do": "tags", "run": "a", "tags": {}})
    assert steps(metrics("a", 1), metrics("a", 2), metrics("a", 3)) == [1, 2, 3]
    assert steps(metrics("a", 1), metrics("b", 2), metrics("a", 3)) == [1]
    assert steps(metrics("a", 1), metrics("a", 2), tags, metrics("a", 3)) == [1, 2]
    assert steps(metrics("a", 1), "{cut off", metrics("a", 3)) == [1]
    assert steps(metrics("a", 1, 600), metrics("a", 2, 400), metrics("a", 3)) == [1, 2]  # 1000 are what MLflow takes
    assert steps(metrics("a", 1, 2000), metrics("a", 2)) == [1]
    assert [line["do"] for line in together([tags, tags])] == ["tags"]
    for damaged in ("5", "[]", "{}", '{"metrics": {"m": 1.0}, "run": "a"}', '{"do": "metrics", "run": "a"}'):
        assert steps(metrics("a", 1), damaged, metrics("a", 3)) == [1]


def test_of_metrics_that_go_together_only_the_bad_ones_are_refused(database: str, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append({"do": "open", "uri": database, "experiment": EXPERIMENT})
    about = {"aae.study_id": "s1", "aae.run_kind": "study"}
    spool.append({"do": "create", "run": STUDY, "name": "study-s1", "tags": about, "time": 1000})
    for step in range(1, 6):
        name = "no good?" if step in (2, 4) else "m"
        spool.append({"do": "metrics", "run": STUDY, "metrics": {name: 1.0}, "step": step, "time": step})
    tracker = Tracker(tmp_path)
    assert tracker.close(PATIENCE) == 0
    assert [text.partition(":")[0] for text in tracker.dropped] == ["metrics", "metrics"]
    assert steps_of(database, runs_of(database)["study-s1"], "m") == [(1, 1.0), (3, 1.0), (5, 1.0)]


def test_a_damaged_line_costs_none_of_its_neighbours(database: str, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append({"do": "open", "uri": database, "experiment": EXPERIMENT})
    about = {"aae.study_id": "s1", "aae.run_kind": "study"}
    spool.append({"do": "create", "run": STUDY, "name": "study-s1", "tags": about, "time": 1000})
    for step, damaged in enumerate(["5", "{}", '{"do": "metrics"}', '{"do": "fly", "run": "study"}', "{cut"], 1):
        spool.append({"do": "metrics", "run": STUDY, "metrics": {"m": 1.0}, "step": step, "time": step})
        spool.file.write(damaged + "\n")
        spool.file.flush()
    tracker = Tracker(tmp_path)
    assert tracker.close(PATIENCE) == 0
    assert [text.partition(":")[0] for text in tracker.dropped] == ["unreadable"] * 2 + ["metrics", "fly", "unreadable"]
    steps = [step for step, _ in steps_of(database, runs_of(database)["study-s1"], "m")]
    assert steps == [1, 2, 3, 4, 5]


def test_a_run_that_somebody_deleted_does_not_hold_up_the_others(database: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, database, EXPERIMENT)
    for run in (STUDY, "t0000"):
        tags = {"aae.study_id": "s1", "aae.run_kind": "study" if run == STUDY else "trial", "aae.trial_id": run}
        tracker.create_run(run, run, tags, 1.0)
    wait_until(lambda: tracker.run_id("t0000"))
    client_of(database).delete_run(tracker.run_id("t0000"))
    tracker.log_metrics("t0000", {"m": 1.0}, 1)
    tracker.log_metrics(STUDY, {"m": 1.0}, 1)
    assert tracker.close(PATIENCE) == 0 and len(tracker.dropped) == 1
    assert runs_of(database)[STUDY].data.metrics == {"m": 1.0}


# ------------------------------------------------------------------------------------------------- nothing ever raises


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_does_not_stop_a_study(database: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, database, EXPERIMENT)
    tracker.spool.file = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115 (every write fails there)
    tracker.create_run(STUDY, "study-s1", {"aae.study_id": "s1", "aae.run_kind": "study"}, 1.0)
    tracker.log_metrics(STUDY, {"m": 1.0}, 1)
    tracker.close(PATIENCE)


def test_a_value_that_is_no_json_does_not_stop_a_study(database: str, tmp_path: Path) -> None:
    import numpy as np

    tracker = Tracker(tmp_path, database, EXPERIMENT)
    tracker.create_run(STUDY, "study-s1", {"aae.study_id": "s1", "aae.run_kind": "study"}, 1.0)
    tracker.log_metrics(STUDY, {"m": np.float32(1.0)}, 1)  # type: ignore[dict-item]
    tracker.log_metrics(STUDY, {"n": 2.0}, 1)
    tracker.close(PATIENCE)
    assert runs_of(database)["study-s1"].data.metrics["n"] == 2.0


def test_a_folder_without_a_spool_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} is not the folder of a study: there is no {SPOOL} in it"):
        replay(tmp_path)
