"""Downloads: what the mirrors of a published set give, and what is said when none gives the right file."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aae_ray.datasets.dataset import Dataset, load
from aae_ray.datasets.download import PUBLISHED, Progress, Published
from aae_ray.datasets.idx import IDX_FILES
from aae_ray.errors import UserError
from aae_ray.settings import Data
from tests.datasets.small_sets import some_images, write_idx


class Mirror:
    """A web server on this machine: what it answers under each path, and what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut_by: int = 0  # bytes that are announced and never sent
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
                self.wfile.write(content[: len(content) - mirror.cut_by])

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/sets/"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Mirror, Mirror]]:
    """Two mirrors that both have a small set in the place of MNIST; the first is tried first."""
    folder = write_idx(tmp_path / "published", *some_images(), test_count=12)
    files = {f"{file.name}.gz": file.read_bytes() for file in folder.iterdir()}
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    pair = Mirror(), Mirror()
    for mirror in pair:
        mirror.files = dict(files)
    addresses = tuple(mirror.address for mirror in pair)
    monkeypatch.setitem(PUBLISHED, "mnist", Published(addresses, checksums))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield pair
    for mirror in pair:
        mirror.close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load_small(cache: Path, progress: Progress = lambda *_: None) -> Dataset:
    return load(Data(name="mnist", cache=str(cache)), progress)


def test_download(mirrors: tuple[Mirror, Mirror], cache: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    small = load_small(cache, lambda *progress: calls.append(progress))
    assert np.array_equal(small.images_NCHW[:, 0], some_images()[0])
    assert np.array_equal(small.test, np.arange(48, 60))
    assert len(mirrors[0].asked) == 4 and mirrors[1].asked == []
    size = len(mirrors[0].files["train-images-idx3-ubyte.gz"])
    assert ("downloading train-images-idx3-ubyte.gz", size, size) in calls


FAILING_MIRRORS: dict[str, tuple[Callable[[Mirror], object], str]] = {
    "wrong file": (
        lambda mirror: mirror.files.update(dict.fromkeys(mirror.files, b"<html>")),
        "SHA-256 " + hashlib.sha256(b"<html>").hexdigest() + ", expected {sha256}",
    ),
    "cut connection": (lambda mirror: setattr(mirror, "cut_by", 100), "the connection was cut"),
    "no such file": (lambda mirror: mirror.files.clear(), "HTTP status 404"),
    "unreachable": (Mirror.close, "no connection"),
}


@pytest.mark.parametrize("failure", FAILING_MIRRORS)
def test_next_mirror_steps_in(mirrors: tuple[Mirror, Mirror], cache: Path, failure: str) -> None:
    FAILING_MIRRORS[failure][0](mirrors[0])
    small = load_small(cache)
    assert np.array_equal(small.images_NCHW[:, 0], some_images()[0])
    assert len(mirrors[1].asked) == 4


@pytest.mark.parametrize("failure", FAILING_MIRRORS)
def test_no_mirror_has_it(mirrors: tuple[Mirror, Mirror], cache: Path, failure: str) -> None:
    fail, reason = FAILING_MIRRORS[failure]
    name, sha256 = next(iter(PUBLISHED["mnist"].sha256.items()))
    for mirror in mirrors:
        fail(mirror)
    with pytest.raises(UserError) as error:
        load_small(cache)
    assert str(error.value).startswith(f"{name} could not be downloaded. Tried ")
    for mirror in mirrors:
        assert f"{mirror.address}{name} ({reason.format(sha256=sha256)})" in str(error.value)
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
    small = load_small(cache)
    assert f"/sets/{first}" in mirrors[0].asked and f"/sets/{second}" not in mirrors[0].asked
    assert np.array_equal(small.images_NCHW[:, 0], some_images()[0])


def test_mirrors_cover_the_files_that_are_read() -> None:
    for published in PUBLISHED.values():
        assert {name.removesuffix(".gz") for name in published.sha256} == set(IDX_FILES)
        assert all(len(sha256) == 64 for sha256 in published.sha256.values())
        assert len(published.mirrors) > 1
