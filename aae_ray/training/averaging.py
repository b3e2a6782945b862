"""An exponential moving average of a model's weights, which is measured and published in place of the last ones."""

import copy
import dataclasses
from typing import Any

from torch.optim.swa_utils import get_ema_multi_avg_fn

from aae_ray.autoencoder.model import Model


class WeightAverage:
    """A twin of a model whose weights, running statistics included, follow those of the model step by step.

    After n steps the decay is at most (1 + n) / (10 + n), so that the initial weights are soon forgotten and short runs
    are averaged over a part of their steps too.
    """

    def __init__(self, model: Model, decay: float) -> None:
        networks = {name: copy.deepcopy(network).requires_grad_(False) for name, network in model.networks.items()}
        self.decay, self.steps = decay, 0
        self.source, self.model = model, dataclasses.replace(model, networks=networks)

    def update(self) -> None:
        """Take one more step of the model into the average."""
        self.steps += 1
        averages, weights = (
            [value for network in model.networks.values() for value in network.state_dict().values()]
            for model in (self.model, self.source)
        )
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(averages, weights, self.steps)

    def state_dict(self) -> dict[str, Any]:
        networks = {name: network.state_dict() for name, network in self.model.networks.items()}
        return {"steps": self.steps, "networks": networks}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from a state; without one, which a run without an average leaves, from the model's weights."""
        networks = {name: network.state_dict() for name, network in self.source.networks.items()}
        state = state or {"steps": 0, "networks": networks}
        self.steps = state["steps"]
        for name, network in self.model.networks.items():
            network.load_state_dict(state["networks"][name])
