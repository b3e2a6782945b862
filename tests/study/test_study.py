"""Whole studies through the commands a user types: real Ray, real Optuna, real MLflow, real processes killed."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import optuna
import pandas
import pytest
from mlflow import MlflowClient
from PIL import Image

from tests.study.commands import command, run

# What Ray and its friends like to say, and a user must not see.
CHATTER = re.compile(r"ray|raylet|\(pid=|Checkpoint|token|WARNING|Warning|Trial status|INFO|Traceback", re.IGNORECASE)
OURS = re.compile(r"aae_ray|starting Ray|stopping Ray|coverage warning")


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/mlflow.db", registry_uri=f"sqlite:///{folder}/mlflow.db")


def trial_runs(client: MlflowClient, experiment: str) -> tuple[mlflow.entities.Run, list[mlflow.entities.Run]]:
    place = client.get_experiment_by_name(experiment)
    assert place is not None
    runs = client.search_runs([place.experiment_id])
    (parent,) = [run for run in runs if run.data.tags["aae.run_kind"] == "study"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(runs) - 1
    return parent, children


def optuna_states(folder: Path) -> list[str]:
    (journal,) = folder.glob("runs/*/optuna_journal.log")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    (summary,) = optuna.get_all_study_summaries(storage)
    return [trial.state.name for trial in optuna.load_study(study_name=summary.study_name, storage=storage).trials]


SHORT = ("study.budget.trials=5", "train.epochs=9", "train.batch_size=50", "health.stop=false")


def test_the_main_command_from_start_to_registered_decoder(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "50% #1 ü"  # nothing of a folder's name may be taken for a part of an address
    folder.mkdir()
    done = run(folder, environment, "tune", *SHORT)
    text = done.stdout
    assert "Pareto front" in text and "best trial" in text and re.search(r"test images +test/recon\S+ 0\.0\d+", text)
    assert re.search(r"samples +quality/fid_local \d.* \(floor .*quality/parzen_nats -?\d.* \(real images \d", text)
    assert "is not evidence of better samples" in text and re.search(r"hypervolume +0\.\d+ of 1 after \d+ epochs", text)
    assert "aae-digits-decoder version 1, champion (the first of its name), with aae-digits-encoder" in text
    assert (
        "python -m aae_ray.generate aae-digits-decoder" in text and "mlflow ui --backend-store-uri 'sqlite:///" in text
    )
    noise = [line for line in (done.stdout + done.stderr).splitlines() if CHATTER.search(OURS.sub("", line))]
    assert not noise, noise

    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlartifacts", "runs"}
    (table,) = folder.glob("runs/*/trials.parquet")
    trials = pandas.read_parquet(table)
    assert len(trials) == 5 and trials["chosen"].sum() == 1 and trials["test/reconstruction_mse"].count() >= 1
    client = client_of(folder)
    parent, children = trial_runs(client, "aae/digits")
    assert parent.info.status == "FINISHED" and len(children) == 5
    assert parent.data.tags["mlflow.source.name"].startswith("python -m aae_ray.tune study.budget.trials=5")
    if (Path(__file__).parents[2] / ".git").exists():
        assert re.fullmatch("[0-9a-f]{40}", parent.data.tags["mlflow.source.git.commit"])
    states = optuna_states(folder)
    assert sorted(states) == sorted(
        {"complete": "COMPLETE", "failed": "FAIL"}.get(c.data.tags["aae.outcome"], "PRUNED") for c in children
    )
    assert "COMPLETE" in states
    pages = {"plots.html", "report.html", "overview.png", "best_config.yaml"}
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} >= pages
    for child in children:
        tags, params, metrics = child.data.tags, child.data.params, child.data.metrics
        assert tags["aae.stop_reason"] and tags["aae.seed"] == "0" and tags["aae.data_digest"]
        assert {
            "model.latent_dim",
            "optim.discrimination_lr",
            "train.reconstruction_reduction",
            "seed",
        } <= params.keys()
        assert {
            "val/reconstruction_mse",
            "val/jsd_nats",
            "best/val/jsd_nats",
            "adv/discriminator_loss_nats",
        } <= metrics.keys()
        epochs = [point.step for point in client.get_metric_history(child.info.run_id, "val/reconstruction_mse")]
        assert epochs == list(range(1, len(epochs) + 1))
        pictures = {Path(item.path).name for item in client.list_artifacts(child.info.run_id, "figures")}
        assert pictures - {"nearest.png"} == {"reconstructions.png", "samples.png", "codes.png"}
        assert [data.dataset.digest for data in child.inputs.dataset_inputs] == [tags["aae.data_digest"]]

    version = client.get_model_version_by_alias("aae-digits-decoder", "champion")
    best = client.get_run(version.run_id)
    assert (
        best.info.run_id in {child.info.run_id for child in children} and "test/reconstruction_mse" in best.data.metrics
    )

    made = run(folder, environment, "generate", "aae-digits-decoder", "--count", "64", "--out", "samples.png")
    assert "64 images of aae-digits-decoder version 1" in made.stdout and not made.stderr
    with Image.open(folder / "samples.png") as sheet:
        assert sheet.width >= 64 and len(sheet.convert("L").getcolors() or ()) > 10

    sheets = {Path(item.path).name for item in client.list_artifacts(best.info.run_id, "figures")}
    assert "nearest.png" in sheets and "quality/fid_local" in best.data.metrics and best.data.tags["aae.judge"]
    advice = "is not evidence of better samples"
    assert advice in best.data.tags["aae.remarks"] and advice in (version.description or "")
    judged = run(folder, environment, "evaluate", "aae-digits-decoder")
    assert (
        "quality/kid_local" in judged.stdout
        and "is not evidence of better samples" in judged.stdout
        and not judged.stderr
    )
    (evaluation,) = client.search_runs([best.info.experiment_id], "tags.`aae.run_kind` = 'evaluation'")
    assert evaluation.info.status == "FINISHED"
    for name in ("quality/fid_local", "quality/parzen_nats"):  # the same protocol: the same figures
        assert evaluation.data.metrics[name] == pytest.approx(best.data.metrics[name], rel=1e-3)

    config = next(folder.glob("runs/*/best_config.yaml"))
    checked = run(folder, environment, "tune", str(config), "study.budget.trials=1", "--dry-run")
    assert f"model.latent_dim: {best.data.params['model.latent_dim']}" in checked.stdout

    refused = run(folder, environment, "generate", "no-such-model", code=2)
    assert "there is no registered model 'no-such-model'" in refused.stderr
    assert "Traceback" not in refused.stderr and len(refused.stderr.splitlines()) == 1


def wait_for(what: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def processes(folder: Path, name: str = "") -> list[int]:
    """Process ids of a study started in this folder: its environment names the folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            mine = f"AAE_TEST_MARK={folder}".encode() in (place / "environ").read_bytes().split(b"\0")
            if mine and name in (place / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(place.name))
        except OSError:
            continue
    return found


