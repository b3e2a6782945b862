"""Comparing trials on several objectives at once; everywhere here smaller values are better.

`Front` and `Ranks` are kept as trials come: what is asked of them costs little however many there are.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field

Point = Sequence[float]


def dominates(a: Point, b: Point) -> bool:
    """Whether a is at least as good as b everywhere and better somewhere."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


class Front:
    """The points that no other one dominates."""

    def __init__(self) -> None:
        self.points: dict[int, tuple[float, ...]] = {}
        self.sorted: tuple[object, list[int]] = (None, [])  # the points that were sorted, and their numbers

    def insert(self, number: int, point: Point) -> None:
        """Take a point; those that it dominates leave."""
        if any(dominates(other, point) for other in self.points.values()):
            return
        kept = {key: other for key, other in self.points.items() if not dominates(point, other)}
        self.points = kept | {number: tuple(point)}

    def members(self) -> list[int]:
        """Numbers of the points, best first objective first."""
        points, (of, members) = self.points, self.sorted
        if of is not points:  # the screen asks from a thread of its own: meanwhile a point may come
            members = sorted(points, key=lambda number: (points[number], number))
            self.sorted = points, members
        return members


@dataclass
class _Level:
    """Points of one non-dominated front, sorted by their values."""

    points: list[tuple[float, ...]] = field(default_factory=list)

    def dominates(self, point: tuple[float, ...]) -> bool:
        if len(point) == 2:  # a staircase: of those not to the right of the point, the last one is the lowest
            index = bisect_right(self.points, (point[0], math.inf))
            return index > 0 and dominates(self.points[index - 1], point)
        return any(dominates(other, point) for other in self.points)

    def take(self, block: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        """Take points that no point here dominates; returns those here that they dominate, which leave."""
        if len(block[0]) == 2:
            start = bisect_left(self.points, block[0])
            stop = start  # down the staircase, until a point lies below the whole block
            while stop < len(self.points) and self.points[stop][1] >= block[-1][1]:
                stop += 1
            equal = set(block)
            inside = self.points[start:stop]
            leaving = [point for point in inside if point not in equal]
            self.points[start:stop] = sorted(block + [point for point in inside if point in equal])
            return leaving
        leaving = [point for point in self.points if any(dominates(new, point) for new in block)]
        gone = set(leaving)
        self.points = [point for point in self.points if point not in gone]
        for point in block:
            insort(self.points, point)
        return leaving


class Ranks:
    """Non-dominated fronts of a growing set of points: a new point's rank without sorting the others anew.

    The rank of a point is found by bisection over the fronts, as whoever is dominated by a point of one front is
    dominated by points of all fronts before it. What a new point dominates in its front moves one front down, and so
    on. With two objectives a front is a staircase, and what moves is a stretch of it (efficient level update, Li et al.
    2017).
    """

    def __init__(self) -> None:
        self.levels: list[_Level] = []
        self.values: dict[int, tuple[float, ...]] = {}

    def __len__(self) -> int:
        return len(self.values)

    def rank(self, point: Point) -> int:
        """The front on which a point would be, 0 the best."""
        values, low, high = tuple(point), 0, len(self.levels)
        while low < high:
            middle = (low + high) // 2
            if self.levels[middle].dominates(values):
                low = middle + 1
            else:
                high = middle
        return low

    def better(self, point: Point) -> int:
        """How many points lie on better fronts than this one."""
        return sum(len(level.points) for level in self.levels[: self.rank(point)])

    def insert(self, number: int, point: Point) -> None:
        """Take a point. One that is known by its number keeps its first values."""
        if number in self.values:
            return
        self.values[number] = tuple(point)
        block, index = [tuple(point)], self.rank(point)
        while block:
            if index == len(self.levels):
                self.levels.append(_Level())
            block = self.levels[index].take(block)
            index += 1


def nearest_to_ideal(points: Sequence[Point]) -> int:
    """Index of the point nearest to the best value of every objective at once, each scaled over these points.

    With one point, or with equal values of an objective, that objective decides nothing.
    """
    columns = list(zip(*points, strict=True))
    low, span = [min(column) for column in columns], [max(column) - min(column) or 1.0 for column in columns]
    distances = [math.hypot(*((v - a) / s for v, a, s in zip(point, low, span, strict=True))) for point in points]
    return distances.index(min(distances))


def select(points: Sequence[Point], rule: str) -> int:
    """Index of the best of these points of a front by the rule of `study.select`."""
    if rule == "first_objective":
        return min(range(len(points)), key=lambda index: tuple(points[index]))
    return nearest_to_ideal(points)
