"""Non-dominated fronts, the choice of the best point, and who is stopped at a rung."""

import math
import random
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import AsyncHyperBandScheduler

from aae_ray import settings
from aae_ray.search.ledger import Rung
from aae_ray.search.objectives import Front, Ranks, dominates, nearest_to_ideal, select
from aae_ray.search.pruner import decide, judged_values, rungs
from aae_ray.settings import Settings, replace

MSE, JSD = "val/reconstruction_mse", "val/jsd_nats"
SPEED = "perf/images_per_second"  # the more the better
CONTINUE, STOP = "CONTINUE", "STOP"


# ------------------------------------------------------------------------------------------------------------- fronts


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((1, 1), (2, 2), True),
        ((1, 2), (1, 3), True),
        ((1, 1), (1, 1), False),
        ((1, 3), (2, 2), False),
        ((2, 2), (1, 1), False),
        ((1,), (2,), True),
        ((0, math.inf), (1, math.inf), True),
        ((math.inf, math.inf), (math.inf, math.inf), False),
    ],
)
def test_a_point_dominates_where_it_is_nowhere_worse_and_somewhere_better(
    a: Sequence[float], b: Sequence[float], expected: bool
) -> None:
    assert dominates(a, b) is expected


def fronts(points: Sequence[Sequence[float]]) -> list[int]:
    """The front of each point, once all have come."""
    ranks = Ranks()
    for number, point in enumerate(points):
        ranks.insert(number, point)
    return [ranks.rank(point) for point in points]


def test_fronts_of_points_drawn_by_hand() -> None:
    points = [(1, 4), (2, 2), (4, 1), (2, 4), (3, 3), (5, 5), (2, 2)]
    assert fronts(points) == [0, 0, 0, 1, 1, 2, 0]
    assert fronts([]) == []
    assert fronts([(3,), (1,), (2,), (1,)]) == [2, 0, 1, 0]


@pytest.mark.parametrize("seed", range(20))
def test_fronts_are_the_longest_chains_of_domination(seed: int) -> None:
    """An independent definition: how many points at most lie above a point, each dominating the next."""
    draw = random.Random(seed)
    size = draw.choice([1, 2, 3])
    points = [
        tuple(draw.choice([0.0, 0.25, 0.5, 0.75, 1.0, math.inf]) for _ in range(size))
        for _ in range(draw.randrange(1, 25))
    ]

    def above(point: Sequence[float]) -> int:
        return max((1 + above(other) for other in points if worse(point, other)), default=0)

    def worse(point: Sequence[float], other: Sequence[float]) -> bool:
        return point != other and not any(x < y for x, y in zip(point, other, strict=True))

    assert fronts(points) == [above(point) for point in points]


def test_the_nearest_to_the_ideal_is_the_knee_whatever_the_units() -> None:
    points = [(0.0, 10.0), (1.0, 1.0), (10.0, 0.0)]
    assert nearest_to_ideal(points) == 1
    assert nearest_to_ideal([(1e-6 * x, 1e6 * y) for x, y in points]) == 1
    assert nearest_to_ideal([(3.0, 7.0)]) == 0


def test_an_objective_in_which_all_are_equal_decides_nothing() -> None:
    assert nearest_to_ideal([(5.0, 2.0), (5.0, 1.0), (5.0, 3.0)]) == 1
    assert nearest_to_ideal([(5.0, 2.0), (5.0, 2.0)]) == 0


def test_the_rules_of_selection() -> None:
    points = [(2.0, 2.0), (1.0, 9.0), (9.0, 1.0), (1.0, 8.0)]
    assert select(points, "nearest_to_ideal") == 0
    assert select(points, "first_objective") == 3  # the second objective breaks the tie of the first


# -------------------------------------------------------------------------------------------------------------- rungs


@pytest.mark.parametrize(
    ("grace", "factor", "epochs", "expected"),
    [(3, 3, 27, [3, 9]), (3, 3, 28, [3, 9, 27]), (1, 2, 9, [1, 2, 4, 8]), (5, 2, 5, []), (7, 4, 5, []), (4, 3, 5, [4])],
)
def test_rungs_lie_below_the_budget(grace: int, factor: int, epochs: int, expected: list[int]) -> None:
    assert rungs(settings.Pruner(grace_period=grace, reduction_factor=factor), epochs) == expected


def test_without_a_pruner_trials_are_measured_at_the_rungs_all_the_same() -> None:
    assert rungs(settings.Pruner(type="none"), 100) == [3, 9, 27, 81]


# ----------------------------------------------------------------------------------------------------------- the rule


class Pruner:
    """The rule over the rungs of a study: what the conductor does with a trial's report."""

    def __init__(self, study: settings.StudySettings, epochs: int) -> None:
        self.study, self.epochs = study, epochs
        self.reached: dict[int, Rung] = {}
        self.numbers: dict[str, int] = {}

    def report(self, name: str, metrics: Mapping[str, float], epoch: int) -> str:
        if epoch not in rungs(self.study.pruner, self.epochs):
            return CONTINUE
        number, rung = self.numbers.setdefault(name, len(self.numbers)), self.reached.setdefault(epoch, Rung())
        if number not in rung.verdicts:
            values = judged_values(self.study, metrics)
            decision = decide(number, epoch, values, rung.ranks, self.study.pruner.reduction_factor)
            rung.ranks.insert(number, values)
            rung.verdicts[number] = decision.stop
        return STOP if rung.verdicts[number] else CONTINUE


