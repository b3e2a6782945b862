"""Where a study stands: the same for people and for programs, from its folder alone."""

import contextlib
import io
import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from rich.console import Console

from aae_ray.cli import run_command
from aae_ray.reporting.status import StudyStatus
from aae_ray.reporting.status_view import left_to_do, render
from aae_ray.search import events
from aae_ray.search.outcomes import FailureClass, Reason, RungVerdict, State, StudyEnd
from aae_ray.search.owner import OWNER, Owner
from aae_ray.status import status
from aae_ray.tracking.mapping import MlflowMapping, SetTags
from tests.search.histories import JSD, MSE, START, History, write_evaluation

ROOT = Path(__file__).parents[2]
FOLDER = Path("runs/digits-20270115-080000-abcd")
DEAD = Owner(socket.gethostname(), 2**22 + 1, None, START)  # above the largest process id


def alive(now: float) -> Owner:
    return Owner(socket.gethostname(), os.getpid(), None, now - 3)


def history_of_all_states() -> History:
    history = History(study_id=FOLDER.name, study__name="digits", study__budget__trials=8, train__epochs=9)
    history.finish(0.03, 0.1)
    history.finish(0.02, 0.3)
    history.finish(0.05, 0.5)
    stopped = history.begin()
    history.report(stopped, 3, 0.1, 0.9)
    history.end(stopped, Reason.PRUNED)
    for _ in range(2):
        history.fail(history.begin(), FailureClass.OUT_OF_MEMORY, "CUDA out of memory\na traceback")
    running = history.begin()
    history.report(running, 1, math.nan, 0.4)
    return history


def of(history: History, owner: Owner | None = None, **options: Any) -> StudyStatus:
    return StudyStatus.of(FOLDER, history.ledger, owner, history.now, **options)


def printed(status: StudyStatus, width: int = 120, ascii: bool = False) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(render(status, width, ascii))
    return out.getvalue()


def commands(status: StudyStatus) -> str:
    return "\n".join(line.plain for line in left_to_do(status))


def test_a_program_reads_everything_under_keys_that_stay() -> None:
    history = history_of_all_states()
    status = of(history, alive(history.now)).to_json()
    assert json.loads(json.dumps(status, allow_nan=False)) == status
    assert list(status) == [
        "study_id",
        "name",
        "folder",
        "state",
        "why",
        "message",
        "owner",
        "started",
        "at",
        "elapsed_seconds",
        "trials",
        "configurations",
        "objectives",
        "front",
        "best",
        "confirming",
        "chosen",
        "registered",
        "latest",
        "trials_per_hour",
        "seconds_left",
        "budget",
        "worker_seconds",
        "cost",
        "failures",
        "notes",
        "last_event",
        "unfinished",
        "copy",
        "mlflow",
        "resume",
    ]
    assert status["study_id"] == FOLDER.name and status["state"] == "running" and status["owner"]["alive"]
    assert status["owner"]["heartbeat_age_seconds"] == 3
    assert status["trials"] == {"waiting": 0, "running": 1, "paused": 0, "complete": 3, "stopped": 1, "failed": 2}
    assert [trial["name"] for trial in status["front"]] == ["t0001", "t0000"]
    assert {name: trial["name"] for name, trial in status["best"].items()} == {MSE: "t0001", JSD: "t0000"}
    assert [trial["name"] for trial in status["latest"]] == ["t0006", *(f"t000{n}" for n in range(5, -1, -1))]
    assert status["latest"][0]["values"] == {MSE: None, JSD: 0.4}  # JSON has no NaN
    failure = status["failures"]["out_of_memory"]
    assert (failure["count"], failure["message"], failure["trial"]) == (2, "CUDA out of memory", "t0005")
    assert status["budget"]["trials"] == {"used": 6, "limit": 8} and status["seconds_left"]["low"] >= 0


def test_means_over_seeds_are_the_values_of_a_configuration() -> None:
    history = History(study__seeds_per_trial=2, study__budget__trials=2)
    history.finish(0.1, 0.2)
    history.finish(0.3, 0.1)
    history.another_seed(0, 0.2, 0.4)
    status = of(history)
    assert status.front[0].values == pytest.approx({MSE: 0.15, JSD: 0.3})
    assert status.to_json()["best"][MSE]["values"] == pytest.approx({MSE: 0.15, JSD: 0.3})
    assert [trial.to_json()["replicate_of"] for trial in status.trials] == ["t0000", None, None]
    assert status.trials[0].values == pytest.approx({MSE: 0.2, JSD: 0.4})  # a seed's own
    assert status.to_json()["configurations"] == 2 and "2/2 configurations" in printed(status)


