"""The best trial of a front, by references that no front can move."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aae_ray.evaluation.metrics import METRICS
from aae_ray.search.choice import RULES, judged_by, reference_point, scaled, score, select

MSE, JSD, MEAN, FLOOR = "val/reconstruction_mse", "val/jsd_nats", "val/mean_image_mse", "val/jsd_nats_floor"
OBJECTIVES = (MSE, JSD)


def trial(mse: float, jsd: float, **more: float) -> dict[str, float]:
    return {MSE: mse, JSD: jsd, MEAN: 0.08, FLOOR: 0.0} | {
        name.replace("__", "/"): value for name, value in more.items()
    }


def choose(*front: dict[str, float], rule: str = "nearest_to_ideal") -> int:
    return select(front, OBJECTIVES, rule)


@pytest.mark.parametrize("rule", [*RULES, "val/scaled_sliced_wasserstein"])
def test_of_one_trial_that_one(rule: str) -> None:
    assert choose(trial(0.02, 0.1), rule=rule) == 0


def test_of_two_trials_neither_is_chosen_for_its_place_in_the_list() -> None:
    """Scaled over themselves the two are the ends, equally far from the ideal, whatever they are."""
    good, bad = trial(0.0156, 0.0055), trial(0.0132, 0.45)
    assert choose(good, bad) == 0 and choose(bad, good) == 1


def test_three_unlike_trials_are_measured_by_the_mean_image_and_log_2() -> None:
    sharp, even, matched = trial(0.008, 0.6), trial(0.016, 0.07), trial(0.07, 0.001)
    # Shares of the worst: (0.1, 0.87), (0.2, 0.1), (0.875, 0.001).
    for order in ((sharp, even, matched), (matched, sharp, even), (even, matched, sharp)):
        assert order[choose(*order)] is even
        assert order[choose(*order, rule="first_objective")] is sharp
        assert order[choose(*order, rule=JSD)] is matched
        assert order[choose(*order, rule="hypervolume")] is even


@given(st.permutations([(0.01, 0.3), (0.02, 0.1), (0.04, 0.05)]), st.floats(0.05, 0.5), st.floats(0.0, 0.6))
def test_a_trial_that_is_not_chosen_does_not_change_who_is(
    front: list[tuple[float, float]], mse: float, jsd: float
) -> None:
    """Independence of irrelevant alternatives: a scale over the front itself does not have it."""
    trials = [trial(*values) for values in front]
    chosen = trials[choose(*trials)]
    more = [*trials, trial(mse, jsd)]
    assert more[choose(*more)] in (chosen, more[-1])


def test_of_equally_near_trials_the_smaller_product_decides() -> None:
    far = trial(0.08 * 0.5, 0.0)  # (0.5, 0)
    even = trial(0.08 * 0.3, math.log(2) * 0.4)  # (0.3, 0.4)
    assert choose(even, far) == 1 and choose(far, even) == 0


def test_a_divergence_below_its_floor_is_as_good_as_one_there() -> None:
    assert scaled(JSD, trial(0.02, 0.001, val__jsd_nats_floor=0.004)) == 0
    assert scaled(JSD, trial(0.02, math.log(2), val__jsd_nats_floor=0.004)) == pytest.approx(1)
    assert scaled(MSE, trial(0.08, 0.1)) == 1 and scaled(MSE, trial(0.16, 0.1)) == 2
    assert math.isnan(scaled(JSD, {MSE: 0.1}))


def test_a_metric_that_was_not_measured_loses() -> None:
    measured, not_measured = trial(0.02, 0.1, val__nmi=0.1), trial(0.01, 0.05)
    assert choose(not_measured, measured, rule="val/nmi") == 1


def test_a_choice_names_what_it_looks_at() -> None:
    assert judged_by(OBJECTIVES, "nearest_to_ideal") == {MSE, JSD, MEAN, FLOOR}
    assert judged_by(OBJECTIVES, "val/nmi") == {MSE, JSD, MEAN, FLOOR, "val/nmi"}
    assert reference_point(OBJECTIVES, trial(0.1, 0.1)) == (0.08, math.log(2))
    assert reference_point((MSE, "perf/images_per_second"), trial(0.1, 0.1)) is None


def test_every_metric_that_is_searched_on_has_a_worst_or_a_unit_like_those_of_others() -> None:
    """A nat, or a standard deviation of the prior, is about what log 2 is to the bound."""
    without = {name for name, metric in METRICS.items() if metric.direction and metric.worst is None}
    own_unit = {"val/kl_aggregate_nats", "val/scaled_sliced_wasserstein", "val/label_entropy_nats"}
    assert without == own_unit | {"perf/images_per_second"}  # nobody searches on the last


def test_a_kernel_distance_counts_beside_an_error_and_not_in_its_place() -> None:
    """Its unit is the kernel's: 4 to 28 on the digits, where errors and the bound are below 1."""
    kid, objectives = "val/kid_local", (MSE, "val/kid_local")

    def judged(mse: float, distance: float) -> dict[str, float]:
        return {MSE: mse, MEAN: 0.08, kid: distance, "val/kid_local_ceiling": 40.0}

    blurred, even, sharp = judged(0.072, 4.0), judged(0.016, 8.0), judged(0.012, 36.0)
    for rule in ("nearest_to_ideal", "hypervolume"):
        assert select([blurred, sharp, even], objectives, rule) == 2, rule
    assert reference_point(objectives, even) == (0.08, 40.0)
    early = {name: value for name, value in even.items() if not name.startswith(kid)}
    assert reference_point(objectives, early) is None  # between rungs samples are not judged
    assert scaled(kid, {kid: 8.0}) == 8.0  # of a study that did not measure the worst
    assert score(even, objectives, "hypervolume") < score(blurred, objectives, "hypervolume") < 1
