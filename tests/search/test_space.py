"""A study's file: what is good is read as Optuna's terms, what is wrong is told all at once with its place."""

import dataclasses
import math
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from aae_ray.errors import Kind, Problem, SettingsError, UserError
from aae_ray.evaluation.metrics import METRICS
from aae_ray.search.distributions import Space, options
from aae_ray.search.points import space_size
from aae_ray.search.space import SHIPPED, Plan, read_plan, study_file
from aae_ray.settings import dotted_fields, replace, setting
from aae_ray.settings.rules import RULES

SEARCH_SPACES = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))

LATENT = "space:\n  model.latent_dim: {type: int, low: 2, high: 8}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "study.yaml"


def plan_of(file: Path, text: str, *overrides: str, trials: int | None = 1) -> Plan:
    """The plan in a file; of one trial, as the spaces of these tests are small."""
    file.write_text(text, encoding="utf-8")
    return read_plan(str(file), [*([f"study.budget.trials={trials}"] if trials else []), *overrides])


def problems_of(file: Path, text: str, *overrides: str, trials: int | None = 1) -> tuple[Problem, ...]:
    with pytest.raises(SettingsError) as caught:
        plan_of(file, text, *overrides, trials=trials)
    return caught.value.problems


def complaints(file: Path, text: str, *overrides: str, trials: int | None = 1) -> list[str]:
    """What is told about a file, without the folder it lies in."""
    found = problems_of(file, text, *overrides, trials=trials)
    return [str(problem).replace(f"{file.parent}/", "") for problem in found]


# ------------------------------------------------------------------------------------------------------ what is good


@pytest.mark.parametrize("path", SEARCH_SPACES, ids=lambda path: path.name)
def test_every_search_space_that_ships_is_good(path: Path) -> None:
    plan = read_plan(str(path))
    assert plan.space.keys() <= dotted_fields().keys()
    assert all(METRICS[name].direction in ("min", "max") for name in plan.settings.study.objectives)
    for point in plan.start:
        assert point.keys() <= plan.space.keys()
        replace(plan.settings, point)


def test_there_are_search_spaces_that_ship() -> None:
    assert "digits.yaml" in [path.name for path in SEARCH_SPACES]
    assert read_plan(str(SEARCH_SPACES[0].with_name("digits.yaml"))).space


def test_a_study_that_ships_has_its_name_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "search_spaces/digits.yaml"):
        assert study_file(name) == str(SHIPPED / "digits.yaml")
    for other in ("search_spaces/nowhere.yaml", "digits.yaml", "other/digits", "other/digits.yaml"):
        assert study_file(other) == other
    with pytest.raises(UserError, match="neither a file nor a study that ships.*fashion_mnist"):
        study_file("fashion_mnis")
    own = tmp_path / "search_spaces" / "digits.yaml"
    own.parent.mkdir()
    own.write_text("")
    assert study_file("search_spaces/digits.yaml") == "search_spaces/digits.yaml"


def test_a_file_is_read_as_settings_distributions_and_start_points(file: Path) -> None:
    plan = plan_of(
        file,
        """
study: {name: small, objectives: [val/reconstruction_mse], budget: {trials: 3, wall_clock: 2m}}
run:
  train: {epochs: 9}
  model.prior_scale: 2
space:
  model.latent_dim: {type: int, low: 2, high: 16, log: true}
  train.batch_size: {type: int, low: 20, high: 100, step: 20}
  optim.beta2: {type: float, low: 0.5, high: 0.9, step: 0.1}
  optim.reconstruction_lr: {type: float, low: 1e-4, high: 1e-2, log: true}
  model.prior: {type: categorical, choices: [gaussian, uniform]}
start:
  - {model.latent_dim: 3, optim.reconstruction_lr: 1e-3, model.prior: uniform}
  - {model.latent_dim: 4}
""",
    )
    assert plan.settings.study.name == "small" and plan.settings.study.budget.wall_clock == 120
    assert plan.settings.train.epochs == 9 and plan.settings.model.prior_scale == 2
    assert plan.directions == ["min"]
    assert plan.space == {
        "model.latent_dim": IntDistribution(2, 16, log=True),
        "train.batch_size": IntDistribution(20, 100, step=20),
        "optim.beta2": FloatDistribution(0.5, 0.9, step=0.1),
        "optim.reconstruction_lr": FloatDistribution(1e-4, 1e-2, log=True),
        "model.prior": CategoricalDistribution(("gaussian", "uniform")),
    }
    assert plan.start == (
        {"model.latent_dim": 3, "optim.reconstruction_lr": 1e-3, "model.prior": "uniform"},
        {"model.latent_dim": 4},
    )
    # PyYAML reads `1e-4` as text: what is sampled and what is tried first are numbers none the less.
    assert isinstance(plan.start[0]["optim.reconstruction_lr"], float)


