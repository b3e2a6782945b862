"""The training loop: an object that trains an epoch, reports, saves and restores.

It knows no Ray: `wrap` makes a network data-parallel, `rank` and `workers` say which slice of each batch is its own.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import SGD, Adam, Optimizer

from aae_ray.autoencoder.kinds import ExampleKind
from aae_ray.autoencoder.model import build_model, weight_bytes
from aae_ray.autoencoder.networks import BatchNorm
from aae_ray.autoencoder.phases import Phase, phases_of
from aae_ray.datasets.dataset import Dataset, split_digest
from aae_ray.datasets.images import Images
from aae_ray.datasets.labels import check, known_shares
from aae_ray.errors import UserError
from aae_ray.evaluation.constants import Constants
from aae_ray.evaluation.held_out import HeldOutMetrics
from aae_ray.evaluation.judge import Judge
from aae_ray.settings import RunSettings, epoch_at, flatten, setting
from aae_ray.training.averaging import WeightAverage
from aae_ray.training.batches import Batches, Step
from aae_ray.training.health import health_stop_reason
from aae_ray.training.progress import EpochProgress, Tell

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


class StateBytes(NamedTuple):
    """How much memory the parts of a training's state take at least: what holds no weights or moments is small."""

    weights: int
    average: int  # of the weights, where there is one
    optimizers: int

    @property
    def published(self) -> int:
        """What is left of the state of a trial that has trained to its end."""
        return self.weights + self.average

    @property
    def total(self) -> int:
        return self.published + self.optimizers


def state_bytes(settings: RunSettings, kind: ExampleKind, classes: int | None = None) -> StateBytes:
    """Of a training with these settings, which is not made for it: each phase has an optimizer of its own, with moments
    of the weights of all networks that it updates. Raises SettingsError when a network does not fit the images."""
    sizes = weight_bytes(settings, kind, classes)
    weights = sum(sizes.values())
    optimizers = 0
    for phase in dict.fromkeys(phases_of(settings)):
        moments = 2 if settings.optim.algorithm == "adam" else int(setting(settings, phase.momentum) > 0)
        optimizers += moments * sum(sizes[name] for name in phase.updates)
    return StateBytes(weights, weights if settings.train.ema_decay else 0, optimizers)


class PhaseView:
    """The networks as one phase sees them: those it updates or shares wrapped, trainable, all others bare, frozen."""

    def __init__(
        self, phase: Phase, networks: Mapping[str, nn.Module], wrapped: Mapping[str, nn.Module], shares_encoding: bool
    ) -> None:
        self.shares_encoding = shares_encoding and bool(phase.shares_encoding)
        used = {*phase.updates, *(phase.shares_encoding if self.shares_encoding else ())}
        self.networks = {name: wrapped[name] if name in used else network for name, network in networks.items()}
        self.trainable = [p for name, network in networks.items() if name in used for p in network.parameters()]
        self.frozen = [p for name, network in networks.items() if name not in used for p in network.parameters()]
        self.encodes_samples = phase.encodes_samples
        self.norms = [
            part for network in networks.values() for part in network.modules() if isinstance(part, BatchNorm)
        ]

    def begin(self) -> dict[str, nn.Module]:
        """The networks, with no gradients left from other phases."""
        for parameter in self.trainable:
            parameter.requires_grad, parameter.grad = True, None
        for parameter in self.frozen:
            parameter.requires_grad = False
        for norm in self.norms:
            norm.tracks = not self.encodes_samples
        return self.networks


