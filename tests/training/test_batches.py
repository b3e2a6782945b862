"""Batches and noise are functions of (seed, epoch, step, phase), and the workers' slices make up the whole."""

import numpy as np
import pytest
import torch

from aae_ray.autoencoder.model import build_model
from aae_ray.settings import Settings, replace
from aae_ray.training import batches as module
from aae_ray.training.batches import Batches, Images, worker_slice
from aae_ray.training.data import Dataset


def make(run: Settings, digits: Dataset, rank: int = 0, workers: int = 1, seed: int = 0) -> Batches:
    model = build_model(run, digits.shape)
    images = Images(digits, torch.device("cpu"), torch.float64)
    return Batches(model, images, digits.train, batch_size=run.train.batch_size, seed=seed, rank=rank, workers=workers)


@pytest.fixture
def run(small_run: Settings) -> Settings:
    return replace(small_run, {"model.posterior": "universal", "train.batch_size": 32})


def test_an_epoch_visits_every_training_image_once(run: Settings, digits: Dataset) -> None:
    seen = torch.cat([step.batches[0].x_BD for step in make(run, digits).epoch(3)])
    expected = torch.from_numpy(digits.images_NCHW[digits.train].reshape(len(digits.train), -1)).double() / 255
    assert seen.shape == expected.shape
    order = [np.lexsort(rows.numpy().T) for rows in (seen, expected)]
    assert torch.equal(seen[order[0]], expected[order[1]])
    assert seen.min() >= 0 and seen.max() <= 1


@pytest.mark.parametrize("workers", [1, 2, 3, 40])
def test_slices_make_up_the_global_batch(run: Settings, digits: Dataset, workers: int) -> None:
    whole = list(make(run, digits).epoch(1))
    parts = [list(make(run, digits, rank, workers).epoch(1)) for rank in range(workers)]
    for index, step in enumerate(whole):
        for phase, batch in enumerate(step.batches):
            for field in ("x_BD", "posterior_noise_BE", "prior_BZ"):
                pieces = [getattr(part[index].batches[phase], field) for part in parts]
                if getattr(batch, field) is None:
                    assert pieces == [None] * workers
                else:
                    assert torch.equal(torch.cat(pieces), getattr(batch, field))


def test_slices_are_even() -> None:
    sizes = [len(range(10)[worker_slice(10, rank, 4)]) for rank in range(4)]
    assert sum(sizes) == 10 and max(sizes) - min(sizes) <= 1


def test_numbers_depend_on_seed_epoch_step_and_phase_alone(run: Settings, digits: Dataset) -> None:
    torch.manual_seed(1)
    first = list(make(run, digits).epoch(2))
    torch.manual_seed(2)
    again = list(make(run, digits).epoch(2))
    other_epoch, other_seed = next(make(run, digits).epoch(3)), next(make(run, digits, seed=5).epoch(2))
    noise = [batch.posterior_noise_BE for step in first for batch in step.batches if len(batch.x_BD) == 32]
    for step, twin in zip(first, again, strict=True):
        for a, b in zip(step.batches, twin.batches, strict=True):
            assert torch.equal(a.posterior_noise_BE, b.posterior_noise_BE) and torch.equal(a.x_BD, b.x_BD)  # type: ignore[arg-type]
    flat = [tuple(values.flatten().tolist()) for values in noise if values is not None]
    assert len(set(flat)) == len(flat), "the same noise was drawn for two steps or phases"
    for other in (other_epoch, other_seed):
        assert not torch.equal(other.batches[0].x_BD, first[0].batches[0].x_BD)
        assert tuple(other.batches[0].posterior_noise_BE.flatten().tolist()) not in set(flat)  # type: ignore[union-attr]


def test_noise_goes_on_beyond_one_block(run: Settings, digits: Dataset) -> None:
    assert len(digits.train) / 32 > module.NOISE_BLOCK_STEPS
    assert len(list(make(run, digits).epoch(0))) == -(-len(digits.train) // 32)


def test_only_the_phase_that_needs_prior_draws_gets_them(run: Settings, digits: Dataset) -> None:
    step = next(make(run, digits).epoch(0))
    assert [batch.prior_BZ is not None for batch in step.batches] == [False, True, False]