def test_nested_and_dotted_spellings_of_the_space_mean_the_same(file: Path) -> None:
    nested = plan_of(file, "space:\n  model:\n    latent_dim:\n      type: int\n      low: 2\n      high: 8\n")
    assert nested == plan_of(file, LATENT)


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "study:\nrun:\nspace:\nstart:\n", "study: {}\nrun: {}\nspace: {}\nstart: []\n"]
)
def test_empty_files_and_blocks_are_the_defaults(file: Path, text: str) -> None:
    assert plan_of(file, text, trials=None) == read_plan(None)
    assert read_plan(None).space == {} and read_plan(None).start == ()


@pytest.mark.parametrize(
    ("key", "choices", "expected"),
    [
        ("model.hidden", "[[64, 32], 128-64, 32]", ("64-32", "128-64", "32")),
        ("optim.reconstruction_lr", "[1e-3, 1e-2]", (1e-3, 1e-2)),
        ("health.stop", "[true, false]", (True, False)),
        ("model.noise_dim", "[null, 4]", (None, 4)),
        ("train.batch_size", "[50, 100]", (50, 100)),
        ("optim.lr_milestones", "[[0.5], [0.5, 0.75]]", None),
    ],
)
def test_every_choice_makes_settings(file: Path, key: str, choices: str, expected: tuple[object, ...] | None) -> None:
    """Choices are plain values, as Optuna and MLflow show them, and each of them is what a trial is configured with."""
    plan = plan_of(file, f"space:\n  {key}: {{type: categorical, choices: {choices}}}\n")
    distribution = plan.space[key]
    assert isinstance(distribution, CategoricalDistribution)
    assert expected is None or distribution.choices == expected
    made = [setting(replace(plan.settings, {key: choice}), key) for choice in distribution.choices]
    assert len(set(made)) == len(made)


def test_widths_are_a_start_point_in_any_spelling(file: Path) -> None:
    plan = plan_of(
        file,
        "space:\n  model.hidden: {type: categorical, choices: [64-32, 32]}\n"
        "start: [{model.hidden: [64, 32]}, {model.hidden: 32}]\n",
    )
    assert plan.start == ({"model.hidden": "64-32"}, {"model.hidden": "32"})


# ---------------------------------------------------------------------------------------------------- the command line


def test_an_override_fixes_what_the_file_searches(file: Path) -> None:
    text = (
        LATENT
        + "  model.prior: {type: categorical, choices: [gaussian, uniform]}\n"
        + "start: [{model.latent_dim: 3, model.prior: uniform}]\n"
    )
    plan = plan_of(file, text, "model.latent_dim=5", "train.epochs=2")
    assert plan.space.keys() == {"model.prior"} and plan.start == ({"model.prior": "uniform"},)
    assert plan.settings.model.latent_dim == 5 and plan.settings.train.epochs == 2


def test_an_override_fixes_a_key_that_the_file_searches_in_a_bad_way(file: Path) -> None:
    assert plan_of(file, "space:\n  model.latent_dim: {type: int, low: 9, high: 8}\n", "model.latent_dim=5").space == {}


def test_an_override_changes_a_field_of_the_space_or_adds_a_key(file: Path) -> None:
    plan = plan_of(
        file,
        LATENT,
        "space.model.latent_dim.high=32",
        "space.model.prior.type=categorical",
        "space.model.prior.choices=[uniform]",
    )
    assert plan.space == {
        "model.latent_dim": IntDistribution(2, 32),
        "model.prior": CategoricalDistribution(("uniform",)),
    }


def test_a_narrower_range_of_the_command_line_shuts_start_points_out_value_by_value(file: Path) -> None:
    start = "start: [{model.latent_dim: 8, model.prior: uniform}, {model.latent_dim: 3, model.prior: uniform}]\n"
    text = LATENT + "  model.prior: {type: categorical, choices: [gaussian, uniform]}\n" + start
    plan = plan_of(file, text, "space.model.latent_dim.high=4")
    assert plan.start == ({"model.prior": "uniform"}, {"model.latent_dim": 3, "model.prior": "uniform"})
    assert plan_of(file, text, "start=[]").start == ()
    assert plan_of(file, text, "start=[{model.latent_dim: 5}]").start == ({"model.latent_dim": 5},)
    assert (
        "command line: start: model.latent_dim=9 is outside what is searched"
        in complaints(file, text, "start=[{model.latent_dim: 9}]")[0]
    )


def test_fixed_values_that_cannot_go_together_are_told_where_they_were_written(file: Path) -> None:
    text = "run:\n  data.name: digits\n" + LATENT
    assert complaints(file, text, "data.labels=10.5") == [
        "command line: data.labels must be a whole number or a fraction below 1, got 10.5"
    ]
    (told,) = complaints(file, text, "task=supervised", "data.labels=10")
    assert told.startswith("command line: task supervised needs the label of every image")


