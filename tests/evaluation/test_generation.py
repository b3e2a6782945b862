"""Images of chosen codes: of a label, of styles with every label, along the prior, between two images; as files."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from aae_ray.datasets.dataset import load
from aae_ray.errors import UserError
from aae_ray.evaluation import generation
from aae_ray.settings import Data
from tests.evaluation.published_models import NAMES, SHAPE, published

ENDS_2CHW = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), dtype=np.uint8)


def test_samples_without_a_label_are_those_of_the_model() -> None:
    for task in ("unsupervised", "semi_supervised"):
        model = published(task)
        torch.testing.assert_close(generation.samples(model, 5, 3, None).x_NX, model.sample(5, seed=3))


@pytest.mark.parametrize("label", ["two", "2"])
@pytest.mark.parametrize("task", ["supervised", "semi_supervised", "semi_supervised_reduction"])
def test_a_label_is_told_to_the_decoder_by_name_or_number(task: str, label: str) -> None:
    model = published(task)
    images = generation.samples(model, 6, 0, label)
    assert images.y_NK is not None and images.y_NK.tolist() == [[0, 0, 1, 0]] * 6
    expected_NCHW = model.decode(torch.cat([images.y_NK, images.z_NZ], 1))
    assert torch.equal(images.x_NX, expected_NCHW) and images.z_NZ.std() > 0.3


def test_a_cluster_is_told_by_its_number() -> None:
    images = generation.samples(published("clustering"), 2, 0, "4")
    assert images.y_NK is not None and images.y_NK.tolist() == [[0, 0, 0, 0, 1]] * 2


def test_a_label_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(UserError, match="label tree: m version 2 has no such label; it has .*. Did you mean three"):
        generation.samples(published("supervised"), 2, 0, "tree")
    with pytest.raises(UserError, match="label 4: m version 2 has no such label; it has zero, one, two, three"):
        generation.samples(published("supervised"), 2, 0, "4")
    with pytest.raises(UserError, match="label 0: m version 2 is of task unsupervised, and its decoder is told no"):
        generation.samples(published(), 2, 0, "0")


def test_a_style_goes_with_every_label() -> None:
    images = generation.styles(published("supervised"), 3, seed=1)
    assert (images.columns, images.headings) == (4, NAMES)
    z_SKZ = images.z_NZ.view(3, 4, 3)
    assert torch.equal(z_SKZ, z_SKZ[:, :1].expand_as(z_SKZ)) and images.y_NK is not None
    assert images.y_NK.argmax(1).tolist() == [0, 1, 2, 3] * 3
    with pytest.raises(UserError, match="--style: m version 2 is of task unsupervised"):
        generation.styles(published(), 3, seed=1)


def test_a_walk_along_the_prior_of_a_model_with_labels_needs_one() -> None:
    images = generation.prior_walk(published(model__prior="mixture", model__prior_components=6), 5, None)
    assert len(images.x_NX) == 30 and images.columns == 5 and "other 1 coordinates are 0" in images.text
    with pytest.raises(UserError, match="--grid: the decoder of m version 2 is told a label; give one with --label"):
        generation.prior_walk(published("supervised"), 5, None)
    labelled = generation.prior_walk(published("supervised"), 5, "one")
    assert labelled.y_NK is not None and labelled.y_NK.tolist() == [[0, 1, 0, 0]] * 25


@pytest.mark.parametrize("task", ["unsupervised", "semi_supervised", "vae"])
@pytest.mark.parametrize("prior", ["gaussian", "mixture"])
def test_an_interpolation_ends_at_the_reconstructions_of_both_images(task: str, prior: str) -> None:
    model = published(task, model__prior=prior)
    images = generation.interpolation(model, ENDS_2CHW, 7, None)
    ends_2CHW = model.reconstruct(model.encode(torch.from_numpy(ENDS_2CHW / 255).float()))
    torch.testing.assert_close(images.x_NX[[0, -1]], ends_2CHW, rtol=1e-4, atol=1e-5)
    z_SZ = images.z_NZ
    if prior == "gaussian":  # the radius changes evenly, and the angle too
        radius_S = z_SZ.norm(dim=1)
        torch.testing.assert_close(radius_S.diff(), radius_S.diff().mean().expand(6), rtol=1e-3, atol=1e-5)
        cosine_S = torch.cosine_similarity(z_SZ[1:], z_SZ[:-1])
        torch.testing.assert_close(cosine_S, cosine_S.mean().expand(6), rtol=1e-4, atol=1e-5)
        assert "great circle" in images.text
    else:
        torch.testing.assert_close(z_SZ.diff(dim=0), z_SZ.diff(dim=0).mean(0).expand(6, 3), rtol=1e-3, atol=1e-5)
        assert "straight line" in images.text


def test_an_interpolation_between_an_image_and_itself_stays_there() -> None:
    images = generation.interpolation(published(), ENDS_2CHW[[0, 0]], 3, None)
    torch.testing.assert_close(images.z_NZ, images.z_NZ[:1].expand(3, 3))


def test_an_interpolation_has_its_label_from_the_encoder_or_from_the_user() -> None:
    labelled = generation.interpolation(published("supervised"), ENDS_2CHW, 3, "one")
    assert labelled.y_NK is not None and labelled.y_NK.tolist() == [[0, 1, 0, 0]] * 3
    with pytest.raises(UserError, match="--interpolate: the decoder of m version 2 is told a label"):
        generation.interpolation(published("supervised"), ENDS_2CHW, 3, None)
    with pytest.raises(UserError, match="--label one: the encoder of m version 2 finds the labels of both"):
        generation.interpolation(published("semi_supervised"), ENDS_2CHW, 3, "one")


@pytest.mark.parametrize("label", [None, "one"])
def test_files_hold_the_images_the_codes_and_the_labels(label: str | None, tmp_path: Path, cache: Path) -> None:
    images = generation.samples(published("supervised" if label else "unsupervised"), 40, 0, label)
    bytes_NCHW = (images.x_NX * 255).round().to(torch.uint8).numpy()
    for kind in generation.FORMATS:
        generation.write(images, tmp_path / f"images.{kind}", kind)
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), images.x_NX.numpy())
    assert Image.open(tmp_path / "images.png").size == (7 * 66 + 2, 6 * 66 + 2)
    table = pq.read_table(tmp_path / "images.parquet").to_pydict()
    np.testing.assert_array_equal(np.array(table["code"], np.float32), images.z_NZ.numpy())
    for content, image_CHW in zip(table["image"], bytes_NCHW, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), image_CHW[0])
    assert table.get("label") == (None if label is None else ["one"] * 40)
    # A data set again: what is generated can be trained on.
    data = Data(name="own", path=str(tmp_path / "images.parquet"), image_column="image", cache=str(cache))
    np.testing.assert_array_equal(load(data).images_NCHW, bytes_NCHW)


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--out .* cannot be written: Is a directory"):
        generation.write(generation.samples(published(), 2, 0, None), tmp_path, "npy")
