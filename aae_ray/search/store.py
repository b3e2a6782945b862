"""Where studies live: their files, here or at a URI, the pieces of a journal that is elsewhere, and studies by name."""

import difflib
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from aae_ray.datasets.remote import reason_of
from aae_ray.errors import UserError
from aae_ray.search.events import Event
from aae_ray.search.journal import JOURNAL, first_event, read_events
from aae_ray.search.ledger import Ledger
from aae_ray.search.owner import OWNER, Owner
from aae_ray.secrets import redact

STAMP = re.compile(r"-\d{8}-\d{6}(-\w+)?$")  # what a study's folder has behind the name of the study
CACHE = Path("runs")  # where this machine keeps its copy of a study whose folder is elsewhere
TRIALS = "trials"  # folder, in a study's, of its trials' checkpoints
TUNE, GANGS = "tune", "gangs"  # and those of what Ray Tune and Ray Train keep while they run
PARTIAL = ".partial-"  # in the name of what is not written to its end yet
SEGMENTS = "journal"  # folder, in a study that is elsewhere, of the pieces of its journal
PIECE = re.compile(rf"{SEGMENTS}/(\d+)-(\d+)-([0-9a-f]+)\.jsonl")


def is_remote(folder: str) -> bool:
    """Whether a folder is the URI of a file system, and not a path."""
    return "://" in folder


def below(uri: str, relative: str) -> str:
    """The URI of what lies below a folder; what follows a question mark, such as an end point, goes with it."""
    place, mark, query = uri.partition("?")
    return f"{place.rstrip('/')}/{relative}".rstrip("/") + mark + query


def local_root(folder: str) -> Path:
    """Where on this machine the studies of a `study.folder` are."""
    return CACHE if is_remote(folder) else Path(folder).expanduser()


class Store:
    """Where a study's files are: in a folder of this machine, or elsewhere with copies of what was read in that folder.

    Names are relative to the study's folder. Raises OSError where a file cannot be read or written.
    """

    def __init__(self, local: Path, remote: str | None = None) -> None:
        self.local, self.remote = local, remote
        self._opened: tuple[Any, str] | None = None

    def uri(self, relative: str = "") -> str:
        """The name that every node knows a file by."""
        return str(self.local / relative) if self.remote is None else below(self.remote, relative)

    def write_folder(self, relative: str, files: Path) -> None:
        """Write the files of a local folder; each of them is there completely or not at all."""
        if self.remote is None:
            shutil.copytree(files, self.local / relative, dirs_exist_ok=True)
            return
        for file in sorted(path for path in files.rglob("*") if path.is_file()):
            self.write_bytes(f"{relative}/{file.relative_to(files).as_posix()}", file.read_bytes())

    def write_bytes(self, relative: str, content: bytes) -> None:
        if self.remote is None:
            (self.local / relative).parent.mkdir(parents=True, exist_ok=True)
            (self.local / relative).write_bytes(content)
            return
        with self._at(relative) as (system, path):
            if system.type_name != "s3":  # there a name with slashes needs no folders, and objects appear whole
                system.create_dir(path.rpartition("/")[0], recursive=True)
                partial = f"{path}{PARTIAL}{uuid.uuid4().hex[:8]}"
                with system.open_output_stream(partial) as file:
                    file.write(content)
                system.move(partial, path)
                return
            with system.open_output_stream(path) as file:
                file.write(content)

    def read_bytes(self, relative: str) -> bytes:
        if self.remote is None:
            return (self.local / relative).read_bytes()
        with self._at(relative) as (system, path), system.open_input_stream(path) as file:
            return bytes(file.read())

    def fetch(self, relative: str) -> Path:
        """A file or folder as a path of this machine; downloaded when it is elsewhere, and not here yet."""
        path = self.local / relative
        if self.remote is None or path.exists():
            return path
        partial = path.with_name(f"{path.name}{PARTIAL}{uuid.uuid4().hex[:8]}")
        with self._at(relative) as (system, place):
            single = system.get_file_info(place).is_file
        names = [] if single else self.files(relative)
        try:
            for name in names or [relative]:
                target = partial / Path(name).relative_to(relative) if names else partial
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(self.read_bytes(name))
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            partial.unlink(missing_ok=True)
        return path

    def delete(self, relative: str) -> None:
        """Delete a file or folder, here and elsewhere; one that cannot be deleted stays."""
        shutil.rmtree(self.local / relative, ignore_errors=True)
        with suppress(OSError):
            (self.local / relative).unlink(missing_ok=True)
        if self.remote is not None:
            with suppress(OSError), self._at(relative) as (system, path):
                kind = system.get_file_info(path).type.name
                if kind == "Directory":
                    system.delete_dir(path)
                elif kind == "File":
                    system.delete_file(path)

    def files(self, relative: str = "") -> list[str]:
        """All files below a folder, by name; not those that a killed process has left half written."""
        return sorted(name for name in self._names(relative) if PARTIAL not in name)

    def _names(self, relative: str) -> list[str]:
        if self.remote is None:
            found = (path for path in (self.local / relative).rglob("*") if path.is_file())
            return [path.relative_to(self.local).as_posix() for path in found]
        from pyarrow.fs import FileSelector

        with self._at(relative) as (system, path):
            entries = system.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
        root = self._open()[1]
        return [entry.path[len(root) + 1 :] for entry in entries if entry.is_file]

    def modified_at(self, relative: str) -> float | None:
        """When a file was written, in seconds since 1970; None where there is none."""
        with self._at(relative) as (system, path):
            entry = system.get_file_info(path)
        return None if entry.mtime_ns is None or not entry.is_file else entry.mtime_ns / 1e9

    @contextmanager
    def _at(self, relative: str) -> Iterator[tuple[Any, str]]:
        system, root = self._open()
        try:
            yield system, f"{root}/{relative}".rstrip("/")
        except FileNotFoundError:
            raise
        except OSError:
            self._opened = None  # the next try looks for credentials anew
            raise

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:
            from pyarrow.fs import FileSystem

            uri = self.uri()
            try:
                system, path = FileSystem.from_uri(uri if is_remote(uri) else Path(uri).absolute().as_uri())
            except ValueError as error:
                raise UserError(f"{redact(uri)} is not the URI of a file system: {redact(str(error))}") from None
            self._opened = system, path.rstrip("/")
        return self._opened


