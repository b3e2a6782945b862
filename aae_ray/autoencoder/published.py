"""What is published of a trained model: an encoder and a decoder, on the CPU in float32, and what both go with.

Shapes: B batch, N examples or codes, X numbers of an example in its own shape, Z code, K classes or clusters.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from aae_ray.autoencoder.kinds import ExampleKind, ImageKind, RowKind, Shape
from aae_ray.autoencoder.model import DECODED, Model
from aae_ray.autoencoder.phases import TASKS, decoder_input, encode
from aae_ray.autoencoder.priors import Prior, sample_code
from aae_ray.errors import UserError, did_you_mean

A_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")
ROUNDING = 1e-6  # of values that were scaled to [0, 1]
# What an encoder answers with, in this order; the last three where a task or a posterior has them.
CODE, SIGMA, PROBABILITIES, REPRESENTATION = "code", "sigma", "probabilities", "representation"


class Decoder(nn.Module):
    """Codes in, examples x_BX out: images (B, C, H, W) in [0, 1].

    Codes are z_BZ; where the task has labels, the label comes first, one-hot or as probabilities, and the code has
    K + Z numbers.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.players = _players(model, "decoder", "cluster_heads")
        self.kind, self.classes = model.kind, model.classes

    def forward(self, codes_BZ: Tensor) -> Tensor:
        y_BK, z_BZ = codes_BZ[:, : self.classes], codes_BZ[:, self.classes :]
        players = dict(self.players.items())
        decoded_BD = players["decoder"](decoder_input(players, z_BZ, y_BK if self.classes else None))
        return self.kind.to_published(decoded_BD.unflatten(1, self.kind.shape))


