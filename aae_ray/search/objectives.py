"""Comparing trials on several objectives at once; everywhere here smaller values are better."""

import math
from collections.abc import Sequence

Point = Sequence[float]


def dominates(a: Point, b: Point) -> bool:
    """Whether a is at least as good as b everywhere and better somewhere."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def fronts(points: Sequence[Point]) -> list[int]:
    """The non-dominated front of each point, 0 the best."""
    front = [-1] * len(points)
    level, left = 0, set(range(len(points)))
    while left:
        best = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        for i in best:
            front[i] = level
        left -= best
        level += 1
    return front


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
