"""Mini-batches and noise, as functions of (seed, epoch, step, phase) and of nothing else.

The global order and the global noise are drawn alike on every worker, and each takes its slice: so N workers see what
one worker would, and a resumed run sees what the unbroken one would, with no generator's state saved.

Shapes: S steps, G examples of a global batch, B examples of this worker's slice, D pixels, E noise, Z code,
K classes or clusters, N images of the set.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from aae_ray.autoencoder.model import Model
from aae_ray.autoencoder.phases import TASKS, Batch, Phase
from aae_ray.autoencoder.priors import sample_classes
from aae_ray.datasets.dataset import Dataset
from aae_ray.datasets.images import Images
from aae_ray.datasets.labels import known_labels
from aae_ray.randomness import CORRUPTION, FIRST_PHASE, LABELLED, ORDER, generator_for
from aae_ray.settings import RunSettings

NOISE_BLOCK_STEPS = 32  # noise is drawn for this many steps at a time: one seeding instead of many

Rows = NDArray[np.int64]


class Step(NamedTuple):
    """One step of this worker: a batch for each phase, and the number of examples in each global batch."""

    batches: list[Batch]
    examples: list[int]


class Batches:
    """The steps of an epoch for one worker of a gang. Every training image is visited once an epoch, in a last batch
    that may be smaller. Phases on labelled images take batches of their own, round after round through the labels."""

    def __init__(
        self, settings: RunSettings, model: Model, images: Images, dataset: Dataset, *, rank: int = 0, workers: int = 1
    ) -> None:
        self.settings, self.model, self.images = settings, model, images
        self.train, self.seed, self.rank, self.workers = dataset.train, settings.seed, rank, workers
        self.labels_N = torch.from_numpy(known_labels(dataset, settings))
        self.labelled = np.flatnonzero(self.labels_N.numpy() >= 0)
        self.sizes = {
            "all": min(settings.train.batch_size, len(dataset.train)),
            "labelled": min(settings.train.labelled_batch_size, len(self.labelled)),
        }

    def epoch(self, epoch: int) -> Iterator[Step]:
        batch_size, phases = self.sizes["all"], self.model.phases
        order = self.train[torch.randperm(len(self.train), generator=generator_for(self.seed, ORDER, epoch)).numpy()]
        starts = range(0, len(order), batch_size)
        rounds = self._labelled_rounds(epoch, len(starts))
        for step, start in enumerate(starts):
            block, offset = divmod(step, NOISE_BLOCK_STEPS)
            if offset == 0:
                span = order[start : start + NOISE_BLOCK_STEPS * batch_size]
                steps = min(NOISE_BLOCK_STEPS, len(starts) - step)
                drawn = [self._drawn(index, phase, steps, span, epoch, block) for index, phase in enumerate(phases)]
            rows = {"all": order[start : start + batch_size], "labelled": rounds[step]}
            mine = {source: worker_slice(len(some), self.rank, self.workers) for source, some in rows.items()}
            x_BD = {source: self.images[rows[source][mine[source]]] for source in {phase.source for phase in phases}}
            batches = [
                Batch(
                    x_BD[phase.source],
                    **{name: drawn_SG[offset, mine[phase.source]] for name, drawn_SG in drawn[index].items()},
                    **self._labels(phase, rows[phase.source][mine[phase.source]]),
                    **self._corruption(
                        index, x_BD[phase.source], len(rows[phase.source]), mine[phase.source], epoch, step
                    ),
                )
                for index, phase in enumerate(phases)
            ]
            yield Step(batches, [len(rows[phase.source]) for phase in phases])

    def _labelled_rounds(self, epoch: int, steps: int) -> Rows:
        """Labelled images of each step, (S, G): all of them in a random order, then all of them in another, ..."""
        size = self.sizes["labelled"]
        if not any(phase.source == "labelled" for phase in self.model.phases):
            return np.empty((steps, 0), np.int64)
        rounds = -(-steps * size // len(self.labelled))
        keys = torch.rand(rounds, len(self.labelled), generator=generator_for(self.seed, ORDER, epoch, LABELLED))
        rows: Rows = self.labelled[keys.argsort(1).flatten()[: steps * size].view(steps, size).numpy()]
        return rows

    def _drawn(self, index: int, phase: Phase, steps: int, span: Rows, epoch: int, block: int) -> dict[str, Any]:
        """Posterior noise and what the phase draws from priors, each (S, G, ...), for a block of steps."""
        generator = generator_for(self.seed, FIRST_PHASE + index, epoch, block)
        model, train, dtype = self.model, self.settings.train, self.images.dtype
        size = (steps, self.sizes[phase.source])

        def normal(*shape: int) -> Tensor:
            return torch.randn(*size, *shape, generator=generator, dtype=dtype)

        def prior() -> Tensor:
            part_N = None
            if model.sizes.label_condition:  # labelled images are held to their part of the prior, others to all of it
                part_N = torch.full((steps * size[1],), -1)
                part_N[: len(span)] = self.labels_N[span]
            return model.prior.sample(steps * size[1], generator, dtype, part_N).view(*size, -1)

        tensors = {}
        if model.noise_dim:
            tensors["posterior_noise_BE"] = normal(model.noise_dim)
        if "prior_BZ" in phase.draws:
            tensors["prior_BZ"] = prior()
        if "classes_BK" in phase.draws and model.classes and "label_discriminator" in model.networks:
            tensors["classes_BK"] = sample_classes(steps * size[1], model.classes, generator, dtype).view(*size, -1)
        if "style_noise_B2Z" in phase.draws and train.style_noise:
            tensors["style_noise_B2Z"] = train.style_noise * normal(2, model.prior.latent_dim)
        if "label_noise_B2K" in phase.draws and train.label_noise and "label_discriminator" in model.networks:
            tensors["label_noise_B2K"] = train.label_noise * normal(2, model.classes)
        return {name: tensor.to(self.images.device) for name, tensor in tensors.items()}

    def _corruption(
        self, index: int, x_BD: Tensor, examples: int, mine: slice, epoch: int, step: int
    ) -> dict[str, Any]:
        """Noise on the images, dropout of pixels, warped images: as large as the images, so for one step at a time."""
        train, tensors = self.settings.train, {}
        if not train.input_noise and not train.input_dropout and not train.input_warp:
            return {}
        generator = generator_for(self.seed, FIRST_PHASE + index, epoch, step, CORRUPTION)
        size, dtype = (examples, self.images.rows_ND.shape[1]), self.images.dtype
        if train.input_noise:
            tensors["input_noise_BD"] = train.input_noise * torch.randn(*size, generator=generator, dtype=dtype)[mine]
        if train.input_dropout:
            kept_BD = torch.rand(*size, generator=generator, dtype=dtype)[mine] >= train.input_dropout
            tensors["input_mask_BD"] = kept_BD.to(dtype) / (1 - train.input_dropout)
        if train.input_warp:
            maps_G23 = torch.eye(2, 3, dtype=dtype) + train.input_warp * torch.randn(
                examples, 2, 3, generator=generator, dtype=dtype
            )
            tensors["warped_BD"] = warp(x_BD, maps_G23[mine].to(self.images.device), self.model.shape)
        return {name: tensor.to(self.images.device) for name, tensor in tensors.items()}

    def _labels(self, phase: Phase, rows: Rows) -> Mapping[str, Any]:
        """One-hot labels of these images, or their label condition for the discriminator, where the task has any."""
        sizes, condition = self.model.sizes, self.model.sizes.label_condition
        if not condition and phase.source == "all" and TASKS[self.settings.task].labels != "all":
            return {}
        labels_B = self.labels_N[rows]
        if condition:
            classes_B = torch.where(labels_B < 0, condition - 1, labels_B)
            name, one_hot = "label_condition_BS", F.one_hot(classes_B, condition)
        else:
            name, one_hot = "labels_BK", F.one_hot(labels_B, sizes.classes)
        return {name: one_hot.to(self.images.device, self.images.dtype)}


def warp(x_BD: Tensor, maps_B23: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Images as rows, each under its affine map, in coordinates from -1 to 1 on both axes; black comes in from outside.

    A map tells for each pixel of the result where in the image it comes from.
    """
    if not len(x_BD):  # a worker's slice of a short last batch; PyTorch makes no grid for it
        return x_BD
    x_BCHW = x_BD.unflatten(1, shape)
    grid_BHW2 = F.affine_grid(maps_B23, list(x_BCHW.shape), align_corners=False)
    return F.grid_sample(x_BCHW, grid_BHW2, align_corners=False).flatten(1)


def worker_slice(examples: int, rank: int, workers: int) -> slice:
    """This worker's part of a global batch; the parts differ by at most one example."""
    return slice(examples * rank // workers, examples * (rank + 1) // workers)
