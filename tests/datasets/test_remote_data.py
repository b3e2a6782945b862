"""Data at a URI: read as if they were here, prepared once for all nodes, checked; and mistakes are told in time."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aae_ray.datasets import prepared, remote
from aae_ray.datasets.dataset import load
from aae_ray.errors import UserError
from aae_ray.settings import Data
from tests.cluster.conftest import endpoint as endpoint
from tests.cluster.conftest import record as record
from tests.cluster.laptop import aws_client

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 36), dtype=np.uint8)
NAMES = np.array(["cat", "dog", "emu"])[np.arange(60) % 3]


def parquet(path: Path, images: np.ndarray = IMAGES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = len(images) // 2
    for number, part in enumerate((slice(0, half), slice(half, None))):
        columns = {"image": pa.array(list(images[part])), "label": pa.array(NAMES[: len(images)][part])}
        pq.write_table(pa.table(columns), path.with_name(f"{path.name}-{number}.parquet"))
    return path.parent


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The query of URIs of a mock of S3, in which a bucket `ours` holds the images."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    client: Any = aws_client("s3", endpoint)
    region: Any = {"LocationConstraint": "us-west-2"}
    if "ours" not in [each["Name"] for each in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket="ours", CreateBucketConfiguration=region)
    for file in parquet(tmp_path / "source" / "images").iterdir():
        client.upload_file(str(file), "ours", f"faces/{file.name}")
    client.put_object(Bucket="ours", Key="faces/_SUCCESS.parquet", Body=b"")
    return f"?region=us-west-2&endpoint_override={endpoint.removeprefix('http://')}&scheme=http"


def faces(uri: str, cache: Path, **more: Any) -> Data:
    return Data(name="faces", path=uri, cache=str(cache), **more)


def test_parquet_at_a_uri_is_read_as_it_would_be_here(bucket: str, tmp_path: Path) -> None:
    there = load(faces(f"s3://ours/faces{bucket}", tmp_path / "cache"))
    here = load(faces(str(tmp_path / "source"), tmp_path / "other"))
    assert there.digest == here.digest and there.class_names == ("cat", "dog", "emu")
    assert len(there.images_NCHW) == 60
    single = load(faces(f"s3://ours/faces/images-0.parquet{bucket}", tmp_path / "cache"))
    assert len(single.images_NCHW) == 30
    assert not any((tmp_path / "cache" / "downloads").iterdir())  # what was downloaded is prepared, and not kept


@pytest.fixture
def preparations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders in which a set was prepared from its source."""
    made: list[str] = []
    prepare = prepared.prepare

    def counted(stream: Any, folder: Path, *rest: Any) -> None:
        made.append(str(folder.parent))
        prepare(stream, folder, *rest)

    monkeypatch.setattr("aae_ray.datasets.dataset.prepare", counted)
    return made


@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_a_set_is_prepared_once_for_all_nodes(bucket: str, tmp_path: Path, preparations: list[str], kind: str) -> None:
    shared = f"s3://ours/{tmp_path.name}/data{bucket}" if kind == "s3" else str(tmp_path / "shared")
    sets = [load(faces(f"s3://ours/faces{bucket}", tmp_path / f"node{number}", shared=shared)) for number in (1, 2, 3)]
    assert preparations == [str(tmp_path / "node1")]
    assert len({each.digest for each in sets}) == 1 and (sets[2].images_NCHW == sets[0].images_NCHW).all()
    load(faces(f"s3://ours/faces{bucket}", tmp_path / "node2", shared="s3://no-such-bucket/data"))  # it has it by now


def test_a_shared_set_that_is_damaged_is_not_used(tmp_path: Path) -> None:
    source, shared = parquet(tmp_path / "source" / "images"), tmp_path / "shared"
    load(faces(source.as_uri(), tmp_path / "node1", shared=str(shared)))
    (images,) = shared.rglob("images.npy")
    content = bytearray(images.read_bytes())
    content[-1] ^= 1
    images.write_bytes(content)
    with pytest.raises(UserError, match="data.shared: .*/shared/faces-.* does not match its own digest; delete it"):
        load(faces(source.as_uri(), tmp_path / "node2", shared=str(shared)))
    assert [path.name for path in (tmp_path / "node2").iterdir() if path.is_dir()] == []
    shutil.rmtree(images.parent)
    load(faces(source.as_uri(), tmp_path / "node2", shared=str(shared)))


def test_data_that_change_at_their_uri_are_another_set(tmp_path: Path) -> None:
    source = parquet(tmp_path / "source" / "images")
    before = load(faces(source.as_uri(), tmp_path / "cache"))
    parquet(source / "images", IMAGES[::-1])
    assert load(faces(source.as_uri(), tmp_path / "cache")).digest != before.digest


class Forbidden(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_PUT = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def forbidden() -> Iterator[str]:
    """The address of a server that answers 403 to everything."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Forbidden)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def failing(uri: str, cache: Path) -> str:
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        load(faces(uri, cache))
    assert time.monotonic() - began < 2 * remote.ANSWER_SECONDS
    text = str(caught.value)
    assert text.startswith("data.path: ") and len(text.splitlines()) == 1 and "endpoint_override" not in text
    return text


def test_a_bucket_or_a_folder_that_is_not_there(bucket: str, tmp_path: Path) -> None:
    assert "s3://nobodys/faces" in failing(f"s3://nobodys/faces{bucket}", tmp_path)
    assert "no files called *.parquet at s3://ours/nothing" in failing(f"s3://ours/nothing{bucket}", tmp_path)


def test_a_server_that_refuses_us(forbidden: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "old")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "old")
    text = failing(f"s3://ours/faces?endpoint_override={forbidden}&scheme=http&region=us-west-2", tmp_path)
    assert "ACCESS_DENIED" in text and "which credentials this machine has" in text


def test_a_server_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 1.0)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match="s3://ours/faces: it has not answered within 1 s"):
            load(faces(f"s3://ours/faces?endpoint_override={address}&scheme=http&region=us-west-2", tmp_path))


def test_a_uri_with_a_secret_is_not_shown() -> None:
    assert remote.shown("s3://key:secret@bucket/faces?region=x&session_token=y") == "s3://bucket/faces"


OF_AWS = "When initiating upload for key 'a/b' in bucket 'bucket': AWS Error"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            f"{OF_AWS} UNKNOWN (HTTP status 400) during CreateMultipartUpload operation: "
            "Unable to parse ExceptionName: ExpiredToken Message: The provided token has expired.",
            "ExpiredToken: The provided token has expired. (CreateMultipartUpload)",
        ),
        (f"{OF_AWS} ACCESS_DENIED during UploadPart operation: Access Denied", "Access Denied (UploadPart)"),
        (f"{OF_AWS} ACCESS_DENIED during HeadObject operation: No response body.", "ACCESS_DENIED (HeadObject)"),
        (
            f"{OF_AWS} UNKNOWN (HTTP status 503) during HeadObject operation: No response body.",
            "HTTP status 503 (HeadObject)",
        ),
        ("Cannot create directory '/a/b'. Detail: [errno 20] Not a directory", "Not a directory"),
        ("no route to host", "no route to host"),
        ("", "OSError"),
    ],
)
def test_what_a_file_system_says_is_put_for_people(said: str, reason: str) -> None:
    assert remote.reason_of(OSError(said)) == reason


def test_an_error_of_the_system_is_told_by_its_meaning() -> None:
    assert remote.reason_of(OSError(28, "No space left on device")) == "No space left on device"
