"""Mistakes on the command line: a sentence and exit code 2, before Ray starts, and nothing left behind."""

import base64
import shutil
import socket
import sys
import threading
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import pytest
import ray
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution

from aae_ray.cli import run_command
from aae_ray.datasets.dataset import Dataset
from aae_ray.errors import SettingsError, UserError
from aae_ray.search.distributions import Space
from aae_ray.search.space import Plan, read_plan
from aae_ray.settings import Settings, replace
from aae_ray.study.checks import checked, idle_settings, start_advice
from aae_ray.study.plans import study_plan, training_plan
from aae_ray.tracking.address import check_answers
from tests.study.commands import run
from tests.test_yaml_text import FOREIGN

ROOT = Path(__file__).parents[2]


def test_a_mistake_in_a_process_of_its_own(tmp_path: Path, environment: dict[str, str]) -> None:
    done = run(tmp_path, environment, "tune", "train.epoch=3", code=2)
    assert "Did you mean train.epochs?" in done.stderr and "Traceback" not in done.stderr and not done.stdout
    assert not any(tmp_path.iterdir())


SEARCHED_TASK = (
    "study.budget.trials=2",
    "space.task.type=categorical",
    "space.task.choices=[unsupervised, label_informed]",
)
SEARCHED_PARTS = tuple(f"space.model.prior_components.{part}" for part in ("type=int", "low=4", "high=10"))
SEARCHED_NETWORK = (
    "study.budget.trials=2",
    "space.model.network.type=categorical",
    "space.model.network.choices=[dense, convolutional]",
)


