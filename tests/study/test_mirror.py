"""What a study's folder elsewhere holds, and to whom it belongs."""

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aae_ray.errors import UserError
from aae_ray.search import events
from aae_ray.search.journal import Journal
from aae_ray.search.store import Store, pull_journal
from aae_ray.study.mirror import Mirror
from tests.search.heart import beating
from tests.search.histories import History
from tests.search.test_store import send


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    return Mirror(Store(tmp_path / "here", f"file://{tmp_path}/there"))


def pieces(there: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((there / "journal").glob("*.jsonl"))]


def pulled(mirror: Mirror, folder: Path) -> bytes:
    """The journal as another machine gets it."""
    pull_journal(Store(folder, mirror.store.remote))
    return (folder / "journal.jsonl").read_bytes() if folder.exists() else b""


def test_only_what_is_new_is_sent(mirror: Mirror, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    History(study_id="here").write(here)
    journal = Journal.open(here)
    mirror.claim()
    mirror.journal = journal
    (here / "trials").mkdir()
    for name in ("trials/state.pt", "best_config.yaml", "study.log"):
        (here / name).write_text(name)
    mirror._attempt()
    journal.append(events.Noted(text="one more"))
    mirror._attempt()
    mirror._attempt()
    assert len(pieces(there)) == 2 and b"".join(pieces(there)) == journal.path.read_bytes()
    assert {path.name for path in there.iterdir()} == {"journal", "owner.json", "best_config.yaml"}
    mirror.start(journal)
    mirror.close()
    assert {path.name for path in there.iterdir()} == {"journal", "best_config.yaml", "study.log"}

    again = Mirror(Store(tmp_path / "elsewhere", mirror.store.remote))  # another machine goes on
    again.claim()
    again.pull()
    assert (tmp_path / "elsewhere" / "best_config.yaml").exists()
    other = Journal.open(tmp_path / "elsewhere")
    other.append(events.Noted(text="from elsewhere"))
    again.start(other)
    again.close()
    assert len(pieces(there)) == 3 and b"".join(pieces(there)) == other.path.read_bytes()
    assert pull_journal(mirror.store) and journal.path.read_bytes() == other.path.read_bytes()


def test_a_line_that_was_cut_off_is_sent_anew(mirror: Mirror, tmp_path: Path) -> None:
    History(study_id="here").write(tmp_path / "here")
    send(mirror.store, (tmp_path / "here" / "journal.jsonl").read_bytes(), b"\0\0\n")
    mirror.claim()
    mirror.journal = Journal.open(tmp_path / "here")
    mirror.journal.append(events.Noted(text="one more"))
    mirror._attempt()
    assert b"".join(pieces(tmp_path / "there")) == mirror.journal.path.read_bytes()


def test_what_a_killed_process_had_half_written_is_no_piece(mirror: Mirror, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    History(study_id="here").write(here)
    mirror.claim()
    mirror.journal = Journal.open(here)
    mirror._attempt()
    (first,) = (there / "journal").iterdir()
    left = first.with_name(f"{first.name}.partial-0badcafe")
    left.write_bytes(b'{"time"')

    again = Mirror(mirror.store)
    again.claim()
    again.pull()
    again.journal = Journal.open(here)
    again.journal.append(events.Noted(text="one more"))
    again._attempt()
    assert left.name not in str(again.store.files())
    assert b"".join(pieces(there)) == pulled(again, tmp_path / "elsewhere") == again.journal.path.read_bytes()


def test_many_pieces_become_few(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aae_ray.study.mirror.MOST_PIECES", 3)
    History(study_id="here").write(tmp_path / "here")
    mirror.claim()
    mirror.journal = journal = Journal.open(tmp_path / "here")
    sent = 0
    write_bytes = mirror.store.write_bytes

    def counted(name: str, content: bytes) -> None:
        nonlocal sent
        sent += len(content)
        write_bytes(name, content)

    monkeypatch.setattr(mirror.store, "write_bytes", counted)
    for number in range(1, 82):
        journal.append(events.Noted(text=str(number)))
        mirror._attempt()
        if number % 20 == 1:
            assert b"".join(pieces(tmp_path / "there")) == journal.path.read_bytes()
            assert len(pieces(tmp_path / "there")) <= 2 * 5
    assert len(pieces(tmp_path / "there")) == 1 and sent < 6 * journal.size

    again = Mirror(mirror.store)  # what a session leaves goes into the first large piece of the next one
    again.journal = journal
    for number in range(2):
        journal.append(events.Noted(text=str(number)))
        again._attempt()
    assert pieces(tmp_path / "there") == [journal.path.read_bytes()]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("last", range(1, 40))
def test_a_kill_at_any_moment_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """Of the pieces that are written and deleted, each one in turn is the last."""
    monkeypatch.setattr("aae_ray.study.mirror.MOST_PIECES", 3)
    done = 0

    class Mortal(Store):
        def write_bytes(self, relative: str, content: bytes) -> None:
            super().write_bytes(relative, content)
            self.count(relative)

        def delete(self, relative: str) -> None:
            super().delete(relative)
            self.count(relative)

        def count(self, relative: str) -> None:
            nonlocal done
            done += relative.startswith("journal/")
            if done == last:
                raise Killed

    History(study_id="here").write(tmp_path / "here")
    journal = Journal.open(tmp_path / "here")
    remote = f"file://{tmp_path}/there"
    mirror = Mirror(Mortal(tmp_path / "here", remote))
    mirror.journal = journal
    with pytest.raises(Killed):
        while True:
            before = journal.size
            journal.append(events.Noted(text="one more"))
            mirror._attempt()
    found = pulled(mirror, tmp_path / "elsewhere")
    assert found == journal.path.read_bytes() and before < len(found)

    again = Mirror(Store(tmp_path / "here", remote))
    again.journal = journal
    for _ in range(9):
        journal.append(events.Noted(text="after it"))
        again._attempt()
        assert pulled(again, tmp_path / "elsewhere") == journal.path.read_bytes()
    assert b"".join(pieces(tmp_path / "there")) == journal.path.read_bytes()


def test_a_reader_finds_the_large_piece_where_the_small_ones_have_just_gone(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aae_ray.study.mirror.MOST_PIECES", 3)
    History(study_id="here").write(tmp_path / "here")
    mirror.journal = journal = Journal.open(tmp_path / "here")
    for text in "ab":
        mirror._attempt()
        journal.append(events.Noted(text=text))
    reader = Store(tmp_path / "elsewhere", mirror.store.remote)
    read_bytes = reader.read_bytes

    def late(name: str) -> bytes:
        mirror._attempt()
        return read_bytes(name)

    monkeypatch.setattr(reader, "read_bytes", late)
    assert len(pieces(tmp_path / "there")) == 2
    assert pull_journal(reader) and len(pieces(tmp_path / "there")) == 1
    assert (tmp_path / "elsewhere" / "journal.jsonl").read_bytes() == journal.path.read_bytes()


def test_the_files_of_trials_are_not_even_looked_at(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "trials" / "t0000").mkdir(parents=True)
    (tmp_path / "here" / "figures" / "t0000").mkdir(parents=True)
    (tmp_path / "here" / "figures" / "t0000" / "a.png").write_bytes(b"a")
    walked: list[str] = []
    rglob = Path.rglob

    def noted(path: Path, pattern: str) -> Iterator[Path]:
        walked.append(path.name)
        return rglob(path, pattern)

    monkeypatch.setattr(Path, "rglob", noted)
    mirror._send_files(last=True)
    assert walked == ["figures"] and mirror.store.files() == ["figures/t0000/a.png"]


def test_the_owner_keeps_others_away_while_its_heart_beats(mirror: Mirror, tmp_path: Path) -> None:
    owner = {"host": "another", "pid": 7}
    mirror.store.write_bytes("owner.json", json.dumps(owner).encode())
    with beating(tmp_path / "there/owner.json"), pytest.raises(UserError, match="in use by process 7 on another"):
        mirror.claim()
    os.utime(tmp_path / "there" / "owner.json", (time.time() - 61,) * 2)
    mirror.claim()
    assert json.loads((tmp_path / "there" / "owner.json").read_text())["host"] == socket.gethostname()


def test_a_process_that_has_lost_the_study_sends_no_more(mirror: Mirror, tmp_path: Path) -> None:
    History(study_id="here").write(tmp_path / "here")
    mirror.claim()
    mirror.journal = Journal.open(tmp_path / "here")
    mirror.store.write_bytes("owner.json", json.dumps({"host": "another", "pid": 7}).encode())
    mirror.checked_at -= 31  # this process was stopped, or cut off
    mirror._attempt()
    assert mirror.lost_to is not None and mirror.lost_to.pid == 7 and not (tmp_path / "there" / "journal").exists()
    mirror.close()
    assert (tmp_path / "there" / "owner.json").exists()


def test_an_owner_that_cannot_be_asked_for_at_the_end_is_left_as_it_is(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.claim()

    def unreachable(store: Store) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("aae_ray.study.mirror.remote_owner", unreachable)
    mirror.close()
    assert (tmp_path / "there" / "owner.json").exists()


def test_what_cannot_be_sent_is_tried_again(mirror: Mirror, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    History(study_id="here").write(tmp_path / "here")
    mirror.claim()
    mirror.journal = Journal.open(tmp_path / "here")
    (tmp_path / "there" / "journal").write_text("in the way")
    mirror._attempt()
    assert "that is tried again" in caplog.text
    first = mirror.trouble
    mirror._attempt()
    assert caplog.text.count("that is tried again") == 1  # a line for a trouble, not for each time
    assert first is not None and mirror.trouble == first and "Not a directory" in first.text
    (tmp_path / "there" / "journal").unlink()
    mirror._attempt()
    assert not mirror.troubles
    assert b"".join(pieces(tmp_path / "there")) == mirror.journal.path.read_bytes()


def test_a_folder_that_cannot_be_written_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"):
        Mirror(Store(tmp_path / "here", f"file://{tmp_path}/file/study")).claim()


def test_a_file_system_that_never_answers_is_a_sentence_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aae_ray.datasets.remote.ANSWER_SECONDS", 0.5)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        query = f"?region=us-west-2&scheme=http&endpoint_override=127.0.0.1:{silent.getsockname()[1]}"
        mirror = Mirror(Store(tmp_path, f"s3://bucket/studies/digits{query}"))
        with pytest.raises(UserError, match=r"study.folder .* cannot be written to: .*not answered within 0.5 s"):
            mirror.claim()
