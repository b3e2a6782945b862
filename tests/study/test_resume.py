"""Studies that are killed, stopped, resumed, extended and closed through the real commands."""

import contextlib
import os
import random
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aae_ray.search.journal import read_events
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import State, StudyEnd
from tests.study.commands import run
from tests.study.test_study import client_of, optuna_states, processes, start, trial_runs, wait_for

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")

SMALL = (
    "study.budget.trials=3",
    "train.epochs=60",
    "health.stop=false",
    "study.pruner.type=none",
    "study.finalists=best",
    "study.concurrent_trials=1",
)


def ledger_of(folder: Path) -> Ledger:
    (journal,) = folder.glob("runs/*/journal.jsonl")
    return Ledger.replay(read_events(journal.parent))


def check_whole(folder: Path, trials: int = 3, epochs: int = 60, experiment: str = "aae/digits") -> None:
    """Every trial is complete, once in journal, Optuna's copy and MLflow, without a gap; nothing runs, none is left."""
    ledger = ledger_of(folder)
    assert ledger.end is StudyEnd.PLANNED and [trial.state for trial in ledger.trials] == [State.COMPLETE] * trials
    assert optuna_states(folder) == ["COMPLETE"] * trials
    client = client_of(folder)
    parent, children = trial_runs(client, experiment)
    assert {each.info.status for each in (parent, *children)} == {"FINISHED"}
    assert sorted(child.data.tags["aae.trial_id"] for child in children) == [trial.name for trial in ledger.trials]
    for child in children:
        points = client.get_metric_history(child.info.run_id, "val/reconstruction_mse")
        assert [point.step for point in points] == list(range(1, epochs + 1))
    wait_for(lambda: not processes(folder), 120)  # Ray's agents notice after a minute that a killed driver is gone


def resume(folder: Path, environment: dict[str, str], *arguments: str, code: int = 0) -> str:
    (study,) = (path.parent for path in folder.glob("runs/*/journal.jsonl"))
    done = run(folder, environment, "tune", *(arguments or ("--resume", str(study.relative_to(folder)))), code=code)
    return done.stdout + done.stderr


def wait_for_events(study: subprocess.Popen[str], folder: Path, more: int) -> None:
    """Until the journal has so many events more than now, or the study has ended."""

    def events() -> int:
        return sum(path.read_bytes().count(b"\n") for path in folder.glob("runs/*/journal.jsonl"))

    before = events()
    wait_for(lambda: events() >= before + more or study.poll() is not None)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, *range(2, 20)))])
def test_a_driver_that_is_killed_at_any_moment_loses_nothing(
    tmp_path: Path, environment: dict[str, str], seed: int
) -> None:
    """Of the first seed at three moments, one after the other; of each other one at one."""
    luck = random.Random(seed)
    study = start(tmp_path, environment, *SMALL)
    for number in range(1 if seed else 3):
        # Counted in events, as machines differ: the first ones are the start, then there are about seven for a trial.
        wait_for_events(study, tmp_path, luck.randint(1, 16 if seed else 7))
        with contextlib.suppress(subprocess.TimeoutExpired):
            study.wait(timeout=luck.uniform(0, 0.5))
        assert number or study.poll() is None  # a later one may come after the end
        if study.poll() is None:
            os.kill(study.pid, signal.SIGKILL)
            study.wait()
            folder = next(tmp_path.glob("runs/*/journal.jsonl")).parent
            study = start(tmp_path, environment, "--resume", str(folder))
    assert study.wait(timeout=250) == 0, (tmp_path / "out.txt").read_text()
    check_whole(tmp_path)


