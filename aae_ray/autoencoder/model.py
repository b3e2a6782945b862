"""The players of a task, and what they do together: encode, decode, sample.

Shapes: B batch, N samples, C channels, H height, W width, D pixels (C * H * W), E noise, Z code.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aae_ray import settings
from aae_ray.autoencoder import networks, posteriors
from aae_ray.autoencoder.phases import TASKS, Phase, encode
from aae_ray.autoencoder.posteriors import Code
from aae_ray.autoencoder.priors import Prior, build_prior

Shape = tuple[int, int, int]


def _trunk(model: settings.Model, shape: Shape) -> nn.Module:
    in_trunk = posteriors.noise_dim(model) if model.posterior == "universal" else 0
    if model.network == "convolutional":
        return networks.ConvTrunk(shape, model.channels, model.hidden[-1], in_trunk)
    return networks.DenseTrunk(_pixels(shape), model.hidden, in_trunk)


def _style_head(model: settings.Model, shape: Shape) -> nn.Module:
    return posteriors.HEADS[model.posterior](model.hidden[-1], model.latent_dim, posteriors.noise_dim(model))


def _decoder(model: settings.Model, shape: Shape) -> nn.Module:
    if model.network == "convolutional":
        return networks.ConvDecoder(model.latent_dim, model.hidden[-1], model.channels[::-1], shape, model.output)
    return networks.DenseDecoder(model.latent_dim, model.hidden[::-1], _pixels(shape), model.output)


def _style_discriminator(model: settings.Model, shape: Shape) -> nn.Module:
    return networks.Discriminator(model.latent_dim, model.discriminator_hidden)


def _pixels(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2]


# The smallest groups of parameters that always train together, each with its builder.
PLAYERS: dict[str, Callable[[settings.Model, Shape], nn.Module]] = {
    "trunk": _trunk,
    "style_head": _style_head,
    "decoder": _decoder,
    "style_discriminator": _style_discriminator,
}


@dataclass(frozen=True)
class Model:
    """The players of one task, its phases and its prior."""

    players: Mapping[str, nn.Module]
    phases: tuple[Phase, ...]
    prior: Prior
    noise_dim: int  # posterior noise per example, 0 for a deterministic posterior
    shape: Shape  # of an image: (C, H, W)

    def encode(self, x_BD: Tensor, noise_BE: Tensor | None) -> Code:
        """Codes of images given as rows of pixels in [0, 1]."""
        return encode(self.players, x_BD, noise_BE)

    def decode(self, z_BZ: Tensor) -> Tensor:
        """Rows of pixels, shape (B, D), of codes."""
        x_BD: Tensor = self.players["decoder"](z_BZ)
        return x_BD

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Images decoded from draws of the prior, shape (N, C, H, W)."""
        weight = next(self.players["decoder"].parameters())
        z_NZ = self.prior.sample(count, generator, weight.dtype).to(weight.device)
        x_NCHW: Tensor = self.decode(z_NZ).unflatten(1, self.shape)
        return x_NCHW


def build_model(run: settings.Settings, shape: Shape, device: torch.device | str = "cpu") -> Model:
    """The model that the settings describe, for images of this shape (C, H, W), with initial weights from the seed.

    Each player's weights come from (seed, its place in the table), so that they do not depend on the other players,
    on what was built before in this process, or on the device. Raises UserError when a network does not fit the images.
    """
    phases = TASKS[run.task]
    needed = {name for phase in phases for name in phase.moves}
    dtype = getattr(torch, run.train.dtype)
    players: dict[str, nn.Module] = {}
    for place, (name, build) in enumerate(PLAYERS.items()):
        if name not in needed:
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed * len(PLAYERS) + place)
            player = build(run.model, shape)
            if run.model.initialization == "normal":
                networks.paper_initialization(player)
        players[name] = player.to(device=device, dtype=dtype)
    return Model(players, phases, build_prior(run.model), posteriors.noise_dim(run.model), shape)
