"""A trial as Ray Tune sees it: maps Tune's calls onto a gang, and Tune's checkpoints onto the gang's state."""

import contextlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

from aae_ray.evaluation import figure_data as pictures
from aae_ray.execution.gang import Begin, Failed, Gang, GangError, Train, Trained
from aae_ray.execution.mailbox import open_office
from aae_ray.search.pruner import rungs
from aae_ray.settings import Settings, replace
from aae_ray.training import checkpoint, health

REPORT_SECONDS = 5.0  # a long interval reports in between, at the end of an epoch
MUSTER_SECONDS = 60.0  # gangs wait for each other; not for ever, a cluster may take minutes to start its nodes
GANG_DIED = "gang_died"
FAILURES = (health.DIVERGED, "bad_input", "out_of_memory", GANG_DIED)


def trainable(run: Settings, office: ActorHandle, kind: type["GangTrial"] | None = None) -> Any:
    """What Tune runs: a trial whose own process asks for no CPU, its gang does."""
    return tune.with_resources(
        tune.with_parameters(kind or GangTrial, base=run, office=office),
        tune.PlacementGroupFactory([{"CPU": 0, "memory": 1048576}]),
    )


class GangTrial(tune.Trainable):  # type: ignore[misc]
    """One step trains up to the next rung. With `reuse_actors` the next trial runs on the same, warm gang."""

    gang: Gang | None  # None when the last one has died
    state: bytes | None  # where a new gang would go on
    saved: Trained | None  # the last interval: what its state was, and which pictures belong to it
    failure: Failed | None

    def setup(self, config: dict[str, Any], base: Settings, office: ActorHandle) -> None:
        self.base, self.office = base, office
        self.gang = self._new_gang()
        with contextlib.suppress(RayError):  # without the office there is nobody to wait for
            ray.get(self.office.arrive.remote(MUSTER_SECONDS))
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Metrics by epoch, and how the trial stands: `finished` after its whole budget, `stop_reason`, `failed`."""
        reply = self._train()
        if isinstance(reply, Trained):
            self.saved, self.state, self.epoch = reply, reply.state, reply.interval.epoch
            return self._report(reply)
        self.failure = reply
        return {
            "epoch": self.epoch,
            "history": [],
            "attempt": self.attempt,
            "finished": False,
            "done": True,
            "failed": True,
            "stop_reason": reply.reason,
            "message": reply.message,
        }

    def _train(self) -> Trained | Failed:
        """Train on the gang, or on a new one from the last state when it dies, `study.max_failures` times."""
        while True:
            try:
                if self.gang is None:
                    self.gang = self._new_gang()
                    self.gang.post(self._order(Begin(self.run, self.state)))
                elif not self.gang.under_way:
                    self.gang.post(self._order())
                return self.gang.reply()
            except GangError as error:
                gang, self.gang = self.gang, None
                if gang is not None and not gang.close():
                    raise  # it cannot be told to end, and holds what a new one needs: it ends with this process
                if self.attempt > self.run.study.max_failures:
                    return Failed(GANG_DIED, str(error))
                self.attempt += 1

    def _order(self, begin: Begin | None = None) -> Train:
        until = next((rung for rung in self.rungs if rung > self.epoch), self.run.train.epochs)
        return Train(until, REPORT_SECONDS, begin)

    def _report(self, trained: Trained) -> dict[str, Any]:
        interval = trained.interval
        finished = interval.epoch >= self.run.train.epochs and not interval.stop_reason
        return {
            **{name: value for name, value in interval.metrics.items() if name != "epoch"},
            "epoch": interval.epoch,
            "history": list(interval.history),
            "attempt": self.attempt,
            "finished": finished,
            "stop_reason": interval.stop_reason,
            "failed": interval.stop_reason in FAILURES,
            "done": finished or interval.stop_reason is not None,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The state behind the last report, and its pictures."""
        if self.saved is not None:
            checkpoint.write(self.saved.state, checkpoint_dir)
            if self.saved.pictures is not None:
                pictures.save(self.saved.pictures, Path(checkpoint_dir))
        if self.failure is not None:
            (Path(checkpoint_dir) / "failure.txt").write_text(f"{self.failure.reason}: {self.failure.message}\n")

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        if (Path(checkpoint_dir) / checkpoint.FILE).exists():
            state = checkpoint.load(checkpoint_dir)
            self._begin(self.config, checkpoint.pack(state), len(state["history"]))

    def cleanup(self) -> None:
        if self.gang is not None:
            self.gang.close()

    def _begin(self, config: Mapping[str, Any], state: bytes | None = None, epoch: int = 0) -> None:
        """Begin a trial. Its gang starts to train at once: by the time that Tune asks, there may be a result."""
        self.run, self.state, self.epoch = replace(self.base, config), state, epoch
        self.rungs = rungs(self.run.study.pruner, self.run.train.epochs)
        self.saved = self.failure = None
        self.attempt = 1
        if self.gang is not None:
            self.gang.post(self._order(Begin(self.run, state)))

    def _new_gang(self) -> Gang:
        # Tune may start a trial anew before its last process has ended: a number would not tell their gangs apart.
        name = f"gang-{self.trial_id}-{uuid.uuid4().hex[:8]}"
        try:
            gang = Gang(name, self.base, self.office)
        except RayActorError:  # the study's office is gone: this process opens one of its own
            self.office = open_office(1)
            gang = Gang(name, self.base, self.office)
        try:
            gang.wait_until_ready()
        except GangError:
            gang.close()
            raise
        return gang
