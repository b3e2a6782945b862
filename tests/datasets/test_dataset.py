"""Data sets: where they come from, how they are kept and split, and what is said when one cannot be had."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aae_ray.datasets import dataset as data
from aae_ray.datasets.published import PUBLISHED
from aae_ray.errors import UserError
from aae_ray.settings import Data
from tests.datasets.small_sets import some_images, write_idx

SHARED = Path(os.environ.get("AAE_RAY_SHARED", Path(__file__).parents[2] / "../shared")) / "data"


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty images of three classes, none of them a test part."""
    return write_idx(tmp_path / "idx", *some_images())


def load(**values: Any) -> data.Dataset:
    return data.load(Data(**values))


# --------------------------------------------------------------------------------------------- what is loaded


def test_digits(cache: str) -> None:
    from sklearn.datasets import load_digits

    digits = load(cache=cache)
    original = load_digits()
    assert digits.name == "digits"
    assert (digits.shape, digits.classes) == ((1, 8, 8), 10)
    assert (len(digits.train), len(digits.val), len(digits.test)) == (1079, 359, 359)
    assert digits.labels_N is not None and np.array_equal(digits.labels_N, original.target)
    assert np.abs(digits.images_NCHW[:, 0] / 255 - original.images / 16).max() <= 0.5 / 255
    assert (digits.images_NCHW.min(), digits.images_NCHW.max()) == (0, 255)


def test_images_are_a_read_only_memory_map_of_bytes(cache: str) -> None:
    digits = load(cache=cache)
    assert isinstance(digits.images_NCHW, np.memmap)
    assert digits.images_NCHW.dtype == np.uint8
    assert digits.labels_N is not None and digits.labels_N.dtype == np.int64
    assert {part.dtype for part in (digits.train, digits.val, digits.test)} == {np.dtype(np.int64)}
    with pytest.raises(ValueError, match="read-only"):
        digits.images_NCHW[0] = 0


@pytest.mark.parametrize(
    ("name", "mean_pixel", "first_labels"),
    [("mnist", 33.4, [5, 0, 4, 1, 9]), ("fashion-mnist", 73.0, [9, 0, 0, 3, 0])],
)
def test_published_sets(name: str, mean_pixel: float, first_labels: list[int], cache: str) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs the IDX files of {name} in {SHARED / name} (AAE_RAY_SHARED names another place)")
    published = load(name=name, path=str(SHARED / name), cache=cache, validation_fraction=0.1)
    assert (published.shape, published.classes) == ((1, 28, 28), 10)
    assert (len(published.train), len(published.val)) == (54_000, 6_000)
    assert np.array_equal(published.test, np.arange(60_000, 70_000))
    assert published.labels_N is not None and published.labels_N[:5].tolist() == first_labels
    assert published.images_NCHW.mean() == pytest.approx(mean_pixel, abs=0.5)
    for file, sha256 in PUBLISHED[name].sha256.items():
        assert hashlib.sha256((SHARED / name / file).read_bytes()).hexdigest() == sha256


def test_own_images_without_labels(tmp_path: Path, cache: str) -> None:
    images_NHW, _ = some_images()
    own = load(name="own", path=str(write_idx(tmp_path / "own", images_NHW, None)), cache=cache)
    assert own.labels_N is None
    assert own.classes is None
    assert np.array_equal(own.images_NCHW[:, 0], images_NHW)


def write_parquet(file: Path, images_NHW: np.ndarray, labels_N: np.ndarray) -> Path:
    images = images_NHW.reshape(len(images_NHW), -1).tolist()
    pq.write_table(pa.table({"image": images, "label": labels_N}), file)
    return file


def test_parquet_file_and_folder(tmp_path: Path, cache: str) -> None:
    images_NHW, labels_N = some_images()
    file = write_parquet(tmp_path / "own.parquet", images_NHW, labels_N)
    for path in (file, tmp_path):
        own = load(name="own", path=str(path), cache=cache)
        assert np.array_equal(own.images_NCHW[:, 0], images_NHW)
        assert own.labels_N is not None and np.array_equal(own.labels_N, labels_N)


