"""What MLflow is told of each event of a study: the parent run, the children, the best decoder, under which names.

A pure mapping: it knows no MLflow, and neither sends nor waits.
"""

import math
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from aae_ray.reporting import text
from aae_ray.reporting.cards import SAMPLE_SHEET, summary
from aae_ray.search import events
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import Reason, RungVerdict, State, StudyEnd
from aae_ray.search.space import record_plan
from aae_ray.search.trial_record import TrialRecord
from aae_ray.settings import Settings, flatten, replace
from aae_ray.tracking.provenance import DEVICE
from aae_ray.tracking.views import IMAGE_SERIES, UNFINISHED, views

STUDY = "study"  # the key of the parent run; children have the names of their trials
# MLflow's pages draw KILLED as they draw FAILED. A trial that was behind, or ended by a health check, has not crashed:
# what became of it says the tag `aae.outcome`, and why `aae.stop_reason`.
STATUS = {
    State.COMPLETE: "FINISHED",
    State.PAUSED: "FINISHED",
    State.STOPPED: "FINISHED",
    State.FAILED: "FAILED",
    UNFINISHED: "KILLED",
}
COUNTED = (State.COMPLETE, State.STOPPED, State.FAILED)  # of the study's progress
STUDY_KEYS = ("study.", "tracking.")  # settings of the study, not of a trial
FAILURE_FILE = "failure.txt"


@dataclass(frozen=True)
class Call:
    """One thing to do at MLflow, for the run of this key."""

    run: str


@dataclass(frozen=True)
class CreateRun(Call):
    name: str
    tags: dict[str, Any]
    time: float


@dataclass(frozen=True)
class LogParams(Call):
    params: dict[str, Any]


@dataclass(frozen=True)
class LogMetrics(Call):
    metrics: dict[str, float]
    step: int
    time: float


@dataclass(frozen=True)
class SetTags(Call):
    tags: dict[str, Any]


@dataclass(frozen=True)
class SetExperimentTags(Call):
    """Tags of the experiment that the run is in."""

    tags: dict[str, str]


@dataclass(frozen=True)
class LogDataset(Call):
    data: events.DataRecord


@dataclass(frozen=True)
class SetStatus(Call):
    """RUNNING, or one of the ends, with its time in seconds."""

    status: str
    time: float


@dataclass(frozen=True)
class LogArtifact(Call):
    path: str  # relative to the study's folder
    folder: str | None


@dataclass(frozen=True)
class LogImage(Call):
    """One of a series of pictures, which MLflow shows as a chart with a slider over the steps."""

    path: str  # relative to the study's folder
    key: str
    step: int
    time: float


@dataclass(frozen=True)
class LogText(Call):
    text: str
    file: str


@dataclass(frozen=True)
class Register(Call):
    request: dict[str, Any]


FILES = (LogArtifact, LogImage, LogText, Register)  # the slow lane


