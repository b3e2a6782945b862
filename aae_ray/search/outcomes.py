"""How a trial can end, and what a failure allows: one table for trials, conductor, MLflow and the screen."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from aae_ray.training import health


class State(StrEnum):
    """How a trial stands."""

    WAITING = "waiting"  # suggested, or interrupted and taken up again; has no gang
    RUNNING = "running"
    PAUSED = "paused"  # behind others at a rung: goes on when that changes
    COMPLETE = "complete"
    STOPPED = "stopped"
    FAILED = "failed"


class RungVerdict(StrEnum):
    """What becomes of a trial at a rung."""

    CONTINUE = "continue"
    PAUSE = "pause"
    STOP = "stop"


class FailureClass(StrEnum):
    """What kind of failure ended an attempt of a trial."""

    OUT_OF_MEMORY = "out_of_memory"
    DIVERGED = health.DIVERGED
    BAD_DATA = "bad_data"
    BAD_NODE = "bad_node"  # its node lacks what others have: the study's folder, its data, a GPU that PyTorch sees
    LOST_WORKER = "lost_worker"
    PREEMPTED = "preempted"  # its machine was taken away, with notice or without
    HUNG = "hung"
    CANNOT_START = "cannot_start"
    NOT_SAVED = "not_saved"  # trained to its end, and its weights could not be written
    BUG = "bug"


@dataclass(frozen=True)
class Retries:
    """How often an attempt that failed so is repeated from the trial's last checkpoint: so many times, or as a setting
    of the study says."""

    most: int | Literal["max_failures", "max_preemptions"]
    advice: str = ""


RETRIES: dict[FailureClass, Retries] = {
    FailureClass.OUT_OF_MEMORY: Retries(
        1, "give fewer trials a device (study.resources_per_worker), smaller batches (train.batch_size) or layers"
    ),
    FailureClass.DIVERGED: Retries(0, "lower the learning rates"),
    FailureClass.BAD_DATA: Retries(0),
    FailureClass.BAD_NODE: Retries("max_failures", "mend that node, or take it out of the cluster"),
    FailureClass.LOST_WORKER: Retries("max_failures"),
    FailureClass.PREEMPTED: Retries("max_preemptions"),
    FailureClass.HUNG: Retries(1, "raise study.step_timeout if an epoch takes that long"),
    FailureClass.CANNOT_START: Retries(1, "raise study.start_timeout if nodes take that long, or ask for less"),
    FailureClass.NOT_SAVED: Retries("max_failures", "see whether study.folder has room and can be written"),
    FailureClass.BUG: Retries(0),
}


class Reason(StrEnum):
    """Why a trial has ended. The values of failure classes and of health checks are among them."""

    COMPLETED = "completed"
    PRUNED = "pruned"
    PAUSED = "paused"  # at a rung, when the study ended
    BUDGET = "budget"  # the study's time or worker-hours were used up
    USER = "user"  # Ctrl-C, SIGTERM or SIGHUP
    INTERRUPTED = "interrupted"  # the study's process, or Ray under it, exited unexpectedly
    OUT_OF_MEMORY = FailureClass.OUT_OF_MEMORY
    DIVERGED = FailureClass.DIVERGED
    BAD_DATA = FailureClass.BAD_DATA
    BAD_NODE = FailureClass.BAD_NODE
    LOST_WORKER = FailureClass.LOST_WORKER
    PREEMPTED = FailureClass.PREEMPTED
    HUNG = FailureClass.HUNG
    CANNOT_START = FailureClass.CANNOT_START
    NOT_SAVED = FailureClass.NOT_SAVED
    BUG = FailureClass.BUG
    SATURATED = health.SATURATED
    DEAD = health.DEAD
    COLLAPSED = health.COLLAPSED
    CLUSTERS_COLLAPSED = health.CLUSTERS_COLLAPSED
    WORSE_THAN_MEAN = health.WORSE_THAN_MEAN

    @property
    def state(self) -> State:
        """The state of a trial that has ended for this reason."""
        if self is Reason.COMPLETED:
            return State.COMPLETE
        return State.FAILED if self.value in set(FailureClass) else State.STOPPED

    @property
    def resumable(self) -> bool:
        """Whether a resumed study takes such a trial up again: it was the study that ended, not the trial."""
        return self in (Reason.PAUSED, Reason.BUDGET, Reason.USER, Reason.INTERRUPTED)


# Failures that say nothing of a trial's parameters.
OF_THE_MACHINE = (
    Reason.BAD_DATA,
    Reason.BAD_NODE,
    Reason.LOST_WORKER,
    Reason.PREEMPTED,
    Reason.HUNG,
    Reason.CANNOT_START,
    Reason.NOT_SAVED,
)

# Ends that leave open what a trial would have come to.
INCONCLUSIVE = (*OF_THE_MACHINE, Reason.PRUNED, *(reason for reason in Reason if reason.resumable))


class StudyEnd(StrEnum):
    """Why a study has stopped, or ended as planned."""

    PLANNED = "planned"  # all trials, or the space, or the time of the budget
    USER = "user"
    FAILURES = "failures"  # too many failed trials in a row, or the same bug in the first ones
    DISK = "disk"  # no room left under the study's folder
    STORAGE = "storage"  # a study.folder that is elsewhere took nothing for too long
    RAY = "ray"  # Ray ended under the study
    ERROR = "error"  # an error in the search itself
    INTERRUPTED = "interrupted"  # its process exited unexpectedly: found by the next resume, or by --close
