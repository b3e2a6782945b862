"""Mistakes on the command line: a sentence and exit code 2, before Ray starts, and nothing left behind."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import ray
from optuna.distributions import CategoricalDistribution, FloatDistribution

from aae_ray.cli import run_command
from aae_ray.search.distributions import Space
from aae_ray.search.space import Plan, read_plan
from aae_ray.settings import Settings, replace
from aae_ray.study.checks import idle_settings
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
        ("status", ("-x",), "-x is not an option. The options are --json, --folder.\n"),
        ("tune", ("--dry-run=1",), "--dry-run is a switch and takes no value\n"),
        ("tune", ("--resume",), "--resume needs a value\n"),
        ("tune", ("--resume", "--verbose"), "--resume needs a value before --verbose\n"),
        ("train", ("--workers", "two"), "--workers: expected a whole number of at least 1, got 'two'\n"),
        ("train", ("--workers=0",), "--workers: expected a whole number of at least 1, got '0'\n"),
        ("generate", ("a", "--count=1e9"), "--count: expected a whole number of at least 1 and at most"),
        ("generate", (), "NAME is missing; see --help\n"),
        ("status", ("a", "b"), "'b' is more than this command takes; see --help\n"),
        ("tune", ("tracking.uri=file:///tmp/x",), "not a server or database of MLflow"),
        ("tune", ("data.name=own",), "own"),
        ("train", ("model.hidden=wide",), "model.hidden"),
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
            "settings: study.objectives: val/nmi is not measured by task semi_supervised",
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
