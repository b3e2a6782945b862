"""An adversarial autoencoder tuned with Optuna and PyTorch, as a good user would write it in an afternoon.

python optuna_script.py DIGITS.npz FOLDER SECONDS SEED: two processes share a journal of Optuna's, and train one trial
after the other until the time is up. The objectives are the reconstruction error of held-out images, and log 2 minus
the cross-entropy of a fresh classifier of their codes and the prior. Each trial leaves what they were computed from.
"""

import math
import os
import sys
import time
import warnings
from multiprocessing import Process
from pathlib import Path

import numpy as np
import optuna
import torch
import torch.nn.functional as F
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_predict
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR

EPOCHS, BATCH, DROP, PROCESSES = 243, 100, 0.6, 2


def mlp(*sizes: int) -> nn.Sequential:
    layers = [each for a, b in zip(sizes, sizes[1:], strict=False) for each in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def sample_prior(name: str, count: int, dim: int) -> Tensor:
    if name == "uniform":
        return 2 * torch.rand(count, dim) - 1
    z = torch.randn(count, dim)
    if name == "mixture":  # ten Gaussians like the spokes of a wheel
        angle = torch.randint(10, (count,)) * (2 * math.pi / 10)
        along, across = 1.4 + 0.5 * z[:, 0], 0.05 * z[:, 1]
        z[:, 0], z[:, 1] = along * angle.cos() - across * angle.sin(), along * angle.sin() + across * angle.cos()
    elif name == "swiss_roll":
        root = torch.rand(count).sqrt()
        z[:, 0], z[:, 1] = 3 * root * (4 * math.pi * root).cos(), 3 * root * (4 * math.pi * root).sin()
    return z


def objective(trial: optuna.Trial, train: Tensor, val: Tensor, folder: Path) -> tuple[float, float]:
    dim = trial.suggest_int("model.latent_dim", 2, 16, log=True)
    prior = trial.suggest_categorical("model.prior", ["gaussian", "uniform", "mixture", "swiss_roll"])
    posterior = trial.suggest_categorical("model.posterior", ["deterministic", "gaussian", "universal"])
    hidden = [int(w) for w in trial.suggest_categorical("model.hidden", ["64-32", "128-64", "256-128"]).split("-")]
    widths = [int(w) for w in trial.suggest_categorical("model.discriminator_hidden", ["64-64", "128-128"]).split("-")]
    lr = trial.suggest_float("optim.reconstruction_lr", 5e-4, 1e-2, log=True)
    lr_discriminator = trial.suggest_float("optim.discrimination_lr", 1e-4, 1e-2, log=True)
    lr_encoder = trial.suggest_float("optim.regularization_lr", 1e-4, 1e-2, log=True)
    decay = trial.suggest_float("optim.lr_decay", 0.05, 1.0, log=True)
    input_noise = trial.suggest_float("train.input_noise", 0.0, 0.4)
    steps = trial.suggest_int("train.discriminator_steps", 1, 3)

    noise_dim = dim if posterior == "universal" else 0
    encoder = mlp(train.shape[1] + noise_dim, *hidden, 2 * dim if posterior == "gaussian" else dim)
    decoder, discriminator = mlp(dim, *hidden[::-1], train.shape[1]), mlp(dim, *widths, 1)

    def encode(x: Tensor) -> Tensor:
        out: Tensor = encoder(torch.cat([x, torch.randn(len(x), noise_dim)], 1))
        if posterior != "gaussian":
            return out
        mean, log_std = out.chunk(2, 1)
        return mean + log_std.exp() * torch.randn_like(mean)

    autoencode = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr)
    discriminate = torch.optim.Adam(discriminator.parameters(), lr_discriminator, betas=(0.5, 0.999))
    regularize = torch.optim.Adam(encoder.parameters(), lr_encoder, betas=(0.5, 0.999))
    drop = [math.ceil(DROP * EPOCHS)]
    schedules = [MultiStepLR(each, drop, decay) for each in (autoencode, discriminate, regularize)]
    for _ in range(EPOCHS):
        for x in train[torch.randperm(len(train))].split(BATCH):
            noisy = x + input_noise * torch.randn_like(x)
            loss = F.mse_loss(decoder(encode(noisy)).sigmoid(), x, reduction="sum") / (2 * len(x))
            autoencode.zero_grad(), loss.backward(), autoencode.step()
            for _ in range(steps):
                real, fake = discriminator(sample_prior(prior, len(x), dim)), discriminator(encode(noisy).detach())
                loss = F.softplus(-real).mean() + F.softplus(fake).mean()
                discriminate.zero_grad(), loss.backward(), discriminate.step()
            loss = F.softplus(-discriminator(encode(noisy))).mean()
            regularize.zero_grad(), loss.backward(), regularize.step()
        for schedule in schedules:
            schedule.step()

    with torch.no_grad():
        codes = encode(val)
        images, draws = decoder(codes).sigmoid(), sample_prior(prior, 5000, dim)
    both, which = torch.cat([codes, draws[: len(codes)]]), np.repeat([1, 0], len(codes))
    classifier = MLPClassifier((32,), alpha=0.1, max_iter=50, random_state=0)
    told = cross_val_predict(classifier, both, which, cv=5, method="predict_proba")
    np.savez(folder / f"partial-{trial.number}.npz", codes=codes, images=images, prior=draws)
    os.replace(folder / f"partial-{trial.number}.npz", folder / f"trial-{trial.number}.npz")
    return F.mse_loss(images, val).item(), math.log(2) - log_loss(which, told)


def search(digits: Path, folder: Path, until: float, seed: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)  # the classifier need not converge to tell codes apart
    torch.manual_seed(seed)
    data = np.load(digits)
    train, val = torch.from_numpy(data["train"]), torch.from_numpy(data["val"])
    study = optuna.create_study(
        study_name="digits",
        storage=JournalStorage(JournalFileBackend(str(folder / "optuna.log"))),
        directions=["minimize", "minimize"],
        sampler=optuna.samplers.TPESampler(seed=seed),
        load_if_exists=True,
    )
    study.optimize(lambda trial: objective(trial, train, val, folder), timeout=until - time.time(), catch=ValueError)


if __name__ == "__main__":
    arguments = Path(sys.argv[1]), Path(sys.argv[2]), time.time() + float(sys.argv[3])
    processes = [
        Process(target=search, args=(*arguments, 2 * int(sys.argv[4]) + i), daemon=True) for i in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
