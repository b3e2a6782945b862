"""Codes, probabilities and anomaly scores of a set as a table; outliers have higher scores than images like those that
were trained on."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

from aae_ray.datasets.classes import UNKNOWN
from aae_ray.datasets.dataset import Dataset, load
from aae_ray.datasets.images import examples
from aae_ray.errors import UserError
from aae_ray.evaluation.anomaly import scores
from aae_ray.evaluation.encoding import reconstruct_pictures, write_codes
from aae_ray.settings import Settings, replace
from aae_ray.study.loading import from_checkpoint
from aae_ray.training import checkpoint
from aae_ray.training.loop import Training
from tests.datasets.small_sets import write_idx
from tests.evaluation.published_models import NAMES, published


@pytest.fixture
def few(digits: Dataset) -> Dataset:
    """Images of the first four digits, some of them without a label."""
    labels_N = np.asarray(digits.labels_N)
    rows = np.flatnonzero(labels_N < 4)[:30]
    labels_N = labels_N[rows].copy()
    labels_N[5] = UNKNOWN
    parts = (np.arange(0, 20), np.arange(20, 25), np.arange(25, 30))
    names = ("zéro", "one", "two", "three")
    return Dataset("few", "d" * 32, digits.images_NCHW[rows], labels_N, *parts, names)


@pytest.mark.parametrize(
    ("task", "own"),
    [
        ("unsupervised", {}),
        ("vae", {"sigma": 3}),
        ("semi_supervised", {"class_probabilities": 4}),
        ("clustering", {"cluster_probabilities": 5}),
        ("semi_supervised_reduction", {"class_probabilities": 4, "representation": 3}),
    ],
)
def test_the_table_has_a_row_for_each_image(task: str, own: dict[str, int], few: Dataset, tmp_path: Path) -> None:
    model = published(task)
    assert write_codes(model, few, tmp_path / "codes.parquet") == 30
    assert [file.name for file in tmp_path.iterdir()] == ["codes.parquet"]
    table = pq.read_table(tmp_path / "codes.parquet")
    expected = {"code": 3} | own
    lists = {field.name: field.type.list_size for field in table.schema if pa.types.is_fixed_size_list(field.type)}
    assert lists == expected and table.schema.metadata[b"model"] == b"m version 2"
    numbers = ["reconstruction_error", "prior_distance", "anomaly_score"]
    assert set(table.column_names) == {"index", "part", "label", "class", *expected, *numbers}
    rows = table.to_pydict()
    assert rows["index"] == list(range(30)) and rows["part"] == ["training"] * 20 + ["validation"] * 5 + ["test"] * 5
    assert rows["label"][5] is None and rows["class"][5] is None
    assert (rows["label"][0], rows["class"][0]) == (0, "zéro")

    x_NCHW = examples(few, np.arange(30))
    encoded = model.encode(x_NCHW)
    torch.testing.assert_close(torch.tensor(rows["code"]), encoded.z_NZ)
    error_N = (model.reconstruct(encoded) - x_NCHW).square().mean((1, 2, 3))
    torch.testing.assert_close(torch.tensor(rows["reconstruction_error"]), error_N)
    nats_N = 64 * error_N / (2 * 0.05) + 0.5 * encoded.z_NZ.square().sum(1)
    torch.testing.assert_close(torch.tensor(rows["anomaly_score"]), nats_N)


def test_a_decoder_that_is_told_labels_has_those_of_the_images(few: Dataset, tmp_path: Path) -> None:
    model = published("supervised")
    few = dataclasses.replace(few, class_names=NAMES)
    with pytest.raises(UserError, match="told a label for each of them, one of 4, and 1 of 30 have none"):
        write_codes(model, few, tmp_path / "codes.parquet")
    with pytest.raises(UserError, match="one of 4, and these have none; of a table data.label_column names"):
        write_codes(model, dataclasses.replace(few, labels_N=None, class_names=None), tmp_path / "codes.parquet")
    assert not list(tmp_path.iterdir())
    labels_N = np.arange(30) % 4
    write_codes(model, dataclasses.replace(few, labels_N=labels_N), tmp_path / "codes.parquet")
    x_NCHW = examples(few, np.arange(30))
    answer_NCHW = model.reconstruct(model.encode(x_NCHW), torch.from_numpy(labels_N))
    errors = pq.read_table(tmp_path / "codes.parquet")["reconstruction_error"].to_pylist()
    torch.testing.assert_close(torch.tensor(errors), (answer_NCHW - x_NCHW).square().mean((1, 2, 3)))


def test_labels_of_another_set_are_told_by_the_names_of_their_classes(few: Dataset, tmp_path: Path) -> None:
    model, labels_N = published("supervised"), np.arange(30) % 4
    own = dataclasses.replace(few, labels_N=labels_N, class_names=NAMES)
    reversed_ = dataclasses.replace(few, labels_N=3 - labels_N, class_names=NAMES[::-1])
    tables = []
    for number, dataset in enumerate((own, reversed_)):
        write_codes(model, dataset, tmp_path / f"{number}.parquet")
        tables.append(pq.read_table(tmp_path / f"{number}.parquet"))
    for column in ("class", "reconstruction_error"):
        assert tables[0][column].to_pylist() == tables[1][column].to_pylist()
    named = {key: json.loads(tables[1].schema.metadata[key]) for key in (b"class_names", b"model.class_names")}
    assert named == {b"class_names": list(NAMES[::-1]), b"model.class_names": list(NAMES)}

    foreign = dataclasses.replace(few, labels_N=labels_N, class_names=("zero", "cat", "two", "dog"))
    with pytest.raises(UserError, match="data.name few has images of class cat, dog, and the decoder of m version 2"):
        write_codes(model, foreign, tmp_path / "codes.parquet")
    assert write_codes(published("semi_supervised"), foreign, tmp_path / "codes.parquet") == 30  # which needs no labels


@pytest.mark.parametrize(
    ("names", "label", "index"),
    [
        (("cat", "dog"), "dog", 1),
        (("cat", "dog"), "1", 1),
        (("10", "20", "30", "40"), "10", 0),
        (("10", "20", "30", "40"), "1", None),
        (("1.5", "2.5"), "1", None),
        (("-1", "unknown"), "0", None),
        (("cat", "dog"), "2", None),
    ],
)
def test_a_number_names_a_label_where_no_class_is_named_by_one(
    names: tuple[str, ...], label: str, index: int | None
) -> None:
    shares_K = torch.full((len(names),), 1 / len(names))
    model = dataclasses.replace(published("supervised"), class_names=names, label_shares_K=shares_K)
    if index is not None:
        assert model.label_index(label) == index
    else:
        with pytest.raises(UserError, match=f"label {label}: m version 2 has no such label; it has {names[0]}"):
            model.label_index(label)


def test_a_table_that_cannot_be_written_is_a_sentence(few: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--out .* cannot be written: No such file or directory"):
        write_codes(published(), few, tmp_path / "missing" / "codes.parquet")


def test_outliers_have_high_scores(digits: Dataset, cache: Path, tmp_path: Path) -> None:
    """Of a model that has never seen a zero. Measured areas under the ROC curve: 0.96 by score and by reconstruction
    error; where another digit is left out, 0.91 (1), 0.95 (6) and 0.84 (8) by score. The code's distance from the prior
    alone tells nothing: an encoder puts what it does not know near to the middle.
    """
    labels_N = np.asarray(digits.labels_N)
    zeros, others = np.flatnonzero(labels_N == 0), labels_N != 0
    own = write_idx(tmp_path / "own", digits.images_NCHW[others, 0], labels_N[others] - 1)
    values = {"data.name": "no-zeros", "data.path": str(own), "data.cache": str(cache)}
    run = replace(Settings(), values | {"model.latent_dim": 6, "train.epochs": 30})
    dataset = load(run.data)
    training = Training(run, dataset)
    training.train()
    checkpoint.save(training.state_dict(), tmp_path / "saved")
    model = from_checkpoint(tmp_path / "saved")
    x_NCHW = torch.cat([examples(dataset, dataset.test), examples(digits, zeros)])
    outlier_N = np.arange(len(x_NCHW)) >= len(dataset.test)
    found = scores(model, x_NCHW, model.encode(x_NCHW))
    assert roc_auc_score(outlier_N, found.anomaly_score_N.numpy()) > 0.9
    assert roc_auc_score(outlier_N, found.reconstruction_error_N.numpy()) > 0.9


def test_a_model_that_does_not_know_its_error_cannot_score(few: Dataset) -> None:
    model = dataclasses.replace(published(), reconstruction_mse=None)
    x_NCHW = examples(few, np.arange(3))
    with pytest.raises(UserError, match="does not say how well it reconstructs validation images"):
        scores(model, x_NCHW, model.encode(x_NCHW))


def test_pictures_are_shown_beside_their_reconstructions(few: Dataset) -> None:
    model, supervised = published("semi_supervised"), published("supervised")
    pairs = reconstruct_pictures(model, few.images_NCHW[:3], None)
    x_NCHW = examples(few, np.arange(3))
    errors_N = (model.reconstruct(model.encode(x_NCHW)) - x_NCHW).square().mean((1, 2, 3))
    torch.testing.assert_close(torch.tensor(pairs.errors), errors_N)
    assert pairs.sheet.startswith(b"\x89PNG")
    with pytest.raises(UserError, match="its decoder is told the class of each image: give --label"):
        reconstruct_pictures(supervised, few.images_NCHW[:3], None)
    with pytest.raises(UserError, match="--label one: the encoder of m version 2 finds the label of each image itself"):
        reconstruct_pictures(model, few.images_NCHW[:3], "one")
    assert reconstruct_pictures(supervised, few.images_NCHW[:1], "one").errors
