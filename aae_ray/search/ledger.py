"""The ledger of a study: what became of each trial. Screen, tables and MLflow all read from it."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aae_ray.search.objectives import fronts
from aae_ray.search.space import Plan

State = Literal["running", "complete", "stopped", "failed"]

# Reasons for an end that are not a sign of illness: those are in training.health.
COMPLETED, PRUNED, BUDGET, USER, ERROR = "completed", "pruned", "budget", "user", "error"


@dataclass
class TrialRecord:
    """One trial. `metrics` are those of its last epoch; costly ones are absent where they were not measured."""

    number: int
    trial_id: str
    params: dict[str, Any]
    state: State = "running"
    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, tuple[float, int]] = field(default_factory=dict)  # metric -> best value so far, its epoch
    stop_reason: str | None = None
    message: str | None = None
    attempts: int = 1
    gangs: int = 1  # of the latest attempt in a process of its own
    started: float = field(default_factory=time.time)
    ended: float | None = None

    @property
    def name(self) -> str:
        return f"t{self.number:04d}"


class Ledger:
    """All trials of a study in the order in which they began."""

    def __init__(self, plan: Plan) -> None:
        self.objectives = plan.settings.study.objectives
        self.signs = [1.0 if direction == "min" else -1.0 for direction in plan.directions]
        self.trials: dict[str, TrialRecord] = {}
        self.began = time.time()

    def begin(self, trial_id: str, params: Mapping[str, Any]) -> TrialRecord:
        """A trial begins, or begins again after a failure."""
        if trial_id in self.trials:
            record = self.trials[trial_id]
            record.attempts += 1
            record.gangs = 1
            record.state, record.stop_reason, record.message = "running", None, None
        else:
            self.trials[trial_id] = TrialRecord(len(self.trials), trial_id, dict(params))
        return self.trials[trial_id]

    def report(self, trial_id: str, result: Mapping[str, Any]) -> list[Mapping[str, float]]:
        """Take a result; returns the epochs that are new (a retried trial reports some again)."""
        record = self.trials[trial_id]
        fresh = [metrics for metrics in result["history"] if metrics["epoch"] > record.epoch]
        for metrics in fresh:
            for name, sign in zip(self.objectives, self.signs, strict=True):
                value = metrics.get(name, math.nan)
                if math.isfinite(value) and (name not in record.best or sign * value < sign * record.best[name][0]):
                    record.best[name] = (value, int(metrics["epoch"]))
        if fresh:
            record.epoch, record.metrics = int(fresh[-1]["epoch"]), dict(fresh[-1])
        gangs = result.get("attempt", 1)
        record.attempts, record.gangs = record.attempts + gangs - record.gangs, gangs
        record.stop_reason, record.message = result.get("stop_reason"), result.get("message")
        if result.get("failed"):
            record.state = "failed"
        elif result.get("finished"):
            record.state, record.stop_reason = "complete", COMPLETED
        return fresh

    def end(
        self, trial_id: str, reason: str | None = None, *, failed: bool = False, message: str | None = None
    ) -> TrialRecord:
        """A trial ends; what its last result said counts before `reason`."""
        record = self.trials[trial_id]
        if record.ended is None:
            record.ended = time.time()
            if failed:
                record.state, record.stop_reason, record.message = "failed", ERROR, message
            elif record.state == "running":
                record.state, record.stop_reason = "stopped", record.stop_reason or reason or PRUNED
            if record.state == "complete" and not self._values(record):
                record.state, record.stop_reason = "failed", "diverged"
        return record

    @property
    def records(self) -> list[TrialRecord]:
        """All trials; a copy, because the live screen reads from a thread of its own."""
        return list(self.trials.values())

    def count(self, state: State) -> int:
        return sum(record.state == state for record in self.records)

    def complete(self) -> list[TrialRecord]:
        return [record for record in self.records if record.state == "complete" and self._values(record)]

    def values(self, record: TrialRecord) -> list[float]:
        """Objective values of a complete trial, in the order of the objectives, smaller the better."""
        return [sign * record.metrics[name] for name, sign in zip(self.objectives, self.signs, strict=True)]

    def front(self) -> list[TrialRecord]:
        """The complete trials that no other one dominates, best first objective first."""
        complete = self.complete()
        ranks = fronts([self.values(record) for record in complete])
        return sorted((r for r, rank in zip(complete, ranks, strict=True) if rank == 0), key=self.values)

    def _values(self, record: TrialRecord) -> list[float] | None:
        found = [record.metrics.get(name, math.nan) for name in self.objectives]
        return found if all(map(math.isfinite, found)) else None
