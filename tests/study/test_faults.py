"""Whole studies to which the world is unkind: closed terminals and pipes, full disks, dead servers and processes."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aae_ray.search.outcomes import StudyEnd
from tests.study.commands import command, run
from tests.study.test_resume import SMALL, check_whole, ledger_of
from tests.study.test_study import client_of, processes, trial_runs, wait_for

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