def test_an_override_may_be_a_whole_distribution(file: Path) -> None:
    plan = plan_of(file, "", "space.model.latent_dim={type: int, low: 2, high: 4}")
    assert plan.space == {"model.latent_dim": IntDistribution(2, 4)}


def test_a_mistake_on_the_command_line_is_told_with_those_of_the_file(file: Path) -> None:
    found = complaints(file, "run:\n  train.epoch: 3\n", "model.prior=gausian", "space.model.latent_dim.type=int")
    assert any(text.startswith("study.yaml:2: train.epoch is not a setting.") for text in found)
    assert any(text.startswith("command line: model.prior: expected one of") for text in found)
    assert any(text.startswith("command line: space model.latent_dim: type int needs 'low'") for text in found)


# ------------------------------------------------------------------------------------------------------ what is wrong

MISTAKES = """
study:
  objectives: [val/reconstruction_mse, val/jsdnats]
  pruner: {metric: val/code_std}
run:
  train.epoch: 3
  train.batch_size: many
  model.prior: gausian
  model.posterior: gaussian
  study.name: x
space:
  model.latent_dims: {type: int, low: 2, high: 8}
  model.latent_dim: {type: int, low: 1, high: 8}
  optim.reconstruction_lr: {type: float, low: 0, high: 1e-2, log: true}
  optim.discrimination_lr: {type: float, low: 1e-2, high: 1e-4}
  optim.regularization_lr: {type: float, high: 1e-2}
  optim.beta2: {type: float, low: 0.5, high: 0.9, max: 3}
  model.network: {type: categorical, choices: [dense, convolution]}
  model.posterior: {type: categorical, choices: [deterministic, gaussian]}
  train.dtype: {type: categorical, choices: []}
  model.prior_scale: {type: number, low: 1, high: 2}
  train.batch_size: {type: float, low: 10, high: 20}
  study.budget.trials: {type: int, low: 1, high: 2}
start:
  - {model.posterior: universal, optim.beta1: 0.5}
train.epochs: 3
spaces: {a: 1}
"""


