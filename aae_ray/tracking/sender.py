"""MLflow, written by one thread of one process, so that no outage stops or falsifies a study.

Whatever is to be recorded is first appended to a spool, a file of JSON lines in the study's folder. A thread sends the
lines in order, in batches, and notes how far it has come; what a server that is down did not take is sent when it is
back, or later with `python -m aae_ray.tune --replay FOLDER`. Nothing here ever raises into a study.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aae_ray.errors import UserError
from aae_ray.tracking.address import artifact_location, quiet_mlflow
from aae_ray.tracking.registry import register

SPOOL, CURSOR = "mlflow_spool.jsonl", "mlflow_spool.cursor.json"
STUDY = "study"  # the key of the parent run among the runs of a spool
PARAM_CHARACTERS, TAG_CHARACTERS, BATCH = 6000, 8000, 100
MOST_METRICS = 1000  # in one request, by MLflow's own limit
RETRY_SECONDS = (0.5, 1, 2, 5, 10, 20)
PERMANENT = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_STATE",
}


def import_early() -> None:
    """Begin to import MLflow in a thread: it takes seconds, which the sending thread then need not spend."""
    quiet_mlflow()

    def imported() -> None:
        with contextlib.suppress(Exception):  # the sending thread meets it again, and says it in a sentence
            import mlflow  # noqa: F401

    threading.Thread(target=imported, name="import mlflow", daemon=True).start()


class Spool:
    """The lines to send, and how far they have been sent. Appending is all that the study waits for."""

    def __init__(self, folder: Path) -> None:
        self.path, self.cursor_path = folder / SPOOL, folder / CURSOR
        cursor = json.loads(self.cursor_path.read_text()) if self.cursor_path.exists() else {}
        self.sent: int = cursor.get("sent", 0)
        self.runs: dict[str, str] = cursor.get("runs", {})  # our key of a run -> MLflow's run id
        self.results: dict[str, Any] = cursor.get("results", {})
        self.lock = threading.Condition()
        whole = self.path.read_text() if self.path.exists() else ""
        whole = whole[: whole.rfind("\n") + 1]  # a crash may have cut the last line off
        if self.path.exists():
            os.truncate(self.path, len(whole))
        self.lines = whole.splitlines()
        self.sent = min(self.sent, len(self.lines))  # the note may have outlived lines that a crash took
        self.sent_before = self.sent  # by another process
        self.broken: str | None = None  # why lines are kept in memory alone
        self.file = self.path.open("a", encoding="utf-8")

    def append(self, line: Mapping[str, Any]) -> None:
        with self.lock:
            text = json.dumps(line, default=str)
            if self.broken is None:
                try:
                    self.file.write(text + "\n")
                    self.file.flush()
                except OSError as error:
                    self.broken = str(error)
            self.lines.append(text)
            self.lock.notify_all()

    def next(self, timeout: float, most: int) -> list[str]:
        """The first unsent lines, at most so many; an empty list when there is none after this many seconds."""
        with self.lock:
            self.lock.wait_for(lambda: self.sent < len(self.lines), timeout)
            return self.lines[self.sent : self.sent + most]

    def advance(self, lines: int) -> None:
        with self.lock:
            self.lines[self.sent : self.sent + lines] = [""] * lines  # sent: the memory is free
            self.sent += lines
            with contextlib.suppress(OSError):  # an older note only means that lines are sent twice
                partial = self.cursor_path.with_suffix(".partial")
                partial.write_text(json.dumps({"sent": self.sent, "runs": self.runs, "results": self.results}))
                partial.replace(self.cursor_path)
            self.lock.notify_all()

    @property
    def unsent(self) -> int:
        return len(self.lines) - self.sent


class Tracker:
    """Takes records without waiting, and sends them in order from a thread."""

    def __init__(self, folder: Path, uri: str | None = None, experiment: str | None = None) -> None:
        self.spool = Spool(folder)
        self.problem: str | None = None  # why sending is stuck at the moment
        self.dropped: list[str] = []  # what MLflow refused for good
        self.closing = threading.Event()
        if uri is not None:
            self.spool.append({"do": "open", "uri": uri, "experiment": experiment})
        self.thread = threading.Thread(target=self._send_all, name="mlflow", daemon=True)
        self.thread.start()

    # ------------------------------------------------------------------------------------------------ what is recorded

    def create_run(self, run: str, name: str, tags: Mapping[str, Any], started: float) -> None:
        self.spool.append(
            {
                "do": "create",
                "run": run,
                "name": name,
                "tags": _texts(tags, TAG_CHARACTERS),
                "time": int(started * 1000),
            }
        )

    def log_params(self, run: str, params: Mapping[str, Any]) -> None:
        self.spool.append({"do": "params", "run": run, "params": _texts(params, PARAM_CHARACTERS)})

    def log_metrics(self, run: str, metrics: Mapping[str, float], step: int) -> None:
        self.spool.append(
            {
                "do": "metrics",
                "run": run,
                "metrics": dict(metrics),
                "step": step,
                "time": int(time.time() * 1000),
            }
        )

    def set_tags(self, run: str, tags: Mapping[str, Any]) -> None:
        self.spool.append({"do": "tags", "run": run, "tags": _texts(tags, TAG_CHARACTERS)})

    def log_dataset(self, run: str, name: str, digest: str, context: str, profile: Mapping[str, Any]) -> None:
        self.spool.append(
            {
                "do": "dataset",
                "run": run,
                "name": name,
                "digest": digest,
                "context": context,
                "profile": dict(profile),
            }
        )

    def log_artifact(self, run: str, path: Path, folder: str | None = None) -> None:
        """A file or folder that stays where it is until it is sent."""
        self.spool.append({"do": "artifact", "run": run, "path": str(path.absolute()), "folder": folder})

    def end_run(self, run: str, status: str, ended: float) -> None:
        self.spool.append({"do": "end", "run": run, "status": status, "time": int(ended * 1000)})

    def register(self, run: str, request: Mapping[str, Any]) -> None:
        """Register a decoder; what came of it is under `registration` in `results`."""
        self.spool.append({"do": "register", "run": run, "request": dict(request)})

    @property
    def results(self) -> dict[str, Any]:
        return self.spool.results

    def run_id(self, run: str) -> str | None:
        return self.spool.runs.get(run)

    def close(self, seconds: float) -> int:
        """Send what is left, for at most this long, and not to a server that is down; returns how much was not sent."""
        self.closing.set()  # ends a pause: what is stuck is tried once more
        self.thread.join(seconds)
        return self.spool.unsent

    # --------------------------------------------------------------------------------------------------- how it is sent

    def _send_all(self) -> None:
        sender, attempt, most = Sender(self.spool), 0, BATCH
        while not (self.closing.is_set() and self.spool.unsent == 0):
            texts = self.spool.next(timeout=0.5, most=most)
            if not texts:
                continue
            last_chance = self.closing.is_set()
            lines: list[dict[str, Any]] = []
            try:
                lines = together(texts)
                sender.send(lines)
            except Exception as error:  # a record must never cost a study
                if sender.client is None or not is_permanent(error):  # no record is at fault before there is a server
                    self.problem = _first_line(error)
                    if last_chance:
                        return
                    self.closing.wait(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
                    attempt += 1
                    continue
                if len(lines) > 1:  # one of them is at fault, and the others must not go with it
                    most = 1
                    continue
                kind = lines[0].get("do", "unreadable") if lines else "unreadable"
                self.dropped.append(f"{kind}: {_first_line(error)}")
            self.problem, attempt, most = None, 0, BATCH
            self.spool.advance(max(len(lines), 1))


def together(texts: Sequence[str]) -> list[dict[str, Any]]:
    """The first of these lines, read, and the metrics of the same run that stand right behind metrics: an interval of
    many epochs is few requests. Raises ValueError when the first line is no record."""
    lines = [_read(texts[0])]
    if not _is_metrics(lines[0]):
        return lines
    count = len(lines[0]["metrics"])
    for text in texts[1:]:
        try:
            line = _read(text)
        except ValueError:
            break  # its turn comes
        if not _is_metrics(line) or line["run"] != lines[0]["run"]:
            break
        count += len(line["metrics"])
        if count > MOST_METRICS:
            break
        lines.append(line)
    return lines


def _read(text: str) -> dict[str, Any]:
    line = json.loads(text)
    if not isinstance(line, dict):
        raise ValueError(f"{text[:60]} is no record")
    return line


def _is_metrics(line: Mapping[str, Any]) -> bool:
    return line.get("do") == "metrics" and isinstance(line.get("metrics"), dict) and "run" in line


class Sender:
    """Carries out lines of a spool at MLflow. Doing a line twice does no harm."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.client: Any = None
        self.experiment_id = ""
        self.actions: dict[str, Callable[..., None]] = {
            "open": self._open,
            "create": self._create,
            "params": self._params,
            "metrics": self._metrics,
            "tags": self._tags,
            "dataset": self._dataset,
            "artifact": self._artifact,
            "end": self._end,
            "register": self._register,
        }

    def send(self, lines: Sequence[dict[str, Any]]) -> None:
        """One line, or several that belong together."""
        kind = lines[0]["do"]
        if self.client is None and kind != "open":  # a replay begins behind the line that opened the spool
            self._open(json.loads(self.spool.path.open().readline()))
        self.actions[kind](*lines)

    def _open(self, line: dict[str, Any]) -> None:
        quiet_mlflow()
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=line["uri"], registry_uri=line["uri"])
        experiment = client.get_experiment_by_name(line["experiment"])
        if experiment is None:
            place = artifact_location(line["uri"], line["experiment"])
            # Without the kind the user interface opens in its mode for chat models.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            self.experiment_id = client.create_experiment(line["experiment"], artifact_location=place, tags=kind)
        else:
            self.experiment_id = experiment.experiment_id
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(self.experiment_id)
        self.client = client
        self.spool.results["experiment_id"] = self.experiment_id

    def _create(self, line: dict[str, Any]) -> None:
        tags = line["tags"] | {"mlflow.runName": line["name"]}
        if line["run"] != STUDY:
            tags["mlflow.parentRunId"] = self.spool.runs[STUDY]
        query = " and ".join(f"tags.`{key}` = '{tags[key]}'" for key in ("aae.study_id", "aae.trial_id") if key in tags)
        found = self.client.search_runs(
            [self.experiment_id], f"{query} and tags.`aae.run_kind` = '{tags['aae.run_kind']}'", max_results=1
        )
        run = (
            found[0]
            if found
            else self.client.create_run(self.experiment_id, start_time=line["time"], tags=tags, run_name=line["name"])
        )
        self.spool.runs[line["run"]] = run.info.run_id

    def _params(self, line: dict[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, value) for key, value in line["params"].items()]
        for start in range(0, len(params), BATCH):
            self.client.log_batch(self._id(line), params=params[start : start + BATCH])

    def _metrics(self, *lines: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(key, value, line["time"], line["step"]) for line in lines for key, value in line["metrics"].items()
        ]
        self.client.log_batch(self._id(lines[0]), metrics=metrics)

    def _tags(self, line: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(self._id(line), tags=[RunTag(key, value) for key, value in line["tags"].items()])

    def _dataset(self, line: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(
            line["name"],
            line["digest"],
            "local",
            json.dumps({"name": line["name"]}),
            profile=json.dumps(line["profile"]),
        )
        self.client.log_inputs(self._id(line), [DatasetInput(data, [InputTag("mlflow.data.context", line["context"])])])

    def _artifact(self, line: dict[str, Any]) -> None:
        send = self.client.log_artifacts if os.path.isdir(line["path"]) else self.client.log_artifact
        send(self._id(line), line["path"], line["folder"])

    def _end(self, line: dict[str, Any]) -> None:
        self.client.set_terminated(self._id(line), line["status"], line["time"])

    def _register(self, line: dict[str, Any]) -> None:
        self.spool.results["registration"] = register(self.client, self._id(line), line["request"])

    def _id(self, line: dict[str, Any]) -> str:
        return self.spool.runs[line["run"]]


def replay(folder: Path, seconds: float = 600) -> tuple[int, int, list[str]]:
    """Send what is left in the spool of a study's folder; returns how many records were sent, how many are left, and
    what was said of those that MLflow refused for good.

    Raises UserError when there is no spool, and when the server still does not answer.
    """
    if not (folder / SPOOL).exists():
        raise UserError(f"{folder} is not the folder of a study: there is no {SPOOL} in it")
    tracker = Tracker(folder)
    left = tracker.close(seconds)
    if left and tracker.problem:
        raise UserError(f"MLflow still does not take the {left} records of {folder}: {tracker.problem}")
    refused = tracker.dropped
    return tracker.spool.sent - tracker.spool.sent_before - len(refused), left, refused


def is_permanent(error: Exception) -> bool:
    """Whether MLflow would refuse the same record again, rather than being out of reach for now."""
    code = getattr(error, "error_code", None)
    return code in PERMANENT or isinstance(error, (KeyError, FileNotFoundError, TypeError, ValueError))


def _texts(values: Mapping[str, Any], limit: int) -> dict[str, str]:
    return {key: str(value)[:limit] for key, value in values.items() if value is not None}


def _first_line(error: Exception) -> str:
    with contextlib.suppress(IndexError):
        return str(error).splitlines()[0][:300]
    return type(error).__name__
