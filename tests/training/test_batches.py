"""Batches and noise are functions of (seed, epoch, step, phase), and the workers' slices make up the whole."""

import numpy as np
import pytest
import torch

from aae_ray.autoencoder.model import build_model
from aae_ray.autoencoder.phases import Batch, corrupt
from aae_ray.datasets.dataset import Dataset
from aae_ray.datasets.images import Images
from aae_ray.randomness import generator_for
from aae_ray.settings import Settings, replace
from aae_ray.training import batches as module
from aae_ray.training.batches import Batches, Step, draw_blocks, stretches, warp, worker_slice


def make(settings: Settings, digits: Dataset, rank: int = 0, workers: int = 1, seed: int = 0) -> Batches:
    settings = replace(settings, {"seed": seed})
    model = build_model(settings, digits.kind, classes=digits.classes)
    images = Images(digits, torch.device("cpu"), torch.float64)
    return Batches(settings, model, images, digits, rank=rank, workers=workers)


@pytest.fixture
def settings(small_run: Settings) -> Settings:
    return replace(small_run, {"model.posterior": "universal", "train.batch_size": 32})


def test_an_epoch_visits_every_training_image_once(settings: Settings, digits: Dataset) -> None:
    seen = torch.cat([step.batches[0].x_BD for step in make(settings, digits).epoch(3)])
    expected = torch.from_numpy(digits.images_NCHW[digits.train].reshape(len(digits.train), -1)).double() / 255
    assert seen.shape == expected.shape
    order = [np.lexsort(rows.numpy().T) for rows in (seen, expected)]
    assert torch.equal(seen[order[0]], expected[order[1]])
    assert seen.min() >= 0 and seen.max() <= 1


@pytest.mark.parametrize("task", ["unsupervised", "label_informed", "semi_supervised"])
@pytest.mark.parametrize("workers", [1, 2, 3, 40])
def test_slices_make_up_the_global_batch(settings: Settings, digits: Dataset, workers: int, task: str) -> None:
    kinds = ("input_noise", "input_dropout", "input_warp", "style_noise", "label_noise")
    noise = {f"train.{kind}": 0.1 for kind in kinds}
    settings = replace(settings, {"task": task, "model.prior": "swiss_roll", "data.labels": 50} | noise)
    whole = list(make(settings, digits).epoch(1))
    parts = [list(make(settings, digits, rank, workers).epoch(1)) for rank in range(workers)]
    for index, step in enumerate(whole):
        for phase, batch in enumerate(step.batches):
            for field in Batch._fields:
                pieces = [getattr(part[index].batches[phase], field) for part in parts]
                if getattr(batch, field) is None:
                    assert pieces == [None] * workers
                else:
                    assert torch.equal(torch.cat(pieces), getattr(batch, field))


def test_warped_images_are_moved_and_nothing_else() -> None:
    x_BD = torch.rand(3, 2 * 8 * 10, dtype=torch.float64)
    still = torch.eye(2, 3, dtype=torch.float64).repeat(3, 1, 1)
    torch.testing.assert_close(warp(x_BD, still, (2, 8, 10)), x_BD)
    moved = still.clone()
    moved[1, 0, 2], moved[2, 1, 2] = 2 * 3 / 10, -2 * 2 / 8  # three pixels to the left, two down, in half sides
    result = warp(x_BD, moved, (2, 8, 10)).unflatten(1, (2, 8, 10))
    images = x_BD.unflatten(1, (2, 8, 10))
    torch.testing.assert_close(result[0], images[0])
    torch.testing.assert_close(result[1, :, :, :-3], images[1, :, :, 3:])
    torch.testing.assert_close(result[2, :, 2:], images[2, :, :-2])
    for black in (result[1, :, :, -3:], result[2, :, :2]):
        torch.testing.assert_close(black, torch.zeros_like(black))


def test_the_encoder_sees_warped_images_and_the_loss_those_of_the_set(settings: Settings, digits: Dataset) -> None:
    step = next(make(replace(settings, {"train.input_warp": 0.2}), digits).epoch(0))
    plain = next(make(settings, digits).epoch(0))
    for batch, other in zip(step.batches, plain.batches, strict=True):
        assert torch.equal(batch.x_BD, other.x_BD) and not torch.equal(corrupt(batch), other.x_BD)
        assert corrupt(batch).min() >= 0 and corrupt(batch).max() <= 1
    assert not torch.equal(corrupt(step.batches[0]), corrupt(step.batches[2]))