def test_all_mistakes_of_a_file_are_told_at_once_each_with_its_line(file: Path) -> None:
    found = complaints(file, MISTAKES, trials=None)
    for line, part in [
        (3, "val/jsdnats is not a metric to search on; those are "),
        (3, "Did you mean val/jsd_nats?"),
        (4, "val/code_std is a diagnostic without a direction"),
        (6, "train.epoch is not a setting. Did you mean train.epochs?"),
        (7, "train.batch_size: expected a whole number, got 'many'"),
        (8, "model.prior: expected one of gaussian, uniform, mixture, swiss_roll, got 'gausian'"),
        (9, "model.posterior is fixed here and searched at study.yaml:19"),
        (10, "study.name belongs under `study:`"),
        (12, "model.latent_dims is not a setting that can be searched. Did you mean model.latent_dim?"),
        (13, "model.latent_dim: expected at least 2, got 1"),
        (14, "space optim.reconstruction_lr: log needs low above 0, got 0.0"),
        (15, "space optim.discrimination_lr: low must be below high, got 0.01 and 0.0001"),
        (16, "space optim.regularization_lr: type float needs 'low'"),
        (17, "space optim.beta2: 'max' is not part of type float"),
        (18, "model.network: expected one of dense, convolutional, got 'convolution'"),
        (20, "space train.dtype: choices must be a list with at least one value"),
        (21, "space model.prior_scale: needs a type, one of float, int, categorical, got 'number'"),
        (22, "space train.batch_size: is a whole number; use type int"),
        (23, "study.budget.trials is not a setting that can be searched"),
        (24, "start: model.posterior=universal is outside what is searched"),
        (24, "start: optim.beta1 is not searched"),
        (26, "train.epochs is outside of any block; put it under `run:`"),
        (27, "spaces.a is not a block of a study's file; the blocks are study, run, space, start. Did you mean space?"),
    ]:
        assert [text for text in found if text.startswith(f"study.yaml:{line}: ") and part in text], (line, part)
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        # the fields of a searched key
        ("space:\n  model.prior: {choices: [gaussian]}\n", 2, ["model.prior: needs a type"]),
        ("space:\n  model.prior: {type: [int], low: 1}\n", 2, ["model.prior: needs a type"]),
        ("space:\n  model.prior: {type: {}, low: 1}\n", 2, ["model.prior: needs a type"]),
        ("space:\n  model.latent_dim: 5\n", 2, ["model.latent_dim"]),
        ("space:\n  model.prior: [gaussian, uniform]\n", 2, ["model.prior"]),
        ("space:\n  model.prior: {}\n", 2, ["model.prior"]),
        ("space:\n  model: {type: int, low: 0, high: 3}\n", 2, ["model"]),
        (
            "space:\n  model.latent_dim: {type: int, low: 2, hihg: 8}\n",
            2,
            ["'hihg' is not part of type int. Did you mean high?"],
        ),
        ("space:\n  model.latent_dim: {type: int, low: 2, high: 8.5}\n", 2, ["high must be a whole number, got 8.5"]),
        ("space:\n  model.latent_dim: {type: int, low: two, high: 8}\n", 2, ["low must be a whole number, got 'two'"]),
        ("space:\n  model.latent_dim: {type: int, low: true, high: 8}\n", 2, ["low must be a whole number, got True"]),
        ("space:\n  model.latent_dim: {type: int, low: 8, high: 8}\n", 2, ["low must be below high, got 8 and 8"]),
        (
            "space:\n  model.latent_dim: {type: int, low: 2, high: 8, log: maybe}\n",
            2,
            ["log must be true or false, got 'maybe'"],
        ),
        ("space:\n  model.latent_dim: {type: int, low: 2, high: 8, step: 0}\n", 2, ["step must be above 0, got 0"]),
        (
            "space:\n  model.latent_dim: {type: int, low: 2, high: 8, step: 2, log: true}\n",
            2,
            ["log and step cannot be used together"],
        ),
        (
            "space:\n  optim.beta2: {type: float, low: 0.1, high: 1.5}\n",
            2,
            ["optim.beta2: expected less than 1, got 1.5"],
        ),
        ("space:\n  optim.beta2: {type: float, low: .nan, high: 0.5}\n", 2, ["optim.beta2", "finite"]),
        (
            "space:\n  optim.beta2: {type: float, low: [1], high: 0.5}\n",
            2,
            ["optim.beta2: low must be a number, got [1]"],
        ),
        ("space:\n  optim.beta2: {type: float, low: 0.1, high: 0.5, step: .nan}\n", 2, ["optim.beta2", "step"]),
        ("space:\n  optim.beta2: {type: float, low: 0.1, high: 0.5, step: .inf}\n", 2, ["optim.beta2", "step"]),
        ("space:\n  model.prior: {type: int, low: 0, high: 3}\n", 2, ["model.prior: expected one of"]),
        ("space:\n  health.stop: {type: float, low: 0, high: 1}\n", 2, ["health.stop"]),
        ("space:\n  model.noise_dim: {type: float, low: 2, high: 8}\n", 2, ["model.noise_dim", "whole number"]),
        ("space:\n  model.prior: {type: categorical, choices: gaussian}\n", 2, ["choices must be a list"]),
        (
            "space:\n  model.prior: {type: categorical, choices: [gaussian, gaussian]}\n",
            2,
            ["choices has a value twice"],
        ),
        ("space:\n  model.hidden: {type: categorical, choices: [64-32, [64, 32]]}\n", 2, ["choices has a value twice"]),
        ("space:\n  model.prior: {type: categorical, choices: [{a: 1}]}\n", 2, ["model.prior: expected one of"]),
        (
            "space:\n  data.split_seed: {type: int, low: 0, high: 3}\n",
            2,
            ["data.split_seed is not a setting that can be searched"],
        ),
        # the blocks
        ("study: 5\n", 1, ["study", "mapping"]),
        ("run: [1]\n", 1, ["run", "mapping"]),
        ("space: [a]\n", 1, ["space", "mapping"]),
        ("spcae:\n  model.latent_dim: {type: int, low: 2, high: 8}\n", 2, ["Did you mean space?"]),
        ("run: {study: {budget: {trials: 3}}}\n", 1, ["study.budget.trials belongs under `study:`"]),
        # the metrics
        ("study: {objectives: 5}\n", 1, ["study.objectives"]),
        ("study: {objectives: []}\n", 1, ["study.objectives"]),
        ("study: {objectives: [[val/jsd_nats]]}\n", 1, ["study.objectives"]),
        ("study: {objectives: [{a: b}]}\n", 1, ["study.objectives"]),
        ("study: {objectives: [val/jsd_nats, val/jsd_nats]}\n", 1, ["names a metric twice"]),
        ("study: {objectives: [test/jsd_nats]}\n", 1, ["test/jsd_nats is "]),
        ("study: {pruner: {metric: [x]}}\n", 1, ["study.pruner.metric"]),
        ("study: {pruner: {metric: fronts}}\n", 1, ["fronts is not a metric to search on"]),
        # the start points
        (LATENT + "start: 5\n", 3, ["start must be a list of points"]),
        (LATENT + "start: [5]\n", 3, ["start must be a list of points"]),
        (LATENT + "start: {model.latent_dim: 4}\n", 3, ["start must be a list of points"]),
        (LATENT + "start: [{model.latent_dim: 9}]\n", 3, ["start: model.latent_dim=9 is outside what is searched"]),
        (LATENT + "start: [{model.latent_dim: many}]\n", 3, ["start: model.latent_dim must be a number, got 'many'"]),
        (
            LATENT + "start: [{model.latent_dim: .nan}]\n",
            3,
            ["start: model.latent_dim=nan is outside what is searched"],
        ),
        (LATENT + "start: [{model.latent_dim: [3]}]\n", 3, ["start: model.latent_dim"]),
        (LATENT + "start: [{model.latent_dim: null}]\n", 3, ["start: model.latent_dim"]),
        (LATENT + "start: [{model.latent_dim: 3.5}]\n", 3, ["start: model.latent_dim=3.5 is outside what is searched"]),
        (
            LATENT.replace("8}", "8, step: 2}") + "start: [{model.latent_dim: 3}]\n",
            3,
            ["start: model.latent_dim=3 is outside what is searched"],
        ),
        (
            LATENT + "start: [{model.latent_dims: 4}]\n",
            3,
            ["start: model.latent_dims is not searched. Did you mean model.latent_dim?"],
        ),
    ],
)
def test_a_mistake_is_a_sentence_with_its_line(file: Path, text: str, line: int, parts: list[str]) -> None:
    found = complaints(file, text)
    assert [
        told for told in found if told.startswith(f"study.yaml:{line}: ") and all(part in told for part in parts)
    ], found


