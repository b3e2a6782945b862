"""What became of one trial, as the ledger has it."""

from dataclasses import dataclass, field

from aae_ray.search import events
from aae_ray.search.contract import trial_name
from aae_ray.search.outcomes import FailureClass, Reason, State
from aae_ray.search.space import Plan


@dataclass
class WorkerTime:
    """Seconds for which workers were held, all of them together."""

    training: float = 0.0
    evaluation: float = 0.0
    waiting: float = 0.0  # held, and neither training nor evaluating: starts, messages, lost work

    @property
    def busy(self) -> float:
        return self.training + self.evaluation

    @property
    def held(self) -> float:
        return self.busy + self.waiting


@dataclass
class TrialRecord:
    """One trial. `metrics` are those of its last epoch; costly ones are absent where they were not measured."""

    number: int
    params: dict[str, object]
    plan: Plan  # the study's when the trial was suggested
    suggested: float
    workers: int  # of the attempt under way, or of the next one as far as is known
    sampler_state: dict[str, object] = field(default_factory=dict)
    replicate_of: int | None = None  # the trial of the same configuration with the first seed
    replicates: list[int] = field(default_factory=list)  # trials of this configuration with other seeds
    donors: list[tuple[int, int]] = field(default_factory=list)  # epoch, and trial whose weights it took over there
    state: State = State.WAITING
    epoch: int = 0
    rung: int = 0  # the last one that was decided on
    metrics: dict[str, float] = field(default_factory=dict)
    intermediate_values: dict[int, float] = field(default_factory=dict)  # epoch -> first objective, where reported
    best: dict[str, tuple[float, int]] = field(default_factory=dict)  # metric -> best value so far, its epoch
    reason: Reason | None = None
    message: str | None = None
    attempts: int = 0
    failures: list[events.AttemptFailed] = field(default_factory=list)
    alone: bool = False  # the next attempt wants its device for itself
    started: float | None = None
    attempt_started: float | None = None  # of the attempt under way
    saved: float | None = None  # when the attempt under way last saved its state, or began
    busy_before: float = 0.0  # seconds of training and evaluation when the attempt began
    heard: float | None = None  # when the attempt under way last reported, or told of its progress
    batches: tuple[int, int] | None = None  # done, and of all of the epoch under way, where it takes long
    ended: float | None = None
    last_report: events.Reported | None = None
    checkpoint: str | None = None
    checkpoint_epoch: int = 0  # before `epoch` where the last state could not be written
    checkpoint_bytes: int = 0
    worker_time: WorkerTime = field(default_factory=WorkerTime)
    test: events.Measured | None = None
    files: set[str] = field(default_factory=set)  # figures and tables that the journal has of it

    @property
    def name(self) -> str:
        return trial_name(self.number)

    @property
    def open(self) -> bool:
        """Whether there may be something left to do."""
        return self.state in (State.WAITING, State.RUNNING, State.PAUSED)

    @property
    def attempt(self) -> int:
        """The number of the attempt that is under way, or comes next."""
        return self.attempts if self.attempt_started is not None else self.attempts + 1

    @property
    def epochs(self) -> int:
        """The trial's budget."""
        return self.plan.settings.train.epochs

    def failed(self, kind: FailureClass) -> int:
        """Attempts that failed in this way."""
        return sum(event.failure is kind for event in self.failures)


@dataclass
class Failures:
    """How often attempts failed in one way, and how the last of them did."""

    count: int = 0
    last: events.AttemptFailed | None = None
    lost_seconds: float = 0.0  # of workers, from the last saved state to the failure: what has to be done again
