"""The points of a space: which there are, and whether a configuration is one of them."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from aae_ray.search.distributions import Space, count, inside, values

LARGEST_GRID = 100_000  # points that are listed


def fits(params: Mapping[str, Any], space: Space) -> bool:
    """Whether a configuration is a point of a space: it has the same parameters, each within its distribution."""
    return params.keys() == space.keys() and all(inside(space[name], value) for name, value in params.items())


def space_size(space: Space) -> int | None:
    """How many different points there are; None if any dimension is continuous. A space without keys has one point."""
    counts = [count(distribution) for distribution in space.values()]
    return None if None in counts else math.prod(number for number in counts if number is not None)


def points(space: Space) -> Iterator[dict[str, Any]]:
    """Every point of a space, one after the other; none where any dimension is continuous."""
    if space_size(space) is None:
        return
    for point in itertools.product(*map(values, space.values())):
        yield dict(zip(space, point, strict=True))