class Encoder(nn.Module):
    """Examples x_BX in, of images those in [0, 1]; out of it by name: the code z_BZ, its sigma_BZ, the probabilities
    y_BK of classes or clusters, and the representation W y + z (section 7), the last three where the model has them.

    A published encoder draws nothing: its code is that at zero noise, as re-encoding is evaluated. Of a Gaussian
    posterior, a VAE's as well, this is the mean, and sigma is the standard deviation beside it.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.players = _players(model, "trunk", "style_head", "label_head", "cluster_heads")
        self.kind, self.noise_dim = model.kind, model.noise_dim

    def forward(self, given_BX: Tensor) -> dict[str, Tensor]:
        players = dict(self.players.items())
        x_BX = self.kind.from_published(given_BX)
        noise_BE = x_BX.new_zeros(x_BX.shape[0], self.noise_dim) if self.noise_dim else None
        code = encode(players, x_BX.flatten(1), noise_BE)
        answer = {CODE: code.z_BZ}
        if code.log_variance_BZ is not None:
            answer[SIGMA] = (0.5 * code.log_variance_BZ).exp()
        if code.label_logits_BK is not None:
            answer[PROBABILITIES] = code.label_logits_BK.softmax(1)
            if "cluster_heads" in players:
                answer[REPRESENTATION] = decoder_input(players, code.z_BZ, answer[PROBABILITIES])
        return answer


def _players(model: Model, *names: str) -> nn.ModuleDict:
    return nn.ModuleDict({name: model.networks[name] for name in names if name in model.networks})


def draw_codes(prior: Prior, label_shares_K: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
    """Codes for a published decoder from its priors, (count, Z), or (count, K + Z) where the task has labels."""
    z_NZ, y_NK = sample_code(prior, label_shares_K, count, generator)
    return join(z_NZ, y_NK)


def join(z_NZ: Tensor, y_NK: Tensor | None) -> Tensor:
    """Styles and labels as a published decoder takes them: (N, K + Z), or (N, Z) without labels."""
    return z_NZ if y_NK is None else torch.cat([y_NK.to(z_NZ), z_NZ], dim=1)


class Encoded(NamedTuple):
    """What an encoder makes of examples, in their order; what the model does not have is None."""

    z_NZ: Tensor
    sigma_NZ: Tensor | None = None
    y_NK: Tensor | None = None  # probabilities of classes or clusters
    representation_NZ: Tensor | None = None

    @classmethod
    def of(cls, answer: Mapping[str, Tensor]) -> Self:
        return cls(answer[CODE], *(answer.get(name) for name in (SIGMA, PROBABILITIES, REPRESENTATION)))


def some_names(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _taken(
    values: Tensor | NDArray[Any],
    what: str,
    shape: Shape,
    dtype: torch.dtype,
    limits: tuple[float, float] | None = None,
) -> Tensor:
    """Values (N, *shape) on the CPU as a network takes them. Raises UserError for others."""
    wanted = f"{what} are floats of shape (N, {', '.join(map(str, shape))})"
    if isinstance(values, np.ndarray):
        if values.dtype.kind == "O":
            raise UserError(f"{wanted}, and these are Python objects")
        if not values.flags.writeable or any(stride < 0 for stride in values.strides):
            values = values.copy()  # PyTorch takes no array backwards, and warns of one that it must not write to
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{wanted}, in a tensor or a NumPy array, and these are a {type(values).__name__}") from None
    tensor = tensor.cpu()
    if limits is not None:
        wanted += f" from {limits[0]:g} to {limits[1]:g}"
    if tuple(tensor.shape[1:]) != shape or tensor.ndim != len(shape) + 1:
        raise UserError(f"{wanted}, and these are of shape {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise UserError(f"{wanted}, and these are {str(tensor.dtype).removeprefix('torch.')}")
    if not tensor.numel():
        raise UserError(f"{wanted}, and there are none")
    low, high = tensor.min().item(), tensor.max().item()
    if not math.isfinite(low + high):
        raise UserError(f"{wanted}, and these are not all finite")
    if limits is not None and not limits[0] - ROUNDING <= low <= high <= limits[1] + ROUNDING:
        raise UserError(f"{wanted}, and these are from {low:.4g} to {high:.4g}")
    return tensor.to(dtype)


@dataclass(frozen=True)
class Published:
    """A published model that was loaded: decoder, encoder, and the priors that they were trained with."""

    name: str
    version: str  # of a registered model, empty for one from a file
    decoder: nn.Module
    encoder: nn.Module | None  # None where it was not asked for
    task: str
    prior: Prior
    label_shares_K: Tensor | None  # p(y) of the label that the decoder is told, None for none
    data_digest: str
    kind: ExampleKind | None  # of what it was trained on; None for a version of before it was recorded
    settings: Mapping[str, Any]  # of the data that it was trained on, under their dotted keys
    class_names: tuple[str, ...] = ()  # of the data's classes; empty where they are not known
    split: str = ""  # digest of the split of the data; empty for a version of before it was recorded
    value_range: tuple[float, float] | None = None  # of the data's pixels before scaling, where it is known
    reconstruction_mse: float | None = None  # on validation images

    def __str__(self) -> str:
        return f"{self.name} version {self.version}" if self.version else self.name

    @property
    def shape(self) -> Shape:
        """Of an example; empty where its kind is not known."""
        return () if self.kind is None else self.kind.shape

    @property
    def labels(self) -> int:
        """How many labels the decoder may be told, 0 where it is told none."""
        return 0 if self.label_shares_K is None else len(self.label_shares_K)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Of what the decoder may be told: names of classes, or the numbers of clusters or of classes without names."""
        if TASKS[self.task].y == "classes" and len(self.class_names) == self.labels:
            return self.class_names
        return tuple(map(str, range(self.labels)))

    def label_index(self, label: str) -> int:
        """The label that the decoder is told, by the name of its class; by its number, from 0, where no class has a
        number as its name. Raises UserError."""
        names = self.label_names
        if not names:
            raise UserError(f"label {label}: {self} is of task {self.task}, and its decoder is told no label")
        if label in names:
            return names.index(label)
        if label.isdecimal() and int(label) < len(names) and not any(map(A_NUMBER.fullmatch, names)):
            return int(label)
        raise UserError(
            f"label {label}: {self} has no such label; it has {some_names(names)}.{did_you_mean(label, names)}"
        )

    def one_hot(self, label: str, count: int) -> Tensor:
        """A label for so many examples, (count, K), as the decoder is told it. Raises UserError as `label_index`."""
        return F.one_hot(torch.full((count,), self.label_index(label)), self.labels).float()

    def sample(self, count: int, seed: int = 0, label: str | int | None = None) -> Tensor:
        """Examples (count, X), of images those in [0, 1], decoded from draws of the prior that the seed fixes; all of
        one label where it is given, by name or number. Raises UserError for a label that there is not."""
        try:
            count, seed = index(count), index(seed)  # NumPy's whole numbers as well
        except TypeError:
            raise UserError(f"count and seed of a sample are whole numbers, and not {count!r} and {seed!r}") from None
        if count < 1:
            raise UserError(f"a sample is of at least 1, and not of {count}")
        generator = torch.Generator().manual_seed(seed)
        if label is None:
            return self.draw(count, generator)
        y_NK = self.one_hot(str(label), count)
        return self.decode(join(self.prior.sample(count, generator), y_NK))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """The same, of draws by this generator."""
        return self.decode(draw_codes(self.prior, self.label_shares_K, count, generator))

    @torch.no_grad()
    def decode(self, codes_NZ: Tensor | NDArray[Any]) -> Tensor:
        """Examples (N, X) of codes as the decoder takes them, its label first: (N, Z) or (N, K + Z), floats.

        Raises UserError for codes of another shape, and for such that are not finite.
        """
        taken_NZ = _taken(codes_NZ, "codes", (self.labels + self.prior.latent_dim,), torch.float32)
        return torch.cat([self.decoder(codes_BZ) for codes_BZ in taken_NZ.split(DECODED)])

    @torch.no_grad()
    def encode(self, x_NX: Any) -> Encoded:
        """Codes of examples (N, X) of the model's own shape, floats: of images those in [0, 1]. Rows may be a data
        frame of pandas, whose columns go by their names.

        Raises UserError for examples of another shape or scale, and where the encoder was not loaded.
        """
        if self.encoder is None:
            raise UserError(f"the encoder of {self} was not loaded; leave out encoder=False")
        if isinstance(self.kind, RowKind) and hasattr(x_NX, "iloc"):
            if missing := [name for name in self.kind.columns if name not in x_NX.columns]:
                raise UserError(f"{self} takes the columns {some_names(self.kind.columns)}; missing: {missing[0]}")
            try:
                x_NX = x_NX[list(self.kind.columns)].to_numpy(dtype=float, na_value=math.nan)
            except (TypeError, ValueError):
                raise UserError(f"{self} takes numbers, and not all of {some_names(self.kind.columns)} are") from None
        if self.kind is not None:
            image = isinstance(self.kind, ImageKind)
            dtype = getattr(torch, self.kind.published_dtype)
            x_NX = _taken(x_NX, self.kind.noun, self.kind.shape, dtype, (0.0, 1.0) if image else None)
        parts = [self.encoder(x_BX) for x_BX in torch.as_tensor(x_NX).split(DECODED)]
        return Encoded.of({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def squared_error(self, x_NX: Tensor, answer_NX: Tensor) -> Tensor:
        """Of each example, (N,): a mean over pixels in [0, 1], or over columns in standard deviations."""
        pair = (x_NX, answer_NX)
        if self.kind is not None:
            pair = (self.kind.from_published(x_NX), self.kind.from_published(answer_NX))
        return (pair[1] - pair[0]).square().flatten(1).mean(1)

    def reconstruct(self, encoded: Encoded, labels_N: Tensor | None = None) -> Tensor:
        """Examples (N, X) decoded from codes, with the probabilities of the encoder where it has a label head, and else
        the examples' own labels, where the decoder is told any.

        Raises UserError when it is told labels and these are none.
        """
        y_NK = encoded.y_NK
        if self.labels and y_NK is None:
            given = f"{self} is of task {self.task}: its decoder is told a label for each of them, one of {self.labels}"
            if labels_N is None:
                raise UserError(
                    f"{given}, and these have none; of a table data.label_column names the column of labels"
                )
            if without := int(((labels_N < 0) | (labels_N >= self.labels)).sum()):
                raise UserError(f"{given}, and {without} of {len(labels_N)} have none of them")
            y_NK = F.one_hot(labels_N, self.labels)
        return self.decode(join(encoded.z_NZ, y_NK if self.labels else None))
