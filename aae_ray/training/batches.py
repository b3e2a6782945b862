"""Mini-batches and noise, as functions of (seed, epoch, step, phase, example) and of nothing else.

The global order is drawn alike on every worker, and each takes its slice. Noise is drawn for blocks of examples of the
global batch, each with a generator of its own, and a worker draws the blocks in which it has examples. So N workers
see what one worker would, and a resumed run sees what the unbroken one would, with no generator's state saved.

Shapes: S steps, G examples of a global batch, B examples of this worker's slice, D pixels, E noise, Z code,
K classes or clusters, N images of the set.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor

from aae_ray.autoencoder.kinds import Shape
from aae_ray.autoencoder.model import Model
from aae_ray.autoencoder.phases import TASKS, Batch, Phase
from aae_ray.autoencoder.priors import sample_classes
from aae_ray.datasets.dataset import Dataset
from aae_ray.datasets.images import Images
from aae_ray.datasets.labels import known_labels
from aae_ray.randomness import CORRUPTION, DRAWS, LABELLED, ORDER, PHASE, generator_for
from aae_ray.settings import RunSettings

# Noise comes in blocks, as a generator takes as long to seed as to draw about two thousand numbers.
STRETCH_STEPS = 32  # what is small is drawn for this many steps
DRAWN_EXAMPLES = 64  # ... and this many examples at a time
CORRUPTED_VALUES = 2**14  # what is as large as the images, for as many examples of one step as have this many pixels

Rows = NDArray[np.int64]
PhaseStream = tuple[str, int]  # a phase's name, and how many of its steps came before this one on the same images


class Step(NamedTuple):
    """One step of this worker: a batch for each phase, and the number of examples in each global batch."""

    batches: list[Batch]
    examples: list[int]


class Stretch(NamedTuple):
    """Consecutive steps of an epoch whose global batches are of one size."""

    first: int
    steps: int
    examples: int  # of each global batch


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

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.train) // self.sizes["all"])

    def epoch(self, epoch: int) -> Iterator[Step]:
        order = self.train[torch.randperm(len(self.train), generator=generator_for(self.seed, ORDER, epoch)).numpy()]
        rounds = self._labelled_rounds(epoch, self.steps)
        for stretch in stretches(len(order), self.sizes["all"]):
            yield from self._steps(stretch, order, rounds, epoch)

    def _steps(self, stretch: Stretch, order: Rows, rounds_SG: Rows, epoch: int) -> Iterator[Step]:
        """The steps of a stretch, whose small numbers are drawn together."""
        first, steps, examples = stretch
        start, phases = first * self.sizes["all"], self.model.phases
        rows_SG = {
            "all": order[start : start + steps * examples].reshape(steps, examples),
            "labelled": rounds_SG[first : first + steps],
        }
        sizes = {source: rows.shape[1] for source, rows in rows_SG.items()}
        mine = {source: worker_slice(size, self.rank, self.workers) for source, size in sizes.items()}
        streams = [(phase.name, phases[:index].count(phase)) for index, phase in enumerate(phases)]
        drawn = [
            self._drawn(phase, stream, rows_SG[phase.source], mine[phase.source], epoch, first)
            for phase, stream in zip(phases, streams, strict=True)
        ]
        for offset in range(steps):
            rows = {source: rows_SG[source][offset, mine[source]] for source in {phase.source for phase in phases}}
            x_BD = {source: self.images[some] for source, some in rows.items()}
            batches = [
                Batch(
                    x_BD[phase.source],
                    **{name: tensor_SB[offset] for name, tensor_SB in tensors.items()},
                    **self._labels(phase, rows[phase.source]),
                    **self._corruption(
                        phase,
                        stream,
                        x_BD[phase.source],
                        sizes[phase.source],
                        mine[phase.source],
                        epoch,
                        first + offset,
                    ),
                )
                for phase, stream, tensors in zip(phases, streams, drawn, strict=True)
            ]
            yield Step(batches, [sizes[phase.source] for phase in phases])

    def _labelled_rounds(self, epoch: int, steps: int) -> Rows:
        """Labelled images of each step, (S, G): all of them in a random order, then all of them in another, ..."""
        size = self.sizes["labelled"]
        if not any(phase.source == "labelled" for phase in self.model.phases):
            return np.empty((steps, 0), np.int64)
        rounds = -(-steps * size // len(self.labelled))
        keys = torch.rand(rounds, len(self.labelled), generator=generator_for(self.seed, ORDER, epoch, LABELLED))
        rows: Rows = self.labelled[keys.argsort(1).flatten()[: steps * size].view(steps, size).numpy()]
        return rows

    def _drawn(
        self, phase: Phase, stream: PhaseStream, rows_SG: Rows, mine: slice, epoch: int, first: int
    ) -> dict[str, Any]:
        """Posterior noise and what the phase draws from priors, each (S, B, ...), for a stretch of steps."""
        model, train, dtype = self.model, self.settings.train, self.images.dtype
        steps, examples = rows_SG.shape

        def draw(generator: Generator, block: slice) -> dict[str, Tensor]:
            size = (steps, block.stop - block.start)

            def normal(*shape: int) -> Tensor:
                return torch.randn(*size, *shape, generator=generator, dtype=dtype)

            tensors = {}
            if model.noise_dim:
                tensors["posterior_noise_BE"] = normal(model.noise_dim)
            if "prior_BZ" in phase.draws:
                # A discriminator holds labelled images to their part of the prior, others to all of it.
                conditional = model.sizes.label_condition and "style_discriminator" in phase.updates
                part_N = self.labels_N[rows_SG[:, block]].flatten() if conditional else None
                prior_NZ = model.prior.sample(math.prod(size), generator, dtype, part_N)
                tensors["prior_BZ"] = prior_NZ.view(*size, -1)
            if "classes_BK" in phase.draws and model.label_shares_K is not None:
                classes_NK = sample_classes(math.prod(size), model.label_shares_K, generator, dtype)
                tensors["classes_BK"] = classes_NK.view(*size, -1)
            if "style_noise_B2Z" in phase.draws and train.style_noise:
                tensors["style_noise_B2Z"] = train.style_noise * normal(2, model.prior.latent_dim)
            if "label_noise_B2K" in phase.draws and train.label_noise:
                tensors["label_noise_B2K"] = train.label_noise * normal(2, model.classes)
            return tensors

        generator = partial(generator_for, self.seed, PHASE, *stream, epoch, first, DRAWS)
        drawn = draw_blocks(draw, generator, examples, mine, DRAWN_EXAMPLES, dim=1)
        return {name: tensor.to(self.images.device) for name, tensor in drawn.items()}

    def _corruption(
        self, phase: Phase, stream: PhaseStream, x_BD: Tensor, examples: int, mine: slice, epoch: int, step: int
    ) -> dict[str, Any]:
        """Noise on the images, dropout of pixels, warped images: as large as the images, so for one step at a time."""
        train, pixels, dtype = self.settings.train, self.images.rows_ND.shape[1], self.images.dtype
        if phase.encodes_samples or not (train.input_noise or train.input_dropout or train.input_warp):
            return {}

        def draw(generator: Generator, block: slice) -> dict[str, Tensor]:
            rows, tensors = block.stop - block.start, {}
            if train.input_noise:
                noise_BD = torch.randn(rows, pixels, generator=generator, dtype=dtype)
                tensors["input_noise_BD"] = noise_BD.mul_(train.input_noise)
            if train.input_dropout:
                kept_BD = torch.rand(rows, pixels, generator=generator, dtype=dtype) >= train.input_dropout
                tensors["input_mask_BD"] = kept_BD.to(dtype).div_(1 - train.input_dropout)
            if train.input_warp:
                shift_B23 = torch.randn(rows, 2, 3, generator=generator, dtype=dtype)
                tensors["maps_B23"] = torch.eye(2, 3, dtype=dtype) + train.input_warp * shift_B23
            return tensors

        generator = partial(generator_for, self.seed, PHASE, *stream, epoch, step, CORRUPTION)
        drawn = draw_blocks(draw, generator, examples, mine, max(1, CORRUPTED_VALUES // pixels), dim=0)
        tensors = {name: tensor.to(self.images.device) for name, tensor in drawn.items()}
        if train.input_warp:
            tensors["warped_BD"] = warp(x_BD, tensors.pop("maps_B23"), self.model.shape)
        return tensors

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


def stretches(images: int, batch_size: int) -> Iterator[Stretch]:
    """All steps of an epoch, at most STRETCH_STEPS together, a smaller last batch by itself."""
    full, rest = divmod(images, batch_size)
    for first in range(0, full, STRETCH_STEPS):
        yield Stretch(first, min(STRETCH_STEPS, full - first), batch_size)
    if rest:
        yield Stretch(full, 1, rest)


def draw_blocks(
    draw: Callable[[Generator, slice], dict[str, Tensor]],
    generator: Callable[[int], Generator],
    examples: int,
    mine: slice,
    size: int,
    dim: int,
) -> dict[str, Tensor]:
    """A worker's slice of what `draw` makes of a global batch, block after block of `size` examples along `dim`.

    `draw` is given a block's generator, which its number determines, and the block's part of the batch.
    Only blocks with examples of the slice are drawn; of an empty slice one, for the shapes.
    """
    first, last = mine.start // size, max(mine.stop - 1, mine.start) // size
    drawn = [
        draw(generator(block), slice(block * size, min((block + 1) * size, examples)))
        for block in range(first, last + 1)
    ]
    start, length = mine.start - first * size, mine.stop - mine.start
    whole = drawn[0] if len(drawn) == 1 else {name: torch.cat([part[name] for part in drawn], dim) for name in drawn[0]}
    return {name: tensor.narrow(dim, start, length) for name, tensor in whole.items()}


def warp(x_BD: Tensor, maps_B23: Tensor, shape: Shape) -> Tensor:
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