def heed_signals() -> None:
    """In a new process: what is ignored here, as in the background of a shell, is not ignored there."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    clean = {key: value for key, value in environment.items() if value} | {"AAE_TEST_MARK": str(folder)}
    return subprocess.Popen(
        command("tune", *arguments),
        cwd=folder,
        env=clean,
        stdout=(folder / "out.txt").open("w"),
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=heed_signals,
    )


def stopped_in_order(study: subprocess.Popen[str], folder: Path) -> str:
    """What a study said that Ctrl-C has ended: with its code and how to go on, no traceback, no process left behind."""
    log = folder / "out.txt"
    os.killpg(study.pid, signal.SIGINT)
    assert study.wait(timeout=90) == 130, log.read_text()
    text = log.read_text()
    assert re.search(r"kept in +runs/digits-\S+", text) and "Traceback" not in text
    assert re.search(r"resume +python -m aae_ray.tune --resume runs/digits-\S+", text)
    wait_for(lambda: not processes(folder), 20)
    return text


LONG = (
    "study.budget.trials=2",
    "train.epochs=400",
    "study.pruner.type=none",
    "health.stop=false",
    "tracking.register_model=false",
)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")
@pytest.mark.parametrize(
    ("victim", "workers", "gangs"),
    [
        pytest.param("Trainable", 1, 2, marks=pytest.mark.slow),
        pytest.param("ray::MailboxHub", 2, 1, marks=pytest.mark.slow),
    ],  # a gang of one needs no mailbox
)
def test_a_killed_process_costs_no_trial(
    tmp_path: Path, environment: dict[str, str], victim: str, workers: int, gangs: int
) -> None:
    gang = (f"study.workers_per_trial={workers}", f"study.concurrent_trials={gangs}")
    study = start(tmp_path, environment, *LONG, *gang, "train.epochs=500", "study.finalists=best")
    log = tmp_path / "out.txt"
    # A state is saved every few seconds, so a trial has begun on each gang, and is far from its end.
    wait_for(lambda: len({saved.parent for saved in tmp_path.glob("runs/*/trials/*/epoch_*")}) == gangs)
    assert "complete" not in log.read_text(), "the trials are too short to be hit: give them more epochs"
    wait_for(lambda: bool(processes(tmp_path, victim)))
    os.kill(processes(tmp_path, victim)[0], signal.SIGKILL)
    assert study.wait(timeout=240) == 0, log.read_text()
    text = log.read_text()
    assert "attempt 2" in text and "2 trials in" in text and "0 failed" in text
    _, children = trial_runs(client_of(tmp_path), "aae/digits")
    assert [child.info.status for child in children] == ["FINISHED", "FINISHED"]
    assert optuna_states(tmp_path) == ["COMPLETE", "COMPLETE"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")
def test_ctrl_c_before_any_trial_has_ended_stops_in_order(tmp_path: Path, environment: dict[str, str]) -> None:
    study = start(tmp_path, environment, *LONG, "study.budget.trials=9", "train.epochs=100000")
    log = tmp_path / "out.txt"
    wait_for(lambda: "t0001 begins" in log.read_text())
    stopped_in_order(study, tmp_path)
    parent, children = trial_runs(client_of(tmp_path), "aae/digits")
    assert parent.info.status == "KILLED"
    assert {(child.info.status, child.data.tags["aae.stop_reason"]) for child in children} == {("KILLED", "user")}
    assert set(optuna_states(tmp_path)) == {"PRUNED"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")
def test_ctrl_c_keeps_what_finished_before(tmp_path: Path, environment: dict[str, str]) -> None:
    study = start(tmp_path, environment, *LONG, "study.budget.trials=99", "train.epochs=60", "study.finalists=best")
    log = tmp_path / "out.txt"
    wait_for(lambda: "complete after 60 epochs" in log.read_text())
    stopped_in_order(study, tmp_path)
    parent, children = trial_runs(client_of(tmp_path), "aae/digits")
    assert parent.info.status == "KILLED"
    ended = [(child.info.status, child.data.tags["aae.stop_reason"]) for child in children]
    assert set(ended) <= {("FINISHED", "completed"), ("KILLED", "user")} and ("FINISHED", "completed") in ended
    assert set(optuna_states(tmp_path)) == {"COMPLETE", "PRUNED"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")
def test_ctrl_c_after_the_last_trial_still_ends_with_a_report(tmp_path: Path, environment: dict[str, str]) -> None:
    study = start(tmp_path, environment, *LONG, "study.budget.trials=1", "train.epochs=4")
    log = tmp_path / "out.txt"
    wait_for(lambda: "on the test images" in log.read_text())
    assert "1 trial in" in stopped_in_order(study, tmp_path)
    parent, (child,) = trial_runs(client_of(tmp_path), "aae/digits")
    assert (parent.info.status, child.info.status) == ("KILLED", "FINISHED")


@pytest.mark.slow
def test_train_with_two_workers_makes_the_same_records(tmp_path: Path, environment: dict[str, str]) -> None:
    told = ("train.epochs=4", "model.hidden=32-16", "--workers", "2", "--verbose")
    done = run(tmp_path, environment, "train", *told)
    assert "Started a local Ray instance" in done.stderr  # which is Ray's own, and shown when asked for
    assert "aae-digits-decoder version 1, champion" in done.stdout
    client = client_of(tmp_path)
    parent, (child,) = trial_runs(client, "aae/digits")
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert child.data.params["model.hidden"] == "32-16" and parent.data.params["study.workers_per_trial"] == "2"


@pytest.mark.slow
def test_more_workers_than_the_machine_holds_are_refused_before_the_study_starts(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    done = run(tmp_path, environment, "tune", "study.workers_per_trial=1000", code=2)
    assert "study.workers_per_trial=1000" in done.stderr and "CPU 1000 at once" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("size", ["64m", "4k"])  # as a container of Docker has it, and next to nothing
def test_a_study_needs_no_shared_memory_and_no_one_elses_rights(
    size: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("another /dev/shm takes a mount namespace, which this user cannot have")
    small = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && umask 077 && exec "$@"'
    study = command("tune", "study.budget.trials=2", "train.epochs=2", "health.stop=false")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", small, "sh", *study],
        cwd=tmp_path,
        env={**environment, "LANG": "C", "PYTHONIOENCODING": "ascii", "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "aae-digits-decoder version 1, champion" in done.stdout and done.stdout.isascii() and not done.stderr
    assert optuna_states(tmp_path) == ["COMPLETE", "COMPLETE"]
    assert not [path for path in tmp_path.rglob("*") if path.stat().st_mode & 0o077]
