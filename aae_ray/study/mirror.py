"""A study whose folder is elsewhere: what this machine writes goes there as well, and one process at a time owns it."""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aae_ray.datasets.remote import NO_BODY, reason_of, within
from aae_ray.errors import UserError
from aae_ray.search.journal import JOURNAL, LOCK, Journal
from aae_ray.search.owner import HEARTBEAT_SECONDS, OWNER, STALE_SECONDS, Owner, Tell, live_owner
from aae_ray.search.sampler import COPY
from aae_ray.search.store import (
    GANGS,
    PARTIAL,
    SEGMENTS,
    TRIALS,
    TUNE,
    Piece,
    Store,
    digest_of,
    pieces_of,
    pull_journal,
    remote_owner,
    shared,
)
from aae_ray.secrets import redact
from aae_ray.study.log import LOG

SYNC_SECONDS = 2.0
MOST_PIECES = 50  # of the journal, of about one size
SENT_LAST = (LOG, COPY)  # they change all the time
LOCAL_ONLY = (JOURNAL, LOCK, OWNER)  # of this machine
NOT_MIRRORED = (TRIALS, TUNE, GANGS, SEGMENTS)  # folders that trials and Ray write, and the journal's pieces

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trouble:
    """What could not be written elsewhere, since `time.monotonic()` was so much."""

    since: float
    text: str


