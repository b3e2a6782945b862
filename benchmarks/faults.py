"""Faults, one after another, into running studies: python benchmarks/faults.py --faults 20 --seed 0 --json faults.json

A study is started with the real command, and random processes of it are killed, stopped or signalled at random moments,
MLflow's database is locked, its artifact root taken away, the disk under the study filled; where the driver has ended,
the study is resumed. When it has ended as planned, the invariants are checked: every trial once in the journal,
Optuna's copy and MLflow, no gap and no doubled epoch, nothing RUNNING, no process left, the champion loads. With one
gang, of one worker or of two, the final metrics are those of a study that nobody disturbed, bit for bit. To fill a disk
takes the right to mount one, a tmpfs; without it the other faults are tried.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # run as a file: the package is found from the root, by the commands too
    sys.path.insert(0, str(Path(__file__).parents[1]))
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])

import optuna

from aae_ray.search.journal import read_events
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import State, StudyEnd

TRIALS, EPOCHS = 4, 120
STUDY = (
    f"study.budget.trials={TRIALS}",
    f"train.epochs={EPOCHS}",
    "health.stop=false",
    "study.finalists=best",
    "study.max_failures=50",
    "study.budget.failures_in_a_row=50",
)
MOST_PER_STUDY = 4
DISK_MB = 400  # of a study's own disk, where one can be mounted
MARK = "AAE_FAULTS_MARK"
PATIENCE = 400.0  # seconds for a session of a study
END_SECONDS = 120.0  # for the processes of a study to end: Ray's agents take a minute to notice a kill


class Shape(NamedTuple):
    """The gangs of a study."""

    gangs: int
    workers: int

    def __str__(self) -> str:
        return f"{self.gangs} x {self.workers}"


SHAPES = (Shape(1, 1), Shape(2, 1), Shape(1, 2))


@contextmanager
def own_disk(folder: Path) -> Iterator[None]:
    """A small disk under a folder for as long as the study takes, if we may mount one; what was on it stays."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    mounted = (
        shutil.which("mount") is not None and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    )
    try:
        yield
    finally:
        if mounted:
            kept = folder.with_name(f"{folder.name}.kept")
            shutil.copytree(folder, kept)
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
            shutil.copytree(kept, folder, dirs_exist_ok=True)
            shutil.rmtree(kept)


