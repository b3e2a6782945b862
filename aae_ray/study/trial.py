"""A trial as Ray Tune sees it: maps Tune's calls onto a gang, and Tune's checkpoints onto the gang's state."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from aae_ray.settings import Settings, replace
from aae_ray.study.gang import Failed, Gang, Order, Reply, Save, Saved, Start, Train
from aae_ray.study.pruner import rungs
from aae_ray.training import checkpoint, health, pictures
from aae_ray.training.loop import Interval

REPORT_SECONDS = 5.0  # a long interval reports in between, at the end of an epoch
FAILURES = (health.DIVERGED, "bad_input", "out_of_memory")


class GangTrial(tune.Trainable):  # type: ignore[misc]
    """One step trains up to the next rung. With `reuse_actors` the next trial runs on the same, warm gang."""

    stopped: str | None
    failure: Failed | None

    def setup(self, config: dict[str, Any], base: Settings) -> None:
        self.base = base
        self.gang = Gang(f"gang-{self.trial_id}", base)
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._start(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Metrics by epoch, and how the trial stands: `finished` after its whole budget, `stop_reason`, `failed`."""
        if self.failure is None:
            self.until = next((rung for rung in self.rungs if rung > self.epoch), self.run.train.epochs)
            reply = self._ask(Train(self.until, REPORT_SECONDS))
            if isinstance(reply, Interval):
                return self._report(reply)
        assert self.failure is not None
        return {
            "epoch": self.epoch,
            "history": [],
            "finished": False,
            "done": True,
            "failed": True,
            "stop_reason": self.failure.reason,
            "message": self.failure.message,
        }

    def _report(self, interval: Interval) -> dict[str, Any]:
        self.epoch, self.stopped = interval.epoch, interval.stop_reason
        finished = self.epoch >= self.run.train.epochs and not self.stopped
        return {
            **{name: value for name, value in interval.metrics.items() if name != "epoch"},
            "epoch": self.epoch,
            "history": list(interval.history),
            "finished": finished,
            "stop_reason": self.stopped,
            "failed": self.stopped in FAILURES,
            "done": finished or self.stopped is not None,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The gang's state, and its pictures where trials are compared: at rungs and at the end."""
        if self.failure is None:
            saved = self._ask(Save(pictures=self.epoch == self.until or self.stopped is not None))
            if isinstance(saved, Saved):
                checkpoint.save(saved.state, checkpoint_dir)
                if saved.pictures is not None:
                    pictures.save(saved.pictures, Path(checkpoint_dir))
        if self.failure is not None:
            (Path(checkpoint_dir) / "failure.txt").write_text(f"{self.failure.reason}: {self.failure.message}\n")

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        if (Path(checkpoint_dir) / checkpoint.FILE).exists():
            self._start(self.config, checkpoint.load(checkpoint_dir))

    def cleanup(self) -> None:
        self.gang.close()

    def _start(self, config: Mapping[str, Any], state: dict[str, Any] | None = None) -> None:
        self.run = replace(self.base, config)
        self.rungs = rungs(self.run.study.pruner, self.run.train.epochs)
        self.failure = None
        self.stopped = None
        self.until = self.epoch = len(state["history"]) if state else 0
        self._ask(Start(self.run, state))

    def _ask(self, order: Order) -> Reply:
        reply = self.gang.ask(order)
        if isinstance(reply, Failed):
            self.failure = reply
        return reply
