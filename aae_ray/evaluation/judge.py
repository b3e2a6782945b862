"""The judge: a small classifier whose features compare generated images with real ones; no weights are fetched.

It is trained once on a data set's own training images and kept in the cache. Distances between its features are
comparable under the same judge alone, so whoever records one records the judge's digest with it.

Shapes: N images, C channels, H height, W width, F features, K classes.
"""

import hashlib
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aae_ray.autoencoder.kinds import ImageKind, Shape
from aae_ray.datasets.dataset import Dataset
from aae_ray.datasets.download import Progress, no_progress
from aae_ray.datasets.images import examples
from aae_ray.errors import UserError
from aae_ray.evaluation.divergence import one_thread

FEATURES = 128
STEPS, BATCH, LEARNING_RATE = 1500, 128, 2e-3
PASSES = 90  # over the training images, at most: few images are learned in fewer steps
SEED = 2015
FORMAT = 3  # raised when judges change, so that older ones are trained anew
CHUNK = 1000
SMALLEST = 4  # pixels: its images are halved twice


class Network(nn.Module):
    """x_NCHW -> features_NF, and from those logits_NK: two convolutions that halve the image, two dense layers."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.dense = nn.Linear(32 * (height // 4) * (width // 4), FEATURES)
        self.logits = nn.Linear(FEATURES, classes)

    def features(self, x_NCHW: Tensor) -> Tensor:
        return torch.relu(self.dense(self.convolutions(x_NCHW).flatten(1)))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        logits_NK: Tensor = self.logits(self.features(x_NCHW))
        return logits_NK


@dataclass(frozen=True)
class Judge:
    """A trained network, its accuracy on the test images, and a digest of its weights."""

    network: Network
    accuracy: float
    digest: str

    @torch.no_grad()
    def features(self, x_NCHW: Tensor) -> Tensor:
        """Features (N, 128) of images in [0, 1]."""
        return torch.cat([self.network.features(part.float()) for part in x_NCHW.split(CHUNK)])

    @torch.no_grad()
    def probabilities(self, x_NCHW: Tensor) -> Tensor:
        """Probabilities (N, K) of the classes."""
        return torch.cat([self.network(part.float()).softmax(1) for part in x_NCHW.split(CHUNK)])


def judge_for(dataset: Dataset, cache: Path, progress: Progress = no_progress) -> Judge:
    """The judge of a data set and its split: from the cache, else trained and put there.

    A function of the data and the machine's arithmetic alone, on one thread; no global generator is touched. Raises
    UserError when the training or the test images have no labels, or fewer than 4 x 4 pixels.
    """
    if dataset.classes is None or not _has_labels(dataset):
        raise UserError(f"data.name {dataset.name} has no labels, and a judge cannot be trained without them")
    if not isinstance(dataset.kind, ImageKind):
        raise UserError(f"data.name {dataset.name} holds rows of numbers, and a judge looks at images")
    if min(dataset.shape[1:]) < SMALLEST:
        raise UserError(f"data.name {dataset.name}: images of {dataset.shape[1]} x {dataset.shape[2]} are too small")
    file = cache / "judges" / f"{dataset.name}-{_identity(dataset)}.pt"
    if (kept := _kept(file, dataset)) is not None:
        return kept
    with one_thread():  # more threads add in another order, and end in another judge
        network = _train(dataset, progress)
    judge = Judge(network, float("nan"), _digest(network))
    test = dataset.labelled(dataset.test)
    wrong = judge.probabilities(examples(dataset, test)).argmax(1) != _labels(dataset, test)
    judge = Judge(network, 1 - wrong.double().mean().item(), judge.digest)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    torch.save({"weights": network.state_dict(), "accuracy": judge.accuracy}, partial)
    partial.replace(file)
    return judge


def is_judged(dataset: Dataset) -> bool:
    """Whether a data set has a judge: not without labels, nor with images that are too small, nor of rows."""
    return isinstance(dataset.kind, ImageKind) and _has_labels(dataset) and min(dataset.shape[1:]) >= SMALLEST


def _has_labels(dataset: Dataset) -> bool:
    """Whether there are labels to learn from, and others to be tested by."""
    return all(len(dataset.labelled(part)) > 0 for part in (dataset.train, dataset.test))


def judge_if_any(dataset: Dataset, cache: Path) -> Judge | None:
    """The judge of a data set; None where there can be none."""
    return judge_for(dataset, cache) if is_judged(dataset) else None


# What torch.load and load_state_dict raise for a file that is cut short, empty, of another kind or of another network.
DAMAGED = (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, AttributeError, pickle.UnpicklingError)


def _kept(file: Path, dataset: Dataset) -> Judge | None:
    """The judge in this file; None when there is none, or a damaged one, which is then made again."""
    network = _untrained(dataset)
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        network.load_state_dict(state["weights"])
        return Judge(network.eval(), float(state["accuracy"]), _digest(network))
    except DAMAGED:
        return None


def _untrained(dataset: Dataset) -> Network:
    assert dataset.classes is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return Network(dataset.shape, dataset.classes)


def _train(dataset: Dataset, progress: Progress) -> Network:
    network = _untrained(dataset)
    generator = torch.Generator().manual_seed(SEED)
    train = dataset.labelled(dataset.train)
    steps = min(STEPS, PASSES * len(train) // BATCH + 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=steps)
    for step in range(steps):
        rows = train[torch.randint(len(train), (BATCH,), generator=generator).numpy()]
        loss = F.cross_entropy(network(examples(dataset, rows)), _labels(dataset, rows))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            progress(f"training the judge of {dataset.name}", step + 1, steps)
    return network.eval()


def _labels(dataset: Dataset, rows: Any) -> Tensor:
    return torch.from_numpy(np.asarray(dataset.labels_N)[rows])


def _identity(dataset: Dataset) -> str:
    digest = hashlib.sha256(f"{FORMAT} {dataset.digest}".encode())
    for rows in (dataset.train, dataset.test):
        digest.update(f"{len(rows)} ".encode() + rows.tobytes())
    return digest.hexdigest()[:16]


def _digest(network: Network) -> str:
    digest = hashlib.sha256()
    for name, weight in network.state_dict().items():
        digest.update(name.encode() + weight.numpy().tobytes())
    return digest.hexdigest()[:16]
