"""Comparing trials on several objectives at once; everywhere here smaller values are better.

`Front` and `Ranks` are kept as trials come: what is asked of them costs little however many there are.
"""

import heapq
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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

    def replace_all(self, points: Mapping[int, Point]) -> None:
        """Begin anew with these points, some of which have changed."""
        anew = Front()
        for number, point in points.items():
            anew.insert(number, point)
        self.points = anew.points  # at once, as another thread may read

    def members(self) -> list[int]:
        """Numbers of the points, best first objective first."""
        points, (of, members) = self.points, self.sorted
        if of is not points:  # the screen asks from a thread of its own: meanwhile a point may come
            members = sorted(points, key=lambda number: (points[number], number))
            self.sorted = points, members
        return members


Member = tuple[tuple[float, ...], int]  # values, and whose they are


def _key(member: Member) -> Any:
    return member[0]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The volume that these points dominate, up to the reference point; points that are not better than it in every
    objective dominate nothing (Zitzler and Thiele 1999)."""
    from optuna._hypervolume import compute_hypervolume  # who loads a decoder needs no Optuna

    inside = [point for point in points if all(value < bound for value, bound in zip(point, reference, strict=True))]
    return float(compute_hypervolume(np.array(inside, float), np.array(reference, float))) if inside else 0.0


def exclusive_hypervolumes(front: Sequence[Point], reference: Point) -> list[float]:
    """What each point of a front dominates alone, up to the reference point. Of equal points nobody does."""
    if len(reference) == 2:
        return _exclusive_areas(front, reference)
    whole = hypervolume(front, reference)
    return [whole - hypervolume([*front[:index], *front[index + 1 :]], reference) for index in range(len(front))]


def _exclusive_areas(front: Sequence[Point], reference: Point) -> list[float]:
    """With two objectives a front is a staircase, and a point's own area lies between its neighbours."""
    x, y = reference
    clipped = [(min(point[0], x), min(point[1], y)) for point in front]
    order = sorted(range(len(front)), key=lambda index: clipped[index])
    areas = [0.0] * len(front)
    for place, index in enumerate(order):
        right = clipped[order[place + 1]][0] if place + 1 < len(order) else x
        above = clipped[order[place - 1]][1] if place else y
        areas[index] = max(right - clipped[index][0], 0.0) * max(above - clipped[index][1], 0.0)
    return areas


def crowding_distances(front: Sequence[Point]) -> list[float]:
    """How far each point of a front is from its neighbours, objective by objective, scaled over the front; infinite at
    the ends (Deb et al. 2002). Values that are not finite are at an end."""
    distances = [0.0] * len(front)
    for values in zip(*front, strict=True):
        order = sorted(range(len(values)), key=lambda index: values[index])
        finite = [value for value in values if math.isfinite(value)]
        span = max(finite) - min(finite) if finite else 0.0
        for place, index in enumerate(order):
            if place in (0, len(order) - 1) or not math.isfinite(values[order[place + 1]]):
                distances[index] = math.inf
            elif span > 0:
                distances[index] += (values[order[place + 1]] - values[order[place - 1]]) / span
    return distances


def by_contribution(front: Sequence[Member], reference: Point | None) -> list[Member]:
    """The members of one front, those first that add most to it; of equal ones the earlier first.

    With two objectives and a finite reference point by exclusive hypervolume, else by crowding distance.
    """
    points = [values for values, _ in front]
    if reference is not None and len(reference) == 2 and all(map(math.isfinite, reference)):
        worth = exclusive_hypervolumes(points, reference)
    else:
        worth = crowding_distances(points)
    order = sorted(range(len(front)), key=lambda index: (-worth[index], front[index][1]))
    return [front[index] for index in order]


