"""MLflow gets every record once, in order, whatever happens to the server or to us; a study never notices."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from aae_ray.errors import UserError
from aae_ray.search import events
from aae_ray.search.journal import JOURNAL
from aae_ray.tracking.cursor import CURSOR
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

# ------------------------------------------------------------------------------------------------------------ kill -9

SENDING = """
import sys, time
from pathlib import Path
from tests.tracking.little_study import LittleStudy
study = LittleStudy(Path(sys.argv[1]), sys.argv[2])
study.begin()
for step in range(1, 101):
    study.report({"epoch": float(step), "m": float(step)} | {f"m{n}": 0.0 for n in range(400)})  # two are a request
time.sleep(1000)
"""


def done(folder: Path, uri: str) -> int:
    """Events that a note counts as sent."""
    try:
        return int(json.loads((folder / CURSOR).read_text())[uri]["records"])
    except (OSError, ValueError, KeyError):
        return 0


def test_a_process_that_is_killed_loses_and_doubles_nothing(database: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SENDING, str(tmp_path), database]
    process = subprocess.Popen(command, env=environment)
    try:
        wait_until(
            lambda: len((tmp_path / JOURNAL).read_bytes().splitlines()) == 103 if done(tmp_path, database) else 0
        )
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = done(tmp_path, database)
    assert before < 103, "it was not killed while it was sending"
    assert sync(tmp_path, database)[:3] == (103 - before, 0, [])
    assert steps_of(database, runs_of(database)["t0000-z3"], "m") == [(step, float(step)) for step in range(1, 101)]


def test_a_line_that_was_cut_off_by_a_crash_does_not_keep_the_others_back(database: str, tmp_path: Path) -> None:
    study = LittleStudy(tmp_path, f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    study.begin()
    for step in (1, 2):
        study.report({"epoch": float(step), "m": float(step)})
    study.tracker.close(0.1)
    content = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(content[:-30])  # the disk was full, or the power went
    began = time.monotonic()
    assert sync(tmp_path, database, seconds=20).left == 0 and time.monotonic() - began < 19
    assert steps_of(database, runs_of(database)["t0000-z3"], "m") == [(1, 1.0)]


def test_a_note_that_has_outlived_the_events_it_counts_holds_nothing_up(database: str, tmp_path: Path) -> None:
    """After a power cut the note of what was sent may be on the disk, and the last events may not."""
    study = LittleStudy(tmp_path, database)
    assert study.tracker.close(PATIENCE) == 0
    study.journal.close()
    note = json.loads((tmp_path / CURSOR).read_text())
    note[database] |= {"records": 9, "files": 9}
    (tmp_path / CURSOR).write_text(json.dumps(note))
    began = time.monotonic()
    assert sync(tmp_path, database, seconds=10).left <= 0 and time.monotonic() - began < 9


# ------------------------------------------------------------------------------------------------------------ outages


class Line:
    """The way to a server: it can be cut, fall silent, answer nonsense, or lose the answer to a request."""

    def __init__(self, server: int) -> None:
        self.server, self.port = server, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.status: int | None = None  # answer everything so, without asking the server
        self.refuse: tuple[str, int] | None = None  # answer a request whose path has this in it so
        self.silent = False
        self.slow: tuple[str, float] | None = None  # answer a request whose path ends so after so many seconds
        self.lose: tuple[str, bytes] | None = None  # lose one answer to a request whose path ends so, with this in it
        self.lost = 0
        self.requests: list[tuple[str, bytes]] = []  # paths and bodies
        self.http: ThreadingHTTPServer | None = None
        self.hung_up = threading.Event()

    def open(self) -> None:
        line = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                line.requests.append((self.path, body))
                if line.silent:
                    line.hung_up.wait(PATIENCE)
                    self.close_connection = True
                    return
                status, answer, kind = line.status, b"<html>nothing here</html>", "text/html"
                if line.refuse and line.refuse[0] in self.path and self.command != "GET":
                    status = line.refuse[1]
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
                    if line.slow and self.path.endswith(line.slow[0]):
                        time.sleep(line.slow[1])
                    if line.lose and self.path.endswith(line.lose[0]) and line.lose[1] in body:
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


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A real `mlflow server` over the database of a folder, in a process group of its own."""
    place = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    with (folder / "server.txt").open("a") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *place, *store],
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
        )

        def answers() -> bool:
            assert server.poll() is None, (folder / "server.txt").read_text()
            try:
                there = HTTPConnection("127.0.0.1", port, timeout=5)
                there.request("GET", "/health")
                return there.getresponse().status == 200
            except OSError:
                return False

        try:
            wait_until(answers, 120)
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.fixture(scope="module")
def server(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real `mlflow server`."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    with mlflow_server(folder, port):
        yield port


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


def test_a_server_that_is_up_gets_everything_and_mlflow_says_nothing_of_it(
    line: Line, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line.open()
    study = LittleStudy(tmp_path, line.uri)
    study.write()
    assert study.tracker.close(PATIENCE) == 0 and study.tracker.parked == [] and study.tracker.problem is None
    assert capfd.readouterr() == ("", "")
    check_study(direct(line))


def test_a_server_that_comes_late_gets_everything_once(line: Line, tmp_path: Path) -> None:
    """Down from the first record to the last: nothing raises, the end does not wait, a replay sends it all."""
    study = LittleStudy(tmp_path, line.uri)
    began = time.monotonic()
    written = study.write()
    assert time.monotonic() - began < 1  # recording waits for nobody
    wait_until(lambda: study.tracker.problem)
    began = time.monotonic()
    assert study.tracker.close(PATIENCE) == written
    assert time.monotonic() - began < 10  # the end does not wait for a server that is down
    assert (
        study.tracker.problem is not None
        and len(study.tracker.problem.splitlines()) == 1
        and study.tracker.registration is None
    )

    with pytest.raises(UserError, match=f"still does not take the {written} records of {tmp_path}: "):
        sync(tmp_path, line.uri, seconds=5)
    line.open()
    assert sync(tmp_path, line.uri)[:3] == (written, 0, [])
    check_study(direct(line))
    assert sync(tmp_path, line.uri)[:3] == (0, 0, [])
    check_study(direct(line))


def test_an_outage_in_the_middle_loses_and_doubles_nothing(line: Line, tmp_path: Path) -> None:
    line.open()
    study = LittleStudy(tmp_path, line.uri)
    study.begin()
    study.report({"epoch": 1.0, "m": 1.0})
    wait_until(lambda: study.tracker.unsent == 0)
    line.cut()
    study.report({"epoch": 2.0, "m": 2.0})
    wait_until(lambda: study.tracker.problem)
    study.report({"epoch": 3.0, "m": 3.0})
    line.open()
    wait_until(lambda: study.tracker.unsent == 0)
    assert study.tracker.problem is None
    assert study.tracker.close(PATIENCE) == 0 and study.tracker.parked == []
    assert steps_of(direct(line), runs_of(direct(line))["t0000-z3"], "m") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_server_that_is_down_is_told_as_long_as_it_is(tmp_path: Path) -> None:
    """Files have nothing to send meanwhile, and are no reason to think that the server is back."""
    study = LittleStudy(tmp_path, f"http://127.0.0.1:{free_port()}")
    study.begin()
    wait_until(lambda: study.tracker.problem)
    for step in range(1, 20):
        study.report({"epoch": float(step), "m": float(step)})
        time.sleep(0.1)
        assert study.tracker.problem is not None, step
    study.tracker.close(0.1)


def test_a_server_that_came_back_just_before_the_end_gets_the_rest(line: Line, tmp_path: Path) -> None:
    """However long the pause before the next attempt would have been."""
    study = LittleStudy(tmp_path, line.uri)
    time.sleep(2)  # several attempts: the pauses grow
    wait_until(lambda: study.tracker.problem)
    line.open()
    assert study.tracker.close(PATIENCE) == 0
    assert runs_of(direct(line)).keys() == {"study-s1"}


def test_the_epochs_of_an_interval_are_few_requests(line: Line, tmp_path: Path) -> None:
    line.open()
    line.status = 503  # what is recorded meanwhile stands together for sure
    study = LittleStudy(tmp_path, line.uri)
    study.write(30)
    line.status = None
    assert study.tracker.close(PATIENCE) == 0 and study.tracker.parked == []
    check_study(direct(line), epochs=30)
    # The epochs in one request; then the best value, and the study's own metrics, of the trial's end.
    bodies = [
        body for path, body in line.requests if path.endswith("log-batch") and b'"val/reconstruction_mse"' in body
    ]
    assert max(body.count(b'"val/reconstruction_mse"') for body in bodies) == 30 and len(bodies) == 1


@pytest.mark.parametrize(
    "lost",
    [
        ("/experiments/create", b""),
        ("/runs/create", b""),
        ("/runs/log-batch", b"model.latent_dim"),
        ("/runs/log-batch", b"val/reconstruction_mse"),
        ("/runs/update", b""),
    ],
    ids=["experiment", "run", "params", "metrics", "end"],
)
def test_an_answer_that_is_lost_doubles_nothing(line: Line, tmp_path: Path, lost: tuple[str, bytes]) -> None:
    """The server has done what was asked, and we do not know: the connection broke, or the answer took too long."""
    line.open()
    line.lose = lost
    study = LittleStudy(tmp_path, line.uri)
    study.write()
    assert study.tracker.close(PATIENCE) == 0 or sync(tmp_path, line.uri).left == 0
    assert line.lost == 1
    check_study(direct(line))


def test_a_silent_server_does_not_hold_up_the_end(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    line.open()
    line.silent = True
    study = LittleStudy(tmp_path, line.uri)
    written = study.write()
    wait_until(lambda: "mlflow" in sys.modules)
    began = time.monotonic()
    assert study.tracker.close(1) == written
    assert time.monotonic() - began < 1 + 5 + 2
    line.silent = False
    line.hung_up.set()
    monkeypatch.undo()
    for lane in study.tracker.lanes:
        lane.thread.join(PATIENCE)
    assert sync(tmp_path, line.uri).left == 0
    check_study(direct(line))


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/runs/create", "/runs/log-batch"])
def test_a_server_that_takes_ten_seconds_gets_everything_once(line: Line, tmp_path: Path, path: str) -> None:
    line.open()
    line.slow = path, 11
    study = LittleStudy(tmp_path, line.uri)
    study.write()
    assert study.tracker.close(4 * PATIENCE) == 0 and study.tracker.parked == []
    check_study(direct(line))


@pytest.mark.parametrize("status", [200, 400, 404, 502])
def test_a_proxy_that_answers_for_a_while_in_mid_study_costs_no_record(line: Line, tmp_path: Path, status: int) -> None:
    line.open()
    study = LittleStudy(tmp_path, line.uri)
    wait_until(lambda: study.tracker.unsent == 0)
    line.status = status
    study.write()
    wait_until(lambda: study.tracker.problem or study.tracker.parked)
    line.status = None
    assert study.tracker.close(PATIENCE) == 0 and study.tracker.parked == []
    check_study(direct(line))


@pytest.mark.parametrize("status", [200, 400, 401, 404, 503])
def test_a_server_that_answers_nonsense_is_taken_for_one_that_is_down(line: Line, tmp_path: Path, status: int) -> None:
    """A proxy before a server that restarts, or an address that is not MLflow's: nothing must be given up for that."""
    line.status = status
    line.open()
    study = LittleStudy(tmp_path, line.uri)
    written = study.write()
    wait_until(lambda: study.tracker.problem or study.tracker.parked)
    assert study.tracker.close(PATIENCE) == written and study.tracker.parked == [] and study.tracker.problem
    line.status = None
    assert sync(tmp_path, line.uri)[:3] == (written, 0, [])
    check_study(direct(line))


@pytest.mark.parametrize("status", [403, 413, 500])
def test_an_artifact_that_a_server_does_not_take_keeps_no_other_back(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("aae_ray.tracking.sender.STUCK_SECONDS", 0.5)  # an error of the server may pass: not for long
    line.refuse = ("too_large.png", status)
    line.open()
    study = LittleStudy(tmp_path, line.uri)
    (tmp_path / "too_large.png").write_bytes(b"a picture")
    study.add(events.FileWritten(number=None, path="too_large.png", folder="figures"))
    study.write()
    wait_until(lambda: study.tracker.unsent == 0)
    (refused,) = study.tracker.parked
    assert str(status) in refused or "answers with errors" in refused
    assert study.tracker.close(PATIENCE) == 0
    check_study(direct(line))
    line.refuse = None
    assert sync(tmp_path, line.uri)[1:3] == (0, [])  # refused ones are sent again