class MlflowMapping:
    """Folds the events of a study, and says of each what to do at MLflow."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.ends = 0  # of trials, so far: one that was taken up again ends again
        self.front: set[str] = set()  # trials that were told to be on the front

    def calls(self, event: events.Event) -> list[Call]:
        """What to do about the next event."""
        fresh = self.ledger.fresh(event) if isinstance(event, events.Reported) else []
        stopped = isinstance(event, events.StudyStopped)
        was_open = [*self.ledger.open.values(), *self.ledger.paused.values()] if stopped else []
        self.ledger.apply(event)
        ledger = self.ledger
        match event:
            case events.Evaluated():
                return _evaluated(event)
            case events.StudyStarted():
                return self._started(event)
            case events.StudyResumed():
                again = [trial.name for trial in ledger.open.values() if trial.started is not None]
                running = {"aae.outcome": str(State.RUNNING)}
                return [
                    *(SetStatus(run, "RUNNING", event.time) for run in (STUDY, *again)),
                    *(SetTags(run, running) for run in again),
                    *([self._views(event.time)] if event.plan is not None else []),
                ]
            case events.AttemptStarted():
                return self._attempt(ledger.trials[event.number], event)
            case events.Reported():
                name = ledger.trials[event.number].name
                return [LogMetrics(name, self._metrics(each), int(each["epoch"]), event.time) for each in fresh]
            case events.Exploited():
                return self._exploited(event)
            case events.AttemptFailed():
                return self._failed(ledger.trials[event.number], event)
            case events.Decided():
                return self._decided(ledger.trials[event.number], event)
            case events.Ended():
                self.ends += 1
                return [*self._ended(ledger.trials[event.number]), self._progress(event.time)]
            case events.FileWritten():
                run = STUDY if event.number is None else ledger.trials[event.number].name
                return [LogArtifact(run, event.path, event.folder), *_series(run, event)]
            case events.Measured():
                name = ledger.trials[event.number].name
                return [SetTags(name, dict(event.tags)), LogMetrics(name, _finite(event.metrics), 0, event.time)]
            case events.Chosen():
                trial = ledger.trials[event.number]
                calls: list[Call] = [SetTags(STUDY, {"aae.best_trial": trial.name})]
                return calls + ([Register(trial.name, event.registration)] if event.registration else [])
            case events.StudyStopped() | events.StudyEnded():
                return [call for trial in was_open for call in self._ended(trial)] + self._over(event)
            case _:
                return []

    def _started(self, event: events.StudyStarted) -> list[Call]:
        plan = self.ledger.current_plan
        read = {f"aae.data.{about}": line for about, line in event.data.contents.items()}
        tags = self._tags() | read | {"aae.run_kind": "study"}
        searched = {f"space.{key}": text.domain(plan.spec(key)) for key in plan.space}
        shared = {key: value for key, value in flatten(plan.settings).items() if key not in plan.space}
        shared["tracking.uri"] = record_plan(plan).settings["tracking.uri"]
        return [
            CreateRun(STUDY, f"study-{event.study_id}", tags, event.time),
            LogParams(STUDY, searched | shared),
            LogDataset(STUDY, event.data),
            self._views(event.time),
        ]

    def _views(self, time: float) -> Call:
        """The study's views, which hold the settings that are searched; of an extended study others."""
        assert self.ledger.started is not None
        found = views(self.ledger.started.study_id, self.ledger.current_plan)
        return SetExperimentTags(STUDY, dict(view.tag(time) for view in found.values()))

    def _metrics(self, metrics: dict[str, float]) -> dict[str, float]:
        """The finite ones, objectives first: MLflow shows them in the order in which they came."""
        return _finite({name: metrics[name] for name in self.ledger.objectives if name in metrics} | metrics)

    def _tags(self) -> dict[str, Any]:
        started = self.ledger.started
        assert started is not None
        return {
            "aae.study_id": started.study_id,
            "aae.seed": self.ledger.current_plan.settings.seed,
            "aae.data_digest": started.data.digest,
            **started.provenance,
        }

    def _attempt(self, trial: TrialRecord, event: events.AttemptStarted) -> list[Call]:
        settings = replace(trial.plan.settings, trial.params)
        study = self.ledger.current_plan.settings.study  # a resume may have given its workers other resources
        device = replace(settings, {"study.resources_per_worker": study.resources_per_worker}).device
        tags = {DEVICE: device, "aae.attempt": event.attempt, "aae.outcome": str(State.RUNNING)}
        if event.attempt > 1:
            return [SetTags(trial.name, tags), SetStatus(trial.name, "RUNNING", event.time)]
        assert self.ledger.started is not None
        params = trial_params(settings)
        searched = {key: params[key] for key in trial.params}  # first: MLflow shows them as they came
        tags |= self._tags() | {"aae.seed": settings.seed, "aae.run_kind": "trial", "aae.trial_id": trial.name}
        if trial.replicate_of is not None:
            tags["aae.replicate_of"] = self.ledger.trials[trial.replicate_of].name
        name = f"{trial.name}-{text.describe(trial.params)}".rstrip("-")
        return [
            CreateRun(trial.name, name, tags, event.time),
            LogParams(trial.name, searched | params),
            LogDataset(trial.name, self.ledger.started.data),
        ]

    def _decided(self, trial: TrialRecord, event: events.Decided) -> list[Call]:
        """A trial that waits at a rung says so, and no more once it goes on."""
        if event.verdict is RungVerdict.PAUSE:
            return [SetTags(trial.name, {"aae.paused_at_epoch": event.rung, "aae.outcome": str(State.PAUSED)})]
        if trial.state is not State.WAITING:
            return []
        # Empty, as MLflow keeps a tag until it gets another.
        return [SetTags(trial.name, {"aae.paused_at_epoch": "", "aae.outcome": str(State.RUNNING)})]

    def _exploited(self, event: events.Exploited) -> list[Call]:
        """A run's params stay as they were: what has changed under way are metrics, at the epoch of the change."""
        trial, donor = self.ledger.trials[event.number], self.ledger.trials[event.donor]
        numbers = {
            f"schedule/{name}": float(value)
            for name, value in event.params.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        tags = {f"aae.donor.epoch_{event.epoch}": donor.name}
        return [SetTags(trial.name, tags), LogMetrics(trial.name, numbers, event.epoch, event.time)]

    def _failed(self, trial: TrialRecord, event: events.AttemptFailed) -> list[Call]:
        body = "\n\n".join(part for part in (event.message, event.traceback, event.log_tail) if part)
        tags = SetTags(trial.name, {"aae.failure_class": event.failure, "aae.message": event.message})
        first = events.AttemptStarted(time=event.time, number=trial.number, attempt=1, epoch=0)
        begun: list[Call] = self._attempt(trial, first) if trial.started is None else []  # it never had workers
        return [
            *begun,
            tags,
            LogText(trial.name, body, f"attempt_{event.attempt}_{FAILURE_FILE}"),
        ]

    def _ended(self, trial: TrialRecord) -> list[Call]:
        if trial.started is None and not trial.failures:
            return []
        assert trial.ended is not None and trial.reason is not None
        best = {f"best/{name}": value for name, (value, _) in trial.best.items()}
        first = self.ledger.objectives[0]
        if first in trial.best:
            best["best/epoch"] = float(trial.best[first][1])
        calls: list[Call] = [LogMetrics(trial.name, best, 0, trial.ended)] if best else []
        outcome = outcome_of(trial)
        tags = {"aae.outcome": outcome, "aae.stop_reason": trial.reason, "aae.message": trial.message}
        calls += [SetTags(trial.name, tags), SetStatus(trial.name, STATUS[outcome], trial.ended)]
        if trial.replicate_of is not None and not trial.reason.resumable:
            calls.append(self._over_seeds(self.ledger.trials[trial.replicate_of], trial.ended))
        return calls

    def _over_seeds(self, first: TrialRecord, time: float) -> Call:
        """Means and standard errors of a configuration's objectives, at the run of its first seed."""
        judged, seeds = self.ledger.judged(first), len(self.ledger.seeds(first).values)
        metrics = {f"seeds/mean/{name}": judged[name] for name in self.ledger.objectives}
        metrics |= {f"seeds/se/{name}": error for name, error in self.ledger.standard_errors(first).items()}
        return LogMetrics(first.name, _finite(metrics | {"seeds/count": float(seeds)}), seeds, time)

    def _progress(self, time: float) -> Call:
        ledger, metrics = self.ledger, dict[str, float]()
        if ledger.count(State.COMPLETE):
            for index, name in enumerate(ledger.objectives):
                best = ledger.best_of(index)
                assert best is not None
                metrics[f"study/best_{name.partition('/')[2]}"] = ledger.judged(best)[name]
            metrics["study/front_size"] = float(len(ledger.front()))
        metrics |= {f"study/trials_{state}": float(ledger.count(state)) for state in COUNTED}
        return LogMetrics(STUDY, metrics, self.ends, time)

    def _over(self, event: events.StudyStopped | events.StudyEnded) -> list[Call]:
        stopped = self.ledger.end in (StudyEnd.USER, StudyEnd.INTERRUPTED)
        status = "KILLED" if stopped else "FINISHED" if self.ledger.front() else "FAILED"
        if self.ledger.end not in (StudyEnd.PLANNED, StudyEnd.USER, StudyEnd.INTERRUPTED):
            status = "FAILED"
        tags = {"mlflow.note.content": summary(self.ledger), "aae.message": event.message}
        return [*self._front(), SetTags(STUDY, tags), SetStatus(STUDY, status, event.time)]

    def _front(self) -> list[Call]:
        """Which trials are on the front, and which are so no more since the study was extended."""
        before, self.front = self.front, {trial.name for trial in self.ledger.front()}
        told = dict.fromkeys(sorted(self.front - before), "yes") | dict.fromkeys(sorted(before - self.front), "")
        return [SetTags(name, {"aae.front": text}) for name, text in told.items()]


def outcome_of(trial: TrialRecord) -> str:
    """What became of a trial that has ended, in a word that MLflow can be asked for."""
    assert trial.reason is not None
    if trial.reason is Reason.PAUSED:
        return State.PAUSED
    return UNFINISHED if trial.reason.resumable else trial.state


def _series(run: str, event: events.FileWritten) -> list[Call]:
    """The samples of a trial once more, as the picture of their epoch: a trial that was paused has several."""
    path = PurePath(event.path)
    epoch = re.fullmatch(r"epoch_(\d+)", path.parent.name)
    if epoch is None or path.name != SAMPLE_SHEET:
        return []
    return [LogImage(run, event.path, IMAGE_SERIES, int(epoch[1]), event.time)]


def _evaluated(event: events.Evaluated) -> list[Call]:
    return [
        CreateRun(STUDY, event.run_name, event.tags, event.time),
        LogParams(STUDY, event.params),
        LogDataset(STUDY, event.data),
        LogMetrics(STUDY, _finite(event.metrics), 0, event.time),
        *(LogArtifact(STUDY, path, "figures") for path in (event.sheet, event.confusion) if path),
        SetStatus(STUDY, "FINISHED", event.time),
    ]


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "epoch" and math.isfinite(value)}


def trial_params(settings: Settings) -> dict[str, Any]:
    """Every setting of a trial under its dotted key, constants too, so that runs compare."""
    return {key: value for key, value in flatten(settings).items() if not key.startswith(STUDY_KEYS)}