def test_slices_are_even() -> None:
    sizes = [len(range(10)[worker_slice(10, rank, 4)]) for rank in range(4)]
    assert sum(sizes) == 10 and max(sizes) - min(sizes) <= 1


def test_numbers_depend_on_seed_epoch_step_and_phase_alone(settings: Settings, digits: Dataset) -> None:
    torch.manual_seed(1)
    first = list(make(settings, digits).epoch(2))
    torch.manual_seed(2)
    again = list(make(settings, digits).epoch(2))
    other_epoch, other_seed = next(make(settings, digits).epoch(3)), next(make(settings, digits, seed=5).epoch(2))
    noise = [batch.posterior_noise_BE for step in first for batch in step.batches if len(batch.x_BD) == 32]
    for step, twin in zip(first, again, strict=True):
        for a, b in zip(step.batches, twin.batches, strict=True):
            assert torch.equal(a.posterior_noise_BE, b.posterior_noise_BE) and torch.equal(a.x_BD, b.x_BD)  # type: ignore[arg-type]
    flat = [tuple(values.flatten().tolist()) for values in noise if values is not None]
    assert len(set(flat)) == len(flat), "the same noise was drawn for two steps or phases"
    for other in (other_epoch, other_seed):
        assert not torch.equal(other.batches[0].x_BD, first[0].batches[0].x_BD)
        assert tuple(other.batches[0].posterior_noise_BE.flatten().tolist()) not in set(flat)  # type: ignore[union-attr]


