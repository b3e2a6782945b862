"""MLflow, written from a study's journal by threads of their own, so that no outage stops or falsifies a study.

Each of two lanes follows the journal with a cursor: metrics, tags and states in one; files and the registration in the
other, so that a figure that cannot be stored delays no status. What a server that is down did not take is sent when it
is back, or later with `python -m aae_ray.tune --sync NAME`. Nothing here ever raises into a study.
"""

import contextlib
import errno
import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aae_ray.errors import UserError
from aae_ray.search import events
from aae_ray.search.contract import trial_name
from aae_ray.search.journal import Journal
from aae_ray.search.ledger import Ledger
from aae_ray.secrets import redact, without_userinfo
from aae_ray.tracking.address import artifact_location, make_database, quiet_mlflow, tracking_uri
from aae_ray.tracking.registry import register
from aae_ray.tracking.sink import (
    FILES,
    STUDY,
    Call,
    CreateRun,
    LogArtifact,
    LogDataset,
    LogMetrics,
    LogParams,
    LogText,
    MlflowMapping,
    Register,
    SetStatus,
    SetTags,
)

logger = logging.getLogger(__name__)

CURSOR = "mlflow.json"
PARAM_CHARACTERS, TAG_CHARACTERS, BATCH = 6000, 8000, 100
MOST_METRICS = 1000  # in one request, by MLflow's own limit
RETRY_SECONDS = (0.5, 1, 2, 5, 10, 20)
NOTE_SECONDS = 0.5  # between two notes of how far a lane has come
NOTE_SHARE = 50  # ... or so many times what the last one took, where that is longer
LOCK_SECONDS = 15.0
MOST_TRIES = 5  # of a record that MLflow refuses
PERMANENT = {
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_STATE",
    "PERMISSION_DENIED",
}
REFUSING = {403, 413}  # answers of an artifact store that stay the same
STUCK_SECONDS = 120.0  # a record that fails for so long, while MLflow answers other requests, is at fault itself
NOT_WRITABLE = {errno.EROFS, errno.EEXIST}  # of a folder of artifacts, besides what Python has exceptions for
RECORDS_LANE, FILES_LANE = "records", "files"
# What a database or a system says, and how it is told: the first that is found in an error.
CAUSES = (
    ("database or disk is full", "no space left for MLflow's database"),
    ("No space left on device", "no space left on the device"),
    ("attempt to write a readonly database", "MLflow's database is read-only"),
    ("database is locked", "MLflow's database is locked by another process"),
    ("unable to open database file", "MLflow's database file cannot be opened"),
    ("Connection refused", "the MLflow server refuses connections"),
    ("Read timed out", "the MLflow server does not answer in time"),
    ("error responses", "the MLflow server answers with errors"),  # as urllib3 says when it has tried again in vain
    ("Max retries exceeded", "the MLflow server is unreachable"),
)


def import_early() -> None:
    """Begin to import MLflow in a thread: it takes seconds, which the sending threads then need not spend."""
    quiet_mlflow()

    def imported() -> None:
        with contextlib.suppress(Exception):  # the sending threads meet it again, and say it in a sentence
            import mlflow  # noqa: F401

    threading.Thread(target=imported, name="import mlflow", daemon=True).start()


def reason_of(error: BaseException) -> str:
    """The line of an error that says what is wrong, without secrets."""
    whole = str(error)
    for sign, sentence in CAUSES:
        if sign in whole:
            return sentence
    lines = [line.strip() for line in whole.splitlines() if line.strip()]
    return redact(lines[0][:300]) if lines else type(error).__name__


def is_permanent(error: BaseException) -> bool:
    """Whether MLflow would refuse the same record again, rather than being unreachable for now."""
    code = getattr(error, "error_code", None)
    if code == "BAD_REQUEST":  # of MLflow, and not of a proxy before it, whose answer is no JSON
        return type(error).__name__ == "RestException"
    if isinstance(error, json.JSONDecodeError):  # the answer of a proxy
        return False
    kinds = (KeyError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, TypeError, ValueError)
    if getattr(getattr(error, "response", None), "status_code", None) in REFUSING and code is None:
        return True
    not_writable = isinstance(error, OSError) and error.errno in NOT_WRITABLE
    return code in PERMANENT or not_writable or isinstance(error, kinds)


# ------------------------------------------------------------------------------------------------------------- cursor


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


# ------------------------------------------------------------------------------------------------------------ tracker