class Mirror:
    """Sends what is new, in a thread of its own. What cannot be sent is tried again, and `trouble` says so."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.troubles: dict[str, Trouble] = {}  # by what could not be written
        self.owner = Owner.this_process()
        self.journal: Journal | None = None
        self.taken_up = False  # what there was when the first piece was sent
        self.sent, self.hashed = 0, hashlib.sha256()  # of the journal: bytes, and the digest of them
        self.pieces: list[list[Piece]] = []  # that were not merged yet: small ones, larger ones, and so on
        self.files: dict[str, tuple[int, int]] = {}  # as they were when they were sent
        self.claimed = False
        self.lost_to: Owner | None = None  # another process has taken the study over
        self.checked_at = 0.0  # by the clock on the wall: that of this process stands still while it sleeps
        self.checking = threading.Lock()
        self.over = threading.Event()
        self.threads: list[threading.Thread] = []

    def claim(self, tell: Tell = logger.warning) -> None:
        """Make this process the owner; may wait for a sign of life of another one, and tells of that.

        Raises UserError when another one is, or when nothing can be written there.
        """
        where = redact(self.store.uri())
        try:
            owner = live_owner(lambda: within(lambda: remote_owner(self.store)), tell)  # which may never be answered
            if owner is not None and not owner.same_process_as(self.owner):
                raise UserError(
                    f"{where} is in use by process {owner.pid} on {owner.host}; wait for it to end, or stop it first"
                )
            self._beat()
            self.claimed = True
            self._begin(self._keep, "heartbeat elsewhere")  # while data are prepared, and large files sent
        except OSError as error:
            raise UserError(f"study.folder {where} cannot be written to: {redact(self._reason(error))}") from None

    def pull(self) -> None:
        """Get what this machine has less of: the journal, and with it files that MLflow may still have to take.

        Raises UserError when that cannot be read.
        """
        try:
            pull_journal(self.store)
            for name in self.store.files():
                if name in LOCAL_ONLY or name.partition("/")[0] in NOT_MIRRORED:
                    continue
                here = self.store.local / name
                if not here.exists() or here.stat().st_mtime < (self.store.modified_at(name) or 0.0):
                    here.unlink(missing_ok=True)
                    self.store.fetch(name)
        except OSError as error:
            where = redact(self.store.uri())
            raise UserError(f"study.folder {where} cannot be read: {redact(self._reason(error))}") from None

    def start(self, journal: Journal) -> None:
        """From now on, what happens here is copied."""
        self.journal = journal
        self._begin(self._run, "mirror")

    def _begin(self, work: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        self.threads.append(thread)
        thread.start()

    @property
    def trouble(self) -> Trouble | None:
        """What could not be written for the longest time; None where all that there is was written."""
        return min(list(self.troubles.values()), key=lambda trouble: trouble.since, default=None)

    @contextmanager
    def _noted(self, what: str) -> Iterator[None]:
        """An error is kept as a trouble until the next time, and logged once: a study goes on without its copy."""
        where = redact(self.store.uri())
        try:
            yield
        except Exception as error:
            before = self.troubles.get(what)
            since = time.monotonic() if before is None else before.since
            self.troubles[what] = Trouble(since, redact(self._reason(error)))
            if before is None:
                logger.exception("%s could not be written to %s; that is tried again", what, where)
        else:
            if self.troubles.pop(what, None) is not None:
                logger.info("%s was written to %s again", what, where)

    def _reason(self, error: Exception) -> str:
        """Why something could not be written. Where the answer to HEAD has not said it, one to a listing may."""
        if NO_BODY in str(error):
            try:
                self.store.files(SEGMENTS)
            except OSError as told:
                return reason_of(told)
        return reason_of(error)

    def close(self) -> None:
        """Send the rest, and let go of the study."""
        self.over.set()
        for thread in self.threads:
            thread.join()
        self._attempt(last=True)
        try:
            self._check_owner()
        except OSError:  # whoever owns it now, the file is not ours to delete unseen
            return
        if self.lost_to is None:
            Store(self.store.local / "none", self.store.remote).delete(OWNER)  # the local one is the lock's

    def _run(self) -> None:
        while not self.over.wait(SYNC_SECONDS):
            self._attempt()

    def _attempt(self, *, last: bool = False) -> None:
        with self._noted("the study"):
            if time.time() - self.checked_at > STALE_SECONDS / 2:
                self._check_owner()
            if self.lost_to is None and self.journal is not None:
                self._send_journal()
                self._send_files(last)

    def _keep(self) -> None:
        """Stay the owner. In a thread of its own: a file may take longer to send than a heart may stand still."""
        while not self.over.wait(HEARTBEAT_SECONDS):
            with self._noted("the heartbeat"):
                self._check_owner()
            if self.lost_to is not None:
                return

    def _check_owner(self) -> None:
        with self.checking:
            owner = remote_owner(self.store)
            if owner is not None and not owner.same_process_as(self.owner):
                self.lost_to = owner
                logger.error("process %s on %s has taken the study over; no more is copied", owner.pid, owner.host)
            else:
                self._beat()

    def _beat(self) -> None:
        self.store.write_bytes(OWNER, self.owner.to_json().encode())
        self.checked_at = time.time()

    def _send_journal(self) -> None:
        assert self.journal is not None
        size = self.journal.size  # what is behind it is not on the disk yet
        with self.journal.path.open("rb") as file:
            if not self.taken_up:
                self._take_up(file.read(size))
            file.seek(self.sent)
            new = file.read(size - self.sent)
        if new:
            hashed = self.hashed.copy()
            hashed.update(new)
            piece = Piece(self.sent, size, digest_of(hashed))
            self.store.write_bytes(piece.name, new)
            self.sent, self.hashed = size, hashed
            self._merge(piece)

    def _take_up(self, here: bytes) -> None:
        """Go on behind the pieces that are there; those go that hold a line that was cut off."""
        pieces = pieces_of(self.store)
        known = shared(pieces, here)
        for piece in reversed(pieces):  # so that what remains is a beginning at any time
            if piece not in known:
                self.store.delete(piece.name)
        self.sent = known[-1].end if known else 0
        self.hashed, self.pieces, self.taken_up = hashlib.sha256(here[: self.sent]), [known], True

    def _merge(self, new: Piece, level: int = 0) -> None:
        """Make one piece of many, and of many of those one again: each line is sent few times, and readers find few.

        The large piece is whole before the first of the small ones goes, so a crash in between loses none.
        """
        assert self.journal is not None
        if level == len(self.pieces):
            self.pieces.append([])
        small = self.pieces[level]
        small.append(new)
        if len(small) < MOST_PIECES:
            return
        whole = Piece(min(piece.begin for piece in small), new.end, new.digest)
        with self.journal.path.open("rb") as file:
            file.seek(whole.begin)
            self.store.write_bytes(whole.name, file.read(whole.end - whole.begin))
        for piece in small:
            self.store.delete(piece.name)
        self.pieces[level] = []
        self._merge(whole, level + 1)

    def _send_files(self, last: bool) -> None:
        root = self.store.local
        skipped = LOCAL_ONLY + NOT_MIRRORED + (() if last else SENT_LAST)
        tops = [top for top in root.iterdir() if top.name not in skipped]  # trials may have thousands of files
        for path in sorted(path for top in tops for path in (top, *top.rglob("*")) if path.is_file()):
            name = path.relative_to(root).as_posix()
            if PARTIAL in name:
                continue
            state = path.stat()
            known = state.st_mtime_ns, state.st_size
            if self.files.get(name) != known:
                self.store.write_bytes(name, path.read_bytes())
                self.files[name] = known
