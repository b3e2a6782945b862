"""Posteriors q(z|x): the heads that turn the trunk's features into codes (Makhzani et al. 2015, section 2.1).

A head takes features and noise, and returns codes; the noise is handed in, nothing is drawn inside. `noise_dim` says
how much of it a head takes per example. The universal approximator's noise also enters the trunk: at every layer of
a dense one, at every convolution of a convolutional one.

Shapes: B batch, F features, E noise, Z code, K classes or clusters.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aae_ray import settings
from aae_ray.autoencoder.networks import OutputLinear


class Code(NamedTuple):
    """Codes, with the moments of q(z|x) where it is Gaussian (the VAE's KL term needs those of the same pass), and
    the logits of q(y|x) where the task has a label head."""

    z_BZ: Tensor
    mean_BZ: Tensor | None = None
    log_variance_BZ: Tensor | None = None
    label_logits_BK: Tensor | None = None


class Deterministic(nn.Module):
    """z = f(x): the data are the only source of randomness."""

    def __init__(self, features: int, latent_dim: int, noise_dim: int = 0, std_floor: float = 0.0) -> None:
        super().__init__()
        self.code = OutputLinear(features, latent_dim)

    def forward(self, h_BF: Tensor, noise_BE: Tensor | None = None) -> Code:
        return Code(self.code(h_BF))


class Gaussian(nn.Module):
    """z = mean(x) + std(x) * noise, with a diagonal Gaussian of the encoder's choice, reparameterised.

    Nothing in an adversarial autoencoder but its prior asks for noise, and in training the encoder's mostly goes to
    zero. With a floor the variance is floor^2 more than what the encoder answers.
    """

    def __init__(self, features: int, latent_dim: int, noise_dim: int, std_floor: float = 0.0) -> None:
        super().__init__()
        self.moments = OutputLinear(features, 2 * latent_dim)
        self.log_floor = 2 * math.log(std_floor) if std_floor else None  # of the variance

    def forward(self, h_BF: Tensor, noise_BE: Tensor) -> Code:
        mean_BZ, log_variance_BZ = self.moments(h_BF).chunk(2, dim=1)
        if self.log_floor is not None:
            log_variance_BZ = torch.logaddexp(log_variance_BZ, log_variance_BZ.new_full((), self.log_floor))
        return Code(mean_BZ + (0.5 * log_variance_BZ).exp() * noise_BE, mean_BZ, log_variance_BZ)


class Universal(nn.Module):
    """z = f(x, noise), with noise at the trunk's hidden layers and here: q(z|x) can be any distribution."""

    def __init__(self, features: int, latent_dim: int, noise_dim: int, std_floor: float = 0.0) -> None:
        super().__init__()
        self.code = OutputLinear(features, latent_dim)
        self.noise_map = OutputLinear(noise_dim, latent_dim, bias=False)

    def forward(self, h_BF: Tensor, noise_BE: Tensor) -> Code:
        return Code(self.code(h_BF) + self.noise_map(noise_BE))


HEADS: dict[str, type[nn.Module]] = {
    "deterministic": Deterministic,
    "gaussian": Gaussian,
    "universal": Universal,
}


def noise_dim(model: settings.Model) -> int:
    """Noise inputs per example: none, one a code dimension, or as many as the settings say."""
    if model.posterior == "deterministic":
        return 0
    return model.latent_dim if model.posterior == "gaussian" or model.noise_dim is None else model.noise_dim
