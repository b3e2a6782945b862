"""IDX files: all ways to store images give the same images; errors name the file."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aae_ray.datasets import idx
from aae_ray.datasets.idx import IDX_FILES, find_idx, read_idx
from aae_ray.datasets.image_stream import TEST, TRAIN
from aae_ray.errors import UserError
from aae_ray.settings import Data
from tests.datasets.small_sets import gather, idx_bytes

RANDOM = np.random.default_rng(0)
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = IDX_FILES


def good_files() -> dict[str, bytes]:
    return {
        TRAIN_IMAGES: idx_bytes(RANDOM.integers(0, 256, (7, 5, 4))),
        TRAIN_LABELS: idx_bytes(np.arange(7)),
        TEST_IMAGES: idx_bytes(RANDOM.integers(0, 256, (3, 5, 4))),
        TEST_LABELS: idx_bytes(np.arange(3)),
    }


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


SPELLINGS: dict[str, Callable[[str, bytes], tuple[str, bytes]]] = {
    "plain": lambda name, content: (name, content),
    "gz": lambda name, content: (f"{name}.gz", gzip.compress(content)),
    "dotted": lambda name, content: (name.replace("-idx", ".idx"), content),
    "dotted gz": lambda name, content: (f"{name.replace('-idx', '.idx')}.gz", gzip.compress(content)),
    "unpacked on the way": lambda name, content: (f"{name}.gz", content),
}


@pytest.mark.parametrize("block_bytes", [1, 40, 1 << 24], ids=["one image", "two images", "all images"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_idx_round_trip(tmp_path: Path, spelling: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "_BLOCK_BYTES", block_bytes)
    train, test = RANDOM.integers(0, 256, (7, 5, 4)), RANDOM.integers(0, 256, (3, 5, 4))
    files = dict(zip(IDX_FILES, map(idx_bytes, (train, np.arange(7), test, np.arange(3))), strict=True))
    write(tmp_path, dict(SPELLINGS[spelling](name, content) for name, content in files.items()))

    stream = read_idx(find_idx(tmp_path), Data())
    images_NCHW, labels_N = gather(stream)

    assert stream.parts is not None and stream.parts.tolist() == [TRAIN] * 7 + [TEST] * 3
    assert np.array_equal(images_NCHW[:, 0], np.concatenate((train, test)))
    assert labels_N is not None and labels_N.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]


@pytest.mark.parametrize("kept", [(TRAIN_IMAGES,), (TRAIN_IMAGES, TRAIN_LABELS), (TRAIN_IMAGES, TEST_IMAGES)])
def test_idx_labels_and_test_part_may_be_absent(tmp_path: Path, kept: tuple[str, ...]) -> None:
    files = good_files()
    write(tmp_path, {name: files[name] for name in kept})
    stream = read_idx(find_idx(tmp_path), Data())
    images_NCHW, labels_N = gather(stream)
    assert (stream.parts is not None) == (TEST_IMAGES in kept)
    assert images_NCHW.shape == (10 if TEST_IMAGES in kept else 7, 1, 5, 4)
    assert (labels_N is None) == (TRAIN_LABELS not in kept)


def flipped(content: bytes, index: int) -> bytes:
    return content[:index] + bytes([content[index] ^ 255]) + content[index + 1 :]


IDX_FAULTS: dict[str, tuple[str, Callable[[bytes], bytes | None], str]] = {
    "truncated gz": (TRAIN_IMAGES, lambda c: gzip.compress(c)[:-20], "is damaged: it ends too early"),
    "gz without its end": (TRAIN_IMAGES, lambda c: gzip.compress(c)[:-4], "is damaged: it ends too early"),
    "corrupt gz": (
        TRAIN_IMAGES,
        lambda c: flipped(gzip.compress(c), -6),
        "is damaged: its content does not fit its checksum",
    ),
    "corrupt stream": (TRAIN_IMAGES, lambda c: flipped(gzip.compress(c), 10), "is damaged: Error -3"),
    "magic of labels": (
        TRAIN_IMAGES,
        lambda c: idx_bytes(np.arange(7)),
        "with 00 00 08 01, not 00 00, a type of",
    ),
    "magic of images": (TEST_LABELS, lambda c: idx_bytes(np.ones((3, 5, 4))), "is not an IDX file of labels"),
    "other file": (TRAIN_LABELS, lambda c: b"<html>not found</html>", "is not an IDX file of labels"),
    "empty": (TEST_IMAGES, lambda c: b"", "is empty; copy or download it again"),
    "empty gz": (TEST_IMAGES, lambda c: gzip.compress(b""), "is empty"),
    "half a header": (TEST_IMAGES, lambda c: c[:9], "ends within its header"),
    "short images": (TRAIN_IMAGES, lambda c: c[:-30], "ends after 5 of the 7 images that its header declares; copy or"),
    "short labels": (TRAIN_LABELS, lambda c: c[:-1], "ends after 6 of the 7 labels"),
    "long images": (TRAIN_IMAGES, lambda c: c + b"\0", "has trailing data after the 7 images"),
    "long labels": (
        TEST_LABELS,
        lambda c: c + b"\0",
        "has trailing data after the 3 labels that its header declares: it was written over",
    ),
    "no images": (TRAIN_IMAGES, lambda c: idx_bytes(np.ones((0, 5, 4))), "holds no images"),
    "no pixels": (TRAIN_IMAGES, lambda c: idx_bytes(np.ones((7, 0, 4))), "declares images of 0 x 4"),
    "absurd size": (TRAIN_IMAGES, lambda c: c[:8] + b"\xff" * 8 + c[16:], "a side can be 1 to 4096"),
    "counts differ": (TRAIN_LABELS, lambda c: idx_bytes(np.arange(6)), "6 labels, not one each; take the labels that"),
    "shapes differ": (TEST_IMAGES, lambda c: idx_bytes(np.ones((3, 4, 4))), "holds images of 4 x 4 pixels"),
    "labels missing": (TEST_LABELS, lambda c: None, "is missing (.gz or not), though train-images"),
    "test images missing": (TEST_IMAGES, lambda c: None, "is missing (.gz or not), though train-images"),
    "training images missing": (TRAIN_IMAGES, lambda c: None, "is missing (.gz or not), though train-labels"),
}


@pytest.mark.parametrize("fault", IDX_FAULTS)
def test_idx_fault_is_reported_by_file(tmp_path: Path, fault: str) -> None:
    name, spoil, message = IDX_FAULTS[fault]
    files = good_files()
    spoilt = spoil(files.pop(name))
    write(tmp_path, files if spoilt is None else files | {name: spoilt})
    with pytest.raises(UserError) as error:
        gather(read_idx(find_idx(tmp_path), Data()))
    assert str(tmp_path / name) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------ relatives of the MNIST set


def relatives(
    prefix: str, part: str, images: np.ndarray, labels: np.ndarray, label_type: str = "u1"
) -> dict[str, bytes]:
    names = {"u1": "idx1-ubyte", ">i4": "idx2-int"}
    return {
        f"{prefix}{part}-images-idx3-ubyte": idx_bytes(images),
        f"{prefix}{part}-labels-{names[label_type]}": idx_bytes(labels, label_type),
    }


IMAGES = RANDOM.integers(0, 256, (6, 5, 4))


def test_emnist_is_put_upright_or_not_but_never_unsaid(tmp_path: Path) -> None:
    files = relatives("emnist-letters-", "train", IMAGES, np.arange(1, 7))
    write(tmp_path, files | relatives("emnist-letters-", "test", IMAGES[:2], np.arange(2)))
    with pytest.raises(UserError, match=r"EMNIST's own files store rows and columns .*data\.transpose=true"):
        read_idx(find_idx(tmp_path), Data())
    for transpose in (True, False):
        stream = read_idx(find_idx(tmp_path), Data(transpose=transpose))
        images_NCHW, labels_N = gather(stream)
        upright = np.concatenate([IMAGES, IMAGES[:2]])[:, np.newaxis]
        assert np.array_equal(images_NCHW, upright.swapaxes(2, 3) if transpose else upright)
        assert labels_N is not None and labels_N.tolist() == [1, 2, 3, 4, 5, 6, 0, 1]
        assert stream.parts is not None and stream.parts.tolist() == [0] * 6 + [2] * 2


def test_qmnist_has_its_class_in_the_first_of_eight_columns(tmp_path: Path) -> None:
    labels = RANDOM.integers(0, 3000, (6, 8))
    labels[:, 0] = np.arange(6)
    write(tmp_path, relatives("qmnist-", "train", IMAGES, labels, ">i4"))
    stream = read_idx(find_idx(tmp_path), Data())
    assert stream.labels is not None and stream.labels.to_pylist() == list(range(6))
    assert stream.remarks() == ("of the 8 columns of QMNIST's labels the first was read, the class",)
    write(tmp_path, relatives("qmnist-", "train", IMAGES, labels[:, :3], ">i4"))
    with pytest.raises(UserError, match="holds 3 values for each image; labels are one, or the 8 of QMNIST"):
        read_idx(find_idx(tmp_path), Data())


@pytest.mark.parametrize("element", ["i1", ">i2", ">i4", ">f4", ">f8"])
def test_all_types_of_elements(tmp_path: Path, element: str) -> None:
    low, high = {"i1": (-128, 127), ">i2": (0, 4080)}.get(element, (0, 255))
    stored = (IMAGES / 255 * (high - low) + low).astype(element)
    write(tmp_path, {TRAIN_IMAGES: idx_bytes(stored, element), TRAIN_LABELS: idx_bytes(np.arange(6), element)})
    stream = read_idx(find_idx(tmp_path), Data(scale=f"{low}:{high}"))
    images_NCHW, labels_N = gather(stream)
    assert np.array_equal(images_NCHW[:, 0], IMAGES)
    assert labels_N is not None and labels_N.tolist() == list(range(6))
    assert stream.value_range() == (stored.min(), stored.max())


def test_several_sets_in_a_folder_are_chosen_by_a_file(tmp_path: Path) -> None:
    for prefix, images in (("kmnist-", IMAGES), ("k49-", IMAGES[:4])):
        write(tmp_path, relatives(prefix, "train", images, np.arange(len(images))))
    with pytest.raises(
        UserError, match=r"holds several sets of IDX files; choose one .*k49-train-images-idx3-ubyte or"
    ):
        find_idx(tmp_path)
    assert read_idx(find_idx(tmp_path / "k49-train-labels-idx1-ubyte"), Data()).count == 4


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images-idx3-ubyte", "labels-idx1-ubyte"),
        ("letters.images.idx3-ubyte", "letters.labels.idx1-ubyte"),
        ("my_pictures.idx3-ubyte", "my_classes.idx1-ubyte"),
        ("my_pictures.idx3-ubyte", None),
    ],
)
def test_files_that_name_no_part_are_for_training(tmp_path: Path, images: str, labels: str | None) -> None:
    write(tmp_path, {images: idx_bytes(IMAGES)} | ({labels: idx_bytes(np.arange(6))} if labels else {}))
    for path in (tmp_path, tmp_path / images):
        images_NCHW, labels_N = gather(stream := read_idx(find_idx(path), Data()))
        assert np.array_equal(images_NCHW[:, 0], IMAGES) and stream.count == 6
        assert (None if labels_N is None else labels_N.tolist()) == (list(range(6)) if labels else None)


def test_labels_of_no_certain_images_are_not_guessed(tmp_path: Path) -> None:
    write(tmp_path, {"a.idx3-ubyte": idx_bytes(IMAGES), "b.idx3-ubyte": idx_bytes(IMAGES)})
    write(tmp_path, {"c.idx1-ubyte": idx_bytes(np.arange(6))})
    with pytest.raises(UserError, match="holds several sets of IDX files; choose one .* a.idx3-ubyte or b.idx3-ubyte"):
        find_idx(tmp_path)
    assert set(find_idx(tmp_path / "a.idx3-ubyte")) == {TRAIN_IMAGES}


def test_a_missing_file_has_the_name_of_its_set(tmp_path: Path) -> None:
    files = relatives("emnist-digits-", "train", IMAGES, np.arange(6)) | relatives(
        "emnist-digits-", "test", IMAGES, IMAGES
    )
    write(tmp_path, {name: content for name, content in files.items() if "test-labels" not in name})
    with pytest.raises(UserError, match=r"emnist-digits-t10k-labels-idx1-ubyte is missing .*though emnist-digits-t"):
        read_idx(find_idx(tmp_path), Data(transpose=True))


def test_images_that_do_not_use_their_range_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {TRAIN_IMAGES: idx_bytes(IMAGES % 17)})
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte has pixel values of 0 to 16, .*data\.scale=0:16"):
        gather(read_idx(find_idx(tmp_path), Data()))
    images_NCHW, _ = gather(read_idx(find_idx(tmp_path), Data(scale="0:16")))
    assert np.array_equal(images_NCHW[:, 0], np.rint(IMAGES % 17 * (255 / 16)))


def test_a_label_of_the_test_part_is_told_by_its_own_file(tmp_path: Path) -> None:
    place = read_idx(find_idx(write(tmp_path, good_files())), Data()).label_location
    assert place(6) == f"{tmp_path / TRAIN_LABELS}: label 6"
    assert place(8) == f"{tmp_path / TEST_LABELS}: label 1"
    assert place(None) == f"{tmp_path / TRAIN_LABELS}, {tmp_path / TEST_LABELS}"
