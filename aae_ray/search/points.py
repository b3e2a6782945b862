"""The points of a space: which there are, and whether a configuration is one of them."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna.distributions import CategoricalDistribution

from aae_ray.search.distributions import Space, inside


def fits(params: Mapping[str, Any], space: Space) -> bool:
    """Whether a configuration is a point of a space: it has the same parameters, each within its distribution."""
    return params.keys() == space.keys() and all(inside(space[name], value) for name, value in params.items())


def space_size(space: Space) -> int | None:
    """How many different points there are; None if any dimension is continuous. A space without keys has one point."""
    size = 1
    for distribution in space.values():
        if isinstance(distribution, CategoricalDistribution):
            size *= len(distribution.choices)
        elif not distribution.single():
            if not distribution.step:
                return None
            size *= math.floor((distribution.high - distribution.low) / distribution.step + 1e-9) + 1
    return size


def points(space: Space) -> Iterator[dict[str, Any]]:
    """Every point of a space, one after the other; none where any dimension is continuous."""
    if space_size(space) is None:
        return
    axes: list[Sequence[Any]] = []
    for distribution in space.values():
        if isinstance(distribution, CategoricalDistribution):
            axes.append(distribution.choices)
        elif distribution.single():
            axes.append((distribution.low,))
        else:
            count = math.floor((distribution.high - distribution.low) / distribution.step + 1e-9) + 1
            axes.append(
                [min(distribution.low + index * distribution.step, distribution.high) for index in range(count)]
            )
    for values in itertools.product(*axes):
        yield dict(zip(space, values, strict=True))
