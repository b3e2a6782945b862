"""The workers of a gang: each takes an order, carries it out in step with the others, and the first one replies."""

import itertools
import os
import platform
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from aae_ray.datasets.dataset import Dataset, load
from aae_ray.datasets.sources import cache_folder
from aae_ray.errors import UserError
from aae_ray.evaluation.constants import Constants
from aae_ray.evaluation.figure_data import figure_data
from aae_ray.evaluation.held_out import JUDGED
from aae_ray.evaluation.judge import judge_if_any
from aae_ray.execution.failures import BadNode, Failed, describe, log_tail
from aae_ray.execution.orders import (
    CALL_SECONDS,
    Begin,
    Member,
    Progress,
    Quit,
    Ready,
    Reply,
    Train,
    Trained,
    pack,
    unpack,
)
from aae_ray.execution.process_group import require_gpu
from aae_ray.settings import Data, Settings
from aae_ray.training import checkpoint
from aae_ray.training.loop import Training

NICE_LEVEL = 10  # training takes what is left: whoever passes on its result, or its next order, comes first
IDLE_SECONDS = 24 * 3600.0  # a worker without an order for so long ends
AGREEMENT_SECONDS = 20.0  # that a rank which has failed waits for the others, who may be stuck without it


class PeerFailed(Exception):
    """Another rank could not carry out the order."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


class Agreement:
    """What the ranks of a gang tell each other about an order."""

    def __init__(self, workers: int, timeout_s: float) -> None:
        self.workers, self.timeout_s = workers, timeout_s
        limit = timedelta(seconds=timeout_s)
        self.group = dist.new_group(backend="gloo", timeout=limit) if workers > 1 else None

    def agree(self, mine: Failed | None = None) -> Failed | None:
        """All ranks say whether they have failed. Returns the own failure; raises PeerFailed for that of another rank.

        A rank that has failed waits for a short time only, as the others may be stuck in a collective without it.
        Raises RuntimeError when they do not come.
        """
        if self.group is None:
            return mine
        limit = self.timeout_s if mine is None else min(AGREEMENT_SECONDS, self.timeout_s)
        flags = [torch.zeros(1) for _ in range(self.workers)]
        pending = dist.all_gather(flags, torch.tensor([float(mine is not None)]), group=self.group, async_op=True)
        pending.wait(timedelta(seconds=limit))
        if not any(flag.item() for flag in flags):
            return None
        failures: list[Any] = [None] * self.workers
        dist.all_gather_object(failures, mine, group=self.group)
        first: Failed = next(failed for failed in failures if failed is not None)
        if mine is None:
            raise PeerFailed(first)
        return first


def work(config: dict[str, Any]) -> None:
    """What every worker of a gang does: take an order, carry it out, and, if it is the first worker, reply."""
    name, hub = config["name"], config["hub"]
    os.nice(NICE_LEVEL)
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    runtime = ray.get_runtime_context()
    member = Member(runtime.current_actor, os.getpid(), runtime.get_node_id())
    ray.get(hub.register.remote(name, rank, member), timeout=CALL_SECONDS)
    number = 0

    def tell(progress: Progress) -> None:
        hub.progress.remote(name, number, pack(progress))  # nobody waits for it

    agreement = Agreement(workers, config["step_timeout"])
    worker = Worker(rank, workers, ray.train.torch.get_device(), agreement, tell)
    reply: Reply | None = Ready() if rank == 0 else None
    for number in itertools.count():
        order = unpack(hub.exchange.remote(name, number, pack(reply)), IDLE_SECONDS)
        if isinstance(order, Quit):
            return
        reply = worker.carry_out(order)


class Worker:
    """One worker of a gang. From one trial to the next it keeps its data sets, and what is measured of them alone.

    The first one calls `tell` now and then in an epoch that takes long.
    """

    def __init__(
        self,
        rank: int,
        workers: int,
        device: torch.device,
        agreement: Agreement,
        tell: Callable[[Progress], None] | None = None,
    ) -> None:
        self.rank, self.workers, self.device, self.agreement = rank, workers, device, agreement
        self.tell = tell if rank == 0 else None
        self.datasets: dict[Data, Dataset] = {}
        self.constants = Constants()
        self.training: Training | None = None
        self.evaluation_seconds = 0.0
        self.in_step = True  # whether the ranks have agreed on the trial that is being built

    def carry_out(self, order: Train) -> Trained | Failed | None:
        """Train; only the first worker has something to reply. Raises what the ranks could not agree on."""
        try:
            if order.begin:
                self.training = None  # the last trial's memory is free before the next asks for its own
                self.training = self._begin(order.begin)
                self.agreement.agree()
            assert self.training is not None, "an order came before the start of a trial"
            trained = self._train(self.training, order)
            self.agreement.agree()
            return trained
        except PeerFailed as error:
            failed: Failed | None = error.failed
        except Exception as error:
            failed = describe(error, self.rank, log_tail(os.getpid()))
            try:
                failed = self.agreement.agree(failed)
            except Exception:  # the others are stuck without this rank: the gang ends, and this error says why
                raise error from None
        self.training = None
        return failed if self.rank == 0 else None

    def _train(self, training: Training, order: Train) -> Trained | None:
        start, self.evaluation_seconds = time.monotonic(), 0.0
        interval = training.train(order.until_epoch, order.at_most_seconds)
        if self.rank > 0:
            return None
        compared = interval.epoch == order.until_epoch or interval.stop_reason is not None
        training_seconds = time.monotonic() - start - self.evaluation_seconds
        figures = self._timed(figure_data)(training.evaluation) if compared else None
        state = training.state_dict()
        if interval.epoch >= training.settings.train.epochs and interval.stop_reason is None:
            state.pop("optimizers", None)  # nothing comes after the whole budget
        return Trained(interval, checkpoint.pack(state), figures, training_seconds, self.evaluation_seconds)

    def _load(self, data: Data, digest: str | None) -> Dataset:
        """Raises BadNode where the study has data, and this node does not get them."""
        try:
            return load(data)
        except UserError as error:
            if digest is None:
                raise
            raise BadNode.here(f"does not get the study's data: {error}") from None

    def _begin(self, trial: Begin) -> Training:
        settings = trial.settings
        self.in_step = False
        if settings.data not in self.datasets:
            self.datasets[settings.data] = self._load(settings.data, trial.digest)
        device = torch.device("cpu") if settings.train.device == "cpu" else self.device
        if settings.train.device == "cuda" and device.type != "cuda":
            raise UserError(
                "train.device is cuda and the worker has no GPU; ask for one with study.resources_per_worker.GPU=1"
            )
        if settings.device == "cuda":
            require_gpu()
        dataset = self.datasets[settings.data]
        if trial.digest is not None and dataset.digest != trial.digest:  # a node that has joined since the start
            raise BadNode.here(
                f"has other data: data.name {dataset.name} has digest {dataset.digest} there, the study's "
                f"{trial.digest}"
            )
        judged = self.rank == 0 and JUDGED in settings.study.deciding_metrics
        judge = judge_if_any(dataset, cache_folder(settings.data)) if judged else None
        training = Training(
            settings,
            dataset,
            device,
            self.rank,
            self.workers,
            self._wrap,
            self.constants,
            judge,
            None if self.tell is None else lambda done, batches: self._tell(training.epoch, done, batches),
        )
        for name in ("cheap", "costly"):
            setattr(training.evaluation, name, self._timed(getattr(training.evaluation, name)))
        if trial.state is not None:
            training.load_state_dict(_readable(trial.state))
        return training

    def _tell(self, epoch: int, done: int, batches: int) -> None:
        assert self.tell is not None
        self.tell(Progress(epoch, done, batches))

    def _wrap(self, network: nn.Module) -> nn.Module:
        if self.workers == 1:
            return network
        if not self.in_step:  # the first wrapper is the first collective: no rank enters it without the others
            self.agreement.agree()
            self.in_step = True
        return DistributedDataParallel(network, forward_sync_buffers=False)

    def _timed(self, measure: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.monotonic()
            try:
                return measure(*arguments)
            finally:
                self.evaluation_seconds += time.monotonic() - start

        return timed


def _readable(state: bytes) -> dict[str, Any]:
    try:
        return checkpoint.unpack(state)
    except Exception as error:
        raise UserError(
            f"the checkpoint cannot be read: {next(iter(str(error).splitlines()), 'it is empty')}"
        ) from None


def precision_advice(settings: Settings) -> str | None:
    """A sentence when workers on this machine's CPU would compute in bfloat16 without instructions for it."""
    kind = torch.backends.cpu.get_cpu_capability()
    slow = platform.machine() in ("x86_64", "AMD64") and kind in ("DEFAULT", "AVX2")
    if not settings.train.mixed_precision or settings.device != "cpu" or not slow:
        return None
    return (
        f"train.mixed_precision is on, and this machine's CPU ({kind}) works without AVX512, "
        "and so without instructions for bfloat16: "
        "steps may take tens of times as long as with train.mixed_precision=false"
    )
