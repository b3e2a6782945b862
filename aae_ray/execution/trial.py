"""A trial as Ray Tune sees it: maps Tune's calls onto a gang, and writes the gang's states into the study's folder."""

import contextlib
import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from pydantic import ValidationError
from ray import tune
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

from aae_ray.datasets.remote import reason_of
from aae_ray.errors import UserError
from aae_ray.evaluation import figure_data
from aae_ray.execution import orders
from aae_ray.execution.durable import durable_folder
from aae_ray.execution.failures import BadNode, Failed, GangError, describe
from aae_ray.execution.gang import Gang, LocalGang, WorkerGang
from aae_ray.execution.mailbox import start_mailbox_hub
from aae_ray.execution.orders import Begin, Train, Trained
from aae_ray.search.contract import Progress, Report, Suggestion
from aae_ray.search.outcomes import FailureClass, Reason
from aae_ray.search.pruner import rungs
from aae_ray.search.store import TRIALS, is_remote, store_at
from aae_ray.secrets import redact
from aae_ray.settings import Settings, replace
from aae_ray.training import checkpoint

REPORT_SECONDS = 5.0  # a long interval reports in between, at the end of an epoch
RETRY_SECONDS = 2.0  # until a study.folder that has refused something is asked again
BARRIER_SECONDS = 60.0  # gangs wait for each other; not for ever, a cluster may take minutes to start its nodes
NEXT_TO_NOTHING = {"CPU": 0, "memory": 2**20}  # Ray refuses a request for nothing at all

logger = logging.getLogger(__name__)


def trainable(
    settings: Settings,
    folder: str,
    hub: ActorHandle | None,
    kind: type["Trial"] | None = None,
    digest: str | None = None,
) -> Any:
    """What Tune runs. A gang of one runs in the trial's own process, which asks for its resources; a gang of several
    asks for its own, and the trial's process for no CPU.

    Tune needs `reuse_actors=True`. A process in which a worker is stuck ends with its trial, as an error and not as a
    result, so that Tune hands it no other one.
    """
    own = dict(settings.study.resources_per_worker) if settings.study.workers_per_trial == 1 else None
    return tune.with_resources(
        tune.with_parameters(kind or Trial, settings=settings, folder=folder, hub=hub, digest=digest),
        tune.PlacementGroupFactory([own or NEXT_TO_NOTHING]),
    )