class Tracker:
    """Follows a journal and sends what it says, without anybody waiting for it.

    `history` is the journal's list of events, which grows while the study runs.
    """

    def __init__(self, folder: Path, history: Sequence[events.Event], uri: str) -> None:
        self.folder, self.history, self.uri = folder, history, uri
        self.cursor = Cursor(folder, without_userinfo(uri))
        if max(self.cursor.done.values()) > len(history):  # the journal has lost its end: what is sent twice is once
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
        chosen = next((event for event in reversed(self.history) if isinstance(event, events.Chosen)), None)
        made = dict(self.cursor.registration or {})
        return made if chosen is not None and made.pop("trial", None) == trial_name(chosen.number) else None

    def run_id(self, run: str) -> str | None:
        return self.cursor.runs.get(run)

    def close(self, seconds: float) -> int:
        """Send what is left, for at most so long, and not to a server that is down; returns how much was not sent."""
        deadline = time.monotonic() + seconds
        if self.uri.startswith("sqlite:"):
            self.patient_until = min(deadline, time.monotonic() + LOCK_SECONDS)
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
        self.client: MlflowWriter | None = None
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
        while self.mapped < len(history) and len(self.ready) < BATCH:
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
                self._writer().do([calls[entry["call"]]])
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
                self._writer().do(batch)
        except Exception as error:
            at_fault = self._at_fault(error)
            if self.client is None or not (is_permanent(error) or at_fault):  # nor is any before there is a server
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
        if self.name != FILES_LANE or not answered or self.client is None:
            self.stuck_since = None
            return False
        self.stuck_since = self.stuck_since or time.monotonic()
        if time.monotonic() - self.stuck_since < STUCK_SECONDS:
            return False
        with contextlib.suppress(Exception):
            return self.client.answers()
        return False

    def _one_by_one(self, index: int, calls: Sequence[Call], *, park: bool = False) -> None:
        """One of the calls of an event is refused: the others must not go with it. `park`: whatever the refusal is."""
        for number, call in enumerate(calls):
            for attempt in range(MOST_TRIES):
                try:
                    self._writer().do([call])
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

    def _writer(self) -> "MlflowWriter":
        if self.client is None:
            with self.tracker.opening:  # MLflow may have to make its database, which two threads cannot
                self.client = MlflowWriter(self.tracker)
        return self.client


class _Waiting(Exception):
    """The run of a file has not been made yet."""


# ------------------------------------------------------------------------------------------------------------- MLflow


