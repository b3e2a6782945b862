"""What kind of failure an error is, and what is worth saying about it."""

import glob
import os
import platform
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
from ray import exceptions as ray_errors
from ray.train import WorkerGroupError
from ray.train.v2._internal import exceptions as train_errors
from ray.train.v2.api.exceptions import PreemptionError

from aae_ray.errors import UserError
from aae_ray.search.contract import Failure
from aae_ray.search.outcomes import FailureClass

LOG_LINES = 40
LOG_BYTES = 20_000


class BadNode(UserError):
    """What this process' node lacks, and another one may have."""

    node = ""  # Ray's id of it

    @classmethod
    def here(cls, text: str) -> "BadNode":
        error = cls(f"{platform.node()} {text}")
        error.node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
        return error


# The first row that fits decides.
TYPES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], FailureClass], ...] = (
    ((torch.OutOfMemoryError, MemoryError, ray_errors.OutOfMemoryError), FailureClass.OUT_OF_MEMORY),
    (BadNode, FailureClass.BAD_NODE),
    (UserError, FailureClass.BAD_DATA),
    # Of an actor's end its node tells at once, and Ray waits a second for that: an unavailable one's node is gone.
    ((PreemptionError, ray_errors.NodeDiedError, ray_errors.ActorUnavailableError), FailureClass.PREEMPTED),
    (
        (
            train_errors.WorkerGroupStartupTimeoutError,
            train_errors.InsufficientClusterResourcesError,
            ray_errors.ActorUnschedulableError,
            ray_errors.TaskUnschedulableError,
            ray_errors.RuntimeEnvSetupError,
        ),
        FailureClass.CANNOT_START,
    ),
    ((ray_errors.GetTimeoutError, train_errors.WorkerHealthCheckTimeoutError), FailureClass.HUNG),
    (
        (
            ray_errors.RayActorError,
            ray_errors.WorkerCrashedError,
            ray_errors.LocalRayletDiedError,
            ray_errors.ObjectLostError,
            ray_errors.ActorPlacementGroupRemoved,
            train_errors.WorkerGroupStartupFailedError,  # a worker died while it started
        ),
        FailureClass.LOST_WORKER,
    ),
)
# Errors that have no type of their own.
TEXTS: tuple[tuple[str, FailureClass], ...] = (
    (r"CU(BLAS|DNN)_STATUS_ALLOC_FAILED", FailureClass.OUT_OF_MEMORY),
    (r"CUDNN_STATUS_NOT_SUPPORTED.*out of memory", FailureClass.OUT_OF_MEMORY),
    (r"CUDA( error:)? out of memory", FailureClass.OUT_OF_MEMORY),
    (r"DefaultCPUAllocator: can't allocate memory", FailureClass.OUT_OF_MEMORY),
    (r"(Timed out|timed out|timeout).*(waiting|operation|collective|recv|send)", FailureClass.HUNG),
    (r"Connection (closed|reset) by (remote )?peer|remote process exited", FailureClass.LOST_WORKER),
)
# How Ray says that it killed an actor for its memory. Of any unexpected death it says that the kernel may have done so.
LOW_MEMORY = re.compile(r"(runs|running) low on memory|NODE_OUT_OF_MEMORY")
GUESSES = re.compile(r" Some common causes include.*", re.DOTALL)  # Ray's, of any death
NODE = re.compile(r" \(IP: [^)]*\)")  # of no use to a reader, where Ray says how much memory a node has
# A machine that was taken away without notice looks like one that was lost.
PREEMPTED = re.compile(r"preempted|AUTOSCALER_DRAIN_PREEMPTED|node has died|node was terminated", re.IGNORECASE)
# Where workers failed differently: a rank that loses its peer says less than the peer.
PRIORITY = (
    FailureClass.PREEMPTED,
    FailureClass.OUT_OF_MEMORY,
    FailureClass.BAD_NODE,
    FailureClass.BAD_DATA,
    FailureClass.BUG,
    FailureClass.CANNOT_START,
    FailureClass.HUNG,
    FailureClass.LOST_WORKER,
)


@dataclass(frozen=True)
class Failed:
    """An order that could not be carried out, or a gang that has ended."""

    kind: FailureClass
    message: str
    traceback: str = ""
    log_tail: str = ""
    rank: int | None = None
    node: str = ""  # Ray's id of the one that is to blame, where it is

    def of_trial(self, number: int) -> Failure:
        """What the study is told of it."""
        return Failure(number, self.kind, self.message, self.traceback, self.log_tail, self.node)


