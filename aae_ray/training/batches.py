"""Mini-batches and noise, as functions of (seed, epoch, step, phase) and of nothing else.

The global order and the global noise are drawn alike on every worker, and each takes its slice: so N workers see what
one worker would, and a resumed run sees what the unbroken one would, with no generator's state saved.

Shapes: S steps, G examples of a global batch, B examples of this worker's slice, D pixels, E noise, Z code.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aae_ray.autoencoder.model import Model
from aae_ray.autoencoder.phases import Batch, Phase
from aae_ray.training.data import Dataset

NOISE_BLOCK_STEPS = 32  # noise is drawn for this many steps at a time: one seeding instead of many
RESIDENT_SHARE = 0.5  # a GPU keeps the whole set when it takes at most this share of the free memory


def generator_for(seed: int, *counters: int) -> torch.Generator:
    """A CPU generator that depends on these integers alone, in this order."""
    state = np.random.SeedSequence((seed, *counters)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


# First counter behind the seed: what the numbers are for. The phases of training come after these.
ORDER, EVALUATION, FIRST_PHASE = 0, 1, 2


class Images:
    """Pixels of a set by index, in [0, 1], as rows.

    On the CPU they are gathered from the memory map that all workers of a node share; on a GPU the whole set lies on
    the device as uint8 when it fits.
    """

    def __init__(self, dataset: Dataset, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.rows_ND = dataset.images_NCHW.reshape(len(dataset.images_NCHW), -1)
        self.resident_ND: Tensor | None = None
        if device.type == "cuda" and self.rows_ND.nbytes <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
            self.resident_ND = torch.from_numpy(np.array(self.rows_ND)).to(device)

    def __getitem__(self, indices: np.ndarray) -> Tensor:
        """Rows x_BD of these images."""
        if self.resident_ND is not None:
            rows_BD = self.resident_ND[torch.from_numpy(indices).to(self.device, non_blocking=True)]
        else:
            rows_BD = torch.from_numpy(self.rows_ND[indices]).to(self.device, non_blocking=True)
        return rows_BD.to(self.dtype).div_(255)


class Step(NamedTuple):
    """One step of this worker: a batch for each phase, and the number of examples in the global batch."""

    batches: list[Batch]
    examples: int


class Batches:
    """The steps of an epoch for one worker of a gang. Every training image is visited once an epoch, in a last batch
    that may be smaller."""

    def __init__(
        self,
        model: Model,
        images: Images,
        train: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        rank: int,
        workers: int,
    ) -> None:
        self.model, self.images, self.train = model, images, train
        self.batch_size, self.seed, self.rank, self.workers = batch_size, seed, rank, workers

    def epoch(self, epoch: int) -> Iterator[Step]:
        order = self.train[torch.randperm(len(self.train), generator=generator_for(self.seed, ORDER, epoch)).numpy()]
        starts = range(0, len(order), self.batch_size)
        for step, start in enumerate(starts):
            block, offset = divmod(step, NOISE_BLOCK_STEPS)
            if offset == 0:
                steps = min(NOISE_BLOCK_STEPS, len(starts) - step)
                noise = [
                    self._noise(place, phase, steps, epoch, block) for place, phase in enumerate(self.model.phases)
                ]
            indices = order[start : start + self.batch_size]
            mine = worker_slice(len(indices), self.rank, self.workers)
            x_BD = self.images[indices[mine]]
            batches = [
                Batch(x_BD, *(None if drawn_SG is None else drawn_SG[offset, mine] for drawn_SG in drawn))
                for drawn in noise
            ]
            yield Step(batches, len(indices))

    def _noise(
        self, place: int, phase: Phase, steps: int, epoch: int, block: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Posterior noise (S, G, E) and prior draws (S, G, Z) of a phase for a block of steps, where it takes any."""
        generator, dtype, device = (
            generator_for(self.seed, FIRST_PHASE + place, epoch, block),
            self.images.dtype,
            self.images.device,
        )
        size = (steps, self.batch_size)
        eta_SGE = prior_SGZ = None
        if self.model.noise_dim:
            eta_SGE = torch.randn(*size, self.model.noise_dim, generator=generator, dtype=dtype).to(device)
        if phase.draws_prior:
            prior_SGZ = self.model.prior.sample(steps * self.batch_size, generator, dtype).view(*size, -1).to(device)
        return eta_SGE, prior_SGZ


def worker_slice(examples: int, rank: int, workers: int) -> slice:
    """This worker's part of a global batch; the parts differ by at most one example."""
    return slice(examples * rank // workers, examples * (rank + 1) // workers)
