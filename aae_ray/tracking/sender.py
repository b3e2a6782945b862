"""MLflow, written from a study's journal by threads of their own, so that no outage stops or falsifies a study.

Each of two lanes follows the journal with a cursor: metrics, tags and states in one; files and the registration in the
other, so that a figure that cannot be stored delays no status. What a server that is down did not take is sent when it
is back, or later with `python -m aae_ray.tune --sync NAME`. Nothing here ever raises into a study.
"""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aae_ray.errors import UserError
from aae_ray.search import events
from aae_ray.search.contract import trial_name
from aae_ray.search.journal import Journal
from aae_ray.search.ledger import Ledger
from aae_ray.secrets import without_userinfo
from aae_ray.tracking.address import quiet_mlflow, tracking_uri
from aae_ray.tracking.cursor import CURSOR, FILES_LANE, RECORDS_LANE, Cursor
from aae_ray.tracking.mapping import FILES, STUDY, Call, LogMetrics, MlflowMapping
from aae_ray.tracking.views import Pages, server_of, views
from aae_ray.tracking.writer import MOST_METRICS, MlflowWriter, is_permanent, reason_of

logger = logging.getLogger(__name__)

READY_EVENTS = 100  # that are mapped ahead of what was sent
RETRY_SECONDS = (0.5, 1, 2, 5, 10, 20)
LOCK_SECONDS = 15.0
SETTLE_SECONDS = 0.05
MOST_TRIES = 5  # of a record that MLflow refuses
STUCK_SECONDS = 120.0  # a record that fails for so long, while MLflow answers other requests, is at fault itself


def import_early() -> None:
    """Begin to import MLflow in a thread: it takes seconds, which the sending threads then need not spend."""
    quiet_mlflow()

    def imported() -> None:
        with contextlib.suppress(Exception):  # the sending threads meet it again, and say it in a sentence
            import mlflow  # noqa: F401

    threading.Thread(target=imported, name="import mlflow", daemon=True).start()


class Tracker:
    """Follows a journal and sends what it says, without anybody waiting for it.

    `history` is the journal's list of events, which grows while the study runs. a `writer_type` carries out the calls.
    """

    def __init__(
        self, folder: Path, history: Sequence[events.Event], uri: str, writer_type: type[MlflowWriter] = MlflowWriter
    ) -> None:
        self.folder, self.history, self.uri, self.writer_type = folder, history, uri, writer_type
        self.cursor = Cursor(folder, without_userinfo(uri))
        if max(self.cursor.done.values()) > len(
            history
        ):  # the journal has lost its end: all is sent again, which does no harm
            self.cursor.done = dict.fromkeys(self.cursor.done, 0)
            self.cursor.parked.clear()
        self.news = threading.Condition()
        self.closing = threading.Event()
        self.opening = threading.Lock()
        self.patient_until = 0.0  # at the end, a database that is locked is waited for so long
        self.sent = 0  # events that this process has brought to MLflow
        self.lanes = [_Lane(self, RECORDS_LANE), _Lane(self, FILES_LANE)]
        for lane in self.lanes:
            lane.thread.start()

    def wake(self) -> None:
        """There are new events."""
        with self.news:
            self.news.notify_all()

    @property
    def problem(self) -> str | None:
        """Why sending is stuck at the moment: each lane knows it for itself, as the other may have nothing to send."""
        return next((lane.problem for lane in self.lanes if lane.problem is not None), None)

    @property
    def unsent(self) -> int:
        """Events of the journal that MLflow does not have yet."""
        return len(self.history) - min(self.cursor.done.values())

    @property
    def parked(self) -> list[str]:
        """What MLflow said of the records that it refused."""
        return [entry["why"] for entry in self.cursor.parked]

    @property
    def registration(self) -> dict[str, Any] | None:
        """What came of the registration of the trial that was chosen last."""
        for index, event in reversed(list(enumerate(self.history))):
            if isinstance(event, events.Chosen):
                if self.cursor.done[FILES_LANE] <= index:  # what is kept is of an earlier choice
                    return None
                made = dict(self.cursor.registration or {})
                return made if made.pop("trial", None) == trial_name(event.number) else None
        return None

    @property
    def links(self) -> dict[str, str]:
        """Addresses of a study in MLflow's pages by what they show, as far as MLflow has it; none of an evaluation."""
        server, ledger, cursor = server_of(self.uri), self.lanes[0].mapping.ledger, self.cursor
        if server is None or cursor.experiment is None or STUDY not in cursor.runs or ledger.started is None:
            return {}
        pages = Pages(server, cursor.experiment)
        found = views(ledger.started.study_id, ledger.current_plan)
        links = {name: pages.view(view) for name, view in found.items()} | {"study": pages.run(cursor.runs[STUDY])}
        made = self.registration
        return links | ({"model": pages.model(made["name"], made["version"])} if made else {})

    def settle(self, seconds: float) -> None:
        """Wait until MLflow has what was recorded so far, for at most so long, and not for a server that is down."""
        deadline = time.monotonic() + seconds
        patient_until = min(deadline, time.monotonic() + self._patience)
        while self.unsent and time.monotonic() < (patient_until if self.problem else deadline):
            time.sleep(SETTLE_SECONDS)

    @property
    def _patience(self) -> float:
        """Seconds at the end for which a database that is locked is waited for, and a server that is down is not."""
        return LOCK_SECONDS if self.uri.startswith("sqlite:") else 0.0

    def close(self, seconds: float) -> int:
        """Send what is left, for at most so long, and not to a server that is down; returns how much was not sent."""
        deadline = time.monotonic() + seconds
        self.patient_until = min(deadline, time.monotonic() + self._patience)
        self.closing.set()
        self.wake()
        try:
            for lane in self.lanes:
                lane.thread.join(max(deadline - time.monotonic(), 0.0))
        finally:
            self.cursor.note(at_once=True)
        return self.unsent


