"""A gang: the workers that train trials, kept warm from trial to trial.

Starting a TorchTrainer costs seconds, training a small trial costs less than one. So a gang is started once, in a
thread, and its workers take orders until they are told to quit:

    LocalGang   one worker, which runs in the trial's own process, in Ray Train's local mode
    WorkerGang  several Ray Train workers, one DDP process group:

    trial (Tune actor)  --order-->  mailbox (actor)  --order-->  every worker
                        <--reply--                   <--reply--  the first worker

An order and its reply take milliseconds, which counts when a trial trains for less than a second. So the order that
begins a trial also trains it, it is given before Tune asks for a result, and its reply carries the state as well.

The workers of a gang stay in step: before an order counts as carried out, or as failed, all of them have agreed on it.
"""

import contextlib
import math
import os
import queue
import sys
import threading
import time
import traceback
from typing import Any, Protocol

import ray
import ray.train
import ray.train.torch
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy

from aae_ray.execution.capacity import waiting_for_machines
from aae_ray.execution.failures import Failed, GangError, describe, log_tail
from aae_ray.execution.orders import (
    CALL_SECONDS,
    READY,
    Ended,
    Member,
    Order,
    Progress,
    Quit,
    Ready,
    Reply,
    Trained,
    pack,
    unpack,
)
from aae_ray.execution.process_group import GroupConfig
from aae_ray.execution.worker import IDLE_SECONDS, NICE_LEVEL, Agreement, Worker, work
from aae_ray.search.outcomes import FailureClass
from aae_ray.search.store import GANGS, store_at
from aae_ray.settings import Settings

START_TRY_SECONDS = 30.0  # Train asks anew for the resources of a gang
LOOKS = 20  # at whether anybody waits for a machine, in a study.start_timeout: each is a question to the GCS
STOP_SECONDS = 10.0


class Gang(Protocol):
    """The trial's end of a gang: give orders, get their replies."""

    @property
    def alive(self) -> bool:
        """Whether the gang can take an order."""

    @property
    def under_way(self) -> bool:
        """Whether the reply to the last order has yet to be asked for."""

    def wait_until_ready(self) -> None:
        """Wait for the workers. Raises GangError when they do not start within study.start_timeout. Of several workers
        that begins when there are machines for them, which have study.capacity_timeout to come."""

    def post(self, order: Order) -> None:
        """Give an order without waiting for it."""

    def reply(self) -> Trained | Failed | Progress:
        """The reply to the last order; those to orders before it are dropped. Before it there may be Progress, and the
        order is still under way.

        Raises GangError when the gang has ended, or is silent for longer than study.step_timeout.
        """

    def close(self, timeout_s: float = STOP_SECONDS) -> bool:
        """End the gang, and wait about so many seconds for it. Whether it has ended."""


class StartOnce(FailurePolicy):  # type: ignore[misc]
    """Ray Train's policy, but for workers that die while they start: it would start others, up to as often as it asks
    for resources that have yet to come, and nobody would hear why."""

    def __init__(self, policy: FailurePolicy) -> None:
        super().__init__(policy.failure_config)
        self.policy = policy

    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        if isinstance(getattr(training_failed_error, "controller_failure", None), WorkerGroupStartupFailedError):
            return FailureDecision.RAISE
        return self.policy.make_decision(training_failed_error)


class AskNobody(FixedScalingPolicy):  # type: ignore[misc]
    """Ray Train's policy without its own request to the autoscaler, which hears from the placement group what a gang
    waits for. A cluster has one such request at a time: Train's, repeated every 20 seconds by an actor that outlives
    the gang, would replace the study's for machines on demand."""

    def _send_resource_request(self) -> None:
        pass

    _maybe_send_resource_request = _cancel_resource_request = _send_resource_request


class GangTrainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer without the process that deals Ray Data's data sets out to workers (a gang has none of those, and
    the process would cost seconds at its start and a hundredth of a core for as long as it lives), whose controller can
    be told to stop: Train itself tells it on Ctrl-C only."""

    controller: ActorHandle | None = None

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if type(each).__name__ != "DatasetsCallback"]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        from ray.train.v2._internal.constants import get_env_vars_to_propagate
        from ray.train.v2._internal.execution.controller import TrainController

        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        options = {"num_cpus": 0, "label_selector": here, "runtime_env": {"env_vars": get_env_vars_to_propagate()}}
        given["failure_policy"] = StartOnce(given["failure_policy"])
        given["scaling_policy"] = AskNobody(given["scaling_policy"].scaling_config)
        self.controller = ray.remote(**options)(TrainController).remote(**given)
        ray.get(self.controller.run.remote())
        return ray.get(self.controller.get_result.remote())

    def stop(self) -> None:
        """End the run from outside: in order if the controller listens, else without asking it."""
        if self.controller is not None:
            with contextlib.suppress(RayError):  # GetTimeoutError among them
                ray.get(self.controller.abort.remote(), timeout=STOP_SECONDS)
            with contextlib.suppress(RayError, ValueError):
                ray.kill(self.controller)


class LocalGang:
    """A gang of one: the worker runs in a thread of this process, through Ray Train's local mode.

    A thread cannot be ended from outside: one that is stuck goes with its process.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.settings = name, settings
        self.orders: queue.SimpleQueue[tuple[int, Order]] = queue.SimpleQueue()
        self.replies: queue.SimpleQueue[tuple[int, Reply]] = queue.SimpleQueue()
        self.posted = 0
        self.awaited: int | None = None
        self.ended: Failed | None = None
        self.thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self.thread.start()

    @property
    def alive(self) -> bool:
        return self.thread.is_alive() and self.ended is None

    @property
    def under_way(self) -> bool:
        return self.awaited is not None

    def wait_until_ready(self) -> None:
        self._reply_to(READY, self.settings.study.start_timeout, "the worker did not start", FailureClass.CANNOT_START)

    def post(self, order: Order) -> None:
        self.awaited = self.posted
        self.orders.put((self.posted, order))
        self.posted += 1

    def reply(self) -> Trained | Failed | Progress:
        assert self.awaited is not None, "no order was given"
        number, self.awaited = self.awaited, None
        timeout = self.settings.study.step_timeout
        reply = self._reply_to(number, timeout, f"no answer within study.step_timeout={timeout:g} s", FailureClass.HUNG)
        assert isinstance(reply, Trained | Failed | Progress)
        if isinstance(reply, Progress):
            self.awaited = number
        return reply

    def close(self, timeout_s: float = STOP_SECONDS) -> bool:
        if self.thread.is_alive():
            self.post(Quit())
            self.thread.join(timeout_s)
        self.ended = self.ended or Failed(FailureClass.LOST_WORKER, "the gang was closed")
        return not self.thread.is_alive()

    def _reply_to(self, number: int, timeout: float, text: str, kind: FailureClass) -> Reply:
        deadline = time.monotonic() + timeout
        while True:
            if self.ended is not None:
                raise GangError(self.ended)
            try:
                answered, reply = self.replies.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self.ended = Failed(kind, text, stack_of(self.thread), log_tail(os.getpid()), 0)
                raise GangError(self.ended) from None
            if isinstance(reply, Ended):
                self.ended = reply.failed
                raise GangError(reply.failed)
            if answered == number:
                return reply

    def _serve(self) -> None:
        failed = Failed(FailureClass.LOST_WORKER, "the gang has ended")
        try:
            # No worker group, no controller, no placement group: the loop runs here, as if it were rank 0 of 1.
            GangTrainer(self._work, scaling_config=ray.train.ScalingConfig(num_workers=0)).fit()
        except BaseException as error:  # whatever it was, the trial must hear of it
            failed = describe(error, 0, log_tail(os.getpid()))
        self.replies.put((self.posted, Ended(failed)))

    def _work(self) -> None:
        with contextlib.suppress(OSError):
            os.nice(NICE_LEVEL)  # on Linux of this thread alone, and of those that it starts
        number = READY

        def tell(progress: Progress) -> None:
            self.replies.put((number, progress))

        worker = Worker(0, 1, ray.train.torch.get_device(), Agreement(1, self.settings.study.step_timeout), tell)
        self.replies.put((READY, Ready()))
        while True:
            number, order = self.orders.get(timeout=IDLE_SECONDS)
            if isinstance(order, Quit):
                return
            reply = worker.carry_out(order)
            assert reply is not None
            self.replies.put((number, reply))


class Patience:
    """How long a gang is waited for. Its study.start_timeout begins when the machines are there; they have
    study.capacity_timeout to come. One look that sees nobody waiting for a machine means little: Train withdraws its
    request for a moment before it asks anew."""

    def __init__(self, settings: Settings) -> None:
        study = settings.study
        self.start, self.capacity = study.start_timeout, max(study.start_timeout, study.capacity_timeout)
        self.began = self.since = time.monotonic()

    @property
    def waited(self) -> float:
        """Seconds."""
        return time.monotonic() - self.began

    def still(self, for_machines: bool) -> bool:
        """Whether to wait on, where machines are waited for now, or not."""
        now = time.monotonic()
        if for_machines:
            self.since = now
        return now - self.since < self.start and now - self.began < self.capacity