@pytest.mark.slow
def test_a_terminated_group_is_closed_and_its_command_resumes_it_when_pasted_also_after_a_move(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    study = start(tmp_path, environment, *SMALL)
    log = tmp_path / "out.txt"
    wait_for(lambda: "t0000 complete" in log.read_text())
    os.killpg(study.pid, signal.SIGTERM)
    assert study.wait(timeout=30) == 130, log.read_text()
    assert ledger_of(tmp_path).end is StudyEnd.USER
    parent, children = trial_runs(client_of(tmp_path), "aae/digits")
    assert parent.info.status == "KILLED" and "RUNNING" not in {child.info.status for child in children}
    wait_for(lambda: not processes(tmp_path), 30)

    refused = resume(tmp_path, environment, "--resume", "digits", "optim.beta2=0.9", code=2)
    assert "optim.beta2: 0.999 -> 0.9" in refused and "--extend digits" in refused and "Traceback" not in refused
    command = re.search(r"resume +(python -m aae_ray\.tune --resume .*)", log.read_text())
    assert command is not None
    words = shlex.split(command.group(1))
    assert words[0] == "python"
    (folder,) = (path.parent for path in tmp_path.glob("runs/*/journal.jsonl"))
    moved = folder.rename(tmp_path / "moved")
    words[-1] = str(moved)
    clean = {key: value for key, value in environment.items() if value}
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stdout + done.stderr
    moved.rename(folder)
    check_whole(tmp_path)

    again = resume(tmp_path, environment, code=2)
    assert "has ended as planned" in again and "--extend" in again
    resume(tmp_path, environment, "--extend", "digits", "study.budget.trials=4")
    check_whole(tmp_path, trials=4)


@pytest.mark.slow
def test_a_running_study_refuses_a_second_driver_and_a_killed_one_is_closed(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    study = start(tmp_path, environment, *SMALL, "train.epochs=100000")
    wait_for(lambda: "begins" in (tmp_path / "out.txt").read_text())
    refused = resume(tmp_path, environment, "--resume", "digits", code=2)
    assert f"in use by process {study.pid} on " in refused
    status = run(tmp_path, environment, "status", "digits", "--json").stdout
    assert f'"pid": {study.pid}' in status
    os.kill(study.pid, signal.SIGKILL)
    study.wait()
    resume(tmp_path, environment, "--close", "digits")
    assert ledger_of(tmp_path).end is StudyEnd.INTERRUPTED
    parent, children = trial_runs(client_of(tmp_path), "aae/digits")
    assert {each.info.status for each in (parent, *children)} == {"KILLED"}


@pytest.mark.slow
def test_an_extension_has_another_space_and_longer_trials_and_a_warm_start_knows_both(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    study = start(tmp_path, environment, *SMALL, "study.budget.trials=2", "study.select=first_objective")
    wait_for(lambda: "t0000 complete" in (tmp_path / "out.txt").read_text())
    wait_for(lambda: "t0001 begins" in (tmp_path / "out.txt").read_text())
    os.kill(study.pid, signal.SIGTERM)  # t0001 is stopped by the user
    assert study.wait(timeout=60) == 130
    before = ledger_of(tmp_path)
    assert [trial.state for trial in before.trials] == [State.COMPLETE, State.STOPPED]
    better = ("model.latent_dim=16", "model.hidden=256-128", "model.posterior=deterministic", "model.prior=gaussian")
    changes = (
        "study.budget.trials=4",
        "train.epochs=120",
        *better,
        "optim.beta2=0.99",
        "optim.reconstruction_lr=0.003",
    )
    shown = resume(tmp_path, environment, "--extend", "digits", *changes)
    assert "could not be" not in shown and "aae-digits-decoder version 1, champion" in shown  # one that is new
    ledger = ledger_of(tmp_path)
    assert ledger.end is StudyEnd.PLANNED and {trial.state for trial in ledger.trials} == {State.COMPLETE}
    assert [trial.epoch for trial in ledger.trials] == [60, 60, 120, 120]  # an open trial keeps its budget
    assert [trial.params for trial in ledger.trials[:2]] == [trial.params for trial in before.trials]
    client = client_of(tmp_path)
    _, children = trial_runs(client, "aae/digits")
    runs = {child.data.tags["aae.trial_id"]: child for child in children}
    for trial in ledger.trials:
        points = client.get_metric_history(runs[trial.name].info.run_id, "val/reconstruction_mse")
        assert [point.step for point in points] == list(range(1, trial.epoch + 1))
        logged = runs[trial.name].data.params
        expected = ("16", "0.99") if trial.number > 1 else (str(trial.params["model.latent_dim"]), "0.999")
        assert (logged["model.latent_dim"], logged["optim.beta2"]) == expected

    again = resume(tmp_path, environment, "--extend", "digits", "study.budget.trials=3", code=2)
    assert "has 4 trials already" in again
    shown = resume(tmp_path, environment, "--extend", "digits", "study.budget.trials=5", "train.epochs=300")
    assert "could not be" not in shown and "aae-digits-decoder version 2, champion" in shown
    (folder,) = (path.parent for path in tmp_path.glob("runs/*/journal.jsonl"))
    (tmp_path / "other").mkdir()  # from where another database of MLflow is the default
    run(tmp_path / "other", environment, "tune", "--extend", str(folder), "study.budget.trials=6", "train.epochs=9")
    assert not (tmp_path / "other" / "mlflow.db").exists() and len(trial_runs(client, "aae/digits")[1]) == 6

    warm = ("--warm-start", "digits", *SMALL, "study.name=again", "study.budget.trials=1")
    done = run(tmp_path, environment, "tune", *warm)
    assert "2 finished trials fit the space, of 6 read" in done.stdout, done.stdout
