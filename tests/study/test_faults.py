"""Whole studies to which the world is unkind: closed terminals and pipes, full disks, dead servers and processes."""

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from aae_ray.search.contract import trial_name
from aae_ray.search.journal import read_events
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import FailureClass, Reason, State, StudyEnd
from tests.datasets.small_sets import some_images, write_idx
from tests.study.commands import command, run
from tests.study.test_resume import SMALL, check_whole, ledger_of, resume
from tests.study.test_study import client_of, processes, start, trial_runs, wait_for
from tests.tracking.test_outages import free_port, mlflow_server

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # with which the live screen moves and colours
RESUME = re.compile(r"resume +python -m aae_ray\.tune --resume runs/digits-\S+")


# ---------------------------------------------------------------------------------------------------------- terminals


class Terminal:
    """A pseudo terminal, and a study in its foreground. What it shows is read all the time, as a real one does."""

    def __init__(self, folder: Path, environment: dict[str, str], *arguments: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        clean = {key: value for key, value in environment.items() if value} | {"AAE_TEST_MARK": str(folder)}
        self.study = subprocess.Popen(
            command("tune", *arguments),
            cwd=folder,
            env=clean | {"TERM": "xterm"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.shown = b""
        self.open = True
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        while self.open:
            try:
                if select.select([self.master], [], [], 0.1)[0]:
                    self.shown += os.read(self.master, 65536)
            except (OSError, ValueError):  # all that wrote there have ended, or it is closed
                return

    @property
    def text(self) -> str:
        return CODES.sub("", self.shown.decode(errors="replace"))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def close(self) -> None:
        if self.open:
            self.open = False
            self.reader.join()
            os.close(self.master)


@contextmanager
def terminal(folder: Path, environment: dict[str, str], *arguments: str) -> Iterator[Terminal]:
    screen = Terminal(folder, environment, *arguments)
    try:
        yield screen
    finally:
        screen.close()
        if screen.study.poll() is None:
            os.kill(screen.study.pid, signal.SIGKILL)
            screen.study.wait()


def trains(folder: Path) -> bool:
    """Whether a trial of the study has reported."""
    return any('"reported"' in journal.read_text() for journal in folder.glob("runs/*/journal.jsonl"))


def check_stopped_by_the_user(folder: Path) -> None:
    """The study's end is written everywhere, and nothing of it runs any more."""
    ledger = ledger_of(folder)
    assert ledger.end is StudyEnd.USER and not ledger.open
    parent, children = trial_runs(client_of(folder), "aae/digits")
    assert parent.info.status == "KILLED" and children
    assert {child.info.status for child in children} <= {"KILLED", "FINISHED"}
    wait_for(lambda: not processes(folder), 20)


def log_of(folder: Path) -> str:
    (log,) = folder.glob("runs/*/study.log")
    return log.read_text()


@pytest.mark.slow
def test_a_terminal_that_is_closed_ends_the_study_in_order(
    tmp_path: Path, environment: dict[str, str], empty_database: Path
) -> None:
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    with terminal(tmp_path, environment, *SMALL, "train.epochs=100000") as screen:
        wait_for(lambda: trains(tmp_path), 60)
        assert "\x1b[?25l" in screen.shown.decode(errors="replace")  # the live screen, which hides the cursor
        screen.close()
        assert screen.study.wait(timeout=15) == 130
    check_stopped_by_the_user(tmp_path)
    log = log_of(tmp_path)
    assert RESUME.search(log) and "\x1b" not in log


def test_ctrl_c_on_a_terminal_ends_the_study_in_order(
    tmp_path: Path, environment: dict[str, str], empty_database: Path
) -> None:
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    with terminal(tmp_path, environment, *SMALL, "train.epochs=100000") as screen:
        wait_for(lambda: trains(tmp_path), 60)
        screen.type(b"\x03")
        assert screen.study.wait(timeout=15) == 130, screen.text
        wait_for(lambda: RESUME.search(screen.text) is not None, 5)
    assert "Traceback" not in screen.text and screen.shown.decode(errors="replace").count("\x1b[?25h")
    check_stopped_by_the_user(tmp_path)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_the_study_can_be_closed(
    tmp_path: Path, environment: dict[str, str], empty_database: Path
) -> None:
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    with terminal(tmp_path, environment, *SMALL, "train.epochs=100000") as screen:
        wait_for(lambda: trains(tmp_path), 60)
        screen.type(b"\x03")
        wait_for(lambda: "press Ctrl-C again to stop immediately" in screen.text, 10)
        screen.type(b"\x03")
        assert screen.study.wait(timeout=3) == 130, screen.text
        wait_for(lambda: screen.shown.endswith(b"\x1b[?25h\r\n"), 5)  # the cursor is there again
    assert "Traceback" not in screen.text and "kept in" not in screen.text
    run(tmp_path, environment, "tune", "--close", "digits")
    parent, children = trial_runs(client_of(tmp_path), "aae/digits")
    assert {each.info.status for each in (parent, *children)} == {"KILLED"} and children
    assert ledger_of(tmp_path).end in (StudyEnd.USER, StudyEnd.INTERRUPTED)
    wait_for(lambda: not processes(tmp_path), 120)


# -------------------------------------------------------------------------------------------------------------- pipes


@pytest.mark.slow
def test_a_reader_that_leaves_ends_no_study(tmp_path: Path, environment: dict[str, str]) -> None:
    study = " ".join([sys.executable, "-m", "aae_ray.tune", *SMALL])
    clean = {key: value for key, value in environment.items() if value} | {"AAE_TEST_MARK": str(tmp_path)}
    shell = ["bash", "-c", f"{study} | head -3; exit ${{PIPESTATUS[0]}}"]
    done = subprocess.run(shell, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert len(done.stdout.splitlines()) == 3
    check_whole(tmp_path)
    log = log_of(tmp_path)
    assert "t0002 complete after 60 epochs" in log and re.search(r"best trial +t000\d", log)


# --------------------------------------------------------------------------------------------------------- full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 MB of one's own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root alone, and not in every container")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("left", [60_000_000, 0], ids=["nearly full", "full at a stroke"])
def test_a_disk_that_fills_stops_the_study_in_order(
    tmp_path: Path, small_disk: Path, environment: dict[str, str], left: int
) -> None:
    (tmp_path / "runs").symlink_to(small_disk)
    study = start(tmp_path, environment, *SMALL, "study.budget.trials=2", "train.epochs=300")
    log = tmp_path / "out.txt"
    try:
        wait_for(lambda: trains(tmp_path))
        fill(small_disk / "filler", left)
        assert study.wait(timeout=60) == 1, log.read_text()
    finally:
        if study.poll() is None:
            os.kill(study.pid, signal.SIGKILL)
            study.wait()
    text = log.read_text()
    assert "Traceback" not in text and RESUME.search(text), text
    if left:
        assert re.search(r"ended +\d\d MB are free under .*, and a study needs at least 100 MB", text), text
        assert ledger_of(tmp_path).end is StudyEnd.DISK and shutil.disk_usage(small_disk).free > left / 2
    else:
        assert re.search("ended .*(No space left on device|0 MB are free)", text), text
        assert ledger_of(tmp_path).end in (StudyEnd.DISK, None)  # as much as there was room for
    parent, children = trial_runs(client_of(tmp_path), "aae/digits")
    assert "RUNNING" not in {each.info.status for each in (parent, *children)} or ledger_of(tmp_path).end is None
    wait_for(lambda: not processes(tmp_path), 20)

    refused = resume(tmp_path, environment, code=2)
    assert "cannot go on yet: " in refused and "MB are free under" in refused and "Traceback" not in refused
    (small_disk / "filler").unlink()
    resume(tmp_path, environment)
    check_whole(tmp_path, trials=2, epochs=300)


def fill(path: Path, left: int) -> None:
    """Write a file until so many bytes are left of its disk."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while (free := shutil.disk_usage(path.parent).free) > left:
            file.write(bytes(min(free - left, 1_000_000)))
        while not left:
            file.write(b"0" * 512)


# -------------------------------------------------------------------------------------------------------------- gangs


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_gang_of_two_survives_the_loss_of_a_worker_and_then_of_its_driver(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    study = start(
        tmp_path, environment, *SMALL, "study.budget.trials=2", "train.epochs=150", "study.workers_per_trial=2"
    )
    log = tmp_path / "out.txt"
    wait_for(lambda: trains(tmp_path))
    assert "complete" not in log.read_text(), "the trials are too short to be hit: give them more epochs"
    workers = processes(tmp_path, "RayTrainWorker")
    assert len(workers) == 2, log.read_text()
    os.kill(workers[0], signal.SIGKILL)
    wait_for(lambda: "attempt 2" in log.read_text())
    before = ledger_of(tmp_path).trials[0].epoch
    wait_for(lambda: ledger_of(tmp_path).trials[0].epoch > before)
    assert "complete" not in log.read_text(), "the trials are too short to be hit: give them more epochs"
    os.kill(study.pid, signal.SIGKILL)
    study.wait()
    resume(tmp_path, environment)
    check_whole(tmp_path, trials=2, epochs=150)
    failures = [failure.failure for trial in ledger_of(tmp_path).trials for failure in trial.failures]
    assert failures == [FailureClass.LOST_WORKER]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_trial_whose_process_is_stopped_for_good_is_tried_again(tmp_path: Path, environment: dict[str, str]) -> None:
    """It can tell nobody of its own timeout. The driver waits for all timeouts of the process together."""
    timeouts = ("study.start_timeout=15", "study.step_timeout=30")
    study = start(tmp_path, environment, *SMALL, *timeouts, "study.budget.trials=1", "train.epochs=600")
    wait_for(lambda: trains(tmp_path))
    (pid,) = processes(tmp_path, "Trainable")
    os.kill(pid, signal.SIGSTOP)
    assert study.wait(timeout=400) == 0, (tmp_path / "out.txt").read_text()
    (failure,) = ledger_of(tmp_path).trials[0].failures
    assert failure.failure is FailureClass.HUNG and "said nothing" in failure.message
    check_whole(tmp_path, trials=1, epochs=600)


# ------------------------------------------------------------------------------------------------------- other owners


@pytest.mark.slow
def test_a_study_that_another_process_has_taken_over_is_left_alone(
    tmp_path: Path, environment: dict[str, str], empty_database: Path
) -> None:
    """As on a laptop that was closed for an hour: on a network file system no lock tells the two of each other."""
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    study = start(tmp_path, environment, *SMALL, "train.epochs=100000")
    wait_for(lambda: trains(tmp_path))
    (owner,) = tmp_path.glob("runs/*/owner.json")
    other = '{"host": "elsewhere", "pid": 7, "ticks": null}'
    owner.write_text(other)
    assert study.wait(timeout=20) == 1, (tmp_path / "out.txt").read_text()
    text = (tmp_path / "out.txt").read_text()
    assert "process 7 on elsewhere has taken this study over" in text and "Traceback" not in text
    assert ledger_of(tmp_path).end is None and owner.read_text() == other
    wait_for(lambda: not processes(tmp_path), 120)


# ------------------------------------------------------------------------------------------------------------- MLflow


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_that_hangs_and_then_dies_costs_no_record(
    tmp_path: Path, environment: dict[str, str], empty_database: Path
) -> None:
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    port = free_port()
    log = tmp_path / "out.txt"
    with mlflow_server(tmp_path, port) as server:
        budget = ("study.budget.trials=99", "study.budget.wall_clock=60s")
        study = start(tmp_path, environment, *SMALL, *budget, f"tracking.uri=http://127.0.0.1:{port}")
        wait_for(lambda: trains(tmp_path))
        os.killpg(server.pid, signal.SIGSTOP)
        time.sleep(20)
        assert study.poll() is None, log.read_text()
        os.killpg(server.pid, signal.SIGKILL)
        assert study.wait(timeout=120) == 0, log.read_text()
    text = log.read_text()
    waiting = re.search(r"MLflow +(\d+) records? pending in (runs/\S+) \(.*\); send with\n +(python .*)", text)
    assert waiting is not None and int(waiting[1]) > 3, text
    assert waiting[3] == f"python -m aae_ray.tune --sync {waiting[2]}" and "Traceback" not in text
    assert "MLflow takes records again" not in text.partition("refuses connections")[2], text
    ledger = ledger_of(tmp_path)
    assert ledger.started is not None and ledger.last_time - ledger.started.time < 60 + 30
    assert not ledger.failures and ledger.end is StudyEnd.PLANNED

    refused = run(tmp_path, environment, "tune", "--sync", "digits", code=2)
    assert "still does not take" in refused.stderr and "Traceback" not in refused.stderr
    with mlflow_server(tmp_path, port):
        done = run(tmp_path, environment, "tune", "--sync", "digits")
        assert " 0 left" in done.stdout and "version 1" in done.stdout, done.stdout
        again = run(tmp_path, environment, "tune", "--sync", "digits")
        assert " 0 left" in again.stdout and "version 1 " in again.stdout
    client = client_of(tmp_path)
    parent, children = trial_runs(client, "aae/digits")
    runs = {child.data.tags["aae.trial_id"]: child for child in children}
    assert parent.info.status == "FINISHED" and len(runs) == len(children)
    assert runs.keys() == {trial.name for trial in ledger.trials}
    for trial in ledger.trials:
        run_id = runs[trial.name].info.run_id
        cut_off = trial.reason is Reason.BUDGET  # by the end of the time, in the middle of its training
        status = "FAILED" if trial.state is State.FAILED else "KILLED" if cut_off else "FINISHED"
        assert runs[trial.name].info.status == status
        points = client.get_metric_history(run_id, "val/reconstruction_mse")
        assert [point.step for point in points] == list(range(1, trial.epoch + 1))
    wait_for(lambda: not processes(tmp_path), 20)


@pytest.mark.slow
def test_two_studies_at_once_in_one_folder_are_both_whole(tmp_path: Path, environment: dict[str, str]) -> None:
    studies = [start(tmp_path, environment, *SMALL, f"study.sampler.seed={seed}") for seed in (0, 1)]
    for study in studies:
        assert study.wait(timeout=250) == 0, (tmp_path / "out.txt").read_text()
    folders = sorted(path.parent for path in tmp_path.glob("runs/*/journal.jsonl"))
    assert len(folders) == 2
    client = client_of(tmp_path)
    experiment = client.get_experiment_by_name("aae/digits")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"} and len(runs) == 8
    best = set()
    for folder in folders:
        ledger = Ledger.replay(read_events(folder))
        assert ledger.end is StudyEnd.PLANNED and [trial.state for trial in ledger.trials] == [State.COMPLETE] * 3
        (parent,) = [
            each
            for each in runs
            if each.data.tags["aae.run_kind"] == "study" and each.data.tags["aae.study_id"] == folder.name
        ]
        children = [each for each in runs if each.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert sorted(child.data.tags["aae.trial_id"] for child in children) == ["t0000", "t0001", "t0002"]
        for child in children:
            points = client.get_metric_history(child.info.run_id, "val/reconstruction_mse")
            assert [point.step for point in points] == list(range(1, 61))
        assert ledger.chosen is not None and ledger.promoted is not None
        name = trial_name(ledger.chosen.number)
        best |= {child.info.run_id for child in children if child.data.tags["aae.trial_id"] == name}
    versions = client.search_model_versions("name = 'aae-digits-decoder'")
    assert {version.run_id for version in versions} == best and len(versions) == 2
    assert client.get_model_version_by_alias("aae-digits-decoder", "champion").run_id in best
    wait_for(lambda: not processes(tmp_path), 20)


# -------------------------------------------------------------------------------------------- what is not as it was


@pytest.mark.slow
def test_other_data_and_other_versions_are_refused_by_a_resume(tmp_path: Path, environment: dict[str, str]) -> None:
    images_NHW, labels_N = some_images(600, side=8)
    write_idx(tmp_path / "own", images_NHW, labels_N)
    study = start(tmp_path, environment, *SMALL, "data.name=own", "data.path=own", f"data.cache={tmp_path / 'cache'}")
    log = tmp_path / "out.txt"
    wait_for(lambda: "t0000 begins" in log.read_text())
    os.kill(study.pid, signal.SIGTERM)
    assert study.wait(timeout=60) == 130, log.read_text()
    (journal,) = tmp_path.glob("runs/*/journal.jsonl")
    before = journal.read_bytes()

    write_idx(tmp_path / "own", images_NHW[::-1], labels_N)
    refused = resume(tmp_path, environment, code=2)
    assert "was started on data with digest" in refused and "Traceback" not in refused
    assert len(refused.strip().splitlines()) == 1 and journal.read_bytes() == before
    write_idx(tmp_path / "own", images_NHW, labels_N)

    here = ledger_of(tmp_path).started
    assert here is not None and f'"torch":"{here.versions["torch"]}"'.encode() in before
    journal.write_bytes(
        before.replace(f'"torch":"{here.versions["torch"]}"'.encode(), b'"torch":"1.0"', 1).replace(
            f'"python":"{here.versions["python"]}"'.encode(), b'"python":"3.2.1"', 1
        )
    )
    before = journal.read_bytes()
    refused = resume(tmp_path, environment, code=2)
    assert f"torch 1.0 then, {here.versions['torch']} now" in refused and "python 3.2.1 then" in refused
    assert "--any-version" in refused and "Traceback" not in refused and journal.read_bytes() == before
    resume(tmp_path, environment, "--resume", str(journal.parent), "--any-version")
    check_whole(tmp_path, experiment="aae/own")


@pytest.mark.slow
@pytest.mark.parametrize("listens", [False, True], ids=["nothing listens", "something else listens"])
def test_a_dead_address_of_ray_is_a_sentence(tmp_path: Path, environment: dict[str, str], listens: bool) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if listens:
            other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        began = time.monotonic()
        done = run(tmp_path, environment | {"RAY_ADDRESS": address}, "tune", code=2)
        assert time.monotonic() - began < 20
    assert f"no Ray cluster answers at {address}" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("runs/*"))
