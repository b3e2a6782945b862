"""The presets for colour: what their start points make of a few coloured shapes."""

from pathlib import Path

import numpy as np
import pytest

from aae_ray.datasets.dataset import Dataset
from aae_ray.search.space import read_plan
from aae_ray.settings import replace
from aae_ray.training.loop import Training

SEARCH_SPACES = Path(__file__).parents[2] / "search_spaces"
SIDE = 32


def coloured_shapes(count: int) -> Dataset:
    """A disc or a square of one colour on another, anywhere in the image, of any size: no image is like the mean."""
    random = np.random.default_rng(0)
    rows_HW, columns_HW = np.mgrid[:SIDE, :SIDE]
    images_NCHW = np.empty((count, 3, SIDE, SIDE), np.uint8)
    labels_N = np.arange(count) % 2
    for image_CHW, square in zip(images_NCHW, labels_N, strict=True):
        ground, figure = random.integers(0, 256, (2, 3, 1, 1))
        row, column, radius = *random.integers(8, SIDE - 8, 2), random.integers(5, 12)
        down_HW, across_HW = np.abs(rows_HW - row), np.abs(columns_HW - column)
        inside_HW = np.maximum(down_HW, across_HW) < radius if square else np.hypot(down_HW, across_HW) < radius
        image_CHW[:] = np.where(inside_HW, figure, ground)
    indices = np.arange(count)
    train, val, test = np.split(indices, [count * 2 // 3, count * 5 // 6])
    return Dataset("shapes", "shapes", images_NCHW, labels_N, train, val, test)


@pytest.mark.parametrize("name", ["cifar10", pytest.param("svhn", marks=pytest.mark.slow)])  # but for sizes the same
def test_the_start_point_beats_the_mean_image_by_a_wide_margin(name: str) -> None:
    plan = read_plan(str(SEARCH_SPACES / f"{name}.yaml"))
    few = {"train.epochs": 6, "train.batch_size": 20, "train.device": "cpu"}
    training = Training(replace(plan.settings, dict(plan.start[0]) | few), coloured_shapes(600))
    metrics = training.train().metrics
    assert metrics["val/mean_image_mse"] > 0.05, "the shapes are too much alike"
    assert metrics["val/reconstruction_mse"] < 0.5 * metrics["val/mean_image_mse"]
