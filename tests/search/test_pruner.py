"""Who goes on at a rung, who is paused there, and who goes on later."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import AsyncHyperBandScheduler

from aae_ray import settings
from aae_ray.search.choice import reference_point
from aae_ray.search.events import ADAPTER, Decided
from aae_ray.search.objectives import dominates
from aae_ray.search.outcomes import RungVerdict
from aae_ray.search.pruner import Pruner, Rung, rungs
from aae_ray.settings import Settings, replace

MSE, JSD, MEAN = "val/reconstruction_mse", "val/jsd_nats", "val/mean_image_mse"
SPEED = "perf/images_per_second"  # the more the better
CONTINUE, PAUSE, STOP = RungVerdict


@pytest.mark.parametrize(
    ("grace", "factor", "epochs", "expected"),
    [(3, 3, 27, [3, 9]), (3, 3, 28, [3, 9, 27]), (1, 2, 9, [1, 2, 4, 8]), (5, 2, 5, []), (7, 4, 5, []), (4, 3, 5, [4])],
)
def test_rungs_lie_below_the_budget(grace: int, factor: int, epochs: int, expected: list[int]) -> None:
    assert rungs(settings.Pruner(grace_period=grace, reduction_factor=factor), epochs) == expected


def test_without_a_pruner_trials_are_measured_at_the_rungs_all_the_same() -> None:
    assert rungs(settings.Pruner(type="none", grace_period=3), 100) == [3, 9, 27, 81]


class AtRung:
    """One rung of a study: trials come one after the other."""

    def __init__(self, names: Sequence[str] = (MSE, JSD), epoch: int = 3, **pruner: object) -> None:
        changes = {f"study.pruner.{key}": value for key, value in pruner.items()}
        study = replace(Settings(), {"study.objectives": tuple(names), **changes}).study
        self.pruner = Pruner(study, reference_point(study.objectives, {MEAN: 1.0}))
        self.names, self.epoch, self.rung, self.count = names, epoch, Rung(), 0

    def reach(self, *values: float, **more: float) -> RungVerdict:
        metrics = dict(zip(self.names, values, strict=False)) | {k.replace("__", "/"): v for k, v in more.items()}
        return self.reach_with(metrics)

    def reach_with(self, metrics: Mapping[str, float]) -> RungVerdict:
        decided = self.pruner.decide(self.count, self.epoch, metrics, self.rung)
        self.count += 1
        self.rung.apply(decided, decided.number)
        return decided.verdict

    def promoted(self) -> list[int]:
        """All that may go on now, in their order."""
        numbers = []
        while (decided := self.pruner.promote(self.epoch, self.rung)) is not None:
            assert decided.verdict is CONTINUE and decided.ahead < decided.reached
            self.rung.apply(decided, decided.number)
            numbers.append(decided.number)
        return numbers


def test_the_first_goes_on_and_then_one_in_reduction_factor() -> None:
    at = AtRung([MSE], metric=MSE)
    assert [at.reach(value) for value in (0.5, 0.6, 0.7, 0.55)] == [CONTINUE, PAUSE, PAUSE, CONTINUE]
    assert at.promoted() == []


def test_who_is_among_the_first_so_far_goes_on_whoever_went_on_before() -> None:
    """More than ceil(n / 3) go on in all where trials come that are better than those that went on."""
    at = AtRung([MSE], metric=MSE)
    assert {at.reach(value) for value in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)} == {CONTINUE}
    assert [at.reach(value) for value in (0.45, 0.55)] == [CONTINUE, PAUSE]  # of eight three go on, and three are ahead


def test_a_paused_trial_goes_on_when_later_results_put_it_ahead() -> None:
    at = AtRung([MSE], metric=MSE)
    assert [at.reach(value) for value in (0.5, 0.6, 0.7)] == [CONTINUE, PAUSE, PAUSE]
    assert at.reach(0.9) is PAUSE and at.promoted() == [1]  # four have been here: two of them go on
    assert [at.reach(0.9) for _ in range(2)] == [PAUSE] * 2 and at.promoted() == []
    assert at.reach(0.9) is PAUSE and at.promoted() == [2]  # seven, three


def test_a_front_as_wide_as_the_rung_does_not_carry_everybody_on() -> None:
    """Capped within the front by exclusive hypervolume: the ends and the gaps go first."""
    at = AtRung()
    for index in random.Random(0).sample(range(50), 50):
        at.reach(index / 50, 0.69 * (1 - index / 50))
    at.promoted()
    gone_on = [number for number, verdict in at.rung.verdicts.items() if verdict is CONTINUE]
    assert len(gone_on) < 30
    last = at.rung.ranks
    first = sorted(range(50), key=lambda number: last.ahead(number, last.values[number], at.pruner.worst))
    assert set(first[:17]) <= set(gone_on)


def test_of_a_front_the_trial_that_adds_most_goes_on() -> None:
    at = AtRung()
    at.reach(0.5, 0.5)
    assert at.reach(0.49, 0.51) is PAUSE  # as good, but next to the first
    assert at.reach(0.1, 0.66) is CONTINUE  # it adds more than the first, and of three one goes on
    assert at.reach(0.9, 0.65) is PAUSE and at.promoted() == []  # of four two, and these have gone on already
    assert [at.reach(0.9, 0.65) for _ in range(3)] == [PAUSE] * 3
    assert at.promoted() == [1]


def test_nobody_goes_on_that_is_worse_than_the_mean_image_however_well_its_codes_match() -> None:
    at = AtRung()
    assert at.reach(0.08, 0.0, val__mean_image_mse=0.07) is STOP  # also where nobody has been before
    assert at.reach(0.06, 0.5, val__mean_image_mse=0.07) is CONTINUE  # and it counts against nobody
    assert AtRung(type="median").reach(0.08, 0.0, val__mean_image_mse=0.07) is STOP
    assert AtRung(type="none").reach(0.08, 0.0, val__mean_image_mse=0.07) is CONTINUE


def test_the_median_rule_stops_whoever_is_behind_half_of_the_trials() -> None:
    at = AtRung([MSE], type="median", metric=MSE)
    assert [at.reach(value) for value in (0.5, 0.6, 0.55, 0.4, 0.7)] == [CONTINUE, STOP, CONTINUE, CONTINUE, STOP]
    assert at.promoted() == []


def test_no_pruner_lets_everyone_go_on() -> None:
    at = AtRung(type="none")
    assert {at.reach(index, index) for index in range(20)} == {CONTINUE}


@pytest.mark.parametrize(
    "bad", [{}, {MSE: 1.0}, {MSE: math.nan, JSD: math.nan}, {MSE: math.inf, JSD: 1.0}, {MSE: -math.inf, JSD: 9.0}]
)
def test_what_is_not_finite_or_not_there_counts_as_infinitely_bad(bad: dict[str, float]) -> None:
    at = AtRung()
    at.reach(0.5, 0.5)
    at.reach(0.6, 0.4)
    assert at.reach_with(bad) is PAUSE
    for _ in range(30):
        assert at.reach(0.55, 0.45) in (CONTINUE, PAUSE)
    assert 2 not in at.promoted()


def test_a_named_metric_alone_decides_and_need_not_be_an_objective() -> None:
    at = AtRung([MSE, JSD], metric=JSD)
    assert [at.reach(*values) for values in ((1, 0.9), (2, 0.1), (3, 0.0))] == [CONTINUE, CONTINUE, CONTINUE]
    at = AtRung([MSE], metric=JSD)
    assert [at.reach(1.0, val__jsd_nats=value) for value in (0.1, 0.2, 0.0)] == [CONTINUE, PAUSE, CONTINUE]


def test_a_metric_of_which_more_is_better_counts_the_other_way_round() -> None:
    at = AtRung([SPEED])
    assert [at.reach(value) for value in (3.0, 2.0, 1.0, 4.0, math.nan, math.inf)] == [
        CONTINUE, PAUSE, PAUSE, CONTINUE, PAUSE, PAUSE,
    ]  # fmt: skip


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_one_metric_is_asha_with_the_cut_of_ray(factor: int, seed: int) -> None:
    """From `factor` trials on, who goes on at once is above the 1 - 1 / factor quantile of the values at the rung."""
    draw = random.Random(seed)
    at, seen = AtRung([MSE], metric=MSE, reduction_factor=factor), []
    for _ in range(40):
        seen.append(draw.random())
        verdict = at.reach(seen[-1])
        if len(seen) >= factor:
            asha = AsyncHyperBandScheduler(metric="loss", mode="min", reduction_factor=factor, grace_period=3, max_t=27)
            cut = asha._brackets[0].cutoff({str(place): -value for place, value in enumerate(seen)})
            assert (verdict is CONTINUE) == (-seen[-1] >= cut - 1e-12)  # Ray interpolates between two values


VALUES = st.tuples(st.floats(0, 1.5) | st.just(math.nan), st.floats(0, 1.0) | st.just(math.nan))


@given(trials=st.lists(VALUES, min_size=1, max_size=30), factor=st.integers(2, 4), asks=st.data())
def test_who_has_gone_on_is_exactly_who_was_once_among_the_first(
    trials: list[tuple[float, float]], factor: int, asks: st.DataObject
) -> None:
    """By the rule in words: peel off fronts by hand, order the last one by hypervolume, take ceil(n / factor)."""
    at, expected = AtRung(reduction_factor=factor), set[int]()
    for number, (mse, jsd) in enumerate(trials):
        if at.reach(mse, jsd) is CONTINUE:
            expected.add(number)
        known = at.rung.ranks.values
        assert (at.rung.verdicts[number] is CONTINUE) == (number in first(known, factor, at))
        if asks.draw(st.booleans()):
            while waiting := first(known, factor, at) - expected:
                order = sorted(waiting, key=lambda each: at.rung.ranks.ahead(each, known[each], at.pruner.worst))
                decided = at.pruner.promote(3, at.rung)
                assert decided is not None and decided.number == order[0]
                at.rung.apply(decided, decided.number)
                expected.add(order[0])
            assert at.promoted() == []


def first(values: Mapping[int, tuple[float, ...]], factor: int, at: AtRung) -> set[int]:
    """The first ceil(n / factor) of the trials, front by front."""
    places, taken, left = math.ceil(len(values) / factor), set[int](), dict(values)
    while left and len(taken) < places:
        front = {n for n, p in left.items() if not any(dominates(q, p) for q in left.values())}
        order = sorted(front, key=lambda n: at.rung.ranks.ahead(n, values[n], at.pruner.worst))
        taken |= set(order[: places - len(taken)])
        left = {n: p for n, p in left.items() if n not in front}
    return taken


def test_a_decision_of_the_first_release_is_still_read(tmp_path: Path) -> None:
    line = {"event": "decided", "time": 1.0, "number": 4, "rung": 9, "values": [0.1, "inf"], "better": 3, "reached": 7}
    old = [ADAPTER.validate_json(json.dumps(line | {"stop": stop})) for stop in (True, False)]
    assert [(each.verdict, each.ahead) for each in old if isinstance(each, Decided)] == [(STOP, 3), (CONTINUE, 3)]


def test_constraints_are_not_asked_at_a_rung() -> None:
    at = AtRung()
    at.pruner = Pruner(replace(Settings(), {"study.constraints": [f"{MSE} <= 0.3"]}).study, at.pruner.worst)
    assert at.reach(0.5, 0.1) is CONTINUE and at.reach(0.2, 0.6) is PAUSE
    assert at.rung.ranks.values == {0: (0.5, 0.1), 1: (0.2, 0.6)}
