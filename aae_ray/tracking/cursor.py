"""How far a study's records have come, in a file of its folder, so that nothing is sent twice or forgotten."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aae_ray.search import events

CURSOR = "mlflow.json"
RECORDS_LANE, FILES_LANE = "records", "files"
NOTE_SECONDS = 0.5  # between two notes of how far a lane has come
NOTE_SHARE = 50  # ... or so many times what the last one took, where that is longer


class Cursor:
    """How far each lane has come at one address, and the runs there; in a file of the study's folder."""

    def __init__(self, folder: Path, address: str) -> None:
        self.path, self.address = folder / CURSOR, address
        self.lock = threading.RLock()
        self.next_note = 0.0
        self.noted: tuple[int, ...] = ()
        try:
            known = json.loads(self.path.read_text())
        except (OSError, ValueError):  # without it everything is sent once more, which does no harm
            known = {}
        known = known if isinstance(known, dict) else {}
        self.all: dict[str, dict[str, Any]] = {where: own for where, own in known.items() if isinstance(own, dict)}
        own = self.all.setdefault(address, {})
        self.done: dict[str, int] = {lane: own.get(lane, 0) for lane in (RECORDS_LANE, FILES_LANE)}
        self.experiment: str | None = own.get("experiment")  # MLflow's id of the one that the runs are in
        self.runs: dict[str, str] = own.get("runs", {})  # our key of a run -> MLflow's run id
        self.parked: list[dict[str, Any]] = own.get("parked", [])  # event, call, and what MLflow said
        self.registration: dict[str, Any] | None = own.get("registration")  # what came of it, and of which trial it is

    def note(self, *, at_once: bool = False) -> None:
        """Write it down, now and then: the more runs there are, the longer it takes, and the more seldom it is done."""
        with self.lock:
            began = time.monotonic()
            state = (*self.done.values(), len(self.runs), len(self.parked))
            if not at_once and (began < self.next_note or state == self.noted):
                return
            self.noted = state
            self.all[self.address] = {
                **self.done,
                "experiment": self.experiment,
                "runs": self.runs,
                "parked": self.parked,
                "registration": self.registration,
            }
            partial = self.path.with_suffix(".partial")
            with contextlib.suppress(OSError):  # an older note only means that records are sent twice
                descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(descriptor, "w") as file:
                    file.write(json.dumps(self.all))
                partial.replace(self.path)
            self.next_note = began + max(NOTE_SECONDS, NOTE_SHARE * (time.monotonic() - began))


def left_to_send(folder: Path, history: Sequence[events.Event]) -> tuple[int, int] | None:
    """How many of a study's events MLflow does not have, and how many records it has refused, at the address that has
    most of them; None where nothing is known. Reads the study's folder, and changes nothing there.

    What came of a registration is known from MLflow, and is nothing to send.
    """
    try:
        known = json.loads((folder / CURSOR).read_text())
        addresses = [(min(own[RECORDS_LANE], own[FILES_LANE]), len(own["parked"])) for own in known.values()]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    if not addresses:
        return None
    done, refused = max(addresses)
    return sum(not isinstance(event, events.Promoted) for event in history[done:]), refused