@pytest.mark.parametrize(
    ("spec", "last"),
    [
        ("optim.beta2: {type: float, low: 0, high: 0.5, step: 0.2}", "0.4"),
        ("optim.beta2: {type: float, low: 0.1, high: 0.95, step: 0.1}", "0.9"),
        ("model.latent_dim: {type: int, low: 2, high: 9, step: 3}", "8"),
        ("model.latent_dim: {type: int, low: 2, high: 4, step: 3}", "2"),
    ],
)
def test_a_step_that_does_not_divide_its_range_is_told_with_the_bound_that_would_be_used(
    file: Path, spec: str, last: str
) -> None:
    (told,) = complaints(file, f"space:\n  {spec}\n")
    assert "does not divide the range from" in told and f"give high: {last}, or another step" in told


def test_a_step_that_divides_its_range_in_decimals_is_taken(file: Path) -> None:
    for high, step in (("0.3", "0.1"), ("0.7", "0.1"), ("0.9", "0.05")):
        assert plan_of(file, f"space:\n  optim.beta2: {{type: float, low: 0, high: {high}, step: {step}}}\n").space


def test_a_grid_needs_values_that_can_be_counted(file: Path) -> None:
    text = LATENT + "  optim.beta2: {type: float, low: 0.1, high: 0.5}\n"
    text += "  optim.reconstruction_lr: {type: float, low: 1e-4, high: 1e-2, log: true}\n"
    found = problems_of(file, text, "study.sampler.type=grid")
    assert [(problem.keys[1], problem.where) for problem in found] == [
        ("optim.beta2", f"{file}:3"),
        ("optim.reconstruction_lr", f"{file}:4"),
    ]
    assert all("grid needs values that can be counted" in problem.text for problem in found)
    (large,) = complaints(file, "space:\n  seed: {type: int, low: 0, high: 200000}\n", "study.sampler.type=grid")
    assert "grid lists at most 100000 points, and the space has 200001" in large
    assert plan_of(file, LATENT, "study.sampler.type=grid", trials=None).settings.study.budget.trials == 24


def test_a_broken_key_is_not_told_again_at_its_start_point(file: Path) -> None:
    """Its start point may be right: what is wrong is told once."""
    assert (
        len(
            complaints(
                file, "space:\n  model.latent_dim: {type: int, low: 1, high: 8}\nstart: [{model.latent_dim: 4}]\n"
            )
        )
        == 1
    )


# A circle of conditions, and mistakes that have nothing to do with it.
CIRCLE = """
study:
  objectives: [val/reconstruction_mse, val/jsd_nats]
  constraints: [val/jsd_nats >= 0.9]
  sampler: {type: grid}
  pruner: {type: pbt, mutate: [model.latent_dim, optim.beta2]}
  seeds_per_trial: 0
space:
  model.prior: {type: categorical, choices: [gaussian, mixture], when: {model.network: [dense]}}
  model.network: {type: categorical, choices: [dense, convolutional], when: {model.prior: [mixture]}}
  model.latent_dim: {type: int, low: 2, high: 16}
  optim.beta2: {type: float, low: 0.5, high: 0.9}
  optim.reconstruction_lr: {type: float, low: 1e-2, high: 1e-4}
start:
  - {model.latent_dim: 99}
"""