@pytest.mark.parametrize(("examples", "workers", "size"), [(200, 3, 64), (64, 40, 64), (5, 7, 64), (130, 1, 1)])
def test_a_worker_draws_its_blocks_and_no_others(examples: int, workers: int, size: int) -> None:
    def draw(generator: torch.Generator, block: slice) -> dict[str, torch.Tensor]:
        drawn.append(block)
        return {"noise": torch.randn(2, block.stop - block.start, 3, generator=generator)}

    def slice_of(rank: int, workers: int) -> torch.Tensor:
        mine = worker_slice(examples, rank, workers)
        return draw_blocks(draw, lambda block: generator_for(1, block), examples, mine, size, dim=1)["noise"]

    drawn: list[slice] = []
    whole = slice_of(0, 1)
    assert whole.shape == (2, examples, 3) and len(drawn) == -(-examples // size)
    for rank in range(workers):
        drawn.clear()
        mine = worker_slice(examples, rank, workers)
        assert torch.equal(slice_of(rank, workers), whole[:, mine])
        assert sum(block.stop - block.start for block in drawn) < mine.stop - mine.start + 2 * size


@pytest.mark.parametrize(("images", "batch_size"), [(1079, 32), (64, 64), (5, 2), (3, 3)])
def test_stretches_are_the_steps_of_an_epoch(images: int, batch_size: int) -> None:
    sizes = [stretch.examples for stretch in stretches(images, batch_size) for _ in range(stretch.steps)]
    assert sum(sizes) == images and set(sizes[:-1]) <= {batch_size} and 0 < sizes[-1] <= batch_size


def test_noise_goes_on_beyond_one_block(settings: Settings, digits: Dataset) -> None:
    assert len(digits.train) / 32 > module.STRETCH_STEPS
    assert len(list(make(settings, digits).epoch(0))) == -(-len(digits.train) // 32)


def test_only_the_phase_that_needs_prior_draws_gets_them(settings: Settings, digits: Dataset) -> None:
    step = next(make(settings, digits).epoch(0))
    assert [batch.prior_BZ is not None for batch in step.batches] == [False, True, False]


def test_decoded_images_are_not_corrupted(settings: Settings, digits: Dataset) -> None:
    noise = {"train.input_noise": 0.1, "train.input_dropout": 0.1, "train.input_warp": 0.1}
    step = next(make(replace(settings, {"optim.reencoding_lr": 1e-3} | noise), digits).epoch(0))
    *_, regularized, reencoded = step.batches
    for name in ("input_noise_BD", "input_mask_BD", "warped_BD"):
        assert getattr(regularized, name) is not None and getattr(reencoded, name) is None


# ------------------------------------------------------------------------------------------------------------- labels


def test_classes_are_drawn_as_often_as_the_settings_say(settings: Settings, digits: Dataset) -> None:
    shares = {"model.label_prior": tuple(range(1, 11)), "optim.reencoding_lr": 1e-3, "data.labels": 100}
    batches = make(replace(settings, {"task": "semi_supervised"} | shares), digits)
    drawn_K = torch.stack([y_BK.sum(0) for step in batches.epoch(0) for y_BK in classes_of(step)]).sum(0)
    expected_K = torch.arange(1, 11).double() / 55
    torch.testing.assert_close(drawn_K / drawn_K.sum(), expected_K, rtol=0, atol=0.03)


def classes_of(step: Step) -> list[torch.Tensor]:
    drawn = [batch.classes_BK for batch in step.batches if batch.classes_BK is not None]
    assert len(drawn) == 2, "of the phases discriminate and reencode"
    return drawn


def test_labelled_batches_go_round_through_all_labels(settings: Settings, digits: Dataset) -> None:
    settings = replace(settings, {"task": "semi_supervised", "data.labels": 50, "train.labelled_batch_size": 20})
    batches = make(settings, digits)
    steps = list(batches.epoch(0))
    assert {step.examples[-1] for step in steps} == {20} and len(steps) == -(-len(digits.train) // 32)
    rows = torch.cat([step.batches[-1].x_BD for step in steps])
    known = {tuple(row.tolist()) for row in batches.images[batches.labelled]}
    for start in range(0, len(rows) - 50, 50):
        assert {tuple(row.tolist()) for row in rows[start : start + 50]} == known
    assert sum(len(step.batches[0].x_BD) for step in steps) == len(digits.train)  # the epoch is not cut to the labels


def test_the_label_of_an_image_travels_with_it(settings: Settings, digits: Dataset) -> None:
    assert digits.labels_N is not None
    by_pixels = {
        tuple((image.reshape(-1) / 255).tolist()): int(label)
        for image, label in zip(digits.images_NCHW, digits.labels_N, strict=True)
    }
    settings = replace(settings, {"task": "semi_supervised", "data.labels": 100})
    step = next(make(settings, digits).epoch(0))
    *_, labelled = step.batches
    assert labelled.labels_BK is not None and step.batches[0].labels_BK is None  # most of them are not known
    assert [by_pixels[tuple(row.tolist())] for row in labelled.x_BD] == labelled.labels_BK.argmax(1).tolist()


def test_reencoding_draws_from_all_of_the_prior(settings: Settings, digits: Dataset) -> None:
    values = {"task": "label_informed", "model.prior": "mixture", "optim.reencoding_lr": 1e-3}
    steps = list(make(replace(settings, values), digits).epoch(0))
    model = make(replace(settings, values), digits).model
    agree = []
    for phase in (1, 3):  # discriminate and reencode
        drawn = [step.batches[phase] for step in steps]
        parts_N = model.prior.part_of(torch.cat([batch.prior_BZ for batch in drawn if batch.prior_BZ is not None]))
        told = [batch.label_condition_BS.argmax(1) for batch in drawn if batch.label_condition_BS is not None]
        agree.append((parts_N == torch.cat(told)).double().mean().item())
    assert agree[0] > 0.97 and agree[1] == pytest.approx(0.1, abs=0.03)


def test_a_labelled_image_is_held_against_its_part_of_the_prior(settings: Settings, digits: Dataset) -> None:
    """Positive draws come from the labelled image's own component, other draws from all; the conditions agree."""
    for prior in ("mixture", "swiss_roll"):
        chosen = replace(settings, {"task": "label_informed", "model.prior": prior, "data.labels": 0.4})
        batches = make(chosen, digits)
        assert len(batches.labelled) == round(0.4 * len(digits.train))
        whole = [step.batches[1] for step in batches.epoch(0)]
        conditions_N = torch.cat(
            [batch.label_condition_BS.argmax(1) for batch in whole if batch.label_condition_BS is not None]
        )
        parts_N = batches.model.prior.part_of(
            torch.cat([batch.prior_BZ for batch in whole if batch.prior_BZ is not None])
        )
        known_N = conditions_N < 10
        assert known_N.double().mean().item() == pytest.approx(0.4, abs=0.001)
        assert (parts_N[known_N] == conditions_N[known_N]).double().mean() > 0.97  # components touch, segments meet
        counts = torch.bincount(parts_N[~known_N], minlength=10)
        assert counts.min() > 0.5 * counts.double().mean() and (conditions_N[~known_N] == 10).all()
