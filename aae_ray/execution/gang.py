"""A gang: a group of Ray Train workers, one DDP process group, kept warm from trial to trial.

Starting a TorchTrainer costs seconds, training a small trial costs less than one. So a trial starts one TorchTrainer
in a thread, whose workers take orders from a mailbox until they are told to quit:

    trial (Tune actor)  --order-->  post office (actor)  --order-->  every worker
                        <--reply--                       <--reply--  the first worker

An order and its reply take milliseconds, which counts when a trial trains for less than a second. So the order that
begins a trial also trains it, it is given before Tune asks for a result, and its reply carries the state as well.
"""

import itertools
import os
import pickle
import platform
import threading
import traceback
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from aae_ray.datasets.dataset import Dataset, load
from aae_ray.errors import UserError
from aae_ray.evaluation.figure_data import FigureData, figure_data
from aae_ray.settings import Data, Settings, Study
from aae_ray.training import checkpoint
from aae_ray.training.loop import Interval, Training


@dataclass(frozen=True)
class Begin:
    """A trial to begin, from a packed state if there is one."""

    run: Settings
    state: bytes | None = None


@dataclass(frozen=True)
class Train:
    """Train up to an epoch, but report earlier when the time is up; begin another trial first, if there is one."""

    until_epoch: int
    at_most_seconds: float
    begin: Begin | None = None


@dataclass(frozen=True)
class Quit:
    """End the gang."""


@dataclass(frozen=True)
class Ready:
    """The workers have been started: what a gang says first."""


@dataclass(frozen=True)
class Trained:
    """An interval, the packed state behind it, and the data of its figures where trials are compared."""

    interval: Interval
    state: bytes
    pictures: FigureData | None


@dataclass(frozen=True)
class Failed:
    """A trial that cannot go on, on a gang that can: training it again would fail again."""

    reason: str
    message: str


@dataclass(frozen=True)
class Dead:
    """A gang that is no more."""

    message: str


READY = -1  # what the first message of a gang is a reply to: orders are counted from 0
SMALL = 50_000  # bytes that Ray carries with a call, without its object store
MODESTY = 10  # training takes what is left: whoever passes on its result, or its next order, comes first
Order = Train | Quit
Reply = Ready | Trained | Failed | Dead


class GangError(RuntimeError):
    """The gang died or hangs. Its trial goes on from its last state on a new one."""


def work(config: dict[str, Any]) -> None:
    """What every worker of a gang does: take an order, carry it out, and, if it is the first worker, reply."""
    name, office = config["name"], config["office"]
    os.nice(MODESTY)
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    worker = Worker(rank, workers, ray.train.torch.get_device())
    reply: Reply | None = Ready() if rank == 0 else None
    for number in itertools.count():
        order = _open(office.exchange.remote(name, number, _sealed(reply)))
        if isinstance(order, Quit):
            return
        reply = worker.carry_out(order)


def _sealed(message: Order | Reply | None) -> bytes | list[ray.ObjectRef] | None:
    """A message as the post office carries it, unopened: its bytes, or a reference to them where they are many."""
    if message is None:
        return None
    packed = pickle.dumps(message)
    return packed if len(packed) <= SMALL else [ray.put(packed)]


def _open(sealed: ray.ObjectRef, timeout: float | None = None) -> Any:
    message = ray.get(sealed, timeout=timeout)
    return pickle.loads(message if isinstance(message, bytes) else ray.get(message[0]))


class Worker:
    """One process of a gang. From one trial to the next it keeps its data sets and nothing else."""

    def __init__(self, rank: int, workers: int, device: torch.device) -> None:
        self.rank, self.workers, self.device = rank, workers, device
        self.datasets: dict[Data, Dataset] = {}
        self.training: Training | None = None

    def carry_out(self, order: Train) -> Trained | Failed | None:
        """Train; only the first worker has something to reply."""
        try:
            if order.begin:
                self.training = None  # the last trial's memory is free before the next asks for its own
                self.training = self._begin(order.begin)
            assert self.training is not None, "an order came before the start of a trial"
            return self._train(self.training, order)
        except UserError as error:  # of the settings: the same on every worker of a node
            return Failed("bad_input", str(error))
        except torch.OutOfMemoryError as error:
            if self.workers > 1:
                raise  # the others wait for this worker: the gang must end
            self.training = None
            return Failed("out_of_memory", str(error).splitlines()[0])

    def _train(self, training: Training, order: Train) -> Trained | None:
        interval = training.train(order.until_epoch, order.at_most_seconds)
        if self.rank > 0:
            return None
        compared = interval.epoch == order.until_epoch or interval.stop_reason is not None
        return Trained(
            interval, checkpoint.pack(training.state_dict()), figure_data(training.evaluation) if compared else None
        )

    def _begin(self, trial: Begin) -> Training:
        run = trial.run
        if run.data not in self.datasets:
            self.datasets[run.data] = load(run.data)
        device = torch.device("cpu") if run.train.device == "cpu" else self.device
        if run.train.device == "cuda" and device.type != "cuda":
            raise UserError(
                "train.device is cuda and the worker has no GPU; ask for one with study.resources_per_worker.GPU=1"
            )
        training = Training(run, self.datasets[run.data], device, self.rank, self.workers, self._wrap)
        if trial.state is not None:
            training.load_state_dict(checkpoint.unpack(trial.state))
        return training

    def _wrap(self, network: nn.Module) -> nn.Module:
        if self.workers == 1:
            return network
        return DistributedDataParallel(network, forward_sync_buffers=False)


class GangTrainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer without the process that deals Ray Data's data sets out to workers: a gang has none of those, and
    the process would cost seconds at its start and a hundredth of a core for as long as it lives."""

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if type(each).__name__ != "DatasetsCallback"]


class Gang:
    """The trial's end of a gang: give orders, get their replies.

    `office` is where its mailbox is, under a name that no other gang has. Raises RayError when there is no office.
    """

    def __init__(self, name: str, run: Settings, office: ActorHandle) -> None:
        study = run.study
        self.name, self.office = name, office
        self.timeout = study.step_timeout
        self.posted = 0  # orders given
        self.pending: ray.ObjectRef | None = None  # what the reply to the last order will be
        ray.get(office.open.remote(name, study.workers_per_trial))
        self.thread = threading.Thread(target=self._serve, args=(study,), daemon=True)
        self.thread.start()

    def wait_until_ready(self) -> None:
        """Wait for the workers. Raises GangError when they die on the way."""
        self._opened(self.office.reply_to.remote(self.name, READY), None)  # a cluster may have yet to start their nodes

    @property
    def under_way(self) -> bool:
        """Whether the reply to the last order has yet to be asked for."""
        return self.pending is not None

    def post(self, order: Order) -> None:
        """Give an order without waiting for it."""
        self.pending = self.office.ask.remote(self.name, self.posted, _sealed(order))
        self.posted += 1

    def reply(self) -> Trained | Failed:
        """The reply to the last order; those to orders before it are dropped.

        Raises GangError when the gang is dead, or silent for longer than study.step_timeout.
        """
        assert self.under_way, "no order was given"
        pending, self.pending = self.pending, None
        reply = self._opened(pending, self.timeout)
        assert isinstance(reply, Trained | Failed)
        return reply

    def ask(self, order: Train) -> Trained | Failed:
        """Carry out an order and wait for the reply, as `reply` does."""
        self.post(order)
        return self.reply()

    def _opened(self, pending: ray.ObjectRef, timeout: float | None) -> Reply:
        try:
            reply: Reply = _open(pending, timeout)
        except GetTimeoutError:
            raise GangError(f"no answer within study.step_timeout={timeout:g} s") from None
        except RayError as error:
            raise GangError(f"no reply: {_last_line(error)}") from None
        if isinstance(reply, Dead):
            raise GangError(reply.message)
        return reply

    def close(self, patience: float = 20) -> bool:
        """End the workers in order, and wait so many seconds for it. Whether they ended: a gang that hangs does not."""
        if self.thread.is_alive():
            self.post(Quit())
            self.thread.join(patience)
        return not self.thread.is_alive()

    def _serve(self, study: Study) -> None:
        """Runs the trainer until the gang quits or dies; a death becomes the reply to whatever was asked."""
        message = "the gang has ended"
        try:
            trainer = GangTrainer(
                work,
                train_loop_config={"name": self.name, "office": self.office},
                scaling_config=ray.train.ScalingConfig(
                    num_workers=study.workers_per_trial,
                    resources_per_worker=dict(study.resources_per_worker),
                    use_gpu="GPU" in study.resources_per_worker,
                ),
                run_config=ray.train.RunConfig(
                    name=self.name,
                    storage_path=study.folder.rpartition("/")[0] + "/gangs",
                    # A restart by Train would begin at order 0 and replay the past: the trial starts a new gang.
                    failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=3),
                ),
            )
            trainer.fit()
        except BaseException as error:  # whatever it was, the trial must hear of it
            message = f"the gang has died: {_last_line(error)}"
        try:
            self.office.end.remote(self.name, _sealed(Dead(message)))
        except Exception:  # Ray itself is going down
            return


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in "".join(traceback.format_exception_only(error)).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def precision_advice(run: Settings) -> str | None:
    """A sentence when workers on this machine's CPU would compute in bfloat16 without instructions for it."""
    on_cpu = run.train.device == "cpu" or "GPU" not in run.study.resources_per_worker
    kind = torch.backends.cpu.get_cpu_capability()
    slow = platform.machine() in ("x86_64", "AMD64") and kind in ("DEFAULT", "AVX2")
    if not run.train.mixed_precision or not on_cpu or not slow:
        return None
    return (
        f"train.mixed_precision is on, and this machine's CPU ({kind}) works without AVX512, "
        "and so without instructions for bfloat16: "
        "steps may take tens of times as long as with train.mixed_precision=false"
    )
