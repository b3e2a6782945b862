"""What a trial's process and the study's process say to each other. Frozen, typed, of plain values only.

Ray Tune carries mappings: `to_result` and `from_result` are the one place that knows their keys.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from aae_ray.search.outcomes import FailureClass, Reason


@dataclass(frozen=True)
class Suggestion:
    """A trial to train: from its beginning, or on from a checkpoint."""

    number: int
    attempt: int
    params: Mapping[str, Any]  # what the sampler drew
    settings: Mapping[str, Any]  # all keys of the trial, over which `params` go, and those of the pruner
    epoch: int = 0  # of the checkpoint
    checkpoint: str | None = None  # relative to the study's folder
    alone: bool = False  # wants its device for itself

    @property
    def name(self) -> str:
        return trial_name(self.number)

    def to_config(self) -> dict[str, Any]:
        return {"suggestion": asdict(self)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Suggestion":
        return cls(**config["suggestion"])


@dataclass(frozen=True)
class Report:
    """What happened since the last report. `checkpoint` is durable before the report is made."""

    number: int
    epoch: int
    history: tuple[Mapping[str, float], ...]  # metrics of each epoch since the last report, with `epoch`
    finished: bool = False  # trained to the end of its budget
    stop_reason: Reason | None = None  # a health check ended it
    checkpoint: str | None = None
    checkpoint_bytes: int = 0
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    @property
    def last(self) -> bool:
        """Whether the trial has nothing more to report."""
        return self.finished or self.stop_reason is not None

    def to_result(self) -> dict[str, Any]:
        plain = asdict(self) | {"history": [dict(metrics) for metrics in self.history]}
        return {"report": plain, "done": self.last}


@dataclass(frozen=True)
class Progress:
    """How far a long epoch is. Nothing is decided by it."""

    number: int
    epoch: int  # epochs trained before the one under way
    done: int  # batches of it
    batches: int

    def to_result(self) -> dict[str, Any]:
        return {"progress": asdict(self), "done": False}


@dataclass(frozen=True)
class Failure:
    """An attempt that cannot go on."""

    number: int
    kind: FailureClass
    message: str
    traceback: str = ""
    log_tail: str = ""
    node: str = ""  # Ray's id of the one that is to blame, where it is

    def to_result(self) -> dict[str, Any]:
        return {"failure": asdict(self), "done": True}


def from_result(result: Mapping[str, Any]) -> Report | Progress | Failure:
    """What a trial said. Raises KeyError for a mapping that is none of these."""
    if "progress" in result:
        return Progress(**result["progress"])
    if "failure" in result:
        values = dict(result["failure"])
        return Failure(**values | {"kind": FailureClass(values["kind"])})
    values = dict(result["report"])
    reason = values["stop_reason"]
    history = tuple(values["history"])
    return Report(**values | {"history": history, "stop_reason": None if reason is None else Reason(reason)})


def trial_name(number: int) -> str:
    return f"t{number:04d}"