class Trial(tune.Trainable):  # type: ignore[misc]
    """One step trains up to the next rung, or for some seconds, or says how far a long epoch is. With
    `reuse_actors` the next trial runs on the same, warm gang; after a failure that ended the gang, on a new one. A
    failure is a result, with done=True: whether the trial is tried again is not decided here.

    The state behind a report is on the disk, under the study's folder, before the report is made. Where it cannot be
    written, on a full disk for instance, the report names no checkpoint and the trial goes on: its next report tries
    again, and whoever reads the reports can see that a failure now would cost more. A last state that cannot be
    written is a failure, as is a first one that cannot be read. Where the study's folder is elsewhere, both are tried
    again as long as the study itself may wait for it, and longer. Tune's own checkpoints are not used.
    """

    base: Settings
    folder: str
    hub: ActorHandle | None
    digest: str | None = None  # of the study's data
    gang: Gang | None = None  # None when the last one has ended
    failed: Failed | None = None  # why the suggestion could not be begun
    ready = False  # whether the gang has told that it has started
    unusable = False  # this process has a worker that is stuck, or a broken device
    unread = False  # whether the suggestion's checkpoint has still to be read
    unsaved: Trained | None = None  # what was trained last, while its state has still to be written
    refused_since: float | None = None  # `time.monotonic()`, when study.folder could not be read or written

    def setup(
        self,
        config: dict[str, Any],
        settings: Settings,
        folder: str,
        hub: ActorHandle | None,
        digest: str | None = None,
    ) -> None:
        self.base, self.folder, self.hub, self.digest = settings, folder, hub, digest
        try:
            self._check_folder()
            self.gang = self.new_gang()
            self.gang.wait_until_ready()
        except Exception as error:
            self._drop_gang()
            self.failed = self._failed(error)
            self.unusable = self.unusable or self.failed.kind is FailureClass.BAD_NODE
        if hub is not None:
            with contextlib.suppress(RayError):  # without it there is nobody to wait for
                ray.get(hub.wait_for_all.remote(BARRIER_SECONDS), timeout=2 * BARRIER_SECONDS)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.failed, self.unsaved, self.refused_since = None, None, None
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """A Report, a Progress or a Failure, as a result of Tune's.

        Raises GangError for a failure after which this process is of no use: Tune hands it no other trial then.
        """
        if self.unread or self.unsaved is not None:
            time.sleep(RETRY_SECONDS)
        if self.unread:
            self._start()
            if self.unread:
                return self._nothing_new()
        if self.failed is not None:
            return self._failure(self.failed)
        if self.unsaved is not None:
            return self._report(self.unsaved)
        assert self.gang is not None
        try:
            if not self.ready:
                self.gang.wait_until_ready()
                self.ready = True
            if not self.gang.under_way:
                self.gang.post(self._order())
            reply = self.gang.reply()
        except Exception as error:
            reply = self._failed(error)
            self._drop_gang()
        if isinstance(reply, Failed):
            if reply.kind is FailureClass.BUG and "CUDA error" in reply.message:  # no context survives one
                self.unusable = self.unusable or isinstance(self.gang, LocalGang)
                self._drop_gang()
            if reply.kind is FailureClass.BAD_NODE:  # neither process nor workers are of use to another trial
                self.unusable = True
                self._drop_gang()
            return self._failure(reply)
        if isinstance(reply, orders.Progress):
            return Progress(self.suggestion.number, reply.epoch, reply.done, reply.batches).to_result()
        self.epoch = reply.interval.epoch
        return self._report(reply)

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}

    def load_checkpoint(self, checkpoint: Any) -> None:
        """A suggestion names the checkpoint that it goes on from."""

    def cleanup(self) -> None:
        self._drop_gang()
        if self.unusable:  # the stuck thread, and the memory that it holds, must not outlive the trial
            threading.Timer(1.0, os._exit, (1,)).start()

    def new_gang(self) -> Gang:
        """Start a gang. Its workers may still be starting."""
        # Tune may start a trial anew before its last process has ended: a number would not tell their gangs apart.
        name = f"gang-{self.trial_id}-{uuid.uuid4().hex[:8]}"
        if self.base.study.workers_per_trial == 1:
            return LocalGang(name, self.base)
        if self.hub is None:
            self.hub = start_mailbox_hub(1)
        try:
            return WorkerGang(name, self.base, self.folder, self.hub)
        except RayActorError:  # the study's is gone: this process starts one of its own
            self.hub = start_mailbox_hub(1)
            return WorkerGang(name, self.base, self.folder, self.hub)

    def _check_folder(self) -> None:
        """Raises BadNode on a node that does not see the study's folder: it would make one of its own."""
        if not is_remote(self.folder) and not Path(self.folder).is_dir():
            raise BadNode.here(f"does not see study.folder {self.folder}")

    def _begin(self, config: Mapping[str, Any]) -> None:
        """Begin a suggestion. The gang starts to train at once: by the time that Tune asks, there may be a result."""
        self.suggestion = suggestion = Suggestion.from_config(config)
        self.epoch = suggestion.epoch
        self.ready, self.unread = True, False
        if self.failed is None:
            self._start()

    def _start(self) -> None:
        try:
            self.settings = self._settings(self.suggestion)
            self.rungs = rungs(self.settings.study.pruner, self.settings.train.epochs)
            state = self._state(self.suggestion.checkpoint)
            if self.unread:
                return
            if self.gang is None or not self.gang.alive:
                self._drop_gang()
                if self.unusable:
                    raise GangError(Failed(FailureClass.LOST_WORKER, "an earlier worker is stuck in this process"))
                self.gang, self.ready = self.new_gang(), False
            self.gang.post(self._order(Begin(self.settings, state, self.digest)))
        except Exception as error:
            self.failed = self._failed(error)

    def _settings(self, suggestion: Suggestion) -> Settings:
        try:
            return replace(self.base, {**suggestion.settings, **suggestion.params})
        except ValidationError as error:
            found = [f"{'.'.join(map(str, each['loc'])) or 'settings'}: {each['msg']}" for each in error.errors()]
            raise UserError("; ".join(found)) from None

    def _state(self, relative: str | None) -> bytes | None:
        if relative is None:
            return None
        path = f"{relative}/{checkpoint.FILE}"
        try:
            state = store_at(self.folder).read_bytes(path)
        except OSError as error:
            self.unread = not isinstance(error, FileNotFoundError) and self._may_wait()
            if self.unread:
                return None
            text = f"the checkpoint {redact(self.folder)}/{path} cannot be read: {reason_of(error)}"
            if isinstance(error, FileNotFoundError):
                raise UserError(text) from None
            raise GangError(Failed(FailureClass.CANNOT_START, text)) from None
        self.unread, self.refused_since = False, None
        return state

    def _may_wait(self) -> bool:
        """Whether a study.folder that has just refused something may be asked again. Only where it is elsewhere; and
        longer than the study itself waits, which is stopped then, and its trials are not lost."""
        if not is_remote(self.folder):
            return False
        self.refused_since = self.refused_since or time.monotonic()
        return time.monotonic() - self.refused_since < 2 * self.base.study.storage_timeout

    def _nothing_new(self) -> dict[str, Any]:
        return Progress(self.suggestion.number, self.epoch, 0, 1).to_result()

    def _order(self, begin: Begin | None = None) -> Train:
        until = next((rung for rung in self.rungs if rung > self.epoch), self.settings.train.epochs)
        return Train(until, REPORT_SECONDS, begin)

    def _report(self, trained: Trained) -> dict[str, Any]:
        interval = trained.interval
        finished = interval.epoch >= self.settings.train.epochs and interval.stop_reason is None
        written = self._write(trained)
        self.unsaved = None
        if written is not None:
            self.refused_since = None
        if finished and written is None and self._may_wait():
            self.unsaved = trained
            return self._nothing_new()
        if finished and written is None:
            written = self._write(trained)
            if written is None:  # a complete trial without its weights would be chosen with those of an earlier epoch
                where = redact(str(self.folder))
                text = f"the state after the last epoch, {interval.epoch}, could not be written under {where}"
                return self._failure(Failed(FailureClass.NOT_SAVED, text))
        return Report(
            number=self.suggestion.number,
            epoch=interval.epoch,
            history=interval.history,
            finished=finished,
            stop_reason=None if interval.stop_reason is None else Reason(interval.stop_reason),
            checkpoint=written,
            checkpoint_bytes=len(trained.state) if written else 0,
            training_seconds=trained.training_seconds,
            evaluation_seconds=trained.evaluation_seconds,
        ).to_result()

    def _write(self, trained: Trained) -> str | None:
        """Write a state and its figure data. Returns the folder, relative to the study's, or None when it failed."""
        relative = f"{TRIALS}/{self.suggestion.name}/epoch_{trained.interval.epoch:05d}"
        try:
            with self._new_folder(relative) as partial:
                checkpoint.write(trained.state, partial)
                if trained.figures is not None:
                    figure_data.save(trained.figures, partial)
        except OSError:
            logger.warning("the checkpoint %s could not be written", relative, exc_info=self.unsaved is None)
            return None
        return relative

    @contextlib.contextmanager
    def _new_folder(self, relative: str) -> Iterator[Path]:
        """A folder to write files into, which are in the study's folder afterwards."""
        store = store_at(self.folder)
        if store.remote is None:
            with durable_folder(store.local / relative) as partial:
                yield partial
            return
        with tempfile.TemporaryDirectory(prefix="aae_ray-") as temporary:
            yield Path(temporary)
            store.write_folder(relative, Path(temporary))

    def _failure(self, failed: Failed) -> dict[str, Any]:
        if self.unusable:
            raise GangError(failed)
        return failed.of_trial(self.suggestion.number).to_result()

    def _failed(self, error: Exception) -> Failed:
        return error.failed if isinstance(error, GangError) else describe(error)

    def _drop_gang(self) -> None:
        gang, self.gang = self.gang, None
        if gang is not None and not gang.close():
            self.unusable = True
