"""Which process owns a study, and whether that process still lives. Light: Kubernetes asks for it every few seconds."""

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OWNER = "owner.json"  # in a study's folder; its age is the owner's heartbeat
HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0  # without a heartbeat for so long, the owner on another host counts as dead
LOOK_SECONDS = 1.0  # between two looks for a heartbeat

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Owner:
    """The process that a study belongs to."""

    host: str
    pid: int
    ticks: int | None  # of the host's clock when the process started, where that can be asked for
    heartbeat: float  # seconds since 1970

    @classmethod
    def this_process(cls) -> "Owner":
        return cls(socket.gethostname(), os.getpid(), start_ticks(os.getpid()), time.time())

    @classmethod
    def from_json(cls, text: str | bytes, heartbeat: float) -> "Owner":
        """Raises ValueError, KeyError or TypeError for what is no record of an owner."""
        values: dict[str, Any] = json.loads(text)
        return cls(values["host"], values["pid"], values.get("ticks"), heartbeat)

    def to_json(self) -> str:
        """All but the heartbeat, which is the age of the file."""
        return json.dumps({"host": self.host, "pid": self.pid, "ticks": self.ticks})

    def same_process_as(self, other: "Owner") -> bool:
        return (self.host, self.pid, self.ticks) == (other.host, other.pid, other.ticks)

    @property
    def alive(self) -> bool:
        """Whether it still runs: on this host by its process, elsewhere by its heartbeat."""
        if self.host == socket.gethostname():
            return is_running(self.pid, self.ticks)
        return time.time() - self.heartbeat < STALE_SECONDS


def live_owner(read: Callable[[], Owner | None], tell: Tell) -> Owner | None:
    """The owner if it lives, once that is certain; None where the study is free.

    A machine that was just lost leaves a new heartbeat behind, and only time tells it from one that lives: this waits
    for the next heartbeat of an owner on another host, and for STALE_SECONDS at most, by this machine's own clock.
    """
    first = owner = read()
    if owner is None or not owner.alive or owner.host == socket.gethostname():
        return owner if owner is not None and owner.alive else None
    tell(
        f"process {owner.pid} on {owner.host} had the study {max(time.time() - owner.heartbeat, 0):.0f} s ago; waiting "
        f"for its next sign of life, {STALE_SECONDS:.0f} s at most"
    )
    end = time.monotonic() + STALE_SECONDS
    while owner is not None and owner == first and owner.alive and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
        owner = read()
    return owner if owner is not None and owner != first and owner.alive else None


def is_running(pid: int, ticks: int | None = None) -> bool:
    """Whether a process of this host still runs; with `ticks`, whether it is the one that started then.

    After a restart of the machine, or of a container, its number soon belongs to another process.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    with suppress(OSError):  # a zombie has ended, and waits for its parent to notice
        if _stat(pid)[0] == "Z":
            return False
    return ticks is None or start_ticks(pid) in (ticks, None)


def start_ticks(pid: int) -> int | None:
    """When a process of this host started, in ticks of its clock; None where the system does not tell."""
    with suppress(OSError):
        return int(_stat(pid)[19])
    return None


def _stat(pid: int) -> list[str]:
    """The fields of Linux's /proc/PID/stat behind the name, which may have spaces and brackets itself."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def read_owner(folder: Path) -> Owner | None:
    """Who owned the study last; None where nobody has, or the last owner has ended in order."""
    try:
        return Owner.from_json((folder / OWNER).read_text(), (folder / OWNER).stat().st_mtime)
    except (OSError, ValueError, KeyError, TypeError):
        return None