def test_a_circle_of_conditions_hides_no_other_mistake(file: Path) -> None:
    """Nor do a range upside down and a number of seeds that is none."""
    found = complaints(file, CIRCLE, trials=None)
    for line, part in [
        (4, "val/jsd_nats >= 0.9 cannot be met"),
        (6, "study.pruner.mutate: model.latent_dim is not a searched range of what may change"),
        (7, "study.seeds_per_trial: expected at least 1, got 0"),
        (9, "space model.prior: its conditions run in a circle, model.prior -> model.network -> model.prior"),
        (12, "space optim.beta2: study.sampler.type grid needs values that can be counted"),
        (13, "space optim.reconstruction_lr: low must be below high"),
        (14, "start: model.latent_dim=99 is outside what is searched"),
    ]:
        assert [text for text in found if text.startswith(f"study.yaml:{line}: ") and part in text], (line, part, found)
    assert len(found) == 7
    found = complaints(file, CIRCLE, "study.seeds_per_trial=2", "study.pruner.mutate=[]", "start=[]")
    assert len(found) == 5 and any("let study.seeds_per_trial be 1, got 2" in text for text in found)


CHOICES = """
study:
  sampler: {type: gp}
  seeds_per_trial: 2
  seeds_from_rung: 10
space:
  model.prior: {type: categorical, choices: [gaussian, mixture, uniform]}
  model.prior_components: {type: int, low: 2, high: 20, when: {model.prior: [mixtures]}}
  model.prior_scale: {type: float, low: 0.5, high: 2, when: {model.prior: [mixture]}}
  seed: {type: int, low: 0, high: 9}
"""


def test_a_condition_on_what_is_no_choice_hides_no_other_mistake(file: Path) -> None:
    found = complaints(file, CHOICES, trials=None)
    for line, part in [
        (4, "study.seeds_per_trial=2 gives each configuration seeds of its own, and `seed` is searched as well"),
        (5, "study.seeds_from_rung=10 is no rung; the rungs are 3, 9"),
        (8, "when model.prior: mixtures is not among its choices, gaussian, mixture, uniform"),
        (8, "space model.prior_components: study.sampler.type gp does not learn from what only some trials have"),
        (9, "space model.prior_scale: study.sampler.type gp does not learn from what only some trials have"),
    ]:
        assert [text for text in found if text.startswith(f"study.yaml:{line}: ") and part in text], (line, part, found)
    assert len(found) == 5
    confirm = ("study.confirm.finalists=1", "seed=4294967295", "study.sampler.type=random")
    (circle, many) = complaints(file, CHOICES, *confirm, "study.seeds_per_trial=0", "study.seeds_from_rung=3")[1:]
    assert (
        "study.seeds_per_trial: expected" in circle and "leaves no larger seeds for study.confirm.finalists=1" in many
    )


def test_what_the_broken_part_decides_is_not_told(file: Path) -> None:
    """Neither a contradiction that a condition may shut out, nor that nothing is left to change or to try."""
    text = """
run: {model.posterior: gaussian, model.prior: gaussian}
space:
  task: {type: categorical, choices: [unsupervised, vae]}
  model.prior: {type: categorical, choices: [uniform, swiss_roll], when: {task: [%s]}}
  model.prior_scale: {type: categorical, choices: [0.5, 1], when: {model.prior: [uniform]}}
"""
    (told,) = complaints(file, text % "unsupervize", "study.budget.trials=99")
    assert "unsupervize is not among its choices" in told
    (told,) = complaints(file, (text % "unsupervised").replace("[0.5, 1]", "[-1, 1]"))
    assert "model.prior_scale: expected" in told
    broken = "space:\n  optim.beta2: {type: float, low: 0.9, high: 0.5}\n"
    (told,) = complaints(file, broken, "study.pruner.type=pbt", "study.pruner.mutate=[optim.beta2]")
    assert "low must be below high" in told


# ------------------------------------------------------------------------------------------ choices against each other

VAE = "space:\n  task: {type: categorical, choices: [unsupervised, vae]}\n"


def test_a_task_may_be_searched_where_all_its_choices_go_with_the_rest(file: Path) -> None:
    plan = plan_of(file, "run: {model.posterior: gaussian, model.prior: gaussian}\n" + VAE)
    assert plan.space == {"task": CategoricalDistribution(("unsupervised", "vae"))}


@pytest.mark.parametrize(
    "text",
    [
        VAE,
        "run: {model.posterior: gaussian}\n"
        + VAE
        + "  model.prior: {type: categorical, choices: [gaussian, uniform]}\n",
        "run: {model.prior: gaussian}\n"
        + VAE
        + "  model.posterior: {type: categorical, choices: [deterministic, gaussian]}\n",
        # hundreds of harmless combinations come first
        "run: {model.prior: gaussian}\n"
        + VAE
        + "  model.posterior: {type: categorical, choices: [gaussian, deterministic, universal]}\n"
        "  model.hidden: {type: categorical, choices: [4, 8, 16, 32, 64, 128, 256, 512]}\n"
        "  model.discriminator_hidden: {type: categorical, choices: [4, 8, 16, 32, 64, 128, 256, 512]}\n"
        "  optim.beta2: {type: categorical, choices: [0.1, 0.2, 0.3, 0.4]}\n",
    ],
)
def test_choices_that_cannot_go_together_are_told(file: Path, text: str) -> None:
    found = complaints(file, text)
    assert found
    for told in found:
        assert (
            told.startswith("study.yaml:")
            and "the space allows values that do not go together: task vae needs model.posterior gaussian and" in told
        )