def heed_signals() -> None:
    """In a new process: what is ignored here, as by nohup, is not ignored there."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Study:
    """A study in a folder of its own, driven by the real commands."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        self.folder, self.shape = folder, shape
        self.environment = {**os.environ, MARK: str(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
        self.process: subprocess.Popen[bytes] | None = None
        self.sessions = 0

    def start(self) -> None:
        gangs = (f"study.concurrent_trials={self.shape.gangs}", f"study.workers_per_trial={self.shape.workers}")
        self._run("tune", *STUDY, *gangs)

    def resume(self) -> None:
        if self.study is None:  # it was killed before it had begun
            self.start()
        else:
            self._run("tune", "--resume", str(self.study))

    def _run(self, name: str, *arguments: str) -> None:
        self.sessions += 1
        with (self.folder / f"session_{self.sessions}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"aae_ray.{name}", *arguments],
                cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=heed_signals,
            )  # fmt: skip

    @property
    def log(self) -> str:
        return (self.folder / f"session_{self.sessions}.log").read_text(errors="replace")

    @property
    def study(self) -> Path | None:
        journals = [path for path in self.folder.glob("runs/*/journal.jsonl") if path.stat().st_size]
        return journals[0].parent if journals else None

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def reports(self) -> int:
        """How often its trials have reported."""
        return 0 if self.study is None else (self.study / "journal.jsonl").read_bytes().count(b'"event":"reported"')

    @property
    def ended(self) -> bool:
        """Whether the study has ended as planned, by its journal."""
        return self.study is not None and Ledger.replay(read_events(self.study)).end is StudyEnd.PLANNED

    def processes(self, name: str = "") -> list[int]:
        """The processes of the study, found by the mark in their environment."""
        pids = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                mine = f"{MARK}={self.folder}".encode() in (path / "environ").read_bytes().split(b"\0")
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if mine and name in command and (path / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    pids.append(int(path.name))
            except OSError:
                continue
        return pids


# ------------------------------------------------------------------------------------------------------------- faults


Inject = Callable[[Study, random.Random], bool]  # whether it hit something


class Fault(NamedTuple):
    inject: Inject
    ends: bool = False  # the session


def _signal(number: signal.Signals, name: str | None, seconds: float = 0.0) -> Inject:
    """Send a signal to a process of this name, the driver if there is none; continue it after some seconds."""

    def inject(study: Study, luck: random.Random) -> bool:
        assert study.process is not None
        pids = [study.process.pid] if name is None else study.processes(name)
        if not pids or study.process.poll() is not None:
            return False
        pid = luck.choice(pids)
        try:
            os.kill(pid, number)
            if seconds:
                time.sleep(seconds)
                os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return False
        return True

    return inject


def _group(study: Study, luck: random.Random) -> bool:
    assert study.process is not None
    if study.process.poll() is not None:
        return False
    os.killpg(study.process.pid, signal.SIGTERM)
    return True


def _locked(study: Study, luck: random.Random) -> bool:
    """Another process holds MLflow's database."""
    path = study.folder / "mlflow.db"
    if not path.exists() or not study.runs:
        return False

    def hold() -> None:
        try:
            with sqlite3.connect(path, timeout=5) as connection:
                connection.execute("BEGIN EXCLUSIVE")
                time.sleep(8)
                connection.rollback()
        except sqlite3.OperationalError:
            return

    threading.Thread(target=hold, daemon=True).start()
    return True


def _artifacts_away(study: Study, luck: random.Random) -> bool:
    """The artifact root cannot be written for a while."""
    path = study.folder / "mlartifacts"
    if not path.is_dir() or not study.runs:
        return False
    hidden = path.with_name("mlartifacts.away")
    path.rename(hidden)
    path.write_text("not a folder")
    time.sleep(1)
    path.unlink()
    hidden.rename(path)
    return True


def _full(left_mb: float) -> Inject:
    """The disk under the study has so little left, until the study has ended."""

    def inject(study: Study, luck: random.Random) -> bool:
        disk = study.folder / "runs"
        if not disk.is_mount() or study.process is None or study.process.poll() is not None:
            return False
        filler = disk / "filler"
        with suppress(OSError), filler.open("wb") as file:  # the last block may not fit: then the disk is full
            while shutil.disk_usage(disk).free > left_mb * 1e6:
                file.write(bytes(min(1 << 20, max(4096, shutil.disk_usage(disk).free - int(left_mb * 1e6)))))
                file.flush()
        try:
            finish(study)
        finally:
            filler.unlink()
        return True

    return inject


def _signals(name: str, *, ends: bool = False) -> dict[str, Fault]:
    """Kill a process of this name, or stop it for a while."""
    return {
        f"{name} SIGKILL": Fault(_signal(signal.SIGKILL, TITLES[name]), ends),
        f"{name} SIGSTOP for 4 s": Fault(_signal(signal.SIGSTOP, TITLES[name], 4)),
    }


TITLES = {  # of processes, by which they are found
    "trial": "Trainable",
    "gang worker": "RayTrainWorker",
    "mailbox": "ray::MailboxHub",
    "raylet": "raylet/raylet",
    "GCS": "gcs_server",
}
FAULTS: tuple[Mapping[str, Fault], ...] = (  # of one kind each; kinds are equally frequent
    {
        "driver SIGKILL": Fault(_signal(signal.SIGKILL, None), ends=True),
        "driver SIGTERM": Fault(_signal(signal.SIGTERM, None), ends=True),
        "driver SIGHUP": Fault(_signal(signal.SIGHUP, None), ends=True),
        "driver SIGSTOP for 4 s": Fault(_signal(signal.SIGSTOP, None, 4)),
        "group SIGTERM": Fault(_group, ends=True),
    },
    _signals("trial"),
    _signals("gang worker"),
    _signals("mailbox"),
    _signals("raylet", ends=True),
    _signals("GCS", ends=True),
    {"disk full": Fault(_full(0)), "50 MB left on the disk": Fault(_full(50))},
    {
        "MLflow's database locked for 8 s": Fault(_locked),
        "artifact root not writable for 1 s": Fault(_artifacts_away),
    },
)


def inject_one(study: Study, luck: random.Random) -> tuple[str, Fault] | None:
    """Hit a study with one fault, the first of a random order for which there is something to hit."""
    for kind in luck.sample(FAULTS, len(FAULTS)):
        name = luck.choice(sorted(kind))
        if kind[name].inject(study, luck):
            return name, kind[name]
    return None


# --------------------------------------------------------------------------------------------------------- invariants


def violations(study: Study, expected: Mapping[int, Any] | None) -> list[str]:
    """What is wrong with a study that has ended; nothing, if nothing was lost."""
    from mlflow import MlflowClient

    wrong: list[str] = []
    assert study.study is not None
    ledger = Ledger.replay(read_events(study.study))
    if [trial.number for trial in ledger.trials] != list(range(TRIALS)) or ledger.open:
        wrong.append(f"the journal has {len(ledger.trials)} trials, {len(ledger.open)} of them open")
    failed = [trial for trial in ledger.trials if trial.state is State.FAILED]
    wrong += [f"{trial.name} failed: {trial.message}" for trial in failed]

    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(study.study / "optuna_journal.log"))
    )
    (summary,) = optuna.get_all_study_summaries(storage)
    copied = optuna.load_study(study_name=summary.study_name, storage=storage).trials
    names = sorted(trial.user_attrs["trial"] for trial in copied)
    if names != [trial.name for trial in ledger.trials]:
        wrong.append(f"Optuna's copy has {names}")
    wrong += [
        f"Optuna's copy of {trial.number} is {trial.state.name}" for trial in copied if not trial.state.is_finished()
    ]

    uri = f"sqlite:///{study.folder}/mlflow.db"
    client = MlflowClient(uri, registry_uri=uri)
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    children = [run for run in runs if run.data.tags.get("aae.run_kind") == "trial"]
    counts = collections.Counter(run.data.tags["aae.trial_id"] for run in children)
    if counts != {trial.name: 1 for trial in ledger.trials} or len(runs) != TRIALS + 1:
        wrong.append(f"MLflow has {dict(counts)} and {len(runs)} runs")
    wrong += [f"{run.info.run_name} is RUNNING" for run in runs if run.info.status == "RUNNING"]
    for run in children:
        trial = ledger.trials[int(run.data.tags["aae.trial_id"][1:])]
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "val/reconstruction_mse")]
        if steps != list(range(1, trial.epoch + 1)):
            wrong.append(f"MLflow has epochs {steps} of {trial.name}, which trained {trial.epoch}")
    if expected is not None and results(ledger) != expected:
        wrong.append("final metrics differ from those of the undisturbed study")
    deadline = time.monotonic() + END_SECONDS
    while (left := study.processes()) and time.monotonic() < deadline:
        time.sleep(0.5)
    wrong += [f"process {pid} is left" for pid in left]
    done = subprocess.run(
        [sys.executable, "-m", "aae_ray.generate", "aae-digits-decoder", "--count", "4"],
        cwd=study.folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        wrong.append(f"the champion cannot be loaded: {done.stderr.strip()}")
    return wrong


def results(ledger: Ledger) -> dict[int, Any]:
    """What a study found: of each trial its parameters, its end and its final metrics, but for its speed."""
    return {
        trial.number: (
            trial.params,
            trial.reason,
            {name: value for name, value in trial.metrics.items() if not name.startswith("perf/")},
        )
        for trial in ledger.trials
    }


# ------------------------------------------------------------------------------------------------------------ the run


def finish(study: Study, seconds: float = PATIENCE) -> None:
    """Wait for a session to end. Raises TimeoutExpired when it does not."""
    assert study.process is not None
    study.process.wait(seconds)


def wait_for_a_moment(study: Study, luck: random.Random) -> None:
    """Wait 2 to 14 s or, half of the time, for the next report of a trial and up to 8 s more; or for the end."""
    assert study.process is not None
    reported, after_report, moment = study.reports, luck.random() < 0.5, time.monotonic()
    while after_report and study.reports == reported and study.process.poll() is None:
        time.sleep(0.1)
        moment = time.monotonic()
    moment += luck.uniform(0, 8) if after_report else luck.uniform(2, 14)
    while time.monotonic() < moment and study.process.poll() is None:
        time.sleep(0.1)


def disturbed(folder: Path, shape: Shape, luck: random.Random, most: int, expected: Any) -> tuple[list[str], list[str]]:
    """One study with up to so many faults: those that hit it, and what is wrong afterwards."""
    study = Study(folder, shape)
    injected: list[str] = []
    study.start()
    try:
        while True:
            wait_for_a_moment(study, luck)
            if len(injected) < most and (hit := inject_one(study, luck)) is not None:
                name, fault = hit
                injected.append(name)
                if fault.ends:
                    finish(study)
            if len(injected) >= most:
                finish(study)
            if study.process is not None and study.process.poll() is not None:
                if study.ended:
                    return injected, violations(study, expected)
                if study.sessions > 3 * most + 3:
                    return injected, [f"the study does not end after {study.sessions} sessions: {study.log[-500:]}"]
                study.resume()
    except subprocess.TimeoutExpired:
        return injected, [f"a session did not end within {PATIENCE:g} s after {injected[-1:]}: {study.log[-500:]}"]
    except Exception as error:
        return injected, [f"the benchmark itself failed: {type(error).__name__}: {error}"]
    finally:
        for pid in study.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def undisturbed(folder: Path, shape: Shape) -> dict[int, Any]:
    """The results of a study without faults. Raises AssertionError where it breaks an invariant by itself."""
    folder.mkdir(parents=True)
    study = Study(folder, shape)
    study.start()
    finish(study)
    assert study.ended and study.study is not None, study.log
    wrong = violations(study, None)
    assert not wrong, wrong
    return results(Ledger.replay(read_events(study.study)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="studies at a time")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for the studies; a temporary one if none")
    arguments = parser.parse_args()
    root = arguments.keep or Path(tempfile.mkdtemp(prefix="faults"))
    expected = {
        shape: undisturbed(root / f"whole_{shape}".replace(" ", ""), shape) for shape in SHAPES if shape.gangs == 1
    }
    hits: collections.Counter[str] = collections.Counter()
    lost: list[dict[str, Any]] = []
    began, studies = time.monotonic(), 0
    lock = threading.Lock()

    def run_studies() -> None:
        nonlocal studies
        while True:
            with lock:
                if sum(hits.values()) >= arguments.faults:
                    return
                studies += 1
                number = studies
            luck = random.Random(f"{arguments.seed}/{number}")  # a study's faults do not hang on those before it
            shape, folder = luck.choice(SHAPES), root / f"study_{number}"
            folder.mkdir()
            with own_disk(folder / "runs"):
                injected, wrong = disturbed(folder, shape, luck, MOST_PER_STUDY, expected.get(shape))
            with lock:
                hits.update(injected)
                if wrong:
                    lost.append({"study": number, "gangs": str(shape), "faults": injected, "wrong": wrong})
                count = f"[{sum(hits.values())}/{arguments.faults}]"
                print(f"{count} study {number}, {shape}: {', '.join(injected)}: {wrong or 'nothing lost'}", flush=True)
                if arguments.json:
                    result = {"faults": sum(hits.values()), "studies": studies, "by_fault": dict(hits), "lost": lost,
                              "seconds": time.monotonic() - began}  # fmt: skip
                    arguments.json.write_text(json.dumps(result, indent=1))
            if not (wrong or arguments.keep):
                shutil.rmtree(folder, ignore_errors=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        for future in [pool.submit(run_studies) for _ in range(arguments.jobs)]:
            future.result()
    print(f"{sum(hits.values())} faults in {studies} studies, {len(lost)} studies with a loss")
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
