"""Every task, posterior and network in small, and a batch for each."""

import math
from itertools import product

import torch

from aae_ray.autoencoder.kinds import ImageKind
from aae_ray.autoencoder.model import Model, build_model
from aae_ray.autoencoder.phases import TASKS, Batch
from aae_ray.autoencoder.priors import sample_classes, uniform_shares
from aae_ray.settings import Settings, replace

SHAPE = (1, 8, 8)
CLASSES = 4
VARIANTS = [
    (task, posterior, network)
    for task, posterior, network in product(
        TASKS, ("deterministic", "gaussian", "universal"), ("dense", "convolutional")
    )
    if task != "vae" or posterior == "gaussian"
]


def variant(task: str, posterior: str, network: str, **more: object) -> Settings:
    values = {
        "task": task,
        "model.posterior": posterior,
        "model.network": network,
        "train.dtype": "float64",
        "model.latent_dim": 5,
        "model.clusters": 6,
        "optim.reencoding_lr": 1e-3,
    }
    if task == "label_informed":
        values["model.prior"] = "mixture"
    return replace(Settings(), values | more)


def build(settings: Settings, shape: tuple[int, int, int] = SHAPE) -> Model:
    return build_model(settings, ImageKind(shape), classes=CLASSES)


def batch_for(model: Model, size: int = 7, seed: int = 0) -> Batch:
    """A batch with all that any task asks for, noise of every kind included."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(size, *shape, generator=generator, dtype=torch.float64)

    def one_hot(classes: int) -> torch.Tensor:
        return sample_classes(size, uniform_shares(classes), generator, torch.float64)

    pixels, y, label_condition = math.prod(model.shape), model.classes, model.sizes.label_condition
    return Batch(
        torch.rand(size, pixels, generator=generator, dtype=torch.float64),
        normal(model.noise_dim) if model.noise_dim else None,
        model.prior.sample(size, generator, torch.float64),
        classes_BK=one_hot(y) if y else None,
        labels_BK=one_hot(y) if y else None,
        label_condition_BS=one_hot(label_condition) if label_condition else None,
        input_noise_BD=0.1 * normal(pixels),
        input_mask_BD=torch.rand(size, pixels, generator=generator, dtype=torch.float64),
        style_noise_B2Z=0.1 * normal(2, model.prior.latent_dim),
        label_noise_B2K=0.1 * normal(2, y) if y else None,
        warped_BD=torch.rand(size, pixels, generator=generator, dtype=torch.float64),
    )
