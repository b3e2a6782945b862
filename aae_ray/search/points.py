"""The points of a space: which there are, and whether a configuration is one of them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aae_ray.search.conditions import Conditions, is_active, parents_first
from aae_ray.search.distributions import Space, count, inside, values

LARGEST_GRID = 100_000  # points that are listed


def fits(params: Mapping[str, Any], space: Space, conditions: Conditions) -> bool:
    """Whether a configuration is a point of a space: it has the parameters that are active in it, and no others, each
    within its distribution."""
    active = {name for name in space if is_active(name, params, conditions)}
    return params.keys() == active and all(inside(space[name], value) for name, value in params.items())


def space_size(space: Space, conditions: Conditions) -> int | None:
    """How many different points there are; None if any dimension is continuous. A space without keys has one point."""
    parents = {parent for when in conditions.values() for parent in when}
    size = 0
    for params in _points(parents_first(parents & space.keys(), conditions), space, conditions, {}):
        counts = [count(space[key]) for key in space if key not in parents and is_active(key, params, conditions)]
        if None in counts:
            return None
        size += math.prod(number for number in counts if number is not None)
    return size


def points(space: Space, conditions: Conditions) -> Iterator[dict[str, Any]]:
    """Every point of a space, one after the other; none where any dimension is continuous."""
    if space_size(space, conditions) is not None:
        yield from _points(parents_first(space, conditions), space, conditions, {})


def _points(
    keys: Sequence[str], space: Space, conditions: Conditions, params: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """All values of these keys, which come after their parents, together with params."""
    if not keys:
        yield params
    elif not is_active(keys[0], params, conditions):
        yield from _points(keys[1:], space, conditions, params)
    else:
        for value in values(space[keys[0]]):
            yield from _points(keys[1:], space, conditions, {**params, keys[0]: value})