class GangError(RuntimeError):
    """A gang has ended, or is stuck: its trial cannot go on with it."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed

    def __reduce__(self) -> tuple[type["GangError"], tuple[Failed]]:
        """From one process to another: an exception is made anew from its arguments, and the message is not enough."""
        return type(self), (self.failed,)


def describe(error: BaseException, rank: int | None = None, log_tail: str = "") -> Failed:
    """An error as its class, the line that says what is wrong, and everything else; of one rank's, where the workers of
    a group failed."""
    kind, cause, failed_rank = _decisive(error, rank)
    text = "".join(traceback.format_exception(error)).strip()
    node = cause.node if isinstance(cause, BadNode) else ""
    return Failed(kind, _first_line(cause), text, log_tail, failed_rank, node)


def _decisive(error: BaseException, rank: int | None) -> tuple[FailureClass, BaseException, int | None]:
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        failures: dict[int, BaseException] = dict(error.worker_failures)
        chosen = {rank: failures[rank]} if rank is not None and rank in failures else failures
        verdicts = [_decisive(failure, number) for number, failure in sorted(chosen.items())]
        return min(verdicts, key=lambda verdict: PRIORITY.index(verdict[0]))
    for cause in _causes(error):
        kind = _class_of(cause)
        if kind is not None:
            return kind, cause, rank
    return FailureClass.BUG, next(reversed(list(_unwrapped(error)))), rank


def _class_of(error: BaseException) -> FailureClass | None:
    text = str(error)
    if isinstance(error, ray_errors.RayError | train_errors.WorkerGroupStartupFailedError):
        if getattr(error, "preempted", False) or PREEMPTED.search(text):
            return FailureClass.PREEMPTED
        if LOW_MEMORY.search(text):
            return FailureClass.OUT_OF_MEMORY
    for types, kind in TYPES:
        if isinstance(error, types):
            return kind
    if isinstance(error, RuntimeError | OSError):  # torch's own errors, and those of its collectives
        for pattern, kind in TEXTS:
            if re.search(pattern, text, re.DOTALL):
                return kind
    return None


def _unwrapped(error: BaseException) -> Iterator[BaseException]:
    """The error and what Ray has wrapped in it, from the outside in."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        inner = next(
            (
                getattr(current, name)
                for name in ("controller_failure", "health_check_failure", "_base_exc", "cause")
                if isinstance(getattr(current, name, None), BaseException)
            ),
            None,
        )
        current = inner


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What Ray has wrapped, the innermost first, and then the errors that these were raised from."""
    wrapped = list(_unwrapped(error))
    yield from reversed(wrapped)
    cause = wrapped[-1].__cause__
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _first_line(error: BaseException) -> str:
    """The line that says what is wrong. Ray's own errors tell it last; those of Python and torch, first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, UserError):
        return str(error)
    if not lines:
        return type(error).__name__
    if isinstance(error, train_errors.WorkerGroupStartupFailedError):  # with a worker's traceback, as text
        return GUESSES.sub("", lines[-1])
    if isinstance(error, ray_errors.RayActorError):
        return GUESSES.sub("", f"{lines[0]} {lines[-1]}" if len(lines) > 1 else lines[0])
    return NODE.sub("", lines[0]) if isinstance(error, ray_errors.RayError) else f"{type(error).__name__}: {lines[0]}"


def log_tail(pid: int) -> str:
    """The last lines that a process of Ray's on this node has logged, or nothing where they cannot be read."""
    try:
        node = ray._private.worker._global_node
        folder = node.get_logs_dir_path() if node is not None else ""
        files = sorted(glob.glob(os.path.join(glob.escape(folder), f"worker-*-{pid}.*"))) if folder else []
        return "\n".join(line for file in files for line in _last_lines(Path(file))[-LOG_LINES:])
    except Exception:  # a log that cannot be read must not hide the failure
        return ""


def _last_lines(path: Path) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES))
        return file.read().decode(errors="replace").splitlines()[-LOG_LINES:]


def failure_of(number: int, error: BaseException | None) -> Failure:
    """The failure of a trial whose process has ended, or refused to go on."""
    if error is None:
        return Failure(number, FailureClass.LOST_WORKER, "its process has ended, and nothing is known of the reason")
    inner = next((cause.failed for cause in _causes(error) if isinstance(cause, GangError)), None)
    return (inner or describe(error)).of_trial(number)
