"""The networks of a task, and what they do together: encode, decode, sample.

Shapes: B batch, N samples, D numbers of an example, X the same in its own shape, E noise, Z code, K classes or
clusters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aae_ray.autoencoder import posteriors
from aae_ray.autoencoder.kinds import ExampleKind, Shape
from aae_ray.autoencoder.networks import (
    ClusterHeads,
    ConvDecoder,
    ConvTrunk,
    DenseDecoder,
    DenseTrunk,
    Discriminator,
    OutputLinear,
    paper_initialization,
)
from aae_ray.autoencoder.phases import TASKS, Phase, decoder_input, encode, phases_of
from aae_ray.autoencoder.posteriors import Code
from aae_ray.autoencoder.priors import Prior, build_prior, sample_code, uniform_shares
from aae_ray.randomness import WEIGHTS, generator_for
from aae_ray.settings import Model as ModelSettings
from aae_ray.settings import RunSettings


@dataclass(frozen=True)
class Sizes:
    """What the networks of a task must fit: examples, and the labels that some of them are given."""

    kind: ExampleKind
    classes: int  # size of y, 0 for a task without
    label_condition: int  # size of the label that conditions the discriminator, 0 for one without
    joined: int  # how much of y stands beside the style at the decoder


def _trunk(model: ModelSettings, sizes: Sizes) -> nn.Module:
    in_trunk = posteriors.noise_dim(model) if model.posterior == "universal" else 0
    if model.network == "convolutional":
        return ConvTrunk(sizes.kind.shape, model.channels, model.hidden[-1], in_trunk, model.normalization)
    return DenseTrunk(sizes.kind.size, model.hidden, in_trunk, model.normalization)


def _style_head(model: ModelSettings, sizes: Sizes) -> nn.Module:
    head = posteriors.HEADS[model.posterior]
    return head(model.hidden[-1], model.latent_dim, posteriors.noise_dim(model), model.posterior_std_floor)


def _label_head(model: ModelSettings, sizes: Sizes) -> nn.Module:
    return OutputLinear(model.hidden[-1], sizes.classes)


def _decoder(model: ModelSettings, sizes: Sizes) -> nn.Module:
    inputs, output = model.latent_dim + sizes.joined, sizes.kind.output(model.output)
    if model.network == "convolutional":
        return ConvDecoder(inputs, model.hidden[-1], model.channels[::-1], sizes.kind.shape, output)
    return DenseDecoder(inputs, model.hidden[::-1], sizes.kind.size, output)


def _cluster_heads(model: ModelSettings, sizes: Sizes) -> nn.Module:
    return ClusterHeads(sizes.classes, model.latent_dim, spread=model.head_distance)


def _style_discriminator(model: ModelSettings, sizes: Sizes) -> nn.Module:
    return _discriminator(model, model.latent_dim + sizes.label_condition)


def _label_discriminator(model: ModelSettings, sizes: Sizes) -> nn.Module:
    return _discriminator(model, sizes.classes)


def _discriminator(model: ModelSettings, inputs: int) -> nn.Module:
    return Discriminator(inputs, model.discriminator_hidden, model.discriminator_slope)


DECODED = 2000  # samples decoded at a time

# The smallest groups of parameters that always train together, each with its builder.
NETWORKS: dict[str, Callable[[ModelSettings, Sizes], nn.Module]] = {
    "trunk": _trunk,
    "style_head": _style_head,
    "decoder": _decoder,
    "style_discriminator": _style_discriminator,
    "label_head": _label_head,
    "label_discriminator": _label_discriminator,
    "cluster_heads": _cluster_heads,
}


@dataclass(frozen=True)
class Model:
    """The networks of one task, its phases and its priors."""

    networks: Mapping[str, nn.Module]
    phases: tuple[Phase, ...]
    prior: Prior
    noise_dim: int  # posterior noise per example, 0 for a deterministic posterior
    sizes: Sizes
    label_shares_K: Tensor | None  # p(y), on the CPU; None for a task without y

    @property
    def kind(self) -> ExampleKind:
        return self.sizes.kind

    @property
    def shape(self) -> Shape:
        """Of an example."""
        return self.kind.shape

    @property
    def classes(self) -> int:
        """Size of the label y that the decoder is given, 0 for none."""
        return self.sizes.classes

    def encode(self, x_BD: Tensor, noise_BE: Tensor | None) -> Code:
        """Codes of examples given as rows of numbers, normalized by the statistics that training left."""
        trunk = self.networks["trunk"]
        before = trunk.training
        trunk.eval()
        try:
            return encode(self.networks, x_BD, noise_BE)
        finally:
            trunk.train(before)

    def decoder_input(self, z_BZ: Tensor, y_BK: Tensor | None) -> Tensor:
        """The decoder's input for a style and a label: in a reduction, the representation W y + z."""
        return decoder_input(self.networks, z_BZ, y_BK)

    def decode(self, z_BZ: Tensor, y_BK: Tensor | None = None) -> Tensor:
        """Rows of numbers, shape (B, D), of codes, and of labels or their probabilities where the task has them."""
        x_BD: Tensor = self.networks["decoder"](self.decoder_input(z_BZ, y_BK))
        return x_BD

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Examples decoded from draws of the priors p(z) and p(y), each in its own shape, (N, X)."""
        weight = next(self.networks["decoder"].parameters())
        z_NZ, y_NK = sample_code(self.prior, self.label_shares_K, count, generator, weight.dtype)
        x_NX = []
        for start in range(0, count, DECODED):  # the layers of a convolutional decoder are large
            rows = slice(start, start + DECODED)
            y_BK = None if y_NK is None else y_NK[rows].to(weight.device)
            x_NX.append(self.decode(z_NZ[rows].to(weight.device), y_BK).unflatten(1, self.shape))
        return torch.cat(x_NX)


def build_model(
    settings: RunSettings,
    kind: ExampleKind,
    device: torch.device | str = "cpu",
    classes: int | None = None,
    known_shares: Sequence[float] | None = None,
) -> Model:
    """The model that the settings describe, for examples of this kind, with initial weights from the seed.

    `classes` is their number in the data; a task with labels needs it. `known_shares` are those of the classes among
    the labels that training knows; `model.label_prior=labels` is uniform without. Each network's weights come from
    (seed, its name), so that they do not depend on the other networks, on what was built before in this process, or
    on the device. Raises SettingsError when a network does not fit the examples.
    """
    task = TASKS[settings.task]
    phases = phases_of(settings)
    needed = {name for phase in phases for name in phase.updates}
    y = {"classes": classes or 0, "clusters": settings.model.clusters, None: 0}[task.y]
    joined = 0 if "cluster_heads" in needed else y
    sizes = Sizes(kind, y, (classes or 0) + 1 if task.label_condition else 0, joined)
    dtype = getattr(torch, settings.train.dtype)
    networks: dict[str, nn.Module] = {}
    for name, build in NETWORKS.items():
        if name not in needed:
            continue
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator_for(settings.seed, WEIGHTS, name).get_state())
            network = build(settings.model, sizes)
            if settings.model.initialization == "normal" and name != "cluster_heads":
                paper_initialization(network)
            if settings.model.discriminator_spectral_norm and isinstance(network, Discriminator):
                network.normalize_spectrally()
        networks[name] = network.to(device=device, dtype=dtype)
    return Model(
        networks,
        phases,
        build_prior(settings.model),
        posteriors.noise_dim(settings.model),
        sizes,
        _label_shares(settings.model.label_prior, y, known_shares),
    )


def _label_shares(
    label_prior: str | tuple[float, ...], classes: int, known_shares: Sequence[float] | None
) -> Tensor | None:
    if not classes:
        return None
    shares = known_shares if label_prior == "labels" else label_prior
    if shares is None or isinstance(shares, str):
        return uniform_shares(classes)
    shares_K = torch.tensor(shares, dtype=torch.float64)
    return shares_K / shares_K.sum()


def weight_bytes(settings: RunSettings, kind: ExampleKind, classes: int | None = None) -> dict[str, int]:
    """How much memory the weights of each network of `build_model` take, which are not made for it.

    Raises SettingsError as it does.
    """
    with torch.device("meta"):
        networks = build_model(settings, kind, "meta", classes).networks
    return {
        name: sum(weight.numel() * weight.element_size() for weight in network.parameters())
        for name, network in networks.items()
    }
