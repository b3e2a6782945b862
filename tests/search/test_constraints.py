"""Constraints on metrics: how they are read, and how far a trial is from them."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aae_ray.errors import SettingsError
from aae_ray.search.constraints import Constraint, constrained, constraints_of, violation
from aae_ray.search.space import read_plan

MSE, STD = "val/reconstruction_mse", "val/code_std"
BOTH = (Constraint(MSE, "<=", 0.03), Constraint(STD, ">=", 0.5))


def test_constraints_are_read_from_a_list_or_one_alone(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(f"study: {{constraints: [{MSE} <= 3e-2, {STD}>=0.5]}}\n")
    assert constraints_of(read_plan(str(file)).settings.study) == BOTH
    plan = read_plan(None, [f"study.constraints={MSE}<=0.03"])
    assert constraints_of(plan.settings.study) == BOTH[:1]
    assert constraints_of(read_plan(None).settings.study) == ()


@pytest.mark.parametrize(
    ("metrics", "amount"),
    [
        ({MSE: 0.03, STD: 0.5}, 0.0),
        ({MSE: 0.01, STD: 0.9}, 0.0),
        ({MSE: 0.06, STD: 0.9}, 1.0),
        ({MSE: 0.06, STD: 0.25}, 1.5),
        ({MSE: 0.03}, math.inf),
        ({MSE: math.nan, STD: 0.5}, math.inf),
    ],
)
def test_a_violation_is_what_lies_beyond_the_bounds_as_a_share_of_them(
    metrics: dict[str, float], amount: float
) -> None:
    assert violation(BOTH, metrics) == pytest.approx(amount)


@given(st.floats(-1, 1), st.floats(-1, 1), st.sampled_from(["<=", ">="]))
def test_a_constraint_holds_where_nothing_lies_beyond_it(bound: float, value: float, op: str) -> None:
    constraint = Constraint(MSE, op, bound)
    holds = value <= bound if op == "<=" else value >= bound
    assert (violation([constraint], {MSE: value}) == 0) == holds == (constraint.excess({MSE: value}) <= 0)


@pytest.mark.parametrize(
    ("constraints", "part"),
    [
        ("[val/reconstruction_mse < 0.03]", "expected a metric, <= or >=, and a number"),
        ("[val/reconstruction_mse <= low]", "expected a metric, <= or >=, and a number"),
        ("[val/reconstruction_mse <= .inf]", "expected a metric, <= or >=, and a number"),
        ("[val/reconstruction_mse]", "expected a metric, <= or >=, and a number"),
        ("[0.03]", "expected text"),
        ("{val/jsd_nats: 0.1}", "study.constraints"),
        ("[val/reconstructon_mse <= 0.03]", "is not a metric of held-out images. Did you mean val/reconstruction_mse?"),
        ("[test/jsd_nats <= 0.03]", "test/jsd_nats is not a metric of held-out images"),
        ("[val/reconstruction_mse <= -1]", "cannot be met, as val/reconstruction_mse is never below 0"),
        ("[val/code_std <= -0.1]", "cannot be met, as val/code_std is never below 0"),
        ("[val/jsd_nats <= -0.5]", "cannot be met, as val/jsd_nats is never below 0"),
        ("[val/jsd_nats >= 0.9]", "cannot be met, as val/jsd_nats is never above 0.693"),
        ("[val/kid_local <= -0.5]", "cannot be met, as val/kid_local is never below 0"),
        ("[val/nmi >= 1.5]", "cannot be met, as val/nmi is never above 1"),
        ("[val/nmi <= -0.1]", "cannot be met, as val/nmi is never below 0"),
        ("[val/noise_use >= 2]", "cannot be met, as val/noise_use is never above 1"),
        ("[val/classification_error >= 2]", "cannot be met, as val/classification_error is never above 1"),
        (
            "[val/jsd_nats <= 0.1, val/jsd_nats >= 0.2]",
            "val/jsd_nats <= 0.1 and val/jsd_nats >= 0.2 cannot be met together",
        ),
    ],
)
def test_what_nobody_can_keep_to_is_told_with_its_line(tmp_path: Path, constraints: str, part: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(f"study:\n  constraints: {constraints}\n")
    with pytest.raises(SettingsError) as caught:
        read_plan(str(file))
    (told,) = caught.value.problems
    assert told.where == f"{file}:2" or constraints.startswith("{")
    assert part in told.text and told.concerns("study.constraints")


@pytest.mark.parametrize(
    "constraints",
    [
        "[val/jsd_nats >= 0.1, val/jsd_nats <= 0.1, val/jsd_nats >= -1]",
        "[val/kid_local <= -0.001, val/jsd_nats <= -0.001, val/ari <= -0.1]",  # as estimates may come out by chance
        "[val/reconstruction_mse <= 0, val/nmi >= 1, val/label_entropy_nats >= 3, val/clusters_used >= 16]",
    ],
)
def test_bounds_that_can_be_met_are_taken(constraints: str) -> None:
    found = read_plan(None, [f"study.constraints={constraints}"]).settings.study.constraints
    assert len(found) == constraints.count("=")


MOST = "model.clusters of at most 16"


@pytest.mark.parametrize(
    ("constraint", "changes", "told"),
    [
        ("val/clusters_used >= 17", [], f"val/clusters_used is never above 16 with {MOST}"),
        ("val/cluster_entropy_nats >= 2.78", [], f"val/cluster_entropy_nats is never above 2.773 with {MOST}"),
        ("val/label_entropy_nats >= 3", ["task=reduction"], f"val/label_entropy_nats is never above 2.773 with {MOST}"),
        ("val/clusters_used >= 17", ["model.clusters=many"], None),  # which may have been meant for more
        ("val/clusters_used >= 17", ["model.clusters=20"], None),
        ("val/clusters_used >= 17", ["space.model.clusters={type: int, low: 8, high: 20}"], None),
        ("val/clusters_used >= 21", ["space.model.clusters={type: int, low: 8, high: 20}"], "is never above 20"),
        ("val/cluster_entropy_nats >= 2.772588722239781", [], None),  # log 16
        ("val/clusters_used >= 17", ["task=supervised"], None),  # told with the data, as it is not measured
        (
            "val/label_entropy_nats >= 3",
            ["space.task={type: categorical, choices: [clustering, semi_supervised]}"],
            None,
        ),
    ],
)
def test_a_bound_that_the_number_of_clusters_does_not_allow_is_told(
    constraint: str, changes: list[str], told: str | None
) -> None:
    task = [] if any("task" in change for change in changes) else ["task=clustering"]
    overrides = [f"study.constraints=[{constraint}]", "study.budget.trials=1", *task, *changes]
    try:
        read_plan(None, overrides)
        found = []
    except SettingsError as error:
        found = [problem.text for problem in error.problems if problem.concerns("study.constraints")]
    assert len(found) == (told is not None) and (told is None or told in found[0]), found


@given(st.floats(1e-12, 1e6), st.floats(1e-6, 1), st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=3))
def test_of_two_that_violate_constraints_the_smaller_violation_comes_first(
    beyond: float, more: float, values: list[float]
) -> None:
    near, far = constrained(values, beyond), constrained(values, beyond * (1 + more) + 1e-12)
    assert tuple(values) == constrained(values, 0.0) < near < far and all(map(math.isfinite, far))


def test_small_violations_are_told_apart() -> None:
    assert constrained([0.1], 2e-5) < constrained([0.1], 3e-5) < constrained([0.1], math.inf)
