"""What can happen in a study. Its journal is a list of these, and everything else follows from the journal.

Every event has the time at which it was written, in seconds since 1970. Paths are relative to the study's folder, which
may move. Numbers that are not finite are written as strings, as JSON has none.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from aae_ray.datasets.contents import contents_of
from aae_ray.datasets.dataset import Dataset, split_digest
from aae_ray.search.outcomes import FailureClass, Reason, RungVerdict, StudyEnd

SCHEMA = 4  # raised when an older program could misread a journal


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    time: float = 0.0


class PlanRecord(BaseModel):
    """A plan as plain values: see `space.record_plan` and `space.plan_from`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: dict[str, Any]  # by dotted key; tracking.uri without user and password
    space: dict[str, str]  # Optuna's distributions as JSON
    start: tuple[dict[str, Any], ...] = ()
    conditions: dict[str, dict[str, list[Any]]] = Field(default_factory=dict)  # as `conditions.Conditions`


class DataRecord(BaseModel):
    """What is known of the data of a study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    digest: str
    shape: tuple[int, ...]
    classes: int
    train: int
    val: int
    test: int
    class_names: tuple[str, ...] = ()
    split: str = ""  # `split_digest`, which studies of earlier releases did not record
    contents: dict[str, str] = Field(default_factory=dict)  # what was read, for people, by what each line is about

    @property
    def noun(self) -> str:
        """What its examples are called: an image has channels, height and width, a row of numbers has columns."""
        return "rows" if len(self.shape) == 1 else "images"

    @classmethod
    def of(cls, dataset: Dataset) -> "DataRecord":
        return cls(
            name=dataset.name,
            digest=dataset.digest,
            shape=tuple(dataset.shape),
            classes=dataset.classes or 0,
            train=len(dataset.train),
            val=len(dataset.val),
            test=len(dataset.test),
            class_names=dataset.class_names or (),
            split=split_digest(dataset),
            contents=contents_of(dataset).rows(recorded=True),
        )


class PriorTrial(BaseModel):
    """A finished trial of an earlier study, from which the sampler starts."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    params: dict[str, Any]
    values: tuple[float, ...]  # of the objectives, as they are measured
    source: str  # study and trial
    same_settings: bool = False  # all that is not searched was as in this study: to train it again says nothing new


def experiment_name(settings: Mapping[str, Any]) -> str:
    """The experiment of MLflow that a study with these settings, by dotted key, is recorded under."""
    return str(settings["tracking.experiment"] or default_experiment(settings["data.name"]))


def default_experiment(data: str) -> str:
    return f"aae/{data}"


class StudyStarted(_Event):
    event: Literal["study_started"] = "study_started"
    schema_version: int = SCHEMA
    study_id: str
    plan: PlanRecord
    data: DataRecord
    versions: dict[str, str]  # of Python and the packages
    provenance: dict[str, str]  # MLflow's tags on where the code and the command came from
    host: str
    pid: int
    warm_start: tuple[PriorTrial, ...] = ()


class StudyResumed(_Event):
    """Trials that were open, or ended with the study, wait again. `plan` is the whole plan where it has changed."""

    event: Literal["study_resumed"] = "study_resumed"
    schema_version: int = SCHEMA  # of the program that goes on with it, which may be newer than the one that began it
    plan: PlanRecord | None = None
    host: str
    pid: int


class Suggested(_Event):
    event: Literal["suggested"] = "suggested"
    number: int
    params: dict[str, Any]
    sampler_state: dict[str, Any] = Field(default_factory=dict)  # what Optuna's sampler keeps with a trial
    replicate_of: int | None = None  # the trial whose configuration this one trains with another seed


class AttemptStarted(_Event):
    event: Literal["attempt_started"] = "attempt_started"
    number: int
    attempt: int  # counted from 1
    epoch: int  # epochs of the checkpoint that it goes on from
    alone: bool = False  # no other trial shares its device


class Reported(_Event):
    event: Literal["reported"] = "reported"
    number: int
    epoch: int
    history: tuple[dict[str, float], ...]  # metrics of each epoch since the last report, with `epoch`
    finished: bool = False  # trained to the end of its budget
    stop_reason: Reason | None = None  # a health check ended it
    checkpoint: str | None  # folder of the state behind this report
    checkpoint_bytes: int = 0
    training_seconds: float
    evaluation_seconds: float


class Progressed(_Event):
    """How far an epoch is that takes long: the one after so many."""

    event: Literal["progressed"] = "progressed"
    number: int
    epoch: int
    done: int  # batches
    batches: int  # of the epoch


