"""A study's journal: torn, foreign, newer, empty, locked; and what is never written to it."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from aae_ray.errors import UserError
from aae_ray.search import events
from aae_ray.search.journal import JOURNAL, Journal, StudyLock, read_events
from aae_ray.search.outcomes import StudyEnd
from aae_ray.search.owner import OWNER, Owner, read_owner, start_ticks
from aae_ray.search.space import Plan, plan_from, record_plan
from aae_ray.secrets import redact, without_userinfo
from aae_ray.settings import Settings, replace
from tests.search.heart import beating
from tests.search.histories import History
from tests.search.test_conductor import begin, plan_of, run

STARTED = (History().events[0].model_dump_json() + "\n").encode()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The folder of a small study that has run."""
    conductor = begin(tmp_path, plan_of(study__budget__trials=3))
    run(conductor)
    conductor.journal.close()
    return tmp_path


def test_what_was_appended_is_read_back(study: Path) -> None:
    first = read_events(study)
    assert [event.event for event in first[:3]] == ["study_started", "suggested", "attempt_started"]
    journal = Journal.open(study)
    journal.append(events.StudyEnded(), events.Noted(text="a note"))
    assert read_events(study) == journal.history and len(journal.history) == len(first) + 2
    assert (study / JOURNAL).stat().st_mode & 0o777 == 0o600


def test_numbers_that_are_not_finite_come_back(study: Path) -> None:
    journal = Journal.open(study)
    report = events.Reported(
        number=0, epoch=1, history=({"epoch": 1.0, "a": float("nan"), "b": float("inf")},), checkpoint=None,
        training_seconds=0, evaluation_seconds=0,
    )  # fmt: skip
    journal.append(report)
    (metrics,) = read_events(study)[-1].history  # type: ignore[union-attr]
    assert metrics["a"] != metrics["a"] and metrics["b"] == float("inf")


@pytest.mark.parametrize("torn", [b'{"time":1.0,"event":"ended"', b"\0" * 50, b"\0" * 50 + b"\n"])
def test_a_last_line_that_a_crash_tore_is_taken_away(study: Path, torn: bytes) -> None:
    whole = read_events(study)
    path = study / JOURNAL
    before = path.read_bytes()
    path.write_bytes(before + torn)
    assert read_events(study) == whole
    assert path.read_bytes() == before + torn, "reading changes nothing"
    journal = Journal.open(study)
    journal.append(events.StudyEnded())
    assert read_events(study)[:-1] == whole and path.read_bytes().startswith(before)


def test_a_line_in_the_middle_that_cannot_be_read_is_told_with_what_is_left(study: Path) -> None:
    path = study / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4] = b"a line of another program\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(UserError, match=rf"{JOURNAL}, line 5: .*the 4 events before it are whole"):
        Journal.open(study)
    assert path.read_bytes() == b"".join(lines), "nothing was changed"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no event"),
        (b'{"time":1.0,"event":"study_ended","message":null}\n', "begins with study_ended"),
        (b'{"event":"study_started","schema_version":99,"new":1}\n{"event":"what"}\n', "newer aae_ray"),
        (b'{"event":"study_started","schema_version":99,"new":1}\n', "newer aae_ray"),
        (STARTED + b'{"event":"study_resumed","schema_version":99,"host":"h","pid":1}\n', "newer aae_ray"),
        (STARTED + b'{"event":"study_resumed","schema_version":99,"new":1}\n', "newer aae_ray"),
        (b'{"do":"open"}\n{"do":"create"}\n', "line 1: is not an event"),
    ],
)
def test_foreign_newer_and_empty_journals_are_a_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / JOURNAL).write_bytes(content)
    with pytest.raises(UserError, match=message):
        Journal.open(tmp_path)
    assert (tmp_path / JOURNAL).read_bytes() == content


