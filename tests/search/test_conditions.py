"""Searched keys that only some trials have: how they are read, suggested, recorded and resumed."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from aae_ray.errors import Kind, Problem, SettingsError
from aae_ray.reporting.cards import resolved
from aae_ray.search.conditions import Conditions, is_active, parents_first, with_parents
from aae_ray.search.distributions import Space
from aae_ray.search.points import fits, points, space_size
from aae_ray.search.sampler import SAMPLERS, Sampler, optuna_study
from aae_ray.search.space import Plan, plan_from, read_plan, record_plan
from aae_ray.settings.rules import WITHOUT_CONDITIONS
from aae_ray.study.checks import changed_settings
from tests.search.histories import History
from tests.search.test_conductor import begin, plan_of, resume, run

PRIOR, PARTS, SCALE = "model.prior", "model.prior_components", "model.prior_scale"
SPACE: Space = {
    PARTS: IntDistribution(2, 4),
    PRIOR: CategoricalDistribution(("gaussian", "uniform", "mixture")),
    SCALE: CategoricalDistribution((0.5, 1.0)),
    "optim.algorithm": CategoricalDistribution(("adam", "sgd")),
    "optim.beta2": CategoricalDistribution((0.9, 0.99)),
}
CONDITIONS: Conditions = {
    PARTS: {PRIOR: ("mixture",)},
    SCALE: {PRIOR: ("gaussian", "mixture")},
    "optim.beta2": {"optim.algorithm": ("adam",), SCALE: (1.0,)},
}
FILE = """
study: {budget: {trials: 3}}
run:
  model.prior_components: 7
space:
  model.prior_components: {type: int, low: 2, high: 20, when: {model.prior: [mixture]}}
  model.prior: {type: categorical, choices: [gaussian, mixture]}