def pruner_for(
    objectives: Sequence[str] = (MSE, JSD), *, metric: str = "front", factor: int = 3, grace: int = 3
) -> Pruner:
    run = replace(
        Settings(),
        {
            "study.objectives": tuple(objectives),
            "study.pruner.metric": metric,
            "study.pruner.reduction_factor": factor,
            "study.pruner.grace_period": grace,
        },
    )
    return Pruner(run.study, epochs=27)


def show(pruner: Pruner, name: str, values: Mapping[str, float], epoch: int = 3) -> str:
    return pruner.report(name, values, epoch)


def show_all(pruner: Pruner, points: Sequence[Sequence[float]], names: Sequence[str] = (MSE, JSD)) -> list[str]:
    return [show(pruner, f"t{index}", dict(zip(names, point, strict=True))) for index, point in enumerate(points)]


def test_nobody_is_stopped_before_as_many_as_the_reduction_factor_have_been_there() -> None:
    assert show_all(pruner_for(), [(1, 1), (9, 9)]) == [CONTINUE, CONTINUE]
    assert show_all(pruner_for(factor=5), [(1, 1), (2, 2), (3, 3), (4, 4)]) == [CONTINUE] * 4


def test_the_dominated_are_stopped_and_the_first_front_never_is() -> None:
    # (5, 5) comes third and one of three is better; (2, 8) and (8, 2) join the front; (9, 9) has three better ones.
    points = [(4, 4), (9, 1), (5, 5), (2, 8), (8, 2), (9, 9), (1, 1)]
    assert show_all(pruner_for(), points) == [CONTINUE, CONTINUE, STOP, CONTINUE, CONTINUE, STOP, CONTINUE]


def test_a_front_as_wide_as_the_rung_stops_nobody() -> None:
    assert set(show_all(pruner_for(factor=2), [(index, 50 - index) for index in range(50)])) == {CONTINUE}


def test_as_many_as_one_in_reduction_factor_on_better_fronts_stop_a_trial() -> None:
    def stopped(values: Sequence[float]) -> list[bool]:
        """Whether each would be stopped if it came last."""
        decisions = []
        for number, value in enumerate(values):
            others = Ranks()
            for other, point in enumerate(values):
                if other != number:
                    others.insert(other, (point,))
            decisions.append(decide(number, 3, (value,), others, 3).stop)
        return decisions

    assert stopped([0, 1, 2, 3]) == [False, False, True, True]  # 4 / 3: one better is too few
    assert stopped([0, 1, 2, 3, 4, 5, 6]) == [False] * 3 + [True] * 4


@pytest.mark.parametrize(
    "bad", [{}, {MSE: 1.0}, {MSE: math.nan, JSD: math.nan}, {MSE: math.inf, JSD: 1.0}, {MSE: -math.inf, JSD: 9.0}]
)
def test_what_is_not_finite_or_not_there_counts_as_infinitely_bad(bad: dict[str, float]) -> None:
    pruner = pruner_for()
    show_all(pruner, [(0.5, 0.5), (0.6, 0.4)])
    assert show(pruner, "bad", bad) == STOP
    assert show(pruner, "good", {MSE: 0.55, JSD: 0.45}) == CONTINUE


def test_a_bad_value_in_one_objective_leaves_the_other_to_speak() -> None:
    pruner = pruner_for()
    show_all(pruner, [(0.5, 0.5), (0.6, 0.4)])
    assert show(pruner, "half", {MSE: math.nan, JSD: 0.1}) == CONTINUE  # nobody has a better JSD
    assert show(pruner, "half too", {MSE: math.nan, JSD: 0.9}) == STOP


def test_only_the_rungs_count_and_each_on_its_own() -> None:
    pruner = pruner_for()
    for epoch in (1, 2, 4, 8, 10, 26):
        assert [show(pruner, f"t{index}", {MSE: index, JSD: index}, epoch) for index in range(9)] == [CONTINUE] * 9
    assert [show(pruner, f"t{index}", {MSE: index, JSD: index}, 3) for index in range(3)] == [CONTINUE, CONTINUE, STOP]
    assert [show(pruner, f"t{index}", {MSE: index, JSD: index}, 9) for index in range(2)] == [CONTINUE, CONTINUE]


def test_a_retried_trial_takes_its_own_place_again() -> None:
    pruner = pruner_for()
    for _ in range(5):
        assert show(pruner, "a", {MSE: 1.0, JSD: 1.0}) == CONTINUE
        assert show(pruner, "b", {MSE: 2.0, JSD: 2.0}) == CONTINUE
    assert pruner.reached[3].verdicts.keys() == {0, 1}