DASHES = (
    ("tune", ("--train.epochs=3",), "train.epochs=3"),
    ("tune", ("--train.epochs", "3"), "train.epochs=3"),
    ("train", ("-train.epochs=3",), "train.epochs=3"),
    ("tune", ("--epochs", "--dry-run"), "train.epochs=VALUE"),
    ("evaluate", ("x", "--data.path=y"), "data.path=y"),
)
OTHERWISE = (
    "train.epochs:3",
    "train.epochs: 3",
    "train.epochs|=|3",
    "train.epochs|=3",
    "train.epochs=|3",
    "train.epochs|3",
)
AS_KEY_VALUE = "settings are given as key=value without spaces, as train.epochs=3\n"


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("tune", ("train.epoch=3", "model.prior=gausian"), "Did you mean train.epochs?"),
        ("tune", ("nowhere.yaml",), "nowhere.yaml: cannot be read"),
        ("tune", ("a.yaml", "b.yaml"), "expected one file"),
        ("tune", ("study.objectives=[val/jsd]",), "Did you mean val/jsd_nats?"),
        *((name, arguments, f"settings are given without dashes, as {advice}\n") for name, arguments, advice in DASHES),
        *(("tune", tuple(text.split("|")), f"{' '.join(text.split('|'))}: {AS_KEY_VALUE}") for text in OTHERWISE),
        ("tune", ("--verbos",), "--verbos is not an option. Did you mean --verbose?\n"),
        ("tune", ("--dry_run",), "--dry_run is not an option. Did you mean --dry-run?\n"),
        ("status", ("-x",), "-x is not an option. The options are --json, --folder, --healthy.\n"),
        ("tune", ("--dry-run=1",), "--dry-run is a switch and takes no value\n"),
        ("tune", ("--resume",), "--resume needs a value\n"),
        (
            "tune",
            ("--confirm", "2", "study.confirm.finalists=3", "--dry-run"),
            "say the same thing twice; leave one of",
        ),
        ("tune", ("--resume", "--verbose"), "--resume needs a value before --verbose\n"),
        ("train", ("--workers", "two"), "--workers: expected a whole number of at least 1, got 'two'\n"),
        ("train", ("--workers=0",), "--workers: expected a whole number of at least 1, got '0'\n"),
        ("generate", ("a", "--count=1e9"), "--count: expected a whole number of at least 1 and at most"),
        ("generate", (), "NAME is missing; see --help\n"),
        ("status", ("a", "b"), "'b' is more than this command takes; see --help\n"),
        ("tune", ("tracking.uri=file:///tmp/x",), "not a server or database of MLflow"),
        ("tune", ("data.name=own",), "own"),
        ("train", ("model.hidden=wide",), "model.hidden"),
        ("train", ("train.batch_size=5000", "--dry-run"), "train.batch_size is more than the 1079 training images"),
        ("train", ("model.network=convolutional", "model.channels=8-8-8-8-8"), "model.channels has 5 layers"),
        (
            "tune",
            ("study.constraints=[val/nmi >= 0.5]", "--dry-run"),
            "study.constraints: val/nmi is not measured by task unsupervised",
        ),
        ("tune", ("study.objectives=[val/nmi]", "--dry-run"), "val/nmi is not measured by task unsupervised"),
        ("tune", ("data.name=mnits", "--dry-run"), "mnits"),
        ("tune", ("--warm-start", "digit", "--dry-run"), "no study is called digit"),
        ("tune", ("tracking.uri=file:///tmp/x", "--dry-run"), "not a server or database of MLflow"),
        ("tune", ("/dev/null",), "/dev/null has no `space:` block, so its 24 trials would all be the same"),
        ("generate", ("x", "--out", "nowhere/x.png"), "there is no folder"),
        ("evaluate", ("x", "--out", "x.jpg"), "give a name that ends in .png"),
        ("tune", ("task=clustering", "model.clusters=200"), "model.clusters is more than train.batch_size can fill"),
        ("train", ("model.normalization=batch", "train.batch_size=1"), "batch needs a train.batch_size of at least 2"),
        ("tune", ("study.objectives=[val/nmi]",), "val/nmi is not measured by task unsupervised on data.name digits"),
        (
            "tune",
            ("study.objectives=[val/nmi]", "study.pruner.metric=val/part_error"),
            "study.pruner.metric: val/part_error is not measured by",
        ),
        ("tune", (*SEARCHED_TASK, "model.prior=mixture", "model.prior_components=7"), "7 components of the mixture"),
        ("tune", (*SEARCHED_TASK, *SEARCHED_PARTS, "model.prior=mixture"), "4 components of the mixture"),
        (
            "tune",
            ("task=semi_supervised", "data.labels=5", "study.objectives=[val/nmi]"),
            "data.labels gives 5 labels to 10 classes, fewer than one for each; give 10 or more\n"
            "command line: study.objectives: val/nmi is not measured by task semi_supervised",
        ),
        ("tune", (*SEARCHED_NETWORK, "model.channels=8-8-8-8-8"), "model.channels has 5 layers"),
        ("tune", ("task=semi_supervised", "data.labels=5"), "data.labels gives 5 labels to 10 classes"),
        ("train", ("task=label_informed", "model.prior=mixture", "model.prior_components=7"), "7 components"),
    ],
)
def test_mistakes_are_sentences_with_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    arguments: tuple[str, ...],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started for a mistake"))
    with pytest.raises(SystemExit) as end:
        run_command(getattr(import_module(f"aae_ray.{name}"), name), name)
    told = capsys.readouterr().err
    assert end.value.code == 2 and sentence in told and not FOREIGN.search(told)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "mlflow.db").exists()


def refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *changes: str) -> list[str]:
    """What is told of a study before it starts, without a GPU in sight."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SettingsError) as caught:
        checked(read_plan(None, changes))
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            "train.device=cuda",
            "command line: train.device is cuda, for which each worker needs a GPU; this machine has none",
        ),
        (
            "study.resources_per_worker.GPU=1",
            "needs GPU 1 on a node for each worker, GPU 1 at once, and the node has GPU 0",
        ),
        (
            "study.resources_per_worker={gpu: 1}",
            "study.resources_per_worker: this machine has no gpu. Did you mean GPU?",
        ),
        ("study.resources_per_worker.CPU=5000", "needs CPU 5000 on a node for each worker"),
        (
            "study.workers_per_trial=5000",
            "command line: study.workers_per_trial=5000 with study.resources_per_worker.CPU=1 needs CPU 1 on a node",
        ),
        (
            "train.batch_size=5000",
            "command line: train.batch_size is more than the 1079 training images of data.name digits",
        ),
        (
            "space.train.batch_size={type: int, low: 50, high: 1080}",
            "train.batch_size is more than the 1079 training images of data.name digits, got 1080",
        ),
        ("study.folder=file.txt", "study.folder file.txt: {folder}/file.txt is a file"),
        ("tracking.uri=http://127.0.0.1:9", "tracking.uri http://127.0.0.1:9 does not answer: nothing listens there"),
        ("tracking.uri=http://no-host.invalid", "does not answer: "),
        ("tracking.uri=sqlite:////proc/x.db", "/proc/x.db cannot be written to"),
        ("tracking.uri=sqlite:///file.txt", "{folder}/file.txt is not an SQLite database; give another file"),
        ("tracking.uri=postgresql+nodriver://host/db", "is not the address of a database"),
        ("tracking.uri=mysql+mysqldb://u:SECRET@127.0.0.1:9/db", "tracking.uri mysql+mysqldb://127.0.0.1:9/db "),
    ],
)
def test_what_is_known_before_the_start_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: str, sentence: str
) -> None:
    (tmp_path / "file.txt").write_text("no database")
    (told,) = refusals(tmp_path, monkeypatch, changes)
    assert sentence.format(folder=tmp_path) in told and told.startswith("command line: ")
    assert "SECRET" not in told and not FOREIGN.search(told)


def test_all_that_is_known_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ("train.device=cuda", "tracking.uri=nowhere", "train.batch_size=5000", "study.objectives=[val/nmi]")
    found = refusals(tmp_path, monkeypatch, *wrong)
    assert len(found) == 4
    for key in ("tracking.uri", "train.device", "train.batch_size", "study.objectives"):
        assert sum(told.startswith(f"command line: {key}") for told in found) == 1
    found = refusals(tmp_path, monkeypatch, "data.name=mnits", "tracking.uri=nowhere")
    assert len(found) == 2 and "Did you mean mnist?" in found[1]


def test_a_server_that_never_answers_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aae_ray.tracking.address.ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match="does not answer: no answer within 0.2 s"):
            check_answers(address)


@pytest.mark.parametrize(
    ("answers", "taken"),
    [
        ({"/health": (200, "text/html", b"OK\n")}, True),
        ({"/api/": (200, "application/json", b'{"experiments": []}')}, True),  # behind a proxy that hands on this alone
        ({"/": (407, "text/html", b"who are you?")}, True),
        ({"/": (503, "text/html", b"not yet")}, True),
        ({"/health": (302, "text/html", b"/login"), "/login": (200, "text/html", b"<form>")}, True),
        ({}, False),
        ({"/": (404, "application/json", b'{"detail": "Not Found"}')}, False),
        ({"/": (200, "text/html", b"<html>")}, False),
    ],
)
def test_a_server_that_is_not_mlflow_is_told(answers: dict[str, tuple[int, str, bytes]], taken: bool) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = [answer for path, answer in answers.items() if self.path.startswith(path)]
            status, kind, content = found[0] if found else (404, "text/html", b"no such page")
            self.send_response(status)
            if status == 302:
                self.send_header("Location", content.decode())
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        told = (
            nullcontext() if taken else pytest.raises(UserError, match="answers, but is no server of MLflow; see that")
        )
        try:
            with told:
                check_answers(f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()


BASIC = "Basic " + base64.b64encode(b"ann:right").decode()


@pytest.mark.parametrize(
    ("account", "variables", "status"),
    [
        ("", {}, 401),
        ("", {"MLFLOW_TRACKING_TOKEN": "studies.right"}, None),
        ("", {"MLFLOW_TRACKING_TOKEN": "studies.wrong"}, 401),
        ("", {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "right"}, None),
        ("", {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "wrong"}, 401),
        ("", {"MLFLOW_TRACKING_TOKEN": "studies.elsewhere"}, 403),
        ("ann:right@", {}, None),
        ("ann:wrong@", {}, 401),
    ],
)
def test_a_server_that_asks_for_an_account_is_told_before_a_study_of_which_it_would_take_nothing(
    account: str, variables: dict[str, str], status: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            given = self.headers.get("Authorization")
            let_in = given in (BASIC, "Bearer studies.right") or self.path == "/health"  # which MLflow tells everybody
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200 if let_in else 403 if given == "Bearer studies.elsewhere" else 401)
            self.end_headers()
            self.wfile.write(b"OK" if self.path == "/health" else b"{}" if let_in else b"You are not authenticated.")

        do_GET = do_POST = do

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("HOME", str(tmp_path))  # MLflow looks for an account there too
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    told = rf"127.0.0.1:\d+ asks for an account .* \({status}\); set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME"
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with nullcontext() if status is None else pytest.raises(UserError, match=told) as caught:
                check_answers(f"http://{account}127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
    if caught is not None:
        assert "wrong" not in str(caught.value)
        assert ("MLFLOW_SERVER_ALLOWED_HOSTS" in str(caught.value)) == (status == 403)


def test_data_in_place_of_a_study_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faces.csv").write_text("a,b\n1,2\n")
    (tmp_path / "cats").mkdir()
    for file, name in (("faces.csv", "faces"), ("cats", "cats")):
        for plan in (study_plan, training_plan):
            with pytest.raises(UserError, match=f"{file} holds data, .* data.name={name} data.path={file}"):
                plan(file, ())
    (tmp_path / "digits").mkdir()  # hides no study that ships
    assert study_plan(None).settings.data.name == "digits" and study_plan("digits").space
    (tmp_path / "cats" / "journal.jsonl").touch()
    with pytest.raises(UserError, match="cats is the folder of a study: --resume cats goes on with it"):
        study_plan("cats")


def test_what_leaves_no_rungs_and_no_room_is_noted(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Plan(replace(Settings(), {"study.pruner.grace_period": 27}), {})
    (told,) = start_advice(short, digits)
    assert told.startswith("study.pruner.grace_period=27 leaves no rung before train.epochs=27: study.pruner.type=asha")
    assert start_advice(Plan(replace(short.settings, {"study.pruner.type": "none"}), {}), digits) == []
    assert start_advice(Plan(replace(short.settings, {"study.budget.trials": 1}), {}), digits) == []
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    (told,) = start_advice(Plan(Settings(), {}), digits)
    assert told.startswith("checkpoints may take ") and "0 MB are free under" in told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ((), "until 10 trials are complete, and with study.pruner.type=asha about 3 of 24 will be"),
        (("study.budget.trials=80",), "about 9 of 80 will be"),
        (("study.budget.trials=100",), None),
        (("study.sampler.n_startup_trials=2",), None),
        (("study.pruner.type=none",), None),
        (("study.pruner.type=none", "study.budget.trials=10"), "about 10 of 10 will be before the last one is drawn"),
        (("study.pruner.type=pbt", "study.budget.trials=100"), "about 0 of 100 will be"),
        (("study.sampler.type=tpe",), None),
    ],
)
def test_a_model_that_will_hardly_learn_is_noted(changes: tuple[str, ...], told: str | None, digits: Dataset) -> None:
    plan = study_plan("digits", ("study.sampler.type=gp", *changes))
    found = [text for text in start_advice(plan, digits) if "study.sampler" in text]
    assert len(found) == (told is not None) and (told is None or told in found[0])
    assert all("study.sampler.n_startup_trials" in text for text in found)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data.labels": 100}, "data.labels=100 has no effect: task unsupervised learns from no labels"),
        ({"task": "vae", "model.posterior": "gaussian", "train.r1_penalty": 0.5}, "train.r1_penalty=0.5 has no effect"),
        ({"task": "wae_mmd", "model.discriminator_hidden": (8, 8)}, "model.discriminator_hidden=8-8 has no effect"),
        ({"train.mmd_weight": 3.0}, "train.mmd_weight=3 has no effect"),
        ({"train.label_noise": 0.3}, "task unsupervised has no discriminator of labels"),
        ({"model.posterior_std_floor": 0.1}, "model.posterior_std_floor=0.1 has no effect"),
    ],
)
def test_settings_that_nothing_feels_are_noted(changes: dict[str, object], sentence: str) -> None:
    (told,) = idle_settings(Plan(replace(Settings(), changes), {}))
    assert sentence in told


def test_settings_that_some_trials_feel_are_not() -> None:
    labels = replace(Settings(), {"data.labels": 100})
    some = CategoricalDistribution(["unsupervised", "semi_supervised"])
    assert idle_settings(Plan(labels, {"task": some})) == []
    space: Space = {"train.r1_penalty": FloatDistribution(0, 1)}
    assert idle_settings(Plan(Settings(), space)) == []
    (told,) = idle_settings(Plan(replace(Settings(), {"task": "wae_mmd"}), space))
    assert told == "train.r1_penalty is searched and has no effect: task wae_mmd has no discriminator"


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "search_spaces").glob("*.yaml")))
def test_no_study_that_ships_has_settings_without_effect(name: str) -> None:
    assert idle_settings(read_plan(str(ROOT / "search_spaces" / f"{name}.yaml"))) == []