@dataclass
class _Level:
    """Members of one non-dominated front, sorted by their values."""

    members: list[Member] = field(default_factory=list)
    ordered: tuple[Point | None, list[Member]] | None = None  # for a reference point, until the members change

    def by_contribution(self, reference: Point | None) -> list[Member]:
        """The members in the order of what they add."""
        if self.ordered is None or self.ordered[0] != reference:
            self.ordered = reference, by_contribution(self.members, reference)
        return self.ordered[1]

    def dominates(self, point: tuple[float, ...]) -> bool:
        if len(point) == 2:  # a staircase: of those not to the right of the point, the last one is the lowest
            index = bisect_right(self.members, (point[0], math.inf), key=_key)
            return index > 0 and dominates(self.members[index - 1][0], point)
        return any(dominates(other, point) for other, _ in self.members)

    def take(self, block: list[Member]) -> list[Member]:
        """Take members that nobody here dominates; returns those here that they dominate, which leave."""
        self.ordered = None
        if len(block[0][0]) == 2:
            start = bisect_left(self.members, block[0][0], key=_key)
            stop = start  # down the staircase, until a point lies below the whole block
            while stop < len(self.members) and self.members[stop][0][1] >= block[-1][0][1]:
                stop += 1
            equal = {values for values, _ in block}
            inside = self.members[start:stop]
            leaving = [member for member in inside if member[0] not in equal]
            self.members[start:stop] = sorted(block + [member for member in inside if member[0] in equal])
            return leaving
        leaving = [member for member in self.members if any(dominates(new, member[0]) for new, _ in block)]
        gone = set(leaving)
        self.members = [member for member in self.members if member not in gone]
        for member in block:
            insort(self.members, member)
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

    def ahead(self, number: int, point: Point, reference: Point | None) -> int:
        """How many points come before this one: those on better fronts, and those that add more to its own.

        The point may be a new one, or among those here by its number, with the values that it has here.
        """
        values = self.values.get(number, tuple(point))
        rank = self.rank(values)
        before = sum(len(level.members) for level in self.levels[:rank])
        if number in self.values:
            return before + self.levels[rank].by_contribution(reference).index((values, number))
        front = self.levels[rank].members if self.levels[rank:] else []
        front = [member for member in front if not dominates(values, member[0])]
        own = by_contribution([*front, (values, number)], reference)
        return before + own.index((values, number))

    def order(self, reference: Point | None) -> list[int]:
        """The numbers of all points, the best first."""
        return [number for level in self.levels for _, number in level.by_contribution(reference)]

    def move(self, number: int, point: Point) -> None:
        """Give a point other values."""
        points = self.values | {number: tuple(point)}
        self.levels, self.values = [], {}
        for each, values in points.items():
            self.insert(each, values)

    def insert(self, number: int, point: Point) -> None:
        """Take a point. One that is known by its number keeps its first values."""
        if number in self.values:
            return
        self.values[number] = tuple(point)
        block, index = [(tuple(point), number)], self.rank(point)
        while block:
            if index == len(self.levels):
                self.levels.append(_Level())
            block = self.levels[index].take(sorted(block))
            index += 1


class Queue:
    """Some of the points of `Ranks`, the best first.

    A point's rank only grows as others come, so the one at the top is looked up again, and goes back where it has
    fallen: what is asked costs little however many wait.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.heap: list[tuple[int, int]] = []  # rank, as it was, and number
        self.numbers: set[int] = set()

    def add(self, number: int) -> None:
        self.numbers.add(number)
        heapq.heappush(self.heap, (self.ranks.rank(self.ranks.values[number]), number))

    def remove(self, number: int) -> None:
        self.numbers.discard(number)

    def best(self, reference: Point | None) -> int | None:
        """The number of the best point, None without any: of the best front, the one that adds most to it."""
        while self.heap:
            before, number = self.heap[0]
            if number not in self.numbers:
                heapq.heappop(self.heap)
                continue
            rank = self.ranks.rank(self.ranks.values[number])
            if rank > before:  # it has fallen, and comes again in its turn
                heapq.heapreplace(self.heap, (rank, number))
                continue
            order = self.ranks.levels[rank].by_contribution(reference)
            return next(each for _, each in order if each in self.numbers)
        return None