@dataclass
class Training:
    """One configuration in training. Every worker of a gang holds one, with the same weights at all times."""

    settings: RunSettings
    dataset: Dataset
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    workers: int = 1
    wrap: Wrap = lambda network: network
    constants: Constants = field(default_factory=Constants)  # of held-out metrics, where others are measured beside it
    judge: Judge | None = None  # where samples are judged at reports
    tell: Tell | None = None  # is told how far a long epoch is

    def __post_init__(self) -> None:
        if len(self.dataset.train) < 2 * self.workers:
            raise UserError(
                f"data.name {self.dataset.name}: {len(self.dataset.train)} training {self.dataset.kind.noun} are too "
                f"few for {self.workers} workers"
            )
        check(self.settings, self.dataset)
        self.model = build_model(
            self.settings,
            self.dataset.kind,
            self.device,
            self.dataset.classes,
            known_shares(self.dataset, self.settings),
        )
        # Wrapped one by one, while all parameters ask for gradients: one wrapper over networks that take turns leaves
        # the discriminator different on every worker, and nothing says so.
        self.wrapped = {name: self.wrap(network) for name, network in self.model.networks.items()}
        # Phases see the same codes where nothing is drawn on the way to them. Batch normalization takes its statistics
        # on that way, in the phase that updates the encoder, so each has a pass of its own.
        train = self.settings.train
        drawn = self.model.noise_dim or train.input_noise or train.input_dropout or train.input_warp
        shares_encoding = not drawn and self.settings.model.normalization != "batch"
        self._views = {
            phase.name: PhaseView(phase, self.model.networks, self.wrapped, shares_encoding)
            for phase in self.model.phases
        }
        self.history: list[dict[str, float]] = []
        self.optimizers = {phase.name: self._optimizer(phase) for phase in self.model.phases}
        mixed = self.settings.train.mixed_precision
        self._precision = torch.autocast(self.device.type, torch.bfloat16) if mixed else nullcontext()
        self.images = Images(self.dataset, self.device, getattr(torch, self.settings.train.dtype))
        self.batches = Batches(
            self.settings, self.model, self.images, self.dataset, rank=self.rank, workers=self.workers
        )
        self.progress = EpochProgress(self.tell)
        decay = self.settings.train.ema_decay
        self.average = WeightAverage(self.model, decay) if decay else None
        evaluated = self.average.model if self.average else self.model
        self.evaluation = HeldOutMetrics(
            self.settings, evaluated, self.dataset, self.images, self.constants, self.judge
        )

    @property
    def epoch(self) -> int:
        """Epochs trained so far."""
        return len(self.history)

    def train(self, until_epoch: int | None = None, at_most_seconds: float = float("inf")) -> Interval:
        """Train whole epochs until this one, or until the time is up or a health check stops the trial; then report.

        Costly metrics are measured where the interval ends as planned: at `until_epoch`, or where the trial stops.
        """
        until_epoch = min(until_epoch or self.settings.train.epochs, self.settings.train.epochs)
        start, first = time.monotonic(), self.epoch
        stop_reason = None
        while self.epoch < until_epoch and not stop_reason:
            metrics = self._train_epoch()
            stop_reason, out_of_time = self._agree(
                self._check_health, metrics, time.monotonic() - start > at_most_seconds
            )
            self.history.append(metrics)
            if out_of_time:
                break
        if self.rank == 0 and (self.epoch == until_epoch or stop_reason):
            self.history[-1] |= self.evaluation.costly("val")
        return Interval(self.epoch, tuple(dict(metrics) for metrics in self.history[first:]), stop_reason)

    def _train_epoch(self) -> dict[str, float]:
        start = time.monotonic()
        self._set_hyperparameters()
        seen: dict[str, list[Tensor]] = {phase.name: [] for phase in self.model.phases}
        gradients: dict[str, float] = {}
        self.progress.begin(self.batches.steps)
        for step in self.batches.epoch(self.epoch):
            observed = self.step(step, None if gradients else gradients)
            self.progress.step()
            for phase, seen_BM in zip(self.model.phases, observed, strict=True):
                seen[phase.name].append(seen_BM)
        metrics = {"epoch": self.epoch + 1.0}
        for phase in dict.fromkeys(self.model.phases):
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
        of the gradient on the encoder's trunk, for each phase that updates it.
        """
        self.evaluation.weights_changed()
        observed, shared = [], None
        for phase, batch, examples in zip(self.model.phases, step.batches, step.examples, strict=True):
            view = self._views[phase.name]
            networks = view.begin()
            with self._precision:
                loss_B, seen_BM, code = phase.loss(networks, batch._replace(code=shared), self.settings)
            shared = code if view.shares_encoding else None
            loss_B.backward(torch.full_like(loss_B, self.workers / examples))
            if gradients is not None and "trunk" in phase.updates:
                trunk = self.model.networks["trunk"].parameters()
                gradients[phase.name] = get_total_norm([p.grad for p in trunk if p.grad is not None]).item()
            self.optimizers[phase.name].step()
            observed.append(loss_B.detach() if seen_BM is None else seen_BM)
        if self.average:
            self.average.update()
        return observed

    def _optimizer(self, phase: Phase) -> Optimizer:
        parameters = [parameter for name in phase.updates for parameter in self.model.networks[name].parameters()]
        kind = SGD if self.settings.optim.algorithm == "sgd" else Adam
        return kind(parameters, fused=True, **self._hyperparameters(phase))

    def _hyperparameters(self, phase: Phase) -> dict[str, Any]:
        """What an optimizer obeys in the epoch that comes next, under PyTorch's names.

        Rates drop at fractions of the budget: a longer run is the same run, stretched.
        """
        optim, epochs = self.settings.optim, self.settings.train.epochs
        passed = sum(self.epoch >= epoch_at(milestone, epochs) for milestone in optim.lr_milestones)
        rate = setting(self.settings, phase.learning_rate) * optim.lr_decay**passed
        momentum = setting(self.settings, phase.momentum)
        if optim.algorithm == "sgd":
            return {"lr": rate, "momentum": momentum}
        return {"lr": rate, "betas": (momentum, optim.beta2)}

    def _set_hyperparameters(self) -> None:
        """A loaded state brings those of its own settings with it, and these may be others."""
        for phase in self.model.phases:
            for group in self.optimizers[phase.name].param_groups:
                group.update(self._hyperparameters(phase))

    def _check_health(self, metrics: dict[str, float], out_of_time: bool) -> tuple[str | None, bool]:
        metrics |= self.evaluation.cheap("val")
        return health_stop_reason([*self.history, metrics], self.settings), out_of_time

    def _agree(self, decide: Callable[..., Any], *arguments: Any) -> Any:
        """The first worker decides, all follow: clocks and held-out metrics must not send workers different ways."""
        decision = [decide(*arguments) if self.rank == 0 else None]
        if self.workers > 1:
            dist.broadcast_object_list(decision, src=0)
        return decision[0]

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
            "settings": flatten(self.settings),
            "data_digest": self.dataset.digest,
            "split": split_digest(self.dataset),
            "shape": list(self.dataset.shape),
            "rows": None if self.dataset.rows is None else self.dataset.rows.record(),
            "classes": self.dataset.classes,
            "class_names": list(self.dataset.class_names or ()),
            "value_range": None if self.dataset.value_range is None else list(self.dataset.value_range),
            "history": [dict(metrics) for metrics in self.history],
            "networks": {name: network.state_dict() for name, network in self.model.networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            **({"average": self.average.state_dict()} if self.average else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same data, also of one with other rates, momenta, noise or weights of losses: what
        the optimizers have gathered is taken over, what they obey is that of these settings.

        Raises UserError when it belongs to other data.
        """
        if state["data_digest"] != self.dataset.digest:
            raise UserError(
                f"the checkpoint was trained on data with digest {state['data_digest']}, "
                f"and {self.dataset.name} has {self.dataset.digest}"
            )
        self.evaluation.weights_changed()
        self.history = [dict(metrics) for metrics in state["history"]]
        for name, network in self.model.networks.items():
            network.load_state_dict(state["networks"][name])
        if self.average:
            self.average.load_state_dict(state.get("average"))
        for name, optimizer in self.optimizers.items():
            if "optimizers" in state:  # a trial that has finished is kept without
                optimizer.load_state_dict(state["optimizers"][name])
        self._set_hyperparameters()