def test_a_folder_without_a_journal_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"not the folder of a study: there is no {JOURNAL}"):
        read_events(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_journal_as_it_was(study: Path) -> None:
    journal = Journal.open(study)
    before, count = (study / JOURNAL).read_bytes(), len(journal.history)
    own = journal.file
    journal.file = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space left"):
        journal.append(events.StudyEnded())
    os.close(journal.file)
    journal.file = own
    assert len(journal.history) == count and (study / JOURNAL).read_bytes() == before
    journal.append(events.StudyEnded())
    assert len(read_events(study)) == count + 1


def test_an_interrupt_leaves_the_journal_as_it_was(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal.open(study)
    before, count = (study / JOURNAL).read_bytes(), len(journal.history)

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.append(events.StudyEnded())
    assert len(journal.history) == count and (study / JOURNAL).read_bytes() == before
    journal.append(events.StudyEnded())
    assert len(read_events(study)) == count + 1


def test_a_whole_last_line_that_is_no_event_is_not_thrown_away(study: Path) -> None:
    with (study / JOURNAL).open("ab") as file:
        file.write(b'{"event": "of_a_later_version", "time": 1.0}\n')
    before = (study / JOURNAL).read_bytes()
    with pytest.raises(UserError, match="is not an event of a study"):
        Journal.open(study)
    assert (study / JOURNAL).read_bytes() == before


# --------------------------------------------------------------------------------------------------------------- lock

HOLD = """
import sys, time
from pathlib import Path
from aae_ray.search.journal import StudyLock
StudyLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(100)
"""


def test_a_second_process_is_refused_with_host_and_pid_and_takes_over_when_the_first_was_killed(study: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(study)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {process.pid} on {socket.gethostname()}"):
            StudyLock(study).acquire()
        owner = read_owner(study)
        assert owner is not None and owner.alive
    finally:
        process.kill()
        process.wait()
    killed = read_owner(study)
    assert killed is not None and not killed.alive
    lock = StudyLock(study)
    lock.acquire()
    assert lock.taken_over is not None and lock.taken_over.pid == process.pid
    lock.release()
    assert read_owner(study) is None


def test_an_owner_on_another_host_counts_as_alive_as_long_as_its_heart_beats(study: Path) -> None:
    (study / OWNER).write_text('{"host": "elsewhere", "pid": 1}')
    told: list[str] = []
    with beating(study / OWNER), pytest.raises(UserError, match="in use by process 1 on elsewhere"):
        StudyLock(study).acquire(told.append)
    assert (
        len(told) == 1 and "process 1 on elsewhere had the study 0 s ago; waiting for its next sign of life" in told[0]
    )
    os.utime(study / OWNER, (time.time() - 3600,) * 2)
    lock = StudyLock(study)
    lock.acquire()
    lock.release()


def test_a_host_that_was_just_lost_is_waited_for_by_this_hosts_clock(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aae_ray.search.owner.STALE_SECONDS", 1.5)
    (study / OWNER).write_text('{"host": "elsewhere", "pid": 1}')
    os.utime(study / OWNER, (time.time() + 3600,) * 2)  # the storage's clock is not ours
    lock, began = StudyLock(study), time.monotonic()
    lock.acquire()
    assert lock.taken_over is not None and time.monotonic() - began >= 1.5
    lock.release()


def test_a_process_that_was_stopped_for_long_notices_that_another_has_the_study(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aae_ray.search.journal.HEARTBEAT_SECONDS", 0.05)
    lock = StudyLock(study)
    lock.acquire()
    other = json.dumps({"host": "elsewhere", "pid": 7, "ticks": None})
    (study / OWNER).write_text(other)
    deadline = time.monotonic() + 5
    while lock.lost_to is None and time.monotonic() < deadline:
        time.sleep(0.02)
    lock.release()
    assert lock.lost_to is not None and (lock.lost_to.host, lock.lost_to.pid) == ("elsewhere", 7)
    assert (study / OWNER).read_text() == other


def test_another_process_with_the_number_of_the_owner_is_not_taken_for_it(study: Path) -> None:
    """As after a restart of the machine, or of a container, where the same few numbers come again."""
    (study / OWNER).write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "ticks": 1}))
    owner = read_owner(study)
    assert owner is not None and owner.alive == (start_ticks(os.getpid()) is None)
    assert Owner.this_process().alive and not owner.same_process_as(Owner.this_process())


# ------------------------------------------------------------------------------------------------------------ secrets


@pytest.mark.parametrize(
    ("address", "clean"),
    [
        ("https://user:pa55@host:5000/path", "https://host:5000/path"),
        ("postgresql+psycopg2://me:pa55@db/mlflow", "postgresql+psycopg2://db/mlflow"),
        ("http://token@host", "http://host"),
        ("sqlite:////folder/mlflow.db", "sqlite:////folder/mlflow.db"),
        ("databricks", "databricks"),
        ("https://host/?password=pa55&x=1", "https://host/?password=***&x=1"),
    ],
)
def test_an_address_is_written_without_user_and_password(address: str, clean: str) -> None:
    assert without_userinfo(address) == clean
    assert redact(f"cannot reach {address}: refused") == f"cannot reach {clean}: refused"


def test_a_journal_has_no_password(tmp_path: Path) -> None:
    settings = replace(Settings(), {"tracking.uri": "https://user:pa55@host:5000"})
    record = record_plan(Plan(settings, {}))
    assert "pa55" not in record.model_dump_json() and record.settings["tracking.uri"] == "https://host:5000"
    assert plan_from(record).settings.tracking.uri == "https://host:5000"


def test_the_last_event_of_a_process_that_ends_is_the_last(study: Path) -> None:
    journal = Journal.open(study)
    journal.append_last(events.StudyStopped(end=StudyEnd.RAY, message="Ray's raylet has ended"))
    assert journal.sealed
    threading.Thread(target=journal.append, args=(events.Noted(text="too late"),), daemon=True).start()
    time.sleep(0.2)
    assert isinstance(read_events(study)[-1], events.StudyStopped)
