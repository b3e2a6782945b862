"""Parts of a set as its source gives them, and images that stand in more than one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aae_ray.datasets.contents import contents_of
from aae_ray.datasets.dataset import Dataset, load
from aae_ray.datasets.image_stream import TEST, TRAIN, VALIDATION
from aae_ray.datasets.parts import parts_of_files
from aae_ray.errors import SettingsError, UserError
from aae_ray.reading import Entry, build
from aae_ray.settings import Data
from tests.datasets.small_sets import some_images, write_idx

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 9), dtype=np.uint8)


def write(file: Path, rows: slice, **columns: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": IMAGES[rows].tolist(), **columns}), file)
    return file


@pytest.fixture
def own(tmp_path: Path) -> Any:
    def own(path: Path, **values: Any) -> Dataset:
        return load(Data(name="own", path=str(path), cache=str(tmp_path / "cache"), **values))

    return own


def rows_of(dataset: Dataset, part: np.ndarray) -> set[bytes]:
    return {dataset.images_NCHW[row].tobytes() for row in part}


def images(rows: slice) -> set[bytes]:
    return {image.tobytes() for image in IMAGES[rows]}


NAMES: dict[str, tuple[str, ...]] = {
    "Hugging Face": ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"),
    "hashes": (
        "train-00000-of-00002-a1b2.parquet",
        "train-00001-of-00002-ff.parquet",
        "test-00000-of-00001-0c.parquet",
    ),
    "folders": ("train/a.parquet", "train/b.parquet", "test/a.parquet"),
    "folders in folders": ("data/Train/0/a.parquet", "data/Train/1/b.parquet", "data/TEST/a.parquet"),
    "hive": ("split=train/a.parquet", "split=train/b.parquet", "split=test/a.parquet"),
    "behind a name": ("mnist_train_1.parquet", "mnist_train_2.parquet", "mnist_test.parquet"),
    "between dots": ("mnist.train.1.parquet", "mnist.train.2.parquet", "mnist.test.snappy.parquet"),
    "before dots": ("train.v1.parquet", "train.v2.parquet", "test.v1.parquet"),
    "upper case": ("TRAIN1.PARQUET", "TRAIN2.PARQUET", "TEST.Parquet"),
    "without a word": ("a.parquet", "b.parquet", "test.parquet"),
}


@pytest.mark.parametrize("names", NAMES)
def test_files_and_folders_name_the_parts(tmp_path: Path, own: Any, names: str) -> None:
    """Validation is drawn from the rest, where it is not given."""
    folder = tmp_path / "set"
    for name, rows in zip(NAMES[names], (slice(0, 20), slice(20, 40), slice(40, 60)), strict=True):
        write(folder / name, rows)
    dataset = own(folder, validation_fraction=0.25)
    assert rows_of(dataset, dataset.test) == images(slice(40, 60))
    assert (len(dataset.train), len(dataset.val)) == (30, 10)
    by = "column split" if names == "hive" else "names of files and folders"
    assert contents_of(dataset).rows()["parts"].endswith(f"; test given by {by}, validation drawn")


def test_all_parts_may_be_given(tmp_path: Path, own: Any) -> None:
    for name, rows in (("train", slice(0, 30)), ("validation", slice(30, 45)), ("test", slice(45, 60))):
        write(tmp_path / f"set/{name}-00000-of-00001.parquet", rows)
    dataset = own(tmp_path / "set")
    parts = (dataset.train, dataset.val, dataset.test)
    assert [rows_of(dataset, part) for part in parts] == [
        images(slice(0, 30)), images(slice(30, 45)), images(slice(45, 60)),
    ]  # fmt: skip
    assert np.array_equal(own(tmp_path / "set", split_seed=9).val, dataset.val)


def test_a_test_part_is_drawn_where_validation_alone_is_given(tmp_path: Path, own: Any) -> None:
    write(tmp_path / "set/train.parquet", slice(0, 40))
    write(tmp_path / "set/val.parquet", slice(40, 60))
    dataset = own(tmp_path / "set", test_fraction=0.25)
    assert rows_of(dataset, dataset.val) == images(slice(40, 60)) and len(dataset.test) == 10
    assert "validation given by names of files and folders, test drawn" in contents_of(dataset).rows()["parts"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("latest.parquet", "contest.parquet"), None),
        (("train-0.parquet", "train-1.parquet"), None),
        (("test-0.parquet", "test-1.parquet"), None),
        (("train.parquet", "other.parquet"), None),
        (("test_of_time.parquet", "train.parquet"), None),
        (("valid.parquet", "train.parquet"), [VALIDATION, TRAIN]),
        (("testing/train.parquet", "train.parquet"), [TEST, TRAIN]),
    ],
)
def test_words_that_are_and_are_no_parts(names: tuple[str, ...], expected: list[int] | None) -> None:
    root = Path("set")
    assert parts_of_files(root, [root / name for name in names]) == expected


WORDS = ["train"] * 30 + ["Validation"] * 10 + ["TEST"] * 20


def test_a_column_of_parts(tmp_path: Path, own: Any) -> None:
    file = write(tmp_path / "a.parquet", slice(None), split=pa.array(WORDS).dictionary_encode(), fold=WORDS[::-1])
    dataset = own(file)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (30, 10, 20)
    assert rows_of(dataset, dataset.test) == images(slice(40, 60))
    assert contents_of(dataset).rows()["parts"].endswith("; given by column split")
    other = own(file, split_column="fold")
    assert rows_of(other, other.test) == images(slice(0, 20))
    assert contents_of(own(file, split_column="none")).parts_from == ""


def test_a_column_called_split_that_names_no_part_is_not_used(tmp_path: Path, own: Any) -> None:
    contents = contents_of(own(write(tmp_path / "a.parquet", slice(None), split=np.arange(60) % 5)))
    assert contents.parts_from == "" and contents.unused == ("split",)


def test_a_column_that_names_some_parts_and_other_things_is_refused(tmp_path: Path, own: Any) -> None:
    file = write(tmp_path / "a.parquet", slice(None), split=[*WORDS[:59], "extra"])
    with pytest.raises(UserError, match="row 59 of column split is extra, which names no part .*split_column=none"):
        own(file)


def test_a_second_path_is_the_test_part(tmp_path: Path, own: Any) -> None:
    labels = [("ant", "bee")[row % 2] for row in range(60)]
    train = write(tmp_path / "a.parquet", slice(0, 40), label=labels[:40])
    test = write(tmp_path / "b.parquet", slice(40, 60), label=pa.array(labels[40:]).dictionary_encode())
    dataset = own(train, test_path=str(test))
    assert rows_of(dataset, dataset.test) == images(slice(40, 60)) and len(dataset.val) == 8
    assert dataset.class_names == ("ant", "bee")
    assert [dataset.class_names[label] for label in np.asarray(dataset.labels_N)] == labels
    assert contents_of(dataset).rows()["parts"].endswith("; test given by data.test_path, validation drawn")


@pytest.mark.parametrize("column", ["label", "kind"])
def test_a_test_part_may_come_without_its_answers(column: str, tmp_path: Path, own: Any) -> None:
    """As competitions publish it: in a folder, whatever is read first, or at a path of its own."""
    named = {} if column == "label" else {"label_column": column}
    train = write(tmp_path / "set/train.parquet", slice(0, 40), **{column: ["ant", "bee"] * 20})
    write(tmp_path / "set/test.parquet", slice(40, 60))
    for dataset in (
        own(train.parent, **named),
        own(train, test_path=str(tmp_path / "set/test.parquet"), **named),
    ):
        assert rows_of(dataset, dataset.test) == images(slice(40, 60))
        assert (dataset.class_names, dataset.unlabelled) == (("ant", "bee"), 20)
        assert contents_of(dataset).rows()["classes"] == "2 classes: ant 20, bee 20; without a label 20"
    if named:
        slip = own(train, test_path=str(tmp_path / "set/test.parquet"), **named)
        assert (
            f"test images without labels: {tmp_path}/set/test.parquet has no column kind"
            in contents_of(slip).rows()["remarks"]
        )
    split = write(tmp_path / "split/test.parquet", slice(40, 60), split=["train"] * 20).parent
    write(split / "train.parquet", slice(0, 40), split=["train"] * 30 + ["test"] * 10, **{column: ["ant", "bee"] * 20})
    with pytest.raises(UserError, match="test.parquet.* column .*"):  # which says itself that it is not of the test
        own(split, **named)
    write(tmp_path / "set/train2.parquet", slice(0, 10))  # of a part that is trained on it would be a slip
    with pytest.raises(UserError, match="train2.parquet: column .* is missing"):
        own(train.parent, **named)


def test_what_two_paths_must_have_in_common(tmp_path: Path, own: Any) -> None:
    train = write(tmp_path / "a.parquet", slice(0, 40), label=[0, 1] * 20)
    bare = write(tmp_path / "b.parquet", slice(40, 60))
    words = write(tmp_path / "c.parquet", slice(40, 60), label=["x"] * 20)
    pq.write_table(pa.table({"image": [[1] * 16], "label": [1]}), tmp_path / "d.parquet")
    folder = write(tmp_path / "set/test.parquet", slice(0, 20), label=[0, 1] * 10).parent
    write(folder / "train.parquet", slice(20, 40), label=[0, 1] * 10)
    for path, test, message in (
        (bare, train, "data.test_path: .*a.parquet has labels and data.path has none"),
        (train, words, "c.parquet: labels are .* they must be of one kind"),
        (train, tmp_path / "d.parquet", "d.parquet has images of 1 x 4 x 4 .* and data.path of 1 x 3 x 3"),
        (train, tmp_path / "none.parquet", "data.test_path: .*none.parquet does not exist"),
        (folder, bare, "data.path has a test part of its own"),
    ):
        with pytest.raises(UserError, match=message):
            own(path, test_path=str(test))
    with pytest.raises(SettingsError, match="data.test_path is the test part of the images in data.path"):
        build({"data.test_path": Entry("x.parquet", "command line")})


def test_of_a_second_path_with_parts_the_test_part_is_taken_alone(tmp_path: Path, own: Any) -> None:
    """The root of a set as data.test_path, beside its folder of training images."""
    labels = [("ant", "bee")[row % 2] for row in range(60)]
    train = write(tmp_path / "set/train/a.parquet", slice(0, 40), label=labels[:40])
    write(tmp_path / "set/test/a.parquet", slice(40, 60), label=labels[40:])
    dataset = own(train, test_path=str(tmp_path / "set"))
    assert len(dataset.images_NCHW) == 60 and rows_of(dataset, dataset.test) == images(slice(40, 60))
    assert dataset.class_names is not None and dataset.labels_N is not None
    assert [dataset.class_names[label] for label in dataset.labels_N] == labels
    assert "images of data.test_path that are not of its test part, left out: 40" in dataset.origin.remarks
    bad = [*labels[40:47], "", *labels[48:]]
    write(tmp_path / "set/test/a.parquet", slice(40, 60), label=bad)
    with pytest.raises(UserError, match=r"test/a\.parquet: row 7 of column label is empty text"):
        own(train, test_path=str(tmp_path / "set"))
    mixed = write(tmp_path / "mixed.parquet", slice(0, 20), label=labels[:20], split=["train", "val"] * 10)
    with pytest.raises(UserError, match=r"data\.test_path: .*mixed\.parquet has parts, and none for the test"):
        own(train, test_path=str(mixed))


def test_what_was_done_to_images_of_both_paths_is_told(tmp_path: Path, own: Any) -> None:
    from PIL import Image

    for name, rows in (("train", range(40)), ("test", range(40, 60))):
        (tmp_path / name).mkdir()
        for row in rows:
            Image.fromarray(IMAGES[row].reshape(3, 3)).save(tmp_path / name / f"{row}.png")
        (tmp_path / name / "notes.txt").write_text("")
    dataset = own(tmp_path / "train", test_path=str(tmp_path / "test"))
    left_out = "files that are no pictures, left out: 1 (.txt 1)"
    assert dataset.origin.remarks == (left_out, f"in data.test_path, {left_out}")


def test_an_observed_scale_suits_one_path_alone() -> None:
    entries = {"data.path": "a", "data.test_path": "b", "data.scale": "observed"}
    with pytest.raises(SettingsError, match=r"data\.scale=observed takes another black and white .*LOW:HIGH"):
        build({key: Entry(value, "command line") for key, value in entries.items()})


def test_a_row_of_the_second_path_is_named_by_its_own_file(tmp_path: Path, own: Any) -> None:
    train = write(tmp_path / "a.parquet", slice(0, 40), label=["a", "b"] * 20)
    test = write(tmp_path / "b.parquet", slice(40, 60), label=["a"] * 7 + [""] + ["b"] * 12)
    with pytest.raises(UserError, match="b.parquet: row 7 of column label is empty text"):
        own(train, test_path=str(test))


def test_images_that_are_there_twice_are_counted(tmp_path: Path, own: Any) -> None:
    """Three copies of image 0 and one more of image 1 within training; image 2 stands in training and test."""
    rows = np.r_[np.arange(40), 0, 0, 1, np.arange(40, 60), 2]
    split = ["train"] * 43 + ["val"] * 10 + ["test"] * 11
    pq.write_table(pa.table({"image": IMAGES[rows].tolist(), "split": split}), tmp_path / "a.parquet")
    contents = contents_of(own(tmp_path / "a.parquet"))
    assert (contents.examples, contents.duplicates, contents.shared) == (64, 4, 1)
    told = contents.rows()["repeated"]
    assert told == "copies of an earlier image 4; validation and test images that also occur in another part 1"
    assert contents.short() == (
        "64 images of 1 x 3 x 3, read from Parquet, columns image, split; pixels 0 to 255 before scaling",
        "no labels; training 43, validation 10, test 11, given by column split",
        told,
    )


def test_of_images_that_are_all_alike_another_column_may_be_meant(tmp_path: Path, own: Any) -> None:
    pq.write_table(pa.table({"image": [[177] * 9] * 30, "mask": IMAGES[:30].tolist()}), tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match="all 30 images in .* are equal, .* another column or array with data.image_column"
    ):
        own(tmp_path / "a.parquet", image_column="image")
    assert contents_of(own(tmp_path / "a.parquet", image_column="mask")).duplicates == 0


def test_a_set_of_idx_files_has_its_own_test_part(tmp_path: Path, own: Any) -> None:
    pixels_NHW, labels_N = some_images()
    contents = contents_of(own(write_idx(tmp_path / "idx", pixels_NHW, labels_N, 15)))
    assert contents.parts == {"training": 36, "validation": 9, "test": 15} and contents.parts_from == "names of files"
    assert contents.classes == {"0": 20, "1": 20, "2": 20} and contents.value_range == (0, 255)


def test_no_set_is_written_to_a_disk_without_room(tmp_path: Path, own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    file = write(tmp_path / "a.parquet", slice(None))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(UserError, match="data.cache: the prepared images take .* MB, and 0.0 MB are free under"):
        own(file)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_all_classes_are_recorded_and_a_screen_has_the_first(tmp_path: Path, own: Any) -> None:
    names = [f"{number:02} is a class with a name of more letters than a screen has room for" for number in range(15)]
    write(tmp_path / "a.parquet", slice(None), label=[names[index % 15] for index in range(60)])
    contents = contents_of(own(tmp_path / "a.parquet"))
    shown, recorded = contents.rows()["classes"], contents.rows(recorded=True)["classes"]
    assert "... and 5 more" in shown and names[0] not in shown
    assert recorded == f"15 classes: {', '.join(f'{name} 4' for name in names)}"
    many = replace(contents, classes={f"{number:04}{'x' * 30}": 1 for number in range(1000)})
    assert 4000 < len(many.rows(recorded=True)["classes"]) < 5000 and "more" in many.rows(recorded=True)["classes"]


def test_names_that_look_alike_are_told_apart(tmp_path: Path, own: Any) -> None:
    contents = replace(contents_of(own(write(tmp_path / "a.parquet", slice(None)))), classes={})
    told = replace(contents, classes={" cat": 1, "cat": 2, "\u00e9": 3, "e\u0301": 4, "dog": 5}).rows()["classes"]
    assert told == "5 classes: ' cat' 1, 'cat' 2, '\\xe9' 3, 'e\\u0301' 4, dog 5"


@pytest.mark.parametrize("labels", [[-1] * 60, [None, "-1"] * 30, [None] * 60], ids=["-1", "-1 as text", "null"])
def test_a_set_that_was_published_without_its_labels_has_none_and_says_so(
    labels: list[Any], tmp_path: Path, own: Any
) -> None:
    dataset = own(write(tmp_path / "a.parquet", slice(0, 60), label=labels))
    assert dataset.labels_N is None and dataset.class_names is None
    lines = contents_of(dataset).rows()
    assert lines["classes"] == "no labels"
    assert lines["remarks"].endswith("column label is empty or -1 in every row, so that nothing has a label")


def test_a_class_that_the_training_part_lacks_is_told(tmp_path: Path, own: Any) -> None:
    write(tmp_path / "set/train/a.parquet", slice(0, 40), label=["ant", "bee"] * 20)
    write(tmp_path / "set/test/a.parquet", slice(40, 60), label=["ant", "cat"] * 10)
    told = contents_of(own(tmp_path / "set")).rows()
    assert told["classes"] == "3 classes: ant 30, bee 20, cat 10; not among the training images: cat"


def test_a_folder_and_a_column_that_say_different_things_are_refused(tmp_path: Path, own: Any) -> None:
    write(tmp_path / "set/label=1/a.parquet", slice(0, 30), label=[9] * 30)
    write(tmp_path / "set/label=2/a.parquet", slice(30, 60), label=[2] * 30)
    with pytest.raises(UserError, match=r"label=1/a.parquet: its folder says label=1, and its column label 9; rename"):
        own(tmp_path / "set")
    write(tmp_path / "set/label=1/a.parquet", slice(0, 30), label=[1] * 30)
    assert contents_of(own(tmp_path / "set")).classes == {"1": 30, "2": 30}


@pytest.mark.parametrize(
    ("folders", "values"),
    [
        (("1", "2"), (1.0, 2.0)),
        (("true", "false"), (True, False)),
        (("ant", "__HIVE_DEFAULT_PARTITION__"), ("ant", None)),
    ],
)
def test_a_folder_and_a_column_that_say_the_same_may_spell_it_differently(
    folders: tuple[str, str], values: tuple[Any, Any], tmp_path: Path, own: Any
) -> None:
    for index, (folder, value) in enumerate(zip(folders, values, strict=True)):
        rows = slice(30 * index, 30 * (index + 1))
        label = pa.array([value] * 30, pa.array(values).type)
        write(tmp_path / f"set/label={folder}/a.parquet", rows, label=label)
    dataset = own(tmp_path / "set")
    assert len(dataset.images_NCHW) == 60 and dataset.unlabelled == 30 * (None in values)