class WorkerGang:
    """Several Ray Train workers. `hub` has its mailbox, under a name that no other gang has.

    Raises RayError when there is no hub.
    """

    def __init__(self, name: str, settings: Settings, folder: str, hub: ActorHandle) -> None:
        self.name, self.settings, self.folder, self.hub = name, settings, folder, hub
        self.posted = 0  # orders given
        self.pending: ray.ObjectRef | None = None  # what the reply to the last order will be
        self.ended = False
        ray.get(hub.open.remote(name, settings.study.workers_per_trial), timeout=CALL_SECONDS)
        self.trainer = self._trainer()
        self.thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self.thread.start()

    @property
    def alive(self) -> bool:
        return self.thread.is_alive() and not self.ended

    @property
    def under_way(self) -> bool:
        return self.pending is not None

    def wait_until_ready(self) -> None:
        study, patience = self.settings.study, Patience(self.settings)
        needed = f"{study.workers_per_trial} workers of {dict(study.resources_per_worker)}"
        ready = self.hub.reply_to.remote(self.name, READY)
        reply: Reply | None = None
        while reply is None:
            try:
                reply = unpack(ready, study.start_timeout / LOOKS)
            except GetTimeoutError:
                if patience.still(waiting_for_machines()):
                    continue
                text = f"{needed} did not start within {patience.waited:.0f} s; {free_resources()}"
                raise GangError(Failed(FailureClass.CANNOT_START, text)) from None
            except RayError as error:
                raise GangError(describe(error)) from None
        if isinstance(reply, Ended):
            failed = reply.failed
            if failed.kind is FailureClass.CANNOT_START:
                text = f"{needed} did not start: {failed.message}; {free_resources()}"
                failed = Failed(failed.kind, text, failed.traceback, failed.log_tail)
            raise GangError(failed)

    def post(self, order: Order) -> None:
        self.pending = self.hub.ask.remote(self.name, self.posted, pack(order))
        self.posted += 1

    def reply(self) -> Trained | Failed | Progress:
        assert self.pending is not None, "no order was given"
        pending, self.pending = self.pending, None
        timeout = self.settings.study.step_timeout
        try:
            reply: Reply = unpack(pending, timeout)
        except GetTimeoutError:
            text = f"no answer within study.step_timeout={timeout:g} s"
            raise GangError(Failed(FailureClass.HUNG, text, log_tail=self._log_tail(0))) from None
        except RayError as error:
            raise GangError(describe(error)) from None
        if isinstance(reply, Ended):
            raise GangError(reply.failed)
        assert isinstance(reply, Trained | Failed | Progress)
        if isinstance(reply, Progress):
            self.pending = self.hub.reply_to.remote(self.name, self.posted - 1)
        return reply

    def close(self, timeout_s: float = STOP_SECONDS) -> bool:
        """As Gang says. Workers that do not end in time are killed."""
        self.ended = True
        if self.thread.is_alive():
            self.post(Quit())
            self.thread.join(timeout_s)
        if self.thread.is_alive():
            for member in self._members().values():
                if member.actor is not None:
                    ray.kill(member.actor)
            self.trainer.stop()
            self.thread.join(timeout_s)
        with contextlib.suppress(RayError):
            self.hub.close.remote(self.name)
        store_at(self.folder).delete(f"{GANGS}/{self.name}")
        return not self.thread.is_alive()

    def _trainer(self) -> GangTrainer:
        study, timeout = self.settings.study, self.settings.study.start_timeout
        one_try, patience = min(START_TRY_SECONDS, timeout), max(timeout, study.capacity_timeout)
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = f"{one_try:g}"  # Train's controller gets it from here
        return GangTrainer(
            work,
            train_loop_config={"name": self.name, "hub": self.hub, "step_timeout": study.step_timeout},
            torch_config=GroupConfig(self.settings.device, math.ceil(study.step_timeout)),
            scaling_config=ray.train.ScalingConfig(
                num_workers=study.workers_per_trial,
                resources_per_worker=dict(study.resources_per_worker),
                use_gpu="GPU" in study.resources_per_worker,
                placement_strategy="PACK",  # on one node where they fit, off the network
            ),
            run_config=ray.train.RunConfig(
                name=self.name,
                storage_path=store_at(self.folder).uri(GANGS),
                # A restart by Train would begin at order 0 and replay the past: there is a new gang instead. Train may
                # ask anew for resources that have yet to come, for as long as the trial waits for them.
                failure_config=ray.train.FailureConfig(
                    max_failures=0,
                    max_preemption_failures=0,
                    controller_failure_limit=max(3, math.ceil(patience / one_try)),
                ),
            ),
        )

    def _serve(self) -> None:
        """Runs the trainer until the gang quits or fails; a failure becomes the reply to whatever was asked."""
        failed = Failed(FailureClass.LOST_WORKER, "the gang has ended")
        try:
            self.trainer.fit()
        except BaseException as error:  # whatever it was, the trial must hear of it
            failed = describe(error)
            tail = self._log_tail(failed.rank or 0)
            failed = Failed(failed.kind, failed.message, failed.traceback, tail, failed.rank)
        try:
            self.hub.end.remote(self.name, pack(Ended(failed)))
        except Exception:  # Ray itself is going down
            return

    def _members(self) -> dict[int, Member]:
        try:
            members: dict[int, Member] = ray.get(self.hub.members.remote(self.name), timeout=STOP_SECONDS)
        except RayError:
            return {}
        return members

    def _log_tail(self, rank: int) -> str:
        member = self._members().get(rank)
        here = ray.get_runtime_context().get_node_id()
        return log_tail(member.pid) if member is not None and member.node_id == here else ""


def free_resources() -> str:
    """A sentence on what Ray has left to give."""
    try:
        free = {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
    except Exception:
        return "what is free is not known"
    return f"free are {free or 'no CPU and no GPU'}"


def stack_of(thread: threading.Thread) -> str:
    """Where a thread is."""
    frame = sys._current_frames().get(thread.ident or -1)
    return "".join(traceback.format_stack(frame)) if frame is not None else ""