class MlflowWriter:
    """Carries out calls at MLflow. Doing one twice does no harm."""

    def __init__(self, tracker: Tracker) -> None:
        quiet_mlflow()
        from mlflow import MlflowClient

        self.folder, self.cursor = tracker.folder, tracker.cursor
        make_database(tracker.uri)
        self.client = MlflowClient(tracking_uri=tracker.uri, registry_uri=tracker.uri)
        self.experiment_id = self._experiment(tracker.uri, _experiment_name(tracker.history[0]))

    def answers(self) -> bool:
        """Whether MLflow answers a request that has nothing to do with any record."""
        return self.client.get_experiment(self.experiment_id) is not None

    def _experiment(self, uri: str, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            # Without the kind the user interface opens in its mode for chat models.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            try:
                return str(self.client.create_experiment(name, artifact_location(uri, name), tags=kind))
            except Exception as error:  # another lane, or study, has just made it
                if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self.client.get_experiment_by_name(name)
        if experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def do(self, calls: Sequence[Call]) -> None:
        """Carry out calls in their order; metrics of one run in one request."""
        metrics = [call for call in calls if isinstance(call, LogMetrics)]
        if len(metrics) == len(calls):
            self._metrics(metrics)
            return
        for call in calls:
            self._do(call)

    def _do(self, call: Call) -> None:
        from mlflow.entities import Param, RunTag

        match call:
            case CreateRun():
                self._create(call)
            case LogParams():
                params = [Param(key, value) for key, value in _texts(call.params, PARAM_CHARACTERS).items()]
                for start in range(0, len(params), BATCH):
                    self.client.log_batch(self._id(call), params=params[start : start + BATCH])
            case LogMetrics():
                self._metrics([call])
            case SetTags():
                tags = [RunTag(key, value) for key, value in _texts(call.tags, TAG_CHARACTERS).items()]
                self.client.log_batch(self._id(call), tags=tags)
            case LogDataset():
                self._dataset(call)
            case SetStatus():
                if call.status == "RUNNING":
                    self.client.update_run(self._id(call), status="RUNNING")
                else:
                    self.client.set_terminated(self._id(call), call.status, int(call.time * 1000))
            case LogArtifact():
                path = self.folder / call.path
                send = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
                send(self._id(call), str(path), call.folder)
            case LogText():
                self.client.log_text(self._id(call), redact(call.text), call.file)
            case Register():
                request = call.request | {"folder": str(self.folder / call.request["folder"])}
                made = register(self.client, self._id(call), request)
                with self.cursor.lock:
                    self.cursor.registration = made | {"trial": call.run}  # an extended study may choose another

    def _create(self, call: CreateRun) -> None:
        if call.run in self.cursor.runs:
            return
        tags = _texts(call.tags, TAG_CHARACTERS) | {"mlflow.runName": call.name}
        if call.run != STUDY:
            tags["mlflow.parentRunId"] = self.cursor.runs[STUDY]
        keys = [key for key in ("aae.study_id", "aae.trial_id", "aae.run_kind") if key in tags]
        query = " and ".join(f"tags.`{key}` = '{tags[key]}'" for key in keys)
        known = self.client.search_runs([self.experiment_id], query, max_results=1)
        start = int(call.time * 1000)
        run = known[0] if known else self.client.create_run(self.experiment_id, start, tags, run_name=call.name)
        with self.cursor.lock:
            self.cursor.runs[call.run] = run.info.run_id

    def _metrics(self, calls: Sequence[LogMetrics]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(key, value, int(call.time * 1000), call.step)
            for call in calls
            for key, value in call.metrics.items()
        ]
        for start in range(0, len(metrics), MOST_METRICS):
            self.client.log_batch(self._id(calls[0]), metrics=metrics[start : start + MOST_METRICS])

    def _dataset(self, call: LogDataset) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = call.data
        profile = {"train": data.train, "val": data.val, "test": data.test, "shape": list(data.shape)}
        source = json.dumps({"name": data.name})
        entity = Dataset(data.name, data.digest, "local", source, profile=json.dumps(profile))
        self.client.log_inputs(self._id(call), [DatasetInput(entity, [InputTag("mlflow.data.context", "train")])])

    def _id(self, call: Call) -> str:
        return self.cursor.runs[call.run]


def _experiment_name(first: events.Event) -> str:
    if isinstance(first, events.Evaluated):
        return first.experiment
    assert isinstance(first, events.StudyStarted)
    settings = first.plan.settings
    return str(settings["tracking.experiment"] or f"aae/{settings['data.name']}")


def _texts(values: Mapping[str, Any], limit: int) -> dict[str, str]:
    return {key: redact(str(value))[:limit] for key, value in values.items() if value is not None}


# --------------------------------------------------------------------------------------------------------------- sync


class Synced(NamedTuple):
    """What became of the records that had waited."""

    sent: int
    left: int
    parked: list[str]
    registration: dict[str, Any] | None


def sync(journal: Journal, uri: str | None = None, seconds: float = 600) -> Synced:
    """Send what MLflow does not have yet of a study that has ended, or of an evaluation; to `uri`, or to where it was
    recorded.

    Raises UserError when MLflow does not answer.
    """
    folder = journal.folder
    tracker = Tracker(folder, journal.history, tracking_uri(uri or _address(journal.history) or _only_address(folder)))
    left = tracker.close(seconds)
    if left and tracker.problem:
        raise UserError(
            f"MLflow at {without_userinfo(tracker.uri)} still does not take the {left} records of {folder}: "
            f"{tracker.problem}"
        )
    made = tracker.registration
    if made is not None and Ledger.replay(journal.history).promoted is None:
        journal.append(events.Promoted(**made))
    return Synced(tracker.sent, left, tracker.parked, made)


def _address(history: Sequence[events.Event]) -> str | None:
    """The address in force: a resume may have changed it."""
    plans = (event.plan for event in reversed(history) if isinstance(event, events.StudyStarted | events.StudyResumed))
    return next((plan.settings["tracking.uri"] for plan in plans if plan is not None), None)


def _only_address(folder: Path) -> str | None:
    """Where the study was recorded, if it was in one place."""
    try:
        addresses = list(json.loads((folder / CURSOR).read_text()))
    except (OSError, ValueError):
        return None
    return str(addresses[0]) if len(addresses) == 1 else None
