"""python benchmarks/step.py: time of a training step, against the same mathematics by hand and against pythae.

Shapes: B batch, N examples, D pixels, Z code.
"""

import argparse
import contextlib
import importlib.util
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when PyTorch is imported
if not __package__:  # run as a file: its neighbours are found from the root, by Ray's workers too
    sys.path.insert(0, str(Path(__file__).parents[1]))
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.flop_counter import FlopCounterMode

from aae_ray.autoencoder.phases import (
    DISCRIMINATE,
    RECONSTRUCT,
    TASKS,
    UNSUPERVISED,
    Batch,
    Networks,
    Outcome,
    Phase,
    encode,
    reconstruction_loss,
)
from aae_ray.datasets.dataset import Dataset
from aae_ray.evaluation.held_out import HeldOutMetrics
from aae_ray.settings import Optim, RunSettings, Settings, replace
from aae_ray.training.loop import Training
from benchmarks.timing import (
    CALIBRATION_SECONDS,
    Row,
    Target,
    calibrate,
    drift,
    interleave,
    json_file,
    machine,
    paired,
    print_rows,
    write_json,
)

NETWORKS = ("64-32", "512", "1000-1000")
SHAPE = (1, 28, 28)
PIXELS, CODE, BATCH = 784, 8, 100

# What is divided by what, and what it should be.
RATIOS = {
    "ratio_floor": ("ours", "floor", Target(1.05, at_least=False)),
    "ratio_pythae": ("pythae", "ours", Target(1.3)),
    # What is in reach: no loop of three phases is faster against pythae than the one that is written by hand.
    "ratio_pythae_floor": ("pythae", "floor", Target(1.3)),
    "ratio_pythae_joint": ("pythae", "joint", Target(1.3)),
}

Epoch = Callable[[], None]
ADVERSARIAL_SCALE = 0.5  # of the adversarial term in a joint update, pythae's default


def settings_for(network: str) -> Settings:
    return replace(
        Settings(),
        {
            "model.hidden": network,
            "model.discriminator_hidden": network,
            "model.latent_dim": CODE,
            "train.batch_size": BATCH,
            "train.epochs": 1_000_000,
            "train.device": "cpu",
            "health.stop": False,
        },
    )


def synthetic(images: int) -> Dataset:
    """Images of random bytes: what is in them does not change the time of a step."""
    pixels = np.random.default_rng(0).integers(0, 256, (images + BATCH, *SHAPE), dtype=np.uint8)
    train, rest = np.arange(images), np.arange(images, images + BATCH)
    return Dataset("synthetic", "synthetic", pixels, None, train, rest, rest)


class NoHeldOutMetrics(HeldOutMetrics):
    """Held-out images are not looked at: a loop by hand would measure something else, at another time."""

    def cheap(self, part: str) -> dict[str, float]:
        return {}

    def costly(self, part: str) -> dict[str, float]:
        return {}


def our_epoch(run: Settings, dataset: Dataset, phases: tuple[Phase, ...] = UNSUPERVISED) -> Epoch:
    """An epoch of the platform's training: order, gather, noise, phases, records."""
    with patch.dict(TASKS, {"unsupervised": TASKS["unsupervised"]._replace(phases=phases)}):
        training = Training(run, dataset)
    training.evaluation = NoHeldOutMetrics(run, training.model, dataset, training.images)

    def epoch() -> None:
        training.train(until_epoch=training.epoch + 1)

    return epoch


def autoencode(networks: Networks, batch: Batch, settings: RunSettings) -> Outcome:
    """Encoder and decoder in one update, as pythae has it: reconstruction error plus half the adversarial loss."""
    z_BZ = encode(networks, batch.x_BD, batch.posterior_noise_BE).z_BZ
    error_B = reconstruction_loss(batch.x_BD, networks["decoder"](z_BZ), settings.train.reconstruction_reduction)
    return Outcome(error_B + ADVERSARIAL_SCALE * F.softplus(-networks["style_discriminator"](z_BZ)))


