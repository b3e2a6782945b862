"""What a model is worth on held-out images: the same protocol for every trial, with fixed seeds.

Shapes: N examples, M draws of noise, D pixels, E noise, Z code.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from aae_ray.autoencoder.model import Model
from aae_ray.settings import Settings
from aae_ray.training import metrics
from aae_ray.training.batches import EVALUATION, Images, generator_for
from aae_ray.training.data import Dataset

CHUNK = 2000  # images encoded at a time
NOISE_DRAWS = 8  # per image, for the share of the codes' variance that is the posterior's noise
NOISE_IMAGES = 512

# Protocol seed: fixed for all trials, so that their metrics differ by the model alone. Behind it, what is drawn.
PROTOCOL_SEED = 2015
PRIOR, POSTERIOR, USE_OF_NOISE, FLOOR = range(4)


class Evaluation:
    """Measures a model on the validation or test images. The same noise and prior samples are drawn each time."""

    def __init__(self, run: Settings, model: Model, dataset: Dataset, images: Images) -> None:
        self.run, self.model, self.dataset, self.images = run, model, dataset, images
        self._constants: dict[str, float] = {}  # what depends on the data and the prior alone

    def cheap(self, part: str) -> dict[str, float]:
        """The metrics that are taken every epoch, named after the part: `val/...` or `test/...`."""
        z_NZ, mse = self._codes_and_mse(part)
        found = {
            "reconstruction_mse": mse,
            "mean_image_mse": self._mean_image_mse(part),
            "code_std": metrics.code_std(z_NZ, self.model.prior.std_Z),
            "sliced_wasserstein": self._sliced_wasserstein(z_NZ),
            "sliced_wasserstein_floor": self._sliced_wasserstein_floor(len(z_NZ)),
        }
        if self.model.noise_dim:
            found["noise_use"] = self._noise_use(part)
        return {f"{part}/{name}": value for name, value in found.items()}

    def costly(self, part: str) -> dict[str, float]:
        """The metrics that are taken at rungs and at the end: a fresh discriminator is trained on held-out codes."""
        bound = metrics.jsd_bound(self.codes(part), self._prior, seed=PROTOCOL_SEED)
        return {
            f"{part}/jsd_nats": bound.nats,
            f"{part}/jsd_nats_se": bound.standard_error,
            f"{part}/jsd_nats_floor": bound.floor,
        }

    @torch.no_grad()
    def codes(self, part: str) -> Tensor:
        """Held-out codes z_NZ in the order of the part, on the CPU, one draw of the posterior each."""
        return torch.cat([z_NZ.cpu() for _, z_NZ in self._encoded(part)])

    @torch.no_grad()
    def reconstructions(self, part: str, count: int) -> tuple[Tensor, Tensor]:
        """The first images of a part and what becomes of them, each (N, C, H, W), on the CPU."""
        x_BD, z_BZ = next(self._encoded(part))
        shape = self.dataset.shape
        return x_BD[:count].unflatten(1, shape).cpu(), self.model.decode(z_BZ[:count]).unflatten(1, shape).cpu()

    @torch.no_grad()
    def samples(self, count: int) -> Tensor:
        """Images decoded from draws of the prior, (N, C, H, W), on the CPU."""
        return self.model.sample(count, generator_for(PROTOCOL_SEED, EVALUATION, PRIOR)).cpu()

    def prior(self, count: int) -> Tensor:
        """Draws of the prior to show beside the codes, (N, Z)."""
        return self._prior(count, 0)

    @torch.no_grad()
    def _codes_and_mse(self, part: str) -> tuple[Tensor, float]:
        codes, squared_error, pixels = [], 0.0, 0
        for x_BD, z_BZ in self._encoded(part):
            squared_error += (self.model.decode(z_BZ) - x_BD).square().sum(dtype=torch.float64).item()
            pixels += x_BD.numel()
            codes.append(z_BZ.cpu())
        return torch.cat(codes), squared_error / pixels

    def _encoded(self, part: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks of images x_BD with their codes z_BZ."""
        generator = generator_for(PROTOCOL_SEED, EVALUATION, POSTERIOR)
        for x_BD in self._chunks(self._indices(part)):
            yield x_BD, self.model.encode(x_BD, self._noise(len(x_BD), generator)).z_BZ

    def _noise(self, count: int, generator: torch.Generator) -> Tensor | None:
        if not self.model.noise_dim:
            return None
        return torch.randn(count, self.model.noise_dim, generator=generator, dtype=self.images.dtype).to(
            self.images.device
        )

    @torch.no_grad()
    def _noise_use(self, part: str) -> float:
        x_BD = self.images[self._indices(part)[:NOISE_IMAGES]]
        generator = generator_for(PROTOCOL_SEED, EVALUATION, USE_OF_NOISE)
        z_MNZ = torch.stack(
            [self.model.encode(x_BD, self._noise(len(x_BD), generator)).z_BZ for _ in range(NOISE_DRAWS)]
        )
        return metrics.noise_use(z_MNZ.cpu())

    def _prior(self, count: int, seed: int) -> Tensor:
        """Prior draws (N, Z): a function of the seed alone."""
        return self.model.prior.sample(count, generator_for(PROTOCOL_SEED, EVALUATION, PRIOR, seed))

    def _sliced_wasserstein(self, z_NZ: Tensor) -> float:
        return metrics.sliced_wasserstein(z_NZ, self._prior(len(z_NZ), 0), self.model.prior.std_Z, seed=PROTOCOL_SEED)

    def _sliced_wasserstein_floor(self, count: int) -> float:
        key = f"sliced_wasserstein/{count}"
        if key not in self._constants:
            self._constants[key] = self._sliced_wasserstein(self._prior(count, FLOOR))
        return self._constants[key]

    def _mean_image_mse(self, part: str) -> float:
        """Squared error per pixel of always answering with the mean training image."""
        key = f"mean_image/{part}"
        if key not in self._constants:
            mean_D = sum(x_BD.double().sum(0) for x_BD in self._chunks(self.dataset.train)) / len(self.dataset.train)
            indices = self._indices(part)
            error = sum((x_BD.double() - mean_D).square().sum().item() for x_BD in self._chunks(indices))
            self._constants[key] = error / (len(indices) * self.images.rows_ND.shape[1])
        return self._constants[key]

    def _chunks(self, indices: np.ndarray) -> Iterator[Tensor]:
        for start in range(0, len(indices), CHUNK):
            yield self.images[indices[start : start + CHUNK]]

    def _indices(self, part: str) -> np.ndarray:
        return self.dataset.val if part == "val" else self.dataset.test