def test_what_cannot_go_together_is_told_with_mistakes_of_a_single_key(file: Path) -> None:
    """And what is wrong by itself breaks no rule by its default."""
    space = "space:\n  optim.regularization_lr: {type: float, low: 1e-4, high: 1e-2, log: true}\n"
    clusters = "run:\n  task: clustering\n  model.clusters: 200\n"
    found = complaints(file, f"{clusters}  train.epochs: -1\n{space}")
    assert len(found) == 2 and "train.epochs: expected" in found[0] and "train.batch_size can fill" in found[1]
    for one in ("train.batch_size: x", "train.batch_sise: 500"):
        assert len(complaints(file, f"{clusters}  {one}\n{space}")) == 1
    assert len(complaints(file, space, "study.resources_per_worker.GPU=x")) == 1


def test_both_ends_of_a_range_are_tried_against_the_rest(file: Path) -> None:
    found = complaints(file, "run: {task: clustering}\nspace:\n  model.clusters: {type: int, low: 8, high: 200}\n")
    assert len(found) == 1 and "model.clusters is more than train.batch_size can fill" in found[0]


def test_a_fixed_task_against_a_searched_posterior_is_told(file: Path) -> None:
    found = complaints(
        file,
        "run: {task: vae, model.posterior: gaussian}\n"
        "space:\n  model.prior: {type: categorical, choices: [uniform, gaussian]}\n",
    )
    assert len(found) == 1 and "task vae needs" in found[0]


def test_the_wording_of_rules_decides_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = VAE + "  model.prior: {type: categorical, choices: [gaussian, uniform]}\n"
    cases = [
        "run: {data.labels: 10.5, model.clusters: 200, train.batch_sise: 3}\n" + space,
        "run: {task: clustering, model.clusters: 200}\n" + LATENT,
        "run: {task: clustering}\nspace:\n  model.clusters: {type: int, low: 8, high: 200}\n",
        "run: {task: supervised, data.labels: 10, model.prior: gausian}\n",
    ]

    def decisions() -> list[tuple[tuple[str, ...], Kind, str]]:
        return [(problem.keys, problem.kind, problem.where) for case in cases for problem in problems_of(file, case)]

    before = decisions()
    text = "train.batch_size is not a setting, model.prior: is a section, got task"
    monkeypatch.setattr("aae_ray.settings.rules.RULES", tuple(dataclasses.replace(rule, text=text) for rule in RULES))
    assert decisions() == before and [kind for _, kind, _ in before].count(Kind.RULE) == 5


@pytest.mark.parametrize(
    ("other", "rules"),
    [
        ("run: {train.batch_sise: 500}\n", 0),
        ("run: {qqq: 500}\n", 0),  # it may be meant for train.batch_size
        ("run: {train.epoch: 5}\n", 1),
        ("train.batch_size: 500\n", 0),  # outside of a block
        ("start: [{model.latent_dim: 99}]\n", 1),
    ],
)
def test_a_rule_is_judged_where_the_values_of_all_its_keys_are_clear(file: Path, other: str, rules: int) -> None:
    found = problems_of(file, LATENT + other, "task=clustering", "model.clusters=200")
    assert [problem.kind for problem in found].count(Kind.RULE) == rules and len(found) == 1 + rules


# ------------------------------------------------------------------------------------ more trials than there are points


@pytest.mark.parametrize(
    ("space", "size"),
    [
        ({}, 1),
        ({"a": IntDistribution(2, 8)}, 7),
        ({"a": IntDistribution(2, 16, log=True)}, 15),
        ({"a": IntDistribution(20, 100, step=20)}, 5),
        ({"a": IntDistribution(3, 3)}, 1),
        ({"a": FloatDistribution(0.5, 0.9, step=0.1)}, 5),
        ({"a": FloatDistribution(0.0, 0.3, step=0.1)}, 4),
        ({"a": CategoricalDistribution((None, 4))}, 2),
        ({"a": CategoricalDistribution((None, 4)), "b": IntDistribution(2, 8)}, 14),
        ({"a": FloatDistribution(0.1, 0.2)}, None),
        ({"a": FloatDistribution(0.1, 0.1)}, 1),
        ({"a": FloatDistribution(0.1, 0.2, log=True), "b": IntDistribution(2, 8)}, None),
    ],
)
def test_the_size_of_a_space_is_the_number_of_its_points(space: Space, size: int | None) -> None:
    assert space_size(space, {}) == size


