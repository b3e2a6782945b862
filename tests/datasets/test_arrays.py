"""NumPy's files: what was saved is what is read, by usual names or by the settings; faults name file and array."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aae_ray.datasets.arrays import find_arrays, read_arrays
from aae_ray.datasets.image_stream import ImageStream
from aae_ray.errors import UserError
from aae_ray.settings import Data
from tests.datasets.small_sets import gather

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (20, 6, 7), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (20, 6, 7, 3), dtype=np.uint8)
SQUARE = RANDOM.integers(0, 256, (20, 5, 5), dtype=np.uint8)
LABELS = np.arange(20) % 3


def read(path: Path, **data: Any) -> ImageStream:
    return read_arrays(find_arrays(path), Data(**data))


FORMS: dict[str, tuple[np.ndarray, np.ndarray]] = {  # as saved, and as images_NCHW
    "N x H x W": (GREY, GREY[:, None]),
    "N x H x W x 1": (GREY[..., None], GREY[:, None]),
    "N x H x W x 3": (COLOUR, COLOUR.transpose(0, 3, 1, 2)),
    "N x 3 x H x W": (COLOUR.transpose(0, 3, 1, 2), COLOUR.transpose(0, 3, 1, 2)),
    "flat": (SQUARE.reshape(20, 25), SQUARE[:, None]),
    "opaque": (np.concatenate([COLOUR, np.full_like(COLOUR[..., :1], 255)], 3), COLOUR.transpose(0, 3, 1, 2)),
    "Fortran": (np.asfortranarray(COLOUR), COLOUR.transpose(0, 3, 1, 2)),
    "big-endian": (GREY.astype(">i4"), GREY[:, None]),
    "fractions": ((GREY / 255).astype(np.float16), GREY[:, None]),
    "booleans": (GREY > 127, (GREY > 127)[:, None] * 255),
}


@pytest.mark.parametrize("block_bytes", [1, 300, 1 << 24])
@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path: Path, form: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aae_ray.datasets.arrays.BLOCK_BYTES", block_bytes)
    saved, expected_NCHW = FORMS[form]
    np.save(tmp_path / "a.npy", saved)
    np.savez(tmp_path / "b.npz", pictures=saved, labels=LABELS)
    np.savez_compressed(tmp_path / "c.npz", saved)
    for name in ("a.npy", "b.npz", "c.npz"):
        images_NCHW, labels_N = gather(read(tmp_path / name))
        assert np.array_equal(images_NCHW, expected_NCHW)
        assert (labels_N is None) == (name != "b.npz")


KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # names of images and of labels, train and test
    "Keras": (("x_train", "x_test"), ("y_train", "y_test")),
    "MedMNIST": (("train_images", "test_images"), ("train_labels", "test_labels")),
    "capitals": (("X_Train", "X_Test"), ("Y_Train", "Y_Test")),
    "words": (("images-training", "images-testing"), ("targets-training", "targets-testing")),
}


@pytest.mark.parametrize("names", KEYS)
def test_parts_by_name(tmp_path: Path, names: str) -> None:
    (train, test), (train_labels, test_labels) = KEYS[names]
    arrays: dict[str, np.ndarray] = {train: GREY[:15], test: GREY[15:]}
    arrays |= {train_labels: LABELS[:15, None], test_labels: LABELS[15:, None]}
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    (tmp_path / "folder").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "folder" / f"{name}.npy", array)
    for path in (tmp_path / "a.npz", tmp_path / "folder"):
        stream = read(path)
        images_NCHW, labels_N = gather(stream)
        assert np.array_equal(images_NCHW[:, 0], GREY)
        assert labels_N is not None and labels_N.tolist() == LABELS.tolist()
        assert stream.parts is not None and stream.parts.tolist() == [0] * 15 + [2] * 5
        assert stream.origin.used == (train, test, train_labels, test_labels)


def test_a_part_without_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=GREY[:15], y_train=LABELS[:15], x_test=GREY[15:])
    stream = read(tmp_path / "a.npz")
    assert stream.labels is not None and stream.labels.to_pylist() == [*LABELS[:15].tolist(), *[None] * 5]


def test_arrays_that_are_not_used_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", GREY, LABELS)
    stream = read(tmp_path / "a.npz")
    assert (stream.origin.used, stream.origin.unused) == (("arr_0",), ("arr_1",))
    assert stream.labels is None
    named = read(tmp_path / "a.npz", label_column="arr_1")
    assert named.labels is not None and named.labels.to_pylist() == LABELS.tolist()


def test_settings_choose_among_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=GREY, mask=GREY // 2 + 100, label=LABELS, age=LABELS + 50)
    images_NCHW, ages_N = gather(read(tmp_path / "a.npz", image_column="mask", label_column="age"))
    assert np.array_equal(images_NCHW[:, 0], GREY // 2 + 100)
    assert ages_N is not None and ages_N.tolist() == (LABELS + 50).tolist()
    assert read(tmp_path / "a.npz", label_column="none").labels is None
    np.savez(tmp_path / "b.npz", x_train=GREY[:15], y_train=LABELS[:15], x_test=GREY[15:])
    stream = read(tmp_path / "b.npz", image_column="x_train")
    assert stream.count == 15 and stream.parts is None and stream.labels is not None


LABEL_KINDS: dict[str, tuple[np.ndarray, list[Any]]] = {
    "text": (np.array(["ant", "bee"] * 10), ["ant", "bee"] * 10),
    "bytes": (np.array([b"ant", b"bee"] * 10), ["ant", "bee"] * 10),
    "booleans": (LABELS > 1, (LABELS > 1).tolist()),
    "big-endian": (LABELS.astype(">i8"), LABELS.tolist()),
    "half": (LABELS.astype(np.float16), LABELS.tolist()),
    "a column": (LABELS[:, None], LABELS.tolist()),
}


@pytest.mark.parametrize("kind", LABEL_KINDS)
def test_kinds_of_labels(tmp_path: Path, kind: str) -> None:
    saved, expected = LABEL_KINDS[kind]
    np.savez(tmp_path / "a.npz", images=GREY, labels=saved)
    labels = read(tmp_path / "a.npz").labels
    assert labels is not None and labels.to_pylist() == expected


DTYPES = st.sampled_from(["?", "u1", "<i2", ">i2", "<u4", ">i8", "<f2", ">f4", "<f8"])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(5, 8), st.integers(5, 8), st.sampled_from([None, 1, 3]), DTYPES, st.booleans())
def test_what_is_read_is_what_was_saved(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    height: int,
    width: int,
    channels: int | None,
    dtype: str,
    fortran: bool,
) -> None:
    levels = np.random.default_rng(count * height * width).integers(0, 2, (count, height, width, channels or 1)) * 255
    levels[0, 0, 0] = 255
    pixels = (levels if np.dtype(dtype).kind in "ui" else levels / 255).astype(dtype)
    pixels = pixels[..., 0] if channels is None else pixels
    path = tmp_path_factory.mktemp("arrays") / "images.npy"
    np.save(path, np.asfortranarray(pixels) if fortran else pixels)
    images_NCHW, _ = gather(read(path))
    assert np.array_equal(images_NCHW, levels.transpose(0, 3, 1, 2))


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def archive(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr(name, content)
    return stream.getvalue()


def as_objects(images: list[np.ndarray]) -> np.ndarray:
    objects = np.empty(len(images), object)
    objects[:] = images
    return objects


FAULTS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": ("a.npy", lambda: b"", "a.npy is empty; copy or download it again"),
    "cut": ("a.npy", lambda: saved(GREY)[:-100], "a.npy is cut short, after 17 of its 20 rows; copy or"),
    "cut in its header": ("a.npy", lambda: saved(GREY)[:40], "a.npy is damaged or cut short"),
    "cut archive": ("a.npz", lambda: archive(images=GREY)[:-60], "a.npz is an archive that is cut short"),
    "damaged archive": (
        "a.npz",
        lambda: archive(images=GREY).replace(GREY[3].tobytes(), b"x" * 42),
        "does not fit its checksum",
    ),
    "array of no bytes": ("a.npz", lambda: zipped("images.npy", b""), "cut short: EOF: reading magic string, expected"),
    "Parquet": ("a.npy", lambda: b"PAR1" + b"\0" * 40, "a.npy is none of NumPy's files, but Parquet"),
    "text": ("a.npy", lambda: b"1 2 3", "a.npy is none of NumPy's files; copy or"),
    "other archive": ("a.npz", lambda: zipped("readme.txt", b"hello"), "a.npz is an archive without arrays"),
    "objects": (
        "a.npy",
        lambda: saved(as_objects([GREY[0], GREY[1][:3]])),
        "holds Python objects, which are never",
    ),
    "text in place of images": ("a.npz", lambda: archive(images=np.array(["a", "b"])), "values of type <U1"),
    "no images": ("a.npy", lambda: saved(GREY[:0]), "a.npy holds no images"),
    "one picture": ("a.npy", lambda: saved(COLOUR[0]), "6 x 7 x 3, which looks like one picture"),
    "no square": (
        "a.npy",
        lambda: saved(GREY.reshape(20, -1)),
        "is 20 x 42; images are N x H x W",
    ),
    "channels on both sides": (
        "a.npz",
        lambda: archive(x=np.zeros((9, 3, 8, 3), np.uint8)),
        "is 9 x 3 x 8 x 3, which may be N x C x H x W as well as N x H x W x C; save",
    ),
    "videos": ("a.npz", lambda: archive(x=np.zeros((2, 3, 4, 5, 6))), "is 2 x 3 x 4 x 5 x 6; images are N x H x W"),
    "several": (
        "a.npz",
        lambda: archive(a=GREY, b=GREY),
        "several arrays of images, a, b; choose one",
    ),
    "only a test part": ("a.npz", lambda: archive(x_test=GREY), "has no images to train on, only x_test"),
    "shapes of parts": ("a.npz", lambda: archive(x_train=GREY, x_test=SQUARE), "x_test holds images of 5 x 5 x 1 and"),
    "too few labels": ("a.npz", lambda: archive(x=GREY, y=LABELS[:9]), "holds 20 images and"),
    "one-hot": ("a.npz", lambda: archive(x=GREY, y=np.eye(3)[LABELS]), "(one-hot) store their argmax(1)"),
    "12 bits": ("a.npy", lambda: saved(GREY.astype(np.uint16) * 16), "a.npy: image 0"),
    "dark": ("a.npy", lambda: saved(GREY % 17), "has pixel values of 0 to 16, and would be dark"),
    "NaN": ("a.npy", lambda: saved(np.where(GREY.max() == GREY, np.nan, GREY / 255)), "of NaN or infinity"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_by_file_and_array(tmp_path: Path, fault: str) -> None:
    name, make, text = FAULTS[fault]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(UserError) as error:
        gather(read(tmp_path / name))
    assert str(tmp_path / name) in str(error.value) and text in str(error.value), str(error.value)
    assert "\n" not in str(error.value)


def test_the_range_of_the_whole_set_is_told(tmp_path: Path) -> None:
    signed = (GREY.astype(np.float32) / 127.5) - 1
    np.save(tmp_path / "a.npy", signed)
    with pytest.raises(UserError, match=r"image 0 .*those seen are -1 to 1\. .*data\.scale=-1:1"):
        gather(read(tmp_path / "a.npy"))
    images_NCHW, _ = gather(read(tmp_path / "a.npy", scale="-1:1"))
    assert np.array_equal(images_NCHW[:, 0], GREY)


def test_a_label_of_the_test_part_is_told_by_its_own_array(tmp_path: Path) -> None:
    arrays = {"x_train": GREY[:15], "y_train": LABELS[:15], "x_test": GREY[15:], "y_test": LABELS[15:]}
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    place = read(tmp_path / "a.npz").label_location
    assert place(14).endswith("array y_train: label 14")
    assert place(17).endswith("array y_test: label 2")
    assert "y_train" in place(None) and "y_test" in place(None)


def test_text_of_another_encoding_is_refused(tmp_path: Path) -> None:
    """Read with a sign in place of what is unknown, two words would become one class."""
    np.savez(tmp_path / "a.npz", images=GREY, labels=np.array([b"tea", b"caf\xe9"] * 9 + [b"caf\xe8"] * 2))
    with pytest.raises(UserError, match=r"array labels: label 1 is b'caf\\xe9', which is not UTF-8"):
        read(tmp_path / "a.npz")


def test_a_column_of_parts_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=GREY, split=np.array(["train"] * 20))
    with pytest.raises(UserError, match=r"data\.split_column: .* holds NumPy's arrays, which have no column of parts"):
        read(tmp_path / "a.npz", split_column="split")


def test_names_that_do_not_exist(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=GREY, labels=LABELS)
    with pytest.raises(UserError, match=r"data\.image_column: .* has no array imagse, but .*Did you mean images\?"):
        read(tmp_path / "a.npz", image_column="imagse")
    with pytest.raises(UserError, match=r"data\.label_column: .* has no array lables, but .*Did you mean labels\?"):
        read(tmp_path / "a.npz", label_column="lables")
