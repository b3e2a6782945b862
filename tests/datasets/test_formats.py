"""Whatever way a set is stored, the same images, classes and parts are prepared; else it is said what is there."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from aae_ray.datasets.contents import contents_of
from aae_ray.datasets.dataset import load
from aae_ray.errors import UserError
from aae_ray.settings import Data
from tests.datasets.small_sets import idx_bytes, some_images, write_idx

IMAGES, LABELS = some_images(60, 6)


def parquet(path: Path) -> Path:
    pq.write_table(pa.table({"image": IMAGES.tolist(), "label": LABELS}), path / "a.parquet")
    return path / "a.parquet"


def pictures(path: Path) -> Path:
    for index, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        (path / str(label)).mkdir(exist_ok=True)
        Image.fromarray(image).save(path / str(label) / f"{index:02}.png")
    return path


def arrays(path: Path) -> Path:
    np.save(path / "images.npy", IMAGES)
    np.save(path / "labels.npy", LABELS)
    return path


def archive(path: Path) -> Path:
    np.savez(path / "a.npz", images=IMAGES, labels=LABELS)
    return path / "a.npz"


def idx(path: Path) -> Path:
    return write_idx(path, IMAGES, LABELS)


def saved(path: Path) -> Path:
    datasets = pytest.importorskip("datasets", reason="the extra `test` brings Hugging Face's library")
    datasets.Dataset.from_dict({"image": IMAGES.tolist(), "label": LABELS.tolist()}).save_to_disk(path / "set")
    return path / "set"


def table(path: Path) -> Path:
    rows = "\n".join(f"{row / 2},{row**2},{'xyz'[row % 3]}" for row in range(40))
    (path / "a.csv").write_text(f"a,b,label\n{rows}\n")
    return path / "a.csv"


def packed_table(path: Path) -> Path:
    (path / "a.csv.gz").write_bytes(gzip.compress(table(path).read_bytes()))
    return path / "a.csv.gz"


FORMATS = (parquet, pictures, arrays, archive, idx, saved, table, packed_table)


@pytest.mark.parametrize("write", FORMATS[:6])
def test_every_format_is_prepared_alike(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    (tmp_path / "set").mkdir()
    path = str(write(tmp_path / "set"))
    own = load(Data(name="own", path=path, cache=str(tmp_path)))
    order = np.lexsort((np.arange(60), LABELS)) if write is pictures else np.arange(60)
    assert np.array_equal(own.images_NCHW[:, 0], IMAGES[order])
    assert own.labels_N is not None and np.array_equal(own.labels_N, LABELS[order])
    assert own.class_names == ("0", "1", "2")
    unlabelled = load(Data(name="own", path=path, cache=str(tmp_path), label_column="none"))
    assert unlabelled.labels_N is None


@pytest.mark.parametrize("values", [{"size": "3"}, {"scale": "255:0"}, {"channels": 3}, {"transpose": True}])
def test_settings_of_pixels_make_another_set(tmp_path: Path, values: dict[str, Any]) -> None:
    for own in ({"name": "digits"}, {"name": "own", "path": str(idx(tmp_path / "idx"))}):
        plain, other = (load(Data(**own, cache=str(tmp_path), **more)) for more in ({}, values))
        assert plain.digest != other.digest
        if "transpose" in values:
            assert np.array_equal(plain.images_NCHW, other.images_NCHW.swapaxes(2, 3))


def test_what_is_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.heic").write_bytes(b"x")
    Image.fromarray(IMAGES[0]).save(tmp_path / "one.png")
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04" + b"\0" * 40)
    (tmp_path / "both").mkdir()
    arrays(tmp_path / "both")
    parquet(tmp_path / "both")
    for name, text in {
        "notes": "holds no images, but files of other kinds (.heic 1); images are read from Parquet",
        "one.png": "is a single picture; give the folder that holds it",
        "a.zip": "is an archive; unpack it",
        "both": "holds files of several formats, Parquet (a.parquet) and NumPy (images.npy)",
    }.items():
        with pytest.raises(UserError) as error:
            load(Data(name="own", path=str(tmp_path / name), cache=str(tmp_path)))
        assert str(error.value).startswith(f"data.path: {tmp_path / name} {text}")


def test_emnist_in_a_folder_of_several_sets(tmp_path: Path) -> None:
    for name in ("letters", "digits"):
        for kind, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
            (tmp_path / f"emnist-{name}-train-{kind}-ubyte").write_bytes(idx_bytes(array))
    with pytest.raises(UserError, match="holds several sets of IDX files; choose one by one of its files"):
        load(Data(name="own", path=str(tmp_path), cache=str(tmp_path / "cache")))
    path = tmp_path / "emnist-letters-train-images-idx3-ubyte"
    letters = load(Data(name="own", path=str(path), cache=str(tmp_path / "cache"), transpose=True))
    assert np.array_equal(letters.images_NCHW[:, 0], IMAGES.swapaxes(1, 2))


@pytest.mark.parametrize("write", [parquet, archive, arrays])
def test_a_file_of_another_name_is_read_by_its_content(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    (tmp_path / "set").mkdir()
    path = write(tmp_path / "set")
    path = (path / "images.npy" if path.is_dir() else path).rename(tmp_path / "own.dat")
    assert np.array_equal(load(Data(name="own", path=str(path), cache=str(tmp_path))).images_NCHW[:, 0], IMAGES)


def test_one_class_in_folders_is_not_told_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "set"
    for index in range(20):
        (path / "cat").mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[index]).save(path / "cat" / f"{index}.png")
    told = contents_of(load(Data(name="own", path=str(path), cache=str(tmp_path)))).rows()
    assert told["classes"].endswith("there is only one class")
    deep = IMAGES.astype(np.uint16) * 257
    np.save(tmp_path / "deep.npy", deep)
    own = load(Data(name="own", path=str(tmp_path / "deep.npy"), cache=str(tmp_path), scale="0:65535"))
    assert contents_of(own).rows()["values"] == f"{deep.min()} to {deep.max()} before scaling"


@pytest.mark.parametrize("write", FORMATS[:6])
def test_images_that_are_all_alike_are_refused(
    write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "IMAGES", np.repeat(IMAGES[:1], len(IMAGES), 0))
    (tmp_path / "set").mkdir()
    path = write(tmp_path / "set")
    own = Data(name="own", path=str(path), cache=str(tmp_path))
    with pytest.raises(UserError, match=f"data.path: all 60 images in {path} are equal, and there is nothing to learn"):
        load(own)
    assert len(load(own, to_train=False).images_NCHW) == 60  # a trained model may look at them


def test_a_folder_for_each_picture_is_not_told_of_columns(tmp_path: Path) -> None:
    for index, image in enumerate(IMAGES[:12]):
        (tmp_path / "set" / f"c{index}").mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "set" / f"c{index}" / "a.png")
    with pytest.raises(
        UserError, match=r"a different label in every row, .*; put all pictures of a class into one fol"
    ):
        load(Data(name="own", path=str(tmp_path / "set"), cache=str(tmp_path)))


def test_a_set_that_is_all_test_is_told_so(tmp_path: Path) -> None:
    columns = {"image": IMAGES.tolist(), "split": ["test"] * 60}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match=r"own has no training images: its source gives all 60 to test; let it give some"
    ):
        load(Data(name="own", path=str(tmp_path / "a.parquet"), cache=str(tmp_path)))


@pytest.mark.parametrize("write", FORMATS)
@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, write: Callable[[Path], Path], data: st.DataObject
) -> None:
    """Some bytes of one of its files are others, or its end is missing: what is read then may be wrong, but no error
    is a library's own."""
    folder = tmp_path_factory.mktemp("damaged")
    path = write(folder)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans(), label="cut"):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        load(Data(name="own", path=str(path), cache=str(folder / "cache")))
    except UserError as error:
        assert str(folder) in str(error) and not re.search(
            r"thrift|flatbuffer|metadata bytes|CRC|end-of-stream", str(error)
        )