def test_more_trials_than_points_are_told_where_the_trials_were_written(file: Path) -> None:
    (problem,) = problems_of(file, "study: {name: x}\nstudy.budget.trials: 8\n" + LATENT, trials=None)
    assert (problem.keys, problem.kind) == (("study.budget.trials", "model.latent_dim"), Kind.RULE)
    assert problem.where == f"{file}:2" and "7 different points" in problem.text
    assert "give study.budget.trials=7 or less" in problem.text
    (problem,) = problems_of(file, LATENT, trials=None)  # those of the default
    assert problem.where == f"{file}:2" and "study.budget.trials is 24" in problem.text
    (told,) = complaints(file, LATENT, trials=8)
    assert told.startswith("command line: study.budget.trials is 8")
    assert plan_of(file, LATENT, trials=7).settings.study.budget.trials == 7
    assert plan_of(file, "", trials=24).space == {}
    assert plan_of(file, "space:\n  optim.beta2: {type: float, low: 0.1, high: 0.5}\n", trials=1000).space


@pytest.mark.parametrize(
    "text",
    [
        "study.budget.trials: many\n" + LATENT,
        "study.budget.trails: 3\n" + LATENT,
        "study.budget.qqq: 3\n" + LATENT,
        LATENT + "  optim.beta1: {type: float, low: 0.1, high: 0.5}\n",
        LATENT + "  optim.beta2: {type: float, low: 0.1}\n",
        LATENT + "run: {model.latent_dim: 3}\n",
        "spcae: {optim.beta2: 5}\n" + LATENT,
    ],
)
def test_trials_and_points_are_not_compared_where_one_of_them_is_unclear(file: Path, text: str) -> None:
    (problem,) = problems_of(file, text, trials=None)
    assert problem.kind is not Kind.RULE


# --------------------------------------------------------------------------------------------- start points given twice


@pytest.mark.parametrize(
    "points",
    [
        "[{model.latent_dim: 3}, {model.latent_dim: 4}, {model.latent_dim: 3}]",
        "[{model.latent_dim: 3}, {model.latent_dim: 4}, {model.latent_dim: 3.0}]",
        "[{model.latent_dim: 3, model.hidden: 8-4}, {model.latent_dim: 3}, "
        "{model.hidden: [8, 4], model.latent_dim: 3}]",
    ],
)
def test_a_start_point_given_twice_is_told(file: Path, points: str) -> None:
    text = LATENT + f"  model.hidden: {{type: categorical, choices: [8-4, 4]}}\nstart: {points}\n"
    (problem,) = problems_of(file, text)
    assert problem.kind is Kind.DUPLICATE and "model.latent_dim" in problem.keys and problem.where == f"{file}:4"
    assert "point 3 is the same as point 1" in problem.text
    assert len(problems_of(file, text, "model.latent_dim=5")) == 1  # whatever the command line changes


def test_start_points_that_the_command_line_makes_the_same_are_one(file: Path) -> None:
    text = LATENT + "  model.prior: {type: categorical, choices: [gaussian, uniform]}\n"
    text += "start: [{model.latent_dim: 3, model.prior: uniform}, {model.latent_dim: 3, model.prior: gaussian}]\n"
    assert plan_of(file, text, "model.prior=gaussian").start == ({"model.latent_dim": 3},)


# --------------------------------------------------------------------------------------- what is sampled makes settings


@pytest.mark.parametrize("path", SEARCH_SPACES, ids=lambda path: path.name)
def test_the_corners_of_a_search_space_make_settings(path: Path) -> None:
    plan = read_plan(str(path))
    for pick in (min, max):
        point = {}
        for key, distribution in plan.space.items():
            if isinstance(distribution, CategoricalDistribution):
                point[key] = distribution.choices[0 if pick is min else -1]
            else:
                assert isinstance(distribution, (IntDistribution, FloatDistribution))
                point[key] = pick(distribution.low, distribution.high)
                assert math.isfinite(point[key])
        replace(plan.settings, point)


def test_the_default_study_keeps_its_space_wide() -> None:
    """It is to find a good decoder among many, and not to be told where one lies."""
    plan = read_plan("digits")
    space = plan.space
    assert {"model.prior", "model.posterior", "model.hidden", "model.discriminator_hidden"} <= space.keys()
    assert set(options(space["model.prior"])) == {"gaussian", "uniform", "mixture", "swiss_roll"}
    assert set(options(space["model.posterior"])) == {"deterministic", "gaussian", "universal"}
    assert len(options(space["model.hidden"])) >= 3 and len(options(space["model.discriminator_hidden"])) >= 2
    assert options(space["model.latent_dim"]) == (2, 16)
    for rate, decades in (("reconstruction", 1.3), ("discrimination", 2), ("regularization", 2)):
        low, high = options(space[f"optim.{rate}_lr"])
        assert math.log10(high / low) >= decades
    assert len({point["model.latent_dim"] for point in plan.start}) >= 3
