"""MLflow gets every record once, in order, whatever happens to the server or to us; a study never notices."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from aae_ray.settings import UserError
from aae_ray.study.ledger import Ledger
from aae_ray.study.records import Records
from aae_ray.study.server import artifact_location, tracking_uri
from aae_ray.study.space import Plan, read_plan
from aae_ray.study.tracking import CURSOR, SPOOL, STUDY, Spool, Tracker, replay
from aae_ray.training.data import Dataset

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
    for uri in ("postgresql+psycopg2://user@host/db", "http://[::1]:5000", "https://user:secret@host/mlflow"):
        assert tracking_uri(uri) == uri


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


def test_what_is_sent_twice_is_there_once(database: str, tmp_path: Path) -> None:
    """The note of how far it came is lost, or older than the last request: all is sent again and nothing doubles."""
    tracker = Tracker(tmp_path, database, EXPERIMENT)
    written = write_study(tracker, tmp_path)
    assert tracker.close(PATIENCE) == 0 and tracker.dropped == []
    check_study(database)
    (tmp_path / CURSOR).unlink()
    assert replay(tmp_path) == (written + 1, 0)  # and the line that names the server
    check_study(database)
    cursor = json.loads((tmp_path / CURSOR).read_text())
    (tmp_path / CURSOR).write_text(json.dumps(cursor | {"sent": 4}))
    assert replay(tmp_path) == (written + 1 - 4, 0)
    check_study(database)
    assert replay(tmp_path) == (0, 0)


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


# ------------------------------------------------------------------------------------------------------------ kill -9

SENDING = """
import sys, time
from pathlib import Path
from aae_ray.study.tracking import STUDY, Tracker
tracker = Tracker(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
tracker.create_run(STUDY, "study-s1", {"aae.study_id": "s1", "aae.run_kind": "study"}, 1000.0)
for step in range(1, 401):
    tracker.log_metrics(STUDY, {"m": float(step)}, step)
time.sleep(1000)
"""


def test_a_process_that_is_killed_loses_and_doubles_nothing(database: str, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SENDING, str(tmp_path), database, EXPERIMENT])
    try:
        wait_until(lambda: (tmp_path / CURSOR).exists() and json.loads((tmp_path / CURSOR).read_text())["sent"] > 20)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    recorded = len((tmp_path / SPOOL).read_text().splitlines())
    before = json.loads((tmp_path / CURSOR).read_text())["sent"]
    assert recorded == 402 and before < recorded  # it was killed while it was sending
    assert replay(tmp_path) == (recorded - before, 0)
    assert steps_of(database, runs_of(database)["study-s1"], "m") == [(step, float(step)) for step in range(1, 401)]


def test_a_line_that_was_cut_off_by_a_crash_does_not_keep_the_others_back(database: str, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append({"do": "open", "uri": database, "experiment": EXPERIMENT})
    spool.append(
        {
            "do": "create",
            "run": STUDY,
            "name": "study-s1",
            "tags": {"aae.study_id": "s1", "aae.run_kind": "study"},
            "time": 1000,
        }
    )
    for step in (1, 2):
        spool.append({"do": "metrics", "run": STUDY, "metrics": {"m": float(step)}, "step": step, "time": step})
    text = (tmp_path / SPOOL).read_text()
    (tmp_path / SPOOL).write_text(text[:-30])  # the disk was full, or the power went
    began = time.monotonic()
    assert replay(tmp_path, seconds=20)[1] == 0 and time.monotonic() - began < 19
    tracker = Tracker(tmp_path)  # and what is recorded later is whole again
    tracker.log_metrics(STUDY, {"m": 3.0}, 3)
    assert tracker.close(20) == 0
    assert steps_of(database, runs_of(database)["study-s1"], "m") == [(1, 1.0), (3, 3.0)]


def test_a_note_that_has_outlived_the_lines_it_counts_holds_nothing_up(database: str, tmp_path: Path) -> None:
    """After a power cut the note of what was sent may be on the disk, and the last lines may not."""
    spool = Spool(tmp_path)
    spool.append({"do": "open", "uri": database, "experiment": EXPERIMENT})
    (tmp_path / CURSOR).write_text(json.dumps({"sent": 9, "runs": {}, "results": {}}))
    began = time.monotonic()
    assert replay(tmp_path, seconds=10) == (0, 0) and time.monotonic() - began < 9


# ------------------------------------------------------------------------------------------------------------ outages


class Line:
    """The way to a server: it can be cut, fall silent, answer nonsense, or lose the answer to a request."""

    def __init__(self, server: int) -> None:
        self.server, self.port = server, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.status: int | None = None  # answer everything so, without asking the server
        self.silent = False
        self.lose: str | None = None  # lose one answer to a request whose path ends so
        self.lost = 0
        self.http: ThreadingHTTPServer | None = None
        self.hung_up = threading.Event()

    def open(self) -> None:
        line = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if line.silent:
                    line.hung_up.wait(PATIENCE)
                    self.close_connection = True
                    return
                status, answer, kind = line.status, b"<html>nothing here</html>", "text/html"
                if status is None:
                    there = HTTPConnection("127.0.0.1", line.server)
                    headers = {
                        key: value
                        for key, value in self.headers.items()
                        if key.lower() not in ("connection", "accept-encoding")
                    }
                    there.request(self.command, self.path, body, headers)
                    response = there.getresponse()
                    status, answer, kind = (
                        response.status,
                        response.read(),
                        response.getheader("Content-Type") or "application/json",
                    )
                    there.close()
                    if line.lose and self.path.endswith(line.lose):
                        line.lose, line.lost = None, line.lost + 1
                        self.connection.shutdown(socket.SHUT_RDWR)
                        self.close_connection = True
                        return
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(answer)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(answer)
                self.close_connection = True

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do

            def log_message(self, *arguments: Any) -> None:
                pass

        ThreadingHTTPServer.daemon_threads = True
        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def cut(self) -> None:
        if self.http:
            self.http.shutdown()
            self.http.server_close()
            self.http = None


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def server(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real `mlflow server`."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)

        def answers() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                there = HTTPConnection("127.0.0.1", port, timeout=5)
                there.request("GET", "/health")
                return there.getresponse().status == 200
            except OSError:
                return False

        try:
            wait_until(answers, 120)
            yield port
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def line(server: int) -> Iterator[Line]:
    """A line to that server, not open yet; the server has no runs."""
    line = Line(server)
    yield line
    line.hung_up.set()
    line.cut()
    client = client_of(f"http://127.0.0.1:{server}")
    if experiment := client.get_experiment_by_name(EXPERIMENT):
        client.rename_experiment(experiment.experiment_id, f"before {line.port}")


def direct(line: Line) -> str:
    return f"http://127.0.0.1:{line.server}"


def test_a_server_that_is_up_gets_everything(line: Line, tmp_path: Path) -> None:
    line.open()
    tracker = Tracker(tmp_path, line.uri, EXPERIMENT)
    write_study(tracker, tmp_path)
    assert tracker.close(PATIENCE) == 0 and tracker.dropped == [] and tracker.problem is None
    check_study(direct(line))


def test_a_server_that_comes_late_gets_everything_once(line: Line, tmp_path: Path) -> None:
    """Down from the first record to the last: nothing raises, the end does not wait, a replay sends it all."""
    tracker = Tracker(tmp_path, line.uri, EXPERIMENT)
    began = time.monotonic()
    written = write_study(tracker, tmp_path) + 1
    assert time.monotonic() - began < 1  # recording waits for nobody
    wait_until(lambda: tracker.problem)
    began = time.monotonic()
    assert tracker.close(PATIENCE) == written
    assert time.monotonic() - began < 10  # the end does not wait for a server that is down
    assert tracker.problem is not None and len(tracker.problem.splitlines()) == 1 and tracker.results == {}

    with pytest.raises(UserError, match=f"MLflow still does not take the {written} records of {tmp_path}: "):
        replay(tmp_path)
    line.open()
    assert replay(tmp_path) == (written, 0)
    check_study(direct(line))
    assert replay(tmp_path) == (0, 0)
    check_study(direct(line))


def test_an_outage_in_the_middle_loses_and_doubles_nothing(line: Line, tmp_path: Path) -> None:
    line.open()
    tracker = Tracker(tmp_path, line.uri, EXPERIMENT)
    tracker.create_run(STUDY, "study-s1", {"aae.study_id": "s1", "aae.run_kind": "study"}, 1000.0)
    tracker.log_metrics(STUDY, {"m": 1.0}, 1)
    wait_until(lambda: tracker.spool.unsent == 0)
    line.cut()
    tracker.log_metrics(STUDY, {"m": 2.0}, 2)
    wait_until(lambda: tracker.problem)
    tracker.log_metrics(STUDY, {"m": 3.0}, 3)
    line.open()
    wait_until(lambda: tracker.spool.unsent == 0)
    assert tracker.problem is None
    assert tracker.close(PATIENCE) == 0 and tracker.dropped == []
    assert steps_of(direct(line), runs_of(direct(line))["study-s1"], "m") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_server_that_came_back_just_before_the_end_gets_the_rest(line: Line, tmp_path: Path) -> None:
    """However long the pause before the next attempt would have been."""
    tracker = Tracker(tmp_path, line.uri, EXPERIMENT)
    tracker.create_run(STUDY, "study-s1", {"aae.study_id": "s1", "aae.run_kind": "study"}, 1000.0)
    time.sleep(2)  # several attempts: the pauses grow
    wait_until(lambda: tracker.problem)
    line.open()
    assert tracker.close(PATIENCE) == 0
    assert runs_of(direct(line)).keys() == {"study-s1"}


@pytest.mark.parametrize("lost", ["/experiments/create", "/runs/create", "/runs/log-batch", "/runs/update"])
def test_an_answer_that_is_lost_doubles_nothing(line: Line, tmp_path: Path, lost: str) -> None:
    """The server has done what was asked, and we do not know: the connection broke, or the answer took too long."""
    line.open()
    line.lose = lost
    tracker = Tracker(tmp_path, line.uri, EXPERIMENT)
    write_study(tracker, tmp_path)
    assert tracker.close(PATIENCE) == 0 or replay(tmp_path)[1] == 0
    assert line.lost == 1
    check_study(direct(line))


def test_a_silent_server_does_not_hold_up_the_end(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    line.open()
    line.silent = True
    tracker = Tracker(tmp_path, line.uri, EXPERIMENT)
    written = write_study(tracker, tmp_path) + 1
    wait_until(lambda: "mlflow" in sys.modules)
    began = time.monotonic()
    assert tracker.close(1) == written
    assert time.monotonic() - began < 1 + 5 + 2
    line.silent = False
    line.hung_up.set()
    monkeypatch.undo()
    tracker.thread.join(PATIENCE)
    assert replay(tmp_path)[1] == 0
    check_study(direct(line))


@pytest.mark.parametrize("status", [400, 401, 404, 503])
def test_a_server_that_answers_nonsense_is_taken_for_one_that_is_down(line: Line, tmp_path: Path, status: int) -> None:
    """A proxy before a server that restarts, or an address that is not MLflow's: nothing must be given up for that."""
    line.status = status
    line.open()
    tracker = Tracker(tmp_path, line.uri, EXPERIMENT)
    written = write_study(tracker, tmp_path) + 1
    wait_until(lambda: tracker.problem or tracker.dropped)
    assert tracker.close(PATIENCE) == written and tracker.dropped == [] and tracker.problem
    line.status = None
    assert replay(tmp_path) == (written, 0)
    check_study(direct(line))
