"""Encoders' trunks, decoders and discriminators: dense and convolutional.

No normalization in a discriminator: the statistics of prior and codes differ and leak. An encoder's hidden layers may
have it. Images travel as rows of pixels; convolutional networks fold them back themselves.

Shapes: B batch, D pixels (C * H * W), C channels, H height, W width, F features, E noise, Z code, K clusters.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise, zip_longest
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from aae_ray.autoencoder.kinds import Shape
from aae_ray.errors import Kind, Problem, SettingsError


class BatchNorm(nn.Module):
    """h_BF or h_BCHW -> the same, each feature or channel scaled by its mean and variance over the whole batch.

    The batch is that of all workers (PyTorch's own synchronised one needs a GPU): N workers compute what one would,
    also where their slices differ in size. Held-out images are scaled by running statistics instead, which are taken
    only in phases that update the encoder, as what a phase does not update stays as it is, and where `tracks` is set,
    as decoded samples are not images. A short last batch weighs less in them, by its size. An image alone does not
    differ from its mean, so a last batch of one is scaled by them too.
    """

    UPDATE = 0.1  # weight of a full batch in the running statistics
    EPSILON = 1e-5
    mean: Tensor
    variance: Tensor
    full: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.tracks = True  # whether what it is given are images, by whose like held-out ones are to be scaled
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))
        self.register_buffer("full", torch.zeros(()))  # values of a feature in the largest batch so far

    def forward(self, h_BF: Tensor) -> Tensor:
        h_BF = h_BF.to(self.weight.dtype)  # also where the product was taken in bfloat16
        across = [0, *range(2, h_BF.dim())]
        stretched = (-1, *(1 for _ in across[1:]))
        if not self.training:
            gain_F = self.weight * (self.variance + self.EPSILON).rsqrt()
            return h_BF * gain_F.view(stretched) + (self.bias - self.mean * gain_F).view(stretched)
        mine = h_BF.new_full((1,), h_BF.numel() / h_BF.shape[1])
        sums_F1 = all_reduce_sum(torch.cat([h_BF.sum(across), mine]))
        count = sums_F1[-1].detach()
        alone = count < 2  # stays a tensor: to ask for its value would make a GPU wait
        mean_F = torch.where(alone, self.mean, sums_F1[:-1] / count)
        centred_BF = h_BF - mean_F.view(stretched)
        variance_F = torch.where(alone, self.variance, all_reduce_sum(centred_BF.square().sum(across)) / count)
        if self.tracks and self.weight.requires_grad:
            torch.maximum(self.full, count, out=self.full)
            self.mean.lerp_(mean_F.detach(), self.UPDATE * count / self.full)
            self.variance.lerp_(variance_F.detach(), self.UPDATE * count / self.full)
        gain_F = self.weight * (variance_F + self.EPSILON).rsqrt()
        return centred_BF * gain_F.view(stretched) + self.bias.view(stretched)


class AllReduceSum(torch.autograd.Function):
    """Forward and backward are sums over workers: each has a part of the sum and a part of the loss."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        return _summed(mine)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients  # of the sum, as this worker's part of the loss has it
        return _summed(gradient)


def all_reduce_sum(mine: Tensor) -> Tensor:
    """The sum of a tensor over all workers of a gang; gradients flow back to each."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return mine
    total: Tensor = AllReduceSum.apply(mine)  # type: ignore[no-untyped-call]
    return total


def gather_rows(mine_BF: Tensor) -> tuple[Tensor, int]:
    """The rows of all workers of a gang in the order of their ranks, (G, F), and the number of the first of this one's;
    gradients flow back to each."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return mine_BF, 0
    counts_W = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=mine_BF.device)
    counts_W[dist.get_rank()] = len(mine_BF)
    dist.all_reduce(counts_W)
    counts = counts_W.tolist()
    before, after = sum(counts[: dist.get_rank()]), sum(counts[dist.get_rank() + 1 :])
    return all_reduce_sum(F.pad(mine_BF, (0, 0, before, after))), before


def _summed(mine: Tensor) -> Tensor:
    total = mine.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)  # over all channels and positions of an image


# What may stand between a hidden layer of the encoder and its rectifier: for features, and for channels.
NORMALIZATIONS: dict[str, tuple[Callable[[int], nn.Module], Callable[[int], nn.Module]]] = {
    "none": (lambda _: nn.Identity(), lambda _: nn.Identity()),
    "layer": (nn.LayerNorm, _group_norm),
    "batch": (BatchNorm, BatchNorm),
}


def dense_layers(inputs: int, widths: tuple[int, ...]) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((inputs, *widths)))


