"""Figures: they are PNGs of a sensible size, show what they were given, and take whatever a trial may hand them."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from aae_ray.evaluation.drawing import (
    CELL_PIXELS,
    CLASS_COLOURS,
    HEADING_PIXELS,
    SEPARATOR,
    UNLABELLED_GREY,
    code_scatter,
    image_sheet,
    reconstructions,
    samples,
)

PRIOR_NZ = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))


def images(count: int, channels: int = 1, height: int = 8, width: int = 8) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(count))


def codes(count: int, size: int = 2) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(count))


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def has_colour(png: bytes, colour: str) -> bool:
    """Whether some pixel is near a colour (points are slightly transparent over white)."""
    full = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)])
    seen = 0.8 * full + 0.2 * 255
    return bool((np.abs(pixels(png) - seen).max(axis=2) <= 3).any())


# --------------------------------------------------------------------------------------------- sheets of images


def test_a_sheet_shows_each_image_in_its_place_enlarged() -> None:
    x_NCHW = images(6)
    sheet = np.asarray(image_sheet(x_NCHW, columns=3))
    cell = CELL_PIXELS + SEPARATOR
    assert sheet.shape == (2 * cell + SEPARATOR, 3 * cell + SEPARATOR)
    for index in range(6):
        top, left = index // 3 * cell + SEPARATOR, index % 3 * cell + SEPARATOR
        shown = sheet[top : top + CELL_PIXELS, left : left + CELL_PIXELS]
        expected = (x_NCHW[index, 0] * 255).round().byte().numpy().repeat(8, 0).repeat(8, 1)
        assert np.array_equal(shown, expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (7, 3, 3), (12, 4, 3), (64, 8, 8)])
def test_sheets_of_any_count_are_about_square(channels: int, count: int, columns: int, rows: int) -> None:
    sheet = image_sheet(images(count, channels, 32, 16))
    assert sheet.mode == ("L" if channels == 1 else "RGB")
    assert sheet.size == (columns * (32 + SEPARATOR) + SEPARATOR, rows * (64 + SEPARATOR) + SEPARATOR)
    assert pixels(samples(images(count, channels, 32, 16))).shape[:2] == sheet.size[::-1]


def test_a_sheet_of_very_many_images_is_not_enlarged() -> None:
    assert image_sheet(images(10_000, height=28, width=28)).width == 100 * (28 + SEPARATOR) + SEPARATOR


def test_pixels_outside_the_range_are_cut_and_those_that_are_no_number_are_black() -> None:
    x_NCHW = torch.tensor([-1.0, 2.0, math.nan, math.inf]).reshape(1, 1, 2, 2)
    sheet = np.asarray(image_sheet(x_NCHW))
    middle = SEPARATOR + CELL_PIXELS // 4
    assert sheet[middle, middle] == 0 and sheet[middle, -middle] == 255
    assert sheet[-middle, middle] == 0 and sheet[-middle, -middle] == 255


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (4, 2, 8, 8), (4, 64)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected images of shape"):
        image_sheet(torch.zeros(shape))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 5, 16, 20])
def test_reconstructions_show_both_and_change_with_either(channels: int, count: int) -> None:
    x_NCHW = images(count, channels)
    png = reconstructions(x_NCHW, 0.5 * x_NCHW)
    height, width = pixels(png).shape[:2]
    assert height > 2 * CELL_PIXELS * math.ceil(count / 8) and width > CELL_PIXELS * min(count, 6)
    assert png == reconstructions(x_NCHW, 0.5 * x_NCHW)
    other = x_NCHW.clone()
    other[-1, 0, 0, 0] = 1 - other[-1, 0, 0, 0].round()
    assert png != reconstructions(other, 0.5 * x_NCHW) and png != reconstructions(x_NCHW, 0.5 * other)


def test_originals_stand_above_reconstructions() -> None:
    white, black = torch.ones(3, 1, 8, 8), torch.zeros(3, 1, 8, 8)
    shown = pixels(reconstructions(white, black))[:, -CELL_PIXELS]  # a column through the last pair
    assert np.flatnonzero((shown == 0).all(axis=1)).min() > CELL_PIXELS


def test_pairs_must_have_one_shape() -> None:
    with pytest.raises(ValueError, match="reconstructions"):
        reconstructions(images(4), images(3))


# ----------------------------------------------------------------------------------------------------------- codes


def test_codes_are_coloured_by_class_and_blue_without() -> None:
    labels_N = np.arange(200) % 10
    coloured = code_scatter(codes(200), labels_N, PRIOR_NZ, title="held-out codes")
    plain = code_scatter(codes(200), None, PRIOR_NZ, title="held-out codes")
    assert all(has_colour(coloured, colour) for colour in CLASS_COLOURS)
    assert [has_colour(plain, colour) for colour in CLASS_COLOURS] == [True] + [False] * 9
    height, width = pixels(coloured).shape[:2]
    assert 400 < height < 1000 and 400 < width < 1000


def test_the_scatter_changes_with_codes_labels_prior_and_title() -> None:
    z_NZ, labels_N = codes(50), np.arange(50) % 3
    png = code_scatter(z_NZ, labels_N, PRIOR_NZ, title="held-out codes")
    assert png == code_scatter(z_NZ, torch.as_tensor(labels_N), PRIOR_NZ, title="held-out codes")
    assert png != code_scatter(2 * z_NZ, labels_N, PRIOR_NZ, title="held-out codes")
    assert png != code_scatter(z_NZ, labels_N[::-1], PRIOR_NZ, title="held-out codes")
    assert png != code_scatter(z_NZ, labels_N, 0.5 * PRIOR_NZ, title="held-out codes")
    assert png != code_scatter(z_NZ, labels_N, PRIOR_NZ, title="held-out codes, Gaussian posterior")


def test_the_scatter_says_when_it_shows_two_of_many_coordinates() -> None:
    z_NZ = codes(50, 8)
    assert code_scatter(z_NZ, None, PRIOR_NZ, title="codes") != code_scatter(z_NZ[:, :2], None, PRIOR_NZ, title="codes")


@pytest.mark.parametrize(
    ("z_NZ", "classes"),
    [(codes(1), 1), (codes(9000), 10), (codes(300), 40), (1e30 * codes(20), 3), (torch.full((20, 2), math.nan), 3)],
    ids=["one code", "many codes", "many classes", "huge codes", "no finite code"],
)
@pytest.mark.filterwarnings("error")
def test_the_scatter_takes_whatever_a_trial_hands_it(z_NZ: Tensor, classes: int) -> None:
    assert pixels(code_scatter(z_NZ, np.arange(len(z_NZ)) % classes, PRIOR_NZ, title="held-out codes")).std() > 0


@pytest.mark.parametrize("classes", [10, 47, 100, 200])
@pytest.mark.parametrize("size", [0.25, 5e3, 4e5, 1e12])
def test_nothing_is_cut_off_at_the_edge_of_the_scatter(classes: int, size: float) -> None:
    """Places are given by hand: the longest numbers, the most classes and the longest title must fit."""
    labels_N = np.arange(4000) % classes
    prior_NZ = size * torch.nn.functional.pad(PRIOR_NZ, (0, 6))
    shown = pixels(code_scatter(size * codes(4000, 8), labels_N, prior_NZ, title="held-out codes, Gaussian posterior"))
    for edge in (shown[:, :2], shown[:, -2:], shown[:2], shown[-2:]):
        assert (edge == 255).all()


LONG_NAMES = ["WWWWWWWWWWWWWWWWWW", "Gänseblümchen", "a $ b $ c", "line\nbreak", "犬", *map(str, range(40))]


@pytest.mark.parametrize("classes", [5, 10, 45])
@pytest.mark.filterwarnings("error")
def test_the_names_of_classes_fit_into_the_scatter(classes: int) -> None:
    labels_N = np.arange(300) % classes
    named = code_scatter(codes(300), labels_N, PRIOR_NZ, title="held-out codes", names=LONG_NAMES)
    assert named != code_scatter(codes(300), labels_N, PRIOR_NZ, title="held-out codes")
    shown = pixels(named)
    for edge in (shown[:, :2], shown[:, -2:], shown[:2], shown[-2:]):
        assert (edge == 255).all()


def test_unlabelled_codes_are_dark_grey_and_named_so() -> None:
    labels_N = np.where(np.arange(200) % 2, -1, np.arange(200) % 3)
    shown = code_scatter(codes(200), labels_N, PRIOR_NZ, title="held-out codes", names=["ant", "bee", "cat"])
    assert has_colour(shown, UNLABELLED_GREY)
    assert all(has_colour(shown, colour) for colour in CLASS_COLOURS[:3]) and not has_colour(shown, CLASS_COLOURS[3])


def test_columns_of_a_sheet_have_headings_that_fit() -> None:
    bare, headed = (pixels(samples(images(6), 3, headings)) for headings in ((), ("ant", "W" * 99, "cat")))
    assert headed.shape[0] == bare.shape[0] + HEADING_PIXELS and headed.shape[1] == bare.shape[1]
    step = headed.shape[1] // 3
    for column in range(3):
        heading = headed[:HEADING_PIXELS, column * step : (column + 1) * step]
        assert (heading < 128).any() and (heading[:, :1] == 255).all()
