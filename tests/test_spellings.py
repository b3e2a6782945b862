"""Names and values in the words of other tools: told what they are called here."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aae_ray.errors import SettingsError, closest
from aae_ray.reading import find_problems, read_overrides
from aae_ray.search.distributions import FIELDS
from aae_ray.search.space import BLOCKS, read_plan
from aae_ray.settings import dotted_fields
from aae_ray.spellings import SETTINGS, TYPES, flow
from tests.test_yaml_text import FOREIGN


def complaints(*arguments: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read_plan(None, arguments)
    return [str(problem) for problem in caught.value.problems]


def test_what_is_meant_exists() -> None:
    assert set(SETTINGS.values()) <= {*dotted_fields(), *BLOCKS}
    assert {spec["type"] for spec in TYPES.values()} == FIELDS.keys()


@pytest.mark.parametrize("name", sorted(name for name, key in SETTINGS.items() if key not in BLOCKS))
def test_a_setting_of_another_tool_is_told_by_its_name_here(name: str) -> None:
    assert closest(name, dotted_fields()) == closest(f"study.{name}", dotted_fields()) == SETTINGS[name]


@pytest.mark.parametrize(
    ("argument", "advice"),
    [
        ("epochs=3", "Did you mean train.epochs?"),
        ("Train-Epochs=3", "Did you mean train.epochs?"),
        ("train/epochs=3", "Did you mean train.epochs?"),
        ("run.epochs=3", "Did you mean train.epochs?"),
        ("train.epochs.x=3", "as train.epochs has no parts. Did you mean train.epochs?"),
        ("study.mode=min", "The table of metrics knows which direction is better: leave it out"),
        ("study.pruner=none", "for its type give study.pruner.type: none"),
        ("study.pruner=null", "for its type give study.pruner.type: none"),
        ("study.sampler=gp", "for its type give study.sampler.type: gp"),
        ("study.budget=24", "give study.budget.trials: 24"),
        ("train={epochs: 3}", "give its settings one by one, as train.epochs=3"),
        ("study.budget.wall_clock=2 minutes", "2 minutes is written 2m"),
        ("study.budget.wall_clock=1.5 hours", "1.5 hours is written 1h30m"),
        ("study.budget.wall_clock=1 h 30 min", "1 h 30 min is written 1h30m"),
        ("study.budget.wall_clock=1 day", "1 day is written 24h"),
        ("study.budget.wall_clock=5 parsecs", "such as 90s, 10m or 2h, got '5 parsecs'"),
        ("study.budget.trials=24 trials", "give the number alone, 24"),
        ("optim.reconstruction_lr=0,001", "decimals have a point, as 0.001"),
        ("data.validation_fraction=20%", "give it as 0.2"),
        (
            "optim.reconstruction_lr=1e-3..1e-1",
            "to search it, put it under `space:`, as optim.reconstruction_lr: {type: float, low: 1e-3, high: 1e-1}",
        ),
        ("train.batch_size=choice([32, 64])", "as train.batch_size: {type: categorical, choices: [32, 64]}"),
    ],
)
def test_a_value_of_another_tool_is_told_as_it_is_written_here(argument: str, advice: str) -> None:
    (told,) = complaints(argument)
    assert told.startswith("command line: ") and advice in told


LR, PRIOR, DIM = "optim.reconstruction_lr", "model.prior", "model.latent_dim"


@pytest.mark.parametrize(
    ("key", "spec", "meant"),
    [
        (LR, "{type: loguniform, low: 1e-4, high: 1e-2}", "{type: float, low: 0.0001, high: 0.01, log: true}"),
        (LR, "{type: uniform, low: 1e-4, high: 1e-2}", "{type: float, low: 0.0001, high: 0.01}"),
        (LR, "{type: Float, min: 1e-4, max: 1e-2}", "{type: float, low: 0.0001, high: 0.01}"),
        (LR, "{distribution: log_uniform_values, min: 1e-4, max: 1}", "{type: float, low: 0.0001, high: 1, log: true}"),
        (LR, "{type: float, low: 1e-4, high: 1, scale: log}", "{type: float, low: 0.0001, high: 1, log: true}"),
        (LR, "{type: float, bounds: [0.1, 1], log_scale: false}", "{type: float, low: 0.1, high: 1}"),
        (LR, "tune.loguniform(1e-4, 1e-1)", "{type: float, low: 1e-4, high: 1e-1, log: true}"),
        (LR, "1e-3..1e-1", "{type: float, low: 1e-3, high: 1e-1}"),
        (LR, "[0.001, 0.1]", "{type: float, low: 0.001, high: 0.1}"),
        (LR, "{values: [0.001, 0.1]}", "{type: categorical, choices: [0.001, 0.1]}"),
        (DIM, "{type: int, min: 2, max: 8}", "{type: int, low: 2, high: 8}"),
        (DIM, "{type: quniform, low: 2, high: 8, q: 2}", "{type: int, low: 2, high: 8, step: 2}"),
        (DIM, "{lower: 2, upper: 8}", "{type: int, low: 2, high: 8}"),
        (DIM, "randint(2, 8)", "{type: int, low: 2, high: 8}"),
        (DIM, "[2, 4, 8]", "{type: categorical, choices: [2, 4, 8]}"),
        (PRIOR, "[gaussian, mixture]", "{type: categorical, choices: [gaussian, mixture]}"),
        (PRIOR, "{type: choice, values: [gaussian, mixture]}", "{type: categorical, choices: [gaussian, mixture]}"),
        (
            PRIOR,
            "{type: categorical, options: [gaussian, mixture]}",
            "{type: categorical, choices: [gaussian, mixture]}",
        ),
        (PRIOR, "tune.choice(['gaussian', 'mixture'])", "{type: categorical, choices: [gaussian, mixture]}"),
        ("health.stop", "{type: bool}", "{type: categorical, choices: [true, false]}"),
    ],
)
def test_a_distribution_of_another_tool_is_told_as_it_is_written_here(key: str, spec: str, meant: str) -> None:
    found = complaints(f"space.{key}={spec}", "study.budget.trials=1")
    assert found and all(f"space {key}: " in told and meant in told for told in found)
    assert read_plan(None, [f"space.{key}={meant}", "study.budget.trials=1"]).space  # the advice is good


def test_a_broken_key_is_not_told_again_at_its_start_point(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(f"space:\n  {PRIOR}: [gaussian, mixture]\nstart:\n  - {{{PRIOR}: gaussian}}\n")
    with pytest.raises(SettingsError) as caught:
        read_plan(str(path))
    assert len(caught.value.problems) == 1


def test_a_secret_in_a_wrong_value_is_not_told() -> None:
    (told,) = complaints("study.folder=ftp://me:SECRET@host/x")
    assert "SECRET" not in told


WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 10**30),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(-1, 3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.lists(st.lists(st.integers(), max_size=2) | st.dictionaries(st.text(max_size=3), st.integers()), max_size=2),
    st.sampled_from(["a == 3", "a = 3", "a => 3", "<=", "3,4", "\udcff", "\x1b[A"]),
)


@settings(max_examples=60, deadline=None)
@given(key=st.sampled_from(sorted(dotted_fields())), value=WRONG)
@example("data.columns", [[1]])
@example("data.columns", [{"a": 1}])
@example("study.constraints", ["val/reconstruction_mse == 3"])
@example("train.epochs", "\udcff")
def test_whatever_a_value_is_it_is_told_in_our_words(key: str, value: Any) -> None:
    entries = read_overrides([f"{key}=0"])
    entries = {key: type(entries[key])(value, "here")}
    for problem in find_problems(entries):
        assert key in problem.keys and not FOREIGN.search(problem.text.replace(repr(value), ""))


@pytest.mark.parametrize("spec", [{"type": "int", "low": 2, "log": True}, {"choices": [True, "a", 1.5]}])
def test_a_distribution_is_shown_as_yaml(spec: dict[str, Any]) -> None:
    entry = read_overrides([f"space.x={flow(spec)}"])["space.x"]
    assert entry.value == spec
