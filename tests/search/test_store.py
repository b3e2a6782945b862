"""Finding a study by its name, its id or its folder, without guessing."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aae_ray.errors import UserError
from aae_ray.search.journal import JOURNAL
from aae_ray.search.store import (
    Piece,
    Store,
    below,
    digest_of,
    find_study,
    pull_journal,
    read_ledger,
    store_at,
    studies,
)
from tests.cluster.conftest import endpoint as endpoint
from tests.cluster.conftest import record as record
from tests.cluster.laptop import aws_client
from tests.search.histories import START, History, write_evaluation
from tests.search.test_conductor import begin, plan_of, run

DIGITS = ("digits-20270115-080000-abcd", "digits-20270116-080000-0123")
BEST = "digits-best-20270117-080000-9999"
MNIST = "mnist-20270114-080000-beef"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index, name in enumerate((MNIST, *DIGITS, BEST)):
        History(time=START + index, study_id=name).write(tmp_path / "runs" / name)
    (tmp_path / "runs" / "no-study").mkdir()
    return tmp_path / "runs"


def test_studies_are_listed_newest_first(root: Path, tmp_path: Path) -> None:
    assert [folder.name for folder in studies(root)] == [BEST, *reversed(DIGITS), MNIST]
    assert studies(tmp_path / "nowhere") == []


def test_an_evaluation_is_no_study_and_a_journal_that_cannot_be_read_may_be_one(root: Path) -> None:
    write_evaluation(root / "evaluation-20270118-080000")
    (root / "broken").mkdir()
    (root / "broken" / JOURNAL).write_text("no\n")
    assert [folder.name for folder in studies(root)] == [BEST, *reversed(DIGITS), MNIST, "broken"]


@pytest.mark.parametrize("name", ["mnist", "mnist-2027", "mnist-20270114-080000", MNIST])
def test_a_study_by_its_name_its_id_or_the_beginning_of_it(root: Path, name: str) -> None:
    assert find_study(name, root) == root / MNIST


def test_a_study_by_its_folder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (root / MNIST, root / MNIST / "journal.jsonl"):
        assert find_study(str(given), tmp_path / "elsewhere") == root / MNIST
    monkeypatch.chdir(tmp_path)
    assert find_study(f"runs/{MNIST}/", root) == Path("runs", MNIST)
    assert find_study("digits-best", root).name == BEST  # and not those of digits


@pytest.mark.parametrize("name", ["digits", "digits-2027"])
def test_a_name_of_several_studies_is_refused_with_all_of_them_newest_first(root: Path, name: str) -> None:
    with pytest.raises(UserError) as error:
        find_study(name, root)
    first, *listed = str(error.value).splitlines()
    assert f"{name} fits 2 studies" in first and [line.strip() for line in listed] == list(reversed(DIGITS))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mnits", f"Did you mean {MNIST}?"),
        ("digit", f"Did you mean {DIGITS[1]}"),  # of a name the newest
        ("mnist-20270114-080000-beff", MNIST),
        ("zzz", f"the newest there are {BEST}, {DIGITS[1]}, {DIGITS[0]}"),
        ("", "there is no study"),
    ],
)
def test_an_unknown_study_is_refused_with_names_like_it(root: Path, name: str, hint: str) -> None:
    with pytest.raises(UserError) as error:
        find_study(name, root)
    assert hint in str(error.value)


def test_a_folder_without_a_journal_is_no_study(root: Path) -> None:
    with pytest.raises(UserError, match="is not the folder of a study"):
        find_study(str(root / "no-study"), root)


def test_where_there_is_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no study is called digits: there are no studies under "):
        find_study("digits", tmp_path / "runs")


def test_a_store_elsewhere_takes_gives_and_deletes_files(tmp_path: Path) -> None:
    (tmp_path / "files" / "deep").mkdir(parents=True)
    (tmp_path / "files" / "a.bin").write_bytes(b"one")
    (tmp_path / "files" / "deep" / "b.bin").write_bytes(b"two")
    exercise(Store(tmp_path / "cache", f"file://{tmp_path}/there/study"), tmp_path / "files")
    assert not list((tmp_path / "there").rglob("*.partial-*"))


def test_a_store_on_s3(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    aws_client("s3", endpoint).create_bucket(
        Bucket="studies", CreateBucketConfiguration={"LocationConstraint": "us-west-2"}
    )
    (tmp_path / "files" / "deep").mkdir(parents=True)
    (tmp_path / "files" / "a.bin").write_bytes(b"one")
    (tmp_path / "files" / "deep" / "b.bin").write_bytes(b"two")
    address = endpoint.removeprefix("http://")
    uri = f"s3://studies/all/study?scheme=http&endpoint_override={address}&region=us-west-2"
    exercise(Store(tmp_path / "cache", uri), tmp_path / "files")


def exercise(store: Store, files: Path) -> None:
    assert store.files() == []
    with pytest.raises(FileNotFoundError):
        store.read_bytes("trials/t0000/a.bin")
    store.write_folder("trials/t0000", files)
    assert store.read_bytes("trials/t0000/a.bin") == b"one"
    assert store.files() == ["trials/t0000/a.bin", "trials/t0000/deep/b.bin"]
    assert not store.local.exists()
    fetched = store.fetch("trials/t0000")
    assert fetched == store.local / "trials/t0000" and (fetched / "deep" / "b.bin").read_bytes() == b"two"
    store.write_bytes("trials/t0000/a.bin", b"new")
    assert (store.fetch("trials/t0000/a.bin")).read_bytes() == b"one"  # what is here is not fetched again
    assert store.modified_at("trials/t0000/a.bin") == pytest.approx(time.time(), abs=60)
    store.delete("trials/t0000")
    assert store.files() == [] and not fetched.exists()
    store.delete("trials/t0000")  # which is gone


def test_a_local_store_has_plain_paths(tmp_path: Path) -> None:
    store = store_at(str(tmp_path))
    store.write_bytes("trials/t0000/a.bin", b"one")
    assert store.uri("trials") == str(tmp_path / "trials") and store.fetch("trials") == tmp_path / "trials"
    store.delete("trials")
    assert store.files("trials") == []


def send(store: Store, *contents: bytes) -> list[str]:
    """Write the pieces of a journal; returns their names."""
    names, whole = [], b""
    for content in contents:
        piece = Piece(len(whole), len(whole + content), digest_of(hashlib.sha256(whole + content)))
        store.write_bytes(piece.name, content)
        names.append(piece.name)
        whole += content
    return names


def test_names_below_a_uri_keep_its_options() -> None:
    assert below("s3://b/studies/?region=x", "id") == "s3://b/studies/id?region=x"


@pytest.mark.parametrize("here", [None, 0, 1])
def test_the_pieces_of_a_journal_are_joined_where_there_is_less_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: int | None
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = History(study_id=MNIST).write(tmp_path / "whole")
    lines = (whole / "journal.jsonl").read_bytes().splitlines(keepends=True) + [b"{}\n", b"{}\n"]
    there = Store(tmp_path / "none", f"file://{tmp_path}/there/{MNIST}")
    send(there, *lines)
    cache = tmp_path / "runs" / MNIST / "journal.jsonl"
    if here is not None:
        cache.parent.mkdir(parents=True)
        cache.write_bytes(b"".join(lines[:here]))
    assert find_study(str(there.remote), tmp_path) == Path("runs", MNIST)
    assert cache.read_bytes() == b"".join(lines)
    cache.write_bytes(b"".join(lines) + b"more\n")
    find_study(str(there.remote), tmp_path)
    assert cache.read_bytes().endswith(b"more\n")


def test_a_uri_without_a_study_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is not the folder of a study"):
        find_study(f"file://{tmp_path}/nowhere", tmp_path)
    with pytest.raises(UserError, match="is not the URI of a file system"):
        find_study("nonsense://nowhere", tmp_path)


def test_a_journal_that_went_on_here_alone_is_kept_beside_the_one_that_others_saw(tmp_path: Path) -> None:
    store = Store(tmp_path / "here", f"file://{tmp_path}/there")
    send(store, b"a\nb\n")
    (tmp_path / "here").mkdir(exist_ok=True)
    (tmp_path / "here" / JOURNAL).write_bytes(b"a\nc\n")
    assert pull_journal(store)
    assert (tmp_path / "here" / JOURNAL).read_bytes() == b"a\nb\n"
    (kept,) = (tmp_path / "here").glob("journal.diverged-*")
    assert kept.read_bytes() == b"a\nc\n"


@pytest.mark.parametrize(
    ("here", "read"),
    [
        (b"", [0, 1, 2]),
        (b"a\n", [1, 2]),
        (b"a\nb\nc", [2]),  # a line that is not whole
        (b"a\nb\nc\n", []),
        (b"a\nb\nc\nd\n", []),
        (b"a\nX\nc\n", [1, 2]),  # it went on here alone
    ],
)
def test_only_the_pieces_behind_the_journal_here_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: bytes, read: list[int]
) -> None:
    store = Store(tmp_path / "here", f"file://{tmp_path}/there")
    names = send(store, b"a\n", b"b\n", b"c\n")
    store.local.mkdir()
    (store.local / JOURNAL).write_bytes(here)
    asked: list[str] = []
    read_bytes = Store.read_bytes

    def noted(store: Store, name: str) -> bytes:
        asked.append(name)
        return read_bytes(store, name)

    monkeypatch.setattr(Store, "read_bytes", noted)
    assert pull_journal(store) is bool(read)
    assert asked == [names[index] for index in read]
    assert (store.local / JOURNAL).read_bytes().startswith(b"a\nb\nc\n")
    assert len(list(store.local.glob("*.diverged-*"))) == (b"X" in here)


def test_a_piece_within_another_one_and_one_that_is_damaged_are_not_joined(tmp_path: Path) -> None:
    store = Store(tmp_path / "here", f"file://{tmp_path}/there")
    names = send(store, b"a\n", b"b\n", b"c\n", b"d\n")
    send(store, b"a\nb\nc\n")  # of three
    store.delete(names[1])  # and one of these has gone
    store.write_bytes(names[3], b"d")
    assert pull_journal(store) and (store.local / JOURNAL).read_bytes() == b"a\nb\nc\n"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: lines[:1] + lines[2:], 2),  # the suggestion of the first trial is missing
        (lambda lines: [lines[0].replace('"train.epochs"', '"train.eposch"'), *lines[1:]], 1),  # of another version
        (lambda lines: [lines[0].replace("val/jsd_nats", "val/sliced_wasserstein"), *lines[1:]], 4),  # and a metric
        (lambda lines: [lines[0].replace('"unsupervised"', '"of a later version"'), *lines[1:]], 1),
    ],
)
def test_a_journal_that_makes_no_sense_is_told_with_its_line(
    tmp_path: Path, change: Callable[[list[str]], list[str]], line: int
) -> None:
    run(begin(tmp_path, plan_of()))
    journal = tmp_path / JOURNAL
    assert read_ledger(tmp_path).trials
    changed = "".join(change(journal.read_text().splitlines(keepends=True)))
    assert changed != journal.read_text()
    journal.write_text(changed)
    with pytest.raises(UserError, match=f"journal.jsonl, line {line}: "):
        read_ledger(tmp_path)
    assert journal.read_text() == changed