"""


def plan(file: Path, text: str, *overrides: str) -> Plan:
    file.write_text(text)
    return read_plan(str(file), overrides)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "study.yaml"


def problems(file: Path, text: str, *overrides: str) -> tuple[Problem, ...]:
    with pytest.raises(SettingsError) as caught:
        plan(file, text, *overrides)
    return caught.value.problems


# -------------------------------------------------------------------------------------------------------- the points


def test_a_key_is_active_where_all_its_parents_have_one_of_the_choices() -> None:
    assert is_active(PRIOR, {}, CONDITIONS)
    assert is_active(PARTS, {PRIOR: "mixture"}, CONDITIONS)
    assert not is_active(PARTS, {PRIOR: "uniform"}, CONDITIONS)
    assert not is_active("optim.beta2", {"optim.algorithm": "adam"}, CONDITIONS)  # its other parent is not active


def test_parents_come_first_and_else_the_order_stays() -> None:
    assert parents_first(SPACE, CONDITIONS) == [PRIOR, PARTS, SCALE, "optim.algorithm", "optim.beta2"]
    assert parents_first(SPACE, {}) == list(SPACE)


def test_the_points_are_counted_as_they_are_listed() -> None:
    listed = list(points(SPACE, CONDITIONS))
    # mixture: 3 components; scale 0.5: 2 algorithms; scale 1: adam with 2 betas, or sgd: 5. gaussian: 5. uniform: 2.
    assert len(listed) == space_size(SPACE, CONDITIONS) == 3 * 5 + 5 + 2
    assert len({tuple(sorted(point.items())) for point in listed}) == len(listed)
    assert all(fits(point, SPACE, CONDITIONS) for point in listed)
    assert space_size({**SPACE, SCALE: FloatDistribution(1, 2)}, {PARTS: {PRIOR: ("mixture",)}}) is None


@given(st.data())
def test_only_a_point_of_the_space_fits(data: st.DataObject) -> None:
    every = list(points(SPACE, CONDITIONS))
    values: dict[str, list[Any]] = {
        PARTS: [2, 3, 4],
        PRIOR: ["gaussian", "uniform", "mixture"],
        SCALE: [0.5, 1.0],
        "optim.algorithm": ["adam", "sgd"],
        "optim.beta2": [0.9, 0.99],
    }
    keys = data.draw(st.sets(st.sampled_from(sorted(values))))
    params = {key: data.draw(st.sampled_from(values[key])) for key in sorted(keys)}
    assert fits(params, SPACE, CONDITIONS) == (params in every)


def test_values_are_completed_by_the_choices_that_make_them_active() -> None:
    assert with_parents({"optim.beta2": 0.9, PARTS: 3}, CONDITIONS) == {
        "optim.beta2": 0.9,
        PARTS: 3,
        SCALE: 1.0,
        "optim.algorithm": "adam",
        PRIOR: "mixture",
    }
    assert with_parents({PARTS: 3, PRIOR: "gaussian"}, CONDITIONS) is None
    assert with_parents({PRIOR: "gaussian"}, CONDITIONS) == {PRIOR: "gaussian"}


# ------------------------------------------------------------------------------------------------------- how it is read


def test_a_condition_is_read_and_its_key_keeps_the_value_that_applies_without_it(file: Path) -> None:
    found = plan(file, FILE)
    assert found.conditions == {PARTS: {PRIOR: ("mixture",)}}
    assert found.settings.model.prior_components == 7
    nested = FILE.replace("when: {model.prior: [mixture]}", "when: {model: {prior: [mixture]}}")
    assert plan(file, nested) == found
    whole = "space.model.prior_components={type: int, low: 2, high: 20, when: {model.prior: [mixture]}}"
    assert plan(file, FILE, whole) == found
    (told,) = problems(file, FILE, "space.model.prior_components={type: int, low: 2, high: 20}")  # in every trial
    assert told.kind is Kind.DUPLICATE and told.where == f"{file}:4"


def test_the_resolved_file_and_the_journal_say_the_same(file: Path) -> None:
    found = plan(file, FILE)
    assert plan(file, resolved(found)) == found
    assert yaml.safe_load(resolved(found))["run"][PARTS] == 7
    assert plan_from(record_plan(found).model_validate_json(record_plan(found).model_dump_json())) == found
    other = replace(found, conditions={})
    (change,) = changed_settings(found, other).values()
    assert change[0].endswith("when model.prior in ['mixture']") and "when" not in change[1]


def test_the_command_line_decides_a_condition_by_fixing_or_narrowing_its_parent(file: Path) -> None:
    start = FILE + "start: [{model.prior: mixture, model.prior_components: 5}]\n"
    mixture = plan(file, start, "model.prior=mixture")
    assert mixture.space.keys() == {PARTS} and not mixture.conditions and mixture.start == ({PARTS: 5},)
    gaussian = plan(file, start, "model.prior=gaussian")
    assert not gaussian.space and gaussian.settings.model.prior_components == 7
    narrow = plan(file, start, "space.model.prior.choices=[gaussian, uniform]", "study.budget.trials=2")
    assert narrow.space.keys() == {PRIOR} and not narrow.conditions and narrow.start == ({},)


@pytest.mark.parametrize(
    ("when", "parts"),
    [
        ("{model.prio: [mixture]}", ["when model.prio: it is not searched. Did you mean model.prior?"]),
        ("{model.hidden: [64-32]}", ["when model.hidden: it is not searched"]),
        ("{model.latent_dim: [4]}", ["when model.latent_dim: it is not categorical"]),
        ("{model.prior: [mixtures]}", ["mixtures is not among its choices, gaussian, mixture"]),
        ("{model.prior: mixture}", ["must be a list of its choices, got 'mixture'"]),
        ("{model.prior: []}", ["must be a list of its choices, got []"]),
        ("[model.prior]", ["when must name other searched keys and their choices"]),
        ("mixture", ["when must name other searched keys and their choices"]),
    ],
)
def test_a_condition_that_names_what_is_not_there_is_told(file: Path, when: str, parts: list[str]) -> None:
    text = FILE.replace("{model.prior: [mixture]}", when) + "  model.latent_dim: {type: int, low: 2, high: 8}\n"
    (told,) = problems(file, text)
    assert told.where == f"{file}:6" and told.text.startswith("space model.prior_components: ")
    assert all(part in told.text for part in parts), told.text


def test_conditions_in_a_circle_are_told_each_circle_once(file: Path) -> None:
    found = problems(
        file,
        """
space:
  model.prior: {type: categorical, choices: [gaussian, mixture], when: {model.network: [dense]}}
  model.network: {type: categorical, choices: [dense, convolutional], when: {optim.algorithm: [sgd]}}
  optim.algorithm: {type: categorical, choices: [adam, sgd], when: {model.prior: [mixture]}}
  task: {type: categorical, choices: [unsupervised, clustering], when: {task: [clustering]}}
