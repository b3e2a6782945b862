"""A study's journal: its events, a line of JSON each, in the order in which they happened.

A line is on the disk before anything follows from it. A crash may cut off the last line, and loses no other.
"""

import errno
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from aae_ray.errors import UserError
from aae_ray.search.events import ADAPTER, SCHEMA, Evaluated, Event, StudyResumed, StudyStarted
from aae_ray.search.owner import HEARTBEAT_SECONDS, OWNER, STALE_SECONDS, Owner, Tell, live_owner, read_owner

JOURNAL, LOCK = "journal.jsonl", "study.lock"

logger = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------------------------------ reading


def read_events(folder: Path) -> list[Event]:
    """All whole events of a study's journal. Raises UserError when there is none, or one that cannot be read."""
    return _read(folder)[0]


def first_event(folder: Path) -> dict[str, Any]:
    """The first event of a journal as plain values, whatever version wrote it; none where it cannot be read."""
    try:
        with (folder / JOURNAL).open("rb") as file:
            event = json.loads(file.readline())
    except (OSError, ValueError):
        return {}
    return event if isinstance(event, dict) else {}


def _read(folder: Path) -> tuple[list[Event], int]:
    """The events, and the length in bytes of the lines that hold them: a crash may have cut the last line off."""
    path = folder / JOURNAL
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{folder} is not the folder of a study: there is no {JOURNAL} in it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    whole = content.rfind(b"\n") + 1
    lines = content[:whole].splitlines(keepends=True)
    events: list[Event] = []
    for number, line in enumerate(lines, 1):
        try:
            events.append(ADAPTER.validate_json(line))
        except ValidationError as error:
            if number == len(lines) and not _is_json(line):  # a crash may leave zeros, or half of an overwritten line
                whole -= len(line)
                break
            _check_schema(path, line)
            reason = "; ".join(detail["msg"] for detail in error.errors()[:1])
            left = f"the {number - 1} events before it are whole" if number > 1 else "nothing before it is left"
            raise UserError(
                f"{path}, line {number}: is not an event of a study ({reason}); {left}. Nothing was changed: "
                f"correct that line, or move it and all lines after it to another file"
            ) from None
        if isinstance(events[-1], StudyStarted | StudyResumed):
            _check_schema(path, line)
    if not events:
        raise UserError(f"{path} holds no event: the study had not begun; start it anew")
    if not isinstance(events[0], StudyStarted | Evaluated):
        raise UserError(f"{path} begins with {events[0].event}, and not with the start of a study: its head is missing")
    return events, whole


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _check_schema(path: Path, line: bytes) -> None:
    """Raises UserError where a newer program wrote the journal, before anything else is said of it."""
    with suppress(ValueError, AttributeError):
        version = json.loads(line).get("schema_version", SCHEMA)
        if version > SCHEMA:
            raise UserError(
                f"{path} was written by a newer aae_ray (schema {version}, and this one reads up to {SCHEMA}); "
                "use that version"
            )


# ------------------------------------------------------------------------------------------------------------ writing


class JournalError(OSError):
    """The journal cannot be written: nothing further may happen in the study."""


