"""Population based training (Jaderberg et al. 2017): settings that change while the weights stay.

All trials of the budget are one population. Each pauses after every `grace_period` epochs. When the last of them has
come that far, they go on: of n trials the last floor(n * quantile), by non-dominated front and within one by what they
add to it, and whoever is worse than the mean image, take over weights, optimizer states and parameters of one of the
first floor(n * quantile), drawn by the sampler's seed. Those of its parameters that may change under way are multiplied
by `mutation_factor` or divided by it; a value that neither moves, such as 0, is drawn anew from its range. Structure,
data and seeds stay as the donor's: its weights fit no other.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution

from aae_ray import settings
from aae_ray.search.distributions import Space, at_quantile, inside
from aae_ray.search.objectives import Point, Ranks
from aae_ray.settings.sections import CHANGES_UNDER_WAY

TINY = 1e-12  # rounding


class Next(NamedTuple):
    """A paused trial that goes on, with the weights of another one if it has a donor."""

    number: int
    donor: int | None


def next_of_generation(
    values: Mapping[int, Point],
    waiting: Collection[int],
    pruner: settings.Pruner,
    reference: Point | None,
    choose: Callable[[int], int],
) -> Next:
    """Who of the paused trials goes on next, where all have come equally far.

    `values` are those of the whole population, those that have gone on already among them; `choose(n)` draws below n.
    Who takes over the weights of another one is first, so that the donor's are still there.
    """
    ranks = Ranks()
    for number, point in values.items():
        ranks.insert(number, point)
    order = sorted(values, key=lambda number: ranks.ahead(number, values[number], reference))
    few = math.floor(len(order) * pruner.quantile)
    of_worth = [number for number in order if all(map(math.isfinite, values[number]))]
    donors, last = of_worth[: max(few, 1)], [*order[len(order) - few :], *order[len(of_worth) :]]
    taking = [number for number in last if number in waiting and number not in donors]
    if taking and donors:
        return Next(taking[0], donors[choose(len(donors))])
    return Next(next(number for number in order if number in waiting), None)


def mutable(space: Space) -> list[str]:
    """The searched keys that may change under way: ranges of rates, momenta, noise and weights of losses."""
    return [
        name
        for name, distribution in space.items()
        if name in CHANGES_UNDER_WAY and not isinstance(distribution, CategoricalDistribution)
    ]


def mutated(
    params: Mapping[str, Any], space: Space, pruner: settings.Pruner, random: np.random.Generator
) -> dict[str, Any]:
    """A donor's parameters with some of them moved, each within its distribution."""
    changed = dict(params)
    names: Sequence[str] = pruner.mutate or mutable(space)
    for name in names:
        if name not in params:
            continue
        value, factor = params[name], pruner.mutation_factor
        moved = [_moved(space[name], value * times) for times in (1 / factor, factor)]
        drawn = moved[random.integers(2)]
        if all(math.isclose(value, each, abs_tol=TINY) for each in moved):
            drawn = at_quantile(space[name], random.random())
        if inside(space[name], drawn):
            changed[name] = drawn
    return changed


def _moved(distribution: BaseDistribution, value: float) -> float:
    """The nearest value of a range."""
    value = min(max(value, distribution.low), distribution.high)
    if distribution.step is None:
        return value
    return float(distribution.low + round((value - distribution.low) / distribution.step) * distribution.step)