class OutputLinear(nn.Linear):
    """The last layer of a network. Its product is taken in the precision of its weights, also where others are taken
    in bfloat16: codes, sigmoids, softmaxes and losses are too coarse there, and their gradients with them."""

    def forward(self, h_BF: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(h_BF.device.type):
            return super().forward(h_BF)
        with torch.autocast(h_BF.device.type, enabled=False):
            weight = self.weight
            return F.linear(h_BF.to(weight.dtype), weight, self.bias)


class OutputConvTranspose2d(nn.ConvTranspose2d):
    """The last layer of a convolutional decoder, in the precision of its weights as `OutputLinear` is."""

    def forward(self, h_BCHW: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not torch.is_autocast_enabled(h_BCHW.device.type):
            return super().forward(h_BCHW, output_size)
        with torch.autocast(h_BCHW.device.type, enabled=False):
            return super().forward(h_BCHW.to(self.weight.dtype), output_size)


def mlp(inputs: int, widths: tuple[int, ...]) -> nn.ModuleList:
    """The layers of a multilayer perceptron; the last is its output layer."""
    *hidden, outputs = widths
    return dense_layers(inputs, tuple(hidden)).append(OutputLinear((inputs, *hidden)[-1], outputs))


def apply_relu(layers: Iterable[nn.Module], h_BF: Tensor, slope: float = 0.0) -> Tensor:
    """Through layers, each followed by a ReLU, in place: no gradient needs the values from before it.

    A leaky one has a slope below zero.
    """
    for layer in layers:
        h_BF = F.leaky_relu_(layer(h_BF), slope) if slope else layer(h_BF).relu_()
    return h_BF


class DenseTrunk(nn.Module):
    """x_BD -> features_BF. Noise, if any, enters at every hidden layer through a linear map of its own; normalization
    follows, then the rectifier.

    Noise that is only joined to the pixels is one input among hundreds and drowns; each layer that sees it again can
    use it (the universal approximator posterior, Makhzani et al. 2015, section 2.1).
    """

    def __init__(self, inputs: int, hidden: tuple[int, ...], noise_dim: int = 0, normalization: str = "none") -> None:
        super().__init__()
        self.layers = dense_layers(inputs, hidden)
        self.noise_maps = nn.ModuleList(nn.Linear(noise_dim, width, bias=False) for width in hidden if noise_dim)
        self.norms = nn.ModuleList(map(NORMALIZATIONS[normalization][0], hidden))

    def forward(self, x_BD: Tensor, noise_BE: Tensor | None = None) -> Tensor:
        h_BF = x_BD
        for layer, norm, noise_map in zip_longest(self.layers, self.norms, self.noise_maps):
            h_BF = layer(h_BF)
            if noise_map is not None:
                h_BF = h_BF + noise_map(noise_BE)
            h_BF = norm(h_BF).relu_()
        return h_BF


class ConvTrunk(nn.Module):
    """x_BD -> features_BF: convolutions that halve the image, then one dense layer. Noise shifts whole channels."""

    def __init__(
        self,
        shape: Shape,
        channels: tuple[int, ...],
        features: int,
        noise_dim: int = 0,
        normalization: str = "none",
    ) -> None:
        super().__init__()
        self.shape = shape
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise((shape[0], *channels)))
        self.noise_maps = nn.ModuleList(nn.Linear(noise_dim, width, bias=False) for width in channels if noise_dim)
        height, width = conv_grid(shape, channels)[-1]
        self.dense = nn.Linear(channels[-1] * height * width, features)
        for_features, for_channels = NORMALIZATIONS[normalization]
        self.norms = nn.ModuleList(map(for_channels, channels))
        self.dense_norm = for_features(features)

    def forward(self, x_BD: Tensor, noise_BE: Tensor | None = None) -> Tensor:
        h_BCHW = x_BD.unflatten(1, self.shape)
        for layer, norm, noise_map in zip_longest(self.layers, self.norms, self.noise_maps):
            h_BCHW = layer(h_BCHW)
            if noise_map is not None:
                h_BCHW = h_BCHW + noise_map(noise_BE)[:, :, None, None]
            h_BCHW = norm(h_BCHW).relu_()
        return torch.relu(self.dense_norm(self.dense(h_BCHW.flatten(1))))


class DenseDecoder(nn.Module):
    """z_BZ -> pixels_BD."""

    def __init__(self, latent_dim: int, hidden: tuple[int, ...], outputs: int, output: str) -> None:
        super().__init__()
        self.layers = mlp(latent_dim, (*hidden, outputs))
        self.sigmoid = output == "sigmoid"

    def forward(self, z_BZ: Tensor) -> Tensor:
        *hidden, last = self.layers
        x_BD = last(apply_relu(hidden, z_BZ))
        return torch.sigmoid(x_BD) if self.sigmoid else x_BD


class ConvDecoder(nn.Module):
    """z_BZ -> pixels_BD: one dense layer to the coarsest grid, then transposed convolutions back up the same grids."""

    def __init__(
        self,
        latent_dim: int,
        features: int,
        channels: tuple[int, ...],
        shape: Shape,
        output: str,
    ) -> None:
        super().__init__()
        grids = conv_grid(shape, channels)
        self.coarse = (channels[0], *grids[-1])
        self.dense = nn.Sequential(
            nn.Linear(latent_dim, features),
            nn.ReLU(),
            nn.Linear(features, channels[0] * grids[-1][0] * grids[-1][1]),
        )
        # An odd side was rounded down when it was halved: output_padding gives the lost row back.
        kinds = [*[nn.ConvTranspose2d] * (len(channels) - 1), OutputConvTranspose2d]
        steps = zip(kinds, pairwise((*channels, shape[0])), pairwise(reversed(grids)), strict=True)
        self.layers = nn.ModuleList(
            kind(
                a,
                b,
                4,
                stride=2,
                padding=1,
                output_padding=(fine[0] - 2 * coarse[0], fine[1] - 2 * coarse[1]),
            )
            for kind, (a, b), (coarse, fine) in steps
        )
        self.sigmoid = output == "sigmoid"

    def forward(self, z_BZ: Tensor) -> Tensor:
        h_BCHW = torch.relu(self.dense(z_BZ)).unflatten(1, self.coarse)
        *hidden, last = self.layers
        x_BD = last(apply_relu(hidden, h_BCHW)).flatten(1)
        return torch.sigmoid(x_BD) if self.sigmoid else x_BD


def conv_grid(shape: Shape, channels: tuple[int, ...]) -> list[tuple[int, int]]:
    """Height and width of the image and after each convolution. Raises SettingsError when nothing would be left."""
    _, height, width = shape
    grids = [(height, width)]
    for _ in channels:
        height, width = height // 2, width // 2
        grids.append((height, width))
    if min(height, width) < 1:
        text = (
            f"model.channels has {len(channels)} layers, each halves the image, "
            f"and images of {shape[1]} x {shape[2]} pixels cannot be halved that many times"
        )
        raise SettingsError([Problem(("model.channels",), Kind.DATA, "settings", text)])
    return grids


class Discriminator(nn.Module):
    """z_BZ -> logits_B, positive where z looks like a draw from the prior. Logits, not probabilities: a sigmoid
    followed by a logarithm loses its gradient exactly where the discriminator is sure.

    `slope` is that of leaky rectifiers below zero. With spectral normalization the product of each layer stretches no
    vector (Miyato et al. 2018), so that no logit differs from another by more than their codes do. A power iteration
    finds the largest singular value as the weights move, in phases that update them: what a phase does not update
    stays as it is.
    """

    def __init__(self, latent_dim: int, hidden: tuple[int, ...], slope: float = 0.0) -> None:
        super().__init__()
        self.slope, self.spectral_norm = slope, False
        self.layers = mlp(latent_dim, (*hidden, 1))

    def normalize_spectrally(self) -> None:
        """From now on; when the weights have their initial values, as it begins with the singular vectors of these."""
        self.spectral_norm = True
        for layer in self.layers:
            parametrizations.spectral_norm(layer)

    def forward(self, z_BZ: Tensor) -> Tensor:
        *hidden, last = self.layers
        if self.spectral_norm:
            self.layers.train(self.training and bool(last.bias.requires_grad))
        logits_B: Tensor = last(apply_relu(hidden, z_BZ, self.slope)).squeeze(1)
        return logits_B


class ClusterHeads(nn.Module):
    """y_BK -> location_BZ: where in code space each cluster lies; a soft assignment mixes the locations (section 7)."""

    def __init__(self, clusters: int, latent_dim: int, spread: float) -> None:
        super().__init__()
        # Far apart from the start: heads that coincide have no direction in which to leave each other.
        self.heads_KZ = nn.Parameter(spread * torch.randn(clusters, latent_dim))

    def forward(self, y_BK: Tensor) -> Tensor:
        with torch.autocast(y_BK.device.type, enabled=False):  # locations are codes, too coarse in bfloat16
            return y_BK @ self.heads_KZ


def paper_initialization(module: nn.Module) -> None:
    """Weights from N(0, 0.01^2), biases zero (Makhzani et al. 2015, appendix A.1). Normalization keeps its
    gains of one."""
    for part in module.modules():
        if isinstance(part, nn.LayerNorm | nn.GroupNorm | BatchNorm):
            continue
        for name, parameter in part.named_parameters(recurse=False):
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.01)