# Two updates a step instead of three, for a comparison with a program that knows no separate regularization phase.
JOINT = (RECONSTRUCT._replace(loss=autoencode), DISCRIMINATE)


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with rectifiers in between."""
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class HandWritten:
    """The floor: what one writes by hand for exactly this network, with all data in memory as float32, no records."""

    def __init__(self, hidden: tuple[int, ...], optim: Optim, x_ND: Tensor) -> None:
        self.x_ND = x_ND
        self.encoder = perceptron(PIXELS, *hidden, CODE)
        self.decoder = perceptron(CODE, *hidden[::-1], PIXELS).append(nn.Sigmoid())
        self.discriminator = perceptron(CODE, *hidden, 1)
        for network in (self.encoder, self.decoder, self.discriminator):
            network.to(x_ND.dtype)
        betas = (optim.adversarial_momentum, optim.beta2)
        self.reconstruction = Adam(
            [*self.encoder.parameters(), *self.decoder.parameters()],
            lr=optim.reconstruction_lr,
            betas=(optim.reconstruction_momentum, optim.beta2),
            fused=True,
        )
        self.discrimination = Adam(self.discriminator.parameters(), lr=optim.discrimination_lr, betas=betas, fused=True)
        self.regularization = Adam(self.encoder.parameters(), lr=optim.regularization_lr, betas=betas, fused=True)

    def epoch(self) -> None:
        for rows_B in torch.randperm(len(self.x_ND)).split(BATCH):
            self.step(self.x_ND[rows_B], torch.randn(len(rows_B), CODE, dtype=self.x_ND.dtype))

    def step(self, x_BD: Tensor, prior_BZ: Tensor) -> None:
        self.reconstruction.zero_grad()
        (0.5 * F.mse_loss(self.decoder(self.encoder(x_BD)), x_BD, reduction="sum") / len(x_BD)).backward()
        self.reconstruction.step()

        self.discrimination.zero_grad()
        code_BZ = self.encoder(x_BD)  # for both halves of the regularization phase
        real_B1, fake_B1 = self.discriminator(torch.cat([prior_BZ, code_BZ.detach()])).chunk(2)
        (F.softplus(-real_B1).mean() + F.softplus(fake_B1).mean()).backward()
        self.discrimination.step()

        self.regularization.zero_grad()
        self.discriminator.requires_grad_(False)
        F.softplus(-self.discriminator(code_BZ)).mean().backward()
        self.regularization.step()
        self.discriminator.requires_grad_(True)


def pythae_is_installed() -> bool:
    return importlib.util.find_spec("pythae") is not None


def pythae_epoch(hidden: tuple[int, ...], optim: Optim, x_ND: Tensor, folder: str) -> Epoch:
    """An epoch of pythae's own trainer on the same network, data and batch.

    Its model wants networks of its own base classes, and a discriminator that answers with probabilities.
    """
    from pythae.data.datasets import BaseDataset
    from pythae.models import Adversarial_AE, Adversarial_AE_Config
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseDiscriminator, BaseEncoder
    from pythae.trainers import AdversarialTrainer, AdversarialTrainerConfig

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = perceptron(PIXELS, *hidden, CODE)

        def forward(self, x_BD: Tensor) -> Any:
            z_BZ = self.layers(x_BD)
            return ModelOutput(embedding=z_BZ, log_covariance=torch.zeros_like(z_BZ))

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = perceptron(CODE, *hidden[::-1], PIXELS).append(nn.Sigmoid())

        def forward(self, z_BZ: Tensor) -> Any:
            return ModelOutput(reconstruction=self.layers(z_BZ))

    class Discriminator(BaseDiscriminator):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = perceptron(CODE, *hidden, 1).append(nn.Sigmoid())

        def forward(self, z_BZ: Tensor) -> Any:
            return ModelOutput(embedding=self.layers(z_BZ))

    config = Adversarial_AE_Config(
        input_dim=(PIXELS,),
        latent_dim=CODE,
        deterministic_posterior=True,
        reconstruction_loss="mse",
        adversarial_loss_scale=ADVERSARIAL_SCALE,
    )
    trainer = AdversarialTrainer(
        Adversarial_AE(config, Encoder(), Decoder(), Discriminator()),
        train_dataset=BaseDataset(x_ND, torch.zeros(len(x_ND))),
        training_config=AdversarialTrainerConfig(
            output_dir=folder,
            no_cuda=True,
            per_device_train_batch_size=BATCH,
            num_epochs=1,
            autoencoder_learning_rate=optim.reconstruction_lr,
            discriminator_learning_rate=optim.discrimination_lr,
        ),
    )
    trainer.prepare_training()

    def epoch() -> None:
        trainer.train_step(1)

    return epoch


def builders_for(network: str, dataset: Dataset, folder: str) -> dict[str, Callable[[], Epoch]]:
    """What builds the networks of each arm anew and gives an epoch of their training."""
    run = settings_for(network)
    x_ND = torch.from_numpy(dataset.images_NCHW[dataset.train].reshape(-1, PIXELS)).float().div_(255)
    builders: dict[str, Callable[[], Epoch]] = {
        "floor": lambda: HandWritten(run.model.hidden, run.optim, x_ND).epoch,
        "ours": lambda: our_epoch(run, dataset),
    }
    if pythae_is_installed():
        builders["pythae"] = lambda: pythae_epoch(run.model.hidden, run.optim, x_ND, folder)
        builders["joint"] = lambda: our_epoch(run, dataset, JOINT)
    return builders


def seconds_per_step(network: str, dataset: Dataset, seconds: float, rounds: int) -> dict[str, list[float]]:
    """For each arm, the seconds of a step in each of its blocks. What is compared runs side by side in time."""
    steps = -(-len(dataset.train) // BATCH)
    with tempfile.TemporaryDirectory() as folder, silence():
        builders = builders_for(network, dataset, folder)
        return interleave({name: partial(_block, build, steps, seconds) for name, build in builders.items()}, rounds)


def megaflops_per_image(network: str, dataset: Dataset) -> dict[str, float]:
    """For each arm, what the matrix products of a step compute for an image, in 10^6 operations: no matter of the
    machine. PyTorch counts a product of matrices (a, b) and (b, c) as 2abc."""
    found = {}
    with tempfile.TemporaryDirectory() as folder, silence():
        for name, build in builders_for(network, dataset, folder).items():
            epoch = build()
            with FlopCounterMode(display=False) as counter:
                epoch()
            found[name] = counter.get_total_flops() / len(dataset.train) / 1e6
    return found


def _block(build: Callable[[], Epoch], steps: int, seconds: float) -> float:
    """CPU seconds of a step: every arm computes on one thread and waits for nothing, so this is its time without what
    others take. Networks are built anew for each block, so that where they happen to lie in memory decides nothing."""
    epoch = build()
    epoch()
    start, epochs = time.process_time(), 0
    while (passed := time.process_time() - start) < seconds:
        epoch()
        epochs += 1
    return passed / (epochs * steps)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """pythae announces itself and draws a bar for each epoch: part of what its trainer costs, but not to be read."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/step.py", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="WIDTHS", help="such as 64-32 512")
    parser.add_argument("--images", type=int, default=3000, help="images of an epoch")
    parser.add_argument("--rounds", type=int, default=10, help="blocks of each arm")
    parser.add_argument("--seconds", type=float, default=1.0, help="of CPU time in a block, at least")
    parser.add_argument(
        "--calibration-seconds", type=float, default=CALIBRATION_SECONDS, help="of each operation, before and after"
    )
    parser.add_argument("--json", type=json_file, metavar="FILE", help="write the ratios there")
    arguments = parser.parse_args()
    if wrong := [network for network in arguments.networks if not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)*", network)]:
        parser.error(f"argument --networks: give widths such as 128-64, got {wrong[0]!r}")

    torch.set_num_threads(1)
    console = Console(highlight=False, width=120)
    dataset = synthetic(arguments.images)
    info, before = machine(), calibrate(arguments.calibration_seconds)
    cpu, wall = time.process_time(), time.perf_counter()
    found, megaflops = {}, {}
    for network in arguments.networks:
        console.print(f"measuring {network}")
        found[network] = seconds_per_step(network, dataset, arguments.seconds, arguments.rounds)
        megaflops[network] = megaflops_per_image(network, synthetic(BATCH))
    share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    after = calibrate(arguments.calibration_seconds)

    ratios = {
        key: {
            name: paired(times[above], times[below])
            for name, times in found.items()
            if above in times and below in times
        }
        for key, (above, below, _) in RATIOS.items()
    }
    milliseconds = {
        name: {arm: 1000 * float(np.median(each)) for arm, each in times.items()} for name, times in found.items()
    }
    for network, medians in milliseconds.items():
        text = ", ".join(f"{arm} {median:.3f}" for arm, median in medians.items())
        console.print(f"{network:<12}milliseconds a step: {text}")
        text = ", ".join(f"{arm} {count:.2f}" for arm, count in megaflops[network].items())
        console.print(f"{'':<12}MFLOP an image:      {text}")
    rows = [Row(key, name, ratio, RATIOS[key][2]) for key, table in ratios.items() for name, ratio in table.items()]
    print_rows(console, "A training step on one thread", rows, drift(before, after))
    console.print(f"this process had {share:.0%} of a core")
    if not pythae_is_installed():
        console.print("pythae is not installed, so its ratios are missing: pip install pythae==0.1.2")
    write_json(
        arguments.json,
        {
            **{key: {name: ratio._asdict() for name, ratio in table.items()} or None for key, table in ratios.items()},
            "milliseconds_per_step": milliseconds,
            "megaflops_per_image": megaflops,
            "machine": info,
            "calibration": {"before": before, "after": after, "drift": drift(before, after)},
            "cpu_seconds_per_second": share,
        },
    )


if __name__ == "__main__":
    main()
