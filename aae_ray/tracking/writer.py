"""MLflow itself: how calls are carried out there, and what its errors mean."""

import errno
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aae_ray.secrets import redact
from aae_ray.tracking.address import artifact_location, make_database, mlflow_client
from aae_ray.tracking.cursor import Cursor
from aae_ray.tracking.mapping import (
    STUDY,
    Call,
    CreateRun,
    LogArtifact,
    LogDataset,
    LogImage,
    LogMetrics,
    LogParams,
    LogText,
    Register,
    SetExperimentTags,
    SetStatus,
    SetTags,
)
from aae_ray.tracking.registry import register
from aae_ray.tracking.views import quoted

PARAM_CHARACTERS, TAG_CHARACTERS, BATCH = 6000, 8000, 100
SERIES = "images"  # MLflow's folder for series of pictures, a name of which begins with key and step
MOST_METRICS = 1000  # in one request, by MLflow's own limit
PERMANENT = {
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_STATE",
    "PERMISSION_DENIED",
}
REFUSING = {403, 413}  # answers of an artifact store that stay the same
NOT_WRITABLE = {errno.EROFS, errno.EEXIST}  # of a folder of artifacts, besides what Python has exceptions for
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


class MlflowWriter:
    """Carries out calls at MLflow. Doing one twice does no harm."""

    def __init__(self, folder: Path, uri: str, experiment: str, cursor: Cursor) -> None:
        """`experiment` is made where there is none; the runs of `cursor` are known. Raises what MLflow raises."""
        self.folder, self.cursor = folder, cursor
        make_database(uri)
        self.client = mlflow_client(uri)
        self.experiment_id = self._experiment(uri, experiment)
        with cursor.lock:
            cursor.experiment = self.experiment_id

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
            case SetExperimentTags():
                for key, value in call.tags.items():
                    self.client.set_experiment_tag(self.experiment_id, key, value)
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
            case LogImage():
                self._image(call)
            case LogText():
                self.client.log_text(self._id(call), redact(call.text), call.file)
            case Register():
                with self.cursor.lock:
                    self.cursor.registration = None  # what is known is of an earlier choice
                request = self._found(call.request)
                made = register(self.client, self._id(call), request)
                with self.cursor.lock:
                    self.cursor.registration = made | {"trial": call.run}  # an extended study may choose another

    def _found(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A request with its folders where they are on this machine, those of the encoder within it as well."""
        found = dict(request) | {"folder": str(self.folder / request["folder"])}
        return found | {"encoder": self._found(request["encoder"])} if request.get("encoder") else found

    def _create(self, call: CreateRun) -> None:
        if call.run in self.cursor.runs:
            return
        tags = _texts(call.tags, TAG_CHARACTERS) | {"mlflow.runName": call.name}
        if call.run != STUDY:
            tags["mlflow.parentRunId"] = self.cursor.runs[STUDY]
        keys = [key for key in ("aae.study_id", "aae.trial_id", "aae.run_kind") if key in tags]
        query = " and ".join(f"tags.`{key}` = {quoted(tags[key])}" for key in keys)
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

    def _image(self, call: LogImage) -> None:
        """A picture of a series, once: MLflow gives each call's file a name of its own."""
        from PIL import Image

        run_id, stem = self._id(call), f"{SERIES}/{call.key}+step+{call.step}+"
        if any(file.path.startswith(stem) for file in self.client.list_artifacts(run_id, SERIES)):
            return
        with Image.open(self.folder / call.path) as image:
            timestamp = int(call.time * 1000)
            self.client.log_image(run_id, image, key=call.key, step=call.step, timestamp=timestamp, synchronous=True)

    def _id(self, call: Call) -> str:
        return self.cursor.runs[call.run]


def _texts(values: Mapping[str, Any], limit: int) -> dict[str, str]:
    return {key: redact(str(value))[:limit] for key, value in values.items() if value is not None}
