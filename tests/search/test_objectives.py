"""Non-dominated fronts, and the order within one."""

import itertools
import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aae_ray.search.objectives import (
    Front,
    Queue,
    Ranks,
    by_contribution,
    crowding_distances,
    dominates,
    exclusive_hypervolumes,
    hypervolume,
)

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
        better = sum(rank < expected[-1] for rank in expected[:-1])
        beside = sum(rank == expected[-1] for rank in expected[:-1])
        before = ranks.ahead(number, point, (1.0, 1.0))
        assert better <= before <= better + beside
        ranks.insert(number, point)
        assert ranks.ahead(number, point, (1.0, 1.0)) == before  # before and after it is here
        for held in ranks.levels:  # the order that is kept is that of the members as they are now
            assert held.by_contribution((1.0, 1.0)) == by_contribution(held.members, (1.0, 1.0))
        front.insert(number, point)
        levels = sorted((level, p) for level, held in enumerate(ranks.levels) for p, _ in held.members)
        assert levels == sorted(zip(expected, points[: number + 1], strict=True))
        assert all(points[index] == p for held in ranks.levels for p, index in held.members)
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


# ---------------------------------------------------------------------------------------------------- within a front


def volume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Of the union of the boxes between the points and the reference, by a grid of their coordinates."""
    axes = [sorted({p[axis] for p in points if p[axis] < reference[axis]} | {reference[axis]}) for axis in range(2)]
    cells = itertools.product(itertools.pairwise(axes[0]), itertools.pairwise(axes[1]))
    covered = ((x1 - x0) * (y1 - y0) for (x0, x1), (y0, y1) in cells if any(p[0] <= x0 and p[1] <= y0 for p in points))
    return sum(covered)


@given(points=st.lists(st.tuples(st.floats(0, 1.2), st.floats(0, 1.2)), min_size=1, max_size=8))
def test_an_exclusive_hypervolume_is_what_the_others_lack(points: list[tuple[float, float]]) -> None:
    front = [point for point in points if not any(dominates(other, point) for other in points)]
    for index, own in enumerate(exclusive_hypervolumes(front, (1.0, 1.0))):
        others = front[:index] + front[index + 1 :]
        assert own == pytest.approx(volume(front, (1.0, 1.0)) - volume(others, (1.0, 1.0)), abs=1e-9)


def test_the_ends_of_a_front_are_the_least_crowded() -> None:
    assert crowding_distances([(0.0, 4.0), (1.0, 1.0), (1.5, 0.9), (4.0, 0.0)]) == [math.inf, 1.15, 1.0, math.inf]
    assert crowding_distances([(1.0,)]) == [math.inf]
    assert crowding_distances([(0.0, math.inf), (1.0, 1.0), (math.inf, 0.0)])[1] == math.inf


@given(points=POINTS, start=st.sets(st.integers(0, 39)), data=st.data())
def test_the_best_of_a_queue_is_the_first_in_order_of_those_that_wait(
    points: list[tuple[float, float]], start: set[int], data: st.DataObject
) -> None:
    ask = st.booleans()
    ranks, reference = Ranks(), (1.0, 1.0)
    queue, waiting = Queue(ranks), set[int]()
    for number, point in enumerate(points):
        ranks.insert(number, point)
        if number in start:
            queue.add(number)
            waiting.add(number)
        asked = data.draw(ask)
        if waiting and asked:
            best = queue.best(reference)
            assert best == min(waiting, key=lambda other: ranks.ahead(other, ranks.values[other], reference))
            if data.draw(ask):
                queue.remove(best)
                waiting.discard(best)
    if not waiting:
        assert queue.best(reference) is None


@given(st.lists(st.tuples(st.floats(0, 1.1), st.floats(0, 1.1)), max_size=6))
def test_a_hypervolume_is_the_share_of_the_square_that_is_dominated(points: list[tuple[float, float]]) -> None:
    assert hypervolume(points, (1.0, 1.0)) == pytest.approx(volume(points, (1.0, 1.0)), abs=1e-9)


def test_a_hypervolume_in_three_dimensions_and_without_a_point() -> None:
    one = (1.0, 1.0, 1.0)
    assert hypervolume([], one) == 0 and hypervolume([(1.0, 0.0, 0.0)], one) == 0
    assert hypervolume([(0.5, 0.5, 0.5)], one) == pytest.approx(0.125)
    assert exclusive_hypervolumes([(0.5, 0.5, 0.6), (0.6, 0.6, 0.5)], one) == pytest.approx([0.1 - 0.064, 0.08 - 0.064])
