"""The training loop: an object that trains an epoch, reports, saves and restores.

It knows no Ray: `wrap` makes a player data-parallel, `rank` and `workers` say which slice of each batch is its own.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import SGD, Adam, Optimizer

from aae_ray.autoencoder.model import build_model
from aae_ray.autoencoder.phases import Phase
from aae_ray.datasets.dataset import Dataset
from aae_ray.datasets.images import Images
from aae_ray.datasets.labels import check
from aae_ray.errors import UserError
from aae_ray.evaluation.held_out import Evaluation
from aae_ray.settings import Settings, epoch_at, flatten, setting
from aae_ray.training.batches import Batches, Step
from aae_ray.training.health import illness

Wrap = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Interval:
    """What happened between two reports."""

    epoch: int  # epochs trained so far
    history: tuple[dict[str, float], ...]  # metrics of each epoch of this interval, with `epoch`
    stop_reason: str | None  # a name from training.health, or None

    @property
    def metrics(self) -> dict[str, float]:
        return self.history[-1]


class Turn:
    """The players as one phase sees them: those that it moves or lends wrapped and awake, all others bare, frozen."""

    def __init__(
        self, phase: Phase, players: Mapping[str, nn.Module], wrapped: Mapping[str, nn.Module], lends: bool
    ) -> None:
        self.lends = lends and bool(phase.lends)
        used = {*phase.moves, *(phase.lends if self.lends else ())}
        self.players = {name: wrapped[name] if name in used else player for name, player in players.items()}
        self.awake = [p for name, player in players.items() if name in used for p in player.parameters()]
        self.asleep = [p for name, player in players.items() if name not in used for p in player.parameters()]

    def begin(self) -> dict[str, nn.Module]:
        """The players, with no gradients left from other phases."""
        for parameter in self.awake:
            parameter.requires_grad, parameter.grad = True, None
        for parameter in self.asleep:
            parameter.requires_grad = False
        return self.players


@dataclass
class Training:
    """One configuration in training. Every worker of a gang holds one, with the same weights at all times."""

    run: Settings
    dataset: Dataset
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    workers: int = 1
    wrap: Wrap = lambda player: player

    def __post_init__(self) -> None:
        if len(self.dataset.train) < 2 * self.workers:
            raise UserError(
                f"data.name {self.dataset.name}: {len(self.dataset.train)} training images are too few "
                f"for {self.workers} workers"
            )
        check(self.run, self.dataset)
        self.model = build_model(self.run, self.dataset.shape, self.device, self.dataset.classes)
        # Wrapped one by one, while all parameters ask for gradients: one wrapper over players that take turns leaves
        # the discriminator different on every worker, and nothing says so.
        self.wrapped = {name: self.wrap(player) for name, player in self.model.players.items()}
        # Phases see the same codes where nothing is drawn on the way to them. Batch normalization takes its statistics
        # on that way, in the phase that moves the encoder, so each has a pass of its own.
        train = self.run.train
        drawn = self.model.noise_dim or train.input_noise or train.input_dropout or train.input_warp
        lends = not drawn and self.run.model.normalization != "batch"
        self._turns = {phase.name: Turn(phase, self.model.players, self.wrapped, lends) for phase in self.model.phases}
        self.optimizers = {phase.name: self._optimizer(phase) for phase in self.model.phases}
        mixed = self.run.train.mixed_precision
        self._precision = torch.autocast(self.device.type, torch.bfloat16) if mixed else nullcontext()
        self.images = Images(self.dataset, self.device, getattr(torch, self.run.train.dtype))
        self.batches = Batches(self.run, self.model, self.images, self.dataset, rank=self.rank, workers=self.workers)
        self.evaluation = Evaluation(self.run, self.model, self.dataset, self.images)
        self.history: list[dict[str, float]] = []

    @property
    def epoch(self) -> int:
        """Epochs trained so far."""
        return len(self.history)

    def train(self, until_epoch: int | None = None, at_most_seconds: float = float("inf")) -> Interval:
        """Train whole epochs until this one, or until the time is up, or until the trial is found ill; then report.

        Costly metrics are measured where the interval ends as planned: at `until_epoch`, or where the trial stops.
        """
        until_epoch = min(until_epoch or self.run.train.epochs, self.run.train.epochs)
        start, first = time.monotonic(), self.epoch
        stop_reason = None
        while self.epoch < until_epoch and not stop_reason:
            metrics = self._train_epoch()
            stop_reason, out_of_time = self._agree(self._judge, metrics, time.monotonic() - start > at_most_seconds)
            self.history.append(metrics)
            if out_of_time:
                break
        if self.rank == 0 and (self.epoch == until_epoch or stop_reason):
            self.history[-1] |= self.evaluation.costly("val")
        return Interval(self.epoch, tuple(dict(metrics) for metrics in self.history[first:]), stop_reason)

    def _train_epoch(self) -> dict[str, float]:
        start = time.monotonic()
        self._set_learning_rates()
        seen: dict[str, list[Tensor]] = {phase.name: [] for phase in self.model.phases}
        gradients: dict[str, float] = {}
        for step in self.batches.epoch(self.epoch):
            sights = self.step(step, None if gradients else gradients)
            for phase, sight in zip(self.model.phases, sights, strict=True):
                seen[phase.name].append(sight)
        metrics = {"epoch": self.epoch + 1.0}
        for phase in self.model.phases:
            metrics |= phase.summary(self._gather(torch.cat(seen[phase.name])))
        if len(gradients) > 1:
            total = sum(gradients.values()) or 1.0
            metrics |= {f"train/{name}_gradient_share": norm / total for name, norm in gradients.items()}
        metrics["perf/images_per_second"] = len(self.dataset.train) / (time.monotonic() - start)
        return metrics

    def step(self, step: Step, gradients: dict[str, float] | None = None) -> list[Tensor]:
        """All phases of the task on one mini-batch; returns what each saw of its examples.

        Gradients are averaged over workers, so each worker divides by an even share of the global batch: this makes
        N workers equal to one also where their slices differ in size. Where it is asked for, `gradients` takes the norm
        of the gradient on the encoder's trunk, for each phase that moves it.
        """
        sights, lent = [], None
        for phase, batch, examples in zip(self.model.phases, step.batches, step.examples, strict=True):
            turn = self._turns[phase.name]
            players = turn.begin()
            with self._precision:
                loss_B, seen_BM, code = phase.loss(players, batch._replace(code=lent), self.run)
            lent = code if turn.lends else None
            loss_B.backward(torch.full_like(loss_B, self.workers / examples))
            if gradients is not None and "trunk" in phase.moves:
                trunk = self.model.players["trunk"].parameters()
                gradients[phase.name] = get_total_norm([p.grad for p in trunk if p.grad is not None]).item()
            self.optimizers[phase.name].step()
            sights.append(loss_B.detach() if seen_BM is None else seen_BM)
        return sights

    def _optimizer(self, phase: Phase) -> Optimizer:
        optim = self.run.optim
        parameters = [parameter for name in phase.moves for parameter in self.model.players[name].parameters()]
        rate, momentum = setting(self.run, phase.learning_rate), setting(self.run, phase.momentum)
        if optim.algorithm == "sgd":
            return SGD(parameters, lr=rate, momentum=momentum, fused=True)
        return Adam(parameters, lr=rate, betas=(momentum, optim.beta2), fused=True)

    def _set_learning_rates(self) -> None:
        """Rates drop at fractions of the budget: a longer run is the same run, stretched."""
        epochs = self.run.train.epochs
        passed = sum(self.epoch >= epoch_at(milestone, epochs) for milestone in self.run.optim.lr_milestones)
        for phase in self.model.phases:
            for group in self.optimizers[phase.name].param_groups:
                group["lr"] = setting(self.run, phase.learning_rate) * self.run.optim.lr_decay**passed

    def _judge(self, metrics: dict[str, float], out_of_time: bool) -> tuple[str | None, bool]:
        metrics |= self.evaluation.cheap("val")
        return illness([*self.history, metrics], self.run), out_of_time

    def _agree(self, judge: Callable[..., Any], *arguments: Any) -> Any:
        """The first worker judges, all obey: clocks and held-out metrics must not send workers different ways."""
        verdict = [judge(*arguments) if self.rank == 0 else None]
        if self.workers > 1:
            dist.broadcast_object_list(verdict, src=0)
        return verdict[0]

    def _gather(self, mine: Tensor) -> Tensor:
        """What all workers saw, in the same order everywhere, on the CPU."""
        if self.workers == 1:
            return mine.cpu()
        parts: list[Any] = [None] * self.workers
        dist.all_gather_object(parts, mine.cpu())
        return torch.cat(parts)

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on bit for bit: tensors and plain values only."""
        return {
            "settings": flatten(self.run),
            "data_digest": self.dataset.digest,
            "shape": list(self.dataset.shape),
            "classes": self.dataset.classes,
            "history": [dict(metrics) for metrics in self.history],
            "players": {name: player.state_dict() for name, player in self.model.players.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same data. Raises UserError when it belongs to other data."""
        if state["data_digest"] != self.dataset.digest:
            raise UserError(
                f"the checkpoint was trained on data with digest {state['data_digest']}, "
                f"and {self.dataset.name} has {self.dataset.digest}"
            )
        self.history = [dict(metrics) for metrics in state["history"]]
        for name, player in self.model.players.items():
            player.load_state_dict(state["players"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