def test_paused_trials_are_listed_with_those_that_ended_newest_first() -> None:
    history = History()
    history.finish(0.1, 0.2)
    paused = history.begin()
    history.report(paused, 3, 0.2, 0.2)
    history.pause(paused)
    history.finish(0.3, 0.1)
    running = history.begin()
    assert [trial.number for trial in of(history).trials] == [running, 2, paused, 0]
    assert "paused" in printed(of(history))


def test_who_goes_on_after_a_pause_is_no_retry() -> None:
    history = History()
    number = history.begin()
    history.report(number, 3, 0.2, 0.2)
    history.pause(number)
    history.pause(number, RungVerdict.CONTINUE)
    history.attempt(number)
    (status,) = of(history).trials
    assert (status.attempts, status.retries, status.state_text) == (2, 0, "running")
    history.fail(number, FailureClass.LOST_WORKER, retry=True)
    history.attempt(number)
    (status,) = of(history).trials
    assert status.to_json()["retries"] == 1 and status.state_text == "running, attempt 3"


@pytest.mark.parametrize(
    ("end", "state", "why"),
    [
        (None, "running", None),
        (StudyEnd.USER, "stopped", "user"),
        (StudyEnd.DISK, "stopped", "disk"),
        (StudyEnd.PLANNED, "ended", None),
    ],
)
def test_how_a_study_stands(end: StudyEnd | None, state: str, why: str | None) -> None:
    history = history_of_all_states()
    if end is StudyEnd.PLANNED:
        history.add(events.StudyEnded(message="all is done"))
    elif end is not None:
        history.stop(end, "all is done")
    for owner in (alive(history.now), None):
        status = of(history, owner)
        assert (status.state, status.why) == (state if end or owner else "dead", why)
        assert status.state in printed(status)
        assert end is None or "all is done" in printed(status)


def test_a_study_whose_process_exited_unexpectedly_is_dead() -> None:
    history = history_of_all_states()
    before = of(history, DEAD)
    assert before.state == "dead" and not before.alive
    assert f"process {DEAD.pid} on {DEAD.host} exited unexpectedly" in " ".join(printed(before).split())
    assert before.to_json()["resume"] == f"python -m aae_ray.tune --resume {FOLDER}"
    assert commands(before) == f"resume  python -m aae_ray.tune --resume {FOLDER}"
    assert of(history, alive(history.now)).to_json()["resume"] is None
    history.now += 10_000
    after = of(history, DEAD)
    assert after.forecast == before.forecast  # its clock stands still
    assert "left" not in printed(after)


def test_a_resumed_study_runs_again() -> None:
    history = history_of_all_states()
    history.stop(StudyEnd.USER)
    stopped = of(history)
    assert stopped.to_json()["trials"]["stopped"] == 2 and stopped.unfinished == 1
    assert "1 stopped  2 failed  1 unfinished" in printed(stopped) and stopped.resumable
    history.resume()
    status = of(history, alive(history.now))
    assert status.state == "running" and status.trials[0].name == "t0006" and status.trials[0].state == "waiting"
    assert [trial.name for trial in status.trials].count("t0006") == 1


@pytest.mark.parametrize("state", State)
def test_every_state_has_a_word_and_a_row(state: State) -> None:
    history = history_of_all_states()
    history.trial(6).state, history.ledger.counts = state, dict.fromkeys(State, 3)
    text = printed(of(history))
    assert f"3 {state}" in text and f"t0006  {state}" in text


def test_what_mlflow_does_not_have_is_told_of_a_study_that_does_not_run() -> None:
    history = history_of_all_states()
    status = of(history, DEAD, left_to_send=(3, 1))
    assert f"MLflow  3 records pending: python -m aae_ray.tune --sync {FOLDER}\n" in commands(status)
    assert commands(status).endswith("MLflow  has refused 1 record")
    for owner, left in ((DEAD, (0, 0)), (DEAD, None), (alive(history.now), (3, 0))):  # a running one is sending them
        assert "MLflow" not in commands(of(history, owner, left_to_send=left))


def test_a_study_that_lives_elsewhere_says_what_was_read() -> None:
    history = history_of_all_states()
    history.now = history.ledger.last_time + 120
    status = of(history, DEAD, uri="s3://bucket/studies/my digits")
    text = " ".join(printed(status).split())
    assert "s3://bucket/studies/my digits" in text and f"copied to {FOLDER}, last event 2 min ago" in text
    assert "--resume 's3://bucket/studies/my digits'" in commands(status)
    assert (status.to_json()["folder"], status.to_json()["copy"]) == ("s3://bucket/studies/my digits", str(FOLDER))


