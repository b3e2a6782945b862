"""Published sets in a folder: all forms in which files lie there, names of classes, errors that name the file."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from aae_ray.datasets import cifar10
from aae_ray.datasets.dataset import load
from aae_ray.datasets.image_stream import TEST, TRAIN, ImageStream
from aae_ray.datasets.published import PUBLISHED
from aae_ray.errors import UserError
from aae_ray.settings import Data
from tests.datasets.published_sets import SMALL_SETS, TEST_COUNT, TRAIN_COUNT, SmallSet


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(name: str, folder: Path, **settings: Any) -> tuple[ImageStream, np.ndarray]:
    stored = PUBLISHED[name].find(folder, "data.path")
    assert stored is not None
    stream = stored.read(Data(name=name, **settings))
    return stream, np.concatenate(list(stream.blocks))


def labels_of(stream: ImageStream) -> list[str]:
    """The labels as a person calls them."""
    assert stream.labels is not None
    numbers = stream.labels.to_pylist()
    return [str(number) if stream.label_names is None else stream.label_names[number] for number in numbers]


# How the files of a set may lie in a folder: as published, as they unpack, and without the folder around those.
FORMS: dict[str, Callable[[SmallSet], dict[str, bytes]]] = {
    "as published": lambda small: dict(small.files),
    "unpacked": lambda small: dict(small.unpacked),
    "unpacked, flat": lambda small: {Path(name).name: content for name, content in small.unpacked.items()},
    "unpacked, without gzip": lambda small: {
        Path(name).name.removesuffix(".gz"): gzip.decompress(content) if name.endswith(".gz") else content
        for name, content in small.unpacked.items()
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SMALL_SETS)
def test_what_is_read(tmp_path: Path, name: str, form: str) -> None:
    small = SMALL_SETS[name]()
    stream, images_NCHW = read(name, write(tmp_path, FORMS[form](small)))
    assert np.array_equal(images_NCHW, small.images_NCHW) and stream.count == len(images_NCHW)
    assert images_NCHW.dtype == np.uint8
    assert labels_of(stream) == small.labels
    assert stream.parts is not None and stream.parts.tolist() == [TRAIN] * TRAIN_COUNT + [TEST] * TEST_COUNT


@pytest.mark.parametrize("name", ["fashion-mnist", "kmnist", "emnist-letters", "emnist-balanced", "cifar10"])
def test_names_of_classes_keep_the_order_of_their_numbers(tmp_path: Path, name: str) -> None:
    small = SMALL_SETS[name]()
    folder = write(tmp_path / "fetched", small.files)
    loaded = load(Data(name=name, path=str(folder), cache=str(tmp_path / "cache")))
    assert loaded.class_names == tuple(small.classes)
    assert loaded.labels_N is not None
    assert [small.classes[label] for label in loaded.labels_N] == small.labels


@pytest.mark.parametrize("name", ["svhn", "cifar10", "emnist-letters"])
def test_settings_of_pixels_hold(tmp_path: Path, name: str) -> None:
    small = SMALL_SETS[name]()
    write(tmp_path, small.files)
    stored_NCHW = small.images_NCHW.swapaxes(2, 3)
    if name.startswith("emnist"):
        assert np.array_equal(read(name, tmp_path, transpose=False)[1], stored_NCHW)
    else:
        assert np.array_equal(read(name, tmp_path, transpose=True)[1], stored_NCHW)
    assert np.array_equal(read(name, tmp_path, scale="255:0")[1], 255 - small.images_NCHW)
    stream, images_NCHW = read(name, tmp_path, scale="observed")
    assert np.array_equal(images_NCHW, small.images_NCHW)
    assert stream.value_range() == (0, 255)
    assert read(name, tmp_path, size="5", channels=1)[1].shape == (len(small.images_NCHW), 1, 5, 5)


@pytest.mark.parametrize("name", SMALL_SETS)
def test_files_fetched_by_hand(tmp_path: Path, name: str) -> None:
    small = SMALL_SETS[name]()
    folder = write(tmp_path / "fetched", small.unpacked)
    loaded = load(Data(name=name, path=str(folder), cache=str(tmp_path / "cache")))
    assert np.array_equal(loaded.images_NCHW, small.images_NCHW)
    assert len(loaded.test) == TEST_COUNT


def test_an_archive_that_was_unpacked_on_the_way(tmp_path: Path) -> None:
    small = SMALL_SETS["cifar10"]()
    write(tmp_path, {name: gzip.decompress(content) for name, content in small.files.items()})
    assert np.array_equal(read("cifar10", tmp_path)[1], small.images_NCHW)


def test_an_archive_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    folder = write(tmp_path / "fetched", SMALL_SETS["emnist-letters"]().files)
    read("emnist-letters", folder)
    write(folder, {"gzip.zip": zipped({"gzip/emnist-letters-mapping.txt": b"1 65 97"})})
    with pytest.raises(UserError):
        read("emnist-letters", folder)
    assert not list(temporary.iterdir())
    assert [path.name for path in folder.iterdir()] == ["gzip.zip"]


def zipped(files: Mapping[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as content:
        for name, data in files.items():
            content.writestr(name, data)
    return archive.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def mat(**variables: np.ndarray) -> bytes:
    file = io.BytesIO()
    savemat(file, variables)
    return file.getvalue()


def changed_member(archive: bytes, name: str, content: bytes) -> bytes:
    """A zip in which one file has another content."""
    with zipfile.ZipFile(io.BytesIO(archive)) as source:
        files = {member: source.read(member) for member in source.namelist()}
    return zipped({member: content if member.endswith(name) else data for member, data in files.items()})


def flipped(content: bytes, index: int) -> bytes:
    return content[:index] + bytes([content[index] ^ 255]) + content[index + 1 :]


X, Y = np.zeros((32, 32, 3, 4), np.uint8), np.ones((4, 1), np.uint8)
ARCHIVE = "cifar-10-binary.tar.gz"
# Of each set: the file that is spoilt, how, and what is said of it. An archive is taken before what it unpacks to.
FAULTS: dict[str, tuple[str, str, Callable[[bytes], bytes], str]] = {
    "svhn, empty": ("svhn", "train_32x32.mat", lambda c: b"", "cannot be read as a MATLAB file"),
    "svhn, cut": ("svhn", "train_32x32.mat", lambda c: c[: len(c) // 2], "has no variable y, but X; SVHN has images"),
    "svhn, cut in labels": ("svhn", "train_32x32.mat", lambda c: c[:-10], "cannot be read as a MATLAB file"),
    "svhn, other kind": ("svhn", "test_32x32.mat", lambda c: b"<html>" * 99, "cannot be read as a MATLAB file"),
    "svhn, no labels": ("svhn", "test_32x32.mat", lambda c: mat(X=X), "has no variable y, but X"),
    "svhn, no variables": ("svhn", "test_32x32.mat", lambda c: mat(), "has no variable X, but nothing"),
    "svhn, other size": ("svhn", "test_32x32.mat", lambda c: mat(X=X[:9], y=Y), "X is 9 x 32 x 3 x 4 of uint8"),
    "svhn, other type": ("svhn", "test_32x32.mat", lambda c: mat(X=X / 9, y=Y), "X is 32 x 32 x 3 x 4 of double"),
    "svhn, counts differ": (
        "svhn",
        "test_32x32.mat",
        lambda c: mat(X=X, y=Y[:3]),
        "4 images and 3 labels, not one each",
    ),
    "svhn, no images": ("svhn", "test_32x32.mat", lambda c: mat(X=X[..., :0], y=Y[:0]), "holds no images"),
    "svhn, label": ("svhn", "test_32x32.mat", lambda c: mat(X=X, y=Y * 11), "image 0 has label 11; SVHN has 1 to 9"),
    "cifar10, empty": ("cifar10", ARCHIVE, lambda c: b"", "cannot be read as an archive of CIFAR-10"),
    "cifar10, cut": ("cifar10", ARCHIVE, lambda c: c[: len(c) // 2], "cannot be read as an archive of CIFAR-10"),
    "cifar10, damaged": ("cifar10", ARCHIVE, lambda c: flipped(c, len(c) // 2), "cannot be read as an archive"),
    "cifar10, checksum": (
        "cifar10",
        ARCHIVE,
        lambda c: flipped(c, -6),
        "cannot be read as an archive of CIFAR-10: CRC",
    ),
    "cifar10, other kind": ("cifar10", ARCHIVE, lambda c: b"<html>" * 999, "cannot be read as an archive of CIFAR-10"),
    "cifar10, Python version": (
        "cifar10",
        ARCHIVE,
        lambda c: tarred({"cifar-10-batches-py/data_batch_1": b"pickle"}),
        "has no data_batch_1.bin in it; the binary version",
    ),
    "emnist, empty": ("emnist-letters", "gzip.zip", lambda c: b"", "cannot be read as a zip archive"),
    "emnist, cut": ("emnist-letters", "gzip.zip", lambda c: c[:-30], "cannot be read as a zip archive"),
    "emnist, damaged": ("emnist-letters", "gzip.zip", lambda c: flipped(c, len(c) // 2), "cannot be read as a zip"),
    "emnist, other kind": ("emnist-letters", "gzip.zip", lambda c: b"<html>", "cannot be read as a zip archive"),
    "emnist, other archive": (
        "emnist-letters",
        "gzip.zip",
        lambda c: zipped({"a": b""}),
        "has no emnist-letters-train-images-idx3-ubyte (.gz or not) in it",
    ),
    "emnist, mapping": (
        "emnist-letters",
        "gzip.zip",
        lambda c: changed_member(c, "letters-mapping.txt", b"1 65\nB\n"),
        "emnist-letters-mapping.txt is not a mapping of EMNIST",
    ),
    "emnist, empty mapping": (
        "emnist-letters",
        "gzip.zip",
        lambda c: changed_member(c, "letters-mapping.txt", b""),
        "emnist-letters-mapping.txt is empty",
    ),
    "emnist, label": (
        "emnist-letters",
        "gzip.zip",
        lambda c: changed_member(c, "letters-mapping.txt", b"1 65 97\n2 66 98\n"),
        "image 1 has label 6; the set has 1 to 2",
    ),
    "kmnist, label": (
        "kmnist",
        "train-labels-idx1-ubyte.gz",
        lambda c: gzip.compress(flipped(gzip.decompress(c), 8 + 5)),
        "image 5 has label 250; the set has 0 to 9",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_reported_by_file(tmp_path: Path, fault: str) -> None:
    name, file, spoil, message = FAULTS[fault]
    files = dict(SMALL_SETS[name]().files)
    write(tmp_path, files | {file: spoil(files[file])})
    with pytest.raises(UserError) as error:
        read(name, tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)
    if "mapping" not in fault and "label" not in fault:
        assert str(error.value).startswith(str(tmp_path / file))


BATCH = "data_batch_2.bin"
BATCH_FAULTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda c: b"", "is empty"),
    "cut": (lambda c: c[:-10], "ends within image 9: it has 30720 bytes, and each image takes 3073"),
    "other kind": (lambda c: b"<html>" + c[6:], "is not a batch of CIFAR-10: image 0 has label 60"),
}


@pytest.mark.parametrize("form", ["in the archive", "unpacked"])
@pytest.mark.parametrize("fault", BATCH_FAULTS)
def test_fault_in_a_batch_of_cifar10(tmp_path: Path, fault: str, form: str) -> None:
    spoil, message = BATCH_FAULTS[fault]
    files = dict(SMALL_SETS["cifar10"]().unpacked)
    inside = f"{cifar10.UNPACKED}/{BATCH}"
    files[inside] = spoil(files[inside])
    write(tmp_path, files if form == "unpacked" else {ARCHIVE: tarred(files)})
    with pytest.raises(UserError) as error:
        read("cifar10", tmp_path)
    place = tmp_path / (f"{ARCHIVE}/{BATCH}" if form == "in the archive" else inside)
    assert str(error.value).startswith(f"{place} {message}")


@pytest.mark.parametrize(
    ("name", "present", "message"),
    [
        ("svhn", ["train_32x32.mat"], "has no test_32x32.mat, though train_32x32.mat is there"),
        ("cifar10", ["data_batch_1.bin"], "has no data_batch_2.bin, though"),
        ("emnist-digits", ["gzip/emnist-digits-mapping.txt"], "has no emnist-digits-train-images-idx3-ubyte, though"),
        ("kmnist", ["train-images.idx3-ubyte"], "has no train-labels-idx1-ubyte, though train-images.idx3-ubyte"),
    ],
)
def test_missing_file_is_named(tmp_path: Path, name: str, present: list[str], message: str) -> None:
    write(tmp_path, dict.fromkeys(present, b""))
    with pytest.raises(UserError) as error:
        load(Data(name=name, path=str(tmp_path)))
    assert str(error.value).startswith(f"data.path: {tmp_path} {message}")
    assert PUBLISHED[name].homepage in str(error.value)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("svhn", "train_32x32.mat, test_32x32.mat"),
        ("cifar10", "cifar-10-binary.tar.gz or data_batch_1.bin, "),
        ("emnist-digits", "gzip.zip or emnist-digits-train-images-idx3-ubyte, "),
        ("kmnist", "train-images-idx3-ubyte, train-labels-idx1-ubyte, "),
    ],
)
def test_folder_without_any_of_the_files(tmp_path: Path, name: str, files: str) -> None:
    with pytest.raises(UserError) as error:
        load(Data(name=name, path=str(tmp_path)))
    assert str(error.value).startswith(f"data.path: {tmp_path} is empty; images are read from ")
    assert f"; the files of {name} itself are {files}" in str(error.value)


def test_a_published_set_in_another_format_keeps_its_name(tmp_path: Path) -> None:
    small = SMALL_SETS["cifar10"]()
    np.savez(tmp_path / "exported.npz", images=small.images_NCHW, labels=np.arange(len(small.images_NCHW)) % 10)
    loaded = load(Data(name="cifar10", path=str(tmp_path), cache=str(tmp_path / "cache")))
    assert np.array_equal(loaded.images_NCHW, small.images_NCHW)
