"""What a study's folder elsewhere holds, and to whom it belongs."""

import json
import os
import socket
import time
from pathlib import Path

import pytest

from aae_ray.errors import UserError
from aae_ray.search import events
from aae_ray.search.journal import Journal
from aae_ray.search.store import Store, pull_journal
from aae_ray.study.mirror import Mirror
from tests.search.histories import History


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    return Mirror(Store(tmp_path / "here", f"file://{tmp_path}/there"))


def pieces(there: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((there / "journal").iterdir())]


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
    mirror.store.write_bytes("journal/000001.jsonl", (tmp_path / "here" / "journal.jsonl").read_bytes())
    mirror.store.write_bytes("journal/000002.jsonl", b"\0\0\n")
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
    left = first.with_name("000002.jsonl.partial-0badcafe")
    left.write_bytes(b'{"time"')

    again = Mirror(mirror.store)
    again.claim()
    again.pull()
    again.journal = Journal.open(here)
    again.journal.append(events.Noted(text="one more"))
    again._attempt()
    assert again.sent == again.journal.size and left.name not in str(again.store.files())
    assert b"".join(piece for piece in pieces(there) if piece != left.read_bytes()) == again.journal.path.read_bytes()


def test_the_owner_keeps_others_away_while_its_heart_beats(mirror: Mirror, tmp_path: Path) -> None:
    owner = {"host": "another", "pid": 7, "began": time.time()}
    mirror.store.write_bytes("owner.json", json.dumps(owner).encode())
    with pytest.raises(UserError, match="in use by process 7 on another"):
        mirror.claim()
    os.utime(tmp_path / "there" / "owner.json", (time.time() - 61,) * 2)
    mirror.claim()
    assert json.loads((tmp_path / "there" / "owner.json").read_text())["host"] == socket.gethostname()


def test_a_process_that_has_lost_the_study_sends_no_more(mirror: Mirror, tmp_path: Path) -> None:
    History(study_id="here").write(tmp_path / "here")
    mirror.claim()
    mirror.journal = Journal.open(tmp_path / "here")
    mirror.store.write_bytes("owner.json", json.dumps({"host": "another", "pid": 7, "began": 0.0}).encode())
    mirror.beaten = -1e9
    mirror._attempt()
    assert mirror.lost and not (tmp_path / "there" / "journal").exists()
    mirror.close()
    assert (tmp_path / "there" / "owner.json").exists()


def test_what_cannot_be_sent_is_tried_again(mirror: Mirror, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    History(study_id="here").write(tmp_path / "here")
    mirror.claim()
    mirror.journal = Journal.open(tmp_path / "here")
    (tmp_path / "there" / "journal").write_text("in the way")
    mirror._attempt()
    assert "that is tried again" in caplog.text
    (tmp_path / "there" / "journal").unlink()
    mirror._attempt()
    assert b"".join(pieces(tmp_path / "there")) == mirror.journal.path.read_bytes()


def test_a_folder_that_cannot_be_written_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"):
        Mirror(Store(tmp_path / "here", f"file://{tmp_path}/file/study")).claim()