def test_a_trial_that_failed_and_is_complete_has_no_message() -> None:
    history = History()
    number = history.begin()
    history.fail(number, FailureClass.LOST_WORKER, "node 10.0.0.3 is gone", retry=True)
    history.attempt(number)
    history.report(number, 9, 0.1, 0.2)
    history.end(number)
    status = of(history).to_json()
    assert status["latest"][0]["message"] is None
    assert status["failures"]["lost_worker"]["message"] == "node 10.0.0.3 is gone"
    calls = [call for mapping in [MlflowMapping()] for event in history.events for call in mapping.calls(event)]
    told = [call.tags["aae.message"] for call in calls if isinstance(call, SetTags) and "aae.message" in call.tags]
    assert told == ["node 10.0.0.3 is gone", ""]  # MLflow keeps a tag until it gets another one


def test_hours_that_were_lost_and_their_cost_are_shown() -> None:
    history = History(study__price_per_worker_hour=3.6)
    number = history.begin()
    history.report(number, 3, 0.1, 0.2, wait=60)
    history.now += 20
    history.fail(number, FailureClass.PREEMPTED, "its node has died", retry=True)
    history.attempt(number)
    history.report(number, 9, 0.1, 0.2, wait=20)
    history.end(number)
    status = of(history)
    told = status.to_json()
    assert told["worker_seconds"]["lost"] == told["failures"]["preempted"]["lost_worker_seconds"] == 20
    assert told["cost"] == pytest.approx(0.1)
    text = " ".join(printed(status).split())
    assert "1 min 40 s (cost 0.10) of workers" in text and "to be done again 20%" in text


def test_what_the_study_chose_and_registered_is_shown() -> None:
    history = history_of_all_states()
    history.add(events.Chosen(number=0, registration={"name": "decoder"}))
    history.add(events.Promoted(name="decoder", version=2, champion=False, reason="worse"))
    history.add(events.StudyEnded())
    status = of(history)
    assert status.to_json()["chosen"] == "t0000"
    assert status.to_json()["registered"] == {"name": "decoder", "version": 2, "champion": False, "reason": "worse"}
    assert "the best one is t0000" in printed(status)
    assert "registered as decoder version 2, not the champion" in printed(status)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("ascii", [False, True])
def test_it_is_shown_on_a_console_of_any_width(width: int, ascii: bool) -> None:
    history = history_of_all_states()
    text = printed(of(history, alive(history.now)), width, ascii)
    assert max(map(len, text.splitlines())) <= width
    assert text.isascii() == ascii
    assert width < 60 or all(f"t000{number}" in text for number in range(7))


def test_a_study_without_a_trial_has_a_status() -> None:
    history = History()
    status = of(history)
    assert status.to_json()["front"] == [] and status.to_json()["seconds_left"] is None
    assert "0/24" in printed(status)


def test_the_cost_with_a_limit_does_not_grow_with_the_trials() -> None:
    def seconds(trials: int) -> float:
        history = History(study__budget__trials=20_000)
        for index in range(trials):
            history.finish(index / trials, -index / trials)  # all on the front
        times = []
        for _ in range(20):
            began = time.perf_counter()
            assert of(history, front=5).front_size == trials
            times.append(time.perf_counter() - began)
        return min(times)

    assert seconds(2_000) < 3 * seconds(50)


# -------------------------------------------------------------------------------------------------------- the command


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in this process."""
    out, err = io.StringIO(), io.StringIO()
    typed = ["status", *arguments]
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", typed),
        pytest.raises(SystemExit) as left,
    ):
        run_command(status, "status")
    code = left.value.code or 0
    assert isinstance(code, int)
    return subprocess.CompletedProcess(typed, code, out.getvalue(), err.getvalue())


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A folder with runs/: one study of digits that is dead, and one of mnist that has ended."""
    folder = history_of_all_states().write(tmp_path / FOLDER)
    (folder / OWNER).write_text(json.dumps({"host": DEAD.host, "pid": DEAD.pid}))
    ended = History(time=START + 50, study_id="mnist-20270116-080000-beef", study__name="mnist")
    ended.finish(0.1, 0.2)
    ended.add(events.StudyEnded())
    ended.write(tmp_path / "runs" / "mnist-20270116-080000-beef")
    return tmp_path


def test_one_study_by_name(studies: Path) -> None:
    done = run("digits", cwd=studies)
    assert done.returncode == 0 and done.stderr == ""
    assert FOLDER.name in done.stdout and "dead" in done.stdout and "6/8" in done.stdout
    assert done.stdout.endswith(f"resume  python -m aae_ray.tune --resume {FOLDER}\n")
    status = json.loads(run(str(FOLDER), "--json", cwd=studies).stdout)
    assert status["state"] == "dead" and status["trials"]["complete"] == 3


