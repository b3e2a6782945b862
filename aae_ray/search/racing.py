"""Which configurations are trained with another seed: those whose verdict it can change.

Here those that were trained to their end; at a rung the `pruner` asks the same of those that wait there.

A configuration is judged by the means of its objectives over its seeds. How far a mean may be off is estimated from all
configurations with two seeds or more together: seeds differ by much the same everywhere, and two of them say little.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from aae_ray.search.objectives import Front, dominates


@dataclass(frozen=True)
class Seeds:
    """What the seeds of a configuration came to, smaller being better, and how many more are under way."""

    number: int  # of the configuration
    values: tuple[tuple[float, ...], ...]  # objectives of each seed
    under_way: int = 0

    @property
    def means(self) -> tuple[float, ...]:
        return tuple(sum(values) / len(values) for values in zip(*self.values, strict=True))


def deviations(configurations: Sequence[Seeds]) -> tuple[float, ...] | None:
    """Standard deviation of each objective over seeds, pooled over configurations; None before any has two seeds."""
    several = [each for each in configurations if len(each.values) > 1]
    if not several:
        return None
    freedom = sum(len(each.values) - 1 for each in several)
    squares = [
        sum((value - mean) ** 2 for each in several for mean in (each.means[index],) for value in _column(each, index))
        for index in range(len(several[0].means))
    ]
    return tuple(math.sqrt(total / freedom) for total in squares)


def standard_errors(seeds: Seeds) -> tuple[float, ...]:
    """Of the mean of each objective over the seeds of one configuration; none for a single seed."""
    own = deviations([seeds])
    return () if own is None else tuple(deviation / math.sqrt(len(seeds.values)) for deviation in own)


def next_seed(configurations: Sequence[Seeds], most: int) -> int | None:
    """The configuration that another seed is for, None where no verdict is open.

    A verdict is open while a configuration has fewer than `most` seeds and may belong to the front: with its means a
    standard error better than they are, nobody dominates it whose means are a standard error worse. So those that
    surely belong to it get all their seeds as well, as their means are what the study answers. Of several the one with
    the fewest seeds is next, then the earliest. One configuration alone has nobody to be held against.
    """
    if len(configurations) < 2:
        return None
    noise, sure = deviations(configurations), Front()
    for each in configurations:
        sure.insert(each.number, shifted(each, noise, 1.0))
    open_ones = [
        each
        for each in configurations
        if len(each.values) + each.under_way < most
        and not any(dominates(worse, shifted(each, noise, -1.0)) for worse in sure.points.values())
    ]
    first = min(open_ones, key=lambda each: (len(each.values) + each.under_way, each.number), default=None)
    return None if first is None else first.number


def shifted(seeds: Seeds, noise: tuple[float, ...] | None, errors: float) -> tuple[float, ...]:
    """The means, moved by so many standard errors."""
    if noise is None:
        return seeds.means
    scale = errors / math.sqrt(len(seeds.values))
    return tuple(mean + scale * deviation for mean, deviation in zip(seeds.means, noise, strict=True))


def _column(seeds: Seeds, index: int) -> list[float]:
    return [values[index] for values in seeds.values]
