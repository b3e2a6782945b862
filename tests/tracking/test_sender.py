"""MLflow gets what a study has to say, once and in order; nothing that it refuses stops a study."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aae_ray.errors import UserError
from aae_ray.search import events
from aae_ray.search.journal import JOURNAL, read_events
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import FailureClass, Reason, StudyEnd
from aae_ray.tracking.address import artifact_location, make_database, tracking_uri
from aae_ray.tracking.cursor import CURSOR
from aae_ray.tracking.mapping import STUDY, Call, CreateRun, LogArtifact
from aae_ray.tracking.sender import Tracker
from aae_ray.tracking.writer import MlflowWriter, is_permanent, reason_of
from tests.tracking.little_study import (
    EXPERIMENT,
    PATIENCE,
    LittleStudy,
    check_study,
    client_of,
    runs_of,
    steps_of,
    sync,
    wait_until,
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


@pytest.mark.parametrize("name", ["a b", "ü", "a#b", "50%", "%", "a[b]*", "a&b=c;d+e", "'q' \"d\""])
def test_database_and_artifacts_lie_in_their_folder_whatever_it_is_called(
    name: str, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = tracking_uri(None)
    shutil.copyfile(empty_database, folder / "mlflow.db")  # to make one takes seconds
    before = (folder / "mlflow.db").read_bytes()
    client = client_of(uri)
    run = client.create_run(client.create_experiment(EXPERIMENT, artifact_location(uri, EXPERIMENT)))
    client.log_metric(run.info.run_id, "val/jsd_nats", 0.5)
    client.log_text(run.info.run_id, "a decoder", "decoder/weights")
    client.create_registered_model("decoder")
    client.create_model_version("decoder", f"{run.info.artifact_uri}/decoder", run_id=run.info.run_id)

    (file,) = (folder / "mlartifacts" / "aae-digits").rglob("weights")
    assert file.read_text() == "a decoder" and (folder / "mlflow.db").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert client_of(uri).get_run(run.info.run_id).data.metrics == {"val/jsd_nats": 0.5}
    mlflow.set_registry_uri(uri)
    loaded = mlflow.artifacts.download_artifacts("models:/decoder/1", tracking_uri=uri)
    assert Path(loaded, "weights").read_text() == "a decoder"


@pytest.mark.parametrize(("name", "told"), [("a?b", "?"), ("a%20b", "%20"), ("%3f", "%3f"), ("a\udcffb", "\\udcff")])
def test_a_folder_that_no_database_can_lie_in_is_refused_and_nothing_is_made_beside_it(
    name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for uri in (None, "sqlite:///mine.db", f"sqlite:///{folder}/mine.db"):
        with pytest.raises(UserError) as refused:
            tracking_uri(uri)
        assert folder.name.encode(errors="backslashreplace").decode() in str(refused.value)
        assert str(refused.value).endswith(
            f": the path of an SQLite database cannot have a {told} in it; "
            "rename the folder, or give tracking.uri with another path"
        )
    assert tracking_uri(f"sqlite:///{tmp_path}/mine.db?timeout=5") == f"sqlite:///{tmp_path}/mine.db"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_that_no_database_can_be_is_told_with_its_address(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^tracking.uri 'sqlite:///a%20b.db': the path .* cannot have a %20 in it"):
        tracking_uri("sqlite:///a%20b.db")


def test_a_refused_address_is_told_without_its_password() -> None:
    for uri in ("ftp://me:pa55@host/x", "postgres://me:p@55@host/x", "sqlite://me:pa55@host"):
        with pytest.raises(UserError) as refused:
            tracking_uri(uri)
        assert "55" not in str(refused.value)


def test_mlflow_says_nothing_on_the_screen(tmp_path: Path) -> None:
    program = (
        "import logging; from aae_ray.tracking.address import make_database, quiet_mlflow; quiet_mlflow(); "
        f"make_database('sqlite:///{tmp_path}/mlflow.db'); "
        "logging.getLogger('mlflow.store.db.utils').error('a traceback'); "
        "logging.getLogger('sqlalchemy.pool').error('a traceback'); "
        f"logging.basicConfig(filename='{tmp_path}/log'); logging.getLogger('mlflow.store.db.utils').error('kept')"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "kept" in (tmp_path / "log").read_text()


def test_artifacts_of_a_server_are_its_own_business() -> None:
    assert artifact_location("http://tracking:5000", EXPERIMENT) is None


def test_a_new_database_is_there_when_it_is_whole(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    make_database(uri)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    client_of(uri).search_experiments()
    make_database(uri)


# ---------------------------------------------------------------------------------------------- what a study records


def shown(epoch: int, mse: float, jsd: float | None = None) -> dict[str, float]:
    return {"epoch": float(epoch), "val/reconstruction_mse": mse} | ({} if jsd is None else {"val/jsd_nats": jsd})


def test_a_study_is_a_parent_with_a_child_for_every_trial(database: str, tmp_path: Path) -> None:
    study = LittleStudy(tmp_path, database, study__budget__trials=3, train__epochs=3)
    (tmp_path / "pareto_front.html").write_text("a plot")
    for number, size in enumerate((3, 4, 5)):
        study.begin(number, size)
    study.report(shown(1, 0.5), shown(2, float("nan"), 0.3), shown(3, 0.6, 0.2))
    study.add(events.FileWritten(number=0, path="pareto_front.html", folder="figures"))
    study.add(events.Ended(number=0, reason=Reason.COMPLETED))
    study.report(shown(1, 0.7), number=1)
    lost = events.AttemptFailed(
        number=1, attempt=1, failure=FailureClass.LOST_WORKER, message="the worker died", traceback="Traceback ...",
        log_tail="its last words", retry=True,
    )  # fmt: skip
    study.add(lost)
    study.attempt(1, 2)
    study.report(shown(1, 0.7), shown(2, 0.65), number=1)
    study.add(events.Ended(number=1, reason=Reason.COLLAPSED))
    study.add(lost.model_copy(update={"number": 2, "retry": False, "failure": FailureClass.BUG}))
    study.add(events.Ended(number=2, reason=Reason.BUG, message="the worker died"))
    study.add(events.FileWritten(number=None, path="pareto_front.html", folder="plots"))
    study.add(events.Measured(number=0, metrics={"test/jsd_nats": 0.25}, remarks=(), tags={"aae.judge": "j"}))
    study.add(events.Chosen(number=0, registration=None), events.StudyEnded())
    assert study.tracker.close(PATIENCE) == 0 and study.tracker.parked == []

    runs = runs_of(database)
    assert runs.keys() == {"study-s1", "t0000-z3", "t0001-z4", "t0002-z5"}
    parent = runs["study-s1"]
    assert parent.info.run_id == study.tracker.cursor.runs[STUDY] and parent.info.status == "FINISHED"
    assert parent.data.tags["aae.study_id"] == "s1" and parent.data.tags["aae.run_kind"] == "study"
    assert parent.data.tags["aae.data_digest"] == "d" * 32 and parent.data.tags["aae.best_trial"] == "t0000"
    assert parent.data.params["space.model.latent_dim"] == "2 to 8"
    assert "model.latent_dim" not in parent.data.params and parent.data.params["study.budget.trials"] == "3"
    assert "| t0000 | 0.6000 | 0.2000 | 3 |" in parent.data.tags["mlflow.note.content"]
    plots = client_of(database).list_artifacts(parent.info.run_id, "plots")
    assert [file.path for file in plots] == ["plots/pareto_front.html"]
    assert steps_of(database, parent, "study/trials_complete") == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert steps_of(database, parent, "study/trials_failed") == [(1, 0.0), (2, 0.0), (3, 1.0)]
    assert steps_of(database, parent, "study/best_reconstruction_mse") == [(1, 0.6), (2, 0.6), (3, 0.6)]

    child = runs["t0000-z3"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id and child.data.tags["aae.judge"] == "j"
    assert child.data.params["model.latent_dim"] == "3" and child.data.metrics["test/jsd_nats"] == 0.25
    assert not [key for key in child.data.params if key.startswith(("study.", "tracking."))]
    assert steps_of(database, child, "val/reconstruction_mse") == [(1, 0.5), (3, 0.6)]  # NaN is not recorded
    assert steps_of(database, child, "val/jsd_nats") == [(2, 0.3), (3, 0.2)]
    assert child.data.metrics["best/val/reconstruction_mse"] == 0.5 and child.data.metrics["best/epoch"] == 1

    retried = runs["t0001-z4"]
    assert retried.data.tags["aae.attempt"] == "2" and retried.data.tags["aae.stop_reason"] == "code_collapse"
    assert retried.data.tags["aae.failure_class"] == "lost_worker"
    assert steps_of(database, retried, "val/reconstruction_mse") == [(1, 0.7), (2, 0.65)]  # the first epoch once
    statuses = [runs[name].info.status for name in ("t0000-z3", "t0001-z4", "t0002-z5")]
    assert statuses == ["FINISHED", "FINISHED", "FAILED"]  # a red cross is for what broke
    outcomes = [runs[name].data.tags["aae.outcome"] for name in ("t0000-z3", "t0001-z4", "t0002-z5")]
    assert outcomes == ["complete", "stopped", "failed"]
    assert runs["t0002-z5"].data.tags["aae.message"] == "the worker died"
    (failure,) = client_of(database).list_artifacts(runs["t0002-z5"].info.run_id)
    path = client_of(database).download_artifacts(runs["t0002-z5"].info.run_id, failure.path)
    assert Path(path).read_text() == "the worker died\n\nTraceback ...\n\nits last words"
    place = client_of(database).get_experiment_by_name(EXPERIMENT).artifact_location
    assert place == artifact_location(database, EXPERIMENT)


def test_a_study_that_stops_and_goes_on_has_one_child_a_trial_and_nothing_runs_in_between(
    database: str, tmp_path: Path
) -> None:
    study = LittleStudy(tmp_path, database)
    study.begin()
    study.report(shown(1, 0.5, 0.5), shown(2, 0.4, 0.4))
    study.add(events.StudyStopped(end=StudyEnd.USER))
    assert study.tracker.close(PATIENCE) == 0
    assert {run.info.status for run in runs_of(database).values()} == {"KILLED"}
    tags = runs_of(database)["t0000-z3"].data.tags
    assert (tags["aae.outcome"], tags["aae.stop_reason"]) == ("unfinished", "user")
    again = LittleStudy.__new__(LittleStudy)
    again.folder, again.now, again.journal = tmp_path, 2000.0, study.journal
    again.tracker = Tracker(tmp_path, study.journal.history, database)
    again.add(events.StudyResumed(host="h", pid=2))
    wait_until(lambda: {run.info.status for run in runs_of(database).values()} == {"RUNNING"})
    again.attempt(0, 2, 2)
    again.report(shown(2, 0.4, 0.4), shown(3, 0.3, 0.3))
    again.add(events.Ended(number=0, reason=Reason.COMPLETED), events.StudyEnded())
    assert again.tracker.close(PATIENCE) == 0
    runs = runs_of(database)
    assert len(runs) == 2 and {run.info.status for run in runs.values()} == {"FINISHED"}
    assert [step for step, _ in steps_of(database, runs["t0000-z3"], "val/jsd_nats")] == [1, 2, 3]


# ------------------------------------------------------------------------------------------------- once, and in order


def test_what_is_sent_twice_is_there_once(database: str, tmp_path: Path) -> None:
    """The note of how far it came is lost, or older than the last request: all is sent again and nothing doubles."""
    study = LittleStudy(tmp_path, database)
    written = study.write()
    assert study.tracker.close(PATIENCE) == 0 and study.tracker.parked == []
    check_study(database)
    (tmp_path / CURSOR).unlink()
    assert sync(tmp_path, database)[:3] == (written, 0, [])
    check_study(database)
    cursor = json.loads((tmp_path / CURSOR).read_text())
    cursor[database] |= {"records": 4, "files": 0}
    (tmp_path / CURSOR).write_text(json.dumps(cursor))
    assert sync(tmp_path)[:3] == (written - 4, 0, [])
    check_study(database)
    assert sync(tmp_path)[:3] == (0, 0, [])
    assert (tmp_path / CURSOR).stat().st_mode & 0o777 == 0o600


def test_a_study_that_has_moved_is_sent_from_where_it_is_and_to_where_one_says(
    database: str, tmp_path: Path, empty_database: Path
) -> None:
    first = tmp_path / "first"
    first.mkdir()
    study = LittleStudy(first, f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    study.write()
    study.tracker.close(0.1)
    study.journal.close()
    moved = first.rename(tmp_path / "second")
    assert sync(moved, database).left == 0
    check_study(database)
    other = tmp_path / "other.db"
    shutil.copyfile(empty_database, other)
    assert sync(moved, f"sqlite:///{other}").left == 0
    check_study(f"sqlite:///{other}")


def test_an_address_to_send_to_means_the_same_from_any_folder(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study").mkdir()
    study = LittleStudy(tmp_path / "study", f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    study.tracker.close(0.1)
    study.journal.close()
    monkeypatch.chdir(tmp_path / "mlflow")
    assert sync(tmp_path / "study", "sqlite:///mlflow.db").left == 0
    assert json.loads((tmp_path / "study" / CURSOR).read_text())[database]["records"] == 1
    with pytest.raises(UserError, match="is not a server or database"):
        sync(tmp_path / "study", "mlflow.db")


def test_two_studies_share_an_experiment_and_a_deleted_one_comes_back(database: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        study = LittleStudy(tmp_path / name, database, name)
        assert study.tracker.close(PATIENCE) == 0
        client = client_of(database)
        client.delete_experiment(client.get_experiment_by_name(EXPERIMENT).experiment_id)
    (tmp_path / "one" / CURSOR).unlink()
    sync(tmp_path / "one", database)
    assert runs_of(database).keys() == {"study-one", "study-two"}


def test_values_that_are_too_long_for_mlflow_are_cut_and_none_is_left_out(database: str, tmp_path: Path) -> None:
    study = LittleStudy(tmp_path, database)
    study.begin()
    tags = {"long": "ü" * 9000, "empty": ""}
    study.add(events.Measured(number=0, metrics={}, remarks=(), tags=tags))
    assert study.tracker.close(PATIENCE) == 0 and study.tracker.parked == []
    run = runs_of(database)["t0000-z3"]
    assert run.data.tags["long"] == "ü" * 8000 and len(run.data.params) > 50


def test_a_record_that_mlflow_refuses_is_parked_and_sent_when_its_reason_is_gone(database: str, tmp_path: Path) -> None:
    study = LittleStudy(tmp_path, database)
    study.begin()
    study.add(events.FileWritten(number=0, path="gone.png", folder="figures"))
    study.report({"epoch": 1.0, "no good?": 1.0})
    study.report(shown(2, 0.5, 0.5))
    study.add(events.FileWritten(number=None, path=JOURNAL, folder=None))
    study.add(events.Ended(number=0, reason=Reason.COMPLETED), events.StudyEnded())
    assert study.tracker.close(PATIENCE) == 0 and study.tracker.problem is None
    assert sorted(text.partition(":")[0] for text in study.tracker.parked) == ["LogArtifact", "LogMetrics"]
    assert all(len(text.splitlines()) == 1 for text in study.tracker.parked)
    run = runs_of(database)["t0000-z3"]
    assert steps_of(database, run, "val/reconstruction_mse") == [(2, 0.5)] and run.info.status == "FINISHED"
    assert JOURNAL in {
        file.path for file in client_of(database).list_artifacts(runs_of(database)["study-s1"].info.run_id)
    }
    study.journal.close()
    assert [text.partition(":")[0] for text in sync(tmp_path).parked if "Artifact" in text] == ["LogArtifact"]
    (tmp_path / "gone.png").write_bytes(b"a picture")
    assert [text.partition(":")[0] for text in sync(tmp_path).parked] == ["LogMetrics"]
    figures = client_of(database).list_artifacts(run.info.run_id, "figures")
    assert [file.path for file in figures] == ["figures/gone.png"]


def test_a_run_that_mlflow_refuses_holds_up_no_files_of_others(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    create = MlflowWriter._create

    def refuse(writer: MlflowWriter, call: CreateRun) -> None:
        if call.run == "t0000":
            raise MlflowException("refused", INVALID_PARAMETER_VALUE)
        create(writer, call)

    monkeypatch.setattr(MlflowWriter, "_create", refuse)
    (tmp_path / "picture.png").write_bytes(b"a picture")
    study = LittleStudy(tmp_path, database)
    for number in (0, 1):
        study.begin(number, 3 + number)
        study.report(shown(1, 0.5, 0.5), number=number)
        study.add(events.FileWritten(number=number, path="picture.png", folder="figures"))
    study.add(*(events.Ended(number=number, reason=Reason.COMPLETED) for number in (0, 1)), events.StudyEnded())
    assert study.tracker.close(PATIENCE) == 0
    assert study.tracker.parked[0] == "CreateRun: refused"
    client = client_of(database)

    def pictures(run: str) -> int:
        return len(client.list_artifacts(runs_of(database)[run].info.run_id, "figures"))

    assert runs_of(database).keys() == {"study-s1", "t0001-z4"} and pictures("t0001-z4") == 1
    monkeypatch.undo()
    study.journal.close()
    assert sync(tmp_path).parked == []
    assert pictures("t0000-z3") == 1 and runs_of(database)["t0000-z3"].info.status == "FINISHED"


def test_the_text_of_a_failure_is_kept_without_passwords(database: str, tmp_path: Path) -> None:
    study = LittleStudy(tmp_path, database)
    study.begin()
    failed = events.AttemptFailed(
        number=0, attempt=1, failure=FailureClass.BUG, message="cannot reach http://me:pa55@host/x",
        traceback="Traceback: http://me:pa55@host/x", log_tail="the last line", retry=False,
    )  # fmt: skip
    study.add(failed, events.Ended(number=0, reason=Reason.BUG, message=failed.message), events.StudyEnded())
    assert study.tracker.close(PATIENCE) == 0 and study.tracker.parked == []
    run, client = runs_of(database)["t0000-z3"], client_of(database)
    (kept,) = [file.path for file in client.list_artifacts(run.info.run_id)]
    text = Path(client.download_artifacts(run.info.run_id, kept, str(tmp_path))).read_text()
    assert text == "cannot reach http://host/x\n\nTraceback: http://host/x\n\nthe last line"
    assert run.data.tags["aae.failure_class"] == "bug" and run.info.status == "FAILED"
    assert run.data.tags["aae.message"] == "cannot reach http://host/x"


@pytest.mark.parametrize("content", ["[]", "{", '{"sqlite:///x": 1}', "null"])
def test_a_damaged_note_costs_nothing(content: str, database: str, tmp_path: Path) -> None:
    (tmp_path / CURSOR).write_text(content)
    study = LittleStudy(tmp_path, database)
    study.write()
    assert study.tracker.close(PATIENCE) == 0
    check_study(database)


@pytest.mark.slow
def test_a_database_that_is_full_is_told_and_waited_for(database: str, tmp_path: Path) -> None:
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def full(connection: Any, _: Any) -> None:  # SQLite never has fewer pages than are in use
        connection.execute("PRAGMA max_page_count = 1")

    event.listen(Engine, "connect", full)
    try:
        study = LittleStudy(tmp_path, database)
        study.write(200)
        wait_until(lambda: study.tracker.problem)
        assert study.tracker.problem == "no space left for MLflow's database"
        assert study.tracker.close(PATIENCE) > 0 and study.tracker.parked == []
    finally:
        event.remove(Engine, "connect", full)
    study.journal.close()
    # A pool in this process may hold a connection that is still limited, so another process sends.
    program = (
        "import sys; from pathlib import Path; from tests.tracking.little_study import sync; "
        "print(sync(Path(sys.argv[1]), sys.argv[2]).left)"
    )
    command = [sys.executable, "-c", program, str(tmp_path), database]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    sent = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert sent.stdout.strip() == "0", sent.stderr
    check_study(database, 200)


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (PermissionError(errno.EACCES, "no"), True),
        (OSError(errno.EROFS, "read-only"), True),
        (FileExistsError(errno.EEXIST, "a file"), True),
        (OSError(errno.ENOSPC, "full"), False),
        (ConnectionResetError(errno.ECONNRESET, "reset"), False),
        (json.JSONDecodeError("no JSON", "<html>", 0), False),
    ],
)
def test_what_a_record_is_parked_for(error: Exception, permanent: bool) -> None:
    assert is_permanent(error) is permanent


def test_an_artifact_root_that_cannot_be_written_delays_no_status(database: str, tmp_path: Path) -> None:
    (tmp_path / "mlflow" / "mlartifacts").write_text("not a folder")
    study = LittleStudy(tmp_path, database)
    study.write()
    assert study.tracker.close(PATIENCE) == 0
    assert [text.partition(":")[0] for text in study.tracker.parked] == ["LogArtifact"]
    assert {run.info.status for run in runs_of(database).values()} == {"FINISHED"}
    (tmp_path / "mlflow" / "mlartifacts").unlink()
    study.journal.close()
    assert sync(tmp_path).parked == []
    check_study(database)


def test_files_that_cannot_be_stored_are_told_of_while_metrics_go_through(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    do = MlflowWriter._do

    def down(writer: MlflowWriter, call: Call) -> None:
        if isinstance(call, LogArtifact):
            raise ConnectionError("the artifact store is down")
        do(writer, call)

    monkeypatch.setattr(MlflowWriter, "_do", down)
    monkeypatch.setattr("aae_ray.tracking.sender.LOCK_SECONDS", 0.5)
    (tmp_path / "picture.png").write_bytes(b"a picture")
    study = LittleStudy(tmp_path, database)
    study.begin()
    study.add(events.FileWritten(number=0, path="picture.png", folder="figures"))
    wait_until(lambda: study.tracker.problem)
    told = set()
    for epoch in range(1, 9):
        study.report(shown(epoch, 0.5, 0.5))
        wait_until(lambda: study.tracker.cursor.done["records"] == len(study.journal.history))
        time.sleep(0.01)  # what the lane says of it comes behind it
        told.add(study.tracker.problem)
    assert study.tracker.close(PATIENCE) > 0
    assert told | {study.tracker.problem} == {"the artifact store is down"}


def test_a_run_that_somebody_deleted_does_not_hold_up_the_others(database: str, tmp_path: Path) -> None:
    study = LittleStudy(tmp_path, database)
    study.begin()
    wait_until(lambda: "t0000" in study.tracker.cursor.runs)
    wait_until(lambda: study.tracker.unsent == 0)
    client_of(database).delete_run(study.tracker.cursor.runs["t0000"])
    study.report(shown(1, 0.5, 0.5))
    study.add(events.Ended(number=0, reason=Reason.COMPLETED), events.StudyEnded())
    assert study.tracker.close(PATIENCE) == 0 and study.tracker.parked
    assert runs_of(database)["study-s1"].info.status == "FINISHED"


def test_a_registration_belongs_to_the_trial_that_was_chosen(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study is extended while MLflow is down: its new best trial is not the version that the old one got."""

    def register(client: Any, run: str, request: dict[str, Any]) -> dict[str, Any]:
        if down:
            raise ConnectionError("down")
        return {"name": "decoder", "version": request["version"], "champion": True, "reason": "better"}

    def chosen(study: LittleStudy, number: int) -> None:
        study.begin(number, 3 + number)
        study.report(shown(1, 0.5, 0.5), number=number)
        study.add(events.Ended(number=number, reason=Reason.COMPLETED))
        study.add(events.Chosen(number=number, registration={"folder": "decoder", "version": number + 1}))

    monkeypatch.setattr("aae_ray.tracking.writer.register", register)
    monkeypatch.setattr("aae_ray.tracking.sender.LOCK_SECONDS", 0.5)
    down = False
    study = LittleStudy(tmp_path, database)
    chosen(study, 0)
    study.add(events.StudyEnded())
    assert study.tracker.close(PATIENCE) == 0
    first = study.tracker.registration
    assert first is not None and first["version"] == 1
    study.add(events.Promoted(**first))

    down = True
    study.tracker = Tracker(tmp_path, study.journal.history, database)
    again = study.tracker.registration
    assert again == first
    study.add(events.StudyResumed(host="h", pid=2))
    chosen(study, 1)
    study.add(events.StudyEnded())
    assert study.tracker.close(PATIENCE) > 0 and study.tracker.registration is None
    study.journal.close()

    down = False
    made = sync(tmp_path, database).registration
    assert made is not None and made["version"] == 2
    promoted = Ledger.replay(read_events(tmp_path)).promoted
    assert promoted is not None and promoted.version == 2
    assert sync(tmp_path, database).registration == made
    assert [event.version for event in read_events(tmp_path) if isinstance(event, events.Promoted)] == [1, 2]