def test_all_studies_newest_first(studies: Path) -> None:
    (studies / "runs" / "broken-20270101-080000-aaaa").mkdir()
    (studies / "runs" / "broken-20270101-080000-aaaa" / "journal.jsonl").write_text("no\nno\nno\n")
    done = run(cwd=studies)
    _, first, second, *rest = done.stdout.splitlines()
    assert first.split()[:3] == ["mnist-20270116-080000-beef", "ended", "1/24"] and "0.1000" in first
    assert second.split()[:3] == [FOLDER.name, "dead", "6/8"] and "0.0200" in second
    assert "broken-20270101-080000-aaaa" in " ".join(rest) and "is not an event of a study" in " ".join(rest)
    content = json.loads(run("--json", cwd=studies).stdout)
    assert [study["name"] for study in content["studies"]] == ["mnist", "digits"]
    assert list(content["unreadable"]) == ["broken-20270101-080000-aaaa"]


def test_an_evaluation_is_not_listed_and_has_no_status(studies: Path) -> None:
    write_evaluation(studies / "runs" / "evaluation-20270118-080000")
    done = run(cwd=studies)
    assert done.returncode == 0 and FOLDER.name in done.stdout and "evaluation" not in done.stdout
    done = run("evaluation-20270118-080000", cwd=studies)
    assert done.returncode == 2 and "an evaluation, not of a study" in done.stderr and "Traceback" not in done.stderr


def test_no_study_at_all(tmp_path: Path) -> None:
    done = run("--folder", "elsewhere", cwd=tmp_path)
    assert done.returncode == 0 and "no study under elsewhere" in done.stdout


def test_an_unknown_study_is_a_sentence_with_names_like_it(studies: Path) -> None:
    done = run("digist", cwd=studies)
    assert done.returncode == 2 and done.stdout == "" and f"Did you mean {FOLDER.name}?" in done.stderr


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_journal_whose_last_line_is_cut_off_has_a_status(studies: Path, cut: int) -> None:
    path = studies / FOLDER / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    status = json.loads(run("digits", "--json", cwd=studies).stdout)
    assert status["trials"]["complete"] == 3 and status["latest"][0]["epoch"] == 0
    assert path.read_bytes() == whole[:-cut]  # nothing is changed


def test_settings_of_another_version_are_a_sentence(studies: Path) -> None:
    path = studies / FOLDER / "journal.jsonl"
    path.write_text(path.read_text().replace('"train.epochs"', '"train.eras"'))
    done = run("digits", cwd=studies)
    assert done.returncode == 2 and "train.eras" in done.stderr and "Traceback" not in done.stderr


def test_it_is_written_in_ascii_where_no_more_can_be_shown(studies: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aae_ray.status", "digits"],
        cwd=studies,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT), "LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0 and done.stdout.isascii() and "val/jsd_nats v" in done.stdout
    assert "====" in done.stdout and "\\u" not in done.stdout and "?" not in done.stdout


def healthy(root: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "aae_ray.status", "--healthy", "--folder", str(root), *arguments],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_a_probe_learns_whether_a_study_has_a_process_that_lives(tmp_path: Path) -> None:
    assert healthy(tmp_path) == (1, f"no study runs under {tmp_path}\n")
    folder = tmp_path / "digits-20270101-120000-abcd"
    folder.mkdir()
    (folder / OWNER).write_text(Owner.this_process().to_json())
    assert healthy(tmp_path)[0] == 0
    code, told = healthy(tmp_path, "digits")
    assert code == 0 and told.startswith(f"{folder.name} runs: process {os.getpid()} on ")
    assert healthy(tmp_path, "s3://bucket/studies/digits-20270101-120000-abcd?region=x")[0] == 0
    assert healthy(tmp_path, "mnist") == (1, f"no study mnist runs under {tmp_path}\n")
    old = time.time() - 120  # stopped, or stuck: its process is there, and its heartbeat is not
    os.utime(folder / OWNER, (old, old))
    code, told = healthy(tmp_path)
    assert code == 1 and told.startswith(f"{folder.name}: process {os.getpid()} on ") and "gives no sign" in told
    (folder / OWNER).write_text("{}")
    assert healthy(tmp_path)[0] == 1


def test_a_probe_imports_next_to_nothing() -> None:
    code = "import sys, aae_ray.search.owner; print(*sorted({'pydantic', 'numpy', 'torch', 'ray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