def test_a_named_metric_alone_decides_and_need_not_be_an_objective() -> None:
    points = [(1, 9), (2, 1), (3, 0)]
    assert show_all(pruner_for(metric=MSE), points) == [CONTINUE, CONTINUE, STOP]
    assert show_all(pruner_for(metric=JSD), points) == [CONTINUE, CONTINUE, CONTINUE]
    assert show_all(pruner_for([MSE], metric=JSD), points) == [CONTINUE, CONTINUE, CONTINUE]


def test_a_metric_of_which_more_is_better_counts_the_other_way_round() -> None:
    pruner = pruner_for([SPEED])
    points = [(3.0,), (2.0,), (1.0,), (4.0,), (math.nan,), (math.inf,)]
    assert show_all(pruner, points, [SPEED]) == [CONTINUE, CONTINUE, STOP, CONTINUE, STOP, STOP]
    assert show_all(pruner_for([MSE, SPEED]), [(1, 1), (2, 2), (2, 1)], [MSE, SPEED]) == [CONTINUE, CONTINUE, STOP]


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_one_metric_is_ordinary_asha(factor: int, seed: int) -> None:
    """Among the values that have reached the rung, its own included, a trial goes on when it is in the top 1 / factor.

    Ray's scheduler has the same cut: the 1 - 1 / factor quantile of the values at the rung.
    """
    draw = random.Random(seed)
    pruner, seen = pruner_for([MSE], factor=factor), []
    for index in range(40):
        seen.append(draw.random())
        expected = CONTINUE
        if len(seen) >= factor:
            asha = AsyncHyperBandScheduler(metric="loss", mode="min", reduction_factor=factor, grace_period=3, max_t=27)
            cut = asha._brackets[0].cutoff({str(place): -value for place, value in enumerate(seen)})
            expected = CONTINUE if -seen[-1] >= cut - 1e-12 else STOP  # Ray interpolates between two values
        assert show(pruner, f"t{index}", {MSE: seen[-1]}) == expected


@pytest.mark.parametrize("seed", range(30))
def test_random_points_against_the_rule_in_words(seed: int) -> None:
    """Brute force: peel off fronts by hand, count who lies on better ones, compare with one in `factor`."""
    draw = random.Random(seed)
    factor, levels = draw.choice([2, 3, 4]), draw.choice([3, 10, 1000])
    pruner = pruner_for(factor=factor)
    seen: list[tuple[float, float]] = []
    for index in range(30):
        raw = [math.nan if draw.random() < 0.1 else draw.randrange(levels) for _ in range(2)]
        seen.append((raw[0] if math.isfinite(raw[0]) else math.inf, raw[1] if math.isfinite(raw[1]) else math.inf))
        decision = show(pruner, f"t{index}", {MSE: raw[0], JSD: raw[1]})
        better, left = 0, list(seen)
        while True:
            front = [p for p in left if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in left)]
            if seen[-1] in front:
                break
            better += len(front)
            left = [p for p in left if p not in front]
        stopped = len(seen) >= factor and better * factor >= len(seen)
        assert decision == (STOP if stopped else CONTINUE)
        if better == 0:
            assert decision == CONTINUE


def test_no_pruner_lets_everyone_go_on() -> None:
    study = replace(Settings(), {"study.pruner.type": "none"}).study
    pruner = Pruner(study, epochs=27)
    assert set(show_all(pruner, [(index, index) for index in range(20)])) == {CONTINUE}


# -------------------------------------------------------------------------------------------- kept as trials come


POINTS = st.lists(
    st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0, math.inf]) | st.floats(0, 1)] * 2)
    | st.tuples(*[st.integers(0, 4).map(float)] * 2),
    max_size=40,
)


def peeled(points: Sequence[Sequence[float]]) -> list[int]:
    """The fronts by definition: those that nobody left dominates, again and again."""
    front, left, level = [-1] * len(points), set(range(len(points))), 0
    while left:
        best = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        for i in best:
            front[i] = level
        left -= best
        level += 1
    return front


@given(points=POINTS)
def test_ranks_and_front_are_those_of_all_points_after_each_one(points: list[tuple[float, float]]) -> None:
    ranks, front = Ranks(), Front()
    for number, point in enumerate(points):
        expected = peeled(points[: number + 1])
        assert ranks.rank(point) == expected[-1]
        assert ranks.better(point) == sum(rank < expected[-1] for rank in expected[:-1])
        ranks.insert(number, point)
        front.insert(number, point)
        levels = sorted((level, p) for level, held in enumerate(ranks.levels) for p in held.points)
        assert levels == sorted(zip(expected, points[: number + 1], strict=True))
        assert sorted(front.members()) == [index for index, rank in enumerate(expected) if rank == 0]
    assert len(ranks) == len(points)


def test_a_point_that_comes_while_the_front_is_sorted_is_not_forgotten() -> None:
    """The screen sorts it in a thread of its own, and the study takes the next point meanwhile."""

    class Slow(tuple[float, ...]):
        def __lt__(self, other: tuple[float, ...]) -> bool:
            front.insert(2, (0.0, 0.0))
            return super().__lt__(other)

    front = Front()
    front.points = {0: Slow((0.1, 0.3)), 1: Slow((0.3, 0.1))}
    front.members()
    assert front.members() == [2]