class Journal:
    """The journal of a study that this process owns. Appending is safe from several threads.

    `ensure` is called before anything is written, and raises JournalError when another process owns the study by now.
    """

    def __init__(
        self,
        folder: Path,
        events: list[Event],
        size: int,
        clock: Callable[[], float] = time.time,
        ensure: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.path, self.clock, self.ensure = folder, folder / JOURNAL, clock, ensure
        self.history = events  # all events so far
        self.size = size
        self.guard = threading.Lock()
        self.sealed = False
        self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.ftruncate(self.file, size)
        os.lseek(self.file, size, os.SEEK_SET)

    @classmethod
    def create(
        cls, folder: Path, clock: Callable[[], float] = time.time, ensure: Callable[[], None] = lambda: None
    ) -> "Journal":
        return cls(folder, [], 0, clock, ensure)

    @classmethod
    def open(
        cls, folder: Path, clock: Callable[[], float] = time.time, ensure: Callable[[], None] = lambda: None
    ) -> "Journal":
        """Go on with a journal; a last line that was cut off is taken away. Raises UserError as `read_events` does."""
        return cls(folder, *_read(folder), clock, ensure)

    def append(self, *events: Event) -> list[Event]:
        """Write events, on the disk when this returns; returns them with their time.

        Raises JournalError when they cannot be written, and then, or after Ctrl-C, holds what it held before.
        """
        with self.guard:
            while self.sealed:  # the process is about to end: whatever else happens in it, has not happened
                time.sleep(1)
            return self._write(events)

    def append_last(self, event: Event) -> None:
        """Write the last event of a process that is about to end, from any thread; nothing is written behind it."""
        with self.guard:
            self.sealed = True
            with suppress(JournalError):
                self._write([event])

    def _write(self, events: Sequence[Event]) -> list[Event]:
        self.ensure()
        now = self.clock()
        stamped = [event.model_copy(update={"time": now}) for event in events]
        data = b"".join(event.model_dump_json(exclude_defaults=False).encode() + b"\n" for event in stamped)
        try:
            written = 0
            while written < len(data):
                written += os.write(self.file, data[written:])
            os.fsync(self.file)
            self.size += len(data)
        except BaseException as error:
            with suppress(OSError):
                os.ftruncate(self.file, self.size)
            with suppress(OSError):  # the next line is written over what could not be taken away
                os.lseek(self.file, self.size, os.SEEK_SET)
            if isinstance(error, OSError):
                raise JournalError(error.errno, error.strerror, str(self.path)) from error
            raise
        self.history.extend(stamped)
        return stamped

    def close(self) -> None:
        with suppress(OSError):
            os.close(self.file)


# --------------------------------------------------------------------------------------------------------------- lock


class StudyLock:
    """Makes this process the owner of a study's folder, with a heartbeat that others can see.

    A lock of the operating system ends with its process; where a network file system knows none, the owner's file says
    who was there, and its age whether that process still lives.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = FileLock(folder / LOCK, timeout=0, mode=0o600)
        self.ended = threading.Event()
        self.owner = Owner.this_process()
        self.taken_over: Owner | None = None  # a dead owner, whose lock this was
        self.lost_to: Owner | None = None  # who has taken it over in turn, while this process was stopped
        self.beaten_at = 0.0  # by the clock on the wall: that of this process stands still while the machine sleeps

    def acquire(self, tell: Tell = logger.warning) -> None:
        """Raises UserError when a live process owns the study; may wait for a sign of life, and tells of that."""
        owner = read_owner(self.folder)
        try:
            self.lock.acquire()
        except Timeout:
            raise UserError(self._refusal(owner)) from None
        except OSError as error:
            raise UserError(f"{self.folder / LOCK} cannot be written: {error.strerror}") from None
        try:
            elsewhere = owner is not None and owner.host != socket.gethostname()  # one of this host would hold the lock
            if elsewhere and (alive := live_owner(lambda: read_owner(self.folder), tell)):
                raise UserError(self._refusal(alive))
        except BaseException:
            self.lock.release()
            raise
        self.taken_over = owner
        try:
            (self.folder / OWNER).write_text(self.owner.to_json())
        except OSError as error:
            self.lock.release()
            raise UserError(f"{self.folder / OWNER} cannot be written: {error.strerror}") from None
        self.beaten_at = time.time()
        threading.Thread(target=self._keep, name="heartbeat", daemon=True).start()

    def release(self) -> None:
        self.ended.set()
        self._beat()
        with suppress(OSError):
            if self.lost_to is None:
                (self.folder / OWNER).unlink()
        self.lock.release()

    def ensure(self) -> None:
        """Raises JournalError when the study is another process's, as it may be after a minute without a heartbeat."""
        if time.time() - self.beaten_at > STALE_SECONDS / 2:
            self._beat()
        if (owner := self.lost_to) is not None:
            raise JournalError(errno.EPERM, f"process {owner.pid} on {owner.host} has taken the study over")

    def _keep(self) -> None:
        while self.lost_to is None and not self.ended.wait(HEARTBEAT_SECONDS):
            self._beat()

    def _beat(self) -> None:
        owner = read_owner(self.folder)
        if owner is not None and not owner.same_process_as(self.owner):
            self.lost_to = owner
            return
        with suppress(OSError):
            os.utime(self.folder / OWNER)
            self.beaten_at = time.time()

    def _refusal(self, owner: Owner | None) -> str:
        who = f"process {owner.pid} on {owner.host}" if owner else "another process"
        return f"{self.folder} is in use by {who}; wait for it to end, or stop it first"
