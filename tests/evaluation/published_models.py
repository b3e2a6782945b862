"""Models as they are loaded, without a server: of any task, untrained, with weights of a seed."""

from typing import Any

from aae_ray.autoencoder.kinds import ImageKind
from aae_ray.autoencoder.model import build_model
from aae_ray.autoencoder.published import Decoder, Encoder, Published
from aae_ray.settings import Settings, replace

SHAPE, CLASSES = (1, 8, 8), 4
NAMES = ("zero", "one", "two", "three")


def published(task: str = "unsupervised", **changes: Any) -> Published:
    """A model of images of 8 x 8 with 4 classes, whose code has 3 numbers."""
    values = {
        "task": task,
        "model.latent_dim": 3,
        "model.hidden": (16, 12),
        "model.clusters": 5,
        "model.posterior": "gaussian" if task == "vae" else "deterministic",
    }
    run = replace(Settings(), values | {key.replace("__", "."): value for key, value in changes.items()})
    model = build_model(run, ImageKind(SHAPE), classes=CLASSES)
    return Published(
        name="m",
        version="2",
        decoder=Decoder(model),
        encoder=Encoder(model),
        task=task,
        prior=model.prior,
        label_shares_K=model.label_shares_K,
        data_digest="d" * 32,
        kind=ImageKind(SHAPE),
        settings={"data.name": "digits"},
        class_names=NAMES,
        reconstruction_mse=0.05,
    )