class _Lane:
    """One thread over the journal: all calls that are, or are not, about files."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        self.tracker, self.name = tracker, name
        self.mapping = MlflowMapping()
        self.ready: list[tuple[int, list[Call]]] = []  # events that were mapped and not sent: index, calls
        self.mapped = 0
        self.writer: MlflowWriter | None = None
        self.problem: str | None = None  # why it is stuck; the other lane may go on meanwhile
        self.stuck_since: float | None = None
        self.retry = [entry for entry in tracker.cursor.parked if entry["lane"] == name]  # refused before
        self.thread = threading.Thread(target=self._run, name=f"mlflow {name}", daemon=True)

    def _run(self) -> None:
        cursor, attempt, alone = self.tracker.cursor, 0, False
        while True:
            last_chance = self.tracker.closing.is_set()  # asked first: what was recorded before is then seen
            try:
                self._map()
            except Exception as error:  # an event that cannot be told must be seen, and must not end the lane
                logger.exception("an event could not be mapped")
                self.problem = reason_of(error)
                return
            if not self.ready and not self.retry:
                cursor.note(at_once=last_chance)
                if last_chance:
                    return
                with self.tracker.news:
                    self.tracker.news.wait_for(lambda: self.mapped < len(self.tracker.history), 0.5)
                continue
            try:
                self._send_some()
                attempt = 0
                self.problem = self.stuck_since = None
            except _Waiting:
                if last_chance and not alone:
                    alone = not self.tracker.lanes[0].thread.is_alive()  # once more: the run may have come meanwhile
                elif alone:
                    return
                time.sleep(0.05)
            except Exception as error:  # a record must never cost a study
                self.problem = reason_of(error)
                if last_chance and time.monotonic() >= self.tracker.patient_until:
                    return
                if last_chance:
                    time.sleep(RETRY_SECONDS[0])
                self.tracker.closing.wait(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
                attempt += 1

    def _map(self) -> None:
        """Fold the events that have come, and keep what they say for this lane."""
        done, history = self.tracker.cursor.done[self.name], self.tracker.history
        while self.mapped < len(history) and len(self.ready) < READY_EVENTS:
            calls = self.mapping.calls(history[self.mapped])
            mine = [call for call in calls if isinstance(call, FILES) == (self.name == FILES_LANE)]
            if self.mapped >= done:
                self.ready.append((self.mapped, mine))
            elif any(entry["event"] == self.mapped for entry in self.retry):
                self._try_again(self.mapped, mine)
            self.mapped += 1

    def _try_again(self, index: int, calls: Sequence[Call]) -> None:
        """Records that were refused by an earlier process: the reason may be gone."""
        cursor, records = self.tracker.cursor, self.tracker.lanes[0]
        while self.name == FILES_LANE and records.retry and records.thread.is_alive():
            time.sleep(0.05)  # a run that was refused may come now
        for entry in [entry for entry in self.retry if entry["event"] == index]:
            self.retry.remove(entry)
            if entry["call"] >= len(calls):  # of an event that this journal does not have any more
                with cursor.lock:
                    cursor.parked.remove(entry)
                continue
            try:
                self._opened().do([calls[entry["call"]]])
            except Exception as error:
                entry["why"] = f"{type(calls[entry['call']]).__name__}: {reason_of(error)}"
            else:
                with cursor.lock:
                    cursor.parked.remove(entry)

    def _send_some(self) -> None:
        """The first events that are ready; metrics of one run that stand behind each other go together.

        Raises whatever MLflow raises that may pass.
        """
        cursor = self.tracker.cursor
        count, batch = 0, list(self.ready[0][1]) if self.ready else []
        if not self.ready:
            self.retry.clear()  # of events that this journal does not have
            return
        if batch and all(isinstance(call, LogMetrics) and call.run == batch[0].run for call in batch):
            for _, calls in self.ready[1:]:
                same = all(isinstance(call, LogMetrics) and call.run == batch[0].run for call in calls)
                more = batch + list(calls)
                if not same or sum(len(call.metrics) for call in more if isinstance(call, LogMetrics)) > MOST_METRICS:
                    break
                batch, count = more, count + 1
        if self.name == FILES_LANE:
            index = self.ready[0][0]
            for call in batch:
                if call.run not in cursor.runs and cursor.done[RECORDS_LANE] <= index:
                    raise _Waiting  # where the other lane is past it, MLflow has refused the run
        try:
            if batch:
                self._opened().do(batch)
        except Exception as error:
            at_fault = self._at_fault(error)
            if self.writer is None or not (is_permanent(error) or at_fault):  # nor is any before there is a server
                raise
            count = 0
            self._one_by_one(*self.ready[0], park=at_fault)
        last = self.ready[count][0]
        del self.ready[: count + 1]
        with cursor.lock:
            cursor.done[self.name] = last + 1
        self.tracker.sent += (count + 1) * (self.name == RECORDS_LANE)
        cursor.note()

    def _at_fault(self, error: BaseException) -> bool:
        """Whether the first file has been answered with errors for long, and MLflow answers all else."""
        answered = hasattr(error, "error_code") or getattr(error, "response", None) is not None
        # A database that takes no records still answers: of records, none is at fault for that.
        if self.name != FILES_LANE or not answered or self.writer is None:
            self.stuck_since = None
            return False
        self.stuck_since = self.stuck_since or time.monotonic()
        if time.monotonic() - self.stuck_since < STUCK_SECONDS:
            return False
        with contextlib.suppress(Exception):
            return self.writer.answers()
        return False

    def _one_by_one(self, index: int, calls: Sequence[Call], *, park: bool = False) -> None:
        """One of the calls of an event is refused: the others must not go with it. `park`: whatever the refusal is."""
        for number, call in enumerate(calls):
            for attempt in range(MOST_TRIES):
                try:
                    self._opened().do([call])
                    break
                except Exception as error:
                    if not (park or is_permanent(error)):
                        raise
                    if attempt + 1 < MOST_TRIES:
                        self.tracker.closing.wait(0.05)
                        continue
                    why = f"{type(call).__name__}: {reason_of(error)}"
                    entry = {"lane": self.name, "event": index, "call": number, "why": why}
                    with self.tracker.cursor.lock:
                        self.tracker.cursor.parked.append(entry)
                    self.tracker.cursor.note(at_once=True)

    def _opened(self) -> MlflowWriter:
        if self.writer is None:
            tracker = self.tracker
            experiment = _experiment_name(tracker.history[0])
            with tracker.opening:  # MLflow may have to make its database, which two threads cannot
                self.writer = tracker.writer_type(tracker.folder, tracker.uri, experiment, tracker.cursor)
        return self.writer


class _Waiting(Exception):
    """The run of a file has not been made yet."""


def _experiment_name(first: events.Event) -> str:
    if isinstance(first, events.Evaluated):
        return first.experiment
    assert isinstance(first, events.StudyStarted)
    return events.experiment_name(first.plan.settings)


# --------------------------------------------------------------------------------------------------------------- sync


class Synced(NamedTuple):
    """What became of the records that had waited."""

    sent: int
    left: int
    parked: list[str]
    registration: dict[str, Any] | None
    uri: str  # without user and password
    links: dict[str, str]  # see `Tracker.links`
    registered_now: bool = False  # what came of the registration was not in the journal yet


def send_pending(journal: Journal, uri: str | None = None, seconds: float = 600) -> Synced:
    """Send what MLflow does not have yet of a study that has ended, or of an evaluation; to `uri`, or to where it was
    recorded.

    Raises UserError when MLflow does not answer.
    """
    folder = journal.folder
    tracker = Tracker(
        folder, journal.history, tracking_uri(uri or _address(journal.history) or recorded_address(folder))
    )
    left = tracker.close(seconds)
    if left and tracker.problem:
        raise UserError(
            f"MLflow at {without_userinfo(tracker.uri)} still does not take the {left} records of {folder}: "
            f"{tracker.problem}"
        )
    made = tracker.registration
    registered_now = made is not None and Ledger.replay(journal.history).promoted is None
    if made is not None and registered_now:
        journal.append(events.Promoted(**made))
    uri = without_userinfo(tracker.uri)
    return Synced(tracker.sent, left, tracker.parked, made, uri, tracker.links, registered_now)


def _address(history: Sequence[events.Event]) -> str | None:
    """The address in force: a resume may have changed it."""
    plans = (event.plan for event in reversed(history) if isinstance(event, events.StudyStarted | events.StudyResumed))
    return next((plan.settings["tracking.uri"] for plan in plans if plan is not None), None)


def recorded_address(folder: Path) -> str | None:
    """Where a study was recorded, if it was in one place and that can still be there."""
    try:
        addresses = list(json.loads((folder / CURSOR).read_text()))
    except (OSError, ValueError):
        return None
    if len(addresses) != 1:
        return None
    path = str(addresses[0]).removeprefix("sqlite:///")
    return None if str(addresses[0]).startswith("sqlite:///") and not Path(path).exists() else str(addresses[0])
