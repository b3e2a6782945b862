"""The settings tree: strict, frozen, one spelling of a key, every mistake told at once with its place."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from aae_ray.errors import Kind, Problem, SettingsError
from aae_ray.reading import Entry, build, find_problems, nest, read_overrides, read_yaml
from aae_ray.search.space import read_plan
from aae_ray.settings import Settings, dotted_fields, flatten, replace, setting
from aae_ray.settings.rules import RULES, Rule


def complaints(*overrides: str) -> list[str]:
    return [str(problem) for problem in find_problems(read_overrides(overrides))]


def test_defaults_are_good_and_every_leaf_is_described() -> None:
    run = Settings()
    assert flatten(run).keys() == dotted_fields().keys()
    assert all(field.description for field in dotted_fields().values())


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().train.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optim.reconstruction_lr=1e-4", "optim.reconstruction_lr", 1e-4),
        ("model.hidden=[128, 64]", "model.hidden", (128, 64)),
        ("model.hidden=128-64", "model.hidden", (128, 64)),
        ("model.hidden=32", "model.hidden", (32,)),
        ("optim.lr_milestones=[0.01, 0.2]", "optim.lr_milestones", (0.01, 0.2)),
        ("study.budget.wall_clock=1h30m", "study.budget.wall_clock", 5400.0),
        ("study.resources_per_worker={GPU: 1}", "study.resources_per_worker", {"GPU": 1.0}),
        ("study.resources_per_worker.GPU=0.5", "study.resources_per_worker", {"GPU": 0.5}),
        ("tracking.uri=null", "tracking.uri", None),
        ("optim.lr_milestones=0.5", "optim.lr_milestones", (0.5,)),
        ("study.objectives=val/jsd_nats", "study.objectives", ("val/jsd_nats",)),
        ("study.objectives=val/jsd_nats,val/nmi", "study.objectives", ("val/jsd_nats", "val/nmi")),
        ("data.scale=0:16", "data.scale", "0:16"),
        ("data.scale=-1:1", "data.scale", "-1:1"),
        ("data.scale=-1:1.", "data.scale", "-1:1."),
        ("data.scale=observed", "data.scale", "observed"),
        ("data.background=#ff8000", "data.background", "#ff8000"),
        ("data.background=white", "data.background", "white"),
        ("data.size=32", "data.size", "32x32"),
        ("data.size=32x24", "data.size", "32x24"),
        ("data.channels=3", "data.channels", 3),
    ],
)
def test_values_are_read_by_their_type(override: str, key: str, value: object) -> None:
    assert setting(build(read_overrides([override])), key) == value


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epoch=3", "command line: train.epoch is not a setting. Did you mean train.epochs?"),
        ("model.latentdim=3", "Did you mean model.latent_dim?"),
        ("latent_dim=3", "Did you mean model.latent_dim?"),
        ("train.epochs=abc", "train.epochs: expected a whole number, got 'abc'"),
        ("train.epochs=2.5", "train.epochs: expected a whole number, got 2.5"),
        ("train.epochs=0", "train.epochs: expected at least 1, got 0"),
        ("data.scale=16", "data.scale: expected LOW:HIGH, the values that become black and white, such as 0:16, or"),
        ("data.scale=1:1", "data.scale: expected LOW:HIGH"),
        ("data.scale=0:.inf", "data.scale: expected LOW:HIGH"),
        ("data.background=whit", "data.background: expected a colour such as white, black or '#ff8000'"),
        ("data.background=#ff800080", "data.background: expected a colour"),
        ("data.size=0", "data.size: expected HEIGHTxWIDTH in pixels such as 32x24, or one side of a square"),
        ("data.size=32x5000", "data.size: expected HEIGHTxWIDTH"),
        ("data.channels=2", "data.channels: expected 1 (grey) or 3 (colour), got 2"),
        ("train.batch_size=true", "train.batch_size: expected a number, got true or false"),
        (
            "model.prior=gausian",
            "model.prior: expected one of gaussian, uniform, mixture, swiss_roll, got 'gausian'",
        ),
        ("model.latent_dim=1", "model.latent_dim: expected at least 2, got 1"),
        ("optim.reconstruction_lr=.inf", "optim.reconstruction_lr: expected"),
        ("optim.lr_milestones=[1.5]", "optim.lr_milestones: expected less than 1"),
        ("optim.lr_milestones=1", "optim.lr_milestones: expected less than 1"),
        ("optim.lr_milestones=soon", "optim.lr_milestones: expected a list such as [0.5, 0.8], got 'soon'"),
        ("model.hidden=wide", "model.hidden: expected widths such as 128-64, got 'wide'"),
        ("model.hidden=128,64", "model.hidden: expected widths such as 128-64, got '128,64'"),
        ("study.objectives=[5]", "study.objectives: expected text, got [5]"),
        ("study.name=a/b", "study.name: expected letters, digits, dots, dashes and underscores, at most 100"),
        ("model=3", "model is a section"),
        ("study.budget.wall_clock=soon", "study.budget.wall_clock: expected a number"),
        ("study.budget.wall_clock=0", "study.budget.wall_clock: expected more than 0, got 0"),
        ("study.budget.wall_clock=0s", "study.budget.wall_clock: expected more than 0, got '0s'"),
        ("study.budget.trials=0", "study.budget.trials: expected at least 1, got 0"),
        ("study.budget.worker_hours=0", "study.budget.worker_hours: expected more than 0, got 0"),
        ("study.resources_per_worker=5", "expected a mapping of names to values, got 5"),
        (
            "study.resources_per_worker=5 study.resources_per_worker.GPU=1",
            "study.resources_per_worker: expected a mapping of names to values, got 5",
        ),
        ("model.hidden=[0,-1]", "model.hidden: expected at least 1, got [0, -1]"),
        ("model.hidden=[]", "model.hidden: expected 1 or more, got []"),
        ("data.name=a/b", "data.name"),
        (
            "train.labelled_batch_size=1 model.normalization=batch task=semi_supervised",
            "needs a train.labelled_batch_",
        ),
        ("train.mixed_precision=true train.dtype=float64", "leaves train.dtype float64 alone"),
        ("task=vae", "task vae needs model.posterior gaussian and model.prior gaussian"),
    ],
)
def test_a_mistake_is_a_sentence(override: str, expected: str) -> None:
    found = complaints(*override.split())
    assert len(found) == 1 and expected in found[0]


def test_all_mistakes_are_told_at_once() -> None:
    found = complaints(
        "train.epoch=3", "model.prior=x", "seed=-1", "data.validation_fraction=0.6", "data.test_fraction=0.6"
    )
    assert len(found) == 4
    for part in ("train.epoch is not", "model.prior: expected", "seed: expected", "must be below 1"):
        assert sum(part in text for text in found) == 1


def test_rules_about_several_keys_are_told_with_mistakes_of_a_single_one() -> None:
    """What is wrong by itself, or by another rule, hides no rule; and its default breaks none."""
    found = complaints("task=clustering", "model.clusters=200", "train.epochs=-1", "data.labels=10.5")
    assert len(found) == 3
    for part in (
        "train.epochs: expected",
        "data.labels must be a whole",
        "model.clusters is more than train.batch_size",
    ):
        assert sum(part in text for text in found) == 1
    found = complaints("data.name=a/b", "data.labels=10.5", "task=clustering", "model.clusters=200")
    assert len(found) == 3  # of a key, of two keys of a section, of two sections
    mixed = ("train.mixed_precision=true", "train.dtype=float64")
    found = complaints("task=clustering", "model.clusters=200", "train.batch_size=x", *mixed)
    assert len(found) == 2 and any("float64" in text for text in found)
    found = complaints("study.resources_per_worker.GPU=x", "task=clustering", "model.clusters=200")
    assert len(found) == 2 and sum("resources_per_worker" in text for text in found) == 1
    (alone,) = complaints("task=clustering", "model.clusters=200", "train.batch_size=x")
    assert "train.batch_size: expected" in alone


def problems_of(*overrides: str) -> list[Problem]:
    return find_problems(read_overrides(overrides))


@pytest.mark.parametrize(
    ("overrides", "keys", "kind"),
    [
        (["train.epoch=3"], ("train.epoch", "train.epochs"), Kind.UNKNOWN_KEY),
        (["qqq=3"], ("qqq",), Kind.UNKNOWN_KEY),
        (["model=3"], ("model",), Kind.SECTION),
        (["model.hidden=[0,-1]"], ("model.hidden",), Kind.VALUE),
        (["study.resources_per_worker.GPU=x"], ("study.resources_per_worker",), Kind.VALUE),
        (["task=vae"], ("task", "model.posterior", "model.prior"), Kind.RULE),
        (["data.labels=10.5"], ("data.labels",), Kind.RULE),
    ],
)
def test_a_problem_has_the_keys_that_it_concerns_and_a_kind(
    overrides: list[str], keys: tuple[str, ...], kind: Kind
) -> None:
    assert [(problem.keys, problem.kind) for problem in problems_of(*overrides)] == [(keys, kind)]


CLUSTERS = ("task=clustering", "model.clusters=200")


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ("train.epochs=3", True),
        ("train.batch_size=x", False),
        ("train.batch_sise=500", False),
        ("train=5", False),
        ("train.epoch=3", True),  # it is clear which key was meant, and it is another
        ("qqq=500", False),  # it may be meant for train.batch_size
        ("train.batch_size=100 qqq=500", True),
    ],
)
def test_a_rule_is_judged_where_the_values_of_all_its_keys_are_clear(other: str, told: bool) -> None:
    found = problems_of(*CLUSTERS, *other.split())
    assert (("task", "model.clusters", "train.batch_size") in [problem.keys for problem in found]) is told


def test_a_rule_is_told_where_the_first_of_its_keys_was_written(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train.epochs: 3\nmodel.prior: uniform\n")
    (problem,) = find_problems(read_yaml(file) | read_overrides(["task=label_informed"]))
    assert problem.where == f"{file}:2"


@pytest.mark.parametrize("value", ["foo", "[1]", "[1, 0]", "[1, x]", "[1, .nan]", "[1, true]", "true", "3", "{a: 1}"])
def test_a_prior_of_labels_that_is_none_is_told_in_one_sentence(value: str) -> None:
    (told,) = complaints("task=supervised", f"model.label_prior={value}")
    assert "model.label_prior: expected uniform, labels, or a list of two or more shares above 0" in told


@pytest.mark.parametrize("value", ["uniform", "labels", "[0.5, 0.25, 2]"])
def test_a_prior_of_labels_is_read_as_it_is_recorded(value: str) -> None:
    settings = build(read_overrides(["task=supervised", f"model.label_prior={value}"]))
    recorded = flatten(settings)["model.label_prior"]
    again = build(read_overrides(["task=supervised", f"model.label_prior={recorded}"]))
    assert again == settings


def test_no_two_rules_are_about_the_same_keys_and_all_of_them_exist() -> None:
    assert len({frozenset(rule.keys) for rule in RULES}) == len(RULES)
    assert {key for rule in RULES for key in rule.keys} <= dotted_fields().keys()


BREAKING: list[dict[str, Any]] = [
    {"data.test_path": "test.parquet"},
    {"data.kind": "images", "data.columns": ("a", "b")},
    {"data.kind": "rows", "data.image_column": "image"},
    {"data.columns": ("a", "b"), "data.image_column": "image"},
    {"data.path": "train.parquet", "data.test_path": "test.parquet", "data.scale": "observed"},
    {"data.validation_fraction": 0.6, "data.test_fraction": 0.6},
    {"data.labels": 10.5},
    {"data.crop": "none"},
    {"data.resample": "area"},
    {"task": "vae"},
    {"task": "label_informed"},
    {"task": "clustering", "model.clusters": 200},
    {"model.normalization": "batch", "train.batch_size": 1},
    {"task": "semi_supervised", "model.normalization": "batch", "train.labelled_batch_size": 1},
    {"train.mixed_precision": True, "train.dtype": "float64"},
    {"task": "supervised", "data.labels": 10},
    {"model.label_prior": "labels"},
    {"task": "clustering", "model.clusters": 3, "model.label_prior": "0.5,0.5"},
    {"study.folder": "s3://KEY:SECRET@bucket/studies"},
    {"data.path": "s3://KEY:SECRET@bucket/faces"},
    {"data.path": "faces", "data.test_path": "s3://KEY:SECRET@bucket/faces"},
    {"data.shared": "s3://KEY:SECRET@bucket/faces"},
    {"study.pruner.type": "pbt", "study.confirm.finalists": 1},
    {"study.sampler.type": "random", "study.sampler.n_startup_trials": 5},
    {"study.sampler.type": "gp", "study.sampler.n_ei_candidates": 5},
    {"study.sampler.type": "gp", "study.sampler.gamma": 0.2},
    {"study.sampler.type": "gp", "study.sampler.multivariate": True},
    {"study.sampler.type": "gp", "study.sampler.group": True},
    {"study.sampler.type": "nsga2", "study.sampler.constant_liar": False},
    {"study.sampler.type": "tpe", "study.sampler.population_size": 2},
    {"study.sampler.type": "tpe", "study.sampler.qmc_type": "halton"},
    {"study.sampler.type": "grid", "study.sampler.scramble": False},
    {"study.pruner.type": "pbt", "study.pruner.reduction_factor": 2},
    {"study.pruner.type": "none", "study.pruner.quantile": 0.5},
    {"study.pruner.type": "median", "study.pruner.mutation_factor": 2},
    {"study.pruner.type": "asha", "study.pruner.mutate": ["optim.reconstruction_lr"]},
    {"study.sampler.gamma": 1.5},
    {"study.sampler.group": True},
    {"study.sampler.type": "nsga2", "study.sampler.population_size": 5},
]


def test_what_decides_are_metrics_and_no_rules() -> None:
    study = Settings().study
    assert study.deciding_metrics == study.objectives
    named = {"study.pruner.metric": "val/nmi", "study.select": "val/ari", "study.constraints": ("val/code_std>=0.5",)}
    study = replace(Settings(), named).study
    assert study.deciding_metrics == (*study.objectives, "val/nmi", "val/ari", "val/code_std")


@pytest.mark.parametrize(("rule", "values"), list(zip(RULES, BREAKING, strict=True)))
def test_settings_that_break_a_rule_are_not_made(rule: Rule, values: dict[str, Any]) -> None:
    """Neither from a file nor in code."""
    with pytest.raises(ValidationError):
        replace(Settings(), values)
    with pytest.raises(ValidationError):
        Settings.model_validate(nest(values))
    (problem,) = find_problems({key: Entry(value, "here") for key, value in values.items()})
    assert (problem.keys, problem.kind, problem.where) == (rule.keys, Kind.RULE, "here")


@pytest.mark.parametrize("userinfo", ["KEY:SECRET@", "SECRET@", "KEY:SEC/RET@", "KEY:SEC@RET/@"])
def test_a_secret_in_the_address_of_the_folder_is_refused_and_not_told(userinfo: str) -> None:
    (told,) = complaints(f"study.folder=s3://{userinfo}bucket/studies")
    assert "use the environment's AWS credentials" in told and "SEC" not in told
    with pytest.raises(SettingsError) as error:
        read_plan(None, [f"study.folder=s3://{userinfo}bucket/studies"])
    assert "SEC" not in str(error.value)


@pytest.mark.parametrize(
    "folder",
    [
        "runs",
        "/home/me@host/a:b",
        "file:///home/me@host/a:b",
        "s3://bucket",
        "s3://bucket/me@host?endpoint_override=h:9000&scheme=http",
        "hdfs://host:8020/me@x",
    ],
)
def test_a_folder_without_a_secret_is_taken(folder: str) -> None:
    assert replace(Settings(), {"study.folder": folder}).study.folder == folder


def test_the_wording_of_a_rule_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [
        ("task=vae", "train.dtype=5", "data.labels=10.5"),
        (*CLUSTERS, "train.batch_size=x", "data.name=a/b"),
        ("train.epoch=3", "data.validation_fraction=0.6", "data.test_fraction=0.6", "data.labels=10.5"),
    ]

    def decisions() -> list[tuple[tuple[str, ...], Kind, str]]:
        return [(problem.keys, problem.kind, problem.where) for case in cases for problem in problems_of(*case)]

    before = decisions()
    text = "train.batch_size is not a setting, model.prior: is a section, got data.name"
    monkeypatch.setattr("aae_ray.settings.rules.RULES", tuple(dataclasses.replace(rule, text=text) for rule in RULES))
    assert decisions() == before and [kind for _, kind, _ in before].count(Kind.RULE) == 4


def test_all_problems_survive_a_pickle() -> None:
    error = SettingsError(problems_of("task=vae", "train.epoch=3"))
    again = pickle.loads(pickle.dumps(error))
    assert again.problems == error.problems and str(again) == str(error)


def test_an_argument_without_a_value_is_named() -> None:
    with pytest.raises(SettingsError, match="'epochs' is not of the form key=value"):
        read_overrides(["epochs"])


def test_yaml_nested_and_dotted_spellings_mean_the_same_and_lines_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train:\n  epochs: 3\nmodel.latent_dim: 4\noptim: {reconstruction_lr: 1e-3}\n")
    entries = read_yaml(file)
    assert {key: entry.value for key, entry in entries.items()} == {
        "train.epochs": 3,
        "model.latent_dim": 4,
        "optim.reconstruction_lr": 1e-3,
    }
    assert entries["model.latent_dim"].where == f"{file}:3"
    assert build(entries).optim.reconstruction_lr == 1e-3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1, 2", "is not YAML"),
        ("- 1\n- 2\n", "must be a mapping"),
        ("run: &r {train: *r}\n", "mappings are nested without end"),
        ("train.epochs: 1\ntrain: {epochs: 2}\n", "train.epochs is given twice, first at"),
    ],
)
def test_a_bad_yaml_file_is_named_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=expected) as caught:
        read_yaml(file)
    assert "bad.yaml" in str(caught.value)


def test_a_missing_file_is_a_sentence() -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml: cannot be read: No such file"):
        read_yaml("nowhere.yaml")


def test_replace_checks_the_whole_tree_again() -> None:
    assert replace(Settings(), {"model.hidden": "8-4"}).model.hidden == (8, 4)
    with pytest.raises(ValidationError, match="task vae needs"):
        replace(Settings(), {"task": "vae"})
    with pytest.raises(SettingsError, match=r"Did you mean train\.epochs"):
        replace(Settings(), {"train.epoch": 1})


@pytest.mark.parametrize("scale", ["-1:1", "1:0", "0:16", "20:30", "-1:1.5", "0.5:59.5"])
def test_a_scale_that_looks_like_minutes_and_seconds_is_a_scale(tmp_path: Path, scale: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"data.scale: {scale}\n")
    data = build(read_yaml(file)).data
    assert (data.scale, data.scale_ends) == (scale, tuple(float(end) for end in scale.split(":")))


def test_widths_that_look_like_a_date_are_widths(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model.hidden: 1024-12-10\nmodel.discriminator_hidden: 1000-64-32\n")
    run = build(read_yaml(file) | read_overrides(["model.channels=1000-10-10"]))
    assert (run.model.hidden, run.model.discriminator_hidden) == ((1024, 12, 10), (1000, 64, 32))
    assert run.model.channels == (1000, 10, 10)
