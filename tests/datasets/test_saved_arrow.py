"""Data sets that Hugging Face's library saved to disk are read by Arrow alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aae_ray.datasets.image_stream import ImageStream
from aae_ray.datasets.saved_arrow import find_saved, read_saved
from aae_ray.errors import UserError
from aae_ray.settings import Data
from tests.datasets.small_sets import gather

datasets = pytest.importorskip("datasets", reason="the extra `test` brings Hugging Face's library")

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (150, 5, 6), dtype=np.uint8)  # more than two pieces
LABELS = np.arange(150) % 3


def as_dataset(rows: slice, **columns: Any) -> Any:
    from PIL import Image

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["ant", "bee", "cat"]),
            "id": datasets.Value("string"),
        }
    )
    pictures = [Image.fromarray(image) for image in IMAGES[rows]]
    values = {"image": pictures, "label": LABELS[rows].tolist(), "id": [f"n{n}" for n in range(len(pictures))]}
    return datasets.Dataset.from_dict(values | columns, features=features)


def read(path: Path, **data: Any) -> ImageStream:
    saved = find_saved(path)
    assert saved is not None
    return read_saved(saved, Data(**data))


def test_a_set_without_splits(tmp_path: Path) -> None:
    as_dataset(slice(None)).save_to_disk(tmp_path / "set", num_shards=2)
    stream = read(tmp_path / "set")
    images_NCHW, labels_N = gather(stream)
    assert np.array_equal(images_NCHW[:, 0], IMAGES)
    assert labels_N is not None and labels_N.tolist() == LABELS.tolist()
    assert stream.label_names == ("ant", "bee", "cat")
    assert stream.parts is None
    assert (stream.origin.files, stream.origin.used, stream.origin.unused) == (2, ("image", "label"), ("id",))
    assert stream.value_range() == (0, 255)
    assert stream.label_location(149).endswith("data-00001-of-00002.arrow: row 74 of column label")


def test_splits_are_parts(tmp_path: Path) -> None:
    parts = {"test": slice(100, 120), "train": slice(0, 100), "validation": slice(120, 150)}
    sets = datasets.DatasetDict({name: as_dataset(rows) for name, rows in parts.items()})
    sets.save_to_disk(tmp_path / "sets")
    stream = read(tmp_path / "sets")
    images_NCHW, _ = gather(stream)
    assert stream.parts is not None and stream.parts.tolist() == [0] * 100 + [1] * 30 + [2] * 20
    assert np.array_equal(images_NCHW[:, 0], np.concatenate([IMAGES[:100], IMAGES[120:], IMAGES[100:120]]))
    only = read(tmp_path / "sets" / "test")
    assert (only.count, only.parts) == (20, None)


def test_arrays_in_features(tmp_path: Path) -> None:
    features = datasets.Features({"x": datasets.Array2D((5, 6), "uint8"), "label": datasets.Value("string")})
    names = np.array(["ant", "bee", "cat"])[LABELS].tolist()
    datasets.Dataset.from_dict({"x": IMAGES, "label": names}, features=features).save_to_disk(tmp_path / "set")
    images_NCHW, labels_N = gather(read(tmp_path / "set"))
    assert np.array_equal(images_NCHW[:, 0], IMAGES)
    assert labels_N is not None and labels_N.tolist() == names
    assert read(tmp_path / "set", label_column="none").labels is None


def test_faults_are_told_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    as_dataset(slice(None)).save_to_disk(folder)
    (file,) = folder.glob("*.arrow")
    content = file.read_bytes()
    for text, spoilt in (
        ("cannot be read as an Arrow stream", content[:9000]),
        ("cannot be read as", b"PAR1" * 9),
        ("", b""),
    ):
        file.write_bytes(spoilt)
        with pytest.raises(UserError) as error:
            gather(read(folder))
        assert str(file) in str(error.value) and text in str(error.value) and "\n" not in str(error.value)
    file.unlink()
    with pytest.raises(UserError, match=r"\.arrow is missing, though .*state\.json names it"):
        read(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state\.json cannot be read: it is no JSON text"):
        read(folder)
    (folder / "state.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"state\.json names no files of data"):
        read(folder)


def test_splits_must_name_their_classes_alike(tmp_path: Path) -> None:
    other = as_dataset(slice(9)).cast_column("label", datasets.ClassLabel(names=["bee", "ant", "cat"]))
    datasets.DatasetDict({"train": as_dataset(slice(9)), "test": other}).save_to_disk(tmp_path / "sets")
    with pytest.raises(UserError, match=r"test.*\.arrow: the classes .* bee, ant, cat, and in .* names ant, bee, cat"):
        read(tmp_path / "sets")


def test_a_column_gives_the_parts(tmp_path: Path) -> None:
    words = ["train", "test", "test"] * 50
    features = datasets.Features({"x": datasets.Array2D((5, 6), "uint8"), "split": datasets.Value("string")})
    saved = datasets.Dataset.from_dict({"x": IMAGES, "split": words}, features=features)
    saved.add_column("fold", words[::-1]).save_to_disk(tmp_path / "set")
    for column, expected in ((None, [0, 2, 2] * 50), ("fold", [2, 2, 0] * 50)):
        stream = read(tmp_path / "set", split_column=column)
        assert stream.parts is not None and stream.parts.tolist() == expected
        assert stream.origin.parts == f"column {column or 'split'}"
    assert read(tmp_path / "set", split_column="none").parts is None
    with pytest.raises(UserError, match=r"data\.split_column: .* has no column flod, .*Did you mean fold\?"):
        read(tmp_path / "set", split_column="flod")


@pytest.mark.parametrize("content", [{}, {"splits": 3}, {"splits": [1]}, {"splits": []}, {"splits": "train"}, [1]])
def test_splits_that_are_no_names_are_told(tmp_path: Path, content: Any) -> None:
    (tmp_path / "dataset_dict.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"dataset_dict\.json names no splits; save the set again"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("state.json", {"_data_files": [{"filename": 3}]}, "names no files of data"),
        ("state.json", {"_data_files": [{"filename": "a" * 300}]}, "is missing, though"),
        ("state.json", {"_data_files": 3}, "names no files of data"),
        ("dataset_info.json", {"features": [1]}, None),
        ("dataset_info.json", {"features": {"label": {"names": 3}}}, None),
    ],
)
def test_notes_of_other_types_are_told_or_not_used(
    tmp_path: Path, file: str, content: Any, message: str | None
) -> None:
    as_dataset(slice(9)).save_to_disk(tmp_path / "set")
    (tmp_path / "set" / file).write_text(json.dumps(content))
    if message is None:
        assert read(tmp_path / "set").label_names is None
    else:
        with pytest.raises(UserError, match=message):
            read(tmp_path / "set")


def test_other_splits_and_columns_are_refused(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": as_dataset(slice(9)), "extra": as_dataset(slice(9))}).save_to_disk(tmp_path / "sets")
    with pytest.raises(
        UserError, match=r"has the splits train, extra, of which not all are called train, validation or"
    ):
        read(tmp_path / "sets")
    with pytest.raises(UserError, match=r"data\.image_column: .* has no column imgae, .*Did you mean image\?"):
        read(tmp_path / "sets" / "train", image_column="imgae")
    with pytest.raises(UserError, match=r"column id holds string; images are pictures as bytes"):
        read(tmp_path / "sets" / "train", image_column="id")
    assert find_saved(tmp_path) is None


def test_a_split_without_rows_is_passed_over(tmp_path: Path) -> None:
    whole, empty = as_dataset(slice(None)), as_dataset(slice(0))
    datasets.DatasetDict({"train": whole, "test": empty}).save_to_disk(tmp_path / "set")
    assert read(tmp_path / "set").count == len(whole)
    datasets.DatasetDict({"train": empty}).save_to_disk(tmp_path / "splits")
    empty.save_to_disk(tmp_path / "plain")
    for name, reason in (("splits", "its splits train are empty"), ("plain", "")):
        with pytest.raises(UserError, match=rf"{name} holds no (rows|images and no numbers): {reason}"):
            read(tmp_path / name)