def test_home_is_understood_in_both_paths(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    load(name="own", path="~/idx", cache="~/kept")
    assert list((tmp_path / "kept").glob("own-*/images.npy"))
    load(name="own", path="~/idx")
    assert list((tmp_path / ".cache/aae_ray").glob("own-*/images.npy"))


# ----------------------------------------------------------------------------------------------------- digest


def test_digest_never_changes(cache: str) -> None:
    assert load(cache=cache).digest == "ac2213023a1dd19f8222ec82825f32c3"


def test_digest_is_of_the_content_alone(tmp_path: Path, cache: str) -> None:
    images_NHW, labels_N = some_images()
    file = write_parquet(tmp_path / "own.parquet", images_NHW, labels_N)
    folder = write_idx(tmp_path / "a", images_NHW, labels_N)
    as_parquet = load(name="own", path=str(file), cache=cache)
    as_idx = load(name="other", path=str(folder), cache=cache, split_seed=5)
    assert as_idx.digest == as_parquet.digest
    assert len(as_idx.digest) <= 36


@pytest.mark.parametrize("change", ["pixel", "label", "shape", "order", "no labels"])
def test_digest_sees_every_change(tmp_path: Path, cache: str, change: str) -> None:
    images_NHW, labels_N = some_images()
    original = load(name="own", path=str(write_idx(tmp_path / "a", images_NHW, labels_N)), cache=cache)
    changed: tuple[np.ndarray, np.ndarray | None] = images_NHW.copy(), labels_N.copy()
    if change == "pixel":
        changed[0][59, 3, 3] ^= 1
    elif change == "label":
        changed = images_NHW, np.where(np.arange(60) == 59, 0, labels_N)
    elif change == "shape":
        changed = images_NHW.reshape(60, 2, 8), labels_N
    elif change == "order":
        changed = images_NHW[::-1], labels_N[::-1]
    else:
        changed = images_NHW, None
    other = load(name="own", path=str(write_idx(tmp_path / "b", *changed)), cache=cache)
    assert other.digest != original.digest


# ----------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("test_count", [0, 15], ids=["no test part", "own test part"])
@pytest.mark.parametrize("labelled", [True, False])
def test_parts_are_disjoint_and_cover_the_set(tmp_path: Path, cache: str, labelled: bool, test_count: int) -> None:
    images_NHW, labels_N = some_images()
    path = write_idx(tmp_path / "own", images_NHW, labels_N if labelled else None, test_count)
    own = load(name="own", path=str(path), cache=cache, validation_fraction=0.2, test_fraction=0.3)
    assert (len(own.val), len(own.test)) == ((9, 15) if test_count else (12, 18))
    assert np.array_equal(np.sort(np.concatenate((own.train, own.val, own.test))), np.arange(60))
    assert all(np.array_equal(part, np.sort(part)) for part in (own.train, own.val, own.test))
    if test_count:
        assert np.array_equal(own.test, np.arange(45, 60))


def test_parts_follow_the_seed_alone(cache: str) -> None:
    first, again, other = (load(cache=cache, split_seed=seed) for seed in (0, 0, 2**70))
    assert np.array_equal(first.val, again.val) and np.array_equal(first.test, again.test)
    assert not np.array_equal(first.val, other.val)
    assert len(np.intersect1d(first.val, other.val)) < len(first.val) / 2
    assert first.digest == other.digest


def test_parts_never_change(cache: str) -> None:
    """A result is compared with those of years ago: the parts must not move with a library."""
    digits = load(cache=cache)
    parts = b"".join(part.astype("<i8").tobytes() for part in (digits.train, digits.val, digits.test))
    assert hashlib.sha256(parts).hexdigest()[:16] == "6955fe1358292748"


@pytest.mark.parametrize("sizes", [(180,) * 10, (1000, 100, 10, 5), (700, 1, 1, 1), (3,) * 200], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_classes_are_spread_over_the_parts_in_proportion(
    tmp_path: Path, cache: str, sizes: tuple[int, ...], seed: int
) -> None:
    labels_N = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    path = write_idx(tmp_path / "own", np.arange(len(labels_N)).reshape(-1, 1, 1) % 256, labels_N)
    own = load(name="own", path=str(path), cache=cache, split_seed=seed)
    for part, share in ((own.val, 0.2), (own.test, 0.2), (own.train, 0.6)):
        counts = np.bincount(labels_N[part], minlength=len(sizes))
        assert len(part) == pytest.approx(share * len(labels_N), abs=1)
        assert np.abs(counts - share * np.array(sizes)).max() <= 2


def test_images_in_order_of_class_are_shuffled_within_it(tmp_path: Path, cache: str) -> None:
    path = write_idx(tmp_path / "own", np.arange(1000).reshape(-1, 1, 1) % 256, np.repeat([0, 1], 500))
    own = load(name="own", path=str(path), cache=cache)
    gaps = np.diff(own.val)
    assert len(np.unique(gaps)) > 5


# ------------------------------------------------------------------------------------------------------ cache


def test_a_set_is_prepared_once(folder: Path, cache: str) -> None:
    own = Data(name="own", path=str(folder), cache=cache)
    calls: list[tuple[str, int, int]] = []
    data.load(own, lambda *progress: calls.append(progress))
    assert calls == [("preparing own", 60, 60)]
    data.load(own, lambda *progress: calls.append(progress))
    assert len(calls) == 1
    assert data.prepared_folder(own).parent == Path(cache)
    assert sorted(path.name for path in data.prepared_folder(own).iterdir()) == [
        "about.json",
        "copies.npy",
        "images.npy",
        "labels.npy",
    ]


def test_a_changed_source_is_prepared_anew(folder: Path, cache: str) -> None:
    before = load(name="own", path=str(folder), cache=cache)
    images_NHW, labels_N = some_images()
    write_idx(folder, 255 - images_NHW, labels_N)
    os.utime(folder / "train-images-idx3-ubyte", (1, 1))
    after = load(name="own", path=str(folder), cache=cache)
    assert before.digest != after.digest
    assert np.array_equal(after.images_NCHW, 255 - before.images_NCHW)


def test_another_column_is_another_set(tmp_path: Path, cache: str) -> None:
    pq.write_table(pa.table({"a": [[201], *[[100]] * 8], "b": [[202], *[[100]] * 8]}), tmp_path / "own.parquet")
    path = str(tmp_path / "own.parquet")
    first, second = (load(name="own", path=path, cache=cache, image_column=column) for column in "ab")
    assert (first.images_NCHW.max(), second.images_NCHW.max()) == (201, 202)


LOAD = """
import os, signal, sys, time
from pathlib import Path
from aae_ray.settings import Data
from aae_ray.datasets import dataset as data, idx
idx._BLOCK_BYTES = 1 << 16
own = Data(name="own", path=sys.argv[1], cache=sys.argv[2])
"""


def start(script: str, *arguments: str | Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", LOAD + script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_that_meet_prepare_once(tmp_path: Path, cache: str) -> None:
    images_NHW, labels_N = some_images(3000, side=32)
    folder = write_idx(tmp_path / "idx", images_NHW, labels_N)
    script = """
print("ready", flush=True)
while not Path(sys.argv[3]).exists():
    time.sleep(0.001)
times = []
loaded = data.load(own, lambda what, done, total: times.append(done))
print(loaded.digest, len(times), loaded.images_NCHW.shape)
"""
    go = tmp_path / "go"
    workers = [start(script, folder, cache, go) for _ in range(3)]
    for worker in workers:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    go.touch()
    answers = [worker.communicate(timeout=60)[0].split(maxsplit=2) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert len({digest for digest, _, _ in answers}) == 1
    assert sorted(int(blocks) > 0 for _, blocks, _ in answers) == [False, False, True]


def test_a_killed_preparation_is_never_taken_for_a_finished_one(tmp_path: Path, cache: str) -> None:
    images_NHW, labels_N = some_images(1000, side=32)
    folder = write_idx(tmp_path / "idx", images_NHW, labels_N)
    worker = start("data.load(own, lambda *calls: os.kill(os.getpid(), signal.SIGKILL))", folder, cache)
    worker.communicate(timeout=60)
    assert worker.returncode == -signal.SIGKILL
    own = Data(name="own", path=str(folder), cache=cache)
    assert not data.prepared_folder(own).exists()
    assert len(list(Path(cache).glob("*/images.npy"))) == 1  # half of it

    assert np.array_equal(data.load(own).images_NCHW[:, 0], images_NHW)
    assert [path.parent for path in Path(cache).glob("*/images.npy")] == [data.prepared_folder(own)]


def test_a_failed_preparation_leaves_nothing(tmp_path: Path, cache: str) -> None:
    pq.write_table(pa.table({"image": [[1]] * 999 + [[-1]]}), tmp_path / "own.parquet")
    for _ in range(2):
        with pytest.raises(UserError, match="row 999 of column image has a pixel value outside of 0 to 255"):
            load(name="own", path=str(tmp_path / "own.parquet"), cache=cache)
    assert [path.suffix for path in Path(cache).iterdir()] == [".lock"]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


CACHE_FAULTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "images cut": ("images.npy", cut),
    "images empty": ("images.npy", lambda file: file.write_bytes(b"")),
    "images gone": ("images.npy", Path.unlink),
    "images of other shape": ("images.npy", lambda file: np.save(file, np.zeros((60, 1, 2, 8), np.uint8))),
    "images of another type": ("images.npy", lambda file: np.save(file, np.zeros((60, 1, 4, 4)))),
    "labels cut": ("labels.npy", cut),
    "labels gone": ("labels.npy", Path.unlink),
    "too few labels": ("labels.npy", lambda file: np.save(file, np.zeros(59, np.int64))),
    "about cut": ("about.json", cut),
    "about gone": ("about.json", Path.unlink),
    "about of something else": ("about.json", lambda file: file.write_text("[]")),
    "about lacks the digest": ("about.json", lambda file: file.write_text(json.dumps({"classes": None}))),
}


@pytest.mark.parametrize("fault", CACHE_FAULTS)
def test_damaged_cache(folder: Path, cache: str, fault: str) -> None:
    own = Data(name="own", path=str(folder), cache=cache)
    data.load(own)
    name, damage = CACHE_FAULTS[fault]
    damage(data.prepared_folder(own) / name)
    with pytest.raises(UserError) as error:
        data.load(own)
    assert f"the prepared data in {data.prepared_folder(own)} is damaged" in str(error.value)
    assert "delete that folder" in str(error.value)


@pytest.mark.parametrize("inside", ["file", "file/deeper"])
def test_cache_that_cannot_be_written(tmp_path: Path, folder: Path, inside: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    message = f"^data.cache: {tmp_path / inside}/own-.* cannot be read or written: "
    with pytest.raises(UserError, match=message) as error:
        load(name="own", path=str(folder), cache=str(tmp_path / inside))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", ["long", "closed"])
def test_a_cache_that_cannot_be_looked_into_is_told(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / ("x" * 300 if case == "long" else "closed")
    if case == "closed":  # which a test that runs as root can only feign
        refused = PermissionError(13, "Permission denied")
        monkeypatch.setattr(Path, "is_dir", lambda path: (_ for _ in ()).throw(refused))
    with pytest.raises(UserError, match=r"^data\.cache: .* cannot be read or written: .*; give data\.cache another"):
        load(cache=str(cache))


# ---------------------------------------------------------------------------------------------------- sources


SOURCE_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown name": ({"name": "mnits"}, "mnits is none of digits, mnist, fashion-mnist, kmnist, .*mean mnist"),
    "no such path": ({"name": "own", "path": "{tmp}/nowhere"}, "data.path: {tmp}/nowhere does not exist"),
    "other file": (
        {"name": "own", "path": "{tmp}/note.txt"},
        "{tmp}/note.txt is a file of no known format",
    ),
    "empty folder": (
        {"name": "own", "path": "{tmp}/empty"},
        "{tmp}/empty is empty; images are read from Parquet, CSV, pic",
    ),
    "two kinds": (
        {"name": "own", "path": "{tmp}/both"},
        "{tmp}/both holds files of several formats, Par",
    ),
    "named digits": ({"name": "digits", "path": "{tmp}/idx"}, "data.name: {tmp}/idx is not scikit-learn's digits"),
    "MNIST in part": (
        {"name": "mnist", "path": "{tmp}/idx"},
        "{tmp}/idx has no t10k-images-idx3-ubyte, though train-images",
    ),
    "column of IDX": (
        {"name": "own", "path": "{tmp}/idx", "image_column": "x"},
        "data.image_column: {tmp}/idx holds IDX, which has neither columns nor named arrays",
    ),
    "column of digits": (
        {"label_column": "x"},
        "data.label_column: columns, arrays and rows are those of your own files, and data.path names none",
    ),
    "broken link": ({"name": "own", "path": "{tmp}/linked"}, "{tmp}/linked/a.parquet cannot be read: No"),
    "one image": ({"name": "own", "path": "{tmp}/one"}, "few images, 1: .* none is left for validation"),
    "three images": (
        {"name": "own", "path": "{tmp}/three", "test_fraction": 0.1},
        "data.validation_fraction 0.2 and data.test_fraction 0.1 none is left for test",
    ),
    "all held out": (
        {"name": "own", "path": "{tmp}/three", "test_fraction": 0.5, "validation_fraction": 0.499},
        r"own \(.*three\) has too few images, 3: .* none is left for training",
    ),
}


@pytest.mark.parametrize("fault", SOURCE_FAULTS)
def test_source_fault_is_reported(tmp_path: Path, folder: Path, cache: str, fault: str) -> None:
    images_NHW, labels_N = some_images()
    values, message = SOURCE_FAULTS[fault]
    (tmp_path / "note.txt").write_text("no images")
    (tmp_path / "empty").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/a.parquet").symlink_to(tmp_path / "gone")
    write_idx(tmp_path / "one", images_NHW[:1], labels_N[:1])
    write_idx(tmp_path / "three", images_NHW[:3], labels_N[:3])
    write_parquet(write_idx(tmp_path / "both", images_NHW, labels_N) / "a.parquet", images_NHW, labels_N)

    if "path" in values:
        values = values | {"path": values["path"].format(tmp=tmp_path)}
    with pytest.raises(UserError, match=message.replace("{tmp}", str(tmp_path))) as error:
        load(**values, cache=cache)
    assert "\n" not in str(error.value)