def store_at(folder: str) -> Store:
    """The store of a study by the name that every node knows its folder by."""
    if is_remote(folder):
        return Store(Path(tempfile.gettempdir(), "aae_ray", re.sub(r"\W+", "_", folder)), folder)
    return Store(Path(folder))


def remote_owner(store: Store) -> Owner | None:
    """The owner by the file that is elsewhere, whose age is its heartbeat; None as of `read_owner`. Raises OSError."""
    try:
        return Owner.from_json(store.read_bytes(OWNER), store.modified_at(OWNER) or 0.0)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


class Piece(NamedTuple):
    """A part of a journal that is elsewhere. Its name says all of this: what is here as well need not be read."""

    begin: int  # in bytes
    end: int
    digest: str  # of the journal up to the end of this piece

    @property
    def name(self) -> str:
        return f"{SEGMENTS}/{self.begin:012d}-{self.end:012d}-{self.digest}.jsonl"


def digest_of(hashed: Any) -> str:
    """The digest in a piece's name, from the state of `hashlib.sha256` behind it."""
    return str(hashed.hexdigest()[:16])


def pieces_of(store: Store) -> list[Piece]:
    """The pieces of a journal that is elsewhere, in the order of their ends. Raises OSError.

    They may overlap: of several pieces one is made, and then they are deleted; a crash in between leaves both.
    """
    found = (PIECE.fullmatch(name) for name in store.files(SEGMENTS))
    pieces = [Piece(int(match[1]), int(match[2]), match[3]) for match in found if match]
    return sorted(pieces, key=lambda piece: (piece.end, piece.begin))


def shared(pieces: Iterable[Piece], here: bytes) -> list[Piece]:
    """Those pieces, without a gap from the first on, that hold what a journal here holds as well."""
    found: list[Piece] = []
    hashed, end = hashlib.sha256(), 0
    for piece in pieces:
        if piece.end > len(here):
            break
        hashed.update(here[end : piece.end])
        end = piece.end
        if digest_of(hashed) == piece.digest and piece.begin <= (found[-1].end if found else 0):
            found.append(piece)
    return found


def pull_journal(store: Store) -> bool:
    """Get what a journal that is elsewhere has more than the one on this machine; whether there was something.

    Where both have gone on by themselves, the one elsewhere counts, as others have seen it, and the one here is kept
    beside it.
    """
    path = store.local / JOURNAL
    here = path.read_bytes() if path.exists() else b""
    there = _joined(store, here)
    if here.startswith(there):
        return False
    store.local.mkdir(parents=True, exist_ok=True)
    if not there.startswith(here):  # what happened here alone is kept, under another name
        path.with_suffix(f".diverged-{uuid.uuid4().hex[:8]}").write_bytes(here)
    partial = path.with_suffix(f"{PARTIAL}{uuid.uuid4().hex[:8]}")
    partial.write_bytes(there)
    partial.replace(path)
    return True