class Decided(_Event):
    """A trial has reached a rung; or one that was paused there goes on, as later results have put it ahead."""

    event: Literal["decided"] = "decided"
    number: int
    rung: int
    values: tuple[float, ...]  # smaller is better
    ahead: int  # trials at this rung that come before it
    reached: int  # trials that had reached the rung
    verdict: RungVerdict

    @model_validator(mode="before")
    @classmethod
    def _of_the_first_schema(cls, values: Any) -> Any:
        """Trials were stopped, not paused, and what was counted were those on better fronts."""
        if not isinstance(values, dict) or "stop" not in values:
            return values
        kept = {key: value for key, value in values.items() if key not in ("stop", "better")}
        verdict = RungVerdict.STOP if values["stop"] else RungVerdict.CONTINUE
        return kept | {"ahead": values["better"], "verdict": verdict}


class Exploited(_Event):
    """A paused trial takes over the weights, optimizer states and parameters of another one, some of these changed."""

    event: Literal["exploited"] = "exploited"
    number: int
    donor: int
    epoch: int
    checkpoint: str  # the donor's
    params: dict[str, Any]


class AttemptFailed(_Event):
    event: Literal["attempt_failed"] = "attempt_failed"
    number: int
    attempt: int
    failure: FailureClass
    message: str
    traceback: str = ""
    log_tail: str = ""  # the last lines of the worker's log
    retry: bool


class Ended(_Event):
    event: Literal["ended"] = "ended"
    number: int
    reason: Reason
    message: str | None = None


class Confirming(_Event):
    """The search is over: its best trials are trained again, each with new seeds, which are trials of their own."""

    event: Literal["confirming"] = "confirming"
    numbers: tuple[int, ...]  # of the trials, the best one first
    seeds: int  # new ones of each


class FileWritten(_Event):
    """A figure, table or page of a trial, or of the study (no number), for the records."""

    event: Literal["file_written"] = "file_written"
    number: int | None
    path: str
    folder: str | None  # of the run's artifacts


class Measured(_Event):
    """What a finalist is worth on the test images."""

    event: Literal["measured"] = "measured"
    number: int
    metrics: dict[str, float]
    remarks: tuple[str, ...]
    tags: dict[str, str]


class Chosen(_Event):
    """The best trial of the study; `registration` is the request to register encoder and decoder, if there is one."""

    event: Literal["chosen"] = "chosen"
    number: int
    registration: dict[str, Any] | None


class Promoted(_Event):
    """What came of the registration: which version it made, and what was decided about the champion of its name."""

    event: Literal["promoted"] = "promoted"
    name: str
    version: int
    champion: bool
    reason: str
    encoder: str | None = None  # the registered encoder that goes with it
    against: int | None = None  # the version that was the champion, where it was held against one
    policy: str | None = None  # tracking.promotion, or what stood for it
    rule: str | None = None  # study.select
    difference: float | None = None  # of scores by that rule over new seeds: above 0 where this one is better
    standard_error: float | None = None  # of the difference
    seeds: int | None = None  # new ones of this version
    champion_seeds: int | None = None  # of the one that it was held against


class Noted(_Event):
    """An error that cost no trial: in a plot, a finalist, the export."""

    event: Literal["noted"] = "noted"
    text: str


class MachinesChanged(_Event):
    """The machines of a cluster by market, from now on, and for how many workers such on demand are asked for."""

    event: Literal["machines_changed"] = "machines_changed"
    present: dict[str, int]  # by market: spot, on-demand
    asked_on_demand: int
    waited: float = 0.0  # seconds in which work waited and no machine on spot came


class StudyStopped(_Event):
    """The study stopped before its planned end; open trials have ended with it, and a resume takes them up again."""

    event: Literal["study_stopped"] = "study_stopped"
    end: StudyEnd
    message: str | None = None


class StudyEnded(_Event):
    event: Literal["study_ended"] = "study_ended"
    message: str | None = None


class Evaluated(_Event):
    """An evaluation outside of a study: the only event of a journal of its own."""

    event: Literal["evaluated"] = "evaluated"
    run_name: str
    experiment: str
    params: dict[str, Any]
    metrics: dict[str, float]
    tags: dict[str, str]
    data: DataRecord
    sheet: str  # path of the sheet of nearest images
    confusion: str | None = None  # path of the confusion matrix, of a classifier


Event = (
    Evaluated
    | StudyStarted
    | StudyResumed
    | Suggested
    | AttemptStarted
    | Reported
    | Progressed
    | Decided
    | Exploited
    | AttemptFailed
    | Ended
    | Confirming
    | FileWritten
    | Measured
    | Chosen
    | Promoted
    | Noted
    | MachinesChanged
    | StudyStopped
    | StudyEnded
)
ADAPTER: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])