""",
    )
    assert [problem.keys for problem in found] == [("model.prior", "model.network", "optim.algorithm"), ("task",)]
    assert "model.prior -> model.network -> optim.algorithm -> model.prior" in found[0].text
    assert "task -> task" in found[1].text and found[1].where == f"{file}:6"


@pytest.mark.parametrize(
    ("point", "part"),
    [
        ("{model.prior: gaussian, model.prior_components: 5}", "only with model.prior mixture, not gaussian"),
        ("{model.prior_components: 5}", "only with model.prior mixture, not left out"),
    ],
)
def test_a_start_point_has_no_inactive_keys(file: Path, point: str, part: str) -> None:
    (told,) = problems(file, FILE + f"start: [{point}]\n")
    assert part in told.text and told.keys == (PARTS,) and told.where == f"{file}:8"


def test_rules_are_judged_among_the_combinations_that_there_are(file: Path) -> None:
    text = """
run: {model.posterior: gaussian, model.prior: gaussian}
space:
  task: {type: categorical, choices: [unsupervised, vae]}
  model.prior: {type: categorical, choices: [uniform, swiss_roll], when: {task: [%s]}}
"""
    assert plan(file, text % "unsupervised", "study.budget.trials=3").conditions
    (told,) = problems(file, text % "vae", "study.budget.trials=3")
    assert told.kind is Kind.RULE and "task vae needs" in told.text


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_that_cannot_take_conditions_is_refused(file: Path, sampler: str) -> None:
    change = f"study.sampler.type={sampler}"
    if sampler in WITHOUT_CONDITIONS:
        (told,) = problems(file, FILE, change)
        assert told.keys == ("study.sampler.type", PARTS) and told.where == f"{file}:6"
        assert f"study.sampler.type {sampler} does not learn from what only some trials have" in told.text
    else:
        assert plan(file, FILE, change).conditions


# -------------------------------------------------------------------------------------------------- how it is searched

SAMPLED = [sampler for sampler in SAMPLERS if sampler not in WITHOUT_CONDITIONS]


def conditional_plan(sampler: str, **changes: object) -> Plan:
    settings = plan_of(study__sampler__type=sampler, study__budget__trials=18, **changes).settings
    return Plan(settings, SPACE, ({PRIOR: "mixture", PARTS: 3},), CONDITIONS)


@pytest.mark.parametrize("sampler", SAMPLED)
def test_every_suggestion_is_a_point_and_a_resumed_study_goes_on_alike(tmp_path: Path, sampler: str) -> None:
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole = begin(tmp_path / "whole", conditional_plan(sampler))
    run(whole)
    tried = [trial.params for trial in whole.ledger.trials]
    assert len(tried) == 18 and all(fits(params, SPACE, CONDITIONS) for params in tried)
    assert tried[0][PRIOR] == "mixture" and tried[0][PARTS] == 3
    assert max(Counter(str(sorted(params.items())) for params in tried).values()) == 1
    broken = begin(tmp_path / "broken", conditional_plan(sampler))
    for _ in range(5):
        broken.suggest()
        broken.taken_back(len(broken.ledger.trials) - 1)
    broken.journal.close()
    again = resume(tmp_path / "broken")
    run(again)
    assert [trial.params for trial in again.ledger.trials] == tried
    assert all(trial.params.keys() == trial.distributions.keys() for trial in optuna_study(again.ledger).trials)


def test_the_groups_of_tpe_learn_from_the_trials_that_have_a_key() -> None:
    """Whether `study.sampler.group` is on changes what is drawn where keys occur in some trials alone."""
    drawn = []
    for group in (True, False):
        changes = {"study__sampler__multivariate": True, "study__sampler__group": group, "study__budget__trials": 99}
        settings = plan_of(study__sampler__type="tpe", **changes).settings
        space: Space = {
            PRIOR: CategoricalDistribution(("gaussian", "mixture")),
            SCALE: FloatDistribution(0.1, 1.0),
            "optim.beta2": FloatDistribution(0.1, 0.9),
        }
        when: Conditions = {SCALE: {PRIOR: ("mixture",)}, "optim.beta2": {PRIOR: ("gaussian",)}}
        history = History(Plan(settings, space, (), when))
        tool = Sampler(history.ledger)
        for number in range(24):
            suggested = tool.suggest(number)
            assert suggested is not None
            history.begin(*suggested)
            history.report(number, 27, 0.1 + number / 50, 0.2)
            history.end(number)
        drawn.append([trial.params for trial in history.ledger.trials])
    assert drawn[0] != drawn[1]
