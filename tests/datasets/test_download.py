"""Downloads: what the mirrors of a published set give, and what is said when none gives the right file."""

import errno
import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aae_ray.datasets import download
from aae_ray.datasets.dataset import Dataset, load
from aae_ray.datasets.download import Progress
from aae_ray.datasets.published import PUBLISHED
from aae_ray.errors import UserError
from aae_ray.settings import Data
from tests.datasets.published_sets import SMALL_SETS, TRAIN_COUNT, SmallSet


class Mirror:
    """A web server on this machine: what it answers under each path, and what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut_by = 0  # bytes that are announced and never sent
        self.silent_after: int | None = None  # bytes, after which nothing more comes
        self.closed = threading.Event()
        self.asked: list[str] = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                content = mirror.files.get(self.path.rpartition("/")[2])
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) - mirror.cut_by][: mirror.silent_after])
                if mirror.silent_after is not None:
                    self.wfile.flush()
                    mirror.closed.wait()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/sets/"

    def close(self) -> None:
        self.closed.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], tuple[Mirror, Mirror]]]:
    """Two mirrors that both have a small set in the place of a published one; the first is tried first."""
    mirrors: list[Mirror] = []

    def publish(name: str) -> tuple[Mirror, Mirror]:
        files = SMALL_SETS[name]().files
        checksums = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
        pair = Mirror(), Mirror()
        for mirror in pair:
            mirror.files = dict(files)
        mirrors.extend(pair)
        addresses = tuple(mirror.address for mirror in pair)
        monkeypatch.setitem(PUBLISHED, name, replace(PUBLISHED[name], mirrors=addresses, sha256=checksums))
        return pair

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield publish
    for mirror in mirrors:
        mirror.close()


@pytest.fixture
def mirrors(publish: Callable[[str], tuple[Mirror, Mirror]]) -> tuple[Mirror, Mirror]:
    return publish("mnist")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load_small(cache: Path, progress: Progress = lambda *_: None, name: str = "mnist") -> Dataset:
    return load(Data(name=name, cache=str(cache)), progress)


def assert_is(loaded: Dataset, small: SmallSet) -> None:
    """The small set and nothing else was read: its pixels, its classes by number, its test part."""
    assert np.array_equal(loaded.images_NCHW, small.images_NCHW)
    assert loaded.labels_N is not None
    assert loaded.labels_N.tolist() == [small.classes.index(label) for label in small.labels]
    assert np.array_equal(loaded.test, np.arange(TRAIN_COUNT, len(small.images_NCHW)))


@pytest.mark.parametrize("name", SMALL_SETS)
def test_download(name: str, publish: Callable[[str], tuple[Mirror, Mirror]], cache: Path) -> None:
    mirrors = publish(name)
    calls: list[tuple[str, int, int]] = []
    small = SMALL_SETS[name]()
    assert_is(load_small(cache, lambda *progress: calls.append(progress), name), small)
    assert sorted(mirrors[0].asked) == sorted(f"/sets/{file}" for file in small.files) and mirrors[1].asked == []
    for file, content in small.files.items():
        assert (f"downloading {file}", len(content), len(content)) in calls


def test_sets_of_one_archive_download_it_once(
    publish: Callable[[str], tuple[Mirror, Mirror]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrors = publish("emnist-letters")
    published = PUBLISHED["emnist-letters"]
    for name in ("emnist-digits", "emnist-letters"):  # the archive of the small set has letters alone
        row = replace(PUBLISHED[name], mirrors=published.mirrors, sha256=published.sha256)
        monkeypatch.setitem(PUBLISHED, name, row)
    with pytest.raises(UserError, match="gzip.zip has no emnist-digits-train-images-idx3-ubyte"):
        load_small(cache, name="emnist-digits")
    assert_is(load_small(cache, name="emnist-letters"), SMALL_SETS["emnist-letters"]())
    assert mirrors[0].asked == ["/sets/gzip.zip"]


FAILING_MIRRORS: dict[str, tuple[Callable[[Mirror], object], str]] = {
    "wrong file": (
        lambda mirror: mirror.files.update(dict.fromkeys(mirror.files, b"<html>")),
        "SHA-256 " + hashlib.sha256(b"<html>").hexdigest() + ", expected {sha256}",
    ),
    "cut connection": (lambda mirror: setattr(mirror, "cut_by", 100), "the connection was cut"),
    "no such file": (lambda mirror: mirror.files.clear(), "HTTP status 404"),
    "silent from the start": (lambda mirror: setattr(mirror, "silent_after", 0), "no answer"),
    "silent on the way": (lambda mirror: setattr(mirror, "silent_after", 10), "no answer"),
    "unreachable": (Mirror.close, "no connection"),
}


@pytest.mark.parametrize("failure", FAILING_MIRRORS)
def test_next_mirror_steps_in(
    mirrors: tuple[Mirror, Mirror], cache: Path, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_TIMEOUT_S", 0.2)
    FAILING_MIRRORS[failure][0](mirrors[0])
    assert_is(load_small(cache), SMALL_SETS["mnist"]())
    assert len(mirrors[1].asked) == 4


@pytest.mark.parametrize("failure", FAILING_MIRRORS)
def test_no_mirror_has_it(
    mirrors: tuple[Mirror, Mirror], cache: Path, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_TIMEOUT_S", 0.2)
    fail, reason = FAILING_MIRRORS[failure]
    name, sha256 = next(iter(PUBLISHED["mnist"].sha256.items()))
    for mirror in mirrors:
        fail(mirror)
    with pytest.raises(UserError) as error:
        load_small(cache)
    assert str(error.value).startswith(f"{name} could not be downloaded. Tried ")
    for mirror in mirrors:
        assert f"{mirror.address}{name} ({reason.format(sha256=sha256)})" in str(error.value)
    assert f"put {', '.join(PUBLISHED['mnist'].sha256)}" in str(error.value)
    assert "data.path" in str(error.value)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_good_downloads_are_kept_and_damaged_ones_fetched_again(mirrors: tuple[Mirror, Mirror], cache: Path) -> None:
    first, second = list(PUBLISHED["mnist"].sha256)[:2]
    missing = mirrors[0].files.pop("t10k-labels-idx1-ubyte.gz")
    mirrors[1].files.clear()
    with pytest.raises(UserError):
        load_small(cache)
    kept = {path.name: path for path in cache.glob("downloads/mnist/*")}
    kept[first].write_bytes(b"damaged")
    mirrors[0].files["t10k-labels-idx1-ubyte.gz"] = missing
    mirrors[0].asked.clear()
    assert_is(load_small(cache), SMALL_SETS["mnist"]())
    assert f"/sets/{first}" in mirrors[0].asked and f"/sets/{second}" not in mirrors[0].asked


def test_what_a_killed_process_left_of_a_file_is_fetched_anew(mirrors: tuple[Mirror, Mirror], cache: Path) -> None:
    """Longer than the whole file, so that nothing of it may stay; and after a file was cut off, nothing of it does."""
    names = list(PUBLISHED["mnist"].sha256)
    folder = cache / "downloads/mnist"
    folder.mkdir(parents=True)
    (folder / f"{names[0]}.partial").write_bytes(mirrors[0].files[names[0]] + b"of another time")
    (folder / f"{names[1]}.partial").write_bytes(mirrors[0].files[names[1]][:10])
    (folder / names[2]).write_bytes(mirrors[0].files[names[2]][:10])  # under its own name, as a copy that was cut
    assert_is(load_small(cache), SMALL_SETS["mnist"]())
    assert not list(folder.glob("*.partial"))
    for name in names:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == PUBLISHED["mnist"].sha256[name]


def test_a_full_disk_is_no_fault_of_the_mirrors(
    mirrors: tuple[Mirror, Mirror], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, count: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download._PoochBar, "update", full)  # called where a block was written
    with pytest.raises(
        UserError, match=f"^data.cache: {cache}/downloads/mnist cannot be written: No space left"
    ) as error:
        load_small(cache)
    assert "Tried" not in str(error.value)
    assert mirrors[1].asked == []
    assert not list(cache.glob("downloads/mnist/*"))


def test_rows_of_the_table_are_complete() -> None:
    for published in PUBLISHED.values():
        assert all(len(sha256) == 64 for sha256 in published.sha256.values())
        assert all(mirror.startswith("http") and mirror.endswith("/") for mirror in published.mirrors)
        assert len(published.mirrors) > 1
        names = {name.removesuffix(".gz") if "-idx" in name else name for name in published.sha256}
        assert names == set(published.forms[0])  # what is downloaded can be read
