"""What is measured of data and priors alone: taken once by a process, for all the models that it measures."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from aae_ray.autoencoder.priors import Prior
from aae_ray.datasets.dataset import Dataset, split_digest

T = TypeVar("T")

MOST = 64  # values that are kept; the largest, samples of a prior, take a few MB


class Constants:
    """Values by what they depend on: floors, baselines, and what a prior is compared by.

    Whoever measures more than one model keeps one of these and hands it to each. Of more values than it may keep, those
    go that were not asked for the longest.
    """

    def __init__(self) -> None:
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def once(self, key: tuple[Hashable, ...], measure: Callable[[], T]) -> T:
        """The value under this key, which names it and all that it depends on; measured where it is not there yet."""
        if key not in self._values:
            self._values[key] = measure()
            if len(self._values) > MOST:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        value: T = self._values[key]
        return value


def data_key(dataset: Dataset) -> Hashable:
    """What tells a data set and its split from others."""
    return dataset.digest, split_digest(dataset)


def prior_key(prior: Prior) -> Hashable:
    """What tells a prior from others, whatever their scales: distances in units of the scale are alike."""
    return prior.name, prior.latent_dim, prior.parts