def test_a_trial_that_is_chosen_again_is_registered_again(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New seeds confirm the best trial of before while MLflow is down: what was decided then is not what is decided."""

    def register(client: Any, run: str, request: dict[str, Any]) -> dict[str, Any]:
        if down:
            raise ConnectionError("down")
        return {"name": "decoder", "version": 1, "champion": True, "reason": request["reason"]}

    monkeypatch.setattr("aae_ray.tracking.writer.register", register)
    monkeypatch.setattr("aae_ray.tracking.sender.LOCK_SECONDS", 0.5)
    down = False
    study = LittleStudy(tmp_path, database)
    study.begin(0, 3)
    study.report(shown(1, 0.5, 0.5))
    study.add(events.Ended(number=0, reason=Reason.COMPLETED))
    study.add(events.Chosen(number=0, registration={"folder": "decoder", "reason": "the first"}))
    study.tracker.settle(PATIENCE)
    made = study.tracker.registration
    assert study.tracker.unsent == 0 and made is not None and made["reason"] == "the first"
    study.add(events.Promoted(**made), events.StudyEnded())

    down = True
    study.add(events.StudyResumed(host="h", pid=2))
    study.add(events.Chosen(number=0, registration={"folder": "decoder", "reason": "again"}))
    assert study.tracker.registration is None
    began = time.monotonic()
    study.tracker.settle(PATIENCE)  # not for a server that is down
    assert time.monotonic() - began < PATIENCE / 2 and study.tracker.unsent
    assert study.tracker.close(PATIENCE) > 0 and study.tracker.registration is None
    study.journal.close()

    down = False
    sent = sync(tmp_path, database)
    assert sent.registration is not None and sent.registration["reason"] == "again" and sent.registered_now
    assert not sync(tmp_path, database).registered_now


# ------------------------------------------------------------------------------------------------------ what is told


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "(raised as a result of Query-invoked autoflush; consider using a session.no_autoflush block)\n"
            "(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT]",
            "no space left for MLflow's database",
        ),
        ("(sqlite3.OperationalError) database is locked\n[SQL: ...]", "MLflow's database is locked by another process"),
        ("API request to https://me:pa55@host/x failed", "API request to https://host/x failed"),
        ("API request to https://me:p@55@host/x failed", "API request to https://host/x failed"),
    ],
)
def test_a_reason_is_the_line_that_says_what_is_wrong(text: str, reason: str) -> None:
    assert reason_of(RuntimeError(text)) == reason


def test_a_password_of_the_address_reaches_no_file(tmp_path: Path) -> None:
    uri = "http://me:pa55word@127.0.0.1:9"
    study = LittleStudy(tmp_path, uri, tracking__uri=uri)
    study.write()
    wait_until(lambda: study.tracker.problem)
    assert study.tracker.close(5) > 0 and "pa55" not in str(study.tracker.problem)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"pa55" in path.read_bytes()]


def test_records_that_wait_go_to_the_address_that_a_resume_has_set(database: str, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    study = LittleStudy(tmp_path / "study", f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    study.tracker.close(0.1)
    started = study.journal.history[0]
    assert isinstance(started, events.StudyStarted)
    moved = started.plan.model_copy(update={"settings": {**started.plan.settings, "tracking.uri": database}})
    study.add(events.StudyStopped(end=StudyEnd.USER), events.StudyResumed(plan=moved, host="h", pid=2))
    study.journal.close()
    assert sync(tmp_path / "study").left == 0 and runs_of(database)