def _joined(store: Store, here: bytes, listings: int = 10) -> bytes:
    """The journal that is elsewhere; what it shares with the one here is not read."""
    pieces = pieces_of(store)
    known = shared(pieces, here)
    there = bytearray(here[: known[-1].end] if known else b"")
    hashed = hashlib.sha256(there)
    while fitting := [piece for piece in pieces if piece.begin <= len(there) < piece.end]:
        piece = fitting[-1]  # which goes on farthest
        try:
            more = store.read_bytes(piece.name)[len(there) - piece.begin :]
        except FileNotFoundError:  # its owner has made one of several meanwhile
            if listings == 1:
                raise
            return _joined(store, here, listings - 1)
        after = hashed.copy()
        after.update(more)
        if digest_of(after) == piece.digest:
            there, hashed = there + more, after
        else:  # it goes on from what is no more, or is damaged
            pieces.remove(piece)
    return bytes(there)


def studies(root: Path) -> list[Path]:
    """The folders of all studies below a root, the one that began last first.

    An evaluation has a journal too, and is left out. A journal that cannot be read may be that of a study, and stays.
    """
    firsts = {path.parent: first_event(path.parent) for path in root.glob(f"*/{JOURNAL}")}
    begun = [folder for folder, first in firsts.items() if first.get("event", "study_started") == "study_started"]
    return sorted(begun, key=lambda folder: (_time(firsts[folder]), folder.name), reverse=True)


def read_ledger(folder: Path, history: Sequence[Event] | None = None) -> Ledger:
    """What became of the study in a folder, of which `history` is the journal where it has been read.

    Raises UserError where the journal cannot be read, where lines are missing from it, or where it has settings that
    this version does not have.
    """
    ledger = Ledger()
    for number, event in enumerate(read_events(folder) if history is None else history, 1):
        try:
            ledger.apply(event)
        except (UserError, ValidationError, LookupError, AssertionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{folder / JOURNAL}, line {number}: {event.event} does not follow from the lines before it, or an "
                f"earlier version wrote it ({reason}). Nothing was changed"
            ) from None
    if ledger.started is None:
        raise UserError(f"{folder.name} is the record of an evaluation, not of a study")
    return ledger


def find_study(name_or_folder: str, root: Path) -> Path:
    """The folder of a study that is given by its path, its id, or its name where only one study has it.

    Raises UserError for a study that is not there, with names like it, and for a name that several studies have.
    """
    if is_remote(name_or_folder):
        return _pulled(name_or_folder)
    path = Path(name_or_folder).expanduser()
    for folder in (path, root / name_or_folder):
        if os.path.isfile(folder / JOURNAL):
            return folder
    if path.name == JOURNAL and os.path.isfile(path):
        return path.parent
    folders = studies(root)
    fitting = [folder for folder in folders if STAMP.sub("", folder.name) == name_or_folder]
    fitting = fitting or [folder for folder in folders if _abbreviates(name_or_folder, folder.name)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(
            f"{name_or_folder} fits {len(fitting)} studies under {root}; say which one, newest first:\n"
            + "\n".join(f"  {folder.name}" for folder in fitting)
        )
    if name_or_folder and os.path.isdir(path):
        raise UserError(f"{name_or_folder} is not the folder of a study: there is no {JOURNAL} in it")
    if not folders:
        raise UserError(f"no study is called {name_or_folder}: there are no studies under {root}")
    raise UserError(f"there is no study {name_or_folder} under {root}{_hint(name_or_folder, folders)}")


def _pulled(uri: str) -> Path:
    """This machine's copy of a study that is elsewhere."""
    store = Store(CACHE / uri.partition("?")[0].rstrip("/").rpartition("/")[2], uri)
    try:
        pull_journal(store)
    except OSError as error:
        raise UserError(f"{redact(uri)} cannot be read: {redact(reason_of(error))}") from None
    if not (store.local / JOURNAL).is_file():
        raise UserError(f"{redact(uri)} is not the folder of a study: there is no {SEGMENTS}/ in it")
    return store.local


def _abbreviates(text: str, study_id: str) -> bool:
    """Whether a text is the beginning of an id, with a part of what follows the name: `digits-2026`."""
    return study_id.startswith(text) and text.startswith(STAMP.sub("", study_id) + "-")


def _hint(name: str, folders: list[Path]) -> str:
    names = {STAMP.sub("", folder.name): folder.name for folder in reversed(folders)}  # of each name the newest
    known = {folder.name: folder.name for folder in folders} | names
    close = dict.fromkeys(known[near] for near in difflib.get_close_matches(name, list(known), n=3, cutoff=0.6))
    if close:
        return f". Did you mean {' or '.join(close)}?"
    newest = ", ".join(folder.name for folder in folders[:3])
    return f"; the newest there {'is' if len(folders) == 1 else 'are'} {newest}"


def _time(event: dict[str, Any]) -> float:
    try:
        return float(event["time"])
    except (ValueError, KeyError, TypeError):
        return 0.0
