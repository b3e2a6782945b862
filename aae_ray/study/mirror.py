"""A study whose folder is elsewhere: what this machine writes goes there as well, and one process at a time owns it."""

import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from aae_ray.errors import UserError
from aae_ray.search.journal import HEARTBEAT_SECONDS, JOURNAL, LOCK, OWNER, Journal
from aae_ray.search.store import PARTIAL, SEGMENTS, Store, pull_journal, remote_owner
from aae_ray.secrets import redact
from aae_ray.study.log import LOG

SECONDS = 2.0
LATE = (LOG, "optuna_journal.log")  # they change all the time
OWN = (JOURNAL, LOCK, OWNER)  # of this machine
FOREIGN = ("trials", "tune", "gangs", SEGMENTS)  # folders that trials and Ray write, and the journal's pieces

logger = logging.getLogger(__name__)


class Mirror:
    """Sends what is new, in a thread of its own; what cannot be sent is tried again, and costs the study nothing."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.values: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "began": time.time()}
        self.journal: Journal | None = None
        self.sent = self.segment = 0  # bytes of the journal, and pieces
        self.files: dict[str, tuple[int, int]] = {}  # as they were when they were sent
        self.beaten = 0.0
        self.claimed = False
        self.lost = False  # another process has taken the study over
        self.over = threading.Event()
        self.thread: threading.Thread | None = None

    def claim(self) -> None:
        """Make this process the owner. Raises UserError when another one is, or when nothing can be written there."""
        where = redact(self.store.uri())
        try:
            owner = remote_owner(self.store)
            if owner is not None and owner.alive and (owner.host, owner.pid) != (self.values["host"], os.getpid()):
                raise UserError(
                    f"{where} is in use by process {owner.pid} on {owner.host}; wait for it to end, or stop it first"
                )
            self._beat()
            self.claimed = True
        except OSError as error:
            raise UserError(f"study.folder {where} cannot be written to: {redact(str(error))}") from None

    def pull(self) -> None:
        """Get what this machine has less of: the journal, and with it files that MLflow may still have to take."""
        pull_journal(self.store)
        for name in self.store.files():
            if name in OWN or name.partition("/")[0] in FOREIGN:
                continue
            here = self.store.local / name
            if not here.exists() or here.stat().st_mtime < (self.store.age_of(name) or 0.0):
                here.unlink(missing_ok=True)
                self.store.fetch(name)

    def start(self, journal: Journal) -> None:
        self.journal = journal
        self.thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Send the rest, and let go of the study."""
        self.over.set()
        if self.thread is not None:
            self.thread.join()
            self._attempt(last=True)
        if not self.lost:
            Store(self.store.local / "none", self.store.remote).delete(OWNER)  # the local one is the lock's

    def _run(self) -> None:
        while not self.over.wait(SECONDS):
            self._attempt()

    def _attempt(self, *, last: bool = False) -> None:
        try:
            self._check_owner()
            if not self.lost:
                self._send_journal()
                self._send_files(last)
        except Exception:  # a study goes on without its copy
            logger.exception("the study could not be copied to %s; that is tried again", redact(self.store.uri()))

    def _check_owner(self) -> None:
        if self.lost or time.monotonic() - self.beaten < HEARTBEAT_SECONDS:
            return
        owner = remote_owner(self.store)
        if owner is not None and (owner.host, owner.pid) != (self.values["host"], self.values["pid"]):
            self.lost = True
            logger.error("process %s on %s has taken the study over; no more is copied", owner.pid, owner.host)
            return
        self._beat()

    def _beat(self) -> None:
        self.store.write_bytes(OWNER, json.dumps(self.values).encode())
        self.beaten = time.monotonic()

    def _send_journal(self) -> None:
        assert self.journal is not None
        size = self.journal.size  # what is behind it is not on the disk yet
        with self.journal.path.open("rb") as file:
            if not self.segment:
                self._take_up(file.read(size))
            file.seek(self.sent)
            new = file.read(size - self.sent)
        if new:
            self.store.write_bytes(f"{SEGMENTS}/{self.segment:06d}.jsonl", new)
            self.segment, self.sent = self.segment + 1, size

    def _take_up(self, here: bytes) -> None:
        """Go on behind the pieces that are there; they are written anew where they hold a line that was cut off."""
        names = self.store.files(SEGMENTS)
        there = b"".join(self.store.read_bytes(name) for name in names)
        if here.startswith(there):
            self.sent, self.segment = len(there), int(Path(names[-1]).stem) + 1 if names else 1
            return
        for name in reversed(names):  # so that what remains is a beginning at any time
            self.store.delete(name)
        self.sent, self.segment = 0, 1

    def _send_files(self, last: bool) -> None:
        root = self.store.local
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if name in OWN or name.partition("/")[0] in FOREIGN or PARTIAL in name or not path.is_file():
                continue
            if name in LATE and not last:
                continue
            state = path.stat()
            known = state.st_mtime_ns, state.st_size
            if self.files.get(name) != known:
                self.store.write_bytes(name, path.read_bytes())
                self.files[name] = known
