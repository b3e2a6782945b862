"""Small sets in the formats in which published ones come, written by hand, and what must be read of them."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.io import savemat

from aae_ray.datasets import cifar10, emnist
from aae_ray.datasets.idx import IDX_FILES
from aae_ray.datasets.published import FASHION, HIRAGANA
from tests.datasets.small_sets import idx_bytes

TRAIN_COUNT, TEST_COUNT = 50, 12


@dataclass(frozen=True)
class SmallSet:
    """Files by name as a mirror has them, as they are when unpacked, and images, labels and their names in them."""

    files: Mapping[str, bytes]
    unpacked: Mapping[str, bytes]
    images_NCHW: NDArray[np.uint8]
    labels: list[str]  # of each image, as a person calls it
    classes: list[str]  # in the order of their numbers


def _images(channels: int, side: int, seed: int) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (TRAIN_COUNT + TEST_COUNT, channels, side, side), dtype=np.uint8)


def _parts(values: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return values[:TRAIN_COUNT], values[TRAIN_COUNT:]


def _idx(images_NHW: NDArray[np.uint8], numbers_N: NDArray[np.uint8]) -> dict[str, bytes]:
    arrays = [part for pair in zip(_parts(images_NHW), _parts(numbers_N), strict=True) for part in pair]
    return dict(zip(IDX_FILES, map(idx_bytes, arrays), strict=True))


def idx_set(names: tuple[str, ...]) -> SmallSet:
    images_NCHW = _images(1, 6, seed=1)
    numbers_N = (np.arange(len(images_NCHW)) * 7 % 10).astype(np.uint8)
    files = _idx(images_NCHW[:, 0], numbers_N)
    packed = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    return SmallSet(packed, files, images_NCHW, [names[number] for number in numbers_N], list(names))


def emnist_set(name: str, first: int, characters: str, mapping: str) -> SmallSet:
    """The archive also holds another set, of which nothing may be read."""
    images_NCHW = _images(1, 6, seed=2)
    indices_N = np.arange(len(images_NCHW)) * 5 % len(characters)
    files = _idx(images_NCHW[:, 0].transpose(0, 2, 1), (indices_N + first).astype(np.uint8))
    unpacked = {f"gzip/emnist-{name}-{file.replace('t10k', 'test')}.gz": content for file, content in files.items()}
    unpacked = {name: gzip.compress(content) for name, content in unpacked.items()}
    unpacked[f"gzip/emnist-{name}-mapping.txt"] = mapping.encode()
    other = {file.replace(f"emnist-{name}-", "emnist-other-"): b"of another set" for file in unpacked}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as content:
        for file, data in (other | unpacked).items():
            content.writestr(file, data)
    labels = [characters[index] for index in indices_N]
    return SmallSet({emnist.ARCHIVE: archive.getvalue()}, unpacked, images_NCHW, labels, sorted(characters))


def svhn_set() -> SmallSet:
    images_NCHW = _images(3, 32, seed=3)
    digits_N = (np.arange(len(images_NCHW)) * 3 % 10).astype(np.uint8)
    numbers_N = np.where(digits_N == 0, 10, digits_N).astype(np.uint8)
    files = {}
    for name, images, numbers in zip(("train", "test"), _parts(images_NCHW), _parts(numbers_N), strict=True):
        file = io.BytesIO()
        variables = {"X": images.transpose(2, 3, 1, 0), "y": numbers[:, np.newaxis]}
        savemat(file, variables, do_compression=True)
        files[f"{name}_32x32.mat"] = file.getvalue()
    return SmallSet(files, files, images_NCHW, [str(digit) for digit in digits_N], list("0123456789"))


def cifar10_set() -> SmallSet:
    """In the archive the batches stand in another order, as in the real one, beside a file that is not one."""
    images_NCHW = _images(3, 32, seed=4)
    numbers_N = (np.arange(len(images_NCHW)) * 3 % 10).astype(np.uint8)
    rows = np.concatenate([numbers_N[:, np.newaxis], images_NCHW.reshape(len(images_NCHW), -1)], axis=1)
    batches = [*np.array_split(rows[:TRAIN_COUNT], 5), rows[TRAIN_COUNT:]]
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    unpacked = {f"cifar-10-batches-bin/{name}": batch.tobytes() for name, batch in zip(names, batches, strict=True)}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in {
            "cifar-10-batches-bin/readme.html": b"<html>",
            **dict(reversed(unpacked.items())),
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    labels = [cifar10.CLASSES[number] for number in numbers_N]
    return SmallSet({cifar10.ARCHIVE: archive.getvalue()}, unpacked, images_NCHW, labels, list(cifar10.CLASSES))


LETTERS = "ABCDEFG"
BALANCED = "019AZbt"
SMALL_SETS: dict[str, Callable[[], SmallSet]] = {
    "mnist": lambda: idx_set(tuple("0123456789")),
    "fashion-mnist": lambda: idx_set(FASHION),
    "kmnist": lambda: idx_set(HIRAGANA),
    "emnist-letters": lambda: emnist_set(
        "letters", 1, LETTERS, "".join(f"{n} {ord(c)} {ord(c.lower())}\n" for n, c in enumerate(LETTERS, start=1))
    ),
    "emnist-balanced": lambda: emnist_set(
        "balanced", 0, BALANCED, "".join(f"{n} {ord(c)}\r\n" for n, c in enumerate(BALANCED))
    ),
    "svhn": svhn_set,
    "cifar10": cifar10_set,
}
